"""The benchmark of layers: every contender computes the layer, and the numbers say what they should."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from torch import nn

import tnalgebra as tn
from recipes.benchmarks import runner
from recipes.benchmarks.layers import run as layers
from recipes.benchmarks.layers.cells import DECOMPOSITIONS, SHAPES, SMOKE_SHAPES, Cell, Shape, exists, ranks_of
from recipes.benchmarks.layers.contenders import (
    CONTENDERS,
    HAND,
    PEERS,
    Problem,
    make_contender,
    make_problem,
    takes_part,
)
from recipes.benchmarks.layers.report import answers, summary
from recipes.benchmarks.layers.run import Config, Layers, main
from recipes.benchmarks.report import Row
from tests.refusals import refused
from tnalgebra.errors import StudyError

NAME = "3x3-12-8-10-s2"
SHAPE = SMOKE_SHAPES[NAME]
QUICK = Config(smoke=True, shapes=(NAME,), decompositions=("cp",), batches=(2,), threads=1, rounds=1)

SHAPES_TRIED = {
    **SMOKE_SHAPES,
    "1x1-12-8": Shape(12, 8, 1, 5),
    "5x5-9-6-s2": Shape(9, 6, 5, 8, stride=2),
    "groups": Shape(12, 9, 3, 7, stride=2, groups=3),
}
"""Beside the tiny ones: a 1x1 layer without stride, another window, groups of several channels."""

TOLERANCE = 1e-10
"""float64; the chains have at most four stages and sums of some hundred terms, each rounded at 1e-16."""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Threads of calls this small wait for each other, for long where the machine has other work."""
    used = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(used)


def quick(output: Path, **settings: Any) -> Config:
    return dataclasses.replace(QUICK, output=output, **settings)


def problem_of(name: str, decomposition: str, fraction: float = 0.5) -> Problem:
    shape = SHAPES_TRIED[name]
    ranks = tuple(ranks_of(decomposition, shape, fraction).items())
    cell = Cell(name, decomposition, ranks, fraction, 2, "training")
    return make_problem(cell, shape, seed=0, dtype=torch.float64, device="cpu")


def assert_computes(names: list[str], problem: Problem) -> None:
    """Output and input's gradient are those of torch's convolution with the oracle's kernel."""
    kernel = tn.evaluate(tn.parse(f"{DECOMPOSITIONS[problem.cell.decomposition]} -> [out in kh kw]"), problem.cores)
    images = problem.images.clone().requires_grad_()
    output = nn.functional.conv2d(images, kernel, **problem.shape.numbers)
    (gradient,) = torch.autograd.grad(output, images, problem.weights)
    for name in names:
        for found, expected in zip(make_contender(name, problem).call(0), (output, gradient), strict=True):
            atol = TOLERANCE * float(expected.detach().abs().max())
            torch.testing.assert_close(found, expected, rtol=TOLERANCE, atol=atol)


# who computes the layer


LAYERS = [
    pytest.param(name, decomposition, id=f"{name} {decomposition}")
    for name, shape in SHAPES_TRIED.items()
    for decomposition in DECOMPOSITIONS
    if exists(shape, decomposition)
]


@pytest.mark.parametrize(("name", "decomposition"), LAYERS)
def test_hand_chains_and_rebuilt_kernels_are_the_dense_layer(name: str, decomposition: str) -> None:
    for fraction in (0.5, 0.25):
        problem = problem_of(name, decomposition, fraction)
        tried = [one for one in ("dense", "dense + rebuild", *HAND) if takes_part(one, problem.cell, problem.shape)]
        assert len(tried) >= (1 if decomposition == "undecomposed" else 3)
        assert_computes(tried, problem)


@pytest.mark.parametrize("module", ["tltorch", "einconv"])
@pytest.mark.parametrize(("name", "decomposition"), LAYERS)
def test_peers_are_the_dense_layer(module: str, name: str, decomposition: str) -> None:
    pytest.importorskip(module)
    problem = problem_of(name, decomposition)
    peers = [peer for peer, own in PEERS.items() if own == module and takes_part(peer, problem.cell, problem.shape)]
    assert_computes(peers, problem)


@pytest.mark.parametrize("decomposition", DECOMPOSITIONS)
def test_ours_are_the_dense_layer(decomposition: str) -> None:
    problem = problem_of(NAME, decomposition)
    assert_computes([one for one in ("ours", "ours factored") if takes_part(one, problem.cell, SHAPE)], problem)


def test_the_kernel_has_the_variance_of_torchs() -> None:
    assert problem_of(NAME, "ring").kernel.square().mean().item() == pytest.approx(1 / (3 * 12 * 9), rel=1e-9)


def test_multiply_adds_of_a_chain() -> None:
    problem = problem_of(NAME, "cp")
    rank = dict(problem.cell.ranks)["r"]
    # 2 images; positions 10x10, then 5x10 after the rows' window, 5x5 after the columns'
    by_hand = 2 * rank * (12 * 100 + 3 * 50 + 3 * 25 + 8 * 25)
    for name, expected in (
        ("hand contiguous", by_hand),
        ("hand channels_last", by_hand),
        ("dense", 2 * 25 * 12 * 8 * 9),
    ):
        assert make_contender(name, problem).facts() == {"multiply_adds": expected}


def test_a_contender_that_is_wrong_or_fails_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def off(name: str, problem: Problem) -> Any:
        wrong = problem._replace(cores={core: 1.001 * value for core, value in problem.cores.items()})
        return make_contender(name, wrong if name == "hand contiguous" else problem)

    def broken(name: str, problem: Problem) -> Any:
        if name.startswith("hand"):
            raise RuntimeError("no memory")
        return make_contender(name, problem)

    config = quick(tmp_path, contenders=("hand contiguous",), passes=("forward",))
    monkeypatch.setattr(layers, "make_contender", off)
    with refused(StudyError, "hand contiguous", "dense", "4.0e-03") as wrong:
        main(config)
    monkeypatch.setattr(layers, "make_contender", broken)
    with pytest.raises(RuntimeError) as failed:
        main(config)
    for caught in (wrong, failed):
        assert caught.value.__notes__ == [f"contender: hand contiguous, of {NAME} cp r=6, batch 2, forward, contiguous"]
    assert not (tmp_path / "results.jsonl").exists()


# the whole of it


@pytest.mark.slow
def test_a_small_grid_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.set_num_threads(2)
    rows = main(quick(tmp_path, decompositions=("cp", "undecomposed"), rounds=3))
    assert torch.get_num_threads() == 2
    kinds = [("cp", "forward"), ("cp", "training"), ("undecomposed", "forward"), ("undecomposed", "training")]
    assert [(row["decomposition"], row["pass"]) for row in rows] == kinds
    for row in rows:
        cell = Cell(row["shape"], row["decomposition"], (), 0.5, row["batch"], row["pass"])
        possible = {name for name in CONTENDERS if takes_part(name, cell, SHAPE)}
        assert possible - set(PEERS) <= set(row["contenders"]) <= possible
        for one in row["contenders"].values():
            assert len(one["times"]) == 3
            assert one["seconds"] == median(one["times"]) > 0
        assert row["contenders"]["ours"]["multiply_adds"] > 0
        assert (row["threads"], row["device"]) == (1, "cpu")
    assert rows[0]["ranks"] == {"r": 6}
    printed = capsys.readouterr().out
    assert printed.startswith("rounds          3\n")
    assert (tmp_path / "layers.md").read_text() in printed
    for question in ("best hand chain", "ours frozen / dense", "training", "undecomposed", "noise floor"):
        assert question in printed
    assert {path.name for path in tmp_path.iterdir()} == {"results.jsonl", "layers.md", "layers.png", "layers.svg"}


def test_without_a_peer_it_continues(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "find_spec", lambda name: None)
    assert Layers(dataclasses.replace(QUICK, tune="both")).names[-2:] == [
        "ours factored frozen",
        "ours factored frozen predicted",
    ]
    benchmark = Layers(QUICK)
    assert benchmark.names == [name for name in CONTENDERS if name not in PEERS]
    assert [line.split(",")[0] for line in benchmark.notes] == ["without einconv", "without tensorly-torch"]


@pytest.mark.slow
def test_run_again_it_repeats_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    timed: list[str] = []
    own = runner._timed
    monkeypatch.setattr(runner, "_timed", lambda *given: timed.append(given[1].decomposition) or own(*given))
    monkeypatch.setattr(runner, "write_figure", lambda *_: None)
    only = {"contenders": ("hand contiguous",), "passes": ("forward",)}
    first = main(quick(tmp_path, **only))
    path = tmp_path / "results.jsonl"
    with path.open("a") as file:
        file.write('{"shape": "cut o')  # as if it had been stopped while it wrote
    assert main(quick(tmp_path, **only)) == first
    both = main(quick(tmp_path, **only, decompositions=("cp", "svd")))
    assert timed == ["cp", "svd"]
    assert both[0] == first[0]
    assert len(path.read_text().splitlines()) == 2
    more = main(quick(tmp_path, passes=("forward",), contenders=("dense + rebuild",)))
    assert timed == ["cp", "svd", "cp"]
    assert set(more[-1]["contenders"]) == {"dense", "dense again", "hand contiguous", "dense + rebuild"}
    assert len(more) == 2
    path.write_text('{"shape": 1}\n')
    with refused(StudyError, "line 1", str(path)):
        main(quick(tmp_path))


def test_cells_above_a_limit_are_timed_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runner, "write_figure", lambda *_: None)
    monkeypatch.setattr(tn.compiler, "device_name", lambda device: "abacus")
    rows = [made_row("cp", frozen=2.0), made_row("svd", frozen=1.0)]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"decompositions": ("cp", "svd", "train"), "passes": ("forward",), "contenders": ("ours frozen",)}
    found = main(quick(tmp_path, **settings, rerun_above=1.05, rounds=3))
    # no train: it has no row, so it is not above
    assert {row["decomposition"]: row["rounds"] for row in found} == {"svd": 1, "cp": 3}
    assert main(quick(tmp_path, **settings, rerun_above=1e-9, rounds=1)) == found, "none has fewer rounds"


# the numbers


def made_row(decomposition: str, *, goes: str = "forward", batch: int = 2, **seconds: float) -> Row:
    """A row by hand. seconds: of a contender by a short name."""
    names = {"factored": "ours factored", "frozen": "ours frozen", "rebuild": "dense + rebuild"}
    names |= {"last": "hand channels_last", "hand": "hand contiguous"}
    times = {"dense": 1.0, "dense again": 1.0, **{names.get(name, name): value for name, value in seconds.items()}}
    ranks = {"svd": 8, "cp": 6}.get(decomposition, 6)
    return {
        **{"shape": NAME, "family": "3x3", "decomposition": decomposition},
        **{
            "ranks": {} if decomposition == "undecomposed" else {"r": ranks},
            "fraction": 0.5,
            "batch": batch,
            "pass": goes,
            "memory_format": "contiguous",
        },
        **{
            "device": "cpu",
            "device_name": "abacus",
            "threads": 1,
            "smoke": True,
            "seed": 0,
            "versions": {"torch": "2"},
        },
        "rounds": 1,
        "contenders": {
            name: {"seconds": value, "times": [value], "multiply_adds": None} for name, value in times.items()
        },
    }


def test_the_summary_of_rows_made_by_hand() -> None:
    rows = [
        made_row("cp", factored=2.0, frozen=1.04, tensorly=8.0, hand=3.0, last=2.0),
        made_row("ring", factored=2.2, frozen=0.5, hand=3.0, last=2.0),
        made_row("svd", factored=4.0, frozen=3.0, tensorly=1.0, hand=3.0, last=2.0),
        made_row("cp", goes="training", ours=2.7, rebuild=2.5, hand=3.0),
        made_row("undecomposed", ours=1.5),
        made_row("undecomposed", ours=0.9, batch=4),
    ]
    found = {title: [ratio.value for ratio, _ in ratios] for title, (_, ratios) in answers(rows).items()}
    assert found == {
        "ours factored / best hand chain, forward": pytest.approx([2, 1.1, 1]),
        "ours frozen / dense, forward": pytest.approx([3, 1.04, 0.5]),
        "ours factored / tensorly factorized, forward, 3x3 layers": pytest.approx([4, 0.25]),
        "ours / best of dense + rebuild and hand chains, training": pytest.approx([2.7 / 2.5]),
        "ours / dense, kernel undecomposed": pytest.approx([1.5, 0.9]),
        "noise floor: dense / dense": pytest.approx([1] * 6),
    }
    text = summary(rows)
    assert (
        "best hand chain, forward: 3 cells, geometric mean 1.301\n  <= 1.05: 1 of 3 (33.3 %)\n  <= 1.15: 2 of 3" in text
    )
    assert f"  2.000 [2.000, 2.000]  {NAME} svd r=8" in text
    assert "3x3 layers: 2 cells, geometric mean 1.000\n" in text
    assert "training: 1 cells, geometric mean 1.080\n  <= 1.10: 1 of 1 (100.0 %)\n" in text
    assert f"  0.900 [0.900, 0.900]  {NAME} undecomposed, batch 4, forward, contiguous, 1 rounds\n" in text


# what is asked for


def test_the_grid() -> None:
    cells = Layers(Config()).cells()
    assert {shape.family for shape in SHAPES.values()} == {"3x3", "1x1", "7x7", "4x4", "depthwise"}
    assert {shape.stride for shape in SHAPES.values()} == {1, 2, 4}
    assert len(cells) == len({cell._replace(fraction=0) for cell in cells})
    of_one = [cell for cell in cells if (cell.shape, cell.batch, cell.goes) == ("3x3-64-64-56", 1, "forward")]
    assert len(of_one) == 2 * (6 * 2 + 1)
    assert dict(of_one[0].ranks) == {"r": 32}
    found = {(cell.shape, cell.decomposition) for cell in cells}
    for name, shape in SHAPES.items():
        lacking = {one for one in DECOMPOSITIONS if (name, one) not in found}
        assert lacking == ({"train", "ring", "loop"} if shape.groups > 1 or shape.kernel == 1 else set())


@pytest.mark.parametrize(
    ("settings", "facts"),
    [
        ({"shapes": ("9x9-*",)}, ("'9x9-*'", "7x7-3-8-16-s2")),
        ({"decompositions": ("cp", "tucker3")}, ("'tucker3'", "tucker2")),
        ({"contenders": ("theirs",)}, ("'theirs'", "dense")),
        ({"fractions": (0.0,)}, ("fractions is 0",)),
        ({"batches": (0,)}, ("batches is 0",)),
        ({"rounds": 0}, ("rounds is 0",)),
        ({"threads": -1}, ("threads is -1",)),
        ({"decompositions": ("train",), "shapes": ("1x1-*",)}, ("no cell",)),
    ],
)
def test_a_bad_setting_is_named(settings: dict[str, Any], facts: tuple[str, ...], tmp_path: Path) -> None:
    with refused(StudyError, *facts):
        main(dataclasses.replace(QUICK, output=tmp_path / "new", smoke=True, **settings))
    assert not (tmp_path / "new").exists()
