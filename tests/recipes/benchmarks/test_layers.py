"""The benchmark of layers: every contender computes the layer, and the numbers say what they should."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import torch
from torch import nn

import tnalgebra as tn
from recipes.benchmarks import timing as layer_timing
from recipes.benchmarks.layers import run as benchmark_layers
from recipes.benchmarks.layers.contenders import (
    CONTENDERS,
    DECOMPOSITIONS,
    HAND,
    PEERS,
    SHAPES,
    SMOKE_SHAPES,
    Cell,
    Problem,
    Shape,
    make_contender,
    make_problem,
    missing_cell,
    takes_part,
)
from recipes.benchmarks.layers.report import answers, memory_table, read_rows, summary
from recipes.benchmarks.layers.run import Config, chosen_cells, main
from recipes.benchmarks.timing import CLEAR, Row, Task, one_call, peak_bytes, ratio_of_medians, time_in_turns
from tnalgebra.errors import StudyError

QUICK = Config(
    smoke=True,
    shapes=("3x3-12-8-10-s2",),
    decompositions=("cp", "undecomposed"),
    fractions=(0.5,),
    batches=(2,),
    threads=1,
)
"""4 cells."""

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


def problem_of(name: str, shape: Shape, decomposition: str, goes: Any = "training", fraction: float = 0.5) -> Problem:
    ranks = tuple(DECOMPOSITIONS[decomposition].ranks(shape, fraction).items())
    cell = Cell(name, decomposition, ranks, fraction, 2, goes)
    return make_problem(cell, shape, seed=0, dtype=torch.float64, device="cpu")


def assert_computes(name: str, problem: Problem) -> None:
    """The output and the input's gradient are those of torch's convolution with the oracle's kernel."""
    shape = problem.shape
    network = tn.parse(f"{DECOMPOSITIONS[problem.cell.decomposition].text} -> [out in kh kw]")
    kernel = tn.evaluate(network, problem.cores)
    images = problem.images.clone().requires_grad_()
    output = nn.functional.conv2d(images, kernel, stride=shape.stride, padding=shape.padding, groups=shape.groups)
    (gradient,) = torch.autograd.grad(output, images, problem.weights)
    for found, expected in zip(
        one_call(make_contender(name, problem).module, problem)(), (output, gradient), strict=True
    ):
        torch.testing.assert_close(
            found, expected, rtol=TOLERANCE, atol=TOLERANCE * float(expected.detach().abs().max())
        )


# who computes the layer


LAYERS = [
    pytest.param(name, decomposition, id=f"{name} {decomposition}")
    for name, shape in SHAPES_TRIED.items()
    for decomposition in DECOMPOSITIONS
    if missing_cell(shape, decomposition) is None
]


@pytest.mark.parametrize(("name", "decomposition"), LAYERS)
def test_hand_chains_and_rebuilt_kernels_are_the_dense_layer(name: str, decomposition: str) -> None:
    shape = SHAPES_TRIED[name]
    for fraction in (0.5, 0.25):
        problem = problem_of(name, shape, decomposition, fraction=fraction)
        tried = [one for one in ("dense", "dense + rebuild", *HAND) if takes_part(one, problem.cell, shape)]
        assert len(tried) >= (1 if decomposition == "undecomposed" else 4)
        for contender in tried:
            assert_computes(contender, problem)


@pytest.mark.parametrize("peer", PEERS)
@pytest.mark.parametrize(("name", "decomposition"), LAYERS)
def test_peers_are_the_dense_layer(peer: str, name: str, decomposition: str) -> None:
    pytest.importorskip(PEERS[peer])
    problem = problem_of(name, SHAPES_TRIED[name], decomposition)
    if takes_part(peer, problem.cell, problem.shape):
        assert_computes(peer, problem)


@pytest.mark.parametrize("decomposition", DECOMPOSITIONS)
def test_ours_are_the_dense_layer(decomposition: str) -> None:
    shape = SMOKE_SHAPES["3x3-12-8-10-s2"]
    for name in ("ours", "ours factored"):
        problem = problem_of("3x3-12-8-10-s2", shape, decomposition)
        if takes_part(name, problem.cell, shape):
            assert_computes(name, problem)
            module = make_contender(name, problem).module
            assert {key for key, _ in module.named_parameters()} == set(problem.cores)


def test_the_kernel_has_the_variance_of_torchs() -> None:
    problem = problem_of("3x3-12-8-10-s2", SMOKE_SHAPES["3x3-12-8-10-s2"], "ring")
    assert problem.kernel.square().mean().item() == pytest.approx(1 / (3 * 12 * 9), rel=1e-9)


def test_multiply_adds_of_a_chain() -> None:
    shape = SMOKE_SHAPES["3x3-12-8-10-s2"]
    problem = problem_of("3x3-12-8-10-s2", shape, "cp")
    rank = dict(problem.cell.ranks)["r"]
    # 2 images; positions 10x10, then 5x10 after the rows' window, 5x5 after the columns'
    by_hand = 2 * rank * (12 * 100 + 3 * 50 + 3 * 25 + 8 * 25)
    assert make_contender("hand contiguous", problem).multiply_adds == by_hand
    assert make_contender("hand channels_last", problem).multiply_adds == by_hand
    assert make_contender("dense", problem).multiply_adds == 2 * 25 * 12 * 8 * 9


def test_a_contender_that_is_wrong_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def off(name: str, problem: Problem) -> Any:
        made = make_contender(name, problem)
        if name == "hand contiguous":
            next(made.module.parameters()).data.mul_(1.001)
        return made

    monkeypatch.setattr(benchmark_layers, "make_contender", off)
    with pytest.raises(StudyError, match=r"^hand contiguous: the output is not the dense layer's\n(.*\n)*.*1\.0e-03"):
        main(quick(tmp_path, contenders=("hand contiguous",)))
    assert read_rows(tmp_path / "results.jsonl") == []


def test_a_contender_that_fails_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def broken(name: str, problem: Problem) -> Any:
        if name.startswith("hand"):
            raise RuntimeError("no memory")
        return make_contender(name, problem)

    monkeypatch.setattr(benchmark_layers, "make_contender", broken)
    with pytest.raises(RuntimeError, match="no memory") as caught:
        main(quick(tmp_path, contenders=("hand contiguous",)))
    assert caught.value.__notes__ == ["contender: hand contiguous, of 3x3-12-8-10-s2 cp r=6, batch 2, forward"]


# the whole of it


def test_a_small_grid_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.set_num_threads(2)
    rows = main(quick(tmp_path))
    assert torch.get_num_threads() == 2
    assert [(row["decomposition"], row["pass"]) for row in rows] == [
        ("cp", "forward"),
        ("cp", "training"),
        ("undecomposed", "forward"),
        ("undecomposed", "training"),
    ]
    for row in rows:
        cell = Cell(row["shape"], row["decomposition"], (), 0.5, row["batch"], row["pass"])
        there = {name for name in CONTENDERS if takes_part(name, cell, SMOKE_SHAPES[row["shape"]])}
        assert there - set(PEERS) <= set(row["contenders"]) <= there
        for one in row["contenders"].values():
            assert 2 <= len(one["times"]) <= 3
            assert one["seconds"] == median(one["times"]) > 0
        assert row["contenders"]["ours"]["multiply_adds"] > 0
        assert (row["threads"], row["device"]) == (1, "cpu")
    assert rows[0]["ranks"] == {"r": 6}
    printed = capsys.readouterr().out
    assert printed.startswith("shapes          ('3x3-12-8-10-s2',)\n")
    assert (tmp_path / "summary.txt").read_text() in printed
    for question in ("best hand chain", "ours frozen / dense", "training", "undecomposed", "noise floor"):
        assert question in printed
    assert {path.name for path in tmp_path.iterdir()} == {"results.jsonl", "summary.txt", "layers.png", "layers.svg"}


def test_tuned_stands_beside_untuned(tmp_path: Path) -> None:
    (row,) = main(quick(tmp_path, decompositions=("cp",), passes=("forward",), contenders=("ours",), tune="both"))
    assert list(row["contenders"]) == ["dense", "dense again", "ours", "ours tuned"]


def test_without_a_peer_it_goes_on(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(benchmark_layers, "find_spec", lambda name: None)
    names = benchmark_layers.chosen_contenders(QUICK)
    assert names == [name for name in CONTENDERS if name not in PEERS]
    printed = capsys.readouterr().out.splitlines()
    assert [line.split(",")[0] for line in printed] == ["without einconv", "without tensorly-torch"]


def test_run_again_it_repeats_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only = {"contenders": ("hand contiguous",), "passes": ("forward",)}
    first = main(quick(tmp_path, **only, decompositions=("cp",)))
    path = tmp_path / "results.jsonl"
    with path.open("a") as file:
        file.write('{"shape": "cut o')  # as if it had been stopped while it wrote
    timed: list[str] = []

    def noted(cell: Cell, names: Any, config: Config) -> Row:
        timed.append(cell.decomposition)
        return benchmark_timed(cell, names, config)

    benchmark_timed = benchmark_layers.timed_row
    monkeypatch.setattr(benchmark_layers, "timed_row", noted)
    assert main(quick(tmp_path, **only, decompositions=("cp",))) == first
    assert timed == []
    both = main(quick(tmp_path, **only, decompositions=("cp", "svd")))
    assert timed == ["svd"]
    assert both[0] == first[0]
    assert len(path.read_text().splitlines()) == 2
    more = main(quick(tmp_path, decompositions=("cp",), passes=("forward",), contenders=("dense + rebuild",)))
    assert timed == ["svd", "cp"]
    assert set(more[-1]["contenders"]) == {"dense", "dense again", "hand contiguous", "dense + rebuild"}
    assert len(more) == 2


def test_cells_above_a_limit_are_timed_again(tmp_path: Path) -> None:
    rows = [made_row("cp", frozen=2.0), made_row("svd", frozen=1.0)]
    (tmp_path / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = {"decompositions": ("cp", "svd", "train"), "passes": ("forward",), "contenders": ("ours frozen",)}
    found = main(quick(tmp_path, **settings, rerun_above=1.05))
    again = {row["decomposition"]: row["rounds"] for row in found}
    assert again == {"svd": 1, "cp": 3}  # no train: it is not there, so it is not above
    assert main(quick(tmp_path, **settings, rerun_above=1e-9, rounds=1)) == found  # none with fewer rounds


@pytest.mark.skipif(not CLEAR.exists(), reason="only Linux tells the peak")
def test_peak_memory_of_one_contender(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The output of 16 MiB has to be held; twice it and the input's 16 MiB would be another form of either."""
    shape = Shape(16, 16, 1, 512)
    cell = Cell("1x1", "svd", (("r", 8),), 0.5, 1, "forward")
    peak = peak_bytes(Task("dense", cell, shape, 0, "cpu", 1))
    assert 15 * 2**20 < peak < 100 * 2**20
    row = {**made_row("cp"), "contenders": {"dense": {"bytes": peak}, "dense again": {"bytes": peak}}}
    table = memory_table([row])
    assert f"| 3x3-12-8-10-s2 cp r=6, batch 2, forward | {peak / 2**20:.1f} |" in table
    assert "again" not in table


# the numbers


def made_row(decomposition: str, *, goes: str = "forward", batch: int = 2, **seconds: float) -> Row:
    """A row by hand. seconds: of a contender, "_" for a blank; the others take 1 second."""
    names = {
        "factored": "ours factored",
        "frozen": "ours frozen",
        "rebuild": "dense + rebuild",
        "last": "hand channels_last",
    }
    times = {"dense": 1.0, "dense again": 1.0, **{names.get(name, name): value for name, value in seconds.items()}}
    return {
        "shape": "3x3-12-8-10-s2",
        "family": "3x3",
        "decomposition": decomposition,
        "ranks": {} if decomposition == "undecomposed" else {"r": 6},
        "fraction": 0.5,
        "batch": batch,
        "pass": goes,
        "device": "cpu",
        "device_name": "abacus",
        "threads": 1,
        "smoke": True,
        "seed": 0,
        "versions": {"torch": "2"},
        "rounds": 1,
        "contenders": {
            name: {"seconds": value, "times": [value], "multiply_adds": None} for name, value in times.items()
        },
    }


def test_the_summary_of_rows_made_by_hand() -> None:
    hands = {"hand contiguous": 3.0, "last": 2.0}
    rows = [
        made_row("cp", factored=2.0, frozen=1.04, tensorly=8.0, **hands),
        made_row("ring", factored=2.2, frozen=0.5, **hands),
        made_row("svd", factored=4.0, frozen=3.0, tensorly=1.0, **hands),
        made_row("cp", goes="training", ours=2.7, rebuild=2.5, **{"hand contiguous": 3.0}),
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
    assert "best hand chain, forward: 3 cells, geometric mean 1.301\n" in text
    assert (
        "  <= 1.05: 1 of 3 (33.3 %)\n  <= 1.15: 2 of 3 (66.7 %)\n  2.000 [2.000, 2.000]  3x3-12-8-10-s2 svd r=6" in text
    )
    assert "ours frozen / dense, forward: 3 cells, geometric mean 1.160\n  <= 1.05: 2 of 3 (66.7 %)\n" in text
    assert "3x3 layers: 2 cells, geometric mean 1.000\n" in text
    assert "training: 1 cells, geometric mean 1.080\n  <= 1.10: 1 of 1 (100.0 %)\n" in text
    assert "  0.900 [0.900, 0.900]  3x3-12-8-10-s2 undecomposed, batch 4, forward, 1 rounds\n" in text
    assert text.endswith("abacus, 1 thread(s); torch 2")


def test_the_interval_holds_the_ratio() -> None:
    generator = torch.Generator().manual_seed(0)
    over = (2 + 0.1 * torch.rand(31, generator=generator)).tolist()
    under = (1 + 0.1 * torch.rand(5, generator=generator)).tolist()
    ratio = ratio_of_medians(over, under)
    assert ratio.value == median(over) / median(under)
    assert min(over) / max(under) <= ratio.low < ratio.value < ratio.high <= max(over) / min(under)
    assert ratio_of_medians([3.0], [2.0]) == (1.5, 1.5, 1.5)
    assert ratio == ratio_of_medians(over, under)


def test_slow_calls_take_fewer_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def takes(seconds: float) -> None:
        nonlocal now
        now += seconds
        calls.append(seconds)

    calls: list[float] = []
    monkeypatch.setattr(layer_timing, "perf_counter", lambda: now)
    times = time_in_turns(
        {"fast": lambda: takes(1.0), "near": lambda: takes(8.0), "slow": lambda: takes(9.0)},
        rounds=7,
        slow_rounds=3,
        slow_factor=8,
        slow_seconds=20,
        warmup=2,
        seed=0,
    )
    assert times == {"fast": [1.0] * 7, "near": [8.0] * 7, "slow": [9.0] * 2}
    turns = calls[5:]  # the slow one was warmed up once
    assert turns[:3] != turns[3:6] or turns[5:8] != turns[:3]  # the order changes
    assert len(turns) == 16


# what is asked for


def test_the_grid() -> None:
    cells = chosen_cells(Config())
    assert len(SHAPES) >= 12
    assert {shape.family for shape in SHAPES.values()} == {"3x3", "1x1", "7x7", "depthwise"}
    assert {shape.stride for shape in SHAPES.values()} == {1, 2}
    assert len(cells) == len({(cell.shape, cell.decomposition, cell.ranks, cell.batch, cell.goes) for cell in cells})
    of_one = [cell for cell in cells if cell.shape == "3x3-64-64-56" and cell.batch == 1 and cell.goes == "forward"]
    assert len(of_one) == 6 * 2 + 1
    assert dict(of_one[0].ranks) == {"r": 32}
    there = {(cell.shape, cell.decomposition) for cell in cells}
    for name, shape in SHAPES.items():
        lacking = {one for one in DECOMPOSITIONS if (name, one) not in there}
        assert lacking == ({"train", "ring", "loop"} if shape.groups > 1 or shape.kernel == 1 else set())


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"shapes": ("9x9-*",)}, "no layer is called '9x9-*'\n  layers: 7x7-3-8-16-s2 "),
        ({"decompositions": ("cp", "tucker3")}, "there is no decomposition 'tucker3'\n  known: cp, tucker2, "),
        ({"contenders": ("theirs",)}, "there is no contender 'theirs'\n  known: dense, "),
        ({"fractions": (0.5, 0.0)}, "a fraction of the channels is 0.0"),
        ({"batches": (0,)}, "a batch is 0"),
        ({"rounds": 0}, "rounds is 0"),
        ({"threads": -1}, "threads is -1"),
    ],
)
def test_a_bad_setting_is_named(settings: dict[str, Any], text: str, tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=re.escape(text)):
        main(quick(tmp_path / "new", **settings))
    assert not (tmp_path / "new").exists()


def test_a_line_that_is_no_row_is_named(tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_text('{"shape": 1}\n')
    with pytest.raises(StudyError, match=r"line 1 of .* is no row"):
        main(quick(tmp_path))
