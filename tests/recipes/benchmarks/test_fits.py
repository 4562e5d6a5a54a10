"""The benchmark of fits measures what it says, on two small kernels, with the peers that are installed."""

from __future__ import annotations

import json
import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest
import torch

from recipes.benchmarks import fits as benchmark_fits
from recipes.benchmarks.fits import Config, main
from tnalgebra.errors import StudyError

QUICK = Config(layer="layer1.0.conv1", layers="layer1.0.conv[12]", iterations=3, seeds=1)
PEERS = {"quimb", "quimb, dense_solve"}
if find_spec("tensorly"):
    PEERS |= {"tensorly", "tensorly, line search"}


def test_every_method_comes_to_the_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    rows = main(Config(**{**vars(QUICK), "output": tmp_path}))
    assert torch.get_num_threads() == threads
    assert {row.method for row in rows} == {"tnalgebra", "tnalgebra, 1 start", *PEERS}
    for title in dict.fromkeys(row.problem for row in rows):
        ours, *others = (row for row in rows if row.problem == title)
        assert ours.method == "tnalgebra"
        assert others, title
    reference = "tensorly" if find_spec("tensorly") else "quimb, dense_solve"
    for row in rows:
        assert all(0.1 < error < 0.95 for error in row.errors), row
        if row.method in ("tnalgebra", reference):
            assert row.missed == [0], row
        assert row.cpu_seconds[0] > 0
        assert row.seconds[0] > 0
    printed = capsys.readouterr().out
    assert printed.startswith("weights         None\n")
    assert ("pip install 'tnalgebra[bench]'" in printed) == (find_spec("tensorly") is None)
    assert (tmp_path / "fits.md").read_text().splitlines()[2] in printed
    content = json.loads((tmp_path / "fits.json").read_text())
    assert [benchmark_fits.Measured(**row) for row in content["rows"]] == rows
    assert {path.name for path in tmp_path.iterdir()} == {"fits.json", "fits.md", "fits.png", "fits.svg"}


def test_without_tensorly_it_goes_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def absent(name: str) -> ModuleType:
        if name.startswith("tensorly"):
            raise ModuleNotFoundError(f"No module named {name!r}")
        return import_module(name)

    monkeypatch.setattr(benchmark_fits, "import_module", absent)
    names = [method.name for method in benchmark_fits.chosen_methods()]
    assert names == ["tnalgebra", "tnalgebra, 1 start", "quimb, dense_solve", "quimb"]
    assert "without tensorly (No module named 'tensorly')" in capsys.readouterr().out


PAIRS = [
    pytest.param(method, rule, id=f"{method.name} {rule}")
    for method in benchmark_fits.chosen_methods()
    for rule in benchmark_fits.RULES
    if method.suits(rule)
]


@pytest.mark.parametrize(("method", "rule"), PAIRS)
def test_a_call_ends_where_its_trace_says(method: benchmark_fits.Method, rule: str) -> None:
    kernels = [benchmark_fits.random_kernel((8, 6, 3, 3), seed) for seed in (0, 1)]
    traces = method.traced(rule, kernels, 0, 4)
    found = method.dense(method.prepared(rule, kernels, 0, [4, 4])())
    for kernel, dense, trace in zip(kernels, found, traces, strict=True):
        assert benchmark_fits.relative_error(kernel, dense) == pytest.approx(trace[-1], rel=1e-9)


def test_sweeps_needed() -> None:
    traces = {"a": [0.9, 0.5, 0.4], "b": [0.8, 0.6]}
    wanted = {"a": 0.45, "b": 0.7}
    assert benchmark_fits.sweeps_needed(traces, wanted, on_average=False) == {"a": 3, "b": 2}
    assert benchmark_fits.sweeps_needed(traces, wanted, on_average=True) == {"a": 2, "b": 2}
    assert benchmark_fits.sweeps_needed(traces, {"a": 0, "b": 0}, on_average=False) == {"a": 3, "b": 2}


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"layers": "nowhere.*"}, "no layer with a 3x3 kernel is called 'nowhere.*'"),
        ({"layer": "fc"}, "no layer with a 3x3 kernel is called 'fc'"),
        ({"seeds": 0}, "seeds is 0"),
    ],
)
def test_a_bad_setting_is_named(settings: dict[str, object], text: str) -> None:
    with pytest.raises(StudyError, match=re.escape(text)):
        main(Config(**{**vars(QUICK), **settings}))  # type: ignore[arg-type]
