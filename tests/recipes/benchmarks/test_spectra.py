"""The benchmark of spectra measures what it says, on a few kernels."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path

import pytest

from recipes.benchmarks.spectra import Config, main
from tests.refusals import refused
from tnalgebra.errors import StudyError


@pytest.mark.slow
def test_it_prints_ratios_and_the_accuracy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = Config(smoke=True, threads=1, output=tmp_path)
    rows = main(config)
    printed = capsys.readouterr().out
    assert re.search(r"^layer1\.0\.conv2 +64x64x3x3 ", printed, re.MULTILINE)
    assert re.search(r"^total ratio: \d+\.\d\d ", printed, re.MULTILINE)
    assert max(row["worst"] for row in rows) <= 1e-8
    assert f"worst difference: {max(row['worst'] for row in rows):.1e} of the largest value" in printed
    for settings, fact in (({"layers": "nowhere.*"}, "'nowhere.*'"), ({"rounds": 0}, "rounds is 0")):
        with refused(StudyError, fact):
            main(dataclasses.replace(config, smoke=False, **settings))
