"""Make the rows of a study that are not there yet, in the process or on workers, and write each into its folder."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import closing

from torch import nn

from ..errors import StudyError
from ..model import batch_norms
from ..workers import run_tasks
from .figures import draw_results, figure_suffix
from .folder import config_hash
from .plan import Task, groups_of
from .row_results import RowTester, row_results
from .rows import Key, Row
from .store import Store

REDRAW_SECONDS = 60
"""Seconds after which the figures are drawn again while rows come in."""

CHANCE = 0.05
"""A network looks trained if guessing would reach its accuracy with a smaller probability than this."""


class Runner:
    """Has the rows of a study made, and writes them. Only this process writes.

    Args:
        testers: name of a network -> its tests; the options of all are the same.
        store: with a complete config.
    """

    def __init__(self, testers: Mapping[str, RowTester], store: Store) -> None:
        self.testers, self.store = testers, store
        self.options = next(iter(testers.values())).bench.options
        self.done = {Key.of(row): row for row in store.rows}
        shared = {name: value for name, value in store.config.items() if name != "models"}
        weights = store.config["models"]
        self.hashes = {name: config_hash({**shared, "model": name, "weights": weights[name]}) for name in testers}

    def run(self, tasks: Sequence[Task]) -> list[Row]:
        """Every row that is asked for; those that the store has are not computed again. The figures are drawn."""
        from tqdm import tqdm

        drawn = time.monotonic()
        options = self.options
        todo = [task for task in tasks if task.key not in self.done]
        if options.scheduler is None:
            self._measure(todo)
        results = run_tasks(
            row_results,
            groups_of(
                todo,
                {name: tester.bench.layers for name, tester in self.testers.items()},
                spread=options.scheduler is not None,
            ),
            shared=self.testers,
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
            waiting: dict[str, list[tuple[Key, Row]]] = {name: [] for name in self.testers}
            for task, result in results:
                key, rows = task.key, waiting[task.key.model]
                bar.set_description(key.rewrite)
                rows.insert(0 if key == key.baseline else len(rows), (key, result))
                if key == key.baseline or key.baseline in self.done:  # with which others of this network are compared
                    for one, its_result in rows:
                        self._write(one, its_result)
                    bar.update(len(rows))
                    rows.clear()
                if key != key.baseline and time.monotonic() - drawn > REDRAW_SECONDS:
                    self._draw()
                    drawn = time.monotonic()
        self._draw()
        return [self.done[task.key] for task in tasks]

    def _measure(self, tasks: Sequence[Task]) -> None:
        """Measure the metrics in which rows report their errors, of all layers in one pass over the images."""
        for name, tester in self.testers.items():
            needed = [task.layers for task in tasks if task.key.model == name and task.key.reported]
            tester.bench.metrics(dict.fromkeys(layer for layers in needed for layer in layers))

    def _draw(self) -> None:
        for name, tester in self.testers.items():
            rows = [row for row in self.store.rows if row["model"] == name]
            draw_results(
                self.store.folder,
                rows,
                list(tester.bench.layers),
                suffix=figure_suffix(self.store.config["models"], name),
            )

    def _write(self, key: Key, result: Row) -> None:
        if key == key.baseline:
            self._check_trained(key.model, result["accuracy"])
        before = self.done[key.baseline]["accuracy"] if key != key.baseline else result["accuracy"]
        row: Row = {
            **key.fields,
            "accuracy": result["accuracy"],
            "accuracy_change": result["accuracy"] - before,
            "images": len(self.testers[key.model].images),
            **{name: value for name, value in result.items() if name not in ("accuracy", "seconds")},
            "config": self.hashes[key.model],
            "seconds": result["seconds"],
        }
        self.store.append(row)
        self.done[key] = row

    def _check_trained(self, name: str, top1: float) -> None:
        """Refuse a network that looks untrained, if the options do not allow it.

        A network whose batch-norm statistics have been updated looks trained. Of others the accuracy decides: the
        binomial distribution gives the probability that guessing reaches it, if a guess is right as often as the most
        frequent class.

        Raises:
            StudyError: the network looks untrained.
        """
        from scipy.stats import binom

        model, images, options = self.testers[name].bench.model, self.testers[name].images, self.options
        trained = options.prepare is not None or any(_has_statistics(module) for module in batch_norms(model))
        if options.untrained or trained:
            return
        count = len(images)
        frequent = float(images.labels.bincount().max()) / count
        probability = float(binom.sf(round(top1 * count) - 1, count, frequent))
        if probability > CHANCE:
            raise StudyError(
                f"{name} looks untrained: its accuracy is that of guessing",
                accuracy=f"{top1:.4f} of {count} images; the most frequent class has {frequent:.4f} of them",
                probability=f"{probability:.2g}, that guessing is as good or better",
                fix="trained weights; or StudyOptions(untrained=True), on the command line --untrained",
            )


def _has_statistics(module: nn.Module) -> bool:
    """Whether a batch normalisation has running statistics other than those it was made with."""
    mean, variance = getattr(module, "running_mean", None), getattr(module, "running_var", None)
    return mean is not None and variance is not None and bool((mean != 0).any() or (variance != 1).any())
