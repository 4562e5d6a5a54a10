"""Timing in turns, the interval of a ratio, and peak memory."""

from __future__ import annotations

from functools import partial
from statistics import median

import pytest
import torch

from recipes.benchmarks import timing
from recipes.benchmarks.timing import CLEAR, peak_bytes, ratio_of_medians, time_in_turns


def test_the_interval_holds_the_ratio() -> None:
    generator = torch.Generator().manual_seed(0)
    over = (2 + 0.1 * torch.rand(31, generator=generator)).tolist()
    under = (1 + 0.1 * torch.rand(5, generator=generator)).tolist()
    ratio = ratio_of_medians(over, under)
    assert ratio.value == median(over) / median(under)
    assert min(over) / max(under) <= ratio.low < ratio.value < ratio.high <= max(over) / min(under)
    assert ratio_of_medians([3.0], [2.0]) == (1.5, 1.5, 1.5)
    assert ratio == ratio_of_medians(over, under)


@pytest.mark.slow
def test_slow_calls_take_fewer_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    calls: list[float] = []

    def takes(seconds: float, turn: int) -> None:
        nonlocal now
        now += seconds
        calls.append(seconds)

    monkeypatch.setattr(timing, "perf_counter", lambda: now)
    named = {name: partial(takes, seconds) for name, seconds in (("fast", 1.0), ("near", 8.0), ("slow", 9.0))}
    times = time_in_turns(named, rounds=7, slow_rounds=3, warmup=2)
    assert times == {"fast": [1.0] * 7, "near": [8.0] * 7, "slow": [9.0] * 2}
    turns = calls[6:]  # all were warmed up twice
    assert turns[:3] != turns[3:6] or turns[5:8] != turns[:3]  # the order changes
    assert len(turns) == 16
    assert {len(each) for each in time_in_turns(named, rounds=7).values()} == {7}


def _sixteen_mebibytes() -> object:
    return lambda turn: torch.ones(4 * 2**20)


@pytest.mark.slow
@pytest.mark.skipif(not CLEAR.exists(), reason="only Linux reports the peak")
def test_the_peak_is_that_of_the_calls() -> None:
    assert 15 * 2**20 < peak_bytes(_sixteen_mebibytes, device="cpu", threads=1) < 60 * 2**20
