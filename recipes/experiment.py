"""What recipes that train many networks share: their settings, data, rows, means over seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias, TypeVar

import torch
from torch import nn

import tnalgebra as tn
from models import MODELS, build_model
from recipes.training.classification import Classification, crop_and_flip
from recipes.training.history import History, read_history
from recipes.training.settings import Training
from recipes.training.task import Task
from recipes.training.train import train

if TYPE_CHECKING:
    pass

Row: TypeAlias = dict[str, Any]
"""A line of results.jsonl: an epoch of one training."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Settings of every training of a recipe."""

    # one line each: the command's --help breaks them where it must
    model: str = "cnn4"
    """cnn4, resnet20, resnet32, resnet44, resnet56, resnet50, resnet50_cifar (stem for 32x32 images), or a function of
    your own: package.module:function"""
    data: str = "digits"
    """digits (embedded), cifar10 or cifar100 (downloaded), or a folder with train/CLASS/* and test/CLASS/*"""
    skip: tuple[str, ...] = ("first",)
    """layers left alone: globs; first for the first convolution, which has few inputs; linear for linear layers; bare
    --skip skips none"""
    seeds: tuple[int, ...] = (0,)
    """a training for each: order of the images and augmentation; three tell a difference from chance"""
    epochs: int = 5
    """passes over the training data; the learning rate falls to 0 in so many"""
    batch_size: int = 64
    """the most examples in a step"""
    optimizer: Literal["sgd", "adamw"] = "adamw"
    """sgd has Nesterov's momentum; adamw minds less how a kernel's norm is spread over its cores"""
    learning_rate: float = 2e-3
    """the highest of all steps"""
    weight_decay: float = 1e-2
    """of sgd: added to the gradient; of adamw: decoupled, times the learning rate"""
    warmup: float = 0.0
    """epochs, also parts of one, in which the learning rate rises"""
    label_smoothing: float = 0.0
    """the part of each target that is spread evenly over all classes"""
    clip: float | None = None
    """the largest norm of all gradients together; none by default"""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """bf16 or fp16 (GPUs only): mixed with float32 in training, which GPUs and CPUs with AMX do two or three times as
    fast; tests are in float32"""
    shift: int = 1
    """augmentation: pixels by which training images are moved at most; 4 is usual for CIFAR"""
    flip: bool = False
    """augmentation: mirror half of the training images; not for digits"""
    limit: int | None = None
    """so many examples only, in training and in test each: quicker, coarser; all by default"""
    mean: tuple[float, ...] | None = None
    """of each channel, as in the network's training (pixels: 0 to 1); by default ImageNet's for colour, 0 for grey"""
    std: tuple[float, ...] | None = None
    """of each channel likewise; by default ImageNet's for colour images, 1 for grey ones"""
    image_size: int | None = None
    """pixels: resize and crop a folder's images to this; needed only if they differ in size"""
    workers: int = 0
    """processes that prepare batches; no influence on the result"""
    checkpoint_every: int | None = None
    """steps between checkpoints beside those after each epoch; no influence on the result"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """where the networks are trained and tested; auto takes a GPU if there is one"""
    seed: int = 0
    """of all other chance: first weights, fits, the choice of examples under --limit"""
    smoke: bool = False
    """few examples, epochs and trainings: whether all of it runs; its numbers mean nothing"""
    output: Path = Path("runs/training")
    """folder for the rows (results.jsonl), the figures (PNG and SVG) and a folder for each training"""

    def training(self, seed: int, **other: Any) -> Training:
        """Settings of one training, as the library has them."""
        names = {field.name for field in dataclasses.fields(Training)} & {f.name for f in dataclasses.fields(self)}
        return Training(**{**{name: getattr(self, name) for name in names}, "seed": seed, **other})


S = TypeVar("S", bound=Settings)

NO_RESULT = ("output", "seeds", "workers", "checkpoint_every", "device", "smoke")
"""Settings that another run may have and still add to the same folder."""


def printed(config: S) -> S:
    """The config with what follows from the machine, printed.

    Raises:
        StudyError: the device is a GPU, and there is none; no seed is given.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise tn.errors.StudyError(tn.errors.explain("the device is 'cuda', and torch finds none", fix="--device cpu"))
    device: Literal["cpu", "cuda"] = "cuda" if config.device != "cpu" and torch.cuda.is_available() else "cpu"
    config = dataclasses.replace(config, device=device, seeds=tuple(dict.fromkeys(config.seeds)))
    for field in dataclasses.fields(config):
        print(f"{field.name:<20}{getattr(config, field.name)}")
    if not config.seeds:
        raise tn.errors.StudyError(tn.errors.explain("no seed is given", fix="--seeds 0 1 2"))
    return config


def load_both(config: S) -> tuple[S, tn.Images, tn.Images]:
    """Images for training and test, as many as the config wants; and the config with their mean and std.

    Raises:
        DataError: they cannot be read, a limit is none, a set is smaller than the limit.
    """
    found = []
    for split in ("train", "test"):
        images = tn.load_images(config.data, "train" if split == "train" else "test", image_size=config.image_size)
        if config.limit is not None:
            images = images.subset(
                min(config.limit, len(images)) if config.limit > 0 else config.limit, seed=config.seed
            )
        found.append(images)
    training, test = found
    usual_mean, usual_std = tn.model.default_normalisation(test)
    config = dataclasses.replace(config, mean=config.mean or usual_mean, std=config.std or usual_std)
    print(f"\n{len(training)} + {len(test)} images of {len(test.classes)} classes, {test.channels} x ", end="")
    print(f"{test.pixels.shape[2]} x {test.pixels.shape[3]}, mean {config.mean}, std {config.std}", flush=True)
    return config, training, test


def classification(config: Settings, training: tn.Images, test: tn.Images, teacher: nn.Module | None = None) -> Task:
    """The task of these images, with the augmentation that the config wishes."""
    assert config.mean is not None
    assert config.std is not None
    if config.shift < 0:
        raise tn.errors.DataError(tn.errors.explain(f"shift is {config.shift}", fix="a number of pixels, 0 for none"))
    height, width = test.pixels.shape[2:]
    moved = (
        crop_and_flip((height, width), padding=config.shift, flip=config.flip) if config.shift or config.flip else None
    )
    return Classification(training, test, config.mean, config.std, augmentation=moved, teacher=teacher)


def fresh_model(name: str, images: tn.Images, *, seed: int) -> nn.Module:
    """The network of this name for these images, its weights drawn from the seed."""
    return build_model(name, classes=len(images.classes), channels=images.channels, seed=seed)


def is_ours(config: Settings) -> bool:
    """Whether the network is one of `models`, which come without weights."""
    return config.model in MODELS


# Trainings ------------------------------------------------------------------------------------------------------


class Epoch(NamedTuple):
    """What a row says of one epoch of a training."""

    epoch: int
    score: float
    training_loss: float
    learning_rate: float
    seconds: float


def trained(model: nn.Module, task: Task, settings: Training, folder: Path, config: Settings) -> History:
    """Train a network in place where the config says. Raises what `tnalgebra.trainer.train` does."""
    return train(
        model,
        task,
        settings,
        folder,
        device="cpu" if config.device == "cpu" else "auto",
        workers=config.workers,
    )


def train_and_note(
    model: nn.Module, task: Task, settings: Training, folder: Path, config: Settings, note: Callable[[Epoch], None]
) -> History:
    """Train a network in place, and note its epochs: also of a training that stops before its end.

    Epochs that an earlier process finished are noted too; `note` has to know those it has.

    Raises:
        DataError, StudyError, CheckpointError: see `tnalgebra.trainer.train`.
    """
    before = _rows_there(folder)
    rows = before
    try:
        history = trained(model, task, settings, folder, config)
        rows = list(history.rows)
    except BaseException:
        there = _rows_there(folder)
        rows = there if len(there) > len(before) else []  # or the folder may be another training's
        raise
    finally:
        for row in rows:
            note(Epoch(row.epoch, row.test_score, row.training_loss, row.learning_rate, round(row.seconds, 3)))
    return history


def _rows_there(folder: Path) -> list[Any]:
    with suppress(tn.errors.StudyError):
        return list(read_history(folder).rows)
    return []


def last_epoch(rows: Iterable[Row]) -> int:
    """Epochs of a training that is finished; 0 of no rows."""
    return max((int(row["epochs"] if "epochs" in row else row["epoch"]) for row in rows), default=0)


def folder_name(*parts: object) -> str:
    """A folder's name that tells trainings apart: "out kh | in kw @ 0.25", "dense" -> "out_kh--in_kw@0.25,dense"."""
    texts = [" ".join(str(part).split()).replace(" | ", "--").replace(" @ ", "@") for part in parts]
    return ",".join("".join(c if c.isalnum() or c in "-@.=+" else "_" for c in text) for text in texts)


class Failures:
    """Trainings that diverged, while the others go on."""

    def __init__(self) -> None:
        self.found: dict[str, tn.errors.DivergedError] = {}

    @contextmanager
    def noted(self, name: str) -> Iterator[None]:
        """Take a divergence down under this name, and print it."""
        try:
            yield
        except tn.errors.DivergedError as error:
            self.found[name] = error
            print(f"error: {error}", flush=True)

    def raised(self) -> None:
        """Raises DivergedError if there was one."""
        if self.found:
            first = next(iter(self.found.values()))
            fact = f"{len(self.found)} of the trainings diverged, and have no result: {'; '.join(self.found)}"
            raise tn.errors.DivergedError(tn.errors.explain(fact, first=first)) from first


def write_network(model: nn.Module, path: Path) -> None:
    """As `tnalgebra.save`, its folder made where there is none.

    Raises:
        StudyError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tn.save(model, path)
    except OSError as error:
        raise tn.errors.StudyError(
            tn.errors.explain(f"{path} cannot be written", because=error, fix="another --output")
        ) from error


# Means over seeds -----------------------------------------------------------------------------------------------


class Spread(NamedTuple):
    """Mean, least and largest of several values, and how many."""

    mean: float
    low: float
    high: float
    of: int

    @classmethod
    def over(cls, values: Iterable[float]) -> Spread:
        """Of at least one value."""
        found = list(values)
        low, high = min(found), max(found)
        return cls(min(max(fmean(found), low), high), low, high, len(found))  # rounding must not put it outside

    def range_text(self, form: str, *, times: float = 1.0) -> str:
        """Least and largest; nothing of a single value."""
        return f"{times * self.low:{form}}-{times * self.high:{form}}" if self.of > 1 else ""
