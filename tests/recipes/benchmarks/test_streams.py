"""The benchmark of streams compares outputs, and says what it timed."""

from __future__ import annotations

from pathlib import Path

import pytest

from recipes.benchmarks.streams import STEPS, Config, main


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_it_times_steps_and_the_clip(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = main(Config(smoke=True, threads=1, output=tmp_path))
    assert [(row["kernel"], row["positions"]) for row in rows] == [("dense", 5), ("cp", 5), ("dense", 1), ("cp", 1)]
    printed = capsys.readouterr().out
    for row in rows:
        assert {"ours", "ours again", "clip"} <= row["contenders"].keys()
        assert row["whole"] > row["step"] > 0
        assert row["delay"] == 8
        assert f"{STEPS * row['contenders']['clip']['seconds'] / row['contenders']['ours']['seconds']:.1f}" in printed
