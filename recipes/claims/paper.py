"""The claims of a paper's abstract on each of its networks: a number with an interval decides, by a fixed rule.

Singh, Jahromi and Orus (arXiv 2403.14379). A network is a folder of experiments, as recipes.paper leaves them, or as
files of kept rows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import NamedTuple

import pandas as pd
from scipy.stats import t as student

import tnalgebra as tn
from recipes.a_priori.report import DENSE, finished
from recipes.experiment import Row
from recipes.kept import read_folder, read_kept
from recipes.reporting import markdown
from recipes.retrain import report as retrain
from recipes.spectra import distinct

NETWORKS = ("cnn4-cifar10", "cnn4-cifar100", "resnet20-cifar10", "resnet50-16-cifar10", "resnet50-16-cifar100")
"""The networks of the table: those of the paper, ResNet-50 with a quarter of its width, and one with public weights."""

AT_MOST = 0.01
"""The loss of accuracy that does not count as significant: one point."""
LOSS_OF_NORM = 0.1
"""The part of the squared norm from which its loss counts as significant."""
AGGRESSIVE = 0.1
"""The loss of accuracy from which a truncation counts as aggressive: ten points."""
MINIMUM = 0.005
"""The loss against a control that does not count as a worse minimum: half a point."""
FEWEST_LAYERS = 8
"""The least number of layers for a verdict: an interval over fewer says little about others."""
FEWEST_SEEDS = 3
"""The least number of seeds for a verdict on trainings: with one, all share the luck of one dense network."""
DRAWS = tn.studies.Draws()
"""For each interval."""
NORMAL = 1.96
"""Standard errors at each side of a mean, for 95 %."""

Experiments = Mapping[str, Sequence[Row]]
"""Experiment -> its rows."""


class Number(NamedTuple):
    """What decides a claim on a network: a value, and the ends of its interval.

    text: as the table has it.
    decides: whether the interval is over enough to be one.
    """

    value: float
    low: float
    high: float
    text: str
    decides: bool = True


class Claim(NamedTuple):
    """A claim.

    says: the claim, in our words.
    measure: what is measured, and over what the interval is.
    holds: the verdict is yes where the whole interval holds it, no where none of it does.
    number: a function of the experiments of a network; None where rows are missing.
    """

    says: str
    measure: str
    rule: str
    holds: Callable[[float], bool]
    number: Callable[[Experiments], Number | None]


def read_networks(folder: Path) -> dict[str, dict[str, list[Row]]]:
    """Network -> experiment -> rows, of the networks that the folder has.

    Raises:
        StudyError: it has rows of none of them.
    """
    networks: dict[str, dict[str, list[Row]]] = {}
    for network in NETWORKS:
        kept = {path.stem: read_kept(path).rows for path in sorted((folder / network).glob("*.jsonl"))}
        folders = {path.name: read_folder(path) for path in sorted((folder / network).glob("*/"))}
        networks[network] = {name: rows for name, rows in {**folders, **kept}.items() if rows}
    if not any(networks.values()):
        known = ", ".join(NETWORKS)
        raise tn.errors.StudyError(
            f"{folder} has rows of none of the networks", networks=known, fix="--paper runs/paper"
        )
    return networks


def claims_table(networks: Mapping[str, Experiments]) -> str:
    """A line for each claim, a column for each network: the number, its interval and the verdict; in Markdown."""
    lines = []
    for claim in CLAIMS:
        numbers = [claim.number(networks.get(network, {})) for network in NETWORKS]
        cells = ["not run" if number is None else f"**{verdict(claim, number)}**: {number.text}" for number in numbers]
        lines.append([claim.says, claim.measure, claim.rule, *cells])
    return markdown(["the abstract says", "measured here", "yes if", *NETWORKS], lines, left=3 + len(NETWORKS))


def verdict(claim: Claim, number: Number) -> str:
    """yes, no, or open where the interval holds values of both kinds, or is over too few layers."""
    if not number.decides:
        return "open"
    ends = {claim.holds(number.low), claim.holds(number.high)}
    return "open" if len(ends) == 2 or math.isnan(number.value) else "yes" if ends == {True} else "no"


# Numbers --------------------------------------------------------------------------------------------------------


def a_priori(experiments: Experiments) -> Number | None:
    """Points of accuracy less dense's, means over seeds, with at most half of the parameters; over contenders.

    The interval is Student's, for few contenders.
    """
    rows = experiments.get("a-priori")
    if rows is None:
        return None
    last = finished(rows)
    dense = {row["seed"]: row["score"] for row in last[DENSE]}
    differences: dict[str, dict[int, float]] = {}
    for name, its_rows in last.items():
        for row in its_rows:
            if name != DENSE and row["seed"] in dense and row["fraction"] <= 0.5:
                differences.setdefault(name, {})[row["seed"]] = row["score"] - dense[row["seed"]]
    less = [fmean(by_seed.values()) for by_seed in differences.values()]
    if len(less) < 2:
        return None
    mean = fmean(less)
    half = float(student.ppf(0.975, len(less) - 1)) * stdev(less) / math.sqrt(len(less))
    seeds = min(map(len, differences.values()))
    text = f"{_points(mean, mean - half, mean + half)}, {seeds} {'seed' if seeds == 1 else 'seeds'}"
    return Number(mean, mean - half, mean + half, text, seeds >= FEWEST_SEEDS)


def harmless_cuts(experiments: Experiments) -> Number | None:
    """The part of the cuts of one layer with a significant loss of norm that cost at most a point of accuracy."""
    rows = experiments.get("layers")
    if rows is None:
        return None
    points = tn.studies.points_of(rows, "each")
    points = points[points["relative_error"].between(math.sqrt(LOSS_OF_NORM), math.sqrt(0.5))]
    within = tn.studies.mean_of(points["loss"] <= AT_MOST + retrain.ROUNDING)
    return _part(tn.studies.bootstrap([*points["unit"]], within, DRAWS), f"{len(points)} cuts")


def several_cuts(experiments: Experiments) -> Number | None:
    """The part of the layers that lose a significant part of the norm across at least two cuts for at most a point.

    Only cuts that were tested count.
    """
    rows = experiments.get("layers")
    if rows is None:
        return None
    tested: dict[str, list[float]] = {}
    for cuts in tn.studies.largest_cuts(rows, at_most=AT_MOST, size="relative_error").values():
        for cut in cuts:
            tested.setdefault(cut.layer, []).append(cut.tested)
    cut_twice = {layer: sizes for layer, sizes in tested.items() if len(sizes) > 1}
    several = [sum(size**2 >= LOSS_OF_NORM for size in sizes) >= 2 for sizes in cut_twice.values()]
    return _part(tn.studies.bootstrap([*cut_twice], tn.studies.mean_of(several), DRAWS), f"{len(cut_twice)} layers")


def deeper(experiments: Experiments) -> Number | None:
    """The correlation of a layer's depth with its largest cut, by the kernel's error, that costs at most a point.

    It is the mean over the cuts that enough layers have.
    """
    rows = experiments.get("layers")
    if rows is None:
        return None
    return _correlation(tn.studies.depth_correlation(rows, at_most=AT_MOST, size="relative_error", draws=DRAWS).mean)


def norm_and_accuracy(experiments: Experiments) -> Number | None:
    """The correlation of the loss of accuracy with the error of the kernel, one layer at a time, across all cuts."""
    rows = experiments.get("layers")
    if rows is None:
        return None
    return _correlation(tn.studies.norm_correlation(rows, error="relative_error", scope="each", draws=DRAWS).across)


def evenness(experiments: Experiments) -> Number | None:
    """The mean over kernels and cuts of the entropy S / ln r, less that of fresh weights."""
    rows = experiments.get("spectra")
    if rows is None:
        return None
    spectra = distinct(pd.DataFrame(rows))
    less = tn.studies.mean_of(spectra["normalised_difference"])
    return _correlation(tn.studies.bootstrap([*spectra["layer"]], less, DRAWS))


def recovered(experiments: Experiments, *, aggressive: bool) -> Number | None:
    """The part of the retrained networks that recover, with Wilson's interval."""
    chosen = _retrained(experiments, aggressive=aggressive)
    if not chosen:
        return None
    count, yes = len(chosen), sum(claim.recovered for claim in chosen)
    middle = (yes + NORMAL**2 / 2) / (count + NORMAL**2)
    half = NORMAL / (count + NORMAL**2) * math.sqrt(yes * (count - yes) / count + NORMAL**2 / 4)
    low, high = max(0.0, middle - half), min(1.0, middle + half)
    return Number(yes / count, low, high, f"{yes} of {count} [{100 * low:.0f}, {100 * high:.0f}] %")


def to_control(experiments: Experiments) -> Number | None:
    """The accuracy after retraining less the control's: the mean, least and largest of aggressive truncations."""
    chosen = _retrained(experiments, aggressive=True)
    less = [claim.to_control for claim in chosen if claim.to_control is not None]
    return Number(fmean(less), min(less), max(less), _points(fmean(less), min(less), max(less))) if less else None


def _retrained(experiments: Experiments, *, aggressive: bool) -> list[retrain.Claim]:
    """The retrained networks that were truncated aggressively, or those that were not."""
    chosen = []
    for rows in (rows for name, rows in experiments.items() if name.startswith("retrain")):
        losses = {row["truncation"]: -row["accuracy_change"] for row in rows if row["way"] and row["epoch"] == 0}
        large = {truncation for truncation, loss in losses.items() if loss >= AGGRESSIVE - retrain.ROUNDING}
        chosen += [claim for claim in retrain.claims(rows) if (claim.truncation in large) == aggressive]
    return chosen


def _part(part: tn.studies.Correlation, of: str) -> Number:
    if part.why is not None:
        return _correlation(part)
    text = f"{100 * part.rho:.0f} [{100 * part.low:.0f}, {100 * part.high:.0f}] % of {of}"
    return Number(part.rho, part.low, part.high, text, part.units >= FEWEST_LAYERS)


def _correlation(one: tn.studies.Correlation) -> Number:
    text = one.interval if one.why is None else one.why
    return Number(one.rho, one.low, one.high, text, one.units >= FEWEST_LAYERS)


def _points(value: float, low: float, high: float) -> str:
    return f"{100 * value:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}] points"


CLAIMS = (
    Claim(
        "Networks that are trained in decomposed form keep the accuracy",
        "accuracy less that of the dense network, trained alike, with at most half of the parameters in each kernel; "
        "mean over seeds and decompositions, Student's interval over decompositions",
        "less than a point is lost",
        lambda value: value > -AT_MOST,
        a_priori,
    ),
    Claim(
        "A large loss of a kernel's norm is often not one of accuracy",
        "part of the cuts of one layer that remove 10 to 50 % of its squared norm, and cost at most one point; "
        "interval over layers",
        "more than half do",
        lambda value: value > 0.5,
        harmless_cuts,
    ),
    Claim(
        "... and this along several cuts",
        "part of the layers that lose 10 % of the squared norm or more, for at most one point, across two of the cuts "
        "that were tested, or more; interval over layers",
        "more than half do",
        lambda value: value > 0.5,
        several_cuts,
    ),
    Claim(
        "... above all in deep layers",
        "Spearman's correlation of depth with the largest cut, by the error of the kernel, that costs at most one "
        "point; mean over the cuts, interval over layers",
        "it is above 0",
        lambda value: value > 0,
        deeper,
    ),
    Claim(
        "Dense networks store correlations in compressed form",
        "entropy S / ln r of the singular values less that of fresh weights; mean of kernels and cuts, interval over "
        "layers",
        "it is below 0",
        lambda value: value < 0,
        evenness,
    ),
    Claim(
        "Networks recover from aggressive truncations in a few epochs",
        "retrained networks, of those truncated by ten points or more, within 0.5 points of before in five epochs; "
        "Wilson's interval",
        "more than half do",
        lambda value: value > 0.5,
        lambda experiments: recovered(experiments, aggressive=True),
    ),
    Claim(
        "... and from mild ones (not in the abstract)",
        "the same, of those truncated by less than ten points",
        "more than half do",
        lambda value: value > 0.5,
        lambda experiments: recovered(experiments, aggressive=False),
    ),
    Claim(
        "Truncation does not lead to a worse minimum",
        "accuracy after these epochs less that of the control, of aggressive truncations: mean, least and largest",
        "at most half a point is lost",
        lambda value: value >= -MINIMUM - retrain.ROUNDING,
        to_control,
    ),
    Claim(
        "The norm does not decide the accuracy (what the others imply)",
        "Spearman's correlation of the loss of accuracy with the error of the kernel, over cuts of one layer; interval "
        "over layers",
        "it is below 0.5",
        lambda value: value < 0.5,
        norm_and_accuracy,
    ),
)
"""The sentences of the abstract that say something about networks, in their order, in our words."""
