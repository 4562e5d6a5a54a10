"""The benchmark of whole networks: who computes what, what is counted, and the whole of it on a tiny network."""

from __future__ import annotations

import dataclasses
import json
import re
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from torch import nn

import tnalgebra as tn
from recipes.benchmarks import runner
from recipes.benchmarks.models.contenders import (
    CONTENDERS,
    Cell,
    Problem,
    count_multiply_adds,
    hand_layer,
    make_contender,
    make_problem,
    rewrite_chain,
)
from recipes.benchmarks.models.run import Config, main
from tests.refusals import refused
from tnalgebra.errors import DataError, RuleError, StudyError, TnalgebraError

NET = (
    "from torch import nn\n"
    "def build(classes):\n"
    "    return nn.Sequential(\n"
    "        nn.Conv2d(3, 10, 3, bias=False), nn.BatchNorm2d(10), nn.ReLU(),\n"
    "        nn.Conv2d(10, 12, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU(),\n"
    "        nn.Conv2d(12, 16, 1, stride=2), nn.BatchNorm2d(16), nn.ReLU(),\n"
    "        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, classes))\n"
)
FEW = ("hand", "ours factored", "ours channels_last", "ours frozen", "hand folded", "ours folded channels_last")


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small_timed_nets.py").write_text(NET)
    name, settings = "small_timed_nets:build", {"multiply_adds": 0.7, "passes": ("forward",)}
    return Config(models=(name,), smoke=True, threads=1, rounds=1, output=Path("out"), **settings)


def problem_of(**settings: Any) -> Problem:
    """In float64, where nothing hides behind rounding."""
    given = {"goes": "forward", "rewrite": "tucker2", "pointwise": "out | in kh kw", "multiply_adds": 0.6} | settings
    problem = make_problem(Cell("small_timed_nets:build", 2, 11, fraction=None, **given), seed=0, device="cpu")
    return problem._replace(dense=problem.dense.double(), images=problem.images.double())


REWRITES = ["tucker2", "out kh | in kw", "K[o i h w] => A[i p] B[p h q] C[q w s] D[s o]"]


@pytest.mark.parametrize("rewrite", REWRITES)
def test_by_hand_and_converted_are_the_same_network(quick: Config, rewrite: str) -> None:
    problem = problem_of(rewrite=rewrite)
    assert {"3", "6"} >= set(problem.chosen) >= {"3"}
    (expected,) = make_contender("ours factored", problem).call(0)
    for name in CONTENDERS if rewrite == "tucker2" else FEW:
        (found,) = make_contender(name, problem).call(0)
        if name.startswith("dense"):
            assert not torch.allclose(found, expected, rtol=1e-3, atol=1e-3)
        else:  # float64: rounding of a few layers
            torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_a_stage_has_the_numbers_of_its_axis() -> None:
    torch.manual_seed(0)
    dense = nn.Conv2d(5, 7, (3, 4), stride=(2, 3), padding=(1, 2), dilation=(2, 1)).double()
    x = torch.randn(2, 5, 13, 17, dtype=torch.float64)
    for rewrite, ranks in (("tucker2", {"a": 6, "b": 4}), ("out kh | in kw", {"r": 9}), ("out | in kh kw", {"r": 6})):
        layer = tn.nn.Conv2d.from_conv(dense, rewrite, size=ranks)
        torch.testing.assert_close(hand_layer(layer, dense)(x), layer(x), rtol=1e-9, atol=1e-9)


def test_multiply_adds_by_hand(quick: Config) -> None:
    problem = problem_of()
    ranks = {name: own for name, (_, own) in problem.chosen.items()}
    a, b, r = ranks["3"]["a"], ranks["3"]["b"], ranks["6"]["r"]
    # 2 images; 11x11 -> 9x9 -> 5x5 -> 3x3 positions
    first, last = 81 * 3 * 10 * 9, 16 * 10
    by_hand = 2 * (first + 81 * 10 * b + 25 * 9 * a * b + 25 * a * 12 + 9 * r * (12 + 16) + last)
    dense = 2 * (first + 25 * 9 * 10 * 12 + 9 * 12 * 16 + last)
    assert by_hand <= 0.6 * dense
    for name, expected in (("hand", by_hand), ("ours factored", by_hand), ("dense", dense)):
        assert make_contender(name, problem).facts()["multiply_adds"] == expected
    assert count_multiply_adds(problem.dense, problem.images) == dense


def test_ranks_are_a_fraction_of_the_largest(quick: Config) -> None:
    cell = Cell("small_timed_nets:build", 2, 11, "forward", "tucker2", None, None, 0.5)
    assert make_problem(cell, seed=0, device="cpu").chosen == {"3": ("tucker2", {"b": 5, "a": 6})}


@pytest.mark.slow
def test_the_whole_of_it(quick: Config, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    rows = main(dataclasses.replace(quick, passes=("forward", "training"), contenders=FEW, rounds=3))
    assert torch.get_num_threads() == threads
    assert [row["pass"] for row in rows] == ["forward", "training"]
    assert list(rows[0]["contenders"]) == ["dense", "dense again", *FEW]
    assert list(rows[1]["contenders"]) == ["dense", "dense again", *FEW[:3]], "nothing frozen or folded"
    for row in rows:
        assert (row["batch"], row["image_size"], row["converted"]) == (2, 16, 2)
        for one in row["contenders"].values():
            assert len(one["times"]) == 3
            assert one["seconds"] == median(one["times"]) > 0
            assert one["multiply_adds"] > 0
    printed = capsys.readouterr().out
    assert printed.startswith("rounds         3\n")
    table = (quick.output / "models.md").read_text()
    assert table in printed
    assert len(re.findall(r"^speed of 'ours.*' over 'hand.*': [\d.]+ \[", table, re.MULTILINE)) == 3
    assert {path.name for path in quick.output.iterdir()} == {"results.jsonl", "models.md", "models.png", "models.svg"}


def test_memory(quick: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def counted(make: Any, *, device: str, threads: int) -> int:
        return 2**20 * len(make.args[-1]) * len(make()(0))

    monkeypatch.setattr(runner, "peak_bytes", counted)
    (row,) = main(dataclasses.replace(quick, contenders=("hand",), memory=True))
    sizes = {name: one["bytes"] for name, one in row["contenders"].items()}
    assert sizes == {"dense": 5 * 2**20, "dense again": 5 * 2**20, "hand": 2**22}
    assert json.loads((quick.output / "memory.jsonl").read_text()) == row
    assert "peak MiB" in capsys.readouterr().out
    main(dataclasses.replace(quick, contenders=("hand",)))
    assert re.search(r"^\| hand \|.* 4\.0 \|$", (quick.output / "models.md").read_text(), re.MULTILINE)


@pytest.mark.parametrize(
    ("settings", "kind", "facts"),
    [
        ({"models": ("resnet21",)}, DataError, ("'resnet21'",)),
        ({"rewrite": "cp"}, StudyError, ("'cp'", "tucker2")),
        ({"rewrite": "tuker2"}, RuleError, ("'tuker2'",)),
        ({"multiply_adds": 0.01}, StudyError, ("0.01 of the multiply-adds",)),
        ({"multiply_adds": 1.5}, StudyError, ("multiply_adds is 1.5",)),
        ({"fraction": 0.5}, StudyError, ("--multiply-adds or --fraction",)),
        ({"contenders": ("theirs",)}, StudyError, ("'theirs'",)),
        ({"batch": (0,)}, StudyError, ("batch is 0",)),
    ],
)
def test_a_bad_setting_is_named(
    quick: Config, settings: dict[str, Any], kind: type[TnalgebraError], facts: tuple[str, ...]
) -> None:
    with refused(kind, *facts):
        main(dataclasses.replace(quick, **settings))
    assert not quick.output.exists()


def test_chains() -> None:
    assert [link.name for link in rewrite_chain("tucker2")] == ["V", "G", "U"]
    for rewrite in ("tensor_ring", "block_term", "tensor_train", "depthwise_separable"):
        with refused(StudyError, repr(rewrite)):
            rewrite_chain(rewrite)
