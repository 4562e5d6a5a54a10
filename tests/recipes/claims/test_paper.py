"""The table of the paper's claims: numbers of rows, verdicts of intervals, and gaps that say so."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

import tnalgebra as tn
from recipes.claims.paper import CLAIMS, NETWORKS, Number, claims_table, read_networks, recovered, several_cuts, verdict
from recipes.kept import Kept, write_kept
from tests.claim_rows import BASELINE, row

LAYERS = tuple(f"layer{number}" for number in range(8))
CUTS = ("out | in kh kw", "in | out kh kw", "out kh | in kw")


def layer_rows(losses: dict[str, float]) -> list[tn.studies.Row]:
    """Each layer cut across each cut, a quarter of its squared norm lost; the loss of accuracy is that of the cut."""
    return [BASELINE, *(row(layer, 0.5, loss, rewrite=cut) for cut, loss in losses.items() for layer in LAYERS)]


@pytest.mark.parametrize(
    ("losses", "part"),
    [
        (dict.fromkeys(CUTS, 0.0), 1.0),
        ({CUTS[0]: 0.0, CUTS[1]: 0.05, CUTS[2]: 0.01}, 1.0),
        ({CUTS[0]: 0.0, CUTS[1]: 0.05, CUTS[2]: 0.05}, 0.0),
    ],
)
def test_layers_that_bear_several_cuts(losses: dict[str, float], part: float) -> None:
    number = several_cuts({"layers": layer_rows(losses)})
    assert number is not None
    assert (number.value, number.low, number.high) == (part, part, part)


def retrained(loss: float, end: float) -> list[dict[str, Any]]:
    """A network of 90 %, truncated, and the accuracy after an epoch."""
    common = {"model": "net", "images": 100, "epochs": 1, "truncation": "a @ keep 0.5", "way": "dense", "seed": 0}
    return [
        {
            **common,
            "truncation": "none",
            "way": None,
            "seed": None,
            "epoch": 0,
            "accuracy": 0.9,
            "accuracy_change": 0.0,
        },
        {**common, "epoch": 0, "accuracy": 0.9 - loss, "accuracy_change": -loss},
        {**common, "epoch": 1, "accuracy": end, "accuracy_change": end - 0.9},
    ]


@pytest.mark.parametrize(("loss", "aggressive"), [(0.1, True), (0.099, False)])
@pytest.mark.parametrize(("end", "count"), [(0.895, 1), (0.894, 0)])
def test_recovered_networks_are_counted_by_how_far_they_were_truncated(
    loss: float, aggressive: bool, end: float, count: int
) -> None:
    experiments = {"retrain": retrained(loss, end), "retrain-mild": retrained(loss, end)}
    number = recovered(experiments, aggressive=aggressive)
    assert number is not None
    assert number.value == count
    assert 0 <= number.low <= count <= number.high <= 1
    assert recovered(experiments, aggressive=not aggressive) is None


def test_the_verdict_is_open_where_the_interval_is_on_both_sides() -> None:
    claim = next(claim for claim in CLAIMS if claim.rule == "more than half do")
    assert verdict(claim, Number(0.8, 0.6, 0.9, "", decides=False)) == "open"
    intervals = {(0.6, 0.9): "yes", (0.1, 0.4): "no", (0.4, 0.6): "open", (math.nan, math.nan): "open"}
    for (low, high), text in intervals.items():
        assert verdict(claim, Number((low + high) / 2, low, high, "")) == text


def test_a_folder_of_kept_rows_becomes_a_table_with_gaps(tmp_path: Path) -> None:
    write_kept(tmp_path / NETWORKS[0] / "layers.jsonl", Kept(layer_rows(dict.fromkeys(CUTS, 0.0)), (), {}))
    networks = read_networks(tmp_path)
    assert list(networks) == list(NETWORKS)
    lines = claims_table(networks).splitlines()
    assert len(lines) == 2 + len(CLAIMS)
    assert all(line.count("not run") >= len(NETWORKS) - 1 for line in lines[2:])
    assert sum("**yes**: 100 [100, 100] %" in line for line in lines) == 2
