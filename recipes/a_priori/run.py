"""Is a network worse for having been decomposed before it is trained?

    python -m recipes.a_priori --smoke           # embedded digits, a small CNN: seconds
    python -m recipes.a_priori                   # the same in full: minutes
    python -m recipes.a_priori --preset waves    # a surrogate of the wave equation
    python -m recipes.a_priori --preset cnn4-cifar10 --data DIR --rewrites tucker2 cp
    python -m recipes.a_priori --rewrites "K[o i h w] => A[o p h] B[p i w]" --parameters 0.25

What is done:
- The dense network is trained from random weights, and so is each contender: all its
  convolutions but the first replaced by a decomposition with at most a part of their
  parameters, its ranks even parts of those that would lose nothing. The cores are
  drawn anew, and scaled so that the kernels they make have the variance that torch
  gives its own; nothing of a dense kernel is left.
- All have the same data, epochs and learning rate, and several seeds: of the first
  weights, the order of the data and the augmentation.
- Tasks: classes of images, by top-1; or waves: from two frames of a wave in a medium
  and the speed of that medium, the field some frames later, by the relative L2 error.
- Stopped and started again with the same settings it goes on where it was, within an
  epoch too; more rewrites, sizes and seeds can be added to a folder.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import tnalgebra as tn
from models import build_surrogate
from recipes.a_priori.report import DENSE, figure, finished, name_of, shown, summary
from recipes.a_priori.wave_equation import wave_fields
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
    load_both,
    printed,
    train_and_note,
)
from recipes.networks import Wishes, all_dense, even_wishes, from_random_cores
from recipes.reporting import write_figure
from recipes.training.classification import Classification
from recipes.training.regression import Regression
from recipes.training.task import Task, state_digest

WAVES = "waves"


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """Settings; what is printed first is what is used."""

    # one line each: the command's --help breaks them where it must
    model: str = "cnn4"
    """cnn4, resnet20, resnet32, resnet44, resnet56, resnet50, resnet50_cifar (stem for 32x32 images); of waves
    wave_net; or a function of your own: package.module:function"""
    data: str = "digits"
    """digits (embedded), cifar10 or cifar100 (downloaded), a folder with train/CLASS/* and test/CLASS/*, or waves
    (solved here)"""
    rewrites: tuple[str, ...] = ("tucker2", "cp", "tensor_train", "out kh | in kw")
    """decompositions, each in quotes: names (print(tnalgebra.decompositions.rules()) lists them), cuts, rules in the
    notation"""
    parameters: tuple[float, ...] = (0.5, 0.25, 0.1)
    """parts of each kernel's parameters that its cores have at most, in (0, 1): from mild to harsh"""
    waves: int = 1500
    """of waves: how many are learnt; a fifth of them beside these for the test"""
    seeds: tuple[int, ...] = (0, 1, 2)
    """a training for each: first weights, order and augmentation; three tell a difference from chance"""
    epochs: int = 15
    """passes over the training data; the learning rate falls to 0 in so many"""
    learning_rate: float = 5e-3
    """the highest of all steps; the same for all, and usual for the dense network"""
    warmup: float = 1.0
    """epochs, also parts of one, in which the learning rate rises: products of many cores start badly at a high one"""
    output: Path = Path("runs/a_priori")
    """folder for the rows (results.jsonl), the figures (PNG and SVG) and a folder for each training"""


CIFAR: dict[str, Any] = {"data": "cifar10", "batch_size": 128, "shift": 4, "flip": True, "epochs": 30}

RESNET: dict[str, Any] = {**CIFAR, "epochs": 100, "optimizer": "sgd", "learning_rate": 0.1, "weight_decay": 1e-4}
RESNET50: dict[str, Any] = {**RESNET, "model": "resnet50_cifar", "learning_rate": 0.05, "weight_decay": 5e-4}

PRESETS = {
    "cnn4-digits": Config(),
    "cnn4-cifar10": Config(**CIFAR, output=Path("runs/a_priori-cnn4-cifar10")),
    "cnn4-cifar100": Config(**{**CIFAR, "data": "cifar100"}, output=Path("runs/a_priori-cnn4-cifar100")),
    "resnet20-cifar10": Config(**RESNET, model="resnet20", output=Path("runs/a_priori-resnet20-cifar10")),
    "resnet50-cifar10": Config(**RESNET50, output=Path("runs/a_priori-resnet50-cifar10")),
    "resnet50-cifar100": Config(**{**RESNET50, "data": "cifar100"}, output=Path("runs/a_priori-resnet50-cifar100")),
    "waves": Config(
        model="wave_net",
        data=WAVES,
        epochs=30,
        batch_size=32,
        learning_rate=3e-3,
        weight_decay=1e-4,
        shift=0,
        output=Path("runs/a_priori-waves"),
    ),
}
SMOKE = {"epochs": 4, "batch_size": 16, "limit": 400}
"""Just enough for a network of digits to learn something."""


@dataclass(frozen=True)
class Contender:
    """What is trained: the dense network, or a rewrite at a part of the parameters."""

    rewrite: str = DENSE
    fraction: float | None = None

    @property
    def text(self) -> str:
        """As rows say it."""
        return self.rewrite if self.fraction is None else f"{self.rewrite} @ {self.fraction:g}"


def main(config: Config) -> list[Row]:
    """Train what is not trained yet; returns all rows of the folder.

    Raises:
        TnalgebraError: a setting or the data are not what they should be; a training diverges; the output folder
            holds an experiment of other settings.
    """
    if config.epochs <= config.warmup == Config.warmup:  # a usual warm-up must not be all of a short training
        config = dataclasses.replace(config, warmup=config.epochs / 5)
    config = printed(_smaller(config) if config.smoke else config)
    contenders = _contenders(config)
    config, task = _task(config)
    with tn.studies.Store(config.output, _facts(config, task)).opened() as store:
        store.settle(network=state_digest(_fresh(config, task, config.seed)))  # a file of one's own may change
        try:
            _run(config, task, contenders, store)
        finally:
            if finished(store.rows):
                write_figure(figure(store.rows), config.output / "score")
        print(f"\n{summary(store.rows)}\n\nrows, figures and trained networks: {config.output}/")
        return store.rows


def _smaller(config: Config) -> Config:
    return dataclasses.replace(
        config,
        output=smoke_folder(config.output, (preset.output for preset in PRESETS.values())),
        epochs=min(config.epochs, SMOKE["epochs"]),
        warmup=min(config.warmup, 0.5),
        batch_size=min(config.batch_size, SMOKE["batch_size"]),
        limit=min(config.limit or SMOKE["limit"], SMOKE["limit"]),
        waves=min(config.waves, 64),
        seeds=config.seeds[:2],
        rewrites=config.rewrites[:2],
        parameters=config.parameters[:2],
    )


def _contenders(config: Config) -> list[Contender]:
    """The dense network and all others; what is none is refused."""
    config.training(0)
    for fraction in config.parameters:
        if not 0 < fraction < 1:
            raise tn.errors.RankError(
                tn.errors.explain(f"a part of {fraction:g} of the parameters", fix="above 0, below 1")
            )
    if not config.rewrites or not config.parameters:
        raise tn.errors.RuleError(
            tn.errors.explain("there is nothing to compare with", fix="--rewrites tucker2 --parameters 0.25")
        )
    for rewrite in config.rewrites:
        tn.decompositions.resolve(rewrite, tn.network.KERNEL_LABELS[4])
    wished = [Contender(rewrite, fraction) for rewrite in config.rewrites for fraction in config.parameters]
    return list(dict.fromkeys([Contender(), *wished]))


def _task(config: Config) -> tuple[Config, Task]:
    if config.data != WAVES:
        config, training, test = load_both(config)
        return config, classification(config, training, test)
    count = config.waves if config.limit is None else min(config.waves, config.limit)
    if count < 5:
        raise tn.errors.DataError(tn.errors.explain(f"{count} waves are too few", fix="at least 5"))
    # seeds that no other config shares, so that no wave of a test is learnt anywhere
    fields = [wave_fields(number, seed=2 * config.seed + test) for test, number in enumerate((count, count // 5))]
    print(f"\n{count} + {count // 5} waves, fields of {' x '.join(map(str, fields[0][0].shape[1:]))}", flush=True)
    return config, Regression(*fields[0], *fields[1])


def _facts(config: Config, task: Task) -> dict[str, Any]:
    """What all rows of a folder share, as JSON has it."""
    fields = {name: value for name, value in vars(config).items() if name not in (*NO_RESULT, "data", "rewrites")}
    del fields["parameters"]
    fields = {name: list(value) if isinstance(value, tuple) else value for name, value in fields.items()}
    return {**fields, "task": task.description()}


def _run(config: Config, task: Task, contenders: Sequence[Contender], store: tn.studies.Store) -> None:
    """All contenders of a seed, then the next seed: a table is there early."""
    known = {(row["contender"], row["seed"], row["epoch"]) for row in store.rows}
    todo = [(contender, seed) for seed in config.seeds for contender in contenders]
    failures = Failures()
    for number, (contender, seed) in enumerate(todo, 1):
        if all((contender.text, seed, epoch) in known for epoch in range(1, config.epochs + 1)):
            continue
        print(f"\n{number}/{len(todo)}  {contender.text}, seed {seed}", flush=True)
        model, facts = _made(config, task, contender, seed)
        task.check(model, config.training(seed))
        where = config.output / folder_name(contender.text, f"seed {seed}")
        note = partial(_note, config=config, task=task, contender=contender, seed=seed, facts=facts, store=store)
        with failures.noted(f"{contender.text}, seed {seed}"):
            history = train_and_note(model, task, config.training(seed), where, config, note)
            print(f"{name_of(task.score_name)}: {shown(history.rows[-1].test_score, task.score_name)}", flush=True)
    failures.raised()


def _fresh(config: Config, task: Task, seed: int) -> nn.Module:
    """The dense network with weights of this seed."""
    if isinstance(task, Classification):
        return fresh_model(config.model, task.training, seed=seed)
    some, targets = task.test_batch(torch.arange(1))
    return build_surrogate(config.model, inputs=some.shape[1], outputs=targets.shape[1], seed=seed)


def _made(config: Config, task: Task, contender: Contender, seed: int) -> tuple[nn.Module, dict[str, Any]]:
    """A network with random weights, and what rows say of it."""
    model = _fresh(config, task, seed)
    some, _ = task.test_batch(torch.arange(1))
    size = (min(config.batch_size, task.training_size), *some.shape[1:])
    wishes: Wishes = all_dense
    if contender.fraction is not None:
        wishes = even_wishes(model, contender.rewrite, parameters=contender.fraction, skip=config.skip)
    # counted where no input meets a whole kernel, whatever plan is the fastest in training
    _, report = tn.convert(copy.deepcopy(model), wishes, example=size, candidates="factored", seed=seed)
    if contender.fraction is not None:
        model, _ = from_random_cores(model, wishes, example=size, seed=seed)
    assert report.multiply_adds is not None
    assert report.multiply_adds_after is not None
    facts = {
        "parameters": report.parameters_after,
        "parameters_kept": report.parameters_after / report.parameters,
        "multiply_adds": report.multiply_adds_after / size[0],
        "multiply_adds_kept": report.multiply_adds_after / report.multiply_adds,
        "layers": {row.name: {"ranks": dict(row.ranks), "parameters": row.parameters_after} for row in report.rows},
    }
    return model, facts


def _note(
    epoch: Epoch,
    *,
    config: Config,
    task: Task,
    contender: Contender,
    seed: int,
    facts: dict[str, Any],
    store: tn.studies.Store,
) -> None:
    """Append a row, unless it is there."""
    key = (contender.text, seed, epoch.epoch)
    if any((row["contender"], row["seed"], row["epoch"]) == key for row in store.rows):
        return
    accuracy = epoch.score if task.score_name == "accuracy" else None
    row: Row = {
        **tn.studies.Key("", "all").fields,
        "model": config.model,
        "contender": contender.text,
        "rewrite": contender.rewrite if contender.fraction is not None else "none",
        "keep": None,
        "fraction": contender.fraction,
        "scope": "all",
        "seed": seed,
        "epoch": epoch.epoch,
        "epochs": config.epochs,
        "score": epoch.score,
        "score_name": task.score_name,
        "accuracy": accuracy,
        "accuracy_change": None,
        "images": task.test_size,
        "mean_squared_relative_error": None,
        **{**facts, "layers": facts["layers"] if epoch.epoch == 1 else {}},
        "training_loss": epoch.training_loss,
        "learning_rate": epoch.learning_rate,
        "config": tn.studies.config_hash(store.config),
        "version": tn.__version__,
        "seconds": epoch.seconds,
    }
    store.append(row)


def run() -> None:
    """The command line."""
    run_presets(PRESETS, main, description=__doc__)
