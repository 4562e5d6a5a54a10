"""Make the rows of a study that are not there yet, in the process or on workers, and write each into its folder."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing

from torch import nn

from ..errors import StudyError
from ..model import batch_norms
from ..workers import run_tasks
from .figures import draw_results
from .plan import UNTOUCHED, Task, groups_of
from .row_results import RowTester, row_results
from .store import BASELINE, Key, Row, Store, config_hash

REDRAW_SECONDS = 60
"""Seconds after which the figures are drawn again while rows come in."""

CHANCE = 0.05
"""A network looks trained if guessing would reach its accuracy with a smaller probability than this."""


class Runner:
    """Has the rows of a study made, and writes them. Only this process writes."""

    def __init__(self, tester: RowTester, store: Store) -> None:
        self.tester, self.store = tester, store
        self.options = tester.bench.options
        self.done = {Key.of(row): row for row in store.rows}

    def run(self, tasks: Sequence[Task]) -> list[Row]:
        """Every row that is asked for; those that the store has are not computed again. The figures are drawn."""
        from tqdm import tqdm

        drawn = time.monotonic()
        options, tasks = self.options, [UNTOUCHED, *tasks]
        todo = [task for task in tasks if task.key not in self.done]
        results = run_tasks(
            row_results,
            groups_of(todo, self.tester.bench.layers, spread=options.scheduler is not None),
            shared=self.tester,
            scheduler=options.scheduler,
            time_limit=options.time_limit,
            progress=options.progress,
        )
        with (
            tqdm(
                total=len(tasks),
                initial=len(tasks) - len(todo),
                unit="row",
                disable=None if options.progress else True,
            ) as bar,
            closing(results),
        ):
            waiting: list[tuple[Task, Row]] = []
            for task, result in results:
                bar.set_description(task.key.rewrite)
                waiting.append((task, result))
                if task.key == BASELINE or BASELINE in self.done:  # with which all other rows are compared
                    for one, its_result in sorted(waiting, key=lambda each: each[0].key != BASELINE):
                        self._write(one.key, its_result)
                    bar.update(len(waiting))
                    waiting = []
                if task.key != BASELINE and time.monotonic() - drawn > REDRAW_SECONDS:
                    self._draw()
                    drawn = time.monotonic()
        self._draw()
        return [self.done[task.key] for task in tasks]

    def _draw(self) -> None:
        draw_results(self.store.folder, self.store.rows, list(self.tester.bench.layers))

    def _write(self, key: Key, result: Row) -> None:
        if key == BASELINE:
            self._check_trained(result["accuracy"])
        before = self.done[BASELINE]["accuracy"] if key != BASELINE else result["accuracy"]
        row: Row = {
            "model": self.store.config["model"],
            **key.fields,
            "accuracy": result["accuracy"],
            "accuracy_change": result["accuracy"] - before,
            "images": len(self.tester.images),
            **{name: value for name, value in result.items() if name not in ("accuracy", "seconds")},
            "config": config_hash(self.store.config),
            "seconds": result["seconds"],
        }
        self.store.append(row)
        self.done[key] = row

    def _check_trained(self, top1: float) -> None:
        """Refuse a network that looks untrained, if the options do not allow it.

        A network whose batch-norm statistics have been updated looks trained. Of others the accuracy decides: the
        binomial distribution gives the probability that guessing reaches it, if a guess is right as often as the most
        frequent class.

        Raises:
            StudyError: the network looks untrained.
        """
        from scipy.stats import binom

        model, count = self.tester.bench.model, len(self.tester.images)
        options = self.options
        trained = options.prepare is not None or any(_has_statistics(module) for module in batch_norms(model))
        if options.untrained or trained:
            return
        frequent = float(self.tester.images.labels.bincount().max()) / count
        probability = float(binom.sf(round(top1 * count) - 1, count, frequent))
        if probability > CHANCE:
            raise StudyError(
                f"{type(model).__name__} looks untrained: its accuracy is that of guessing",
                accuracy=f"{top1:.4f} of {count} images; the most frequent class has {frequent:.4f} of them",
                probability=f"{probability:.2g}, that guessing is as good or better",
                fix="trained weights; or StudyOptions(untrained=True), on the command line --untrained",
            )


def _has_statistics(module: nn.Module) -> bool:
    """Whether a batch normalisation has running statistics other than those it was made with."""
    mean, variance = getattr(module, "running_mean", None), getattr(module, "running_var", None)
    return mean is not None and variance is not None and bool((mean != 0).any() or (variance != 1).any())
