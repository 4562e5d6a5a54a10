"""Test a network with several sets of weights: what comes before the first changed weight is computed once."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

from ..model import ForwardSteps, Images, Progress, evaluating, trace
from .accuracy import accuracy, right_answers

NewWeights: TypeAlias = Mapping[nn.Parameter, Tensor]
"""Parameter -> its new value, of the same shape, type and device."""

MOST_TOGETHER = 8
"""Sets of weights that share a pass over the images where their inputs are not kept. Their results come together."""

TRIED = 2
"""Images with which it is tried that a network gives the same logits when it is tested in steps."""


@dataclass(frozen=True, eq=False)
class _Test:
    """A change, the step at which it begins to matter, and whether later steps overwrite what is known by then."""

    change: NewWeights
    step: int
    overwrites: bool


class SharedTests:
    """Accuracies of one network with changed weights, which agree with those of `accuracy`.

    The forward pass is cut in two before the first step that reads a changed weight. What the steps before it compute
    is kept for the next test, whose cut is usually a little later. Where that would take too much memory, several
    tests share a pass instead, in which the steps between their cuts are done once for each batch.

    A network is tested as a whole where torch.fx cannot trace it, where its forward pass changes the network itself or
    draws random numbers, and where a few images show that the logits would not be the same to the last bit.

    Args:
        network: the network. Its other weights must stay as they are between tests, or come back.
        images: the test images.
        batch_size, dtype, device: as for `accuracy`.
        memory: the bytes that may be kept between tests.
    """

    def __init__(
        self,
        network: nn.Module,
        images: Images,
        *,
        batch_size: int,
        dtype: torch.dtype,
        device: torch.device | str,
        memory: int,
    ) -> None:
        self.network = network
        self.images = images
        self.memory = memory
        self._tested: dict[str, Any] = {"batch_size": batch_size, "dtype": dtype, "device": device}
        self._kept: dict[int, Progress] = {}

    def accuracies(self, changes: Sequence[NewWeights]) -> list[float]:
        """The accuracy for each change; a logit that is not finite is a wrong answer."""
        with evaluating(self.network):
            tests = [self._test(change) for change in changes]
            right = self._shared(sorted(filter(None, tests), key=lambda test: test.step))
        return [
            self._whole(change) if test is None else int(right[test]) / len(self.images)
            for change, test in zip(changes, tests, strict=True)
        ]

    def forget(self) -> None:
        """Free what is kept between tests."""
        self._kept.clear()

    def together(self, parameters: Iterable[nn.Parameter]) -> int:
        """How many changes of such parameters to test in one call: 1 if all that is known before them can be kept."""
        with evaluating(self.network):
            if self._steps is None:
                return 1
            few = self._few()
            progress, most = self._steps.start(few), 0
            for step in sorted({self._steps.first_reader([parameter]) for parameter in parameters}):
                self._steps.advance(progress, step)
                most = max(most, progress.bytes())
        return 1 if most / len(few) * len(self.images) <= self.memory else MOST_TOGETHER

    def _whole(self, change: NewWeights) -> float:
        with _exchanged(change):
            return accuracy(self.network, self.images, not_finite="wrong", **self._tested)

    def _few(self) -> Tensor:
        """A few images; not the same tensor twice, because a network may overwrite it."""
        few = self.images.pixels[:TRIED]
        return self.images.normalise(few, dtype=self._tested["dtype"], device=self._tested["device"])

    @cached_property
    def _steps(self) -> ForwardSteps | None:
        """The steps of the network, if they are all that its forward pass does."""
        first = self.network(self._few())  # it may make what it needs in the first call
        before = _state(self.network)
        if not _equal(self.network(self._few()), first) or _state(self.network) != before:
            return None
        return trace(self.network)

    def _test(self, change: NewWeights) -> _Test | None:
        """How to test a change in two parts, tried on a few images; None where the network is tested as a whole."""
        step = self._steps.first_reader(change) if self._steps is not None else 0
        if self._steps is None or step == 0:
            return None
        try:
            progress = self._steps.start(self._few())
            self._steps.advance(progress, step)
            before = progress.versions()
            with _exchanged(change):
                logits = self._steps.finish(progress)
                same = _equal(logits, self.network(self._few()))
        except Exception:  # somebody else's code, which may raise anything; the whole network then says what is wrong
            return None
        return _Test(change, step, progress.versions() != before) if same else None

    def _shared(self, tests: Sequence[_Test]) -> dict[_Test, Tensor]:
        """The number of right answers of each test; the tests are in the order of their steps."""
        right = {test: torch.zeros((), dtype=torch.int64, device=self._tested["device"]) for test in tests}
        steps = self._steps
        if steps is None or not tests:
            return right
        left = self.memory - sum(progress.bytes() for progress in self._kept.values())
        for number, (pixels, labels) in enumerate(self.images.batches(**self._tested)):
            progress = self._kept.pop(number, None)
            left += 0 if progress is None else progress.bytes()
            if progress is None or progress.step > tests[0].step:
                progress = steps.start(pixels)
            for test in tests:
                steps.advance(progress, test.step)
                with _exchanged(test.change):
                    logits = steps.finish(progress.copy() if test.overwrites else progress)
                right[test] += right_answers(logits, labels)
            if progress.bytes() <= left:
                self._kept[number] = progress
                left -= progress.bytes()
        return right


@contextmanager
def _exchanged(change: NewWeights) -> Iterator[None]:
    """Give parameters other values for a while."""
    before = {parameter: parameter.data for parameter in change}
    try:
        for parameter, value in change.items():
            parameter.data = value
        yield
    finally:
        for parameter, data in before.items():
            parameter.data = data


def _equal(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal to the last bit; NaN is equal to NaN."""
    return torch.allclose(one, other, rtol=0, atol=0, equal_nan=True)


def _state(network: nn.Module) -> list[object]:
    """What a forward pass may change: tensors, attributes of modules, the state of the generator of random numbers."""
    facts: list[object] = [torch.get_rng_state().tolist()]
    for module in network.modules():
        tensors = [*module._parameters.values(), *module._buffers.values()]
        facts += [(id(tensor), tensor._version) for tensor in tensors if tensor is not None]
        for name, value in vars(module).items():
            size = len(value) if isinstance(value, list | dict | set) else 0
            if isinstance(value, Tensor) and not value.is_inference():
                size = value._version
            facts.append((name, value if isinstance(value, int | float | str) else id(value), size))
    return facts
