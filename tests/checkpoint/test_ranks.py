"""Checkpoints loaded into other ranks: smaller ones by rounding, larger ones by padding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import tnalgebra.nn as layers
from tests.checkpoint_cases import (
    BASIS,
    HYPEREDGE,
    RESHAPED,
    RING,
    ROUNDING,
    TIED,
    TRAIN,
    X,
    converted,
    network,
    same_layer,
)
from tests.refusals import refused
from tnalgebra.checkpoint import load, save
from tnalgebra.errors import CheckpointError
from tnalgebra.rewriting.rule import Rule
from tnalgebra.rewriting.text import rule


@pytest.mark.parametrize("noise", [0.0, 1.0])
@pytest.mark.parametrize("chosen", ["tucker2", "cp", HYPEREDGE, TIED, RESHAPED, RING, TRAIN], ids=str)
def test_larger_ranks_leave_the_value(chosen: str | Rule, noise: float, tmp_path: Path) -> None:
    small, large = converted(chosen, model=network().double()), converted(chosen, rank=3, model=network().double())
    save(small, tmp_path / "model.safetensors")
    kernel, held = large[0].kernel, [*large.parameters()]
    load(tmp_path / "model.safetensors", into=large, resize=True, noise=noise)
    layer: Any = large[0]
    assert layer.kernel == kernel
    assert layer.relative_error == small[0].relative_error
    assert all(one is two for one, two in zip(held, large.parameters(), strict=True))
    x = X.double()
    torch.testing.assert_close(layer.dense_weight(), small[0].dense_weight(), **ROUNDING)
    torch.testing.assert_close(large(x), small(x), **ROUNDING)


def test_what_is_enlarged_is_trained(tmp_path: Path) -> None:
    save(converted("cp"), tmp_path / "model.safetensors")
    for noise, moves in ((0.01, True), (0.0, False)):
        model: Any = load(tmp_path / "model.safetensors", into=converted("cp", rank=4), resize=True, noise=noise)
        model(X).square().sum().backward()
        assert bool(model[0].A.grad[:, 2:].abs().max() > 0) == moves
    with refused(CheckpointError, "noise=nan"):
        load(tmp_path / "model.safetensors", into=model, resize=True, noise=float("nan"))


def test_smaller_ranks_of_a_tree_are_the_best_there_are(tmp_path: Path) -> None:
    """With one bond, what is lost is the tail of the kernel's singular values."""
    chosen = rule("K[o i h w] => U[o r] V[r i h w]")
    model: Any = converted(chosen, rank=4, model=network().double())
    save(model, tmp_path / "model.safetensors")
    other: Any = load(tmp_path / "model.safetensors", into=converted(chosen, model=network().double()), resize=True)
    matrix = model[0].dense_weight().flatten(1)
    spectrum = torch.linalg.svdvals(matrix)
    lost = torch.linalg.matrix_norm(matrix - other[0].dense_weight().flatten(1))
    torch.testing.assert_close(lost, spectrum[2:].norm(), rtol=1e-9, atol=0)
    assert str(other[0].trace).startswith(str(model[0].trace))
    assert other[0].trace.steps[-1].rule.name == "truncate r"
    assert other[0].relative_error is None


@pytest.mark.parametrize("chosen", ["cp", HYPEREDGE, TIED, RING, TRAIN, RESHAPED], ids=str)
def test_smaller_ranks_of_any_network(chosen: str | Rule, tmp_path: Path) -> None:
    model, other = (converted(chosen, rank=rank, model=network().double()) for rank in (3, 2))
    save(model, tmp_path / "model.safetensors")
    kernel = other[0].kernel
    load(tmp_path / "model.safetensors", into=other, resize=True)
    assert other[0].kernel == kernel
    large, small = (one[0].dense_weight().detach() for one in (model, other))
    assert float((large - small).norm() / large.norm()) < 0.95
    save(other, tmp_path / "again.safetensors")
    same_layer(load(tmp_path / "again.safetensors", into=network().double())[0], other[0])


def test_smaller_and_larger_at_once(tmp_path: Path) -> None:
    models = [layers.Conv2d.from_conv(network()[0], "tucker2", size={"a": a, "b": b}) for a, b in ((4, 2), (2, 3))]
    save(models[0], tmp_path / "model.safetensors")
    load(tmp_path / "model.safetensors", into=models[1], resize=True)
    best = layers.Conv2d.from_conv(network()[0], "tucker2", size={"a": 2, "b": 2})
    weight = models[0].dense_weight()
    # truncation of one bond is optimal, so that it is at least as near as another fit of these ranks to the weight
    assert (models[1].dense_weight() - weight).norm() <= (best.dense_weight() - weight).norm() * (1 + 1e-5)


def test_constants_are_chosen_among_and_never_made_up(tmp_path: Path) -> None:
    large: Any = converted(BASIS, rank=3)
    small: Any = converted(BASIS, rank=2)
    save(large, tmp_path / "model.safetensors")
    rows = {tuple(row) for row in large[0].D.tolist()}
    load(tmp_path / "model.safetensors", into=small, resize=True)
    assert {tuple(row) for row in small[0].D.tolist()} < rows
    save(small, tmp_path / "model.safetensors")
    with refused(CheckpointError, "'c'", "'D'"):
        load(tmp_path / "model.safetensors", into=large, resize=True)
