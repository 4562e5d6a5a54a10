"""The benchmark of long windows and bases compares values, and says what it timed."""

from __future__ import annotations

from pathlib import Path

import pytest

from recipes.benchmarks.spectral import MAPS, TRANSFORMS, WINDOWS, Config, main

pytest.importorskip("torch_fftconv")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_it_times_windows_bases_and_maps(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = main(Config(smoke=True, threads=1, output=tmp_path))
    assert {row["cell"] for row in rows} <= {*WINDOWS, *TRANSFORMS, *MAPS}
    assert any("fast" in row["contenders"] for row in rows)
    printed = capsys.readouterr().out
    for row in rows:
        assert row["error"] < 1e-4
        assert row["cell"] in printed
        assert {"dense", "dense again", "ours"} <= row["contenders"].keys()
