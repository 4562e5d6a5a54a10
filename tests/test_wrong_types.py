"""Arguments of a wrong type are refused by an error of the library, which says what is needed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

import tnalgebra as tn
from tests.refusals import refused
from tnalgebra.errors import CheckpointError, CompileError, LayerError, NetworkError, RuleError, ValuesError

CONV = nn.Conv2d(4, 4, 3)
FIT = tn.rule("K[o i h w] => U[o a] V[a i h w]").apply(CONV.weight, 2)
TEXT = "X[n:1 c:4 t] Conv[t s k] K[o c k] -> [n o s]"
KERNEL = {"K": torch.ones(8, 4, 3)}
LINEAR: dict[str, Any] = {"inputs": {"X": (2, 3)}, "values": {"K": torch.ones(4, 3)}}


def _compile(**wrong: Any) -> Any:
    return tn.compile("X[n i] K[o i] -> [n o]", **(LINEAR | wrong))


WRONG: dict[str, tuple[Callable[[Any], Any], list[Any], type[Exception], str]] = {
    "a network": (tn.evaluate, [5, None, [1], CONV], NetworkError, "needed"),
    "a network to simplify": (tn.simplify, [5, None, CONV], NetworkError, "needed"),
    "a network to compile": (lambda one: tn.compile(one, inputs={"X": (2,)}), [5, CONV], NetworkError, "needed"),
    "a network to rewrite": (lambda one: tn.rewriting.rewrite(one, []), [5, None, CONV], NetworkError, "needed"),
    "a network to contract": (tn.rewriting.contract_back, [5, None, CONV], NetworkError, "needed"),
    "a network for quimb": (tn.tensors.to_quimb, [5, None, CONV], NetworkError, "needed"),
    "a network of quimb": (tn.tensors.from_quimb, [5, None, CONV], ValuesError, "quimb"),
    "a network to compare": (
        lambda one: tn.networks.isomorphic(tn.parse("A[i]"), one),
        ["A[i]", 5, None],
        NetworkError,
        "needed",
    ),
    "a network to feed": (
        lambda one: tn.networks.compose(one, tn.parse("A[i]")),
        ["A[i]", 5, None],
        NetworkError,
        "needed",
    ),
    "a network to be fed": (
        lambda one: tn.networks.compose(tn.parse("A[i]"), one),
        ["A[i]", 5, None],
        NetworkError,
        "needed",
    ),
    "a network to rename": (tn.networks.renamed, ["A[i]", 5, None], NetworkError, "needed"),
    "a network with tensors": (tn.networks.tensors_of, ["A[i]", 5, None], NetworkError, "needed"),
    "values": (lambda one: tn.evaluate("A[i j]", one), [5, "A", [1], torch.ones(2)], ValuesError, "mapping"),
    "values to simplify": (lambda one: tn.simplify("A[i j]", one), [5, torch.ones(2)], ValuesError, "mapping"),
    "values to compile": (lambda one: _compile(values=one), [5, "K", torch.ones(2)], ValuesError, "mapping"),
    "values of a stream": (lambda one: tn.stream(TEXT, values=one), [5, torch.ones(2)], ValuesError, "mapping"),
    "values to replay": (FIT.trace.replay, [CONV.weight, 5], ValuesError, "mapping"),
    "values to check": (FIT.trace.check, [CONV.weight, 5], ValuesError, "mapping"),
    "inputs": (lambda one: _compile(inputs=one), [5, torch.ones(2)], CompileError, "inputs"),
    "ranges": (lambda one: _compile(dynamic=one), [5, "n"], CompileError, "dynamic"),
    "constants": (lambda one: _compile(constants=one), [5, None, "K", [1]], CompileError, "constants"),
    "constants of a stream": (
        lambda one: tn.stream(TEXT, values=KERNEL, constants=one),
        [5, None, "K"],
        CompileError,
        "constants",
    ),
    "a seed": (lambda one: tn.operator_spectra(CONV, 5, seed=one), ["a", 0.5, None, -1], ValuesError, "seed"),
    "a rule": (FIT.then, ["cp", None, 5], RuleError, "not a rule"),
    "a place": (
        lambda one: tn.rule("K[o i] => A[o r] B[r i]").apply(torch.ones(3, 3), 1, at=one),
        ["0", 0.0],
        RuleError,
        "at=",
    ),
    "nodes": (tn.Network, [5, "A", [1], None], NetworkError, "node"),
    "labels": (tn.all_cuts, [5, None, CONV], NetworkError, "labels"),
    "rewrites": (lambda one: tn.compare(CONV, one, 2), [5, None, CONV], RuleError, "rewrites"),
    "cuts": (lambda one: tn.spectra(FIT, cuts=one), [5, [1], CONV, {"o | i h w": 1}], RuleError, "cuts"),
    "a model": (tn.fold_batch_norm, [5, None, "model"], LayerError, "torch.nn.Module"),
    "a layer": (
        lambda one: tn.nn.decomposed(one, "cp", 2),
        [5, None, torch.ones(3, 4, 3, 3)],
        LayerError,
        "a layer is",
    ),
    "a layer of a class": (
        lambda one: tn.nn.Conv2d.from_conv(one, "cp", 2),
        [5, None, torch.ones(3, 4, 3, 3)],
        LayerError,
        "a layer is",
    ),
    "an input of a layer": (tn.nn.decomposed(CONV, "cp", 2), [5, None, "x", [1]], CompileError, "nn.Conv2d"),
    "an input of a linear layer": (
        tn.nn.decomposed(nn.Linear(4, 4), "out | in", 2),
        [5, None, "x", [1]],
        CompileError,
        "nn.Linear",
    ),
    "an input of an embedding": (
        tn.nn.decomposed(nn.Embedding(4, 4), "rows | dim", 2),
        [5, None, "x", [1]],
        CompileError,
        "nn.Embedding",
    ),
    "a batch size": (
        lambda one: tn.nn.decomposed(CONV, "cp", 2, batch_size=one),
        ["2", 0.5, 0],
        LayerError,
        "batch_size",
    ),
    "a path": (tn.load, [5, None, ["a"]], CheckpointError, "path"),
    "a path to write": (lambda one: tn.save(CONV, one), [5, None, ["a"]], CheckpointError, "path"),
    "a complex layer": (
        lambda one: tn.adapt(nn.Sequential(nn.Linear(4, 4, dtype=one)), {"0": "LoRA"}, 2),
        [torch.complex64],
        LayerError,
        "complex64",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_type_is_refused_by_name(name: str) -> None:
    function, values, error, fact = WRONG[name]
    for value in values:
        with refused(error, fact):
            function(value)


def test_a_network_may_be_its_text() -> None:
    ones = torch.ones(2, 3)
    assert torch.equal(tn.evaluate("A[i j] -> [i]", {"A": ones}), tn.evaluate(tn.parse("A[i j] -> [i]"), {"A": ones}))
    assert str(tn.simplify("A[i j] Copy[j k] B[k l]").network) == "A[i j] B[j l]"
    values = {"A": ones, "B": torch.arange(12.0).reshape(3, 4)}
    product = values["A"] @ values["B"]
    text = "A[i j] B[j k]"
    (contracted,) = tn.rewriting.contract_back(text, values).values.values()
    assert torch.equal(contracted, product)
    assert torch.equal(tn.rewriting.rewrite(text, [], values).dense(), product)
    assert torch.allclose(tn.tensors.to_quimb(text, values).contract().data, product)
    for cuts in (["i | k"], None):
        (spectrum,) = tn.spectra(text, values=values, cuts=cuts)
        torch.testing.assert_close(spectrum.singular_values.float(), torch.linalg.svdvals(product), rtol=0, atol=1e-5)


def test_networks_are_fed_to_networks_alone() -> None:
    for other in ("B[i k]", 5):
        with pytest.raises(TypeError, match=">>"):
            tn.parse("A[i j]") >> other


def test_a_constant_without_a_value() -> None:
    with refused(tn.errors.StreamError, "'unknown'", "no value"):
        tn.stream(TEXT, values=KERNEL, constants=["unknown"])
