"""What recipes that train several networks share: settings, data, a loop over trainings, means over seeds."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, TypeAlias, TypeVar

import tyro
from torch import nn

import tnalgebra as tn
from recipes.command import smoke_folder, smoke_sizes
from recipes.reporting import print_settings
from recipes.training import Classification, Task, Training, crop_and_flip, train

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row: TypeAlias = dict[str, Any]
"""A line of results.jsonl: an epoch of one training."""


@dataclass(frozen=True, kw_only=True)
class Settings(tn.command.ImageSettings):
    """Settings of every training of a recipe; what is printed first is what is used."""

    model: str = "cnn4"
    """cnn4, resnet20 to resnet56, resnet50, for 32x32 images resnet50_cifar, the narrow resnet50_cifar16, or
    package.module:function"""
    epochs: int = 15
    """passes over the training data; the learning rate falls to 0 in that time"""
    batch_size: int = 64
    """the most examples in a step, of all processes together"""
    optimizer: Literal["sgd", "adamw"] = "adamw"
    """sgd has Nesterov's momentum; adamw depends less on how a kernel's norm is spread over its cores"""
    learning_rate: float = 5e-3
    """the highest learning rate of all steps"""
    weight_decay: float = 1e-2
    """of sgd: added to the gradient; of adamw: decoupled, times the learning rate"""
    warmup: float = 1.0
    """epochs, also parts of one, in which the learning rate rises; at most a fifth of all"""
    label_smoothing: float = 0.0
    """the part of each target that is spread evenly over all classes"""
    clip: float | None = None
    """the largest norm of all gradients together; by default gradients are not clipped"""
    precision: Literal["no", "bf16", "fp16"] = "no"
    """mixed precision of the steps: fp16 needs a GPU; bf16 doubles the speed on GPUs and on CPUs with AMX"""
    shift: Annotated[int, tyro.conf.arg(aliases=["--crop"])] = 1
    """augmentation: the most pixels by which training images are moved; 4 is usual for CIFAR"""
    flip: bool = False
    """augmentation: mirror half of the training images; not for digits"""
    limit: int | None = None
    """the most examples, in training and in test each, balanced by class; by default all of them"""
    workers: int = 0
    """processes that prepare batches; the result does not depend on it"""
    checkpoint_every: int | None = None
    """steps between checkpoints, beside those after each epoch; the result does not depend on it"""
    smoke: bool = False
    """few examples, epochs and trainings, to see that everything works; the numbers mean nothing"""
    output: Path = Path("runs/training")
    """folder for rows, figures, networks and checkpoints"""

    def training(self, **other: Any) -> Training:
        """The settings that `train` takes."""
        names = {field.name for field in dataclasses.fields(Training)} & {*vars(self)}
        return Training(**{**{name: getattr(self, name) for name in names}, **other})

    def shared(self, *without: str) -> dict[str, Any]:
        """The settings that all rows of a folder share: without those named, and those that do not change a row."""
        other = ("output", "seeds", "workers", "checkpoint_every", "device", "smoke", *without)
        return {name: value for name, value in vars(self).items() if name not in other}


CIFAR: dict[str, Any] = {"data": "cifar10", "batch_size": 128, "shift": 4, "flip": True}
"""The augmentation that CIFAR networks are usually trained with (He et al., arXiv 1512.03385, section 4.2)."""

S = TypeVar("S", bound=Settings)


def begin(config: S, most: Mapping[str, int], usual: Iterable[Settings]) -> S:
    """Print and return the config that is used: with the device of this machine, and smaller for a smoke run.

    Args:
        most: the largest numbers, and the greatest lengths of tuples, in a smoke run.
        usual: configs whose output folders are those of full runs, see `smoke_folder`.

    Raises:
        StudyError: the device is a GPU, and torch does not find one.
    """
    if config.smoke:
        output = smoke_folder(config.output, (preset.output for preset in usual))
        config = dataclasses.replace(config, output=output, **smoke_sizes(config, most))
    warmup = min(config.warmup, config.epochs / 5)
    config = dataclasses.replace(config, device=config.chosen_device(), warmup=warmup)
    print_settings(config)
    return config


def load_both(config: S, *, validation: int = 0) -> tuple[S, tn.model.Images, tn.model.Images]:
    """The config with the mean and std of the images; training images and test images, at most as many as its limit.

    Args:
        validation: training images that are kept out of the training, and take the place of the test images.

    Raises:
        DataError: the images cannot be read, the limit is not positive, or no image is left for the training.
    """
    training = config.images("train")
    if validation >= len(training):
        fact = f"{validation} of {len(training)} training images are for the validation, and none for the training"
        raise tn.errors.DataError(fact, fix=f"--validation {len(training) // 10}")
    if validation:
        test, training = training.split(validation, seed=config.seed)
    else:
        test = config.images("test")
    if config.limit is not None:
        training = training.subset(min(config.limit, len(training)), seed=config.seed)
    purpose = "validation" if validation else "test"
    print(f"\n{len(training)} training images, and for the {purpose} {tn.command.describe_images(test)}", flush=True)
    return dataclasses.replace(config, mean=test.mean, std=test.std), training, test


def classification(
    config: Settings, training: tn.model.Images, test: tn.model.Images, *, teacher: nn.Module | None = None
) -> Classification:
    """The task of these images, with the augmentation of the config."""
    height, width = training.pixels.shape[2:]
    augmentation = crop_and_flip((height, width), padding=config.shift, flip=config.flip)
    return Classification(training, test, augmentation, teacher)


# Trainings ------------------------------------------------------------------------------------------------------


class Trainings:
    """Trainings whose epochs become rows of a folder. Those that it has already are not done again.

    Args:
        fields: the fields of a row that distinguish trainings, the seed last.
        before: the accuracy with which rows are compared, if any.
    """

    def __init__(
        self,
        config: Settings,
        task: Task,
        store: tn.studies.Store,
        *,
        fields: Sequence[str],
        before: float | None = None,
    ) -> None:
        self.config, self.task, self.store, self.before = config, task, store, before
        self.rows = {tuple(row[field] for field in (*fields, "epoch")): row for row in store.rows}

    def run(self, todo: Sequence[Mapping[str, Any]], start: Callable[..., tuple[nn.Module, Mapping[str, Any]]]) -> None:
        """Do the trainings that are not done yet. If one diverges, the others are done all the same.

        Args:
            todo: the distinguishing fields of each training, by name.
            start: a function of those fields; it returns the network before its training, and further fields of its
                rows.

        Raises:
            StudyError: no training is asked for, or see `train`.
            DivergedError: some of the trainings diverged.
        """
        if not todo:
            raise tn.errors.StudyError("no training is asked for", fix="--seeds 0 1 2")
        diverged: dict[str, tn.errors.DivergedError] = {}
        for number, fields in enumerate(todo, 1):
            if (*fields.values(), self.config.epochs) in self.rows:
                continue
            *parts, seed = fields.values()
            parts.append(f"seed {seed}")
            print(f"\n{number}/{len(todo)}  {', '.join(parts)}", flush=True)
            try:
                self._train(fields, start, self.config.output / folder_name(*parts))
            except tn.errors.DivergedError as error:
                diverged[", ".join(parts)] = error
                print(f"error: {error}", flush=True)
        if diverged:
            first = next(iter(diverged.values()))
            fact = f"{len(diverged)} of the trainings diverged, and have no result: {'; '.join(diverged)}"
            raise tn.errors.DivergedError(fact, first=first) from first

    def _train(self, fields: Mapping[str, Any], start: Callable[..., Any], folder: Path) -> None:
        model, facts = start(**fields)
        history = train(
            model,
            self.task,
            self.config.training(seed=fields["seed"]),
            folder,
            device=self.config.device,
            workers=self.config.workers,
            note=lambda epoch: self.note(fields, facts, **epoch._asdict()),
        )
        print(f"{self.task.score_name}: {history.rows[-1].test_score:.4f}", flush=True)

    def note(
        self,
        fields: Mapping[str, Any],
        facts: Mapping[str, Any],
        *,
        epoch: int,
        test_score: float,
        training_loss: float | None = None,
        learning_rate: float | None = None,
        seconds: float = 0.0,
        **_: Any,
    ) -> None:
        """Append the row of an epoch, unless the folder has it. Only the first row of a training holds its layers."""
        place = tuple(fields.values())
        if (*place, epoch) in self.rows:
            return
        accuracy = test_score if self.task.score_name == "accuracy" else None
        row: Row = {
            **tn.studies.BASELINE.fields,
            "model": self.config.model,
            **fields,
            "epoch": epoch,
            "epochs": self.config.epochs,
            "score": test_score,
            "score_name": self.task.score_name,
            "accuracy": accuracy,
            "accuracy_change": None if accuracy is None or self.before is None else accuracy - self.before,
            "images": self.task.test_size,
            **facts,
            "layers": {} if (*place, epoch - 1) in self.rows else facts["layers"],
            "training_loss": training_loss,
            "learning_rate": learning_rate,
            "config": tn.studies.config_hash(self.store.config),
            **tn.studies.made_with(self.config.device),
            "seconds": round(seconds, 3),
        }
        self.store.append(row)
        self.rows[*place, epoch] = row


def count(report: tn.model.ConversionReport, examples: int) -> dict[str, Any]:
    """The fields of rows that hold a network's size: its parameters, and its multiply-adds for one example."""
    assert report.multiply_adds is not None
    assert report.multiply_adds_after is not None
    return {
        "parameters": report.parameters_after,
        "parameters_kept": report.parameters_after / report.parameters,
        "multiply_adds": report.multiply_adds_after / examples,
        "multiply_adds_kept": report.multiply_adds_after / report.multiply_adds,
    }


def last_epoch(rows: Iterable[Row]) -> int:
    """The number of epochs of a training that is finished; 0 if there is not a row."""
    return max((int(row["epochs"] if "epochs" in row else row["epoch"]) for row in rows), default=0)


def folder_name(*parts: object) -> str:
    """A folder's name that distinguishes trainings: "out | in @ keep 0.5", "dense" -> "out--in@keep_0.5,dense"."""
    texts = [" ".join(str(part).split()).replace(" | ", "--").replace(" @ ", "@") for part in parts]
    return ",".join("".join(c if c.isalnum() or c in "-@.=+" else "_" for c in text) for text in texts)


# Means over seeds -----------------------------------------------------------------------------------------------


class Spread(NamedTuple):
    """The mean, the least and the largest of several values, and their number."""

    mean: float
    low: float
    high: float
    of: int

    @classmethod
    def over(cls, values: Iterable[float]) -> Spread:
        """The spread of at least one value."""
        several = list(values)
        low, high = min(several), max(several)
        return cls(min(max(fmean(several), low), high), low, high, len(several))  # rounding must not put it outside

    def range_text(self, form: str, *, times: float = 1.0) -> str:
        """The least and the largest value; an empty text for a single one."""
        return f"{times * self.low:{form}}-{times * self.high:{form}}" if self.of > 1 else ""


def draw_spreads(panel: Axes, places: Sequence[float], spreads: Sequence[Spread], **style: Any) -> None:
    """A line through means, with whiskers from the least to the largest value where there are several."""
    means = [spread.mean for spread in spreads]
    reach = [[spread.mean - spread.low for spread in spreads], [spread.high - spread.mean for spread in spreads]]
    yerr = reach if any(spread.of > 1 for spread in spreads) else None
    panel.errorbar(places, means, yerr=yerr, capsize=2, **style)


def name_seeds(counts: Iterable[int]) -> str:
    """A text for titles that says how many seeds means are taken over; empty if it is one seed each."""
    ordered = sorted(set(counts))
    several = " to ".join(map(str, dict.fromkeys((ordered[0], ordered[-1]))))
    return f"; means and ranges of {several} seeds" if ordered[-1] > 1 else ""
