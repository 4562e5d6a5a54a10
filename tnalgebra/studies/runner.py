"""Test a network with some of its kernels replaced, and make a row of each test."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import StudyError, TnalgebraError
from ..model import Images, batch_norms, convert, recalibrate_batch_norm
from ..nn import kernel_layers
from .accuracy import accuracy, shuffled_batches
from .compress import Compressed, compress_rows
from .figures import draw_results
from .kernels import Workbench
from .options import StudyOptions
from .plan import Work
from .shared_tests import SharedTests
from .store import BASELINE, Key, Row, Store, config_hash

REDRAW_SECONDS = 60
"""Seconds after which the figures are drawn again while rows come in."""

CHANCE = 0.05
"""A network looks trained if guessing would reach its accuracy with a smaller probability than this."""


class Runner:
    """Tests the network with some kernels replaced, row by row."""

    def __init__(self, bench: Workbench, images: Images, store: Store) -> None:
        self.bench = bench
        self.images = images
        self.store = store
        self.modules = kernel_layers(bench.model)
        self.done = {Key.of(row): row for row in store.rows}
        self.tested: dict[str, Any] = {name: getattr(bench.options, name) for name in ("batch_size", "dtype", "device")}
        self.tests = SharedTests(bench.model, images, memory=bench.options.memory, **self.tested)

    def run(self, works: Sequence[Work]) -> list[Row]:
        """Every row that is asked for; those that the store has are not computed again. The figures are drawn."""
        from tqdm import tqdm

        drawn = started = time.monotonic()
        keys = [BASELINE, *(task.key for work in works for task in work.tasks)]
        with tqdm(
            total=len(keys),
            initial=sum(key in self.done for key in keys),
            unit="row",
            disable=None if self.bench.options.progress else True,
        ) as bar:
            if BASELINE not in self.done:
                bar.set_description("as it is")
                self._finish({BASELINE: {}}, started)
                bar.update()
            for work in works:
                todo = [task for task in work.tasks if task.key not in self.done]
                bar.set_description(work.rewrite.text)
                started = time.monotonic()
                waiting: dict[Key, Mapping[str, Compressed]] = {}
                for number, (task, kernels) in enumerate(compress_rows(work, todo, self.bench), 1):
                    waiting[task.key] = kernels
                    if len(waiting) < self._together and number < len(todo):
                        continue
                    self._finish(waiting, started)
                    bar.update(len(waiting))
                    waiting = {}
                    if time.monotonic() - drawn > REDRAW_SECONDS:
                        self._draw()
                        drawn = time.monotonic()
                    started = time.monotonic()
        self._draw()
        return [self.done[key] for key in keys]

    def _draw(self) -> None:
        draw_results(self.store.folder, self.store.rows, list(self.bench.layers.values()))

    def _finish(self, rows: Mapping[Key, Mapping[str, Compressed]], started: float) -> None:
        """Test the network with the kernels of each row, and write the rows."""
        accuracies = self._accuracies([*rows.values()])
        seconds = (time.monotonic() - started) / len(rows)
        for (key, kernels), top1 in zip(rows.items(), accuracies, strict=True):
            self._write(key, kernels, top1, seconds)

    def _write(self, key: Key, kernels: Mapping[str, Compressed], top1: float, seconds: float) -> None:
        if key == BASELINE:
            self._check_trained(top1)
        before = self.done[BASELINE]["accuracy"] if key != BASELINE else top1
        whole = sum(parameter.numel() for parameter in self.bench.model.parameters())
        saved = sum(self.bench.layers[name].weight.numel() - one.details["parameters"] for name, one in kernels.items())
        errors = [one.details["relative_error"] ** 2 for one in kernels.values()]
        row: Row = {
            "model": self.store.config["model"],
            **key.fields,
            "accuracy": top1,
            "accuracy_change": top1 - before,
            "images": len(self.images),
            "mean_squared_relative_error": math.fsum(errors) / len(errors) if errors else 0.0,
            "parameters_kept": (whole - saved) / whole,
            **self._multiply_adds(key, kernels),
            "layers": {name: dict(one.details) for name, one in kernels.items()},
            "config": config_hash(self.store.config),
            "version": version("tnalgebra"),
            "seconds": round(seconds, 3),
        }
        self.store.append(row)
        self.done[key] = row

    def _multiply_adds(self, key: Key, kernels: Mapping[str, Compressed]) -> Row:
        """`multiply_adds_kept` of a row under a budget: of all kernel layers, for one image, in factored form."""
        if key.budget is None:
            return {}
        quick = {"starts": 1, "sweeps": 0}  # the cores do not matter, only their shapes
        factored = {name: (one.rule, {"size": one.details["ranks"], **quick}) for name, one in kernels.items()}
        try:
            _, report = convert(
                self.bench.model,
                {**factored, "*": None},
                example=self.bench.example,
                inplace=False,
                allow_larger=True,
                candidates="factored",
                progress=False,
            )
        except TnalgebraError:  # a network that cannot be converted has a row all the same
            return {}
        if not report.multiply_adds or report.multiply_adds_after is None or {*report.converted} != {*kernels}:
            return {}
        return {"multiply_adds_kept": report.multiply_adds_after / report.multiply_adds}

    def _check_trained(self, top1: float) -> None:
        """Refuse a network that looks untrained, if the options do not allow it.

        A network whose batch-norm statistics have been updated looks trained. Of others the accuracy decides: the
        binomial distribution gives the probability that guessing reaches it, if a guess is right as often as the most
        frequent class.

        Raises:
            StudyError: the network looks untrained.
        """
        from scipy.stats import binom

        model, count = self.bench.model, len(self.images)
        options = self.bench.options
        trained = options.prepare is not None or any(_has_statistics(module) for module in batch_norms(model))
        if options.untrained or trained:
            return
        frequent = float(self.images.labels.bincount().max()) / count
        probability = float(binom.sf(round(top1 * count) - 1, count, frequent))
        if probability > CHANCE:
            raise StudyError(
                f"{type(model).__name__} looks untrained: its accuracy is that of guessing",
                accuracy=f"{top1:.4f} of {count} images; the most frequent class has {frequent:.4f} of them",
                probability=f"{probability:.2g}, that guessing is as good or better",
                fix="trained weights; or StudyOptions(untrained=True), on the command line --untrained",
            )

    @cached_property
    def _together(self) -> int:
        """The number of rows that are tested together."""
        if self._recalibrates:
            return 1
        with in_dtype(self.bench.model, self.bench.options.dtype):
            return self.tests.together([self.modules[name].get_parameter("weight") for name in self.bench.layers])

    @property
    def _recalibrates(self) -> bool:
        return self.bench.options.recalibration is not None and bool(batch_norms(self.bench.model))

    def _accuracies(self, rows: Sequence[Mapping[str, Compressed]]) -> list[float]:
        if self._recalibrates or not any(rows):
            return [self._accuracy(kernels) for kernels in rows]
        with in_dtype(self.bench.model, self.bench.options.dtype):
            return self.tests.accuracies([self._change(kernels) for kernels in rows])

    def _change(self, kernels: Mapping[str, Compressed]) -> dict[nn.Parameter, Tensor]:
        """The weights of the network that these kernels replace, and their new values in its type."""
        weights = {name: self.modules[name].get_parameter("weight") for name in kernels}
        return {weight: torch.empty_like(weight.data).copy_(kernels[name].weight) for name, weight in weights.items()}

    def _accuracy(self, kernels: Mapping[str, Compressed]) -> float:
        """The accuracy of the network by itself, with recalibrated batch normalisations if that is requested."""
        network, options = self.bench.model, self.bench.options
        with in_dtype(network, options.dtype):
            with torch.no_grad():
                for name, kernel in kernels.items():
                    self.modules[name].weight.copy_(kernel.weight)
            if options.recalibration is not None and self._recalibrates:
                batches = shuffled_batches(options.recalibration, max_shift=options.recalibration_shift, **self.tested)
                recalibrate_batch_norm(network, batches)
            # a truncation may make the network overflow, and the study continues then; the untouched one may not
            return accuracy(network, self.images, not_finite="wrong" if kernels else "error", **self.tested)


def one_image(images: Images, network: nn.Module, options: StudyOptions) -> Tensor:
    """One of the images, in the type of the network, on the device: shape (1, channels, height, width)."""
    pixels, _ = next(iter(images.subset(1, seed=0).batches(options.batch_size, device=options.device)))
    return pixels.to(next((p.dtype for p in network.parameters() if p.is_floating_point()), pixels.dtype))


@contextmanager
def in_dtype(network: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Give the network copies of its tensors in another type; at the end it has the original ones again."""
    parameters = [(parameter, parameter.data) for parameter in network.parameters()]
    buffers = [(module._buffers, *item) for module in network.modules() for item in module._buffers.items()]

    def copy(tensor: Tensor) -> Tensor:
        return tensor.to(dtype if tensor.is_floating_point() else tensor.dtype, copy=True)

    try:
        for parameter, data in parameters:
            parameter.data = copy(data)
        for holder, name, buffer in buffers:
            holder[name] = None if buffer is None else copy(buffer)
        yield
    finally:
        for parameter, data in parameters:
            parameter.data = data
        for holder, name, buffer in buffers:
            holder[name] = buffer


def _has_statistics(module: nn.Module) -> bool:
    """Whether a batch normalisation has running statistics other than those it was made with."""
    mean, variance = getattr(module, "running_mean", None), getattr(module, "running_var", None)
    return mean is not None and variance is not None and bool((mean != 0).any() or (variance != 1).any())
