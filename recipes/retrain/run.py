"""Does a truncated network recover, if it is trained on for a few epochs?

    python -m recipes.retrain --smoke            # embedded digits, a small CNN: seconds
    python -m recipes.retrain                    # the same in full: half a minute
    python -m recipes.retrain --preset resnet20-cifar10 --weights W.pth --data DIR
    python -m recipes.retrain --preset cnn4-cifar10 --data DIR --seeds 0 1 2
    python -m recipes.retrain --preset resnet20-cifar10 --weights W.pth --data DIR \\
        --truncations "tucker2 or out kh | in kw @ multiply-adds 0.28" --distillation 0.9 --output runs/smaller

What is done (Singh, Jahromi and Orus, arXiv 2403.14379, and a control):
- A truncation is made in all layers that it fits, but the first convolution, at once,
  as recipes.compressibility does, and the network is tested: epoch 0. It has a size:
  "out kh | in kw @ 0.25" keeps a quarter of the singular values of each kernel,
  "cp @ r=16" has that rank, "tucker2 @ parameters 0.3" that part of the network's
  parameters, "tucker2 or out kh | in kw @ multiply-adds 0.3" of its multiply-adds.
- Then it is trained in two ways: dense, its kernels start as the truncated ones and
  are free to leave them; factored, their factors are trained and the network stays
  small. Both have the same accuracy at epoch 0.
- The control is the untouched network, trained in the same way for as many epochs:
  what more training alone would give.
- A training has recovered if it comes within 0.5 points of the accuracy before
  truncation, in at most five epochs. The control may gain meanwhile, so that the
  distance to it at the end is told as well.
- Stopped and started again with the same settings it goes on where it was, within an
  epoch too; more truncations, ways and seeds can be added to a folder.
"""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import nn

import tnalgebra as tn
from recipes.command import run_presets, smoke_folder
from recipes.experiment import (
    NO_RESULT,
    Epoch,
    Failures,
    Row,
    Settings,
    classification,
    folder_name,
    fresh_model,
    is_ours,
    load_both,
    printed,
    train_and_note,
    trained,
    write_network,
)
from recipes.networks import with_weights
from recipes.reporting import write_figure
from recipes.retrain.report import BASELINE, curves, figure, summary
from recipes.retrain.truncations import Truncated, Truncation, read_truncation, truncate
from recipes.training.task import Task, evaluate, state_digest

Way = Literal["dense", "factored", "control"]


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """Settings; what is printed first is what is used."""

    # one line each: the command's --help breaks them where it must
    weights: str | None = None
    """a file of weights, or torchvision:NAME; without one the network is trained first, for --first-epochs"""
    first_epochs: int = 15
    """passes over the training images where there are no weights; 0: networks of ours need some, your own is used as it
    comes"""
    first_learning_rate: float = 5e-3
    """the highest of that training, reached after a tenth of it; otherwise it is as the others"""
    truncations: tuple[str, ...] = ("out kh | in kw @ 0.125", "out | in kh kw @ 0.125", "tucker2 @ parameters 0.15")
    """what is truncated, each in quotes: REWRITE @ SIZE, as above; so much that it hurts"""
    ways: tuple[Way, ...] = ("dense", "factored", "control")
    """dense: kernels that start as the truncated ones; factored: their factors; control: the untouched network"""
    distillation: float = 0.0
    """weight of the untouched network's answers in the loss, 0 to 1, beside the labels; of the control too"""
    temperature: float = 4.0
    """of the distillation: both networks' logits are divided by it"""
    output: Path = Path("runs/retrain")
    """folder for the rows (results.jsonl), the figures (PNG and SVG) and a folder for each training"""


CIFAR: dict[str, Any] = {"data": "cifar10", "batch_size": 128, "shift": 4, "flip": True}
"""The augmentation that CIFAR networks are usually trained with (He et al., arXiv 1512.03385, section 4.2)."""

RESNET50: dict[str, Any] = {
    **CIFAR,
    # the stem for 32 x 32 images: a third of the multiply-adds that images blown up to 224 x 224 would take
    "model": "resnet50_cifar",
    "optimizer": "sgd",
    "weight_decay": 5e-4,
    # a tenth of a usual first rate: high enough to move, low enough not to undo what is left of the training
    "learning_rate": 0.01,
    "first_epochs": 0,
    "first_learning_rate": 0.05,
    "truncations": ("out kh | in kw @ 0.25", "out | in kh kw @ 0.25", "in | out kh kw @ 0.25"),
}

PRESETS = {
    "cnn4-digits": Config(),
    "cnn4-cifar10": Config(**CIFAR, first_epochs=20, output=Path("runs/retrain-cnn4-cifar10")),
    "cnn4-cifar100": Config(
        **{**CIFAR, "data": "cifar100"}, first_epochs=20, output=Path("runs/retrain-cnn4-cifar100")
    ),
    "resnet20-cifar10": Config(
        **CIFAR,
        model="resnet20",
        optimizer="sgd",
        weight_decay=1e-4,
        learning_rate=0.02,
        first_epochs=0,
        first_learning_rate=0.1,
        truncations=("out kh | in kw @ 0.25", "out | in kh kw @ 0.5", "tucker2 @ parameters 0.5"),
        output=Path("runs/retrain-resnet20-cifar10"),
    ),
    "resnet50-cifar10": Config(**RESNET50, output=Path("runs/retrain-resnet50-cifar10")),
    "resnet50-cifar100": Config(**{**RESNET50, "data": "cifar100"}, output=Path("runs/retrain-resnet50-cifar100")),
}
"""The networks of the paper, and one whose weights are public, with truncations that hurt. ResNet-50 is for GPUs."""


SMOKE = {"first_epochs": 6, "batch_size": 32, "limit": 600}
"""Just enough for a network of digits to learn something that a truncation can spoil."""


def main(config: Config) -> list[Row]:
    """Train what is not trained yet; returns all rows of the folder.

    Raises:
        TnalgebraError: a setting, the data or the weights are not what they should be; a training diverges; the
            output folder holds an experiment of other settings.
    """
    config = printed(_smaller(config) if config.smoke else config)
    truncations = _checked(config)
    config, training, test = load_both(config)
    model = fresh_model(config.model, training, seed=config.seed)
    if config.weights is not None:
        model = with_weights(model, config.weights)
    first = classification(config, training, test)
    first.check(model, config.training(config.seed, distillation=0.0))
    with tn.studies.Store(config.output, _facts(config, training, test)).opened() as store:
        if config.weights is None and config.first_epochs:
            _train_first(model, first, config, training)
        store.settle(weights=state_digest(model))
        try:
            _Experiment(config, model, training, test, store).run(truncations)
        finally:
            if curves(store.rows):
                write_figure(figure(store.rows), config.output / "accuracy")
        print(f"\n{summary(store.rows)}\n\nrows, figures and trained networks: {config.output}/")
        return store.rows


def _smaller(config: Config) -> Config:
    """So small that all of it runs in seconds."""
    return dataclasses.replace(
        config,
        epochs=min(config.epochs, 2),
        first_epochs=min(config.first_epochs or SMOKE["first_epochs"], SMOKE["first_epochs"]),
        batch_size=min(config.batch_size, SMOKE["batch_size"]),
        limit=min(config.limit or SMOKE["limit"], SMOKE["limit"]),
        seeds=config.seeds[:1],
        warmup=min(config.warmup, 0.5),
        truncations=config.truncations[:2],
        output=smoke_folder(config.output, (preset.output for preset in PRESETS.values())),
    )


def _checked(config: Config) -> list[Truncation]:
    """The truncations; what can be known to be wrong before anything is loaded or trained is refused."""
    truncations = {truncation.text: truncation for truncation in map(read_truncation, config.truncations)}
    unknown = [way for way in config.ways if way not in get_args(Way)]
    if unknown or not config.ways:
        given = f"{unknown[0]!r} is no way to train" if unknown else "no way to train is given"
        raise tn.errors.StudyError(tn.errors.explain(given, known=", ".join(get_args(Way))))
    if not truncations and set(config.ways) != {"control"}:
        raise tn.errors.StudyError(
            tn.errors.explain("no truncation is given", fix='--truncations "out kh | in kw @ 0.25"')
        )
    config.training(0)
    if config.first_epochs < 0:
        raise tn.errors.DataError(tn.errors.explain(f"first_epochs is {config.first_epochs}", fix="0 or more"))
    if config.weights is None and not config.first_epochs and is_ours(config):
        fix = f"--weights FILE, or --first-epochs {15 if config.model == 'cnn4' else 200} to train it here first"
        raise tn.errors.DataError(tn.errors.explain(f"{config.model} needs weights", fix=fix))
    return list(truncations.values())


def _facts(config: Config, training: tn.Images, test: tn.Images) -> dict[str, Any]:
    """What all rows of a folder share, as JSON has it."""
    other = (*NO_RESULT, "truncations", "ways", "weights", "data", *([] if config.weights is None else _FIRST))
    fields = {name: value for name, value in vars(config).items() if name not in other}
    fields = {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}
    return {**fields, "training_images": training.fingerprint, "test_images": test.fingerprint}


_FIRST = ("first_epochs", "first_learning_rate")


def _train_first(model: nn.Module, task: Task, config: Config, images: tn.Images) -> None:
    """Train the network as it comes; what is there of it is taken over."""
    print(f"\ntraining {config.model} first, for {config.first_epochs} epochs of {len(images)} images", flush=True)
    changes = {"distillation": 0.0, "epochs": config.first_epochs, "learning_rate": config.first_learning_rate}
    settings = config.training(config.seed, **changes, warmup=config.first_epochs / 10)
    folder = config.output / folder_name("first", f"seed {config.seed}")
    history = trained(model, task, settings, folder, config)
    write_network(model, config.output / "first.safetensors")
    print(f"top-1: {100 * history.rows[-1].test_score:.2f} %", flush=True)


class _Experiment:
    """Runs the trainings that are not there yet, and notes their rows."""

    def __init__(
        self, config: Config, model: nn.Module, training: tn.Images, test: tn.Images, store: tn.studies.Store
    ) -> None:
        self.config, self.model, self.test, self.store = config, model.cpu().eval(), test, store
        taught = copy.deepcopy(model).requires_grad_(False) if config.distillation else None
        self.task = classification(config, training, test, teacher=taught)
        size = (training.channels, *training.pixels.shape[2:])
        self.example = (min(config.batch_size, len(training)), *size)
        self.rows = {_key(row): row for row in store.rows}

    def run(self, truncations: list[Truncation]) -> None:
        """The control first, then one truncation after the other."""
        self.note_baseline()
        ways = [way for way in dict.fromkeys(self.config.ways) if way != "control"]
        works: list[tuple[Truncation | None, Way]] = [(None, "control")] if "control" in self.config.ways else []
        works += [(truncation, way) for truncation in truncations for way in ways]
        todo = [(truncation, way, seed) for truncation, way in works for seed in self.config.seeds]
        made: dict[str, Truncated] = {}
        failures = Failures()
        for number, (truncation, way, seed) in enumerate(todo, 1):
            text = BASELINE if truncation is None else truncation.text
            keys = [(text, way, seed, epoch) for epoch in range(self.config.epochs + 1)]
            if all(key in self.rows for key in keys):
                continue
            print(f"\n{number}/{len(todo)}  {text}, {way}, seed {seed}", flush=True)
            if text not in made:  # those of one truncation at a time are kept
                made.clear()
            with failures.noted(f"{text}, {way}, seed {seed}"):
                self.train(truncation, way, seed, made)
        failures.raised()

    def note_baseline(self) -> None:
        key = (BASELINE, None, None, 0)
        if key in self.rows:
            return
        accuracy = self.score(self.model)
        _, report = tn.convert(copy.deepcopy(self.model), {"*": None}, example=self.example)
        assert report.multiply_adds is not None
        adds = report.multiply_adds / self.example[0]
        self.note(key, accuracy, {"parameters": report.parameters, "multiply_adds": adds, "error": 0.0, "layers": {}})
        print(f"\ntop-1 before: {100 * accuracy:.2f} %", flush=True)

    def train(self, truncation: Truncation | None, way: Way, seed: int, made: dict[str, Truncated]) -> None:
        """One training, with the rows of its epochs."""
        text = BASELINE if truncation is None else truncation.text
        model, start = self.started(truncation, way, made)
        if (text, way, seed, 0) not in self.rows:
            there = self.any_seed(text, way)
            accuracy = self.score(model) if there is None else there["accuracy"]
            self.note((text, way, seed, 0), accuracy, start)
        print(f"epoch 0: {100 * self.rows[text, way, seed, 0]['accuracy']:.2f} %", flush=True)
        train_and_note(
            model,
            self.task,
            self.config.training(seed),
            self.config.output / folder_name(text, way, f"seed {seed}"),
            self.config,
            partial(self.note_epoch, text, way, seed, start),
        )
        last = self.rows[text, way, seed, self.config.epochs]
        print(f"epoch {last['epoch']}: {100 * last['accuracy']:.2f} %", flush=True)

    def started(
        self, truncation: Truncation | None, way: Way, made: dict[str, Truncated]
    ) -> tuple[nn.Module, dict[str, Any]]:
        """The network before its training, and what rows say of it.

        It is kept: a training goes on only from the very same numbers, which a fit with other threads would not give.
        """
        if truncation is None:
            baseline = self.rows[BASELINE, None, None, 0]
            return copy.deepcopy(self.model), _start_of(baseline)
        path = self.config.output / "starts" / f"{folder_name(truncation.text, way)}.safetensors"
        there = self.any_seed(truncation.text, way)
        if not path.exists() or there is None:
            if truncation.text not in made:
                made[truncation.text] = truncate(
                    self.model, truncation, skip=self.config.skip, seed=self.config.seed, example=self.example
                )
            truncated = made[truncation.text]
            if way == "dense":
                model = truncated.dense(self.model)
            else:
                model, _ = truncated.factored(self.model, self.example, candidates="all", backward=True)
            write_network(model, path)
            there = self.any_seed(truncation.text, "factored" if way == "dense" else "dense")
        start = self.counted(made[truncation.text]) if there is None else _start_of(there)
        # from the file the first time too; plans are then for the format in which the network is trained
        return tn.load(path, into=copy.deepcopy(self.model).to(memory_format=torch.channels_last)), start

    def counted(self, truncated: Truncated) -> dict[str, Any]:
        """Parameters and multiply-adds in the factored form, where no input meets a whole kernel."""
        _, report = truncated.factored(self.model, self.example, candidates="factored")
        assert report.multiply_adds_after is not None
        return {
            "parameters": report.parameters_after,
            "multiply_adds": report.multiply_adds_after / self.example[0],
            "error": truncated.mean_squared_relative_error,
            "layers": {name: dict(layer) for name, layer in truncated.layers.items()},
        }

    def score(self, model: nn.Module) -> float:
        device = torch.device(self.config.device)
        found = evaluate(model.to(device), self.task, batch_size=self.config.batch_size, device=device)
        model.cpu()
        return found

    def any_seed(self, text: str, way: str) -> Row | None:
        """The row of epoch 0, which is the same for all seeds."""
        return next((row for key, row in self.rows.items() if key[:2] == (text, way) and key[3] == 0), None)

    def note_epoch(self, text: str, way: Way, seed: int, start: dict[str, Any], epoch: Epoch) -> None:
        key = (text, way, seed, epoch.epoch)
        if key not in self.rows:
            self.note(key, epoch.score, {**start, "layers": {}}, epoch)

    def note(self, key: Key, accuracy: float, start: dict[str, Any], epoch: Epoch | None = None) -> None:
        """Append a row: one of a study, and what tells trainings and their epochs apart."""
        text, way, seed, number = key
        baseline = self.rows.get((BASELINE, None, None, 0))
        dense: Row = baseline or {"accuracy": accuracy, **start}
        rewrite, _, size = text.rpartition(" @ ")
        row: Row = {
            **tn.studies.Key("", "all").fields,
            "model": self.config.model,
            "truncation": text,
            "way": way,
            "seed": seed,
            "epoch": number,
            "rewrite": rewrite or BASELINE,
            "keep": _keep(size),
            "scope": "all",
            "accuracy": accuracy,
            "accuracy_change": accuracy - dense["accuracy"],
            "images": len(self.test),
            "mean_squared_relative_error": start["error"],
            "parameters": start["parameters"],
            "parameters_kept": start["parameters"] / dense["parameters"],
            "multiply_adds": start["multiply_adds"],
            "multiply_adds_kept": start["multiply_adds"] / dense["multiply_adds"],
            "layers": start["layers"],
            "epochs": self.config.epochs,
            "training_loss": None if epoch is None else epoch.training_loss,
            "learning_rate": None if epoch is None else epoch.learning_rate,
            "seconds": 0.0 if epoch is None else epoch.seconds,
            "config": tn.studies.config_hash(self.store.config),
            "version": tn.__version__,
        }
        self.store.append(row)
        self.rows[key] = row


Key = tuple[str, str | None, int | None, int]


def _key(row: Row) -> Key:
    return row["truncation"], row["way"], row["seed"], row["epoch"]


def _start_of(row: Row) -> dict[str, Any]:
    fields = {name: row[name] for name in ("parameters", "multiply_adds", "layers")}
    return {**fields, "error": row["mean_squared_relative_error"]}


def _keep(size: str) -> float | None:
    try:
        return float(size)
    except ValueError:
        return None


def run() -> None:
    """The command line."""
    run_presets(PRESETS, main, description=__doc__)
