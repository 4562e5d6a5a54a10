"""The layers that are timed, the decompositions of their kernels with their ranks, and chains written by hand."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

import tnalgebra as tn
from recipes.benchmarks.chains import Stage, chain_of
from recipes.benchmarks.runner import Pass

Cores: TypeAlias = Mapping[str, Tensor]
"""Name -> core, its axes in the order of its labels in the notation."""

Chain: TypeAlias = list[Stage]

Layout: TypeAlias = Literal["contiguous", "channels_last"]

UNDECOMPOSED = "undecomposed"


class Shape(NamedTuple):
    """A convolution layer without bias, with a square kernel, padded so that stride 1 keeps the size.

    Where the stride is the whole window, as in the first layer of a ConvNeXt, it is not padded.
    """

    inputs: int
    outputs: int
    kernel: int
    size: int
    """Height and width of the input."""
    stride: int = 1
    groups: int = 1

    @property
    def weight(self) -> tuple[int, int, int, int]:
        """The shape of the dense kernel: out, in (of one group), kh, kw."""
        return self.outputs, self.inputs // self.groups, self.kernel, self.kernel

    @property
    def family(self) -> str:
        return "depthwise" if self.groups > 1 else f"{self.kernel}x{self.kernel}"

    @property
    def numbers(self) -> dict[str, Any]:
        """Arguments of a convolution beside its weight."""
        return {"stride": self.stride, "padding": self.padding, "groups": self.groups}

    @property
    def padding(self) -> int:
        return 0 if self.stride == self.kernel else self.kernel // 2

    @property
    def layer(self) -> nn.Conv2d:
        """torch's layer, on the meta device."""
        return nn.Conv2d(self.inputs, self.outputs, self.kernel, bias=False, device="meta", **self.numbers)


def _named(*shapes: Shape) -> dict[str, Shape]:
    names = {}
    for shape in shapes:
        channels = f"{shape.inputs}" if shape.groups > 1 else f"{shape.inputs}-{shape.outputs}"
        names[f"{shape.family}-{channels}-{shape.size}{f'-s{shape.stride}' if shape.stride > 1 else ''}"] = shape
    return names


SHAPES = _named(
    Shape(3, 64, 7, 224, stride=2),
    Shape(64, 64, 3, 56),
    Shape(128, 128, 3, 28),
    Shape(256, 256, 3, 14),
    Shape(512, 512, 3, 7),
    Shape(64, 128, 3, 56, stride=2),
    Shape(128, 128, 3, 56, stride=2),
    Shape(256, 512, 3, 14, stride=2),
    Shape(64, 256, 1, 56),
    Shape(256, 64, 1, 56),
    Shape(1024, 256, 1, 14),
    Shape(512, 2048, 1, 7),
    Shape(256, 512, 1, 56, stride=2),
    Shape(64, 64, 3, 56, groups=64),
    Shape(128, 128, 3, 56, stride=2, groups=128),
    Shape(256, 256, 3, 14, groups=256),
    Shape(512, 512, 3, 14, stride=2, groups=512),
    Shape(3, 96, 4, 224, stride=4),
    Shape(96, 96, 7, 56, groups=96),
    Shape(384, 384, 7, 14, groups=384),
    Shape(96, 384, 1, 56),
)
"""Name -> layer: those of ResNet-18 and -50 at 224 pixels, depthwise ones of their widths, those of a ConvNeXt."""

SMOKE_SHAPES = _named(
    Shape(3, 8, 7, 16, stride=2),
    Shape(8, 12, 3, 9),
    Shape(12, 8, 3, 10, stride=2),
    Shape(8, 12, 1, 7, stride=2),
    Shape(8, 8, 3, 9, stride=2, groups=8),
)
"""Small layers of every family, for a smoke run."""

DECOMPOSITIONS = {
    "cp": "A[out r] B[in r] C[kh r] D[kw r]",
    "tucker2": "U[out a] G[a b kh kw] V[b in]",
    "train": "A[in p] B[p kh q] C[q kw s] D[s out]",
    "ring": "A[z in p] B[p kh q] C[q kw s] D[s out z]",
    "svd": "L[out kh r] R[r in kw]",
    "loop": "A[out p r] B[in p q] C[q kh r] D[kw r]",
    UNDECOMPOSED: "K[out in kh kw]",
}
"""The loop is not in the catalogue: A, B and C close it by p, q and r, and r is a hyperedge of A, C and D."""

AROUND = 4
"""The size of the bond that closes the ring and the loop; the bonds beside it are a fourth of the train's."""


class Cell(NamedTuple):
    """One layer with one decomposition of its kernel, for all contenders."""

    shape: str
    decomposition: str
    ranks: tuple[tuple[str, int], ...]
    fraction: float
    """The part of the channels that determines the ranks."""
    batch: int
    goes: Pass
    memory_format: Layout = "contiguous"
    """Of the input, and of the weights of all layers but ours."""

    def __str__(self) -> str:
        ranks = "".join(f" {bond}={rank}" for bond, rank in self.ranks)
        return f"{self.shape} {self.decomposition}{ranks}, batch {self.batch}, {self.goes}, {self.memory_format}"


def exists(shape: Shape, decomposition: str) -> bool:
    """Whether a decomposition makes sense: without a window, or with one input channel a group, a train does not."""
    return decomposition not in ("train", "ring", "loop") or (shape.kernel > 1 and shape.weight[1] > 1)


def ranks_of(decomposition: str, shape: Shape, fraction: float) -> dict[str, int]:
    """Bond -> a fraction of its largest useful rank, which is the number of channels or less."""
    o, i, h, w = shape.weight

    def rank(most: int) -> int:
        return max(1, round(fraction * min(max(shape.inputs, shape.outputs), most)))

    train = {"p": rank(min(i, h * w * o)), "q": rank(min(i * h, w * o)), "s": rank(min(i * h * w, o))}
    beside = {bond: max(1, size // AROUND) for bond, size in train.items()}
    return {
        "cp": {"r": rank(o * i * h * w // max(shape.weight))},
        "tucker2": {"a": rank(min(o, i * h * w)), "b": rank(min(i, o * h * w))},
        "train": train,
        "ring": {"z": AROUND, **beside},
        "svd": {"r": rank(min(o * h, i * w))},
        "loop": {"p": AROUND, "q": beside["p"], "r": beside["s"]},
        UNDECOMPOSED: {},
    }[decomposition]


def kernel_network(decomposition: str) -> tn.Network:
    return tn.parse(f"{DECOMPOSITIONS[decomposition]} -> [out in kh kw]")


# Chains of torch layers -------------------------------------------------------------------------------------------


def hand_chains(decomposition: str, cores: Cores, shape: Shape) -> dict[str, Chain]:
    """The chains by hand: "" with a layer for each core; "merged" with the window's cores contracted beforehand.

    Without a window (1x1) all stages but the last are contracted to one. In a grouped layer every group has a copy of
    each stage except the last, whose weight has all outputs.
    """
    network = kernel_network(decomposition)
    links = chain_of(network)
    if links is not None:
        labels = {node.name: node.labels for node in network.nodes if isinstance(node, tn.networks.NamedTensor)}
        chains = {"": [link.stage(cores[link.name], labels[link.name]) for link in links]}
    else:
        chains = {}
    if decomposition in MERGED:
        chains |= MERGED[decomposition](*(cores[name] for name in "ABCD"))
    if shape.kernel == 1 and chains and len(chains[""]) > 2:
        *before, last = chains[""]
        matrix = before[0].weight[:, :, 0, 0]
        for stage in before[1:]:
            weight = stage.weight[:, :, 0, 0]
            matrix = weight * matrix if stage.groups > 1 else weight @ matrix
        chains["merged"] = [_matrix(matrix), last]
    return {name: _grouped(chain, shape.groups) for name, chain in chains.items()}


def _grouped(chain: Chain, groups: int) -> Chain:
    *before, last = chain
    copies = [Stage(stage.weight.repeat(groups, 1, 1, 1), stage.groups * groups) for stage in before]
    return [*copies, Stage(last.weight, last.groups * groups)]


def _matrix(weight: Tensor) -> Stage:
    return Stage(weight[:, :, None, None])


def _shared(weight: Tensor, groups: int) -> Stage:
    """The same weight in every group."""
    return Stage(weight.repeat(groups, 1, 1, 1), groups)


def _cp(A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> dict[str, Chain]:
    first, last, rank = _matrix(B.T), _matrix(A), A.shape[1]
    rows, columns = Stage(C.T[:, None, :, None], rank), Stage(D.T[:, None, None, :], rank)
    both = Stage(torch.einsum("hr,wr->rhw", C, D)[:, None], rank)
    return {"": [first, rows, columns, last], "merged": [first, both, last]}


def _train(A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> dict[str, Chain]:
    return {"merged": [_matrix(A.T), Stage(torch.einsum("phq,qws->sphw", B, C)), _matrix(D.T)]}


def _ring(A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> dict[str, Chain]:
    first, last = _matrix(A.transpose(1, 2).flatten(0, 1)), _matrix(D.permute(1, 2, 0).flatten(1))
    windows = (B.permute(2, 0, 1)[..., None], C.permute(2, 0, 1)[:, :, None])
    rows, columns = (_shared(window, len(A)) for window in windows)
    both = _shared(torch.einsum("phq,qws->sphw", B, C), len(A))
    return {"": [first, rows, columns, last], "merged": [first, both, last]}


def _loop(A: Tensor, B: Tensor, C: Tensor, D: Tensor) -> dict[str, Chain]:
    around, rank = A.shape[1:]
    first, last = _matrix(B.permute(1, 2, 0).flatten(0, 1)), _matrix(A.flatten(1))
    rows = _shared(C.permute(2, 0, 1)[..., None], around)
    columns = Stage(D.T[:, None, None, :].repeat(around, 1, 1, 1), around * rank)
    both = _shared(torch.einsum("qhr,wr->rqhw", C, D), around)
    return {"": [first, rows, columns, last], "merged": [first, both, last]}


MERGED: dict[str, Callable[..., dict[str, Chain]]] = {"cp": _cp, "train": _train, "ring": _ring, "loop": _loop}
"""The chains of A, B, C, D of decompositions whose window has two cores, where they are not just core after core."""


def tensorly_cores(decomposition: str, cores: Cores) -> tuple[str, list[Any]]:
    """The name of tensorly-torch's class of factorised tensors, and its arguments."""

    def parameter(core: Tensor) -> nn.Parameter:
        return nn.Parameter(core.clone())

    if decomposition == "cp":
        factors = [parameter(cores[name]) for name in "ABCD"]
        return "CPTensor", [nn.Parameter(torch.ones_like(cores["A"][0])), factors]
    if decomposition == "tucker2":
        G, U, V = cores["G"], cores["U"], cores["V"].T.contiguous()
        windows = [torch.eye(size, dtype=G.dtype, device=G.device) for size in G.shape[2:]]
        return "TuckerTensor", [parameter(G), [parameter(core) for core in (U, V, *windows)]]
    around = {**cores, "A": cores["A"][None], "D": cores["D"][..., None]}
    return "TTTensor", [[parameter(around[name]) for name in "ABCD"]]
