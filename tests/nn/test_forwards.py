"""Subclasses of torch's layers with a forward of their own: those that compute the same have its network."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

import tnalgebra as tn
from tests.refusals import refused
from tnalgebra.errors import LayerError

Forward = Callable[[Any, Tensor], Any]


def subclass(kind: type[nn.Module], forward: Forward) -> type[Any]:
    return type(f"Own{kind.__name__}", (kind,), {"forward": forward})


def inherited(kind: type[Any]) -> Forward:
    return lambda self, x: kind.forward(self, x)


def linear_map(self: Any, x: Tensor) -> Tensor:
    return functional.linear(x, self.weight, self.bias)


def matrix_product(self: Any, x: Tensor) -> Tensor:
    y = x @ self.weight.t()
    return y if self.bias is None else self.bias + y


def counting(self: Any, x: Tensor) -> Tensor:
    self.calls = getattr(self, "calls", 0) + 1
    return nn.Linear.forward(self, x)


SAME: tuple[Forward, ...] = (inherited(nn.Linear), linear_map, matrix_product, counting)

OTHER: dict[str, Forward] = {
    "scaled": lambda self, x: 1.01 * nn.Linear.forward(self, x),
    "clipped": lambda self, x: nn.Linear.forward(self, x.clamp(-6, 6)),
    "rounded": lambda self, x: nn.Linear.forward(self, (100 * x).round() / 100),
    "noisy in training": lambda self, x: nn.Linear.forward(self, x + self.training * 0.1 * torch.randn_like(x)),
    "dropout": lambda self, x: functional.dropout(nn.Linear.forward(self, x), 0.1, self.training),
    "detached": lambda self, x: functional.linear(x, self.weight.detach(), self.bias),
    "detached input": lambda self, x: nn.Linear.forward(self, x.detach()),
    "standardised": lambda self, x: functional.linear(x, self.weight - self.weight.mean(), self.bias),
    "a pair": lambda self, x: (nn.Linear.forward(self, x), None),
    "another dtype": lambda self, x: nn.Linear.forward(self, x).double(),
    "raises": lambda self, x: [][1],
}


def cut(module: Any) -> Any:
    first, *rest = tn.nn.kernel_labels_of(module)
    return tn.nn.decomposed(module, f"{first} | {' '.join(rest)}", 2)


@given(st.sampled_from(SAME), st.booleans(), st.sampled_from([torch.float32, torch.float64]), st.booleans())
def test_a_subclass_that_computes_the_same_is_decomposed(
    forward: Forward, bias: bool, dtype: torch.dtype, trained: bool
) -> None:
    module = subclass(nn.Linear, forward)(5, 7, bias, dtype=dtype).requires_grad_(trained)
    before, random = copy.deepcopy(module.__dict__), torch.random.get_rng_state()
    layer = cut(module)
    assert before.keys() == module.__dict__.keys()
    assert torch.equal(random, torch.random.get_rng_state())
    plain = nn.Linear(5, 7, bias, dtype=dtype)
    plain.load_state_dict(module.state_dict())
    torch.testing.assert_close(layer.dense_weight(), cut(plain).dense_weight())


@pytest.mark.parametrize("name", OTHER)
def test_one_that_computes_something_else_is_refused(name: str) -> None:
    with refused(LayerError, "OwnLinear, a subclass of Linear", "a forward of its own", "fix"):
        cut(subclass(nn.Linear, OTHER[name])(5, 7))


@pytest.mark.parametrize(
    "make",
    [
        lambda kind: kind(4, 6, 3),
        lambda kind: kind(4, 6, (3, 2), stride=2, padding=1, padding_mode="circular"),
        lambda kind: kind(4, 6, 3, padding="same", groups=2, dtype=torch.bfloat16),
    ],
)
def test_convolutions(make: Callable[[type[Any]], Any]) -> None:
    cut(make(subclass(nn.Conv2d, inherited(nn.Conv2d))))
    with refused(LayerError, "OwnConv2d"):
        cut(make(subclass(nn.Conv2d, lambda self, x: nn.Conv2d.forward(self, functional.pad(x, (0, 1, 0, 1))))))


@given(st.integers(1, 4), st.integers(1, 4))
def test_padding_that_depends_on_the_input(k: int, stride: int) -> None:
    """Padding as another library has it: `ceil(x / stride)` positions of the output."""

    def forward(self: Any, x: Tensor) -> Tensor:
        pads = [max((-(-size // stride) - 1) * stride + k - size, 0) for size in x.shape[:1:-1]]
        return nn.Conv2d.forward(self, functional.pad(x, [n for p in pads for n in (p // 2, p - p // 2)]))

    module = subclass(nn.Conv2d, forward)(3, 4, k, stride=stride)
    if k == 1:
        cut(module)
    else:
        with refused(LayerError, "on an input of shape"):
            cut(module)


def test_embeddings() -> None:
    kind = subclass(nn.Embedding, lambda self, i: functional.embedding(i, self.weight, self.padding_idx))
    cut(kind(9, 7, padding_idx=1))
    with refused(LayerError, "OwnEmbedding"):
        cut(subclass(nn.Embedding, lambda self, i: 8 * nn.Embedding.forward(self, i))(9, 7))


def test_what_it_takes_or_holds_besides_is_no_reason_to_lose_it() -> None:
    def scaled(self: Any, x: Tensor, scale: float = 1.0) -> Tensor:
        return scale * nn.Linear.forward(self, x)

    with refused(LayerError, "which takes x, scale"):
        cut(subclass(nn.Linear, scaled)(5, 7))
    module = subclass(nn.Linear, linear_map)(5, 7)
    module.gain = nn.Parameter(torch.ones(1))
    with refused(LayerError, "holds gain"):
        cut(module)
    with refused(LayerError, "without elements"):
        cut(subclass(nn.Linear, linear_map)(5, 7, device="meta"))


def test_hooks_are_not_called_on_trial() -> None:
    module = subclass(nn.Linear, linear_map)(5, 7)
    calls: list[int] = []
    handle = module.register_forward_hook(lambda *_: calls.append(1))
    tn.nn.layer_network(module)
    handle.remove()
    assert not calls
