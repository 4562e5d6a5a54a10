"""The benchmark of fits measures what it says, on two small kernels, with the peers that are installed."""

from __future__ import annotations

import dataclasses
import json
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import pytest
import torch

from recipes.benchmarks import fit_methods
from recipes.benchmarks.fit_methods import RULES, Method, all_methods, relative_error
from recipes.benchmarks.fits import Config, main, random_kernel, sweeps_needed
from tests.refusals import refused
from tnalgebra.errors import StudyError

QUICK = Config(smoke=True)
PEERS = {"quimb", "quimb, dense_solve"}
if find_spec("tensorly"):
    PEERS |= {"tensorly", "tensorly, line search"}


@pytest.mark.slow
def test_every_method_comes_to_the_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    rows = main(dataclasses.replace(QUICK, output=tmp_path))
    assert torch.get_num_threads() == threads
    assert len(rows) == (9 if find_spec("tensorly") else 4)  # other peers have no trees
    assert {name for row in rows for name in row["contenders"]} == {"tnalgebra", "tnalgebra, 1 start", *PEERS}
    reference = "tensorly" if find_spec("tensorly") else "quimb, dense_solve"
    for row in rows:
        assert next(iter(row["contenders"])) == "tnalgebra"
        for name, one in row["contenders"].items():
            assert 0.1 < one["errors"][0] < 0.95, name
            if name in ("tnalgebra", reference):
                assert one["missed"] == [0], name
            assert one["cpu_seconds"][0] > 0
            assert one["seconds"] == one["times"][0] > 0
    printed = capsys.readouterr().out
    assert printed.startswith("rounds      1\n")
    assert ("pip install 'tnalgebra[bench]'" in printed) == (find_spec("tensorly") is None)
    assert (tmp_path / "fits.md").read_text() in printed
    lines = (tmp_path / "results.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == rows == main(dataclasses.replace(QUICK, output=tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {"results.jsonl", "fits.md", "fits.png", "fits.svg"}


def test_without_tensorly_it_continues(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> ModuleType:
        if name.startswith("tensorly"):
            raise ModuleNotFoundError(f"No module named {name!r}")
        return import_module(name)

    monkeypatch.setattr(fit_methods, "import_module", absent)
    methods, notes = all_methods()
    assert [method.name for method in methods] == ["tnalgebra", "tnalgebra, 1 start", "quimb, dense_solve", "quimb"]
    assert len(notes) == 1
    assert "without tensorly (No module named 'tensorly')" in notes[0]


PAIRS = [
    pytest.param(method, rule, id=f"{method.name} {rule}")
    for method in all_methods()[0]
    for rule in RULES
    if method.suits(rule)
]


@pytest.mark.parametrize(("method", "rule"), PAIRS)
def test_a_call_ends_where_its_trace_says(method: Method, rule: str) -> None:
    kernels = [random_kernel((8, 6, 3, 3), seed) for seed in (0, 1)]
    traces = method.trace(rule, kernels, 0, 4)
    found = method.dense(method.fit(rule, kernels, 0, [4, 4]))
    for kernel, dense, trace in zip(kernels, found, traces, strict=True):
        assert relative_error(kernel, dense) == pytest.approx(trace[-1], rel=1e-9)


def test_sweeps_needed() -> None:
    traces = {"a": [0.9, 0.5, 0.4], "b": [0.8, 0.6]}
    wanted = {"a": 0.45, "b": 0.7}
    assert sweeps_needed(traces, wanted, on_average=False) == {"a": 3, "b": 2}
    assert sweeps_needed(traces, wanted, on_average=True) == {"a": 2, "b": 2}
    assert sweeps_needed(traces, {"a": 0, "b": 0}, on_average=False) == {"a": 3, "b": 2}


def test_a_bad_setting_is_named() -> None:
    for settings, fact in (({"layers": "nowhere.*"}, "'nowhere.*'"), ({"layer": "fc"}, "'fc'"), ({"rounds": 0}, "0")):
        with refused(StudyError, fact):
            main(Config(**settings))
