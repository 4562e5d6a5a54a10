"""The table of the paper's claims: numbers of rows, verdicts of intervals, and gaps that say so."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tnalgebra as tn
from recipes.claims.paper import (
    CLAIMS,
    NETWORKS,
    Number,
    a_priori,
    claims_table,
    read_networks,
    recovered,
    several_cuts,
    verdict,
)
from recipes.kept import Kept, write_kept
from tests.claim_rows import BASELINE, row
from tests.refusals import refused
from tnalgebra.errors import StudyError

LAYERS = tuple(f"layer{number}" for number in range(8))
CUTS = ("out | in kh kw", "in | out kh kw", "out kh | in kw")
SIZES = ((0.1, 0.0), (0.9, 0.02))
"""Errors of cuts, and the losses of accuracy that they cost."""


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


def test_cuts_that_were_not_tested_do_not_count_as_borne() -> None:
    """Between 0.1 and 0.9 of the norm a cut of 0.5 would cost one point, but none was tested there."""
    tested = [row(layer, size, loss, rewrite=cut) for cut in CUTS for layer in LAYERS for size, loss in SIZES]
    number = several_cuts({"layers": [BASELINE, *tested]})
    assert number is not None
    assert number.value == 0


def test_trainings_in_decomposed_form_have_students_interval_over_contenders() -> None:
    losses = {"cp": (0.01, 0.03), "ring": (0.02, 0.02), "tucker2": (0.04, 0.06)}
    rows = [trained("dense", seed, 0.7 + seed / 100, 1.0) for seed in (0, 1)]
    rows += [
        trained(name, seed, 0.7 + seed / 100 - some[seed], 0.25) for name, some in losses.items() for seed in (0, 1)
    ]
    number = a_priori({"a-priori": rows})
    assert number is not None
    half = 4.302653 * np.std([0.02, 0.02, 0.05], ddof=1) / math.sqrt(3)  # of two degrees of freedom, from a table
    assert (number.value, number.low, number.high) == pytest.approx((-0.03, -0.03 - half, -0.03 + half))
    assert not number.decides, "of two seeds"
    again = a_priori({"a-priori": [*rows, *({**one, "seed": 2} for one in rows if one["seed"] == 1)]})
    assert again is not None
    assert again.decides


def trained(contender: str, seed: int, score: float, fraction: float) -> dict[str, Any]:
    return {"contender": contender, "seed": seed, "score": score, "fraction": fraction, "epoch": 1, "epochs": 1}


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


def test_a_folder_without_rows_is_refused(tmp_path: Path) -> None:
    with refused(StudyError, "missing", "resnet20-cifar10"):
        read_networks(tmp_path / "missing")


def test_a_folder_of_kept_rows_becomes_a_table_with_gaps(tmp_path: Path) -> None:
    write_kept(tmp_path / NETWORKS[0] / "layers.jsonl", Kept(layer_rows(dict.fromkeys(CUTS, 0.0)), (), {}))
    networks = read_networks(tmp_path)
    assert list(networks) == list(NETWORKS)
    lines = claims_table(networks).splitlines()
    assert len(lines) == 2 + len(CLAIMS)
    assert all(line.count("not run") >= len(NETWORKS) - 1 for line in lines[2:])
    assert sum("**yes**: 100 [100, 100] %" in line for line in lines) == 2
