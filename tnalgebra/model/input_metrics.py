"""The inputs that a network's layers really see, as metrics for fits; and fits of all layers, one after the other."""

from __future__ import annotations

import difflib
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ..errors import DataError, LayerError, ValuesError
from ..fitting import Metric
from ..nn import DenseLayer, kernel_layers, layer_network, own_weight
from .example import Batch, Inputs, inputs_of
from .images import Images
from .modes import Hook, evaluating, hooked
from .modules import check_initialised, copy_model, owners_of_parameters
from .patches import PATCH_BLOCK, Moments

RIDGE = 1e-4
"""Default ridge: variance of the noise on every input, relative to their mean square."""

_CACHE = 2**29
"""Default bound, in bytes, of the outputs of the original network that are kept at a time."""

Batches: TypeAlias = Images | Iterable[Batch | Inputs]
"""Images, or batches of the model's inputs: tensors, mappings, or pairs of inputs and labels, see `inputs_of`."""

LayerFit: TypeAlias = Callable[[str, Tensor, Metric], Tensor]
"""Layer's name, its weight as torch stores it, the metric -> the new weight, of the same shape."""


def input_metrics(
    model: nn.Module,
    batches: Batches,
    *,
    layers: Sequence[str] | None = None,
    ridge: float = RIDGE,
    batch_size: int | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    block: int = PATCH_BLOCK,
) -> dict[str, Metric]:
    """Measure the metric of each kernel layer in one pass over calibration images, in evaluation mode.

    Element [i, j] of a covariance is the mean over images of the sum over output positions, and over the calls of a
    layer that is called several times, of x_i x_j, where x is the input patch at a position. E||(K - K~) x||^2 is then
    the expected squared error of the layer's whole output for one image. The patches are those that the kernel is
    multiplied with: of the padded input, of the channels of each group, and for a transposed convolution of the input
    with zeros between its elements.

    The covariances of all layers are in memory at the same time. One takes 162 MiB in float64 for 512 channels and a
    3 x 3 window. In a grouped convolution each output channel has a covariance of its own. A grouped transposed
    convolution counts the inputs of all groups, with zeros between the groups.

    Args:
        model: a network on `device`; it keeps its modes.
        batches: the calibration images, or batches of inputs with one image for each entry of the first axis. A batch
            is a tensor, a mapping of keyword arguments, or (inputs, labels), where the inputs may be all arguments:
            ((x, mask), labels). (x, mask) is all arguments only where `forward` needs several; in `convert` with an
            example, where the example has several.
        layers: names of layers, or globs; all kernel layers by default.
        ridge: relative, see `Metric.with_ridge`.
        batch_size: see `Images.batches`; needed for `Images`, and only for them.
        dtype: of the covariances; by default float64 up to 2048 coupled values, and float32 above (half the time and
            memory; its rounding is far below the usual ridge).
        device: of the model and of the metrics.
        block: the largest number of elements of input patches in memory at once, unless one line of an image has more.

    Returns:
        Name of a layer -> its metric, in the order of the modules.

    Raises:
        DataError: the batches are empty, or not in one of the forms above.
        LayerError: the model does not run on a batch; a name that no layer has; a layer that is never called, whose
            weight is shared with another, computed from others or not there yet, or whose covariances are too large.
        ValuesError: a layer's inputs or outputs are not finite, or all its inputs are 0.

    Example:
        >>> metrics = tn.input_metrics(model, [x for x, _ in loader], layers=["layer3.*"])
        >>> tn.compare(model.layer3[0].conv1, "all", "parameters 0.3", metric=metrics["layer3.0.conv1"])
    """
    chosen = _chosen(model, layers)
    moments = {}
    for name, module in chosen.items():
        with _errors_of(name):
            moments[name] = Moments(module, dtype=dtype, device=device, block=block, cross=False)
    called: set[str] = set()

    def gather(name: str) -> Hook:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
            called.add(name)
            with _errors_of(name):
                moments[name].add(_input(args, kwargs), output)

        return hook

    images = 0
    with evaluating(model):
        for x in _inputs(model, batches, batch_size, device):
            images += len(x)
            _run(model, x, {module: gather(name) for name, module in chosen.items()})
    _check_called(chosen, called)
    metrics = {}
    for name, module in chosen.items():
        with _errors_of(name):
            metrics[name] = moments.pop(name).metric(images, ridge=ridge, weight=module.weight)
    return metrics


def fit_in_order(
    model: nn.Module,
    batches: Batches,
    fit: LayerFit,
    *,
    layers: Sequence[str] | None = None,
    ridge: float = RIDGE,
    batch_size: int | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    block: int = PATCH_BLOCK,
    cache: int = _CACHE,
) -> dict[str, Tensor]:
    """Fit the layers in the order in which they run, each to its original output from the inputs that it now gets.

    A copy of the model takes the new weights. For each layer, x are the patches of its inputs in the copy, whose
    earlier layers are fitted already, and y are the outputs of the same layer in the model, without the bias. The
    metric that `fit` gets holds C = E[x x^T], B = E[y x^T] and E||y||^2 (for one image, as in `input_metrics`), so that
    a fit to its target makes up for the errors of the layers before. A layer that is called several times is fitted
    when it is called first, and has its old weight in all calls until then.

    The batches are kept in memory. They run through the copy once for each layer, as far as that layer; and through the
    model once to see the order, and then as often as `cache` demands.

    Args:
        model: a network on `device`; it stays as it is.
        batches: see `input_metrics`.
        fit: called once for each layer, see `LayerFit`.
        cache: the largest number of bytes of the model's outputs that are kept, unless one layer alone has more.
        layers, ridge, batch_size, dtype, device, block: see `input_metrics`.

    Returns:
        Name of a layer -> its weight in the copy, in the order in which the layers run.

    Raises:
        DataError, LayerError: see `input_metrics`; a layer is called less often in the copy.
        ValuesError: see `input_metrics`; what `fit` returns is not finite, or of another shape.
    """
    chosen = _chosen(model, layers)
    inputs = list(_inputs(model, batches, batch_size, device))
    images = sum(map(len, inputs))
    twin = copy_model(model).eval()
    copied = kernel_layers(twin)
    calls, sizes = _calls(model, chosen, inputs)
    _check_called(chosen, sizes)
    fitted: dict[str, Tensor] = {}
    for names in _portions(sizes, cache):
        outputs = _outputs(model, {name: chosen[name] for name in names}, calls, inputs)
        for name in names:
            module = copied[name]
            with _errors_of(name):
                moments = Moments(module, dtype=dtype, device=device, block=block, cross=True)
                for x, wanted in zip(inputs, outputs.pop(name), strict=True):
                    if wanted:
                        _gather(twin, module, moments, x=x, outputs=wanted)
                metric = moments.metric(images, ridge=ridge, weight=module.weight)
            del moments
            weight = _checked_weight(name, module, fit(name, module.weight.detach().clone(), metric))
            with torch.no_grad():
                module.weight.copy_(weight)
            fitted[name] = module.weight.detach().clone()
    return fitted


def _calls(
    model: nn.Module, layers: Mapping[str, DenseLayer], inputs: Sequence[Inputs]
) -> tuple[list[Counter[str]], dict[str, int]]:
    """For each batch name -> number of calls; name -> bytes of all outputs, in the order of the first calls."""
    calls: list[Counter[str]] = []
    sizes: dict[str, int] = {}

    def count(name: str) -> Hook:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
            calls[-1][name] += 1
            sizes[name] = sizes.get(name, 0) + output.numel() * output.element_size()

        return hook

    with evaluating(model):
        for x in inputs:
            calls.append(Counter())
            _run(model, x, {module: count(name) for name, module in layers.items()})
    return calls, sizes


def _portions(sizes: Mapping[str, int], limit: int) -> list[list[str]]:
    """Names in their order, cut where the sizes would exceed the limit."""
    portions: list[list[str]] = []
    total = 0
    for name, size in sizes.items():
        if not portions or total + size > limit:
            portions.append([])
            total = 0
        portions[-1].append(name)
        total += size
    return portions


def _outputs(
    model: nn.Module, layers: Mapping[str, DenseLayer], calls: Sequence[Counter[str]], inputs: Sequence[Inputs]
) -> dict[str, list[list[Tensor]]]:
    """Name -> for each batch, the outputs of the layer's calls, without the bias."""
    outputs: dict[str, list[list[Tensor]]] = {name: [] for name in layers}
    ahead: Counter[str] = Counter()

    def keep(name: str) -> Hook:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
            outputs[name][-1].append(_without_bias(module, output))
            ahead[name] -= 1
            if not any(ahead.values()):
                raise _Stop

        return hook

    with evaluating(model):
        for x, of_batch in zip(inputs, calls, strict=True):
            for name, kept in outputs.items():
                kept.append([])
                ahead[name] = of_batch[name]
            if any(ahead.values()):
                _run(model, x, {module: keep(name) for name, module in layers.items()})
    return outputs


def _gather(twin: nn.Module, module: DenseLayer, moments: Moments, *, x: Inputs, outputs: Sequence[Tensor]) -> None:
    """Add the inputs that the layer has in the copy, with the outputs requested for them."""
    ahead = list(outputs)

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        moments.add(_input(args, kwargs), ahead.pop(0))
        if not ahead:
            raise _Stop

    with torch.no_grad():
        _run(twin, x, {module: hook})
    if ahead:
        times = f"{len(outputs) - len(ahead)} times in the copy, {len(outputs)} times in the model"
        raise LayerError(f"it is called {times}", why="its calls depend on values that were fitted")


class _Stop(BaseException):
    """Ends a forward pass whose rest nobody needs; no model takes it for an error of its own."""


def _run(model: nn.Module, x: Inputs, hooks: Mapping[nn.Module, Hook]) -> None:
    """One forward pass, to its end or until a hook raises `_Stop`."""
    with suppress(_Stop), hooked(hooks):
        x.run(model)


def _inputs(model: nn.Module, batches: Batches, batch_size: int | None, device: torch.device | str) -> Iterator[Inputs]:
    """The model's inputs. Raises DataError: see `inputs_of`."""
    if isinstance(batches, Images) and batch_size is not None:
        dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
        batches = batches.batches(batch_size, dtype=dtype)
    elif batch_size is not None:
        raise DataError("batch_size given with batches of inputs", fix="only with Images")
    return (x.to(device) for x in inputs_of(batches, model))


def _chosen(model: nn.Module, patterns: Sequence[str] | None) -> dict[str, DenseLayer]:
    """Name -> layer, all of them fit to be calibrated. Raises LayerError: see `input_metrics`."""
    layers = kernel_layers(model)
    if not layers:
        raise LayerError(f"{type(model).__name__} has no kernel", needed="a convolution or linear layer")
    globs = ["*"] if patterns is None else [patterns] if isinstance(patterns, str) else list(patterns)
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in layers):
            near = difflib.get_close_matches(glob, list(layers), n=3, cutoff=0.3)
            raise LayerError(
                f"no layer is called {glob!r}",
                near=", ".join(near) or None,
                layers=", ".join(list(layers)[:8]) + (", ..." if len(layers) > 8 else ""),
            )
    check_initialised(model)
    chosen = {name: module for name, module in layers.items() if any(fnmatchcase(name, glob) for glob in globs)}
    owners = owners_of_parameters(model)
    for name, module in chosen.items():
        with _errors_of(name):
            weight = own_weight(module)
            if len(owners[weight]) > 1:
                fix = "give each layer a weight of its own, or leave it out of layers="
                raise LayerError("its weight is shared", between=", ".join(owners[weight]), fix=fix)
            layer_network(module)
    return chosen


def _check_called(chosen: Iterable[str], called: Collection[str]) -> None:
    silent = [name for name in chosen if name not in called]
    if silent:
        raise LayerError(
            f"{'layer' if len(silent) == 1 else 'layers'} {', '.join(map(repr, silent))} never called",
            why="the model's forward does not run the module, or uses its weight directly",
            fix="leave it out of layers=",
        )


def _checked_weight(name: str, module: DenseLayer, weight: Tensor) -> Tensor:
    if not isinstance(weight, Tensor) or weight.shape != module.weight.shape or not bool(weight.isfinite().all()):
        given = f"shape {tuple(weight.shape)}" if isinstance(weight, Tensor) else type(weight).__name__
        raise ValuesError(
            f"the fit of layer {name!r} did not return a weight for it",
            given=given,
            needed=f"finite, shape {tuple(module.weight.shape)}",
        )
    return weight


def _input(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    x: Tensor = args[0] if args else kwargs["input"]
    return x


def _without_bias(module: nn.Module, output: Tensor) -> Tensor:
    """A new tensor in any case: what follows the layer may change its output in place."""
    if not isinstance(module.bias, Tensor):
        return output.clone()
    axes = module.weight.ndim - 2 if isinstance(module.weight, Tensor) else 0
    return output - module.bias.reshape(-1, *[1] * axes)


@contextmanager
def _errors_of(name: str) -> Iterator[None]:
    """Name the layer in errors of its numbers."""
    try:
        yield
    except (ValuesError, LayerError) as error:
        raise type(error)(f"layer {name!r} cannot be calibrated", because=error) from error
