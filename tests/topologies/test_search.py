"""Searches: planted topologies are met, rows are kept, models are converted, and bad input is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tnalgebra as tn
from tests.refusals import refused
from tnalgebra.errors import MissingPackageError, RankError, RuleError, StudyError, ValuesError

RING = "A[a p q] B[c q r] C[b r s] D[d s p]"
"""A ring through a, c, b, d, in an order that is not the kernel's."""

SMALL = tn.Space(cores=(2, 3), bonds=("tree", "hyperedge"), catalogue=False)

CUTS = tn.Space(cores=(2, 2), bonds="tree", groups=("out", "in", "in kh kw", "out kh kw"), catalogue=False)


def planted(notation: str, seed: int = 0) -> torch.Tensor:
    """A kernel that a network of random cores makes; every open label has size 4 and every bond size 2."""
    network = tn.parse(f"{notation} -> [a b c d]")
    generator = torch.Generator().manual_seed(seed)
    values = {
        node.name: torch.randn(
            [4 if label in "abcd" else 2 for label in node.labels], generator=generator, dtype=torch.float64
        )
        for node in network.nodes
    }
    return tn.evaluate(network, values)


def kernel() -> torch.Tensor:
    return torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0))


def test_a_planted_ring_is_met_with_its_parameters() -> None:
    space = tn.Space(cores=(4, 4), bonds="ring", catalogue=False)
    result = tn.search(planted(RING), "error 0.001", space=space, labels="a b c d")
    assert result.best["parameters"] == 4 * 4 * 2 * 2
    assert result.best["error"] < 1e-3
    left = tn.parse(f"{RING} -> [a b c d]")
    right = tn.parse(f"{result.best['topology'].split('=>')[1]} -> [a b c d]")
    assert tn.networks.isomorphic(left, right, ordered=False)
    assert result.counts["evaluations"] <= 3


def test_complex_kernels_are_searched_with_their_imaginary_parts() -> None:
    generator = torch.Generator().manual_seed(0)
    z = torch.complex(*(torch.randn(6, 4, 3, generator=generator, dtype=torch.float64) for _ in range(2)))
    space = tn.Space(cores=(3, 3), bonds=("ring",), catalogue=False)
    result = tn.search(z, "parameters 0.7", space=space)  # a lost imaginary part is a warning of torch's, and an error
    assert result.best["parameters"] <= 0.7 * 72


def test_a_planted_tree_is_met_within_its_parameters() -> None:
    tree = "A[a p] B[c p q r] C[b q] D[d r]"
    tensor = planted(tree)
    space = tn.Space(bonds=("tree", "hyperedge"), catalogue=False)
    result = tn.search(tensor, "parameters 0.25", labels="a b c d", space=space, finalists=2)
    assert result.best["error"] < 1e-6
    assert result.best["parameters"] <= 64
    assert result.counts["pruned"] > result.counts["fitted"]


def test_the_line_of_code_makes_the_fit() -> None:
    space = tn.Space(bonds=("ring", "hyperedge"), groups=("out", "in", "kh", "kw"))
    result = tn.search(kernel(), "parameters 0.4", finalists=2, space=space)
    rule = eval(result.notation, {"tn": tn})
    fit = rule.apply(kernel(), result.best["ranks"]["kernel"])
    assert fit.relative_error == pytest.approx(result.best["error"], rel=1e-6)
    assert fit.parameters == result.best["parameters"]
    assert result.best in result.front
    assert str(result).endswith(result.notation)


def test_no_topology_of_the_space_is_better() -> None:
    """The oracle fits all of them."""
    result = tn.search(kernel(), "parameters 0.4", space=SMALL)
    errors = []
    for topology in SMALL.topologies("out in kh kw"):
        try:
            errors.append(topology.rule.apply(kernel(), "parameters 0.4").relative_error)
        except RankError:
            continue
    assert result.best["error"] <= min(errors) + 1e-9


def test_a_search_continues_where_it_was_stopped(tmp_path: Path) -> None:
    first = tn.search(kernel(), "parameters 0.4", space=SMALL, output=tmp_path)
    rows = (tmp_path / "results.jsonl").read_text()
    lines = rows.splitlines(keepends=True)
    (tmp_path / "results.jsonl").write_text("".join(lines[:2]) + lines[2][:20])
    again = tn.search(kernel(), "parameters 0.4", space=SMALL, output=tmp_path)
    assert again.best["topology"] == first.best["topology"]
    assert again.counts == first.counts
    keys = [
        (row["topology"], row["stage"], json.dumps(row["asked"]))
        for row in map(json.loads, (tmp_path / "results.jsonl").read_text().splitlines())
    ]
    assert len(keys) == len(set(keys)) == len(lines)
    with refused(StudyError, "sizes", "0.5"):
        tn.search(kernel(), "parameters 0.5", space=SMALL, output=tmp_path)
    (tmp_path / "results.jsonl").write_text("{}\n" + rows)
    with refused(StudyError, "line 1"):
        tn.search(kernel(), "parameters 0.4", space=SMALL, output=tmp_path)


def test_multiply_adds_of_a_layer() -> None:
    conv = nn.Conv2d(4, 6, 3, padding=1)
    space = tn.Space(cores=(3, 3), bonds="hyperedge", catalogue=False)
    result = tn.search(conv, "multiply-adds 0.5", space=space, example=(1, 4, 5, 5), finalists=1)
    layer = tn.nn.Conv2d.from_conv(conv, result.rule, result.best["ranks"][""])
    assert layer.kernel.parameters == result.best["parameters"]
    assert result.best["multiply_adds"] <= 0.5 * conv.weight.numel()


def test_a_model_is_converted_and_tested() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3), nn.Flatten(), nn.Linear(5, 2))
    seen = []

    def accuracy(small: nn.Module) -> float:
        seen.append(small)
        return float(len(seen))  # so that the last one is the best

    inputs = torch.randn(8, 3, 5, 5)
    result = tn.search(
        model, "parameters 0.7", space=CUTS, calibration=[inputs], example=(1, 3, 5, 5), test=accuracy, finalists=2
    )
    assert len(seen) == 3  # each finalist, and the choice between them
    assert result.best["accuracy"] == 3
    assert " or " in result.best["topology"]
    assert isinstance(model[0], nn.Conv2d)
    assert model[0].weight.shape == (6, 3, 3, 3)
    assert result.best["parameters"] <= 0.7 * sum(one.numel() for one in model.parameters())


def test_a_large_space_is_suggested(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tnalgebra.topologies.run.MOST_LISTED", 5)
    space = tn.Space(cores=(2, 4), bonds=("tree", "ring", "graph"), terms=2, catalogue=False)
    one, two = (tn.search(kernel(), "parameters 0.5", space=space, trials=8, finalists=1, seed=3) for _ in range(2))
    assert one.counts["listed"] == 8
    assert one.counts == two.counts
    assert one.best["topology"] == two.best["topology"]


def test_sums_are_searched_at_a_budget_and_not_at_an_error() -> None:
    parts = planted("A[a p] B[b c p q] C[d q]"), planted("A[b p] B[a d p q] C[c q]", seed=1)
    groups = ("a", "b", "c", "d", "b c", "a d")
    single, double = (
        tn.Space(cores=(3, 3), bonds="tree", groups=groups, catalogue=False, terms=terms) for terms in (1, 2)
    )
    found = tn.search(sum(parts), "parameters 0.63", space=double, labels="a b c d", seed=1)
    assert found.counts["listed"] == found.counts["pruned"] + found.counts["refused"] + found.counts["fitted"]
    assert " + " in found.best["topology"]
    assert found.best["error"] < 1e-3
    assert found.best["parameters"] <= 160
    one, two = (tn.search(parts[0], "error 0.001", space=space, labels="a b c d") for space in (single, double))
    assert two.best == {**one.best, "seconds": two.best["seconds"]}
    assert two.counts["refused"] == two.counts["listed"] - one.counts["listed"] > 0


def test_a_model_needs_no_example() -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, 5, 3))
    result = tn.search(model, "parameters 0.7", space=CUTS, finalists=1)
    assert [row["multiply_adds"] for row in result.rows] == [None]
    assert result.best in result.front
    assert str(result).endswith(result.notation)


def test_a_folder_belongs_to_one_example_and_to_one_model(tmp_path: Path) -> None:
    conv = nn.Conv2d(4, 6, 3, padding=1)

    def search(**other: Any) -> tn.FoundTopologies:
        choices = {"example": (1, 4, 5, 5), "output": tmp_path, "finalists": 1, **other}
        return tn.search(conv, "multiply-adds 0.5", space=CUTS, **choices)

    first = search()
    assert search().rows == first.rows
    for other in ({"example": (1, 4, 9, 9)}, {"test": lambda small: 0.5}):
        with refused(StudyError, "another config"):
            search(**other)
    conv.stride = (2, 2)
    with refused(StudyError, "model"):
        search()


def test_calibration_of_a_layer_is_its_metric() -> None:
    torch.manual_seed(0)
    conv, inputs = nn.Conv2d(4, 6, 3), torch.randn(16, 4, 5, 5) * torch.tensor([1.0, 0.1, 5.0, 0.01]).view(-1, 1, 1)
    metric = tn.input_metrics(nn.Sequential(conv), [inputs])["0"]
    by_metric = tn.search(conv, "parameters 0.4", space=CUTS, metric=metric)
    by_inputs = tn.search(conv, "parameters 0.4", space=CUTS, calibration=[inputs])
    assert by_inputs.best["error"] == pytest.approx(by_metric.best["error"], rel=1e-9)
    assert by_metric.best["error"] < 0.9 * by_metric.best["relative_error"]


def test_arguments_that_would_change_nothing_are_refused() -> None:
    conv, model = nn.Conv2d(4, 6, 3), nn.Sequential(nn.Conv2d(4, 6, 3), nn.Flatten(), nn.Linear(6, 2))
    metric = tn.Metric(("in",), torch.eye(4))
    for subject, arguments in (
        (kernel(), {"example": (1, 4, 3, 3)}),
        (kernel(), {"calibration": [torch.ones(1, 4, 3, 3)]}),
        (conv, {"labels": "a b c d"}),
        (conv, {"layers": [""]}),
        (model, {"metric": metric}),
        (kernel(), {"finalists": 0}),
        (kernel(), {"trials": 0}),
    ):
        with refused(ValuesError, *arguments):
            tn.search(subject, "parameters 0.4", **arguments)
    with refused(RuleError, "'0'", "'2'"):
        tn.search(model, "parameters 0.4", layers=["0", "2"])


def test_a_large_space_has_the_catalogue(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tnalgebra.topologies.run.MOST_LISTED", 0)
    space = tn.Space(cores=(2, 2), bonds="tree", groups=("a b", "c"))
    result = tn.search(torch.ones(4, 3, 2), "parameters 0.9", labels="a b c", space=space, trials=1, finalists=1)
    names = {row["topology"] for row in result.rows}
    assert {"tucker", "cp"} <= names


@pytest.mark.parametrize("catalogue", [True, False])
def test_a_budget_that_is_too_small_names_one_that_is_not(catalogue: bool) -> None:
    """The least of all topologies: 6 + 4 + 3 parameters, one row for each label, of the 72 of the kernel."""
    small = torch.randn(6, 4, 3, generator=torch.Generator().manual_seed(0))
    space = tn.Space(cores=(2, 3), bonds=("tree",), catalogue=catalogue)
    with refused(RankError, "parameters 0.05", "parameters 0.181"):
        tn.search(small, "parameters 0.05", space=space)
    assert tn.search(small, "parameters 0.181", space=space).best["parameters"] == 13


def test_bad_input() -> None:
    bad = kernel()
    bad[0, 0, 0, 0] = float("nan")
    with refused(ValuesError, "NaN"):
        tn.search(bad, "parameters 0.4")
    with refused(RankError, "no size"):
        tn.search(kernel(), [])
    with refused(RankError, "8", "budget"):
        tn.search(kernel(), 8)
    with refused(RankError, "no topology", "parameters 0.01"):
        tn.search(kernel(), "parameters 0.01")
    with refused(RuleError, "'depth'"):
        tn.search(kernel(), "parameters 0.4", space=tn.Space(groups=("depth",)))
    with refused(RuleError, "5 axes", "a b"):
        tn.search(torch.ones(2, 2, 2, 2, 2), "parameters 0.4", labels="a b")
    with refused(ValuesError, "dict"):
        tn.search({}, "parameters 0.4")
    with refused(ValuesError, "no kernel"):
        tn.search(nn.ReLU(), "parameters 0.4")


def test_a_large_space_needs_optuna(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tnalgebra.topologies.run.MOST_LISTED", 5)
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    with refused(MissingPackageError, "optuna", "tnalgebra[search]"):
        tn.search(kernel(), "parameters 0.5")


def test_ranks_are_moved_of_the_best_topologies_that_have_several_bonds(tmp_path: Path) -> None:
    space = tn.Space(cores=(3, 3), bonds=("ring", "hyperedge"), groups=("out", "in kh", "kw"), catalogue=False)
    result = tn.search(kernel(), "parameters 0.5", space=space, output=tmp_path)
    assert len(result.best["ranks"]["kernel"]) == 1  # the best topology has nothing to move
    rows = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    moved = [row for row in rows if row["stage"] == "moved"]
    assert [len(row["asked"]["kernel"]) for row in moved] == [3]
