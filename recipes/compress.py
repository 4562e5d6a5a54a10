"""Compress a trained network to a budget; what does that do to accuracy and speed?

    python -m recipes.compress                # embedded digits, a small CNN: minutes
    python -m recipes.compress --smoke        # the same in seconds, badly trained
    python -m recipes.compress --model resnet20 --weights W.pth --data DIR \\
        --rewrite tucker2 "out kh | in kw" --parameters 0.5 --sequential
    python -m recipes.compress --model mylib.nets:build --weights w.pth --data DIR \\
        --multiply-adds 0.5 --channels-last --output runs/mine

What is done:
- One budget for the whole network: of its parameters, or of its multiply-adds.
  Rewrites and ranks of all layers are chosen together, by the errors that they
  make; a layer may stay dense.
- Errors are those of a layer's outputs over calibration images, which are training
  images without their labels; with none of them, the kernels' own norm counts.
- The compressed network is tested, not trained on. Batch normalisations are
  measured again with --recalibrate.
- Accuracy and speed are measured before and after; the speed in turns, in an order
  drawn again in each round. The dense network is timed in both memory formats, so that
  no speed-up is over the slower of them unseen.

What is left in OUTPUT:
- model.safetensors: tnalgebra.load("model.safetensors", into=model) puts it into a
  network as it was built (with --channels-last: as it was built, and in that format).
- report.txt, what is printed at the end; report.json, the same for programs.
- model.onnx with --onnx.
- Where these are there already they are shown again; other settings are refused.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn

import tnalgebra as tn
from models import build_model, load_weights
from recipes.benchmarks.timing import device_name, ratio_of_medians, time_in_turns
from recipes.command import run_command
from recipes.compressibility import RECALIBRATION_IMAGES, trains_first, unlabelled
from recipes.experiment import load_split
from recipes.networks import trained_cnn4
from recipes.reporting import aligned, check_least, print_settings, write

SMOKE = {"epochs": 1, "limit": 60, "calibration_images": 64, "rounds": 3}
"""The most of each."""
SMOKE_FRACTIONS = (0.5, 0.25)
"""Parts of a kernel's parameters at which its curve is measured, where it is only to be seen that all of it runs."""

MODEL, TEXT, RESULT, ONNX = "model.safetensors", "report.txt", "report.json", "model.onnx"

Result: TypeAlias = dict[str, Any]
"""What report.json holds: config, model, accuracy, images, parameters, multiply_adds, latency, layers, ..."""


@dataclass(frozen=True)
class Config:
    """Settings of the compression; what is printed first is what is used."""

    # one line each: the command's --help breaks them where it must
    model: str = "cnn4"
    """cnn4, resnet20, resnet32, resnet44, resnet56, resnet50, resnet50_cifar (stem for 32x32 images), or a function of
    your own: package.module:function"""
    weights: str | None = None
    """a file of weights, or torchvision:NAME; without one cnn4 is trained first, your own network used as it comes"""
    data: str = "digits"
    """digits (embedded), cifar10 or cifar100 (downloaded), or a folder with train/CLASS/* and test/CLASS/*"""
    rewrite: tuple[str, ...] = ("tucker2", "out kh | in kw")
    """decompositions that a layer is offered, each in quotes: names (print(tnalgebra.decompositions.rules()) lists
    them), cuts, rules in the notation; the one that serves the budget best is taken"""
    parameters: float | None = None
    """part of the network's parameters that is kept at most, in (0, 1); 0.5 without --multiply-adds"""
    multiply_adds: float | None = None
    """part of the multiply-adds of all convolutions and linear layers that is kept at most, in (0, 1)"""
    skip: tuple[str, ...] = ("first",)
    """layers left alone: globs; first for the first convolution, which has few inputs; linear for linear layers; bare
    --skip skips none"""
    calibration_images: int = 1024
    """training images, chosen by the seed, over which errors are measured; all, if fewer; 0: the kernels' own norm"""
    sequential: bool = False
    """fit the layers in the order they run, each to the output the network had, from the inputs it has by then"""
    recalibrate: bool = False
    """estimate batch-norm statistics again afterwards, on 5000 training images"""
    recalibrate_shift: int = 0
    """pixels by which these images are moved: that of the training's augmentation; 4 for the published CIFAR ResNets"""
    channels_last: bool = False
    """put the network and the images into channels_last first: on CPUs and GPUs often faster, dense and compressed"""
    tune: bool = False
    """measure the best few plans of each layer instead of trusting their predicted times"""
    onnx: bool = False
    """export the compressed network, for batches of any size; needs the packages onnx and onnxscript"""
    limit: int | None = None
    """test on this number of images only, equally many of each class: quicker, coarser; all images by default"""
    mean: tuple[float, ...] | None = None
    """of each channel, as in the network's training (pixels: 0 to 1); by default ImageNet's for colour, 0 for grey"""
    std: tuple[float, ...] | None = None
    """of each channel likewise; by default ImageNet's for colour images, 1 for grey ones"""
    image_size: int | None = None
    """pixels: resize and crop a folder's images to this; needed only if they differ in size"""
    batch_size: int = 128
    """images at a time in tests and calibration; no influence on the result beyond rounding"""
    timed_batch: int = 16
    """images in a call that is timed, for which multiply-adds are counted and the layers planned"""
    rounds: int = 21
    """turns of each network in the timing; odd, so that the median is one of them"""
    threads: int | None = None
    """torch's; by default as many as torch takes by itself"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """where all of it runs; auto takes a GPU if there is one"""
    epochs: int = 15
    """passes over the training images, where cnn4 has to be trained"""
    smoke: bool = False
    """at most 1 epoch, 60 test and 64 calibration images, coarse curves, 3 rounds: whether all of it runs"""
    seed: int = 0
    """of all chance: first weights, training, fits, the choice of images"""
    output: Path = Path("runs/compress")
    """folder for the compressed network, the reports and the trained network"""


NO_RESULT = ("output", "threads", "device", "batch_size", "rounds")
"""Settings that another run may have and still be the same one."""


def main(config: Config) -> Result:
    """Compress; returns what report.json holds. Where that is there already, nothing is done again.

    Raises:
        TnalgebraError: a setting, the data or the weights are not what they should be; the budget cannot be met; the
            output folder holds another compression.
    """
    if config.smoke:
        smaller: dict[str, Any] = {name: min(getattr(config, name) or most, most) for name, most in SMOKE.items()}
        smaller["calibration_images"] = min(config.calibration_images, SMOKE["calibration_images"])
        config = dataclasses.replace(config, **smaller)
    if config.parameters is None and config.multiply_adds is None:
        config = dataclasses.replace(config, parameters=0.5)
    device = ("cuda" if torch.cuda.is_available() else "cpu") if config.device == "auto" else config.device
    config = dataclasses.replace(config, device=device)
    print_settings(config)
    _check(config)
    train_first = trains_first(config)
    images = load_split(config, "test")
    if config.limit is not None:
        images = images.subset(min(config.limit, len(images)) if config.smoke else config.limit, seed=config.seed)
    config = dataclasses.replace(config, mean=images.mean, std=images.std)
    print(f"\n{len(images)} images of {len(images.classes)} classes, {images.channels} x ", end="")
    print(f"{images.pixels.shape[2]} x {images.pixels.shape[3]}, mean {config.mean}, std {config.std}", flush=True)
    model = build_model(config.model, classes=len(images.classes), channels=images.channels, seed=config.seed)
    if config.weights is not None:
        load_weights(model, config.weights)
    settings = {name: value for name, value in vars(config).items() if name not in NO_RESULT}
    settings |= {"weights_digest": tn.studies.digest_state(model), "images": images.fingerprint}
    known = _finished(config.output, settings)
    if known is not None:
        print(f"\n{(config.output / TEXT).read_text(encoding='utf-8')}\ndone before: {config.output}/")
        return known
    needed = train_first or config.calibration_images or config.recalibrate
    training = load_split(config, "train") if needed else None
    if train_first and training is not None:
        trained_cnn4(model, training=training, config=config)
    used = torch.get_num_threads()
    torch.set_num_threads(config.threads or used)
    try:
        return _compress(model, images, training, config=config, settings=settings)
    finally:
        torch.set_num_threads(used)


def _check(config: Config) -> None:
    """What can be known to be wrong before anything is loaded or trained."""
    if config.parameters is not None and config.multiply_adds is not None:
        raise tn.errors.RankError(tn.errors.explain("two budgets are given", fix="--parameters or --multiply-adds"))
    for name in ("parameters", "multiply_adds"):
        value = getattr(config, name)
        if value is not None and not 0 < value < 1:
            fact = f"a budget of {value:g} of the {name.replace('_', '-')}"
            raise tn.errors.RankError(tn.errors.explain(fact, fix="above 0, below 1"))
    least = {"rounds": 1, "timed_batch": 1, "calibration_images": 0, "epochs": 1, "threads": 1, "recalibrate_shift": 0}
    check_least(config, least, tn.errors.DataError)
    if not config.rewrite:
        raise tn.errors.RuleError(tn.errors.explain("no rewrite is given", fix="--rewrite tucker2"))
    for rewrite in config.rewrite:
        _check_rewrite(rewrite)
    if config.sequential and not config.calibration_images:
        fact = "fits to the original outputs need inputs"
        raise tn.errors.DataError(tn.errors.explain(fact, fix="--calibration-images 1024"))
    if config.device == "cuda" and not torch.cuda.is_available():
        raise tn.errors.StudyError(tn.errors.explain("the device is 'cuda', and torch finds none", fix="--device cpu"))
    missing = [package for package in ("onnx", "onnxscript") if config.onnx and find_spec(package) is None]
    if missing:
        fact = f"--onnx needs {' and '.join(missing)}"
        raise tn.errors.StudyError(tn.errors.explain(fact, fix=f"pip install {' '.join(missing)}"))


def _check_rewrite(rewrite: str) -> None:
    """Whether it is one of kernels of convolutions, or of matrices."""
    with suppress(tn.errors.TnalgebraError):
        tn.decompositions.read_rewrite(rewrite, tn.networks.KERNEL_LABELS[2])
        return
    tn.decompositions.read_rewrite(rewrite, tn.networks.KERNEL_LABELS[4])


def _finished(folder: Path, settings: dict[str, Any]) -> Result | None:
    """The result that the folder has; None if it has none.

    Raises:
        StudyError: it is another compression's, or cannot be read.
    """
    if folder.exists() and not folder.is_dir():
        raise tn.errors.StudyError(tn.errors.explain(f"{folder} is not a folder", fix="another --output"))
    known = tn.studies.read_config(folder / RESULT)
    if known is not None:
        tn.studies.compare_configs(folder, known.get("config", {}), settings)
        for name in (MODEL, TEXT, *([ONNX] if settings["onnx"] else [])):
            if not (folder / name).exists():
                raise tn.errors.StudyError(
                    tn.errors.explain(f"{folder} has {RESULT}, and no {name}", fix="another --output")
                )
    return known


def _compress(
    model: nn.Module,
    images: tn.model.Images,
    training: tn.model.Images | None,
    *,
    config: Config,
    settings: dict[str, Any],
) -> Result:
    """Compress, measure, write."""
    started = perf_counter()
    memory_format = torch.channels_last if config.channels_last else torch.contiguous_format
    model.to(config.device).to(memory_format=memory_format).eval()
    _check_outputs(model, images, config)
    tested: dict[str, Any] = {"batch_size": config.batch_size, "device": config.device}
    before = tn.studies.accuracy(model, images, **tested)
    print(f"\ntop-1 before: {100 * before:.2f} %", flush=True)
    dense = copy.deepcopy(model)
    calibration = None
    if training is not None and config.calibration_images:
        batches = unlabelled(training, config.calibration_images, config.seed).batches(**tested)
        calibration = [x.to(memory_format=memory_format) for x, _ in batches]
    kind = tn.ParameterBudget if config.multiply_adds is None else tn.MultiplyAddsBudget
    generator = torch.Generator().manual_seed(config.seed)
    example = torch.randn(config.timed_batch, images.channels, *images.pixels.shape[2:], generator=generator)
    example = example.to(config.device, memory_format=memory_format)
    compressing = perf_counter()
    layers = tn.nn.kernel_layers(model)
    print(f"compressing {len(layers)} layers ...", end=" ", flush=True)
    model, report = tn.convert(
        model,
        {**dict.fromkeys(tn.studies.globs_of(layers, config.skip)), "*": list(config.rewrite)},
        budget=kind(config.multiply_adds or config.parameters or 0.0),
        example=example,
        calibration=calibration,
        sequential=config.sequential,
        tune=config.tune,
        seed=config.seed,
        fractions=SMOKE_FRACTIONS if config.smoke else tn.model.FRACTIONS,
    )
    print(f"{perf_counter() - compressing:.0f} s", flush=True)
    if config.recalibrate and training is not None and tn.model.batch_norms(model):
        some = training.subset(min(RECALIBRATION_IMAGES, len(training)), seed=config.seed)
        shifted = tn.studies.shuffled_batches(some, max_shift=config.recalibrate_shift, **tested)
        tn.recalibrate_batch_norm(model, shifted)
    after = tn.studies.accuracy(model, images, not_finite="wrong", **tested)
    result: Result = {
        "model": config.model,
        "accuracy": {"before": before, "after": after},
        "images": len(images),
        "parameters": {"before": report.parameters, "after": report.parameters_after},
        "multiply_adds": {"before": report.multiply_adds, "after": report.multiply_adds_after, "batch": len(example)},
        "latency": _latency(dense, model, example, config),
        "layers": report.records(),
        "config": settings,
        "version": tn.__version__,
        "torch": torch.__version__,
        "seconds": perf_counter() - started,
    }
    text = summary(result, report)
    write(config.output / MODEL, partial(tn.save, model))
    if config.onnx:
        write(config.output / ONNX, partial(_export, model, example))
    write(config.output / TEXT, text)
    write(config.output / RESULT, json.dumps(result, indent=2))  # the last: it means that the others are there
    print(f"\n{text}\n\nnetwork and reports: {config.output}/")
    return result


def _check_outputs(model: nn.Module, images: tn.model.Images, config: Config) -> None:
    """Whether the network takes these images, and has a logit for each class."""
    x, _ = next(images.batches(1, device=config.device))
    try:
        with torch.no_grad():
            outputs = model(x).shape[1]
    except (RuntimeError, ValueError, TypeError, AttributeError, LookupError) as error:
        fact, network = "the network does not take these images", type(model).__name__
        raise tn.errors.StudyError(
            tn.errors.explain(fact, network=network, shape=tuple(x.shape), because=error)
        ) from error
    tn.model.check_classes(images, outputs)


def _latency(dense: nn.Module, model: nn.Module, x: Tensor, config: Config) -> dict[str, Any]:
    """Seconds of a forward pass in evaluation mode, medians; speed-ups over dense with 95 % intervals."""
    frozen = copy.deepcopy(model)
    for layer in frozen.modules():
        if isinstance(layer, tn.nn.KernelLayer):
            layer.freeze()
    formats = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
    own, other = list(formats)[:: -1 if config.channels_last else 1]

    @torch.no_grad()
    def run(network: nn.Module, inputs: Tensor, turn: int) -> Tensor:
        found: Tensor = network(inputs)
        return found

    networks = {
        "dense": (dense.eval(), x),
        f"dense, {other}": (
            copy.deepcopy(dense).to(memory_format=formats[other]),
            x.to(memory_format=formats[other]),
        ),
        "compressed": (model.eval(), x),
        "compressed, frozen": (frozen.eval(), x),
    }
    times = time_in_turns(
        {name: partial(run, *called) for name, called in networks.items()},
        rounds=config.rounds,
        seed=config.seed,
        device=config.device,
    )
    ratios = {name: ratio_of_medians(times["dense"], times[name]) for name in networks if name != "dense"}
    return {
        "batch": len(x),
        "device": device_name(config.device),
        "threads": torch.get_num_threads() if config.device == "cpu" else None,
        "rounds": config.rounds,
        "memory_format": own,
        "seconds": {name: median(seconds) for name, seconds in times.items()},
        "speed_up": {name: ratio._asdict() for name, ratio in ratios.items()},
    }


def summary(result: Result, report: tn.model.ConversionReport) -> str:
    """The table of the layers, and below it what the whole network was and is."""
    right, latency = result["accuracy"], result["latency"]
    percents = [f"{100 * right[when]:.2f} %" for when in ("before", "after")]
    points = 100 * (right["after"] - right["before"])
    rows = [["", "before", "after", ""]]
    rows.append(["top-1", *percents, f"{points:+.2f} points, {result['images']:,} test images"])
    of_what = {
        "parameters": "the whole network",
        "multiply_adds": f"convolutions and linear layers, batch {result['multiply_adds']['batch']}",
    }
    for name, what in of_what.items():
        old, new = result[name]["before"], result[name]["after"]
        kept = f"{100 * new / old:.1f} % kept, of {what}"
        rows.append([name.replace("_", "-"), f"{old:,}", f"{new:,}", kept])
    threads = {None: "", 1: ", 1 thread"}.get(latency["threads"], f", {latency['threads']} threads")
    lines = [
        *str(report).splitlines()[: -len(report.notes)],  # the notes' figures are below too
        "",
        *_aligned(rows),
        "",
        f"forward pass, batch {latency['batch']}, {latency['memory_format']}, {latency['device']}{threads}",
        f"(medians of {latency['rounds']} turns; speed-ups over dense, with 95 % intervals):",
    ]
    rows = []
    for name, value in latency["seconds"].items():
        ratio = latency["speed_up"].get(name)
        over = f"{ratio['value']:.2f} x  [{ratio['low']:.2f}, {ratio['high']:.2f}]" if ratio else ""
        rows.append([f"  {name}", f"{1e3 * value:.2f} ms", over])
    lines += _aligned(rows)
    if latency["speed_up"].get("dense, channels_last", {"low": 0})["low"] > 1:
        lines.append("The dense network is faster in channels_last: compress it for that by --channels-last.")
    return "\n".join(lines)


def _aligned(rows: list[list[str]]) -> list[str]:
    """The first and the last column to the left, those between to the right."""
    width = max(len(row[-1]) for row in rows)
    return aligned([[*row[:-1], row[-1].ljust(width)] for row in rows], ruled=False).splitlines()


def _export(model: nn.Module, example: Tensor, path: Path) -> None:
    x = torch.cat([example, example])  # of one image, the exporter takes the batch for a constant
    batch = torch.export.Dim("batch", min=1, max=2**16)
    settings: dict[str, Any] = {"dynamo": True, "external_data": False, "verbose": False}
    torch.onnx.export(model.eval(), (x,), path, dynamic_shapes=({0: batch},), **settings)


def run() -> None:
    """The command line."""
    run_command(Config, main, description=__doc__, interrupted="stopped: the same command begins again")


if __name__ == "__main__":
    run()
