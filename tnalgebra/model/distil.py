"""`distil`: the cores of a converted model learn, without labels, to give what the dense model gives."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from fnmatch import fnmatchcase
from itertools import chain, islice
from typing import TypeAlias, TypeVar

import torch
from torch import Tensor, nn

from ..errors import DataError, LayerError, ValuesError
from ..nn import KernelLayer
from .divergence import output_divergence, squared_distance
from .example import Batch, Inputs, inputs_of
from .modes import Hook, hooked, modes_kept
from .progress import track

_M = TypeVar("_M", bound=nn.Module)

Pairs: TypeAlias = dict[str, tuple[nn.Module, nn.Module]]
"""Name -> the module of the student and that of the teacher."""

WARMUP = 0.1
"""The part of the steps in which the learning rate rises."""

RATES = tuple(digit * 10.0**power for power in (-6, -5, -4, -3) for digit in (1, 3))
"""The learning rates among which one is chosen."""

OUTPUT = ""
"""The name of the model itself among those of its blocks, as `named_modules` has it."""


def distil(
    model: _M,
    teacher: nn.Module,
    batches: Iterable[Batch],
    *,
    blocks: Sequence[str] | None = None,
    steps: int | None = None,
    learning_rate: float | None = None,
    autocast: torch.dtype | None = None,
    progress: bool = True,
) -> _M:
    """Train the decomposed layers of a model to give the outputs of another one, without labels.

    The loss of a batch is the sum of ||student - teacher||^2 / ||teacher||^2 over the outputs of the blocks, each norm
    over the whole batch, and of the divergence of the outputs, see `tn.model.mean_divergence`. Adam takes one step for
    each batch; its rate rises in the first tenth of the steps, then falls to 0 as a cosine. Both models run in
    evaluation mode: batch normalisations keep their statistics and nothing is dropped. New images help more than
    further passes over the same ones, to which the cores would fit themselves.

    Args:
        model: with decomposed layers, such as `convert` leaves them. Their cores and biases are trained, in place,
            and frozen ones are thawed; everything else stays as it is.
        teacher: the dense model, for instance a copy from before the conversion; it does not change.
        batches: of the models' inputs, as `input_metrics` takes them, such as (images, labels). They are moved to the
            model's device.
        blocks: names or globs of modules of both models whose outputs are compared beside those of the whole model;
            [] for none. By default the members of an nn.Sequential or nn.ModuleList that hold decomposed layers, the
            outermost of them: residual blocks of a ResNet, blocks of a transformer.
        steps: how many batches are used; by default all. It is needed where they have no length, as of a generator.
        learning_rate: the largest of all steps. By default the one of `RATES` whose first step, by the gradient of the
            first batch, gives the second batch the least loss: cores that fit well, and those whose components cancel
            each other, bear small steps only.
        autocast: a type in which products are computed, such as torch.bfloat16, which is faster on devices that have
            it; the cores keep their type.
        progress: show a bar, where stderr is a terminal.

    Returns:
        The model itself, with the modes that it had.

    Raises:
        LayerError: the model has no decomposed layers; a name of `blocks` is not a module of both; an output is not a
            tensor, or of another shape in the teacher; one of them does not run on a batch.
        DataError: the batches hold no inputs, are fewer than `steps`, or have no length where `steps` is not given;
            the learning rate is not positive.
        ValuesError: the loss is not finite. The cores are then what they were, as after any other error.

    Source:
        Distillation: G. Hinton et al., arXiv 1503.02531; outputs of blocks as targets: A. Romero et al.,
        arXiv 1412.6550.

    Example:
        >>> smaller, report = tn.convert(model, {"*": "tucker2"}, size="parameters 0.5", inplace=False)
        >>> tn.distil(smaller, model, loader)
    """
    if learning_rate is not None and not 0 < learning_rate < math.inf:
        raise DataError(f"learning_rate={learning_rate!r}", fix="a positive number, such as 1e-3")
    total = _steps(batches, steps)
    layers = _decomposed_layers(model)
    pairs = _blocks(model, teacher, blocks)
    with modes_kept(model), modes_kept(teacher), _training(model, layers) as cores:
        model.eval()
        teacher.eval()

        def loss_of(x: Inputs) -> Tensor:
            device = cores[0].device
            with torch.autocast(device.type, autocast, enabled=autocast is not None):
                return _loss(model, teacher, pairs, x.to(device))

        inputs: Iterator[Inputs] = islice(inputs_of(batches, model), total)
        if learning_rate is None:
            first = list(islice(inputs, 2))
            learning_rate = _best_first_rate(cores, loss_of, first)
            inputs = chain(first, inputs)
        inputs = iter(track(inputs, "distillation", total=total, shown=progress))
        _descend(cores, loss_of, inputs, steps=total, learning_rate=learning_rate)
    return model


@contextmanager
def _training(model: nn.Module, layers: Sequence[KernelLayer]) -> Iterator[list[nn.Parameter]]:
    """The cores and biases of the layers, which alone have gradients inside; after an error with their old values."""
    cores = list(dict.fromkeys(parameter for layer in layers for parameter in layer.parameters()))
    before = [core.detach().clone() for core in cores]
    trained = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.requires_grad_(False)
        for layer in layers:
            layer.thaw().requires_grad_(True)
        with torch.enable_grad():
            yield cores
    except BaseException:
        with torch.no_grad():
            for core, values in zip(cores, before, strict=True):
                core.copy_(values)
        raise
    finally:
        for parameter, needs_gradient in trained:
            parameter.requires_grad_(needs_gradient)
            parameter.grad = None


def _steps(batches: object, steps: int | None) -> int:
    if steps is None:
        if not isinstance(batches, Sized):
            fact = f"the learning rate follows the number of batches, which a {type(batches).__name__} does not have"
            raise DataError(fact, fix="steps=100, or a list of batches, or a DataLoader")
        return max(1, len(batches))
    if steps < 1:
        raise DataError(f"steps={steps}", fix="at least 1")
    return steps


def _descend(
    cores: Sequence[nn.Parameter],
    loss_of: Callable[[Inputs], Tensor],
    inputs: Iterator[Inputs],
    *,
    steps: int,
    learning_rate: float,
) -> None:
    """Take a step with each batch. Raises ValuesError where a loss is not finite, DataError for too few batches."""
    optimizer = torch.optim.Adam(cores, learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, steps))
    number = 0
    for number, x in enumerate(inputs, start=1):
        loss = loss_of(x)
        if not torch.isfinite(loss):
            fact = f"the loss of batch {number} is {loss.item()}"
            raise ValuesError(fact, fix="a smaller learning_rate, or finite inputs")
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
    if number < steps:
        raise DataError(f"steps={steps}, and there are {number} batches", fix=f"steps={number}")


def _best_first_rate(
    cores: Sequence[nn.Parameter], loss_of: Callable[[Inputs], Tensor], batches: list[Inputs]
) -> float:
    """The learning rate whose first step, with the first batch, gives the last batch the least loss.

    The first step of Adam is along the signs of the gradient. The cores are left as they were.
    """
    if not batches:
        return RATES[0]
    torch.autograd.backward(loss_of(batches[0]))
    before = [core.detach().clone() for core in cores]
    losses = {}
    with torch.no_grad():
        for rate in RATES:
            for core, values in zip(cores, before, strict=True):
                core.copy_(values if core.grad is None else values - rate * core.grad.sign())
            loss = loss_of(batches[-1]).item()
            losses[rate] = loss if math.isfinite(loss) else math.inf
        for core, values in zip(cores, before, strict=True):
            core.copy_(values)
            core.grad = None
    return min(losses, key=lambda rate: (losses[rate], rate))


def _rate(step: int, steps: int) -> float:
    """The learning rate of a step, as a part of the largest."""
    rising = max(1, round(WARMUP * steps))
    if step < rising:
        return (step + 1) / rising
    return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))


def _decomposed_layers(model: nn.Module) -> list[KernelLayer]:
    layers = [module for module in model.modules() if isinstance(module, KernelLayer)]
    if not layers:
        fact = f"{type(model).__name__} has no decomposed layers to train"
        raise LayerError(fact, fix="tn.convert(model, ...) first")
    return layers


def _blocks(
    model: nn.Module, teacher: nn.Module, names: Sequence[str] | None
) -> dict[str, tuple[nn.Module, nn.Module]]:
    """Name -> the module of the model and that of the teacher whose outputs are compared, the whole model last."""
    theirs = dict(teacher.named_modules())
    ours = {name: module for name, module in model.named_modules() if name}
    if names is None:
        chosen = [name for name in _outermost(model) if name in theirs]
    else:
        chosen = [name for name in ours if any(fnmatchcase(name, pattern) for pattern in names)]
        for pattern in names:
            fitting = [name for name in chosen if fnmatchcase(name, pattern)]
            if not fitting or any(name not in theirs for name in fitting):
                where = "teacher" if fitting else "model"
                raise LayerError(f"the {where} has no module {pattern!r}", fix="names of modules that both have")
    return {name: (ours[name], theirs[name]) for name in chosen} | {OUTPUT: (model, teacher)}


def _outermost(model: nn.Module) -> list[str]:
    """The members of sequences of modules that hold decomposed layers and are not inside another such member."""
    chosen: list[str] = []
    for name, module in model.named_modules():
        if isinstance(module, nn.Sequential | nn.ModuleList):
            for key, member in module.named_children():
                path = f"{name}.{key}".lstrip(".")
                inside = any(path.startswith(f"{one}.") for one in chosen)
                if not inside and any(isinstance(part, KernelLayer) for part in member.modules()):
                    chosen.append(path)
    return chosen


def _loss(model: nn.Module, teacher: nn.Module, pairs: Pairs, x: Inputs) -> Tensor:
    """The sum of the blocks' squared relative errors and of the divergence of the models' outputs."""
    with torch.no_grad():
        targets = _outputs(teacher, {name: pair[1] for name, pair in pairs.items()}, x)
    outputs = _outputs(model, {name: pair[0] for name, pair in pairs.items()}, x)
    loss = torch.zeros((), device=next(x.tensors()).device)
    for name, target in targets.items():
        output = outputs.get(name)
        if not isinstance(target, Tensor) or not isinstance(output, Tensor) or output.shape != target.shape:
            fact = f"the outputs of {name or 'the model'!r} cannot be compared"
            facts = {"student": _describe(output), "teacher": _describe(target)}
            raise LayerError(fact, **facts, fix="blocks=[...] with modules that give one tensor in both models")
        apart, whole = (output_divergence if name == OUTPUT else squared_distance)(target.float(), output.float())
        loss = loss + apart / whole.clamp(min=1e-30)
    return loss


def _outputs(model: nn.Module, modules: Mapping[str, nn.Module], x: Inputs) -> dict[str, object]:
    """Name -> what the module gives in a pass of the model over x (of several calls, what the last one gives)."""
    outputs: dict[str, object] = {}

    def keep(name: str) -> Hook:
        def hook(module: nn.Module, args: object, kwargs: object, output: Tensor) -> None:
            outputs[name] = output

        return hook

    with hooked({module: keep(name) for name, module in modules.items()}):
        x.run(model)
    return outputs


def _describe(output: object) -> str:
    return f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
