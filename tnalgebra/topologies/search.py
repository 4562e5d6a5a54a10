"""The search for a topology: bounds first, then quick fits of those that are left, then full fits of the best."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.utils._pytree import tree_map

from ..errors import RankError, RuleError, ValuesError
from ..fitting import Metric, ModelBudget, RelativeError, Size, read_size, size_text
from ..model import input_metrics, read_example
from ..networks import KERNEL_LABELS, labels_of
from ..nn import kernel_labels_of, kernel_layers, own_weight
from ..studies import Store, config_hash, digest_state, digest_tensors
from ..tensors import as_tensor, scaled
from ..workers import Scheduler
from .evaluation import Problem
from .result import FoundTopologies
from .run import TRIAL_KEYS, Ledger, SearchRun
from .space import Space


def search(
    subject: Any,
    size: object,
    *,
    space: Space | None = None,
    labels: str | Sequence[str] | None = None,
    metric: Metric | None = None,
    example: Any = None,
    calibration: Any = None,
    test: Callable[[nn.Module], float] | None = None,
    layers: Sequence[str] | None = None,
    output: str | Path | None = None,
    trials: int = 200,
    finalists: int = 4,
    seed: int = 0,
    scheduler: Scheduler | None = None,
) -> FoundTopologies:
    """Search for the topology with the least error at a size, or with the fewest parameters at an error.

    Topologies are fitted quickly in the order of the bounds that the kernel's cuts give, up to where a bound is above
    the best error. The best ones are fitted again from more starts, with ranks moved between the bonds of loops. Of
    more than 2,000 topologies optuna suggests some.

    Args:
        subject: a kernel; a convolution, transposed convolution or linear layer; or a model, all kernels of which get
            the same topology, each at its own ranks.
        size: "parameters 0.3" or "multiply-adds 0.3", of a kernel or layer; "time 0.7" of a layer or model on the
            example; or "error 0.1", at which the fewest parameters are searched. A list of sizes is searched one by
            one. Topologies of a model are compared at that part of each kernel's parameters; the best ones are then
            converted under the budget itself.
        space: the topologies; by default all patterns but graphs and blocks, of 2 to 4 cores, and the catalogue.
        labels: of a kernel's axes; by default those of torch's kernels.
        metric: the norm of the error of one kernel; by default the Frobenius norm.
        example: an input of the layer or model, or its shape, where multiply-adds or times are counted.
        calibration: batches of inputs of the layer or model; errors are then those of the outputs over them.
        test: maps a model to its accuracy; the best topologies of a model are ordered by it.
        layers: names of a model's layers, by default all that have the labels of most.
        output: a folder for the rows, each written as it is finished. The same search continues where it was stopped.
        trials: the most topologies that optuna suggests; and the most fits at an error.
        finalists: how many topologies are fitted fully, and of a model converted and tested.
        seed: of the fits and suggestions.
        scheduler: where the fits at a budget are made, see `tn.workers.run_tasks`; by default in this process. With
            workers, more topologies may be fitted, because less is known when their turn comes.

    Returns:
        The topologies that were fitted, the best one first, with the front and a line of code.

    Raises:
        RankError: a size cannot be read or is not a budget, or no topology of the space meets it.
        RuleError: a label that the kernel lacks, or a space without topologies.
        ValuesError: a kernel is empty or not finite; the subject is neither a kernel, a layer nor a model; or an
            argument does not apply to it, such as labels to a model.
        StudyError: the folder belongs to another search, or cannot be written.
        MissingPackageError: the space is large, and optuna is not installed.

    Example:
        >>> result = tn.search(conv, "parameters 0.3", space=tn.Space(bonds=("tree", "ring")))
        >>> print(result.notation)
    """
    space = Space() if space is None else space
    sizes = [_read_budget(one) for one in (size if isinstance(size, list | tuple) else [size])]
    if not sizes:
        raise RankError("no size is given", fix="'parameters 0.3'")
    numbers = {"trials": trials, "finalists": finalists}
    for name, number in numbers.items():
        if number < 1:
            raise ValuesError(f"{name}={number!r}", fix="at least 1")
    of_models = {"example": example, "calibration": calibration, "test": test, "layers": layers}
    model, problem = _read_subject(subject, labels=labels, metric=metric, seed=seed, **of_models)
    space.check(problem.labels)
    with ExitStack() as stack:
        store = None
        if output is not None:
            config = _config(problem, model, example) | numbers
            config |= {"sizes": [*map(size_text, sizes)], "space": asdict(space), "tested": test is not None}
            store = stack.enter_context(Store(Path(output), config, fields=TRIAL_KEYS).opened())
            store.settle()
        run = SearchRun(problem, space, Ledger(store), model, test, calibration, trials, finalists, scheduler)
        return FoundTopologies(tuple(row for one in sizes for row in run.at(one)), problem.labels, run.counts)


def _config(problem: Problem, model: nn.Module | None, example: Any) -> dict[str, object]:
    """What the rows in a folder depend on, beside the sizes, the space and the fits."""
    covariances = {f"{name}: {' '.join(one.labels)}": one.covariance for name, one in problem.metrics.items()}
    crosses = {f"{name}: cross": one.cross for name, one in problem.metrics.items() if one.cross is not None}
    return {
        "labels": list(problem.labels),
        "kernels": digest_tensors(problem.kernels),
        "metrics": digest_tensors(covariances | crosses),
        "model": None if model is None else config_hash({str(model): digest_state(model)}),
        "example": None if model is None or example is None else _shapes(read_example(example, model)),
        "seed": problem.seed,
    }


def _read_budget(size: object) -> Size:
    read = read_size(size)
    if not isinstance(read, ModelBudget | RelativeError):
        fact = f"{size_text(read)!r} is not a budget, so that topologies would have different sizes"
        raise RankError(fact, fix="'parameters 0.3', 'multiply-adds 0.3', 'time 0.7', or 'error 0.1'")
    return read


def _read_kernel(subject: Any, labels: Any) -> tuple[Tensor, tuple[str, ...]]:
    """A kernel and the labels of its axes."""
    try:
        kernel = as_tensor(subject).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        fact = f"a {type(subject).__name__} is neither a kernel, a layer nor a model"
        raise ValuesError(fact, fix="a tensor, or a torch.nn.Module") from error
    axes = KERNEL_LABELS.get(kernel.ndim) if labels is None else labels_of(labels)
    if axes is None or len(axes) != kernel.ndim:
        fact = f"a kernel of {kernel.ndim} axes has the labels {' '.join(axes or ()) or 'none'}"
        raise RuleError(fact, fix="labels='out in kh kw': one for each axis")
    scaled(kernel, what="the kernel")
    return kernel, axes


def _read_subject(
    subject: Any, *, labels: Any, metric: Metric | None, seed: int, **of_models: Any
) -> tuple[nn.Module | None, Problem]:
    """The model, if the subject is one or a layer, and its kernels."""
    if not isinstance(subject, nn.Module):
        _refuse("a kernel", **of_models)
        kernel, axes = _read_kernel(subject, labels)
        return None, Problem({"kernel": kernel}, axes, {"kernel": metric} if metric else {}, seed=seed)
    layers, calibration = of_models["layers"], of_models["calibration"]
    listed = kernel_layers(subject)
    is_layer = "" in listed
    _refuse("a layer or model", labels=labels)
    _refuse("a layer", layers=layers) if is_layer else _refuse("a model", metric=metric)
    if layers is not None:
        missing = [name for name in layers if name not in listed]
        if missing:
            raise RuleError(f"the model has no kernel layer {missing[0]!r}", layers=", ".join(listed))
        listed = {name: listed[name] for name in layers}
    if not listed:
        raise ValuesError("the model has no kernel", fix="a convolution or linear layer, or a model of them")
    kinds = [kernel_labels_of(layer) for layer in listed.values()]
    axes = max(kinds, key=kinds.count)
    chosen = {name: layer for (name, layer), kind in zip(listed.items(), kinds, strict=True) if kind == axes}
    if layers is not None and len(chosen) < len(listed):
        (other, *_) = [name for name in listed if name not in chosen]
        fact = f"the kernels of {next(iter(chosen))!r} and {other!r} have different labels"
        raise RuleError(fact, fix="layers of one kind, which can have the same topology")
    kernels = {name: own_weight(layer).detach() for name, layer in chosen.items()}
    for name, kernel in kernels.items():
        scaled(kernel, what=f"the kernel of {name or 'the layer'}")
    if metric is not None:
        _refuse("a search with a metric", calibration=calibration)
        metrics = {"": metric}
    else:
        metrics = {} if calibration is None else input_metrics(subject, calibration, layers=list(chosen))
    return subject, Problem(kernels, axes, metrics, subject if is_layer else None, of_models["example"], seed)


def _refuse(subject: str, **arguments: object) -> None:
    """Refuse arguments that would change nothing."""
    for name, value in arguments.items():
        if value is not None:
            raise ValuesError(f"{name} does not apply to {subject}", fix=f"the search without {name}")


def _shapes(call: object) -> str:
    """The arguments of a call, with shapes and types in the place of tensors."""
    return str(tree_map(lambda one: (tuple(one.shape), one.dtype) if isinstance(one, Tensor) else one, call))
