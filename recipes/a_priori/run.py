"""Is a network worse for having been decomposed before it is trained?

    python -m recipes.a_priori --smoke           # embedded digits, a small CNN: seconds
    python -m recipes.a_priori                   # the same in full: minutes
    python -m recipes.a_priori --preset waves    # a surrogate of the wave equation
    python -m recipes.a_priori --preset cnn4-cifar10 --data DIR --rewrites tucker2 cp
    python -m recipes.a_priori --rewrites "K[o i h w] => A[o p h] B[p i w]" --parameters 0.25

What is done:
- The dense network is trained from random weights, and so is each contender, in which
  all convolutions but the first are replaced by a decomposition with at most a part
  of their parameters. All its ranks are the same part of the full ranks. The cores
  are random, and scaled so that their kernels have the variance of torch's own
  initialisation; they do not depend on a dense kernel.
- All have the same data, epochs and learning rate, and several seeds, for the first
  weights, the order of the data and the augmentation. With --equal time each has as
  many epochs as take the time of the dense network's.
- Tasks: images are classified, scored by top-1 accuracy; or waves are predicted: from
  two frames of a wave in a medium, and the speed of that medium, the field some
  frames later, scored by the relative L2 error.
- Stopped and started again with the same settings it continues where it was, within an
  epoch too; more rewrites, sizes and seeds can be added to a folder.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
from torch import Tensor, nn

import tnalgebra as tn
from recipes.a_priori.report import DENSE, figure, finished, summary
from recipes.a_priori.wave_equation import wave_fields
from recipes.benchmarks.timing import time_in_turns
from recipes.command import run_presets
from recipes.experiment import CIFAR, Row, Settings, Trainings, begin, classification, count, load_both
from recipes.networks import Patterns, even_patterns, fresh_model, from_random_cores
from recipes.reporting import write, write_figure
from recipes.training import Classification, Regression

WAVES = "waves"
EPOCHS = "epochs.json"
"""The file of an output folder with the epochs of each contender, where all have equal time."""
ROUNDS = 21
"""Steps of each contender in the timing."""


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """Settings; what is printed first is what is used."""

    data: str = "digits"
    """digits, cifar10, cifar100, a folder with train/CLASS/* and test/CLASS/*, or waves (of --model wave_net)"""
    rewrites: tuple[str, ...] = ("tucker2", "cp", "tensor_train", "out kh | in kw")
    """decompositions, each in quotes: names (print(tnalgebra.rules()) lists them), cuts, rules in the notation"""
    parameters: tuple[float, ...] = (0.5, 0.25, 0.1)
    """the largest parts of each kernel's parameters that its cores may have, in (0, 1): from mild to harsh"""
    waves: int = 1500
    """of waves: the number that is learnt; a fifth of that number is tested"""
    seeds: tuple[int, ...] = (0, 1, 2)
    """a training for each: first weights, order and augmentation; three show whether a difference is chance"""
    equal: Literal["epochs", "time"] = "epochs"
    """what all trainings have: the same epochs; or time, so that a network whose steps are quicker has more epochs"""
    output: Path = Path("runs/a_priori")
    """folder for the rows (results.jsonl), the figures (PNG and SVG) and a folder for each training"""


CIFAR_30: dict[str, Any] = {**CIFAR, "epochs": 30}
RESNET: dict[str, Any] = {**CIFAR, "epochs": 100, "optimizer": "sgd", "learning_rate": 0.1, "weight_decay": 1e-4}
RESNET50: dict[str, Any] = {**RESNET, "model": "resnet50_cifar", "learning_rate": 0.05, "weight_decay": 5e-4}
NARROW50: dict[str, Any] = {**RESNET50, "model": "resnet50_cifar16"}

PRESETS = {
    "cnn4-digits": Config(),
    "cnn4-cifar10": Config(**CIFAR_30, output=Path("runs/a_priori-cnn4-cifar10")),
    "cnn4-cifar100": Config(**{**CIFAR_30, "data": "cifar100"}, output=Path("runs/a_priori-cnn4-cifar100")),
    "resnet20-cifar10": Config(**RESNET, model="resnet20", output=Path("runs/a_priori-resnet20-cifar10")),
    "resnet50-16-cifar10": Config(**NARROW50, output=Path("runs/a_priori-resnet50-16-cifar10")),
    "resnet50-16-cifar100": Config(
        **{**NARROW50, "data": "cifar100"}, output=Path("runs/a_priori-resnet50-16-cifar100")
    ),
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
SMOKE = {"epochs": 4, "batch_size": 16, "limit": 400, "waves": 64, "seeds": 2, "rewrites": 2, "parameters": 2}
"""The most of each in a smoke run: just enough for a network to learn something about digits."""


def main(config: Config) -> list[Row]:
    """Do the trainings that are not done yet.

    Returns:
        All rows of the folder.

    Raises:
        TnalgebraError: a setting is wrong, or the data cannot be read; a training diverges; the output folder holds
            an experiment with other settings.
    """
    config = begin(config, SMOKE, PRESETS.values())
    contenders = _contenders(config)
    config, task = _load_task(config)
    facts = {**config.shared("data", "rewrites", "parameters"), "task": task.describe()}
    with tn.studies.Store(config.output, facts).opened() as store:
        network = _fresh(config, task, config.seed)  # a user's file may have changed
        epochs = _epochs(config, task, contenders)
        store.settle(network=tn.studies.digest_state(network))
        todo = [{"contender": contender, "seed": seed} for seed in config.seeds for contender in contenders]

        def start(contender: str, seed: int) -> tuple[nn.Module, dict[str, Any]]:
            return _make(config, task, contenders[contender], seed=seed)

        try:
            for number in dict.fromkeys(epochs.values()):
                some = [fields for fields in todo if epochs[str(fields["contender"])] == number]
                own = dataclasses.replace(config, epochs=number)
                Trainings(own, task, store, fields=("contender", "seed")).run(some, start)
        finally:
            if finished(store.rows):
                write_figure(figure(store.rows), config.output / "score")
        print(f"\n{summary(store.rows)}\n\nrows, figures and trained networks: {config.output}/")
        return store.rows


def _contenders(config: Config) -> dict[str, tuple[str, float | None]]:
    """Name -> rewrite and part of the parameters, the dense network first. Raises RankError and RuleError."""
    config.training()
    for fraction in config.parameters:
        if not 0 < fraction < 1:
            raise tn.errors.RankError(f"parameters is {fraction:g}", fix="above 0, below 1")
    if not config.rewrites or not config.parameters:
        fix = "--rewrites tucker2 --parameters 0.25"
        raise tn.errors.RuleError("the dense network would be the only contender", fix=fix)
    for rewrite in config.rewrites:
        tn.decompositions.read_rewrite(rewrite, tn.networks.KERNEL_LABELS[4])
    pairs = [(rewrite, fraction) for rewrite in config.rewrites for fraction in config.parameters]
    return {DENSE: ("none", None), **{f"{rewrite} @ {fraction:g}": (rewrite, fraction) for rewrite, fraction in pairs}}


def _load_task(config: Config) -> tuple[Config, Classification | Regression]:
    if config.data != WAVES:
        config, training, test = load_both(config)
        return config, classification(config, training, test)
    count = config.waves if config.limit is None else min(config.waves, config.limit)
    if count < 5:
        raise tn.errors.DataError(f"{count} waves are too few for a training and a test", fix="at least 5")
    # seeds that differ between training and test in every config, so that waves of a test are never learnt
    fields = [wave_fields(number, seed=2 * config.seed + test) for test, number in enumerate((count, count // 5))]
    print(f"\n{count} + {count // 5} waves, fields of {' x '.join(map(str, fields[0][0].shape[1:]))}", flush=True)
    return config, Regression(*fields[0], *fields[1])


def _fresh(config: Config, task: Classification | Regression, seed: int) -> nn.Module:
    """The dense network with the random weights of this seed."""
    if isinstance(task, Classification):
        return fresh_model(config.model, task.training, seed=seed)
    inputs, outputs = task.test_inputs.shape[1], task.test_targets.shape[1]
    return tn.command.build_model(config.model, inputs=inputs, outputs=outputs, seed=seed)


def _make(
    config: Config, task: Classification | Regression, contender: tuple[str, float | None], *, seed: int
) -> tuple[nn.Module, dict[str, Any]]:
    """A contender with random weights, and the fields of its rows."""
    rewrite, fraction = contender
    model = _fresh(config, task, seed)
    example = (min(config.batch_size, task.training_size), *_examples(task).shape[1:])
    patterns: Patterns = {"*": None}
    if fraction is not None:
        patterns = even_patterns(model, rewrite, parameters=fraction, skip=config.skip)
    # multiply-adds are those of the factored form, whatever plan is the fastest in training
    _, report = tn.convert(copy.deepcopy(model), patterns, example=example, candidates="factored", seed=seed)
    if fraction is not None:
        model, _ = from_random_cores(model, patterns, example=example, seed=seed)
    return model, {
        "rewrite": rewrite,
        "fraction": fraction,
        "mean_squared_relative_error": None,
        **count(report, example[0]),
        "layers": {row.name: {"ranks": dict(row.ranks), "parameters": row.parameters_after} for row in report.rows},
    }


def _epochs(
    config: Config, task: Classification | Regression, contenders: Mapping[str, tuple[str, float | None]]
) -> dict[str, int]:
    """Contender -> the epochs of its training.

    For equal time they are the dense network's, times the ratio of the medians of what a step of both takes, forwards
    and backwards; at least one. Each contender is measured once for a folder, in turns with the dense network.
    """
    if config.equal == "epochs":
        return dict.fromkeys(contenders, config.epochs)
    path = config.output / EPOCHS
    stored: dict[str, int] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    new = [name for name in contenders if name not in stored]
    if new:
        x = torch.randn(min(config.batch_size, task.training_size), *_examples(task).shape[1:], device=config.device)
        steps = {}
        for name in dict.fromkeys([DENSE, *new]):
            model, _ = _make(config, task, contenders[name], seed=config.seed)
            steps[name] = partial(_step, model.to(config.device).train(), x)
        times = time_in_turns(steps, rounds=ROUNDS, seed=config.seed, device=config.device)
        dense = median(times[DENSE])
        stored |= {name: max(1, round(config.epochs * dense / median(seconds))) for name, seconds in times.items()}
        write(path, json.dumps(stored, indent=2))
    return {name: stored[name] for name in contenders}


def _step(model: nn.Module, x: Tensor, turn: int) -> None:
    """A step of a training without the optimizer's part."""
    model.zero_grad()
    model(x).square().mean().backward()


def _examples(task: Classification | Regression) -> Tensor:
    return task.test.pixels if isinstance(task, Classification) else task.test_inputs


def run() -> None:
    """The command line."""
    run_presets(PRESETS, main, description=__doc__)
