"""`layer.weight` of a decomposed layer: its facts are those of torch's weight, and nothing computes with it."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.nn.utils import parametrize, prune

import tnalgebra as tn
from tests.refusals import refused
from tnalgebra.errors import WeightError

LAYERS: dict[str, Callable[[], Any]] = {
    "Conv1d": lambda: nn.Conv1d(4, 6, 3),
    "Conv2d": lambda: nn.Conv2d(4, 6, (3, 2), groups=2),
    "Conv3d": lambda: nn.Conv3d(4, 6, 2).requires_grad_(False),
    "ConvTranspose2d": lambda: nn.ConvTranspose2d(4, 6, 3).double(),
    "Linear": lambda: nn.Linear(5, 7).bfloat16(),
    "Embedding": lambda: nn.Embedding(5, 7),
}

FACTS = (
    *("shape", "dtype", "device", "ndim", "requires_grad", "layout", "is_cuda", "is_cpu", "is_meta", "itemsize"),
    *("dim", "size", "numel", "nelement", "element_size", "is_floating_point", "is_complex", "get_device"),
)


def decomposed(name: str) -> tuple[Any, Any]:
    torch.manual_seed(0)
    dense = LAYERS[name]()
    labels = tn.nn.kernel_labels_of(dense)
    return dense, tn.nn.decomposed(dense, f"{labels[0]} | {' '.join(labels[1:])}", 2)


@pytest.mark.parametrize("name", LAYERS)
def test_facts_are_those_of_torchs_weight(name: str) -> None:
    dense, layer = decomposed(name)
    for module in (layer, layer.eval().freeze()):
        for fact in FACTS:
            ours, theirs = getattr(module.weight, fact), getattr(dense.weight, fact)
            assert (ours() if callable(ours) else ours) == (theirs() if callable(theirs) else theirs), fact
        assert module.weight.size(0) == dense.weight.size(0)
        x = torch.zeros(3, dtype=torch.float16)
        assert x.to(module.weight).dtype == x.type_as(module.weight).dtype == dense.weight.dtype
        made = module.weight.new_zeros(2)
        assert made.dtype == dense.weight.dtype
        assert made.shape == (2,)


def test_facts_follow_the_layer() -> None:
    _, layer = decomposed("Conv1d")
    layer.double().requires_grad_(False)
    assert layer.weight.dtype == torch.float64
    assert not layer.weight.requires_grad
    assert repr(layer.weight) == "WeightFacts(shape=(6, 4, 3), dtype=torch.float64, device='cpu')"


X = torch.ones(2, 5)

USES: dict[str, Callable[[Any], Any]] = {
    "a linear map": lambda w: functional.linear(X, w),
    "a keyword": lambda w: functional.linear(input=X, weight=w),
    "a product": lambda w: w * 2,
    "a product from the left": lambda w: 2 * w,
    "a matrix product": lambda w: X @ w,
    "a standardisation": lambda w: functional.batch_norm(w.reshape(1, 7, -1), None, None, training=True),
    "a norm": lambda w: torch.linalg.vector_norm(w),
    "a sequence": lambda w: torch.cat([X, w]),
    "elements": lambda w: w[0],
    "a comparison": lambda w: w == w,
    "numpy": np.asarray,
    "torch.tensor": torch.tensor,
    "a number": float,
    "a truth value": bool,
    "data": lambda w: w.data,
    "a gradient": lambda w: w.grad,
    "new data": lambda w: setattr(w, "data", X),
    "truncated normal": nn.init.trunc_normal_,
    "kaiming": nn.init.kaiming_uniform_,
    "zeros": nn.init.zeros_,
    "a constant": lambda w: nn.init.constant_(w, 1.0),
    "freezing": lambda w: w.requires_grad_(False),
    "another layer's": nn.Parameter,
}


@pytest.mark.parametrize("use", USES)
def test_nothing_computes_with_it(use: str) -> None:
    _, layer = decomposed("Linear")
    before = {name: value.clone() for name, value in layer.state_dict().items()}
    with refused(WeightError, "nn.Linear", "in_features=5, out_features=7", "dense_weight()"):
        USES[use](layer.weight)
    assert all(torch.equal(value, before[name]) for name, value in layer.state_dict().items())


@pytest.mark.parametrize(
    "change",
    [
        lambda layer: setattr(layer, "weight", nn.Parameter(torch.ones(7, 5))),
        lambda layer: setattr(layer, "weight", None),
        lambda layer: layer.register_parameter("weight", nn.Parameter(torch.ones(7, 5))),
        lambda layer: layer.register_buffer("weight", torch.ones(7, 5)),
        lambda layer: prune.l1_unstructured(layer, "weight", 0.5),
        lambda layer: parametrize.register_parametrization(layer, "weight", nn.Identity()),
        lambda layer: nn.utils.parametrizations.weight_norm(layer),
        lambda layer: nn.utils.spectral_norm(layer),
        lambda layer: torch.func.functional_call(layer, {"weight": torch.ones(7, 5)}, (X,)),
        lambda layer: delattr(layer, "weight"),
    ],
)
def test_it_cannot_be_replaced(change: Callable[[Any], Any]) -> None:
    _, layer = decomposed("Linear")
    names = [*layer.state_dict()]
    for one in (layer, copy.deepcopy(layer), copy.copy(layer), pickle.loads(pickle.dumps(layer))):
        with refused(WeightError, "nn.Linear", "layer.cores()"):
            change(one)
        assert [*one.state_dict()] == names
        assert "weight" not in one._parameters


def test_it_is_not_a_tensor() -> None:
    _, layer = decomposed("Linear")
    assert not isinstance(layer.weight, torch.Tensor)
    assert not hasattr(layer.weight, "data")
    assert "weight" not in layer.state_dict()


def test_facts_in_a_compiled_model() -> None:
    class Reading(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = decomposed("Conv1d")[1]

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            weight = self.layer.weight
            zeros = torch.zeros(weight.shape[0], dtype=weight.dtype, device=weight.device)
            return self.layer(x.to(weight.dtype)).sum((0, 2)) + zeros

    model, x = Reading(), torch.ones(2, 4, 9)
    torch.testing.assert_close(torch.compile(model, backend="eager", fullgraph=True)(x), model(x))
