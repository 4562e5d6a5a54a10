"""What the rows of a study hold: compress kernels, and test the network with them in their places."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import TnalgebraError
from ..model import Images, batch_norms, convert, recalibrate_batch_norm
from ..nn import kernel_layers
from .accuracy import accuracy, shuffled_batches
from .compress import Compressed, compress_rows
from .folder import made_with
from .kernels import Workbench, layers_left
from .options import StudyOptions
from .plan import Task
from .rows import Row
from .shared_tests import SharedTests


def row_results(testers: Mapping[str, RowTester], tasks: Sequence[Task]) -> Iterator[Row]:
    """For each row of one network and rewrite, what is computed: its fields but the key and those of the whole study.

    Rows whose kernels come early are tested together where the network's values before them cannot be kept. What other
    networks keep between tests is freed first, so that the memory of the options is enough for all.
    """
    tester = testers[tasks[0].key.model]
    for other in testers.values():
        if other is not tester:
            other.tests.forget()
    waiting: list[tuple[Task, dict[str, Compressed]]] = []
    started = time.monotonic()
    for number, row in enumerate(compress_rows(tasks, tester.bench), 1):
        waiting.append(row)
        if len(waiting) < tester.together and number < len(tasks):
            continue
        accuracies = tester.accuracies([kernels for _, kernels in waiting])
        seconds = (time.monotonic() - started) / len(waiting)
        for (task, kernels), top1 in zip(waiting, accuracies, strict=True):
            made = made_with(tester.bench.options.device)
            yield {"accuracy": top1, **tester.describe(task, kernels), **made, "seconds": round(seconds, 3)}
        waiting, started = [], time.monotonic()


class RowTester:
    """Tests a network with some kernels replaced. Between tests it keeps what the next ones need again.

    A pickle of it has only what the study was called with; everything else is made again.

    Args:
        model: the network in evaluation mode, on the device of the options. It is as it was after each test.
    """

    def __init__(self, model: nn.Module, images: Images, options: StudyOptions) -> None:
        self.images = images
        layers = {layer.name: layer for layer in layers_left(model, options.skip)}
        self.bench = Workbench(model, layers, options, one_image(images, model, options))
        self.modules = kernel_layers(model)
        self.tested: dict[str, Any] = {name: getattr(options, name) for name in ("batch_size", "dtype", "device")}
        self.tests = SharedTests(model, images, memory=options.memory, **self.tested)

    def __reduce__(self) -> tuple[object, ...]:
        options = replace(self.bench.options, prepare=None, scheduler=None)
        return RowTester, (self.bench.model, self.images, options)

    def describe(self, task: Task, kernels: Mapping[str, Compressed]) -> Row:
        """Errors and sizes of the kernels of a row."""
        whole = sum(parameter.numel() for parameter in self.bench.model.parameters())
        saved = sum(self.bench.layers[name].weight.numel() - one.details["parameters"] for name, one in kernels.items())
        errors = [one.details["relative_error"] ** 2 for one in kernels.values()]
        return {
            "mean_squared_relative_error": math.fsum(errors) / len(errors) if errors else 0.0,
            "parameters_kept": (whole - saved) / whole,
            **self._multiply_adds(task, kernels),
            "layers": {name: dict(one.details) for name, one in kernels.items()},
        }

    def _multiply_adds(self, task: Task, kernels: Mapping[str, Compressed]) -> Row:
        """`multiply_adds_kept` of a row under a budget: of all kernel layers, for one image, in factored form."""
        if task.key.budget is None:
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
                tune=False,  # a measured plan would depend on the machine, and on what else it does
                progress=False,
            )
        except TnalgebraError:  # a network that cannot be converted has a row all the same
            return {}
        if not report.multiply_adds or report.multiply_adds_after is None or {*report.converted} != {*kernels}:
            return {}
        return {"multiply_adds_kept": report.multiply_adds_after / report.multiply_adds}

    @cached_property
    def together(self) -> int:
        """The number of rows that are tested together."""
        if self._recalibrates:
            return 1
        with in_dtype(self.bench.model, self.bench.options.dtype):
            return self.tests.together([self.modules[name].get_parameter("weight") for name in self.bench.layers])

    @property
    def _recalibrates(self) -> bool:
        return self.bench.options.recalibration is not None and bool(batch_norms(self.bench.model))

    def accuracies(self, rows: Sequence[Mapping[str, Compressed]]) -> list[float]:
        """The accuracy of the network with the kernels of each row."""
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
