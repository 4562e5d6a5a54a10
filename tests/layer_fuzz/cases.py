"""Random cases: a layer of torch's, a rewrite of its kernel, and how, where and on what it is called."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

import tnalgebra as tn

LAYERS = (
    *("Conv1d", "Conv2d", "Conv2d", "Conv3d", "ConvTranspose1d", "ConvTranspose2d", "ConvTranspose3d"),
    *("Linear", "Embedding", "MultiheadAttention"),
)
DTYPES = {name: getattr(torch, name) for name in ("float64", "float32", "bfloat16", "float16", "complex64")}
MODES = ("train", "eval", "frozen", "inference", "no_grad", "thawed", "changed", "frozen, then changed", "constant")
"""`changed`: in training, then parameters are given new values; `constant`: parameters that need no gradient."""

INPUTS = (
    *("normal", "normal", "batch 0", "batch 1", "unbatched", "expanded", "sliced", "transposed", "requires grad"),
    *("larger", "channels last", "wrong channels", "wrong dtype"),
)
ROWS = 12
"""Rows of an embedding."""


@dataclass(frozen=True)
class Case:
    """One layer, and what is done with it; `number` is the seed of all that is random in it."""

    number: str
    layer: str
    arguments: dict[str, Any]
    rewrite: str
    size: Any
    choices: dict[str, Any] = field(default_factory=dict)
    scratch: bool = False
    dtype: str = "float32"
    device: str = "cpu"
    mode: str = "eval"
    input: str = "normal"
    transform: str = "none"

    @property
    def axes(self) -> int:
        return axes_of(self.layer)

    @property
    def kept(self) -> torch.dtype:
        """The dtype in which the layer is made; complex layers are made from real ones."""
        return torch.float32 if self.dtype == "complex64" else DTYPES[self.dtype]

    def __str__(self) -> str:
        arguments = " ".join(f"{name}={value}" for name, value in self.arguments.items())
        choices = " ".join(f"{name}={value}" for name, value in self.choices.items())
        made = "scratch" if self.scratch else "from"
        return (
            f"{self.number}: {self.layer}({arguments}) {made} {self.rewrite!r} {self.size} {choices} | {self.transform}"
            f" | {self.dtype} {self.device} | {self.mode} | {self.input}"
        )


def axes_of(layer: str) -> int:
    """Axes of positions: 0 of a layer without them."""
    return int(layer[-2]) if layer.endswith("d") else 0


def draw_case(number: str, transforms: Sequence[str]) -> Case:
    """The case of this number, with one of these transforms."""
    rng = random.Random(number)
    layer = rng.choice(LAYERS)
    arguments = _arguments(rng, layer)
    rewrite, size = _rewrite(rng, layer)
    choices: dict[str, Any] = {
        "candidates": rng.choice(("all", "all", "factored")),
        "batch_size": rng.choice((1, 2, 3)),
    }
    if axes_of(layer):
        choices["input_size"] = rng.choice((4, 5, 6))
    if rng.random() < 0.2:
        choices["backward"] = True
    if axes_of(layer) in (2, 3) and rng.random() < 0.25:
        choices["memory_format"] = torch.channels_last if axes_of(layer) == 2 else torch.channels_last_3d
    return Case(
        number,
        layer,
        arguments,
        rewrite,
        size,
        choices,
        scratch=layer != "MultiheadAttention" and rng.random() < 0.25,
        dtype=rng.choice(("float64", "float64", "float32", "float32", "bfloat16", "float16", "complex64")),
        device="meta" if rng.random() < 0.12 else "cpu",
        mode=rng.choice(MODES),
        input=rng.choice(INPUTS),
        transform=rng.choice(list(transforms)),
    )


def _arguments(rng: random.Random, layer: str) -> dict[str, Any]:
    bias = rng.random() < 0.7
    if layer == "Linear":
        return {"in_features": rng.randint(1, 8), "out_features": rng.randint(1, 8), "bias": bias}
    if layer == "Embedding":
        padding = rng.choice((None, None, 0, 3, -2))
        return {"num_embeddings": ROWS, "embedding_dim": rng.randint(1, 8), "padding_idx": padding}
    if layer == "MultiheadAttention":
        heads = rng.choice((1, 2))
        return {
            "embed_dim": heads * rng.randint(1, 4),
            "num_heads": heads,
            "bias": bias,
            "add_bias_kv": rng.random() < 0.2,
            "add_zero_attn": rng.random() < 0.2,
            "batch_first": rng.random() < 0.5,
        }
    axes, transposed = axes_of(layer), "Transpose" in layer
    groups = rng.choice((1, 1, 1, 2, 3))

    def each(values: Sequence[int]) -> Any:
        return rng.choice(values) if rng.random() < 0.4 else tuple(rng.choice(values) for _ in range(axes))

    arguments: dict[str, Any] = {
        "in_channels": groups * rng.randint(1, 3 if groups > 1 else 6),
        "out_channels": groups * rng.randint(1, 3 if groups > 1 else 6),
        "kernel_size": each((1, 2, 3, 3, 4) if axes < 3 else (1, 2, 3)),
        "stride": each((1, 1, 2, 3)),
        "padding": each((0, 0, 1, 2)),
        "dilation": each((1, 1, 2)),
        "groups": groups,
        "bias": bias,
    }
    if transposed:
        arguments["output_padding"] = each((0, 0, 0, 1)) if rng.random() < 0.5 else 0
        arguments["padding"] = each((0, 0, 1))
    else:
        arguments["padding_mode"] = rng.choice(("zeros", "zeros", "zeros", "reflect", "replicate", "circular"))
        if rng.random() < 0.2:
            arguments |= {"padding": "same", "stride": 1}
    return arguments


@cache
def _names(labels: str) -> tuple[str, ...]:
    return tuple(one.name for one in tn.rules(labels).decompositions)


def _rewrite(rng: random.Random, layer: str) -> tuple[str, Any]:
    """A decomposition's name, a cut, or notation; and its size."""
    labels = labels_of(layer)
    size: Any = rng.choice((1, 2, 2, 3, "parameters 0.6"))
    kind = rng.random()
    if kind < 0.4:
        return rng.choice(_names(" ".join(labels))), size
    if kind < 0.6:
        left = set(rng.sample(labels, rng.randint(1, len(labels) - 1)))
        sides = ([one for one in labels if one in left], [one for one in labels if one not in left])
        return " | ".join(map(" ".join, sides)), rng.choice((1, 2, "keep 0.5", "error 0.3", "parameters 0.6"))
    return _notation(rng, labels), rng.choice((1, 2, 2, 3))


def _notation(rng: random.Random, labels: Sequence[str]) -> str:
    """A random right side: every label on one core or, as a hyperedge, on two; bonds on two cores or on three."""
    count = rng.randint(1 if rng.random() < 0.1 else 2, 4)
    cores: list[list[str]] = [[] for _ in range(count)]
    for label in labels:
        for core in rng.sample(cores, 2 if count > 1 and rng.random() < 0.15 else 1):
            core.append(label)
    bonds = rng.randint(1, 3) if count > 1 else 0
    for bond in "pqr"[:bonds]:
        for core in rng.sample(cores, 3 if count > 2 and rng.random() < 0.2 else 2):
            core.append(bond)
    for core in cores:
        rng.shuffle(core)
    nodes = [f"{name}[{' '.join(core)}]" for name, core in zip("ABCD", cores, strict=False) if core]
    return f"K[{' '.join(labels)}] => {' '.join(nodes)} -> [{' '.join(labels)}]"


def labels_of(layer: str) -> tuple[str, ...]:
    """Labels of the axes of a layer's weight."""
    if layer in ("Linear", "MultiheadAttention"):
        return ("out", "in")
    if layer == "Embedding":
        return ("rows", "dim")
    window = {1: ("k",), 2: ("kh", "kw"), 3: ("kd", "kh", "kw")}[axes_of(layer)]
    return ("in", "out", *window) if "Transpose" in layer else ("out", "in", *window)


class SelfAttention(nn.Module):
    """An attention of one input to itself, for transforms of functions of one tensor."""

    def __init__(self, attention: nn.Module) -> None:
        super().__init__()
        self.attention = attention

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.attention(x, x, x, need_weights=False)[0]
        return output


def make_dense(case: Case) -> nn.Module:
    """torch's layer of a case, with random values."""
    torch.manual_seed(random.Random(case.number).randrange(2**31))
    return getattr(nn, case.layer)(**case.arguments, dtype=case.kept)  # type: ignore[no-any-return]


def make_layer(case: Case) -> nn.Module:
    """The decomposed layer of a case."""
    dense = make_dense(case)
    fit: dict[str, Any] = {"starts": 1, "sweeps": 2}
    if isinstance(dense, nn.MultiheadAttention):
        attention = tn.nn.MultiheadAttention.from_attention(dense, case.rewrite, case.size, **fit, **case.choices)
        return SelfAttention(attention)
    if case.scratch:
        kind = getattr(tn.nn, case.layer)
        layer: nn.Module = kind(**case.arguments, dtype=case.kept, rewrite=case.rewrite, size=case.size, **case.choices)
        return layer
    return tn.nn.decomposed(dense, case.rewrite, case.size, **fit, **case.choices)


def make_input(case: Case) -> Tensor:
    """The input of a case, on the cpu."""
    generator = torch.Generator().manual_seed(random.Random(f"{case.number} x").randrange(2**31))
    batch = {"batch 0": 0, "batch 1": 1}.get(case.input, 2)
    dtype = DTYPES[case.dtype]
    if case.input == "wrong dtype":
        dtype = torch.float64 if dtype != torch.float64 else torch.float32
    if case.layer == "Embedding":
        shape = () if case.input == "unbatched" else (batch, 5) if case.input == "larger" else (batch, 2)
        rows = torch.randint(ROWS, shape, generator=generator)
        rows = rows.float() if case.input == "wrong dtype" else rows
        return rows[:1].expand(3, *shape[1:]) if case.input == "expanded" and batch else rows
    channels = next(case.arguments[key] for key in ("in_channels", "in_features", "embed_dim") if key in case.arguments)
    channels += case.input == "wrong channels"
    if case.axes:
        size = 9 if case.input == "larger" else 6
        shape = (channels, *(size + axis for axis in range(case.axes)))
    else:
        shape = (7 if case.input == "larger" else 3, channels)
    if case.input != "unbatched":
        shape = (batch, *shape)
    real = torch.randn(shape, dtype=torch.float64, generator=generator)
    x = real.to(dtype)
    if dtype.is_complex:
        x = torch.complex(real, torch.randn(shape, dtype=torch.float64, generator=generator)).to(dtype)
    match case.input:
        case "expanded":
            return x[:1].expand(3, *x.shape[1:])
        case "sliced":
            return torch.cat([x, x], -1)[..., ::2]
        case "transposed":
            return x.transpose(-1, -2).contiguous().transpose(-1, -2)
        case "channels last" if case.axes in (2, 3):
            layout = torch.channels_last if case.axes == 2 else torch.channels_last_3d
            return x.contiguous(memory_format=layout)
    return x
