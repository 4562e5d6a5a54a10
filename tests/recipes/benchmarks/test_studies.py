"""The benchmark of studies tests the same rows in each way."""

from __future__ import annotations

from pathlib import Path

import pytest

from recipes.benchmarks.studies import Config, main


@pytest.mark.slow
def test_it_prints_ratios(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = main(Config(smoke=True, threads=1, output=tmp_path))
    printed = capsys.readouterr().out
    assert "nothing kept" in printed
    assert row["rows"] == 2
    assert all(len(one["times"]) == 1 for one in row["contenders"].values())
