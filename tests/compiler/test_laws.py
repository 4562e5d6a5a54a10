"""Law 5: what is compiled is what the oracle computes, values and gradients, whichever plan runs it."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.compiler_cases import assert_same, at_other_sizes, candidate_value, compiled
from tests.strategies import random_values, valued_networks, valued_sums
from tnalgebra.errors import CompileError, TnalgebraError
from tnalgebra.networks import Network, all_nodes, resized
from tnalgebra.tensors.contraction import contract
from tnalgebra.tensors.evaluation import evaluate, magnitude, operands

Example = tuple[Network, dict[str, Tensor], list[str]]

FEWER = settings(max_examples=settings().max_examples // 4)
"""For laws over all candidates of a plan, of which there are up to 24."""


@st.composite
def examples(draw: st.DrawFn, *, max_nodes: int = 6) -> Example:
    """A random network, the values of its tensors, and some of them as inputs."""
    either = valued_networks(max_nodes=max_nodes) | valued_sums(max_nodes=max_nodes // 2)
    network, values = draw(either.filter(lambda drawn: bool(drawn[1])))
    inputs = draw(st.sets(st.sampled_from(sorted(values)), min_size=1))
    return network, values, sorted(inputs)


def gradients(value: Tensor, tensors: Mapping[str, Tensor], direction: Tensor) -> dict[str, Tensor]:
    """name -> the derivative of <direction, value>."""
    if not value.requires_grad:
        return {name: torch.zeros_like(tensor) for name, tensor in tensors.items()}
    derivatives = torch.autograd.grad(value, [*tensors.values()], direction, allow_unused=True, materialize_grads=True)
    return dict(zip(tensors, derivatives, strict=True))


def dense_gradients(network: Network, values: Mapping[str, Tensor], direction: Tensor) -> dict[str, Tensor]:
    """The same by autograd through the dense float64 contraction."""
    tensors = {name: value.clone().requires_grad_() for name, value in values.items()}
    return gradients(_dense(network, tensors, direction.dtype), tensors, direction)


def _dense(network: Network, tensors: Mapping[str, Tensor], dtype: torch.dtype, *, absolute: bool = False) -> Tensor:
    """The dense float64 contraction of each term, added up."""
    values = []
    for term in network.terms:
        dense = operands(term, tensors, dtype)
        dense = [(tensor.abs(), labels) for tensor, labels in dense] if absolute else dense
        values.append(contract(dense, term.output))
    return torch.stack(values).sum(0)


def scale_of_gradients(network: Network, values: Mapping[str, Tensor], direction: Tensor) -> dict[str, Tensor]:
    """The same with absolute values everywhere: what their rounding errors are measured against."""
    tensors = {name: value.abs().requires_grad_() for name, value in values.items()}
    return gradients(_dense(network, tensors, direction.dtype, absolute=True), tensors, direction.abs())


@given(examples(), st.sampled_from(["all", "factored"]), st.booleans(), st.integers(0, 2**32 - 1))
def test_compiled_has_the_value_and_the_gradients_of_the_oracle(
    example: Example, candidates: str, backward: bool, seed: int
) -> None:
    check_law(example, seed, torch.float64, candidates=candidates, backward=backward)


@FEWER
@given(examples(), st.integers(0, 2**32 - 1))
def test_compiled_has_the_value_and_the_gradients_of_the_oracle_for_complex_values(example: Example, seed: int) -> None:
    network, values, inputs = example
    generator = torch.Generator().manual_seed(seed + 1)
    phases = {
        name: torch.randn(value.shape, dtype=torch.complex128, generator=generator) for name, value in values.items()
    }
    try:
        check_law((network, {name: one * phases[name] for name, one in values.items()}, inputs), seed, torch.complex128)
    except CompileError as error:
        assert "torch has no pooling of complex numbers" in str(error)  # noqa: PT017


def check_law(example: Example, seed: int, dtype: torch.dtype, **choices: Any) -> None:
    network, values, inputs = example
    module = compiled(network, values, inputs, **choices)
    expected, size = evaluate(network, values), magnitude(network, values)
    tensors = {name: values[name].clone().requires_grad_() for name in inputs}
    value = module(**tensors)
    assert_same(value.detach(), expected, size)
    direction = torch.randn(value.shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))
    ours = gradients(value, {**tensors, **dict(module.named_parameters())}, direction)
    dense, scale = dense_gradients(network, values, direction), scale_of_gradients(network, values, direction)
    assert ours.keys() == dense.keys()
    for name in values:
        assert_same(ours[name], dense[name], scale[name])
    assert_same(module.freeze()(**tensors).detach(), expected, size)


@FEWER
@given(examples(max_nodes=8))
def test_every_candidate_has_the_value_and_the_gradients_of_the_dense_contraction(example: Example) -> None:
    network, values, inputs = example
    module = compiled(network, values, inputs)
    value, size = evaluate(network, values), magnitude(network, values)
    direction = torch.ones(value.shape, dtype=torch.float64)
    expected = dense_gradients(network, values, direction)
    scale = scale_of_gradients(network, values, direction)
    for candidate in module.plan.candidates:
        tensors = {name: value.clone().requires_grad_() for name, value in values.items()}
        computed = candidate_value(candidate, tensors)
        assert_same(computed.detach(), value, size)
        for name, gradient in gradients(computed, tensors, direction).items():
            assert_same(gradient, expected[name], scale[name])


@given(examples(), st.data())
def test_inputs_of_other_sizes_are_computed_right_or_refused(example: Example, data: st.DataObject) -> None:
    network, values, inputs = example
    module = compiled(network, values, inputs)
    weights = {name: value for name, value in values.items() if name not in inputs}
    labels = [label for node in all_nodes(network) if node.name in inputs for label in node.labels]
    if not labels:
        return
    label = data.draw(st.sampled_from(labels))
    size = data.draw(st.sampled_from([n for n in (1, 2, 3, 5, 8) if n != network.sizes[label]]))
    try:
        other = at_other_sizes(network, {label: size})
        others = {**random_values(other, 0), **weights}
        evaluate(other, others)
    except TnalgebraError:
        return  # no value of these sizes: a weight or a window has another
    try:
        value = module(*(others[name] for name in inputs)).detach()
    except CompileError as error:
        assert re.search("elements, not|do not fit", str(error))  # noqa: PT017
        return
    # inputs of several sizes have the same positions of a window; the module stays with those of its plan
    sizes = {**other.sizes, **dict(zip(network.output, value.shape, strict=True))}
    exact = resized(network, sizes)
    assert_same(value, evaluate(exact, others), magnitude(exact, others))
