"""The contenders of the benchmark of models: a network that is dense, decomposed by the library, or by hand."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from math import prod
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional

import tnalgebra as tn
from recipes.benchmarks.chains import (
    LABELS,
    ChannelsLast,
    Link,
    Stage,
    chain_of,
    chain_work,
    conv_chain,
    one_call,
)
from recipes.benchmarks.runner import PREDICTED, Contender, Pass

Chosen: TypeAlias = dict[str, tuple[str, dict[str, int]]]
"""Layer -> its rewrite and the rank of each bond."""

CLASSES = 1000


class Cell(NamedTuple):
    """One network, for all contenders."""

    model: str
    batch: int
    image_size: int
    goes: Pass
    rewrite: str
    pointwise: str | None
    """The rewrite of kernels with a window of one element; None: they stay dense."""
    multiply_adds: float | None
    """The largest part of the kernel layers' multiply-adds; None where `fraction` determines the ranks."""
    fraction: float | None
    """The part of the largest rank of each bond; None where it follows from `multiply_adds`."""

    @property
    def shape(self) -> tuple[int, int, int, int]:
        return (self.batch, 3, self.image_size, self.image_size)


# Ranks ------------------------------------------------------------------------------------------------------------


def rewrite_chain(rewrite: str) -> list[Link]:
    """The chain of a rewrite of kernels out in kh kw.

    Raises:
        StudyError: the rewrite is not a chain, which one could write by hand.
        RuleError: the rewrite is unknown.
    """
    before, _, after = tn.decompositions.read_rewrite(rewrite, LABELS).equation.partition("=>")
    (kernel,) = tn.parse(before).nodes
    right = tn.parse(after)
    chain = chain_of(right, kernel.labels) if len(kernel.labels) == len(LABELS) else None
    if chain is None:
        raise tn.errors.StudyError(
            f"{rewrite!r} is not a chain of convolutions, which could be written by hand",
            cores=right,
            fix="tucker2, a cut such as 'out kh | in kw', or a rule whose cores lead from in to out",
        )
    return chain


def chosen_ranks(model: nn.Module, cell: Cell) -> Chosen:
    """Rewrite and ranks of the layers that get smaller, of all convolutions without groups except the first.

    All ranks are the same fraction of their bonds' largest useful ranks: `cell.fraction`, or the largest fraction with
    which the chains have at most the allowed part of the multiply-adds.

    Raises:
        StudyError: no ranks are small enough, or no layer gets smaller.
    """
    links = {rewrite: rewrite_chain(rewrite) for rewrite in (cell.rewrite, cell.pointwise) if rewrite is not None}
    dense, layers = _dense_layers(model, cell.shape)

    def at(fraction: float) -> tuple[int, Chosen]:
        chosen: Chosen = {}
        total = sum(dense.values())
        for name, (module, shape) in layers.items():
            rewrite = cell.pointwise if module.weight[0, 0].numel() == 1 else cell.rewrite
            if rewrite is not None:
                ranks, chain = _chain_at(fraction, module, links[rewrite])
                weights, work = chain_work(module, chain, shape)
                if weights < module.weight.numel() and work < dense[name]:
                    chosen[name] = rewrite, ranks
                    total += work - dense[name]
        return total, chosen

    fraction = cell.fraction
    if cell.multiply_adds is not None:
        allowed = cell.multiply_adds * sum(dense.values())
        least = at(0.0)[0]
        if least > allowed:
            raise tn.errors.StudyError(
                f"{cell.multiply_adds:g} of the multiply-adds cannot be met",
                least=f"{least / sum(dense.values()):.3f}, with all ranks 1",
                model=cell.model,
            )
        fraction, high = 0.0, 1.0
        for _ in range(30):
            middle = (fraction + high) / 2
            fraction, high = (middle, high) if at(middle)[0] <= allowed else (fraction, middle)
    assert fraction is not None
    chosen = at(fraction)[1]
    if not chosen:
        raise tn.errors.StudyError(
            "no layer gets smaller", model=cell.model, fix="fewer multiply-adds or a smaller fraction"
        )
    return chosen


def _dense_layers(
    model: nn.Module, shape: tuple[int, ...]
) -> tuple[dict[str, int], dict[str, tuple[nn.Conv2d, tuple[int, ...]]]]:
    """The multiply-adds of every kernel layer; the convolutions that may be decomposed, with their input shapes."""
    dense: dict[str, int] = {}
    inputs: dict[str, tuple[int, ...]] = {}
    twin = copy.deepcopy(model).to("meta").eval()
    for name, module in tn.nn.kernel_layers(twin).items():

        def note(module: nn.Module, inputs_of_call: tuple[Tensor, ...], output: Tensor, name: str = name) -> None:
            inputs[name] = tuple(inputs_of_call[0].shape)
            dense[name] = _work(module, output)

        module.register_forward_hook(note)
    with torch.no_grad():
        twin(torch.empty(shape, device="meta"))
    convolutions = {name: one for name, one in tn.nn.kernel_layers(model).items() if isinstance(one, nn.Conv2d)}
    layers = {
        name: (module, inputs[name])
        for name, module in list(convolutions.items())[1:]
        if name in inputs and module.groups == 1 and not isinstance(module.padding, str)
    }
    return dense, layers


def _work(module: nn.Module, output: Tensor) -> int:
    weight = module.weight
    assert isinstance(weight, Tensor)
    return output.numel() // output.shape[1] * weight.numel()


def _chain_at(fraction: float, module: nn.Conv2d, links: Sequence[Link]) -> tuple[dict[str, int], list[Stage]]:
    """Ranks, each a fraction of the smaller side of its bond, and the chain that has them, on the meta device."""
    axes = dict(zip(LABELS, module.weight.shape, strict=True))
    ranks: dict[str, int] = {}
    stages = []
    for place, link in enumerate(links):
        before, after = (
            axes[side] * prod(axes[label] for one in some for label in one.windows)
            for side, some in (("in", links[: place + 1]), ("out", links[place + 1 :]))
        )
        inputs = ranks.get(link.into, axes["in"])
        if link is not links[-1]:
            ranks[link.out] = max(1, int(fraction * min(before, after)))
        window = [axes[label] if label in link.windows else 1 for label in LABELS[2:]]
        stages.append(Stage(torch.empty(ranks.get(link.out, axes["out"]), inputs, *window, device="meta")))
    return ranks, stages


# Contenders -------------------------------------------------------------------------------------------------------

CONTENDERS = tuple(
    base + memory_format
    for base in (
        *("dense", "hand", "ours factored", "ours", "ours frozen"),
        *("dense folded", "hand folded", "ours folded"),
    )
    for memory_format in ("", " channels_last")
)
"""Our contenders that are folded are frozen too."""


class Problem(NamedTuple):
    """What the contenders of a cell are made from."""

    cell: Cell
    dense: nn.Module
    chosen: Chosen
    images: Tensor
    labels: Tensor
    seed: int


def make_problem(cell: Cell, *, seed: int, device: str) -> Problem:
    """A network with random weights and statistics, images and labels, which depend only on cell and seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        dense = tn.command.build_model(cell.model, classes=CLASSES if cell.model == "resnet50" else 10, channels=3)
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
                f"{cell.model} does not take images of this size", because=error, shape=cell.shape
            ) from error
        with torch.no_grad():
            classes = dense.eval()(images[:1]).shape[1]
        labels = torch.randint(classes, (cell.batch,))
    return Problem(cell, dense.to(device), chosen, images.to(device), labels.to(device), seed)


def make_contender(name: str, problem: Problem) -> Contender:
    """Build a contender of `CONTENDERS`, or one of them by predictions alone.

    In training, the gradients of the cross-entropy with fixed labels are taken with respect to all parameters; there is
    not a step of an optimizer.
    """
    model, images = make_model(name, problem)
    facts = {
        "multiply_adds": count_multiply_adds(model, images),
        "parameters": sum(map(Tensor.numel, model.parameters())),
    }
    call = one_call(
        ChannelsLast(model) if "channels_last" in name else model,
        problem.images,
        problem.cell.goes,
        lambda output: (functional.cross_entropy(output, problem.labels), None),
    )
    return Contender(call, lambda: facts)


def make_model(name: str, problem: Problem) -> tuple[nn.Module, Tensor]:
    """The network of a contender, and the images in its memory format."""
    words = name.split()
    memory_format = torch.channels_last if "channels_last" in words else torch.contiguous_format
    training = problem.cell.goes == "training"
    dense = copy.deepcopy(problem.dense).train(training).to(memory_format=memory_format)
    images = problem.images.contiguous(memory_format=memory_format)
    model = dense
    if words[0] != "dense":
        candidates: tn.compiler.Candidates = "factored" if words[0] == "hand" or "factored" in words else "all"
        model = _converted(
            dense, problem, images, candidates=candidates, tune=not name.endswith(PREDICTED), backward=training
        )
    if words[0] == "hand":
        model = hand_model(model, dense).to(memory_format=memory_format)
    if "folded" in words:
        tn.fold_batch_norm(model, images)
    if words[0] == "ours" and ("frozen" in words or "folded" in words):
        for module in model.modules():
            if isinstance(module, tn.nn.KernelLayer):
                module.freeze()
    return model, images


def _converted(dense: nn.Module, problem: Problem, images: Tensor, **settings: Any) -> nn.Module:
    """The decomposed network, with cores of one start without sweeps, which are the same in every call."""

    def request(name: str, layer: nn.Module) -> tuple[str, dict[str, object]] | None:
        if name not in problem.chosen:
            return None
        rewrite, ranks = problem.chosen[name]
        return rewrite, {"size": ranks, "starts": 1, "sweeps": 0}

    model, report = tn.convert(dense, request, example=images, inplace=False, seed=problem.seed, **settings)
    missing = set(problem.chosen) - set(report.converted)
    if missing:
        row = report[min(missing)]
        raise tn.errors.StudyError(f"layer {row.name!r} stayed dense", because=row.reason)
    return model


def hand_model(converted: nn.Module, dense: nn.Module) -> nn.Module:
    """A copy of a converted model with torch layers instead of ours."""
    twin = copy.deepcopy(converted)
    for name, layer in list(twin.named_modules()):
        if isinstance(layer, tn.nn.KernelLayer):
            old = dense.get_submodule(name)
            assert isinstance(old, nn.Conv2d)
            holder, _, key = name.rpartition(".")
            setattr(twin.get_submodule(holder), key, hand_layer(layer, old).train(layer.training))
    return twin


def hand_layer(layer: tn.nn.KernelLayer, dense: nn.Conv2d) -> nn.Sequential:
    """The chain of torch layers with the cores of a decomposed layer; `dense` is the layer that both replace."""
    links = chain_of(layer.kernel, layer.kernel.output)
    assert links is not None
    labels = {node.name: node.labels for node in layer.kernel.nodes if isinstance(node, tn.networks.NamedTensor)}
    window = layer.kernel.output[2:]
    stages = [link.stage(getattr(layer, link.name).detach(), labels[link.name], window) for link in links]
    return conv_chain(dense, stages, layer.bias)


def count_multiply_adds(model: nn.Module, images: Tensor) -> int:
    """The multiply-adds of all kernel layers in one run of the model: torch's by their shapes, ours by their plans."""
    counts: list[int] = []

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        counts.append(module.plan.multiply_adds if isinstance(module, tn.nn.KernelLayer) else _work(module, output))

    kinds = (tn.nn.KernelLayer, nn.Conv2d, nn.Linear)
    handles = [module.register_forward_hook(count) for module in model.modules() if isinstance(module, kinds)]
    with tn.model.evaluating(model):
        model(images)
    for handle in handles:
        handle.remove()
    return sum(counts)
