"""The layers that `recipes.benchmark_layers` times, their decompositions, and who computes them.

A cell of the benchmark is one layer, one decomposition of its kernel with its ranks, one batch, one pass. The cores of
a cell are random, scaled so that the rebuilt kernel has the variance of torch's initialisation; every contender gets
the very same cores.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from math import prod
from typing import Any, Literal, NamedTuple, TypeAlias
from zlib import crc32

import torch
from opt_einsum import contract_expression
from torch import Tensor, nn
from torch.nn import functional

import tnalgebra as tn

Pass: TypeAlias = Literal["forward", "training"]
Cores: TypeAlias = Mapping[str, Tensor]
"""name -> core, axes in the order of its labels in the notation."""

UNDECOMPOSED = "undecomposed"


class Shape(NamedTuple):
    """A convolution layer; the kernel is square, padded to keep the size at stride 1, and has no bias."""

    inputs: int
    outputs: int
    kernel: int
    size: int
    """Height and width of the input."""
    stride: int = 1
    groups: int = 1

    @property
    def padding(self) -> int:
        return self.kernel // 2

    @property
    def weight(self) -> tuple[int, int, int, int]:
        """Of the dense kernel: out, in (of one group), kh, kw."""
        return self.outputs, self.inputs // self.groups, self.kernel, self.kernel

    @property
    def family(self) -> str:
        return "depthwise" if self.groups > 1 else f"{self.kernel}x{self.kernel}"


def _named(*shapes: Shape) -> dict[str, Shape]:
    names = {}
    for shape in shapes:
        channels = f"{shape.inputs}" if shape.groups > 1 else f"{shape.inputs}-{shape.outputs}"
        names[f"{shape.family}-{channels}-{shape.size}{'-s2' if shape.stride == 2 else ''}"] = shape
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
)
"""name -> layer: those of ResNet-18 and ResNet-50 at 224 pixels; the depthwise ones have their widths and sizes."""

SMOKE_SHAPES = _named(
    Shape(3, 8, 7, 16, stride=2),
    Shape(8, 12, 3, 9),
    Shape(12, 8, 3, 10, stride=2),
    Shape(8, 12, 1, 7, stride=2),
    Shape(8, 8, 3, 9, stride=2, groups=8),
)
"""Tiny layers of every family."""


class Stage(NamedTuple):
    """One convolution of a chain. Its window along an axis is the layer's or 1."""

    weight: Tensor
    """Shape (out, in of one group, 1 or kh, 1 or kw)."""
    groups: int = 1


Chain: TypeAlias = list[Stage]


class Decomposition(NamedTuple):
    """How a kernel is decomposed, and how its layer is written by hand."""

    text: str
    ranks: Callable[[Shape, float], dict[str, int]]
    """Layer, fraction of the channels -> size of each bond."""
    chains: Callable[[Cores], dict[str, Chain]]
    """name -> chain of one group; "" is the plain one, "merged" has one window of both axes."""
    tensorly: Callable[[Any, Cores], Any] | None = None
    """tltorch, cores -> its factorized tensor."""


def _rank(fraction: float, shape: Shape, *most: int) -> int:
    """The fraction of the largest rank that can be of use, which is at most the number of channels."""
    return max(1, round(fraction * min(max(shape.inputs, shape.outputs), *most)))


def _cp_ranks(shape: Shape, fraction: float) -> dict[str, int]:
    return {"r": _rank(fraction, shape, prod(shape.weight) // max(shape.weight))}


def _tucker2_ranks(shape: Shape, fraction: float) -> dict[str, int]:
    o, i, h, w = shape.weight
    return {"a": _rank(fraction, shape, o, i * h * w), "b": _rank(fraction, shape, i, o * h * w)}


def _train_ranks(shape: Shape, fraction: float) -> dict[str, int]:
    o, i, h, w = shape.weight
    most = {"p": (i, h * w * o), "q": (i * h, w * o), "s": (i * h * w, o)}
    return {bond: _rank(fraction, shape, *sizes) for bond, sizes in most.items()}


AROUND = 4
"""Size of the bond that closes the ring and the loop; the bonds beside it are a fourth of the train's."""


def _ring_ranks(shape: Shape, fraction: float) -> dict[str, int]:
    train = _train_ranks(shape, fraction)
    return {"z": AROUND, **{bond: max(1, rank // AROUND) for bond, rank in train.items()}}


def _svd_ranks(shape: Shape, fraction: float) -> dict[str, int]:
    o, i, h, w = shape.weight
    return {"r": _rank(fraction, shape, o * h, i * w)}


def _loop_ranks(shape: Shape, fraction: float) -> dict[str, int]:
    train = _train_ranks(shape, fraction)
    return {"p": AROUND, "q": max(1, train["p"] // AROUND), "r": max(1, train["s"] // AROUND)}


def _matrix(weight: Tensor) -> Stage:
    return Stage(weight[:, :, None, None])


def _cp_chains(cores: Cores) -> dict[str, Chain]:
    A, B, C, D = (cores[name] for name in "ABCD")
    rank = A.shape[1]
    rows = Stage(C.T[:, None, :, None], rank)
    columns = Stage(D.T[:, None, None, :], rank)
    both = Stage(torch.einsum("hr,wr->rhw", C, D)[:, None], rank)
    return {"": [_matrix(B.T), rows, columns, _matrix(A)], "merged": [_matrix(B.T), both, _matrix(A)]}


def _tucker2_chains(cores: Cores) -> dict[str, Chain]:
    return {"": [_matrix(cores["V"]), Stage(cores["G"]), _matrix(cores["U"])]}


def _train_chains(cores: Cores) -> dict[str, Chain]:
    A, B, C, D = (cores[name] for name in "ABCD")
    rows = Stage(B.permute(2, 0, 1)[..., None])
    columns = Stage(C.permute(2, 0, 1)[:, :, None])
    both = Stage(torch.einsum("phq,qws->sphw", B, C))
    return {"": [_matrix(A.T), rows, columns, _matrix(D.T)], "merged": [_matrix(A.T), both, _matrix(D.T)]}


def _ring_chains(cores: Cores) -> dict[str, Chain]:
    A, B, C, D = (cores[name] for name in "ABCD")
    around = A.shape[0]
    first = _matrix(A.transpose(1, 2).flatten(0, 1))
    rows = _shared(B.permute(2, 0, 1)[..., None], around)
    columns = _shared(C.permute(2, 0, 1)[:, :, None], around)
    both = _shared(torch.einsum("phq,qws->sphw", B, C), around)
    last = _matrix(D.permute(1, 2, 0).flatten(1))
    return {"": [first, rows, columns, last], "merged": [first, both, last]}


def _svd_chains(cores: Cores) -> dict[str, Chain]:
    return {"": [Stage(cores["R"][:, :, None]), Stage(cores["L"].transpose(1, 2)[..., None])]}


def _loop_chains(cores: Cores) -> dict[str, Chain]:
    A, B, C, D = (cores[name] for name in "ABCD")
    around, rank = A.shape[1:]
    first = _matrix(B.permute(1, 2, 0).flatten(0, 1))
    rows = _shared(C.permute(2, 0, 1)[..., None], around)
    columns = Stage(D.T[:, None, None, :].repeat(around, 1, 1, 1), around * rank)
    both = _shared(torch.einsum("qhr,wr->rqhw", C, D), around)
    last = _matrix(A.flatten(1))
    return {"": [first, rows, columns, last], "merged": [first, both, last]}


def _shared(weight: Tensor, groups: int) -> Stage:
    """The same weight in every group."""
    return Stage(weight.repeat(groups, 1, 1, 1), groups)


def _tensorly_cp(tltorch: Any, cores: Cores) -> Any:
    A, B, C, D = _parameters(cores, "ABCD")
    return tltorch.CPTensor(nn.Parameter(torch.ones_like(A[0])), [A, B, C, D])


def _tensorly_tucker2(tltorch: Any, cores: Cores) -> Any:
    G, U = _parameters(cores, "GU")
    V = nn.Parameter(cores["V"].T.contiguous())
    windows = [nn.Parameter(torch.eye(size, dtype=G.dtype, device=G.device)) for size in G.shape[2:]]
    return tltorch.TuckerTensor(G, [U, V, *windows])


def _tensorly_train(tltorch: Any, cores: Cores) -> Any:
    A, B, C, D = _parameters({**cores, "A": cores["A"][None], "D": cores["D"][..., None]}, "ABCD")
    return tltorch.TTTensor([A, B, C, D])


def _parameters(cores: Cores, names: str) -> list[nn.Parameter]:
    return [nn.Parameter(cores[name].clone()) for name in names]


DECOMPOSITIONS = {
    "cp": Decomposition("A[out r] B[in r] C[kh r] D[kw r]", _cp_ranks, _cp_chains, _tensorly_cp),
    "tucker2": Decomposition("U[out a] G[a b kh kw] V[b in]", _tucker2_ranks, _tucker2_chains, _tensorly_tucker2),
    "train": Decomposition("A[in p] B[p kh q] C[q kw s] D[s out]", _train_ranks, _train_chains, _tensorly_train),
    "ring": Decomposition("A[z in p] B[p kh q] C[q kw s] D[s out z]", _ring_ranks, _ring_chains),
    "svd": Decomposition("L[out kh r] R[r in kw]", _svd_ranks, _svd_chains),
    "loop": Decomposition("A[out p r] B[in p q] C[q kh r] D[kw r]", _loop_ranks, _loop_chains),
    UNDECOMPOSED: Decomposition("K[out in kh kw]", lambda shape, fraction: {}, lambda cores: {}),
}
"""The loop stands in no catalogue: A, B and C close it over p, q, r, and r is a hyperedge of A, C and D."""


def missing_cell(shape: Shape, decomposition: str) -> str | None:
    """Why there is no such cell; None if there is one."""
    if decomposition not in ("train", "ring", "loop"):
        return None
    if shape.weight[1] == 1:
        return "a group has one input channel: the core on it would have bonds alone"
    if shape.kernel == 1:
        return "there is no window: the cores on it would be matrices between other matrices"
    return None


class Cell(NamedTuple):
    """One table of the benchmark: all contenders on one layer."""

    shape: str
    decomposition: str
    ranks: tuple[tuple[str, int], ...]
    fraction: float
    """Of the channels, from which the ranks come."""
    batch: int
    goes: Pass

    def __str__(self) -> str:
        ranks = "".join(f" {bond}={rank}" for bond, rank in self.ranks)
        return f"{self.shape} {self.decomposition}{ranks}, batch {self.batch}, {self.goes}"


class Problem(NamedTuple):
    """What the contenders of a cell are made from."""

    cell: Cell
    shape: Shape
    cores: dict[str, Tensor]
    kernel: Tensor
    """The cores made dense: out, in (of one group), kh, kw."""
    images: Tensor
    """batch, channels, height, width; contiguous."""
    weights: Tensor
    """Of the output's elements in the sum whose gradient is taken."""


def make_problem(cell: Cell, shape: Shape, *, seed: int, dtype: torch.dtype, device: str) -> Problem:
    """Draw cores and input; the same ones for the same cell and seed."""
    generator = torch.Generator().manual_seed(crc32(f"{seed} {cell}".encode()))
    network = kernel_network(cell.decomposition)
    sizes = {**dict(zip(("out", "in", "kh", "kw"), shape.weight, strict=True)), **dict(cell.ranks)}
    nodes = [node for node in network.nodes if isinstance(node, tn.network.NamedTensor)]
    cores = {
        node.name: torch.randn([sizes[label] for label in node.labels], generator=generator, dtype=torch.float64)
        for node in nodes
    }
    wanted = (3 * prod(shape.weight[1:])) ** -0.5  # torch draws uniformly within 1 / sqrt(fan in)
    scale = (wanted / float(rebuild(network)(*cores.values()).square().mean().sqrt())) ** (1 / len(cores))
    cores = {name: (core * scale).to(device, dtype) for name, core in cores.items()}
    kernel = rebuild(network)(*cores.values()).contiguous()
    images = torch.randn(cell.batch, shape.inputs, shape.size, shape.size, generator=generator)
    out = (shape.size + 2 * shape.padding - shape.kernel) // shape.stride + 1
    weights = torch.randn(cell.batch, shape.outputs, out, out, generator=generator)
    return Problem(cell, shape, cores, kernel, images.to(device, dtype), weights.to(device, dtype))


def kernel_network(decomposition: str) -> tn.Network:
    return tn.parse(f"{DECOMPOSITIONS[decomposition].text} -> [out in kh kw]")


def layer_network(decomposition: str, shape: Shape) -> tn.Network:
    """The whole layer, its input X included."""
    layer = tn.convolution((shape.kernel,) * 2, stride=shape.stride, padding=shape.padding, groups=shape.groups)
    return layer if decomposition == UNDECOMPOSED else tn.compose(kernel_network(decomposition), layer, into="K")


def rebuild(network: tn.Network) -> Callable[..., Tensor]:
    """Contract the cores of a kernel, given in the order of their nodes; the order of steps is looked for once."""
    operands = [node.labels for node in network.nodes if isinstance(node, tn.network.NamedTensor)]
    equation = einsum_equation(operands, network.output)
    expressions: dict[tuple[torch.Size, ...], Callable[..., Tensor]] = {}

    def contract(*cores: Tensor) -> Tensor:
        shapes = tuple(core.shape for core in cores)
        if shapes not in expressions:
            expressions[shapes] = contract_expression(equation, *shapes, optimize="auto")
        return expressions[shapes](*cores)

    return contract


def einsum_equation(operands: Sequence[Sequence[str]], output: Sequence[str]) -> str:
    """Labels of words as one letter each."""
    letters: dict[str, str] = {}
    for label in (label for labels in operands for label in labels):
        letters.setdefault(label, chr(ord("a") + len(letters)))
    left = ",".join("".join(letters[label] for label in labels) for labels in operands)
    return f"{left}->{''.join(letters[label] for label in output)}"


def hand_chain(shape: Shape, chain: Chain) -> nn.Sequential:
    """A chain of torch layers.

    In a grouped layer every group has a copy of each stage but the last, whose weight has all outputs; the copies are
    no longer tied. An axis's stride goes to the stage with that axis's window; without a window, to the first.
    """
    layers = []
    for place, (weight, inner) in enumerate(chain):
        last = place == len(chain) - 1
        own = weight if last else weight.repeat(shape.groups, 1, 1, 1)
        groups = inner * shape.groups
        windows = [size == shape.kernel and (shape.kernel > 1 or place == 0) for size in weight.shape[2:]]
        layer = nn.Conv2d(
            own.shape[1] * groups,
            own.shape[0],
            (own.shape[2], own.shape[3]),
            stride=tuple(shape.stride if window else 1 for window in windows),  # type: ignore[arg-type]
            padding=tuple(shape.padding if window else 0 for window in windows),  # type: ignore[arg-type]
            groups=groups,
            bias=False,
            dtype=weight.dtype,
            device=weight.device,
        )
        layer.weight = nn.Parameter(own.detach().clone(memory_format=torch.contiguous_format))
        layers.append(layer)
    return nn.Sequential(*layers)


def hand_chains(problem: Problem) -> dict[str, Chain]:
    """The chains of a cell: "" as the cores stand; "merged": the window's cores contracted to one layer beforehand.

    Without a window (1x1) all stages but the last are contracted to one.
    """
    chains = DECOMPOSITIONS[problem.cell.decomposition].chains(problem.cores)
    if problem.shape.kernel == 1 and chains and len(chains[""]) > 2:
        *before, last = chains[""]
        matrix = before[0].weight[:, :, 0, 0]
        for stage in before[1:]:
            weight = stage.weight[:, :, 0, 0]
            matrix = weight * matrix if stage.groups > 1 else weight @ matrix
        chains["merged"] = [_matrix(matrix), last]
    return chains


class ChannelsLast(nn.Module):
    """A chain in the other memory format; it converts its input itself."""

    def __init__(self, chain: nn.Sequential) -> None:
        super().__init__()
        self.chain = chain.to(memory_format=torch.channels_last)

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.chain(images.contiguous(memory_format=torch.channels_last))
        return found


class Rebuilt(nn.Module):
    """The dense kernel rebuilt from the cores in each call, then torch's convolution."""

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.cores = nn.ParameterList(core.clone() for core in problem.cores.values())
        self.rebuild = rebuild(kernel_network(problem.cell.decomposition))
        self.shape = problem.shape

    def forward(self, images: Tensor) -> Tensor:
        kernel = self.rebuild(*self.cores)
        shape = self.shape
        return functional.conv2d(images, kernel, stride=shape.stride, padding=shape.padding, groups=shape.groups)


class Einconv(nn.Module):
    """einconv's einsum of the convolution with the cores in the place of the kernel, simplified by einconv.

    The simplification slices the input too, so it is part of each call, as it is in einconv's own layers; the index
    patterns are made, and the order of steps looked for, once.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__()
        self.einconv = import_module("einconv")
        shape = problem.shape
        self.groups = shape.groups
        network = kernel_network(problem.cell.decomposition)
        nodes = [node for node in network.nodes if isinstance(node, tn.network.NamedTensor)]
        labels = [_spread(node.labels, "out", ("g", "m")) for node in nodes]
        cores = [
            _split(core, node.labels.index("out"), shape.groups) if "out" in node.labels else core
            for node, core in zip(nodes, problem.cores.values(), strict=True)
        ]
        self.cores = nn.ParameterList(core.clone() for core in cores)
        axis = (shape.size, shape.kernel, shape.stride, shape.padding)
        pattern = self.einconv.index_pattern(*axis, device=problem.images.device, dtype=problem.images.dtype)
        self.pattern = pattern  # not a buffer: a copy would lose what einconv has noted on it
        operands = [("n", "g", "in", "x", "y"), ("kh", "u", "x"), ("kw", "v", "y"), *labels]
        self.equation = einsum_equation(operands, ("n", "g", "m", "u", "v"))
        self.output = (shape.outputs, *pattern.shape[1:2] * 2)
        self.expressions: dict[str, Callable[..., Tensor]] = {}

    def forward(self, images: Tensor) -> Tensor:
        given = [_split(images, 1, self.groups), self.pattern, self.pattern, *self.cores]
        equation, operands = self.einconv.simplify(self.equation, given)
        if equation not in self.expressions:
            shapes = [operand.shape for operand in operands]
            self.expressions[equation] = contract_expression(equation, *shapes, optimize="auto")
        return self.expressions[equation](*operands).reshape(images.shape[0], *self.output)


def _split(tensor: Tensor, axis: int, parts: int) -> Tensor:
    """One axis as two, the first of them with `parts` elements."""
    return tensor.reshape(*tensor.shape[:axis], parts, -1, *tensor.shape[axis + 1 :])


def _spread(labels: Sequence[str], label: str, parts: Sequence[str]) -> list[str]:
    return [part for own in labels for part in (parts if own == label else (own,))]


class Contender(NamedTuple):
    module: nn.Module
    multiply_adds: int | None
    """Of a forward pass; None where it is not known."""


TUNED = " tuned"
OURS: dict[str, tn.compiler.Candidates] = {
    "ours": "all",
    "ours frozen": "all",
    "ours factored": "factored",
    "ours factored frozen": "factored",
}
HAND = ("hand contiguous", "hand channels_last", "hand merged contiguous", "hand merged channels_last")
PEERS = {"tensorly": "tltorch", "tensorly reconstructed": "tltorch", "einconv": "einconv"}
"""Contender -> the package that it needs."""
CONTENDERS = ("dense", "dense again", "dense + rebuild", *HAND, *PEERS, *OURS)


def takes_part(name: str, cell: Cell, shape: Shape) -> bool:
    """Whether a contender exists in a cell, its package installed or not."""
    name = name.removesuffix(TUNED)
    decomposition = DECOMPOSITIONS[cell.decomposition]
    if cell.decomposition == UNDECOMPOSED and name not in ("dense", "dense again", "einconv", "ours", "ours frozen"):
        return False
    if name.startswith("hand merged"):
        windowed = cell.decomposition in ("cp", "train", "ring", "loop")
        return windowed or (shape.kernel == 1 and cell.decomposition == "tucker2")
    if PEERS.get(name) == "tltorch":
        return decomposition.tensorly is not None and shape.groups == 1
    return cell.goes == "forward" or not name.endswith("frozen")


def make_contender(name: str, problem: Problem) -> Contender:
    """Build a contender from the cores of a cell."""
    shape = problem.shape
    if name in ("dense", "dense again"):
        return _counted(hand_chain(shape, [Stage(problem.kernel)])[0], problem)
    if name == "dense + rebuild":
        return Contender(Rebuilt(problem), None)
    if name in HAND:
        chain = hand_chain(shape, hand_chains(problem)["merged" if "merged" in name else ""])
        module, multiply_adds = _counted(chain, problem)
        return Contender(ChannelsLast(chain) if name.endswith("channels_last") else module, multiply_adds)
    if name == "einconv":
        return Contender(Einconv(problem), None)
    if name in PEERS:
        return Contender(_tensorly_layer(name, problem), None)
    base = name.removesuffix(TUNED)
    compiled = tn.compile(
        layer_network(problem.cell.decomposition, shape),
        inputs={"X": tuple(problem.images.shape)},
        values=problem.cores,
        candidates=OURS[base],
        backward=problem.cell.goes == "training",
        tune=name.endswith(TUNED),
    )
    if base.endswith("frozen"):
        compiled.freeze()
    return Contender(compiled, compiled.plan.multiply_adds)


def _tensorly_layer(name: str, problem: Problem) -> nn.Module:
    tltorch = import_module("tltorch")
    wrap = DECOMPOSITIONS[problem.cell.decomposition].tensorly
    assert wrap is not None, name
    layer: nn.Module = tltorch.FactorizedConv.from_factorization(
        wrap(tltorch, problem.cores),
        implementation="reconstructed" if name.endswith("reconstructed") else "factorized",
        stride=problem.shape.stride,
        padding=problem.shape.padding,
    )
    return layer


def _counted(module: nn.Module, problem: Problem) -> Contender:
    """The multiply-adds of convolutions one after the other."""
    total = 0
    found = problem.images[:1].to("meta")
    for layer in module if isinstance(module, nn.Sequential) else [module]:
        assert isinstance(layer, nn.Conv2d)
        meta = layer.weight.detach().to("meta")
        found = functional.conv2d(
            found, meta, stride=layer.stride, padding=tuple(map(int, layer.padding)), groups=layer.groups
        )
        total += problem.images.shape[0] * found[0, 0].numel() * layer.weight.numel()
    return Contender(module, total)
