"""Does a truncated network recover, if it is trained on for a few epochs?

    python -m recipes.retrain --smoke            # embedded digits, a small CNN: seconds
    python -m recipes.retrain                    # the same in full: half a minute
    python -m recipes.retrain --preset resnet20-cifar10 --weights W.pth --data DIR
    python -m recipes.retrain --preset cnn4-cifar10 --data DIR --seeds 0 1 2
    python -m recipes.retrain --preset resnet20-cifar10 --weights W.pth --data DIR \\
        --truncations "tucker2 or out kh | in kw @ multiply-adds 0.28" --distillation 0.9 --output runs/smaller

What is done (Singh, Jahromi and Orus, arXiv 2403.14379, and a control):
- All layers that a truncation fits, except the first convolution, are truncated at
  once, as in recipes.compressibility, and the network is tested: epoch 0. The size:
  "out kh | in kw @ keep 0.25" keeps a quarter of the singular values of each kernel,
  "cp @ r=16" has that rank, "tucker2 @ parameters 0.3" that part of the network's
  parameters, "tucker2 or out kh | in kw @ multiply-adds 0.3" of its multiply-adds.
- Then it is trained in two ways. Dense: its kernels start as the truncated ones and
  may change freely. Factored: their factors are trained, and the network stays small.
  Both have the same accuracy at epoch 0.
- The control is the untouched network, trained in the same way for the same number of
  epochs. It shows the effect of more training alone.
- A network has recovered if it comes within 0.5 points of the accuracy before
  truncation, in at most five epochs. The control may improve meanwhile, so the
  difference to it at the end is shown as well.
- Stopped and started again with the same settings it continues where it was, within an
  epoch too; more truncations, ways and seeds can be added to a folder.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

import tnalgebra as tn
from recipes.command import run_presets
from recipes.experiment import CIFAR, Row, Settings, Trainings, begin, classification, count, folder_name, load_both
from recipes.networks import fresh_model, with_weights, write_network
from recipes.reporting import check_least, write_figure
from recipes.retrain.report import BASELINE, curves, figure, summary
from recipes.retrain.truncations import Truncated, Truncation, check_truncation, read_truncation, truncate
from recipes.training import Classification, evaluate, train

Way = Literal["dense", "factored", "control"]


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """Settings; what is printed first is what is used."""

    weights: str | None = None
    """a file of weights, or torchvision:NAME; without one the network is trained first, for --first-epochs"""
    first_epochs: int = 15
    """passes over the training images where no weights are given; 0: the network is used with its random weights"""
    first_learning_rate: float = 5e-3
    """the highest learning rate of that training, reached after a tenth of it"""
    truncations: tuple[str, ...] = (
        "out kh | in kw @ keep 0.125",
        "out | in kh kw @ keep 0.125",
        "tucker2 @ parameters 0.15",
    )
    """truncations, each in quotes: REWRITE @ SIZE, as above; by default so large that the accuracy falls far; presets
    have milder ones before them"""
    ways: tuple[Way, ...] = ("dense", "factored", "control")
    """dense: kernels that start as the truncated ones; factored: their factors; control: the untouched network"""
    seeds: tuple[int, ...] = (0,)
    """a training for each: order of the images and augmentation; three show whether a difference is chance"""
    epochs: int = 5
    """passes over the training images; the learning rate falls to 0 in that time"""
    learning_rate: float = 2e-3
    """the highest of all steps"""
    warmup: float = 0.0
    """epochs, also parts of one, in which the learning rate rises; at most a fifth of all"""
    distillation: float = 0.0
    """weight of the answers of the untouched network in the loss, 0 to 1, beside the labels; also for the control"""
    temperature: float = 4.0
    """of the distillation: both networks' logits are divided by it"""
    output: Path = Path("runs/retrain")
    """folder for the rows (results.jsonl), the figures (PNG and SVG) and a folder for each training"""


CNN4: dict[str, Any] = {
    **CIFAR,
    "first_epochs": 20,
    "truncations": (
        *("out kh | in kw @ keep 0.25", "out | in kh kw @ keep 0.5", "tucker2 @ parameters 0.5"),
        *Config.truncations,
    ),
}
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
    "truncations": (
        *("out kh | in kw @ keep 0.5", "out | in kh kw @ keep 0.5", "tucker2 @ parameters 0.7"),
        *("out kh | in kw @ keep 0.25", "out | in kh kw @ keep 0.25", "in | out kh kw @ keep 0.25"),
    ),
}
NARROW50: dict[str, Any] = {**RESNET50, "model": "resnet50_cifar16"}

PRESETS = {
    "cnn4-digits": Config(),
    "cnn4-cifar10": Config(**CNN4, output=Path("runs/retrain-cnn4-cifar10")),
    "cnn4-cifar100": Config(**{**CNN4, "data": "cifar100"}, output=Path("runs/retrain-cnn4-cifar100")),
    "resnet20-cifar10": Config(
        **CIFAR,
        model="resnet20",
        optimizer="sgd",
        weight_decay=1e-4,
        learning_rate=0.02,
        first_epochs=0,
        first_learning_rate=0.1,
        truncations=(
            *("out kh | in kw @ keep 0.5", "out | in kh kw @ keep 0.75", "tucker2 @ parameters 0.7"),
            *("out kh | in kw @ keep 0.25", "out | in kh kw @ keep 0.5", "tucker2 @ parameters 0.5"),
        ),
        output=Path("runs/retrain-resnet20-cifar10"),
    ),
    "resnet50-16-cifar10": Config(**NARROW50, output=Path("runs/retrain-resnet50-16-cifar10")),
    "resnet50-16-cifar100": Config(
        **{**NARROW50, "data": "cifar100"}, output=Path("runs/retrain-resnet50-16-cifar100")
    ),
    # the full width, for GPUs: not run
    "resnet50-cifar10": Config(**RESNET50, output=Path("runs/retrain-resnet50-cifar10")),
    "resnet50-cifar100": Config(**{**RESNET50, "data": "cifar100"}, output=Path("runs/retrain-resnet50-cifar100")),
}
"""The networks of the paper, narrow ones that a CPU can train in their place, and one with public weights; each with
mild truncations, which may be recovered from, and then large ones."""

SMOKE = {"epochs": 2, "first_epochs": 6, "batch_size": 32, "limit": 600, "seeds": 1, "truncations": 2}
"""The most of each in a smoke run: just enough for a network to learn something that a truncation can spoil."""


def main(config: Config) -> list[Row]:
    """Do the trainings that are not done yet.

    Returns:
        All rows of the folder.

    Raises:
        TnalgebraError: a setting is wrong, the data or the weights cannot be read; a training diverges; the output
            folder holds an experiment with other settings.
    """
    if config.smoke and _lacks_weights(config):
        config = dataclasses.replace(config, first_epochs=SMOKE["first_epochs"])
    config = begin(config, SMOKE, PRESETS.values())
    truncations = _checked(config)
    config, training, test = load_both(config)
    model = fresh_model(config.model, training, seed=config.seed)
    for truncation in truncations:
        check_truncation(model, truncation, skip=config.skip)
    if config.weights is not None:
        model = with_weights(model, config.weights)
    task = classification(config, training, test)
    task.check(model, config.training(distillation=0.0))
    first = ("first_epochs", "first_learning_rate") if config.weights is not None else ()
    facts = config.shared("truncations", "ways", "weights", "data", *first)
    facts |= {"training_images": training.fingerprint, "test_images": test.fingerprint}
    with tn.studies.Store(config.output, facts).opened() as store:
        if config.weights is None and config.first_epochs:
            _train_first(model, task, config)
        store.settle(weights=tn.studies.digest_state(model))
        teacher = copy.deepcopy(model).requires_grad_(False) if config.distillation else None
        task = classification(config, training, test, teacher=teacher)
        try:
            _Retraining(config, task, store, model, truncations=truncations).run_all()
        finally:
            if curves(store.rows):
                write_figure(figure(store.rows), config.output / "accuracy")
        print(f"\n{summary(store.rows)}\n\nrows, figures and trained networks: {config.output}/")
        return store.rows


def _checked(config: Config) -> list[Truncation]:
    """The truncations; what can be known to be wrong before anything is loaded or trained is refused."""
    truncations = {truncation.text: truncation for truncation in map(read_truncation, config.truncations)}
    config.training()
    check_least(config, {"first_epochs": 0}, tn.errors.DataError)
    if not config.ways or not config.seeds:
        raise tn.errors.StudyError("no training is asked for", fix="--ways dense factored control --seeds 0 1 2")
    if _lacks_weights(config):
        fix = f"--weights FILE, or --first-epochs {15 if config.model == 'cnn4' else 200} to train it here first"
        raise tn.errors.DataError(f"{config.model} needs weights", fix=fix)
    return list(truncations.values())


def _lacks_weights(config: Config) -> bool:
    """Whether the network would be used with its random weights, and is not one of the user's own."""
    return config.weights is None and not config.first_epochs and ":" not in config.model


def _train_first(model: nn.Module, task: Classification, config: Config) -> None:
    """Train the network from its random weights; an earlier training in the folder is continued."""
    count = f"{config.first_epochs} epochs of {task.training_size} images"
    print(f"\ntraining {config.model} first, for {count}", flush=True)
    changes = {"distillation": 0.0, "epochs": config.first_epochs, "learning_rate": config.first_learning_rate}
    settings = config.training(**changes, warmup=config.first_epochs / 10)
    folder = config.output / folder_name("first", f"seed {config.seed}")
    train(model, task, settings, folder, device=config.device, workers=config.workers)
    write_network(model, config.output / "first.safetensors")


class _Retraining(Trainings):
    """The trainings of all truncations, ways and seeds, and of the control."""

    def __init__(
        self,
        config: Config,
        task: Classification,
        store: tn.studies.Store,
        model: nn.Module,
        *,
        truncations: Sequence[Truncation],
    ) -> None:
        super().__init__(config, task, store, fields=("truncation", "way", "seed"))
        self.model = model.cpu().eval()
        self.ways, self.seeds, self.truncations = config.ways, config.seeds, {one.text: one for one in truncations}
        self.example = (min(config.batch_size, task.training_size), *task.training.pixels.shape[1:])
        self.truncated = lru_cache(maxsize=1)(self._truncated)

    def run_all(self) -> None:
        """The control first, then one truncation after the other."""
        key = (BASELINE, None, None, 0)
        if key in self.rows:
            self.before = self.rows[key]["accuracy"]
        else:
            self.before = self.score(self.model)
            _, report = tn.convert(copy.deepcopy(self.model), {"*": None}, example=self.example)
            fields = {"truncation": BASELINE, "way": None, "seed": None}
            facts: dict[str, Any] = {
                "rewrite": BASELINE,
                "keep": None,
                "mean_squared_relative_error": 0.0,
                "layers": {},
            }
            self.note(fields, {**facts, **count(report, self.example[0])}, epoch=0, test_score=self.before)
        print(f"\ntop-1 before: {100 * self.before:.2f} %", flush=True)
        works = [(BASELINE, "control")] if "control" in self.ways else []
        works += [(text, way) for text in self.truncations for way in dict.fromkeys(self.ways) if way != "control"]
        todo = [{"truncation": text, "way": way, "seed": seed} for text, way in works for seed in self.seeds]
        self.run(todo, self.start)

    def start(self, *, truncation: str, way: str, seed: int) -> tuple[nn.Module, dict[str, Any]]:
        """The network before its training, and the fields of its rows; its accuracy becomes a row.

        The network is kept in a file, because a training continues only from exactly the same numbers, and a fit with
        another number of threads would differ by rounding.
        """
        known = next((row for key, row in self.rows.items() if key[:2] == (truncation, way) and key[3] == 0), None)
        if way == "control":
            model = copy.deepcopy(self.model)
            known = self.rows[BASELINE, None, None, 0]
        else:
            path = self.config.output / "starts" / f"{folder_name(truncation, way)}.safetensors"
            if known is None or not path.exists():
                made, _ = self.truncated(truncation)
                if way == "dense":
                    model = made.dense(self.model)
                else:
                    model, _ = made.factored(self.model, self.example, candidates="all", backward=True)
                write_network(model, path)
            # read from the file the first time too; plans are for the format in which the network is trained
            model = tn.load(path, into=copy.deepcopy(self.model).to(memory_format=torch.channels_last))
        facts = self.truncated(truncation)[1] if known is None else {name: known[name] for name in FACTS}
        accuracy = self.score(model) if known is None else known["accuracy"]
        fields = {"truncation": truncation, "way": way, "seed": seed}
        self.note(fields, facts, epoch=0, test_score=accuracy)
        print(f"epoch 0: {100 * accuracy:.2f} %", flush=True)
        return model, facts

    def _truncated(self, text: str) -> tuple[Truncated, dict[str, Any]]:
        """A truncation of the network, and the fields of its rows; multiply-adds are those of the factored form."""
        made = truncate(
            self.model, self.truncations[text], skip=self.config.skip, seed=self.config.seed, example=self.example
        )
        _, report = made.factored(self.model, self.example, candidates="factored")
        rewrite, size = text.rpartition(" @ ")[0], self.truncations[text].size
        keep = size.fraction if isinstance(size, tn.KeepFraction) else None
        return made, {
            "rewrite": rewrite,
            "keep": keep,
            "mean_squared_relative_error": made.mean_squared_relative_error,
            "layers": {name: dict(layer) for name, layer in made.layers.items()},
            **count(report, self.example[0]),
        }

    def score(self, model: nn.Module) -> float:
        device = torch.device(self.config.device)
        score = evaluate(model.to(device), self.task, batch_size=self.config.batch_size, device=device)
        model.cpu()
        return score


FACTS = (
    *("rewrite", "keep", "mean_squared_relative_error", "parameters", "parameters_kept", "multiply_adds"),
    *("multiply_adds_kept", "layers"),
)


def run() -> None:
    """The command line."""
    run_presets(PRESETS, main, description=__doc__)
