"""The benchmark of conversions measures what it says, on a small network."""

from __future__ import annotations

from pathlib import Path

import pytest
from torch import nn

from recipes.benchmarks.conversions import Config, ConversionBenchmark, decompose_grams, main


@pytest.mark.slow
def test_it_times_conversions_and_says_their_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (row,) = main(Config(smoke=True, threads=1, output=tmp_path))
    assert (row["network"], row["rewrites"]) == ("gpt", "monarch")
    assert row["contenders"].keys() == {"eigh", "convert", "metrics", "calibrated"}
    plain, calibrated = row["contenders"]["convert"], row["contenders"]["calibrated"]
    assert 0 < plain["error"] < calibrated["error"] < 1
    assert plain["output_error"] == 0 < calibrated["output_error"] < calibrated["error"]
    printed = capsys.readouterr().out
    assert f"{calibrated['seconds'] / row['contenders']['eigh']['seconds']:.1f}" in printed


def test_every_kernel_has_two_gram_matrices(tmp_path: Path) -> None:
    benchmark = ConversionBenchmark(Config(networks=("gpt",), rewrites=("mpo",), threads=1, output=tmp_path))
    (cell,) = benchmark.cells()
    problem = benchmark.problem(cell)
    weights = [layer.weight for layer in problem.model.modules() if isinstance(layer, nn.Linear)]
    sizes = [len(vectors) for vectors in decompose_grams(problem)]
    assert sizes == [size for weight in weights for size in weight.shape]
