"""The benchmark of spectra measures what it says, on a few kernels."""

from __future__ import annotations

import re

import pytest

from recipes.benchmarks import spectra as benchmark_spectra
from tnalgebra.errors import StudyError


def test_it_prints_ratios_and_the_accuracy(capsys: pytest.CaptureFixture[str]) -> None:
    benchmark_spectra.main(benchmark_spectra.Config(layers="layer1.0.conv[12]", threads=1))
    printed = capsys.readouterr().out
    assert re.search(r"^layer1\.0\.conv2 +64x64x3x3 ", printed, re.MULTILINE)
    assert re.search(r"^total ratio: \d+\.\d\d ", printed, re.MULTILINE)
    worst = re.search(r"^worst difference: (\S+) of the largest value", printed, re.MULTILINE)
    assert worst is not None
    assert float(worst[1]) <= 1e-8


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (benchmark_spectra.Config(layers="nowhere.*"), "no layer is called 'nowhere.*'"),
        (benchmark_spectra.Config(rounds=0), "rounds is 0"),
    ],
)
def test_a_bad_setting_is_named(config: benchmark_spectra.Config, text: str) -> None:
    with pytest.raises(StudyError, match=re.escape(text)):
        benchmark_spectra.main(config)
