"""Train a network: dense, in decomposed form from the start, or one that was compressed before.

    python -m recipes.train                                # embedded digits, a small CNN: a minute
    python -m recipes.train --model resnet20 --data DIR    # CIFAR's usual settings: 200 epochs
    python -m recipes.train --model resnet20 --data DIR --rewrite tucker2 --parameters 0.5
    python -m recipes.train --model resnet20 --data DIR --load runs/compress/model.safetensors \\
        --teacher W.pth --epochs 5 --learning-rate 0.01
    accelerate launch -m recipes.train --model resnet50 --data DIR --precision bf16

What is trained:
- The network as it is built, or with --weights.
- With --rewrite in decomposed form: fitted to --weights, all layers under one
  budget; without weights from random cores, each layer under the same budget.
- With --load a network that recipes.compress has left.
- With --teacher it also learns the answers of a trained network (distillation).

What is left in OUTPUT:
- model.safetensors: tnalgebra.load("model.safetensors", into=model) puts it into a
  network as it was built.
- history.csv, a row an epoch, and the same for TensorBoard in tensorboard/;
  history.png and .svg, loss and accuracy; report.json, the settings and the rows.
- checkpoints/: the same command goes on after the last one, and ends with the
  numbers of a training that was never stopped.
- Where all this is there already it is shown again; other settings are refused.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any, Literal

import torch

import tnalgebra as tn
from recipes.command import run_command
from recipes.experiment import fresh_model, write_network
from recipes.networks import network, teacher
from recipes.reporting import write_figure
from recipes.training.classification import Classification, crop_and_flip
from recipes.training.history import History
from recipes.training.settings import Training
from recipes.training.task import state_digest
from recipes.training.train import train

MODEL, REPORT, FIGURE = "model.safetensors", "report.json", "history"


@dataclass(frozen=True)
class Preset:
    """Settings that have a usual value for some kind of images."""

    training: Training
    crop: int
    flip: bool


PRESETS = {
    "digits": Preset(
        Training(epochs=15, batch_size=64, optimizer="adamw", learning_rate=5e-3, weight_decay=1e-2, warmup=1.0),
        crop=1,
        flip=False,
    ),
    # He et al. (arXiv 1512.03385), section 4.2, with the cosine in place of steps
    "cifar": Preset(Training(epochs=200), crop=4, flip=True),
}


@dataclass(frozen=True)
class Config:
    """Settings of the training; what is printed first is what is used."""

    # one line each: the command's --help breaks them where it must
    model: str = "cnn4"
    """cnn4, resnet20, resnet32, resnet44, resnet56, resnet50, resnet50_cifar (stem for 32x32 images), or a function of
    your own: package.module:function"""
    weights: str | None = None
    """a file of weights to start from, or torchvision:NAME; by default random ones"""
    load: Path | None = None
    """a network of recipes.compress, or of tnalgebra.save, to start from"""
    data: str = "digits"
    """digits (embedded), cifar10 or cifar100 (downloaded), or a folder with train/CLASS/* and test/CLASS/*"""
    rewrite: tuple[str, ...] = ()
    """train in decomposed form: names (print(tnalgebra.decompositions.rules()) lists them), cuts, rules in the
    notation, each in quotes; with --weights several may be offered, of which each layer takes the best"""
    parameters: float | None = None
    """of --rewrite: part of the parameters that is kept at most, in (0, 1): of the network with --weights, else of
    each layer; by default 0.5"""
    skip: tuple[str, ...] = ("first",)
    """of --rewrite: layers that stay dense: globs; first for the first convolution; linear for linear layers; bare
    --skip skips none"""
    teacher: str | None = None
    """weights of a trained network, whose answers are learnt besides the labels"""
    teacher_model: str | None = None
    """what network the teacher is; by default that of --model"""
    preset: Literal["auto", "digits", "cifar"] = "auto"
    """what settings have by default; auto: digits for digits, else cifar"""
    epochs: int | None = None
    """passes over the training images; digits 15, cifar 200"""
    batch_size: int | None = None
    """images in a step, of all processes together; digits 64, cifar 128"""
    optimizer: Literal["sgd", "adamw"] | None = None
    """sgd has Nesterov's momentum; digits adamw, cifar sgd"""
    learning_rate: float | None = None
    """the highest; it falls to 0 by half a cosine; digits 0.005, cifar 0.1"""
    momentum: float | None = None
    """of sgd; 0.9"""
    weight_decay: float | None = None
    """on weights and cores, not on biases and normalisations; digits 0.01, cifar 0.0001"""
    warmup: float | None = None
    """epochs, or parts of one, in which the learning rate rises; digits 1 (a fifth of fewer epochs), cifar 0"""
    label_smoothing: float | None = None
    """part of each label that is spread over all classes; 0"""
    distillation: float | None = None
    """weight of the teacher's answers, 0 to 1; 0.5 if there is a teacher"""
    temperature: float | None = None
    """by which logits are divided for the teacher's part; 4"""
    clip: float | None = None
    """largest norm of all gradients together; none by default"""
    crop: int | None = None
    """pixels of a black border, out of which the images are cut at random; digits 1, cifar 4"""
    flip: bool | None = None
    """mirror half of the images; digits no, cifar yes"""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """of the arithmetic, mixed with float32; fp16 needs a GPU"""
    mean: tuple[float, ...] | None = None
    """of each channel (pixels: 0 to 1); by default ImageNet's for colour, 0 for grey"""
    std: tuple[float, ...] | None = None
    """of each channel likewise; by default ImageNet's for colour images, 1 for grey ones"""
    image_size: int | None = None
    """pixels: resize and crop a folder's images to this; needed only if they differ in size"""
    limit: int | None = None
    """train and test on at most so many images each, equally many of each class; all by default"""
    smoke: bool = False
    """at most 1 epoch of 64 images, in batches of 16: whether all of it runs"""
    seed: int = 0
    """of all chance: first weights, fits, order, augmentation, dropout, the choice of images"""
    checkpoint_every: int | None = None
    """steps; besides the checkpoint after each epoch"""
    workers: int = 0
    """processes that prepare images; for GPUs; 0: none besides the one that trains"""
    threads: int | None = None
    """torch's; by default as many as torch takes by itself"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto takes a GPU if there is one, or what accelerate launch says"""
    output: Path = Path("runs/train")
    """folder for the network, its history and checkpoints"""


NO_RESULT = ("output", "workers", "threads", "device", "checkpoint_every", "preset")
"""Settings that another run may have and still be the same one."""


def main(config: Config) -> dict[str, Any]:
    """Train, or go on; returns what report.json holds. Where that is there already, nothing is done again.

    Raises:
        TnalgebraError: a setting, the data or the weights are not what they should be; the training diverges; the
            output folder holds another training.
    """
    first = os.environ.get("RANK", "0") == "0"  # of the processes that accelerate launch has started
    config = resolved(config)
    if first:
        for field in dataclasses.fields(config):
            print(f"{field.name:<20}{getattr(config, field.name)}")
    _check(config)
    images = {split: _images(config, split) for split in ("train", "test")}
    usual_mean, usual_std = tn.model.default_normalisation(images["train"])
    config = dataclasses.replace(config, mean=config.mean or usual_mean, std=config.std or usual_std)
    settings = _settings(config, images)
    there = _finished(config.output, settings)
    if there is not None:
        if first:
            print(f"\n{summary(there)}\n\ndone before: {config.output}/")
        return there
    used = torch.get_num_threads()
    torch.set_num_threads(config.threads or used)
    try:
        return _trained(config, images, settings, first=first)
    finally:
        torch.set_num_threads(used)


def resolved(config: Config) -> Config:
    """The config with what is left open filled in.

    Raises:
        DataError: a setting of the training is not what it should be.
    """
    name = ("digits" if config.data == "digits" else "cifar") if config.preset == "auto" else config.preset
    preset = PRESETS[name]
    usual = {**vars(preset.training), "crop": preset.crop, "flip": preset.flip}
    usual["distillation"] = 0.5 if config.teacher is not None else 0.0
    if config.rewrite:
        usual["parameters"] = 0.5
    if config.smoke:
        limits = {"epochs": 1, "batch_size": 16, "limit": 64}
        smaller: dict[str, Any] = {}
        for key, most in limits.items():
            given = getattr(config, key)
            smaller[key] = most if given is None else min(given, most)
        config = dataclasses.replace(config, **smaller)
    if config.epochs is not None:  # a usual warm-up must not be all of a short training
        usual["warmup"] = min(usual["warmup"], config.epochs / 5)
    filled = {key: value for key, value in usual.items() if key in vars(config) and getattr(config, key) is None}
    config = dataclasses.replace(config, preset=name, **filled)
    training(config)
    return config


def training(config: Config) -> Training:
    """The settings of the library's `train` in a resolved config."""
    names = [field.name for field in dataclasses.fields(Training) if hasattr(config, field.name)]
    return Training(**{name: getattr(config, name) for name in names})


def _check(config: Config) -> None:
    """What can be known to be wrong before anything is loaded."""
    if config.load is not None and (config.weights is not None or config.rewrite):
        other = "--weights" if config.weights is not None else "--rewrite"
        raise tn.errors.DataError(
            tn.errors.explain(f"--load is a whole network, and {other} another start", fix="one of the two")
        )
    if config.parameters is not None and not 0 < config.parameters < 1:
        raise tn.errors.RankError(
            tn.errors.explain(f"a budget of {config.parameters:g} of the parameters", fix="above 0, below 1")
        )
    if config.parameters is not None and not config.rewrite:
        raise tn.errors.RankError(tn.errors.explain("a budget of parameters and no --rewrite", fix="--rewrite tucker2"))
    if config.distillation and config.teacher is None:
        fact = f"--distillation {config.distillation:g} has nobody to learn from"
        raise tn.errors.DataError(tn.errors.explain(fact, fix="--teacher FILE, or leave it out"))
    if config.teacher_model is not None and config.teacher is None:
        raise tn.errors.DataError(tn.errors.explain("--teacher-model has no weights", fix="--teacher FILE"))
    for name, least in {"limit": 1, "crop": 0, "workers": 0, "threads": 1}.items():
        value = getattr(config, name)
        if value is not None and value < least:
            raise tn.errors.DataError(tn.errors.explain(f"{name} is {value}", fix=f"at least {least}"))


def _images(config: Config, split: Literal["train", "test"]) -> tn.Images:
    images = tn.load_images(config.data, split, image_size=config.image_size)
    return images if config.limit is None else images.subset(min(config.limit, len(images)), seed=config.seed)


def _settings(config: Config, images: dict[str, tn.Images]) -> dict[str, Any]:
    """What the result depends on, as JSON has it."""
    fields = {name: value for name, value in vars(config).items() if name not in NO_RESULT}
    files = {name: _digest(getattr(config, name)) for name in ("weights", "load", "teacher")}
    digests = {f"{name}_digest": digest for name, digest in files.items() if digest is not None}
    fresh = {
        "network_digest": state_digest(fresh_model(config.model, images["train"], seed=config.seed))
    }  # a file of one's own may change
    prints = {f"{split}_images": one.fingerprint for split, one in images.items()}
    return dict(json.loads(json.dumps({**fields, **digests, **fresh, **prints}, default=str)))


def _digest(file: str | Path | None) -> str | None:
    if file is None or not Path(file).is_file():
        return None
    with Path(file).open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _finished(folder: Path, settings: dict[str, Any]) -> dict[str, Any] | None:
    """The report that is there; None if there is none.

    Raises:
        StudyError: it is another training's, or cannot be read.
    """
    path = folder / REPORT
    if folder.exists() and not folder.is_dir():
        raise tn.errors.StudyError(tn.errors.explain(f"{folder} is no folder", fix="another --output"))
    if not path.exists():
        return None
    try:
        there: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        known = there["config"]
        odd = [key for key in {**settings, **known} if known.get(key) != settings.get(key)]
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise tn.errors.StudyError(
            tn.errors.explain(f"{path} is no report", because=error, fix="another --output")
        ) from error
    if odd:
        differences = "\n".join(f"{key}: {known.get(key)} there, {settings.get(key)} here" for key in odd)
        fix = "another --output, or the same settings"
        raise tn.errors.StudyError(
            tn.errors.explain(f"{folder} holds another training", differences=differences, fix=fix)
        )
    if not (folder / MODEL).exists():
        raise tn.errors.StudyError(tn.errors.explain(f"{folder} has {REPORT}, and no {MODEL}", fix="another --output"))
    return there


def _trained(config: Config, images: dict[str, tn.Images], settings: dict[str, Any], *, first: bool) -> dict[str, Any]:
    """Build, train, write."""
    started = perf_counter()
    some = images["train"]
    model = network(config, settings, some)
    assert config.mean is not None
    assert config.std is not None
    assert config.crop is not None
    assert config.flip is not None
    augmentation = None
    if config.crop or config.flip:
        height, width = some.pixels.shape[2:]
        augmentation = crop_and_flip((height, width), padding=config.crop, flip=config.flip)
    taught = None if config.teacher is None else teacher(config, some)
    task = Classification(some, images["test"], config.mean, config.std, augmentation, taught)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if first:
        print(f"\ntraining {config.model}, {parameters:,} parameters, on {len(some)} images", flush=True)
    history = train(
        model, task, training(config), config.output, device=config.device, workers=config.workers, progress=True
    )
    report: dict[str, Any] = {
        "model": config.model,
        "parameters": parameters,
        "accuracy": history.rows[-1].test_score,
        "images": len(images["test"]),
        "rows": [row._asdict() for row in history.rows],
        "config": settings,
        "version": tn.__version__,
        "torch": torch.__version__,
        "seconds": perf_counter() - started,
    }
    if first:
        _write(model, history, report, config.output)
        print(f"\n{summary(report)}\n\nnetwork, history and figure: {config.output}/")
    return report


def summary(report: dict[str, Any]) -> str:
    """The last epochs, and what came of it."""
    rows = report["rows"]
    lines = ["epoch  learning rate  training loss  accuracy %  seconds"]
    lines += [
        f"{row['epoch']:>5}{row['learning_rate']:>15.3g}{row['training_loss']:>15.4f}"
        f"{100 * row['test_score']:>12.2f}{row['seconds']:>9.1f}"
        for row in rows[-10:]
    ]
    lines += ["", f"{report['model']}, {report['parameters']:,} parameters: {100 * report['accuracy']:.2f} % "]
    lines[-1] += f"of {report['images']} test images right after {len(rows)} epoch(s)"
    return "\n".join(lines)


def _write(model: torch.nn.Module, history: History, report: dict[str, Any], folder: Path) -> None:
    """Each file whole or not at all; report.json comes last, and says that all are there."""
    write_network(model, folder / MODEL)
    write_figure(history.plot(), folder / FIGURE)
    try:
        tn.studies.write_text(folder / REPORT, json.dumps(report, indent=2) + "\n")
    except OSError as error:
        raise tn.errors.StudyError(
            tn.errors.explain(f"{folder} cannot be written", because=error, fix="another --output")
        ) from error


def run() -> None:
    """The command line."""
    try:
        run_command(Config, main, description=__doc__, interrupted="stopped: the same command goes on from here")
    finally:
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()  # or a process may abort as it ends


if __name__ == "__main__":
    run()
