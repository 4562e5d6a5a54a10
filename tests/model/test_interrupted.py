"""Work on whole models that is watched, and that is interrupted: bars, the log, and a model left whole."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.conversion_cases import SHAPE, assert_same, inputs, network, state
from tnalgebra import nn as layers
from tnalgebra.model.compare import compare
from tnalgebra.model.convert import convert

REQUEST: dict[Any, Any] = {nn.Conv2d: ["out | in kh kw", "out kh | in kw"], "8": ("out | in", 2)}
SETTINGS: dict[str, Any] = {"size": "parameters 0.7", "example": SHAPE, "fractions": (0.3, 0.6)}


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_bars_are_shown_on_a_terminal_unless_they_are_off(monkeypatch: pytest.MonkeyPatch) -> None:
    written = []
    for stream, progress in ((Terminal(), True), (Terminal(), False), (io.StringIO(), True)):
        monkeypatch.setattr(sys, "stderr", stream)
        convert(network(), REQUEST, calibration=inputs(), progress=progress, **SETTINGS)
        compare(torch.randn(4, 3, 2), ["cp", "out | in k"], 2, progress=progress)
        written.append(stream.getvalue())
    for word in ("calibration", "error curves", "fitting layers", "planning layers", "comparing"):
        assert word in written[0]
    assert written[1:] == ["", ""]


def test_each_layer_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO", "tnalgebra"):
        _, report = convert(network(), {"3": ("out | in kh kw", 2)})
        compare(torch.randn(4, 3, 2), ["cp"], 2)
    assert {f"{row.name}: {row.done}" for row in report.rows} <= set(caplog.messages)
    assert caplog.messages[-1].startswith("cp: error 0.")
    assert {record.name.partition(".")[0] for record in caplog.records} == {"tnalgebra"}


def interrupted_after(count: int, folder: str) -> Callable[[FrameType, str, Any], Any]:
    """A trace function that raises KeyboardInterrupt at a line of the package, the `count`-th that is reached."""
    left = count

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal left
        if folder not in frame.f_code.co_filename or frame.f_code.co_name == "restore_layers":
            return None
        if event == "line":
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
        return trace

    return trace


MODULES = ("model/convert.py", "model/conversion.py", "model/budget.py", "model/new_layers.py", "model/surgery.py")


@pytest.mark.parametrize("module", MODULES)
def test_an_interruption_at_any_line_leaves_the_model_whole(module: str) -> None:
    count, finished = 1, False
    while not finished:
        model = network()
        before = state(model)
        sys.settrace(interrupted_after(count, module))
        try:
            convert(model, REQUEST, progress=False, **SETTINGS)
            finished = True
        except KeyboardInterrupt:
            pass
        finally:
            sys.settrace(None)
        if not finished:
            assert_same(before, state(model))
        count = count * 2 + 3
    assert any(isinstance(one, layers.KernelLayer) for one in model.modules())


class Interrupting(nn.Module):
    """A model that is interrupted in one of its forward passes."""

    def __init__(self, call: int) -> None:
        super().__init__()
        self.inner, self.left = network(), call

    def forward(self, x: Tensor) -> Tensor:
        self.left -= 1
        x = self.inner[:4](x)
        if self.left == 0:
            raise KeyboardInterrupt
        return self.inner[4:](x)


@pytest.mark.parametrize("sequential", [False, True])
def test_an_interruption_in_a_forward_pass_leaves_the_model_whole(sequential: bool) -> None:
    """The passes are those on the example, on calibration data, through a copy, and through the converted model."""
    request = {"inner.[03]": ("out | in kh kw", 2)}
    settings: dict[str, Any] = {"calibration": inputs(), "sequential": sequential, "example": SHAPE}
    for call in range(1, 50):
        model = Interrupting(call).train()
        before = state(model)
        try:
            convert(model, request, **settings)
        except KeyboardInterrupt:
            assert_same(before, state(model))
        else:
            break
    assert 5 <= call < 50


def test_an_interruption_by_the_calibration_data_leaves_the_model_whole() -> None:
    def batches() -> Iterator[Tensor]:
        yield inputs()[0]
        raise KeyboardInterrupt

    model = network()
    before = state(model)
    with pytest.raises(KeyboardInterrupt):
        convert(model, {"3": ("out | in kh kw", 2)}, calibration=batches())
    assert_same(before, state(model))
