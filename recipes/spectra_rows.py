"""What recipes.spectra measures of a kernel, as tables and a figure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple

from recipes.correlation_rows import interval, shown
from recipes.training_rows import aligned
from tnalgebra.spectrum import DISTINCT_COLOURS, Spectra
from tnalgebra.study_figures import MARKERS
from tnalgebra.study_statistics import Correlation

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEASURES = {
    "normalised_entropy": "S / ln r",
    "normalised_difference": "(S - S of fresh weights) / ln r",
}
"""Column -> what is compared with depth."""
ROUNDING = 1e-12
"""Of the squared norm: less is rounding of the singular values."""


class Measured(NamedTuple):
    """One kernel over one cut: a row of entropies.csv. Entropies are in nats.

    Attributes:
        depth: 1 for the first layer that is measured.
        values: r, the smaller side of the cut's matrix.
        normalised_entropy: S / ln r, 0 to 1; NaN where r = 1, as all that is over ln r.
        effective_rank, participation_ratio: see `tnalgebra.spectrum.Spectrum`.
        needed: the fewest leading values that hold the config's part of the squared norm.
        effective_rank_part, needed_part: these over r.
        fresh_entropy: of the same layer in the fresh network.
        difference: S less that: negative where training has made the kernel less even.
        normalised_difference: this over ln r.
    """

    layer: str
    depth: int
    cut: str
    values: int
    entropy: float
    normalised_entropy: float
    effective_rank: float
    effective_rank_part: float
    participation_ratio: float
    needed: int
    needed_part: float
    fresh_entropy: float
    difference: float
    normalised_difference: float

    @property
    def fresh_normalised(self) -> float:
        """S / ln r of the fresh network."""
        return self.normalised_entropy - self.normalised_difference


@dataclass(frozen=True)
class Depths:
    """Correlation of depth with a measure: for each cut, among the layers that have it; and the mean of these."""

    cuts: Mapping[str, Correlation]
    mean: Correlation


@dataclass(frozen=True, eq=False)
class Found:
    """Singular values of the network, what they say, and how that depends on depth: measure -> correlations."""

    spectra: Spectra
    rows: Sequence[Measured]
    correlations: Mapping[str, Depths]


def measured(there: Spectra, fresh: Spectra, norm: float) -> list[Measured]:
    """Each spectrum with that of the same kernel and cut in the fresh network; norm: part of the squared norm."""
    depth = {name: number for number, name in enumerate(dict.fromkeys(item.layer for item in there), start=1)}
    found = []
    for item, other in zip(there, fresh, strict=True):
        count = len(item.singular_values)
        largest = math.log(count) if count > 1 else math.nan
        needed = int((item.norm_kept.square() < norm - ROUNDING).sum()) + 1
        entropy, difference = item.entropy, item.entropy - other.entropy
        found.append(
            Measured(
                layer=item.layer,
                depth=depth[item.layer],
                cut=str(item.cut),
                values=count,
                entropy=entropy,
                normalised_entropy=entropy / largest,
                effective_rank=item.effective_rank,
                effective_rank_part=item.effective_rank / count,
                participation_ratio=item.participation_ratio,
                needed=needed,
                needed_part=needed / count,
                fresh_entropy=other.entropy,
                difference=difference,
                normalised_difference=difference / largest,
            )
        )
    return found


def entropy_table(rows: Sequence[Measured]) -> str:
    """S / ln r: a line a layer, a column a cut; below, means over the layers of both networks."""
    mean, fresh = "mean", "mean, fresh weights"
    lines: dict[str, dict[str, list[float]]] = {name: {} for name in (*(row.layer for row in rows), mean, fresh)}
    for row in rows:
        if row.values > 1:
            even = row.normalised_entropy
            for name, value in ((row.layer, even), (mean, even), (fresh, row.fresh_normalised)):
                lines[name].setdefault(_left(row.cut), []).append(value)
    columns = list(dict.fromkeys(_left(row.cut) for row in rows))
    cells = [
        [name, *(f"{fmean(line[column]):.3f}" if column in line else "-" for column in columns)]
        for name, line in lines.items()
    ]
    title = "S / ln r across each cut (named by its left side)"
    return f"{title}\n\n{aligned([['layer', *columns], *cells])}"


def _left(cut: str) -> str:
    return cut.partition(" | ")[0]


def depth_table(correlations: Mapping[str, Depths]) -> str:
    """A line a cut, for each measure."""
    lines = []
    for measure, depths in correlations.items():
        lines += ["", f"Depth and {MEASURES[measure]} (Spearman, 95 % interval)"]
        found = {**depths.cuts, "mean of these": depths.mean} if depths.mean.why is None else {"": depths.mean}
        width = max(map(len, found))
        lines += [f"    {name:<{width}}  {shown(each)}" for name, each in found.items()]
    return "\n".join(lines[1:])


def figure_of(found: Found, model: str) -> Figure:
    """Normalised entropy by depth, a line a cut: of the network, and dashed of fresh weights."""
    from matplotlib.figure import Figure

    layers = list(dict.fromkeys(row.layer for row in found.rows))
    figure = Figure(figsize=(max(7.0, 3.4 + 0.28 * len(layers)), 5.0), layout="constrained")
    panel = figure.subplots()
    correlations = found.correlations["normalised_entropy"].cuts
    for number, (cut, correlation) in enumerate(correlations.items()):
        rows = [row for row in found.rows if row.cut == cut and row.values > 1]
        places = [row.depth - 1 for row in rows]
        style: dict[str, Any] = {"color": DISTINCT_COLOURS[number % len(DISTINCT_COLOURS)]}
        marker = MARKERS[number % len(MARKERS)]
        label = cut if correlation.why is not None else f"{cut}\n{interval(correlation)}"
        panel.plot(places, [row.normalised_entropy for row in rows], marker=marker, markersize=4, label=label, **style)
        style |= {"marker": "_"} if len(rows) == 1 else {}  # a line of one point would not be seen
        fresh = [row.fresh_normalised for row in rows]
        panel.plot(places, fresh, linestyle="--", alpha=0.45, linewidth=1, **style)
    panel.set_xticks(range(len(layers)), layers, rotation=90, fontsize="small")
    panel.set_ylabel("entropy S / ln r")
    panel.grid(alpha=0.3)
    place: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.01, 0.5), "frameon": False}
    panel.legend(title="cut, and rho of depth", fontsize="x-small", title_fontsize="small", **place)
    title = f"Evenness of kernels' singular values: {model} (dashed: fresh weights)"
    panel.set_title(f"{title}\n1: all values of a cut are equal", fontsize="medium")
    return figure
