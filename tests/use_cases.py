"""What people do to torch's modules, done to decomposed layers: the cases of a test, and of a table in docs/layers.md.

Each use is a function that does it to a layer and compares what comes of it with torch's layer of the rebuilt weight.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

import tnalgebra as tn
from tnalgebra.errors import TnalgebraError

EQUAL = "equals torch"
REFUSED = "refused: "

FROZEN, AUTOCAST, PARAMETERS = "a frozen layer", "autocast", "parameters"
META, TRACED, FUNCTIONS = "the meta device", "traced", "transforms"
COPIED, COMPUTED, TYPES, WRAPPED = "copied", "cores that are computed", "other numbers", "wrapped"
"""The groups of uses."""

NUMBERS_ALONE = "Embedding"
"""The layer whose input is not floating point."""
ATTENTION = "MultiheadAttention"
"""The layer that is not made with random values."""

NETWORKS = {
    "Conv2d": "tucker2",
    "ConvTranspose1d": "cp",
    "Conv3d": "K[out in kd kh kw] => Fuse[out o1 o2] Fuse[in i1 i2] A[o1 i1 p] B[p o2 i2 kd kh kw]",
    "Linear": "W[out in] => Fuse[in a i] Fuse[out b j] R[a j i r] L[r j b a]",
    "Embedding": "rows | dim",
    "MultiheadAttention": "out | in",
}
"""The layers that every use is tried on -> the rewrite of their weight."""

TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.bfloat16: 3e-2, torch.float16: 5e-3}
"""Of values around 1: gradients of squares, sums in another order, cores rounded to the type."""


@dataclass(frozen=True)
class Trial:
    """A decomposed layer, an input for it, and what torch's layer with the rebuilt weight is."""

    name: str
    layer: nn.Module
    x: Tensor

    def __call__(self, layer: nn.Module | Callable[..., object] | None = None, x: Tensor | None = None) -> Tensor:
        """The output of a layer, by default of the decomposed one."""
        value = (self.layer if layer is None else layer)(*self.inputs(x))
        return value[0] if isinstance(value, tuple) else value  # type: ignore[return-value]

    def inputs(self, x: Tensor | None = None) -> tuple[Tensor, ...]:
        x = self.x if x is None else x
        return (x, x, x) if self.name == "MultiheadAttention" else (x,)

    def of(self, layer: nn.Module) -> Trial:
        """The same with another layer."""
        return replace(self, layer=layer)

    @property
    def decomposed(self) -> list[tn.nn.KernelLayer]:
        return [one for one in self.layer.modules() if isinstance(one, tn.nn.KernelLayer)]

    @property
    def core(self) -> tuple[tn.nn.KernelLayer, str]:
        """A layer and the name of one of its cores."""
        layer = self.decomposed[0]
        return layer, list(layer.cores())[-1]

    def freeze(self) -> Trial:
        for one in self.decomposed:
            one.freeze()
        return self

    def dense(self) -> nn.Module:
        """torch's layer with the weight that the layer has now."""
        if isinstance(self.layer, tn.nn.KernelLayer):
            return self.layer.to_dense()
        attention = _torch_layer(self.name).to(next(self.layer.parameters()).dtype)
        parts = {name: getattr(self.layer, name).to_dense() for name in ("q_proj", "k_proj", "v_proj", "out_proj")}
        *packed, out = parts.values()
        with torch.no_grad():
            attention.in_proj_weight.copy_(torch.cat([one.weight for one in packed]))  # type: ignore[operator]
            attention.in_proj_bias.copy_(torch.cat([one.bias for one in packed]))  # type: ignore[operator]
            attention.out_proj.load_state_dict(out.state_dict())  # type: ignore[union-attr]
        return attention.eval()

    def check(self, x: Tensor | None = None) -> None:
        """Compare the layer with torch's."""
        same(self(x=x), self(self.dense(), x))


def same(value: Tensor, expected: Tensor) -> None:
    assert value.dtype == expected.dtype, (value.dtype, expected.dtype)
    tolerance = TOLERANCE[expected.dtype] * max(1.0, float(expected.detach().abs().max()) if expected.numel() else 0.0)
    torch.testing.assert_close(value, expected, rtol=0, atol=tolerance)


def values(one: Trial, layer: nn.Module, tensors: dict[str, Tensor], x: Tensor | None = None) -> Tensor:
    """The output of a layer with other tensors in the place of its own."""
    result = functional_call(layer, tensors, one.inputs(x))
    return result[0] if isinstance(result, tuple) else result  # type: ignore[no-any-return]


class Doubled(nn.Module):
    """A parametrisation."""

    def forward(self, core: Tensor) -> Tensor:
        return 2 * core


class Holding(nn.Module):
    """A model that holds a layer."""

    def __init__(self, one: Trial) -> None:
        super().__init__()
        self.layer, self.copies = one.layer, len(one.inputs())

    def forward(self, x: Tensor) -> Any:
        return self.layer(*[x] * self.copies)


def _torch_layer(name: str) -> nn.Module:
    torch.manual_seed(0)
    match name:
        case "Linear":
            return nn.Linear(8, 12)
        case "Embedding":
            return nn.Embedding(12, 8, padding_idx=1)
        case "MultiheadAttention":
            return nn.MultiheadAttention(8, 2, batch_first=True)
        case _:
            return getattr(nn, name)(4, 6, 3, padding=1)  # type: ignore[no-any-return]


PARTS = {"Linear": {"a": 4, "b": 4}, "Conv3d": {"o1": 2, "i1": 2}}
"""The sizes of parts of labels, where a rewrite has any."""


@cache
def _made(name: str) -> nn.Module:
    make: Callable[..., nn.Module] = tn.nn.decomposed
    if name == "MultiheadAttention":
        make = tn.nn.MultiheadAttention.from_attention
    return make(_torch_layer(name).eval(), NETWORKS[name], size=2, sizes=PARTS.get(name), starts=1)


def layer_arguments(name: str) -> tuple[type[nn.Module], dict[str, Any]]:
    """The class of a layer, and arguments that make one of the same network with random values."""
    shapes: dict[str, dict[str, Any]] = {
        "Linear": {"in_features": 8, "out_features": 12},
        "Embedding": {"num_embeddings": 12, "embedding_dim": 8, "padding_idx": 1},
    }
    usual = {"in_channels": 4, "out_channels": 6, "kernel_size": 3, "padding": 1}
    rewrite = {"rewrite": NETWORKS[name], "size": 2, "sizes": PARTS.get(name)}
    return getattr(tn.nn, name), {**shapes.get(name, usual), **rewrite}


def new_layer(name: str, **more: object) -> nn.Module:
    """A layer with random values."""
    kind, arguments = layer_arguments(name)
    return kind(**arguments, **more)


def trial(name: str) -> Trial:
    layer = copy.deepcopy(_made(name))
    positions = {"Conv2d": (8, 7), "ConvTranspose1d": (9,), "Conv3d": (4, 5, 6)}.get(name)
    generator = torch.Generator().manual_seed(1)
    if positions is not None:
        return Trial(name, layer, torch.randn(2, 4, *positions, generator=generator))
    if name == "Embedding":
        return Trial(name, layer, torch.randint(12, (2, 5), generator=generator))
    return Trial(name, layer, torch.randn(2, 5, 8, generator=generator))


@dataclass(frozen=True)
class Use:
    """Something that is done to a layer.

    text: what it is, for the table.
    expected: what comes of it: `EQUAL`, or `REFUSED` and what the error says.
    layers: those that it can be done to.
    slow: whether it takes seconds.
    """

    text: str
    group: str
    expected: str
    run: Callable[[Trial], None]
    layers: tuple[str, ...]
    slow: bool

    def __str__(self) -> str:
        return f"{self.group}: {self.text}"

    def outcome(self, name: str) -> str:
        """What comes of it. Raises AssertionError for a wrong number, and whatever torch raises."""
        try:
            self.run(trial(name))
        except TnalgebraError as error:
            return REFUSED + str(error).splitlines()[0]
        return EQUAL


USES: list[Use] = []


def use(
    group: str, text: str, *, refused: str | None = None, without: str = "", slow: bool = False
) -> Callable[[Callable[[Trial], None]], Callable[[Trial], None]]:
    """List a function as a use.

    Args:
        refused: what the error says; by default the layer equals torch's.
        without: names of the layers that it cannot be done to.
    """
    expected = EQUAL if refused is None else REFUSED + refused

    def listed(run: Callable[[Trial], None]) -> Callable[[Trial], None]:
        USES.append(
            Use(text, group, expected, run, tuple(name for name in NETWORKS if name not in without.split()), slow)
        )
        return run

    return listed
