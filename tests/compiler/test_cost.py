"""The cost model's laws, the file of measured constants, and the fit that finds them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.refusals import refused
from tnalgebra.compiler import measure_device as calibration
from tnalgebra.compiler.constants import (
    CPU_DEFAULTS,
    CUDA_DEFAULTS,
    as_record,
    calibration_file,
    constants_for,
    identity,
)
from tnalgebra.compiler.cost import FORMATS, Constants, CostModel, Format, Kinds, Rates, Workload, kind_of
from tnalgebra.compiler.measure_device import Measurement, calibrate, fit, measure
from tnalgebra.errors import CompileError

CPU = torch.device("cpu")
TABLES = st.sampled_from([table[name] for table in (CPU_DEFAULTS, CUDA_DEFAULTS) for name in FORMATS])

CONVOLUTION = {
    "positions": st.integers(1, 10**5),
    "groups": st.integers(1, 64),
    "summed": st.integers(1, 2048),
    "new": st.integers(1, 2048),
    "window": st.integers(1, 49),
}
PRODUCT = {name: st.integers(1, 4000) for name in ("groups", "left", "summed", "right")}
TRAFFIC = {name: st.integers(1, 10**8) for name in ("read", "written")}


def convolution(*, positions: int, groups: int, summed: int, new: int, window: int) -> Workload:
    """One whose kernel keeps the number of positions."""
    written = positions * groups * new
    read = positions * groups * summed + groups * new * summed * window
    return Workload("convolution", written * summed * window, read, written, groups, summed, new)


def matrices(*, groups: int, left: int, summed: int, right: int) -> Workload:
    written = groups * left * right
    return Workload("product", written * summed, groups * summed * (left + right), written, groups, summed, right, left)


def pointwise(*, read: int, written: int) -> Workload:
    return Workload("pointwise", read=read, written=written)


STEPS = [(convolution, CONVOLUTION), (matrices, PRODUCT), (pointwise, TRAFFIC)]
WORKS = st.one_of(*(st.builds(step, **sizes) for step, sizes in STEPS), st.just(Workload("view")))


def some_constants(*, factor: float = 1.0) -> Constants:
    """Every number another one, so that no two can be swapped unseen."""
    numbers = iter(range(1, 1000))

    def kinds() -> Kinds:
        return Kinds(*(Rates(*(factor * next(numbers) * 1e-9 for _ in Rates._fields)) for _ in Kinds._fields))

    return Constants(view=factor * 1e-6, cache=2e6, large=3e7, kept=factor * 1e-10, forward=kinds(), backward=kinds())


# Laws ----------------------------------------------------------------------------------------------------------------


@given(constants=TABLES, work=WORKS)
def test_every_price_is_positive_and_backward_costs_more(constants: Constants, work: Workload) -> None:
    forward = CostModel(constants).seconds(work, weights=False)
    assert 0 < forward < CostModel(constants, backward=True).seconds(work, weights=False) < float("inf")


@given(constants=TABLES, work=WORKS)
def test_frozen_weights_cost_nothing_and_inputs_what_they_did(constants: Constants, work: Workload) -> None:
    for backward in (False, True):
        frozen = CostModel(constants, backward=backward, frozen=True)
        thawed = CostModel(constants, backward=backward)
        assert frozen.seconds(work, weights=True) == 0
        assert frozen.seconds(work, weights=False) == thawed.seconds(work, weights=False)
        assert thawed.seconds(work, weights=True) == thawed.seconds(work, weights=False)


@pytest.mark.parametrize(("step", "sizes"), STEPS)
@given(constants=TABLES, backward=st.booleans(), data=st.data())
def test_more_of_anything_costs_more(
    step: Callable[..., Workload], sizes: dict[str, Any], constants: Constants, backward: bool, data: st.DataObject
) -> None:
    shape = {name: data.draw(values) for name, values in sizes.items()}
    name = data.draw(st.sampled_from([*sizes]))
    small, large = step(**shape), step(**{**shape, name: 2 * shape[name]})
    if kind_of(small) == kind_of(large):
        model = CostModel(constants, backward=backward)
        assert model.seconds(small, weights=False) < model.seconds(large, weights=False)


def test_each_shape_has_its_kind() -> None:
    shape: dict[str, Any] = {"positions": 50, "groups": 1, "summed": 3, "new": 5, "window": 9}
    assert kind_of(convolution(**shape)) == "convolution"
    assert kind_of(convolution(**{**shape, "window": 1})) == "one_wide"
    assert kind_of(convolution(**{**shape, "groups": 4})) == "grouped"
    assert kind_of(convolution(**{**shape, "groups": 4, "summed": 1})) == "grouped"
    assert kind_of(convolution(**{**shape, "groups": 4, "summed": 1, "new": 1})) == "depthwise"
    assert kind_of(Workload("pointwise", read=7, written=7)) == "copy"
    assert kind_of(Workload("pointwise", read=8, written=7)) == "pointwise"


def test_a_price_is_the_formula_of_the_module() -> None:
    """By hand, for a product larger than `large` on both sides, so that every rate takes part."""
    constants = replace(some_constants(), large=10.0, cache=100.0)
    rate = constants.forward.product
    read, written, moved = 2 * 3 * (4 + 5), 2 * 4 * 5, 2 * 3 * (4 + 5) + 2 * 4 * 5
    wide = 2 * 3 * 4 * 5 * (1 + rate.narrow_summed / 3) * (1 + rate.narrow_new / 4) * (1 + rate.narrow_new / 5)
    wanted = rate.call + rate.multiply_add * wide + (rate.read + rate.read_large) * read
    wanted += (rate.written + rate.written_large) * written + rate.far * moved**2 / (moved + 100)
    seconds = CostModel(constants).seconds(matrices(groups=2, left=4, summed=3, right=5), weights=False)
    assert seconds == pytest.approx(wanted, rel=1e-14)  # rounding of ten operations


# Constants -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the test's own."""
    monkeypatch.setenv("TNALGEBRA_CACHE", str(tmp_path))
    return tmp_path


@pytest.mark.parametrize("name", FORMATS)
def test_without_a_calibration_the_package_has_constants(
    cache: Path, name: Format, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "some GPU")
    assert constants_for(CPU, torch.float32, name) == CPU_DEFAULTS[name]
    assert constants_for(torch.device("cuda"), torch.float32, name) == CUDA_DEFAULTS[name]
    assert not list(cache.iterdir())


def test_doubles_move_twice_the_bytes_at_half_the_speed(cache: Path) -> None:
    double, single = (constants_for(CPU, dtype, "contiguous") for dtype in (torch.float64, torch.float32))
    assert double.large == single.large / 2
    assert double.kept == single.kept * 2
    for name in ("multiply_add", "read", "written", "far", "read_large", "written_large"):
        assert getattr(double.forward.grouped, name) == 2 * getattr(single.forward.grouped, name)
    for name in ("call", "narrow_summed", "narrow_new"):
        assert getattr(double.forward.grouped, name) == getattr(single.forward.grouped, name)


def predicted(constants: Constants, work: Workload, *, backward: bool) -> float:
    """What the model says of the forward step alone, or of the gradients alone."""
    forward = CostModel(constants).seconds(work, weights=False)
    kept = 0.0 if work.kind == "pointwise" else constants.kept * work.read
    return CostModel(constants, backward=True).seconds(work, weights=False) - forward - kept if backward else forward


def fake_measurements(constants: Constants, name: Format) -> list[Measurement]:
    """What `measure` would find on a device that is as the model says."""
    prepared = (calibration.prepare_case(case, torch.device("meta"), torch.float32, name) for case in calibration.CASES)
    return [
        Measurement(work, backward, predicted(constants, work, backward=backward))
        for _, _, work in prepared
        for backward in (False, True)
    ]


def test_a_calibration_is_stored_for_a_dtype_and_a_number_of_threads(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Format] = []

    def measure(device: torch.device, dtype: torch.dtype, name: Format, *, seconds: float) -> list[Measurement]:
        asked.append(name)
        return fake_measurements(CPU_DEFAULTS[name], name)[::3]

    monkeypatch.setattr(calibration, "measure", measure)
    fitted = calibrate("cpu")
    assert asked == list(FORMATS)
    path = calibration_file(CPU, torch.float32)
    assert [file for file in cache.rglob("*") if file.is_file()] == [path]
    for name in FORMATS:
        assert constants_for(CPU, torch.float32, name) == fitted[name]
        assert fitted[name] != CPU_DEFAULTS[name]
        assert constants_for(CPU, torch.float64, name) != fitted[name]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    assert constants_for(CPU, torch.float32, "contiguous") == CPU_DEFAULTS["contiguous"]


def test_all_numbers_survive_the_file(cache: Path) -> None:
    constants = {name: some_constants(factor=1 / (3 + number)) for number, name in enumerate(FORMATS)}
    store({"identity": identity(CPU, torch.float32), "constants": {n: as_record(c) for n, c in constants.items()}})
    for name in FORMATS:
        assert constants_for(CPU, torch.float32, name) == constants[name]


def store(data: object) -> None:
    path = calibration_file(CPU, torch.float32)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = data if isinstance(data, str) else json.dumps(data)
    path.write_text(text, encoding="utf-8", errors="surrogateescape")


def whole() -> dict[str, Any]:
    made = {"identity": identity(CPU, torch.float32), "constants": {n: as_record(some_constants()) for n in FORMATS}}
    return json.loads(json.dumps(made))


def broken(*path: str, value: object = None) -> dict[str, Any]:
    """A whole file with one entry replaced, or gone."""
    made = place = whole()
    for key in path[:-1]:
        place = place[key]
    if value is None:
        del place[path[-1]]
    else:
        place[path[-1]] = value
    return made


RATE = ("constants", "contiguous", "backward", "grouped", "far")

REFUSED: dict[str, tuple[object, str]] = {
    "cut short": (json.dumps(whole())[:300], "char 300"),
    "empty": ("", "Expecting value"),
    "no text": ("\udcff", "utf-8"),
    "a list": ([], "TypeError: "),
    "no constants": (broken("constants"), "KeyError: 'constants'"),
    "another device": (broken("identity", "device", value="cpu abacus"), "abacus"),
    "another torch": (broken("identity", "torch", value="0.1"), "'torch': '0.1'"),
    "one format": (broken("constants", "channels_last"), "KeyError: 'channels_last'"),
    "a rate gone": (broken(*RATE), "KeyError: 'far'"),
    "a kind gone": (broken(*RATE[:-1]), "KeyError: 'grouped'"),
    **{
        str(value): (broken(*RATE, value=value), f"'far' is {value!r}")
        for value in (-1e-9, math.inf, math.nan, "1", True)
    },
    "no cache": (broken("constants", "contiguous", "cache", value=0), "'cache' and 'large'"),
}


@pytest.mark.parametrize(("data", "reason"), REFUSED.values(), ids=REFUSED.keys())
def test_a_broken_or_foreign_file_is_refused(cache: Path, data: object, reason: str) -> None:
    store(data)
    with refused(CompileError, reason, calibration_file(CPU, torch.float32), "delete the file"):
        constants_for(CPU, torch.float32, "channels_last")


# Measuring and fitting -----------------------------------------------------------------------------------------------


def test_every_kind_is_measured_at_small_sizes() -> None:
    cases: Sequence[calibration.Case] = (
        calibration.Convolution(2, 1, 3, 5, (3, 1), 4),
        calibration.Convolution(2, 1, 3, 5, (1, 1), 5, 2),
        calibration.Convolution(2, 3, 2, 4, (3, 3), 4),
        calibration.Convolution(2, 6, 1, 1, (1, 3), 4),
        calibration.Convolution(2, 6, 1, 1, (1, 15), 16),
        calibration.Channels(2, 3, 5, 4),
        calibration.Matrices(3, 4, 2, 5),
        *(calibration.Pointwise(2, 3, 4, step) for step in ("multiply", "scale", "outer", "copy", "sum")),
    )
    for name in FORMATS:
        measured = measure(CPU, torch.float32, name, seconds=0.0, cases=cases)
        assert {(kind_of(one.work), one.backward) for one in measured} == set(product(Kinds._fields, (False, True)))
        assert all(0 < one.seconds < 60 for one in measured)
        assert len(measured) == 2 * len(cases) - 2


@pytest.mark.parametrize("name", FORMATS)
def test_the_work_of_a_case_is_what_it_runs(name: Format) -> None:
    for case in calibration.CASES:
        operands, call, work = calibration.prepare_case(case, torch.device("meta"), torch.float32, name)
        assert work.written == call(*operands).numel(), case
        assert work.read == sum(operand.numel() for operand in operands), case


def relative_errors(constants: Constants, measurements: Sequence[Measurement]) -> dict[tuple[str, bool], float]:
    """How far predictions are off: (kind, backward) -> the median of |predicted - measured| / measured."""
    by_kind: dict[tuple[str, bool], list[float]] = {}
    for one in measurements:
        error = abs(predicted(constants, one.work, backward=one.backward) / one.seconds - 1)
        by_kind.setdefault((kind_of(one.work), one.backward), []).append(error)
    return {key: median(errors) for key, errors in by_kind.items()}


@pytest.mark.parametrize("name", FORMATS)
def test_the_fit_finds_the_constants_that_made_the_measurements(name: Format) -> None:
    """From a start that is off by up to a factor of three in every rate; errors below 2 %: what no measurement shows
    (a rate that takes no part anywhere) may stay where it was."""
    made = CPU_DEFAULTS[name]
    measurements = fake_measurements(made, name)
    factors = [1 / 3, 2.0, 0.5, 3.0, 1.5, 0.6, 2.5, 0.4, 1.2]

    def moved(kinds: Kinds) -> Kinds:
        return Kinds(*(Rates(*(v * f for v, f in zip(rates, factors, strict=True))) for rates in kinds))

    start = replace(made, forward=moved(made.forward), backward=moved(made.backward), cache=made.cache * 1.5)
    assert max(relative_errors(start, measurements).values()) > 0.2
    assert max(relative_errors(made, measurements).values()) < 1e-12
    fitted = fit(measurements, start)
    assert max(relative_errors(fitted, measurements).values()) < 0.02
    # the rates that most measurements depend on come back themselves
    for kind, rate in product(("convolution", "product"), ("call", "multiply_add")):
        wanted = getattr(getattr(made.forward, kind), rate)
        assert getattr(getattr(fitted.forward, kind), rate) == pytest.approx(wanted, rel=0.25)


def test_a_spoilt_measurement_hardly_moves_the_fit() -> None:
    """One in twenty, a hundred times too long: the median error stays below a tenth."""
    made = CPU_DEFAULTS["contiguous"]
    clean = fake_measurements(made, "contiguous")
    spoilt = [replace(one, seconds=one.seconds * (100 if n % 20 == 7 else 1)) for n, one in enumerate(clean)]
    assert max(relative_errors(fit(spoilt, made), clean).values()) < 0.1
