"""Cores that learn the outputs of the dense model."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

import tnalgebra as tn
from tests.conversion_cases import assert_same, inputs, network, state
from tests.refusals import refused
from tnalgebra.errors import DataError, LayerError, ValuesError
from tnalgebra.model.distil import RATES


def pair() -> tuple[nn.Sequential, nn.Sequential]:
    """A dense network and a copy whose first layer has rank 4, in training mode."""
    dense = network()
    model, _ = tn.convert(copy.deepcopy(dense), {"0": ("out | in kh kw", 4)})
    return dense, model.train()


def distance(model: nn.Module, dense: nn.Module, x: Tensor) -> float:
    model, dense = copy.deepcopy(model).eval(), copy.deepcopy(dense).eval()
    with torch.no_grad():
        return float((model(x) - dense(x)).norm() / dense(x).norm())


@pytest.mark.parametrize(("blocks", "compared"), [(None, 1), (["0"], 1), ([], None)])
def test_outputs_of_other_images_get_nearer(blocks: list[str] | None, compared: int | None) -> None:
    dense, model = pair()
    model[0].freeze()
    *batches, x = (image.cumsum(2).cumsum(3) for image in inputs(60))  # smooth, other than the fit assumes
    before, modes = distance(model[:compared], dense[:compared], x), [module.training for module in model.modules()]
    labelled = [(batch, None) for batch in batches]
    assert tn.distil(model, dense, labelled, blocks=blocks, learning_rate=3e-2) is model
    assert distance(model[:compared], dense[:compared], x) < 0.9 * before
    assert [module.training for module in model.modules()] == modes


@pytest.mark.parametrize("off", [1e-3, 1e-1])
def test_the_learning_rate_follows_from_how_much_the_cores_bear(off: float) -> None:
    dense, model = pair()
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        dense[0].weight.copy_(model[0].dense_weight())  # cores that fit it, less a small or a large change
        for core in model[0].parameters():
            core += off * torch.randn(core.shape, generator=generator) * core.square().mean().sqrt()
    *batches, x = inputs(40)
    before = distance(model[:1], dense[:1], x)
    chosen, fixed = (
        distance(tn.distil(copy.deepcopy(model), dense, batches, learning_rate=rate)[:1], dense[:1], x)
        for rate in (None, 1e-2)
    )
    assert chosen < 0.9 * before
    assert (fixed > before) == (off < 1e-2), "one rate for all would spoil cores that fit well"


def test_the_batches_that_choose_the_learning_rate_are_learnt_too() -> None:
    dense, model = pair()
    batches = inputs(2)
    chosen = {}
    for rate in (None, *RATES):
        student = tn.distil(copy.deepcopy(model), dense, iter(batches), steps=2, learning_rate=rate)
        chosen[rate] = [core.detach().clone() for core in student[0].parameters()]
    same = [rate for rate in RATES if all(map(torch.equal, chosen[rate], chosen[None]))]
    assert len(same) == 1


def test_only_cores_and_biases_of_decomposed_layers_change() -> None:
    dense, model = pair()
    model[0].get_parameter("bias").requires_grad_(False)
    theirs, ours = state(dense), state(model)
    tn.distil(model, dense, inputs(3))
    assert_same(theirs, state(dense))
    values = ours.pop("values")
    new = state(model)
    changed = {name for name, value in new.pop("values").items() if not torch.equal(value, values[name])}
    assert changed == {name for name in values if name.startswith("0.")}
    assert new == ours
    assert all(parameter.grad is None for parameter in model.parameters())


def test_an_error_leaves_the_cores_as_they_were() -> None:
    dense, model = pair()
    before = state(model)
    with refused(ValuesError, "batch 2", "nan"):
        tn.distil(model, dense, [inputs()[0], inputs()[0] * float("nan")])
    with refused(DataError, "generator", "steps=100"):
        tn.distil(model, dense, (x for x in inputs()))
    with refused(DataError, "steps=4", "3 batches"):
        tn.distil(model, dense, (x for x in inputs()), steps=4)
    with refused(DataError, "steps=0"):
        tn.distil(model, dense, inputs(), steps=0)
    with refused(DataError, "learning_rate=0"):
        tn.distil(model, dense, inputs(), learning_rate=0)
    with refused(DataError, "no batches"):
        tn.distil(model, dense, [])
    with refused(LayerError, "no decomposed layers"):
        tn.distil(dense, dense, inputs())
    with refused(LayerError, "the model has no module 'stem'"):
        tn.distil(model, dense, inputs(), blocks=["stem"])
    with refused(LayerError, "the teacher has no module '1'"):
        tn.distil(model, nn.Sequential(dense[0]), inputs(), blocks=["1"])
    with refused(LayerError, "the model", "shape"):
        tn.distil(model, dense[:1], inputs())
    with refused(LayerError, "Linear does not run on batch 1", str(tuple(inputs()[0].shape))):
        tn.distil(model, nn.Linear(5, 7), inputs())
    assert_same(before, state(model))
