"""The benchmark of whole networks: who computes what, what is counted, and the whole of it on a tiny network."""

from __future__ import annotations

import copy
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
from recipes.benchmarks.models import run as benchmark_model
from recipes.benchmarks.models.contenders import (
    CONTENDERS,
    Cell,
    Problem,
    count_multiply_adds,
    hand_layer,
    make_contender,
    make_problem,
    rewrite_chain,
    takes_part,
)
from recipes.benchmarks.models.report import read_rows
from recipes.benchmarks.models.run import Config, main
from tnalgebra.errors import StudyError, TnalgebraError
from tnalgebra.model.batch_norm import fold_batch_norm

NET = (
    "from torch import nn\n"
    "def build(classes):\n"
    "    return nn.Sequential(\n"
    "        nn.Conv2d(3, 10, 3, bias=False), nn.BatchNorm2d(10), nn.ReLU(),\n"
    "        nn.Conv2d(10, 12, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU(),\n"
    "        nn.Conv2d(12, 16, 1, stride=2), nn.BatchNorm2d(16), nn.ReLU(),\n"
    "        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, classes))\n"
)


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small_timed_nets.py").write_text(NET)
    return Config(models=("small_timed_nets:build",), smoke=True, threads=1, multiply_adds=0.7, output=Path("out"))


def problem_of(**settings: Any) -> Problem:
    """In float64, where nothing hides behind rounding."""
    given = {"goes": "forward", "rewrite": "tucker2", "pointwise": "out | in kh kw", "multiply_adds": 0.6} | settings
    cell = Cell("small_timed_nets:build", 2, 11, fraction=None, **given)
    problem = make_problem(cell, seed=0, device="cpu")
    return problem._replace(dense=problem.dense.double(), images=problem.images.double())


REWRITES = ["tucker2", "out kh | in kw", "out | in kh kw", "K[o i h w] => A[i p] B[p h q] C[q w s] D[s o]"]


@pytest.mark.parametrize("rewrite", REWRITES)
def test_by_hand_and_converted_are_the_same_network(quick: Config, rewrite: str) -> None:
    problem = problem_of(rewrite=rewrite)
    assert {"3", "6"} >= set(problem.chosen) >= {"3"}
    images = problem.images
    with torch.no_grad():
        expected = make_contender("ours factored", problem).module(images)
        for name in CONTENDERS:
            found = make_contender(name, problem).module(images)
            if name.startswith("dense"):
                assert not torch.allclose(found, expected, rtol=1e-3, atol=1e-3)
            else:  # float64: rounding of a few layers
                torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-9)


def test_a_stage_has_the_numbers_of_its_axis(quick: Config) -> None:
    torch.manual_seed(0)
    dense = nn.Conv2d(5, 7, (3, 4), stride=(2, 3), padding=(1, 2), dilation=(2, 1)).double()
    x = torch.randn(2, 5, 13, 17, dtype=torch.float64)
    for rewrite, ranks in (("tucker2", {"a": 6, "b": 4}), ("out kh | in kw", {"r": 9}), ("out | in kh kw", {"r": 6})):
        layer = tn.nn.Conv2d.from_conv(dense, rewrite, ranks=ranks)
        torch.testing.assert_close(hand_layer(layer, dense)(x), layer(x), rtol=1e-9, atol=1e-9)


def test_multiply_adds_by_hand(quick: Config) -> None:
    problem = problem_of()
    ranks = {name: own for name, (_, own) in problem.chosen.items()}
    a, b, r = ranks["3"]["a"], ranks["3"]["b"], ranks["6"]["r"]
    # 2 images; 11x11 -> 9x9 -> 5x5 -> 3x3 positions
    first, last = 81 * 3 * 10 * 9, 16 * 10
    by_hand = 2 * (first + 81 * 10 * b + 25 * 9 * a * b + 25 * a * 12 + 9 * r * (12 + 16) + last)
    dense = 2 * (first + 25 * 9 * 10 * 12 + 9 * 12 * 16 + last)
    assert make_contender("hand", problem).multiply_adds == by_hand <= 0.6 * dense
    assert make_contender("ours factored", problem).multiply_adds == by_hand
    assert make_contender("dense", problem).multiply_adds == dense
    assert count_multiply_adds(problem.dense, problem.images) == dense


def test_ranks_are_a_fraction_of_the_largest(quick: Config) -> None:
    cell = Cell("small_timed_nets:build", 2, 11, "forward", "tucker2", None, None, 0.5)
    assert make_problem(cell, seed=0, device="cpu").chosen == {"3": ("tucker2", {"b": 5, "a": 6})}


def test_the_whole_of_it(quick: Config, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    rows = main(quick)
    assert torch.get_num_threads() == threads
    assert [row["pass"] for row in rows] == ["forward", "training"]
    for row in rows:
        assert set(row["contenders"]) == {name for name in CONTENDERS if takes_part(name, row["pass"])}
        assert (row["batch"], row["image_size"], row["converted"]) == (2, 16, 2)
        for one in row["contenders"].values():
            assert len(one["times"]) == 3
            assert one["seconds"] == median(one["times"]) > 0
            assert one["multiply_adds"] > 0
    printed = capsys.readouterr().out
    assert printed.startswith("models          ('small_timed_nets:build',)\n")
    table = (quick.output / "table.md").read_text()
    assert table in printed
    assert len(re.findall(r"^speed of 'ours.*' over 'hand.*': [\d.]+ \[", table, re.MULTILINE)) == 3
    assert {path.name for path in quick.output.iterdir()} == {"results.jsonl", "table.md", "models.png", "models.svg"}


def test_it_goes_on_where_it_was(quick: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    few = dataclasses.replace(quick, passes=("forward",), contenders=("hand",))
    first = main(few)
    path = quick.output / "results.jsonl"
    with path.open("a") as file:
        file.write('{"model": "cut o')
    more = main(dataclasses.replace(few, contenders=("ours",)))
    assert [set(row["contenders"]) for row in more] == [{"dense", "dense again", "hand", "ours"}]
    assert more[0]["contenders"]["hand"]["times"] != first[0]["contenders"]["hand"]["times"], "timed together"
    monkeypatch.setattr(benchmark_model, "timed_row", None)
    assert main(few) == more
    path.write_text("[]\n")
    with pytest.raises(StudyError, match=r"line 1 of .* is no row"):
        read_rows(path)


def test_memory(quick: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def counted(task: benchmark_model.Task) -> int:
        return 2**20 * len(task.contender)

    class Here:
        """A pool whose child is this process."""

        def __init__(self, *_: object, **__: object) -> None: ...
        def __enter__(self) -> Here:
            return self

        def __exit__(self, *_: object) -> None: ...
        def submit(self, _: object, task: benchmark_model.Task) -> Here:
            self.found = counted(task)
            return self

        def result(self) -> int:
            return self.found

    monkeypatch.setattr(benchmark_model, "ProcessPoolExecutor", Here)
    (row,) = main(dataclasses.replace(quick, passes=("forward",), contenders=("hand",), memory=True))
    assert row["contenders"]["hand"] == {"bytes": 2**22}
    assert json.loads((quick.output / "memory.jsonl").read_text()) == row
    assert "peak MiB" in capsys.readouterr().out


def test_a_contender_that_is_wrong_is_refused(quick: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def off(name: str, problem: Problem) -> Any:
        made = make_contender(name, problem)
        if name == "ours":
            list(made.module.parameters())[-1].data.add_(1)
        return made

    monkeypatch.setattr(benchmark_model, "make_contender", off)
    with pytest.raises(StudyError, match="ours: the output is not that of hand"):
        main(dataclasses.replace(quick, passes=("forward",), contenders=("hand", "ours")))
    assert not quick.output.exists()


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"models": ("resnet21",)}, "no model is called 'resnet21'"),
        ({"rewrite": "cp"}, "'cp' is no chain of convolutions"),
        ({"rewrite": "tuker2"}, "there is no rule 'tuker2'"),
        ({"multiply_adds": 0.01}, "0.01 of the multiply-adds cannot be met"),
        ({"multiply_adds": 1.5}, "multiply_adds is 1.5"),
        ({"fraction": 0.5}, "the ranks are said twice"),
        ({"contenders": ("theirs",)}, "there is no contender 'theirs'"),
        ({"rounds": 0}, "rounds is 0"),
        ({"batch": (0,)}, "a batch is 0"),
    ],
)
def test_a_bad_setting_is_named(quick: Config, settings: dict[str, Any], text: str) -> None:
    with pytest.raises(TnalgebraError, match=re.escape(text)):
        main(dataclasses.replace(quick, **settings))
    assert not quick.output.exists()


def test_chains() -> None:
    assert [stage.name for stage in rewrite_chain("tucker2")] == ["V", "G", "U"]
    for rewrite in ("cp", "tensor_ring", "block_term", "tensor_train", "depthwise_separable"):
        with pytest.raises(StudyError, match="no chain"):
            rewrite_chain(rewrite)


# folding


@pytest.mark.parametrize("rewrite", [None, "tucker2", "cp", "out kh | in kw"])
@pytest.mark.parametrize("freeze", [False, True])
def test_folded_networks_compute_the_same(quick: Config, rewrite: str | None, freeze: bool) -> None:
    model = copy.deepcopy(problem_of().dense).eval()
    x = torch.randn(3, 3, 11, 11, dtype=torch.float64)
    if rewrite is not None:
        ranks = {"tucker2": {"a": 6, "b": 5}}.get(rewrite, {"r": 5})
        model, _ = tn.convert(model, {"3": (rewrite, ranks)})
        if freeze:
            model.get_submodule("3").freeze()  # type: ignore[operator]
    expected = model(x)
    assert fold_batch_norm(model, x) is model
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    torch.testing.assert_close(model(x), expected, rtol=1e-10, atol=1e-10)
    if rewrite is not None:
        assert model.get_submodule("3").frozen == freeze


def test_what_cannot_be_folded_stays() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 1)
            self.norm = nn.BatchNorm2d(3)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.conv(x)
            return self.norm(x) + x

    with pytest.raises(tn.errors.LayerError, match="no batch normalisation that can be folded"):
        fold_batch_norm(Twice().eval())
    with pytest.raises(tn.errors.LayerError, match="is in training mode"):
        fold_batch_norm(Twice())
