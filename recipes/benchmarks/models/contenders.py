"""The contenders of `recipes.benchmark_model`: a network dense, decomposed by the library, and written by hand."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

import tnalgebra as tn
from models import build_model

Pass: TypeAlias = Literal["forward", "training"]
Chosen: TypeAlias = dict[str, tuple[str, dict[str, int]]]
"""Layer -> its rewrite, and the rank of each bond."""

LABELS = ("out", "in", "kh", "kw")
CLASSES = 1000


@dataclass(frozen=True)
class Cell:
    """One table of the benchmark: all contenders on one network.

    pointwise: of kernels with a window of one element; None: they stay dense.
    multiply_adds: the part of the kernel layers' that is kept at most; None where `fraction` says the ranks.
    fraction: of the largest rank of each bond; None where it follows from `multiply_adds`.
    """

    model: str
    batch: int
    image_size: int
    goes: Pass
    rewrite: str
    pointwise: str | None
    multiply_adds: float | None
    fraction: float | None

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return (self.batch, 3, self.image_size, self.image_size)

    def __str__(self) -> str:
        size = f"{self.image_size}x{self.image_size}"
        wish = f"{self.multiply_adds:g} of the multiply-adds" if self.multiply_adds else f"ranks x {self.fraction:g}"
        return f"{self.model} {size}, batch {self.batch}, {self.goes}, {self.rewrite}, {wish}"


# Chains: decompositions that are one convolution after the other ----------------------------------------------


class Stage(NamedTuple):
    """A core as a convolution: `name`, the labels of its incoming and outgoing channels, those of its windows."""

    name: str
    into: str
    out: str
    windows: tuple[str, ...]


def chain_of(network: tn.Network, labels: Sequence[str] = LABELS) -> list[Stage] | None:
    """The cores as stages from the input's channels to the output's; None where they are no chain.

    Args:
        labels: what the network calls out, in, kh, kw.
    """
    out, into, *window = labels
    if not all(isinstance(node, tn.network.NamedTensor) for node in network.nodes):
        return None
    left = {node.name: node.labels for node in network.nodes if isinstance(node, tn.network.NamedTensor)}
    stages: list[Stage] = []
    channel = into
    while left:
        holding = [name for name, own in left.items() if channel in own]
        if len(holding) != 1:
            return None
        own = left.pop(holding[0])
        others = [label for label in own if label not in (channel, *window)]
        if len(others) != 1 or len(set(own)) != len(own):
            return None
        windows = tuple(dict(zip(window, LABELS[2:], strict=True))[label] for label in own if label in window)
        stages.append(Stage(holding[0], channel, others[0], windows))
        channel = others[0]
    seen = sorted(one for stage in stages for one in stage.windows)
    return stages if channel == out and seen == ["kh", "kw"] and len(stages) > 1 else None


def rewrite_chain(rewrite: str) -> list[Stage]:
    """The chain of a rewrite of kernels out in kh kw.

    Raises:
        StudyError: it is none, so that there would be nothing to compare with.
        RuleError: there is no such rewrite.
    """
    before, _, after = tn.decompositions.resolve(rewrite, LABELS).equation.partition("=>")
    left, right = tn.parse(before), tn.parse(after)
    (kernel,) = left.nodes
    found = chain_of(right, kernel.labels) if len(kernel.labels) == len(LABELS) else None
    if found is None:
        raise tn.errors.StudyError(
            tn.errors.explain(
                f"{rewrite!r} is no chain of convolutions, which could be written by hand",
                cores=right,
                fix="tucker2, a cut such as 'out kh | in kw', or a rule whose cores lead from in to out",
            )
        )
    return found


def chosen_ranks(model: nn.Module, cell: Cell) -> Chosen:
    """Rewrite and ranks of each layer that gets smaller: every convolution but the first, without groups.

    Each rank is one fraction of the largest of use at its bond, the same for all layers: the one that is given, or
    the largest with which the chains keep within the part of the multiply-adds.

    Raises:
        StudyError: no ranks are small enough, or nothing gets smaller.
    """
    sizes = output_sizes(model, cell.shape)
    dense = {
        name: _dense_work(module, sizes[name]) for name, module in tn.nn.kernel_layers(model).items() if name in sizes
    }
    chains = {rewrite: rewrite_chain(rewrite) for rewrite in (cell.rewrite, cell.pointwise) if rewrite is not None}
    first = next((name for name, module in tn.nn.kernel_layers(model).items() if isinstance(module, nn.Conv2d)), None)
    layers = {
        name: module
        for name, module in tn.nn.kernel_layers(model).items()
        if isinstance(module, nn.Conv2d) and name in sizes and name != first and module.groups == 1
    }

    def at(fraction: float) -> tuple[int, Chosen]:
        chosen: Chosen = {}
        total = sum(dense.values())
        for name, module in layers.items():
            rewrite = cell.pointwise if module.weight[0, 0].numel() == 1 else cell.rewrite
            if rewrite is not None:
                ranks = _ranks(module, chains[rewrite], fraction)
                weights, work = _chain_work(module, chains[rewrite], ranks, sizes[name])
                if weights < module.weight.numel() and work < dense[name]:
                    chosen[name] = rewrite, ranks
                    total += work - dense[name]
        return total, chosen

    if cell.fraction is not None:
        chosen = at(cell.fraction)[1]
    else:
        assert cell.multiply_adds is not None
        allowed = cell.multiply_adds * sum(dense.values())
        if at(0.0)[0] > allowed:
            raise tn.errors.StudyError(
                tn.errors.explain(
                    f"{cell.multiply_adds:g} of the multiply-adds cannot be met",
                    least=f"{at(0.0)[0] / sum(dense.values()):.3f}, with all ranks 1",
                    cell=cell,
                )
            )
        low, high = 0.0, 1.0
        for _ in range(30):
            middle = (low + high) / 2
            low, high = (middle, high) if at(middle)[0] <= allowed else (low, middle)
        chosen = at(low)[1]
    if not chosen:
        raise tn.errors.StudyError(
            tn.errors.explain("no layer gets smaller", cell=cell, fix="fewer multiply-adds, or a smaller fraction")
        )
    return chosen


def output_sizes(model: nn.Module, shape: Sequence[int]) -> dict[str, tuple[tuple[int, ...], int]]:
    """Layer -> shape of its input, and number of its output positions, images of a batch among them."""
    found: dict[str, tuple[tuple[int, ...], int]] = {}
    twin = copy.deepcopy(model).to("meta").eval()
    for name, module in tn.nn.kernel_layers(twin).items():

        def note(module: nn.Module, given: tuple[Tensor, ...], output: Tensor, name: str = name) -> None:
            found[name] = tuple(given[0].shape), output.numel() // output.shape[1]

        module.register_forward_hook(note)
    with torch.no_grad():
        twin(torch.empty(tuple(shape), device="meta"))
    return found


def _dense_work(module: nn.Module, sizes: tuple[tuple[int, ...], int]) -> int:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return sizes[1] * weight.numel()


def _axes(module: nn.Conv2d) -> dict[str, int]:
    return dict(zip(LABELS, module.weight.shape, strict=True))


def _ranks(module: nn.Conv2d, chain: Sequence[Stage], fraction: float) -> dict[str, int]:
    """A fraction of the largest rank of each bond: what stands on the smaller side of it."""
    axes = _axes(module)
    ranks = {}
    for place, stage in enumerate(chain[:-1]):
        before = axes["in"] * prod(axes[label] for one in chain[: place + 1] for label in one.windows)
        after = axes["out"] * prod(axes[label] for one in chain[place + 1 :] for label in one.windows)
        ranks[stage.out] = max(1, int(fraction * min(before, after)))
    return ranks


def _chain_work(
    module: nn.Conv2d, chain: Sequence[Stage], ranks: Mapping[str, int], sizes: tuple[tuple[int, ...], int]
) -> tuple[int, int]:
    """Parameters and multiply-adds of the chain of torch layers."""
    axes = _axes(module)
    (batch, channels, *positions), _ = sizes
    weights = work = 0
    for stage, arguments in zip(chain, stage_arguments(module, chain), strict=True):
        out = ranks.get(stage.out, axes["out"])
        own = channels * out * prod(axes[label] for label in stage.windows)
        numbers = zip(
            positions, *(arguments[key] for key in ("kernel_size", "stride", "padding", "dilation")), strict=True
        )
        positions = [(u + 2 * p - d * (k - 1) - 1) // s + 1 for u, k, s, p, d in numbers]
        weights += own
        work += own * batch * prod(positions)
        channels = out
    return weights, work


def stage_arguments(module: nn.Conv2d, chain: Sequence[Stage]) -> list[dict[str, tuple[int, int]]]:
    """kernel_size, stride, padding, dilation of each stage.

    An axis's numbers stand where its window is; without a window its stride stands first, where it saves most.
    """
    if isinstance(module.padding, str):
        raise tn.errors.StudyError(
            tn.errors.explain(f"padding={module.padding!r}", fix="integers: these chains are written by hand")
        )
    found = []
    for place, stage in enumerate(chain):
        arguments: dict[str, list[int]] = {"kernel_size": [], "stride": [], "padding": [], "dilation": []}
        for axis, label in enumerate(LABELS[2:]):
            size = module.kernel_size[axis]
            here = label in stage.windows if size > 1 else place == 0
            arguments["kernel_size"].append(size if here else 1)
            arguments["stride"].append(module.stride[axis] if here else 1)
            arguments["padding"].append(int(module.padding[axis]) if here else 0)
            arguments["dilation"].append(module.dilation[axis] if here else 1)
        found.append({key: (values[0], values[1]) for key, values in arguments.items()})
    return found


def hand_layer(layer: tn.nn.KernelLayer, dense: nn.Conv2d) -> nn.Sequential:
    """The chain of torch layers with the cores of a decomposed one; `dense` is the layer that both stand for.

    Raises:
        StudyError: the cores are no chain.
    """
    chain = chain_of(layer.kernel, layer.kernel.output)
    if chain is None:
        raise tn.errors.StudyError(tn.errors.explain("the cores are no chain of convolutions", kernel=layer.kernel))
    labels = {node.name: node.labels for node in layer.kernel.nodes if isinstance(node, tn.network.NamedTensor)}
    window = dict(zip(LABELS[2:], layer.kernel.output[2:], strict=True))
    made: list[nn.Module] = []
    for place, (stage, arguments) in enumerate(zip(chain, stage_arguments(dense, chain), strict=True)):
        core = getattr(layer, stage.name).detach()
        wanted = (stage.out, stage.into, *(window[label] for label in sorted(stage.windows)))
        order = [labels[stage.name].index(label) for label in wanted]
        weight = core.permute(order)
        for axis, label in enumerate(LABELS[2:]):
            if label not in stage.windows:
                weight = weight.unsqueeze(2 + axis)
        last = place == len(chain) - 1
        conv = nn.Conv2d(
            weight.shape[1],
            weight.shape[0],
            arguments["kernel_size"],
            stride=arguments["stride"],
            padding=arguments["padding"],
            dilation=arguments["dilation"],
            bias=last and layer.bias is not None,
            device=weight.device,
            dtype=weight.dtype,
        )
        conv.weight = nn.Parameter(weight.clone(memory_format=torch.contiguous_format))
        if last and layer.bias is not None:
            conv.bias = nn.Parameter(layer.bias.detach().clone())
        made.append(conv)
    return nn.Sequential(*made)


def hand_model(converted: nn.Module, dense: nn.Module) -> nn.Module:
    """A copy of a converted model with torch layers in the place of ours."""
    twin = copy.deepcopy(converted)
    for name, layer in list(twin.named_modules()):
        if isinstance(layer, tn.nn.KernelLayer):
            old = dense.get_submodule(name)
            assert isinstance(old, nn.Conv2d)
            holder, _, key = name.rpartition(".")
            setattr(twin.get_submodule(holder), key, hand_layer(layer, old).train(layer.training))
    return twin


# Contenders ---------------------------------------------------------------------------------------------------

BASES = ("dense", "hand", "ours factored", "ours")
FROZEN, FOLDED, LAST, TUNED = " frozen", " folded", " channels_last", " tuned"
CONTENDERS = (
    "dense",
    "dense again",
    "dense channels_last",
    "hand",
    "hand channels_last",
    "ours factored",
    "ours factored channels_last",
    "ours",
    "ours channels_last",
    "ours frozen",
    "ours frozen channels_last",
    "dense folded",
    "dense folded channels_last",
    "hand folded",
    "hand folded channels_last",
    "ours folded",
    "ours folded channels_last",
)
"""Folded ours are frozen, too."""


def takes_part(name: str, goes: Pass) -> bool:
    """Frozen weights and folded normalisations are for evaluation."""
    return goes == "forward" or (FROZEN not in name and FOLDED not in name)


class Problem(NamedTuple):
    """What the contenders of a cell are made from."""

    cell: Cell
    dense: nn.Module
    chosen: Chosen
    images: Tensor
    labels: Tensor
    seed: int


class Contender(NamedTuple):
    module: nn.Module
    multiply_adds: int
    """Of a forward pass on the batch, kernel layers alone."""
    parameters: int


class ChannelsLast(nn.Module):
    """A network in the other memory format; it converts its input itself."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.model(images.contiguous(memory_format=torch.channels_last))
        return found


def make_problem(cell: Cell, *, seed: int, device: str) -> Problem:
    """A network with random weights and statistics, images and labels: the same for the same cell and seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        dense = build_model(cell.model, classes=CLASSES if cell.model == "resnet50" else 10, channels=3)
        for module in dense.modules():
            if isinstance(module, nn.BatchNorm2d) and module.running_mean is not None:
                assert module.running_var is not None
                module.running_mean.normal_(std=0.1)
                module.running_var.uniform_(0.8, 1.25)
        images = torch.randn(cell.shape)
        try:
            chosen = chosen_ranks(dense, cell)
        except (RuntimeError, TypeError, ValueError) as error:
            if isinstance(error, tn.errors.TnalgebraError):
                raise
            raise tn.errors.StudyError(
                tn.errors.explain(f"{cell.model} does not take images of this size", because=error, shape=cell.shape)
            ) from error
        with torch.no_grad():
            classes = dense.eval()(images[:1]).shape[1]
        labels = torch.randint(classes, (cell.batch,))
    return Problem(cell, dense.to(device), chosen, images.to(device), labels.to(device), seed)


def make_contender(name: str, problem: Problem) -> Contender:
    """Build a contender.

    Raises:
        StudyError: there is no such contender.
    """
    base = name.removesuffix(" again")
    tuned, base = base.endswith(TUNED), base.removesuffix(TUNED)
    last, base = base.endswith(LAST), base.removesuffix(LAST)
    folded, base = base.endswith(FOLDED), base.removesuffix(FOLDED)
    frozen, base = base.endswith(FROZEN), base.removesuffix(FROZEN)
    if base not in BASES or (frozen and not base.startswith("ours")):
        raise tn.errors.StudyError(tn.errors.explain(f"there is no contender {name!r}", known=", ".join(CONTENDERS)))
    training = problem.cell.goes == "training"
    dense = copy.deepcopy(problem.dense).train(training)
    if last:
        dense = dense.to(memory_format=torch.channels_last)
    images = problem.images.contiguous(memory_format=torch.channels_last) if last else problem.images
    if base == "dense":
        model = dense
    else:
        candidates: tn.compiler.Candidates = "all" if base == "ours" else "factored"
        model = _converted(dense, problem, images, candidates, tune=tuned, backward=training)
        if base == "hand":
            model = hand_model(model, dense)
            if last:
                model = model.to(memory_format=torch.channels_last)
    if folded:
        model = tn.fold_batch_norm(model, images)
    if base.startswith("ours") and (frozen or folded):
        for module in model.modules():
            if isinstance(module, tn.nn.KernelLayer):
                module.freeze()
    parameters = sum(parameter.numel() for parameter in model.parameters())
    counted = count_multiply_adds(model, images)
    return Contender(ChannelsLast(model) if last else model, counted, parameters)


def _converted(
    dense: nn.Module,
    problem: Problem,
    images: Tensor,
    candidates: tn.compiler.Candidates,
    *,
    tune: bool,
    backward: bool,
) -> nn.Module:
    """The decomposed network; cores of one start and no sweeps, which are the same whenever they are made."""

    def wish(name: str, layer: nn.Module) -> tuple[str, dict[str, object]] | None:
        if name not in problem.chosen:
            return None
        rewrite, ranks = problem.chosen[name]
        return rewrite, {"ranks": ranks, "starts": 1, "sweeps": 0}

    model, report = tn.convert(
        dense,
        wish,
        example=images,
        inplace=False,
        candidates=candidates,
        tune=tune,
        backward=backward,
        seed=problem.seed,
    )
    missing = set(problem.chosen) - set(report.converted)
    if missing:
        row = report[min(missing)]
        raise tn.errors.StudyError(tn.errors.explain(f"layer {row.name!r} stayed dense", because=row.reason))
    return model


def count_multiply_adds(model: nn.Module, images: Tensor) -> int:
    """Of all kernel layers, in one run of the model: torch's by their shapes, ours by their plans."""
    total = 0

    def count(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        if isinstance(module, tn.nn.KernelLayer):
            total += module.plan.multiply_adds
        else:
            weight = module.weight
            assert isinstance(weight, Tensor)
            total += output.numel() // output.shape[1] * weight.numel()

    kinds = (tn.nn.KernelLayer, nn.Conv2d, nn.Linear)
    handles = [module.register_forward_hook(count) for module in model.modules() if isinstance(module, kinds)]
    try:
        with tn.model.evaluating(model):
            model(images)
    finally:
        for handle in handles:
            handle.remove()
    return total


def one_call(module: nn.Module, problem: Problem) -> Callable[[], Tensor]:
    """What is timed; it returns the output.

    Forward: no gradients are noted. Training: the output, the cross-entropy with fixed labels, its gradients of all
    parameters; without the optimizer's step.
    """
    if problem.cell.goes == "forward":

        @torch.no_grad()
        def forward() -> Tensor:
            found: Tensor = module(problem.images)
            return found

        return forward

    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]

    def training() -> Tensor:
        output: Tensor = module(problem.images)
        torch.autograd.grad(functional.cross_entropy(output, problem.labels), parameters)
        return output.detach()

    return training
