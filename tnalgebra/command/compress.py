"""Compress a trained network to a size, test it before and after, and keep it with a report."""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import chain, count
from pathlib import Path
from time import perf_counter
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from .._files import write_text, write_whole
from .._tables import Table
from ..checkpoint import save
from ..errors import StudyError
from ..model import (
    FRACTIONS,
    ConversionReport,
    Images,
    batch_norms,
    check_classes,
    convert,
    distil,
    mean_divergence,
    recalibrate_batch_norm,
    time_models,
)
from ..nn import kernel_layers, memory_format_of
from ..pages import DRAWINGS, draw_layers, write_report
from ..studies import (
    accuracy,
    compare_configs,
    digest_state,
    globs_of,
    made_with,
    note_command,
    read_config,
    shuffled_batches,
    writing,
)
from .settings import CompressSettings, describe_images

MODEL, TEXT, PAGE, RESULT, ONNX = "model.safetensors", "report.txt", "report.html", "report.json", "model.onnx"

CompressResult: TypeAlias = dict[str, Any]
"""What report.json holds: config, model, accuracy, images, parameters, multiply_adds, layers, ..."""

Measure: TypeAlias = Callable[[nn.Module, nn.Module, Tensor, str], tuple[Mapping[str, Any], str]]
"""Takes the dense and the compressed network, an example of inputs and the name of its memory format; returns entries
of the result, and text."""

LAYOUTS = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
"""The memory formats that a network may be compressed for."""


WITHOUT_INFLUENCE = ("output", "device", "batch_size", "scheduler")
"""Settings that another run may have and still be the same one."""


def compress_model(
    settings: CompressSettings,
    *,
    prepare: Callable[[nn.Module, Images], object] | None = None,
    measure: Measure | None = None,
    fractions: Sequence[float] = FRACTIONS,
    without_influence: Sequence[str] = (),
) -> CompressResult:
    """Compress a network, test it before and after, and write it with its reports.

    Where the output folder has the result of the same settings, that is printed and returned.

    Args:
        settings: which network, on which images, how small.
        prepare: called with the network and the training images before anything is tested: trains it, for instance.
        measure: more that is measured of both networks.
        fractions: parts of a kernel's parameters at which error curves are measured, see `convert`.
        without_influence: settings of a subclass that do not change the result.

    Returns:
        What report.json holds.

    Raises:
        TnalgebraError: a setting, the data or the weights are not what they should be; the size cannot be met; the
            output folder holds another compression, or cannot be written.
    """
    settings.check()
    images = settings.images("test")
    print(describe_images(images))
    model = settings.network(images, trained_later=prepare is not None)
    left_out = (*WITHOUT_INFLUENCE, *without_influence)
    config = {name: value for name, value in vars(settings).items() if name not in left_out}
    config |= {"mean": images.mean, "std": images.std}
    config |= {"weights_digest": digest_state(model), "images": images.fingerprint}
    known = _known_result(settings, config)
    if known is not None:
        print(f"\n{(settings.output / TEXT).read_text(encoding='utf-8')}\ndone before: {settings.output}/")
        return known
    used = prepare is not None or settings.calibrate or settings.recalibrate_bn or settings.distil
    training = settings.images("train") if used else None
    if training is not None:
        settings.check_held_out(training)
    if prepare is not None and training is not None:
        prepare(model, training)
    started = perf_counter()
    model = model.to(settings.chosen_device()).eval()
    memory_format = _memory_format(model, images, settings)
    model = model.to(memory_format=LAYOUTS[memory_format])
    _check_outputs(model, images, settings)
    tested: dict[str, Any] = {"batch_size": settings.batch_size, "device": settings.chosen_device()}
    before = accuracy(model, images, **tested)
    print(f"\ntop-1 before: {100 * before:.2f} %", flush=True)
    dense = copy.deepcopy(model)
    example = _example(images, settings).to(memory_format=LAYOUTS[memory_format])
    model, report = _convert(model, training, example, settings, fractions=fractions)
    fitted = accuracy(model, images, not_finite="wrong", **tested) if settings.distil else None
    divergence = [] if training is None else _distil(model, dense, training, example, settings=settings)
    after = accuracy(model, images, not_finite="wrong", **tested)
    measured, lines = measure(dense, model, example, memory_format) if measure is not None else ({}, "")
    seconds = time_models((dense, example), (model, example))
    result: CompressResult = {
        "model": settings.model,
        "accuracy": {"before": before, **({} if fitted is None else {"fitted": fitted}), "after": after},
        "images": len(images),
        "training_images": 0 if training is None else len(training),
        "divergence": divergence,
        "undone": _is_worse(divergence),
        "parameters": {"before": report.parameters, "after": report.parameters_after},
        "multiply_adds": {"before": report.multiply_adds, "after": report.multiply_adds_after, "batch": len(example)},
        "forward_seconds": {"before": seconds[0], "after": seconds[1], "memory_format": memory_format},
        **measured,
        "layers": report.records(),
        "config": config,
        **made_with(settings.chosen_device()),
        "seconds": perf_counter() - started,
    }
    totals = "\n\n".join([_totals(result), *([lines] if lines else [])])
    _write(settings, result, f"{report}\n\n{totals}\n", (model, example))
    print(f"\n{report}\n\n{totals}\n\nnetwork and reports: {settings.output}/")
    return result


def _known_result(settings: CompressSettings, config: Mapping[str, Any]) -> CompressResult | None:
    """The result that the output folder has, if any.

    Raises:
        StudyError: it is another compression's, or cannot be read, or one of its files is missing.
    """
    folder = settings.output
    if folder.exists() and not folder.is_dir():
        raise StudyError(f"{folder} is not a folder", fix="another --output")
    known = read_config(folder / RESULT)
    if known is not None:
        compare_configs(folder, known.get("config", {}), config)
        for name in (MODEL, TEXT, *([ONNX] if settings.onnx else [])):
            if not (folder / name).exists():
                raise StudyError(f"{folder} has {RESULT}, but not {name}", fix="another --output")
    return known


def _memory_format(model: nn.Module, images: Images, settings: CompressSettings) -> str:
    """The name of the format that is requested, or of the one in which the network is faster."""
    if settings.memory_format != "auto":
        return settings.memory_format
    example = _example(images, settings)
    models = [
        (copy.deepcopy(model).to(memory_format=layout), example.to(memory_format=layout)) for layout in LAYOUTS.values()
    ]
    seconds = dict(zip(LAYOUTS, time_models(*models), strict=True))
    return min(LAYOUTS, key=lambda name: seconds[name])


def _example(images: Images, settings: CompressSettings) -> Tensor:
    """Random inputs of the images' shape."""
    generator = torch.Generator().manual_seed(settings.seed)
    example = torch.randn(settings.example_batch, *images.pixels.shape[1:], generator=generator)
    return example.to(settings.chosen_device())


def _check_outputs(model: nn.Module, images: Images, settings: CompressSettings) -> None:
    """Check that the network takes these images, and has a logit for each class."""
    x, _ = next(images.batches(1, device=settings.chosen_device()))
    try:
        with torch.no_grad():
            outputs = model(x).shape[1]
    except (RuntimeError, ValueError, TypeError, AttributeError, LookupError, AssertionError) as error:
        fact, network = "the network does not take these images", type(model).__name__
        raise StudyError(fact, network=network, shape=tuple(x.shape), because=error) from error
    check_classes(images, outputs)


def _convert(
    model: nn.Module,
    training: Images | None,
    example: Tensor,
    settings: CompressSettings,
    *,
    fractions: Sequence[float],
) -> tuple[nn.Module, ConversionReport]:
    calibration = held_out = None
    if training is not None and settings.calibrate:
        calibration = _inputs(settings.calibration(training), example, settings)
        held_out = _inputs(settings.held_out_images(training), example, settings) or None
    layers = kernel_layers(model)
    print(f"compressing {len(layers)} layers ...", end=" ", flush=True)
    started = perf_counter()
    model, report = convert(
        model,
        {**dict.fromkeys(globs_of(layers, settings.skip)), "*": list(settings.rewrite)},
        size=settings.size,
        example=example,
        calibration=calibration,
        held_out=held_out,
        sequential=settings.sequential,
        tune=settings.tune,
        seed=settings.seed,
        fractions=fractions,
        scheduler=settings.scheduler,
    )
    print(f"{perf_counter() - started:.0f} s", flush=True)
    if settings.recalibrate_bn and training is not None and batch_norms(model):
        tested: dict[str, Any] = {"batch_size": settings.batch_size, "device": settings.chosen_device()}
        some = shuffled_batches(settings.recalibration(training), max_shift=settings.recalibrate_shift, **tested)
        recalibrate_batch_norm(model, some)
    return model, report


def _inputs(images: Images, example: Tensor, settings: CompressSettings) -> list[Tensor]:
    batches = images.batches(settings.batch_size, device=settings.chosen_device())
    return [x.to(memory_format=memory_format_of(example)) for x, _ in batches]


def _distil(
    model: nn.Module, dense: nn.Module, training: Images, example: Tensor, *, settings: CompressSettings
) -> list[float]:
    """Train the cores without labels, in a new order in each pass, where that is requested.

    Where that raises the divergence on the images held out, the cores get their values from before again.

    Returns:
        The divergence from the dense network's outputs, before and after that training, on the images held out, if any.
    """
    size, shift = settings.batch_size, settings.recalibrate_shift
    held_out = _inputs(settings.held_out_images(training), example, settings)
    divergence = [mean_divergence(dense, model, held_out)] if held_out else []
    if settings.distil:
        images = settings.distillation(training)
        steps = math.ceil(settings.distil * math.ceil(len(images) / size))
        passes = (
            shuffled_batches(images, batch_size=size, max_shift=shift, seed=seed, device=settings.chosen_device())
            for seed in count(settings.seed)
        )
        batches = (x.to(memory_format=memory_format_of(example)) for x in chain.from_iterable(passes))
        print(f"distilling in {steps} steps ...", end=" ", flush=True)
        started = perf_counter()
        fitted = copy.deepcopy(model.state_dict())
        distil(model, dense, batches, steps=steps, autocast=torch.bfloat16 if settings.autocast == "bf16" else None)
        print(f"{perf_counter() - started:.0f} s", flush=True)
        if held_out:
            divergence.append(mean_divergence(dense, model, held_out))
            if _is_worse(divergence):
                model.load_state_dict(fitted)
    return divergence


def _is_worse(divergence: Sequence[float]) -> bool:
    """Whether the distillation has raised the divergence, if it was measured; NaN is worse than any number."""
    return len(divergence) > 1 and not divergence[1] <= divergence[0]


def _totals(result: CompressResult) -> str:
    """What the whole network was and is."""
    right, still = (100 * result["accuracy"][when] for when in ("before", "after"))
    rows = [("", "before", "after", "")]
    change = f"{still - right:+.2f} points, {result['images']:,} test images"
    if "fitted" in result["accuracy"] and not result["undone"]:
        change += f"; {100 * result['accuracy']['fitted']:.2f} % before the distillation"
    rows.append(("top-1", f"{right:.2f} %", f"{still:.2f} %", change))
    if result["divergence"]:
        *converted, last = [f"{value:.4f}" for value in result["divergence"]]
        before = f"; {converted[0]} before the distillation" if converted else ""
        if result["undone"]:
            before, last = f"; the distillation raised it to {last}, and is undone", converted[0]
        what = f"nats from the dense outputs, {result['config']['held_out']} training images held out{before}"
        rows.append(("divergence", "0", last, what))
    of_what = {
        "parameters": "the whole network",
        "multiply_adds": f"convolutions and linear layers, batch {result['multiply_adds']['batch']}",
    }
    for name, what in of_what.items():
        old, new = result[name]["before"], result[name]["after"]
        kept = f"{100 * new / old:.1f} % kept, of {what}"
        rows.append((name.replace("_", "-"), f"{old:,}", f"{new:,}", kept))
    seconds, batch = result["forward_seconds"], result["multiply_adds"]["batch"]
    before, after = (f"{1e3 * seconds[when]:.3g} ms" for when in ("before", "after"))
    kept = f"{100 * seconds['after'] / seconds['before']:.1f} % kept, of a forward pass"
    rows.append(("time", before, after, f"{kept}, batch {batch}, {seconds['memory_format']}"))
    return str(Table(rows, left=(0, 3)))


def _write(settings: CompressSettings, result: CompressResult, text: str, network: tuple[nn.Module, Tensor]) -> None:
    model, example = network
    with writing(settings.output):
        write_whole(settings.output / MODEL, partial(save, model))
        if settings.onnx:
            write_whole(settings.output / ONNX, partial(_export, model, example))
        draw_layers(model, settings.output / DRAWINGS)
        write_text(settings.output / TEXT, text)
        note_command(settings.output)
        # after whatever a later run needs: where it exists, all these do
        write_text(settings.output / RESULT, json.dumps(result, indent=2) + "\n")
        write_report([settings.output], settings.output / PAGE)


def _export(model: nn.Module, example: Tensor, path: Path) -> None:
    x = torch.cat([example, example])  # the exporter takes a batch of one image for a constant
    batch = torch.export.Dim("batch", min=1, max=2**16)
    settings: dict[str, Any] = {"dynamo": True, "external_data": False, "verbose": False}
    torch.onnx.export(model.eval(), (x,), path, dynamic_shapes=({0: batch},), **settings)
