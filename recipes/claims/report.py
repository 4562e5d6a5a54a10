"""Rank correlations as text and as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import tnalgebra as tn
from recipes.claims.statistics import Band, Correlation, DepthClaim, Gain, NormClaim
from recipes.reporting import aligned

# correlation_rows: Rank correlations as text and as JSON.


def interval(found: Correlation) -> str:
    """The correlation and the ends of its interval."""
    return f"{found.rho:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"


def shown(found: Correlation) -> str:
    """With the numbers of points and of what was drawn; or why there is none."""
    if found.why is not None:
        return f"none: {found.why}"
    left_out = f", {found.undefined} draws undefined" if found.undefined else ""
    return f"{interval(found)}  {found.points} points, {found.units} drawn{left_out}"


def plain(value: Any) -> Any:
    """As JSON has it, which has no NaN."""
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# claims_rows: What recipes.claims finds, as a table and figures.


if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZES: dict[str, str] = {
    "relative_error": "relative error of the kernel",
    "output_error": "relative error of the layer's output",
    "values": "part of the singular values dropped",
}


@dataclass(frozen=True)
class Claims:
    """What was found; of what the rows do not have there is nothing.

    depth: how large a cut is -> claim.
    norms: "each" or "all" -> error -> claim.
    gains: "each" or "all" -> claim.
    bands: error -> how often a cut of one layer is harmless, by that error.
    """

    depth: Mapping[str, DepthClaim]
    norms: Mapping[str, Mapping[str, NormClaim]]
    gains: Mapping[str, Gain]
    bands: Mapping[str, Sequence[Band]]


# Text -------------------------------------------------------------------------------------------------------------


def claims_table(found: Claims, at_most: float) -> str:
    lines = [f"Depth and the largest cut that costs at most {_points(at_most)} (Spearman, 95 % interval)"]
    for size, depth in found.depth.items():
        bounds = [cut.bound for cuts in depth.cuts.values() for cut in cuts]
        lines += ["", f"  by {SIZES[size]} ({_counted(bounds)})"]
        lines += _listed({**depth.correlations, "mean of these": depth.mean})
    for scope, norms in found.norms.items():
        one = "one layer cut at a time" if scope == "each" else "all layers cut at once"
        lines += ["", f"Loss of accuracy and error, {one} (Spearman, 95 % interval)"]
        for error, claim in norms.items():
            lines += ["", f"  {SIZES[error]}"]
            lines += _listed({**claim.within, "mean within": claim.mean_within, "across all": claim.across})
        if scope in found.gains:
            gain = found.gains[scope]
            lines += ["", "  rho of the output's error less rho of the kernel's"]
            lines += _listed({"mean within": gain.mean_within, "across all": gain.across})
    for error, bands in found.bands.items():
        title = f"Cuts of one layer that cost at most {_points(at_most)}, by {SIZES[error]} (95 % interval)"
        lines += ["", title, "", *(f"    {line}" for line in _bands(bands))]
    return "\n".join(lines)


def _bands(bands: Sequence[Band]) -> list[str]:
    """A line a band: errors, squared, how many cuts, how many of them are harmless, what they cost in points."""
    lines = [["error", "squared", "cuts", "harmless", "95 %", "median loss", "largest"]]
    for band in bands:
        ends = (band.least, band.most)
        errors = [" - ".join(f"{e:g}" for e in some if e < math.inf) for some in (ends, [round(e**2, 4) for e in ends])]
        errors = [text if band.most < math.inf else f"from {text}" for text in errors]
        known = "" if math.isnan(band.low) else f"[{band.low:.0%}, {band.high:.0%}]"
        losses = [f"{100 * loss:.2f}" for loss in (band.median, band.largest)]
        lines.append([*errors, str(band.rows), f"{band.part:.0%}", known, *losses])
    return aligned(lines).splitlines()


def _points(loss: float) -> str:
    return f"{100 * loss:g} point{'' if loss == 0.01 else 's'} of accuracy"


def _counted(bounds: Sequence[str | None]) -> str:
    below, beyond = bounds.count("smallest"), bounds.count("largest")
    return f"of {len(bounds)}, {below} cost more at the smallest cut, {beyond} no more at the largest"


def _listed(correlations: Mapping[str, Correlation]) -> list[str]:
    width = max(map(len, correlations))
    return [f"    {name:<{width}}  {shown(found)}" for name, found in correlations.items()]


# Figures ----------------------------------------------------------------------------------------------------------


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _about(about: Mapping[str, Any]) -> str:
    return f"{about['model']}, {about['images']} test images, no retraining"


def _label(name: str, found: Correlation) -> str:
    return name if found.why is not None else f"{name}\n{interval(found)}"


def depth_figure(found: Claims, about: Mapping[str, Any]) -> Figure:
    """The layers' largest cuts, by depth: a panel for each measure; hollow where only a bound is known."""
    layers = list(
        dict.fromkeys(cut.layer for claim in found.depth.values() for cuts in claim.cuts.values() for cut in cuts)
    )
    figure = _figure(max(7.0, 3.2 + 0.28 * len(layers)), 1.2 + 2.5 * len(found.depth))
    panels: list[Axes] = list(figure.subplots(len(found.depth), 1, sharex=True, squeeze=False).flat)
    for panel, (size, claim) in zip(panels, found.depth.items(), strict=True):
        for number, (name, cuts) in enumerate(claim.cuts.items()):
            colour, marker = _style(number)
            places = [layers.index(cut.layer) for cut in cuts]
            panel.plot(places, [cut.size for cut in cuts], color=colour, linewidth=0.6, alpha=0.6)
            for hollow in (False, True):
                there = [n for n, cut in enumerate(cuts) if (cut.bound is not None) == hollow]
                panel.plot(
                    [places[n] for n in there],
                    [cuts[n].size for n in there],
                    color=colour,
                    marker=marker,
                    linestyle="none",
                    markersize=5,
                    markerfacecolor="white" if hollow else colour,
                )
            panel.plot([], [], color=colour, marker=marker, label=_label(name, claim.correlations[name]))
        panel.set_ylabel(SIZES[size].replace(" of ", "\nof "), fontsize="small")
        panel.set_title(_label("mean of these", claim.mean).replace("\n", ": "), fontsize="small")
        panel.grid(alpha=0.3)
        panel.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize="x-small", frameon=False)
    panels[-1].set_xticks(range(len(layers)), layers, rotation=90, fontsize="small")
    figure.suptitle(
        f"Largest cut of one layer that costs at most {_points(about['at_most'])}: {_about(about)}\n"
        "hollow: a bound, for the smallest cut tested costs more, or the largest does not",
        fontsize="medium",
    )
    return figure


def loss_figure(found: Claims, about: Mapping[str, Any]) -> Figure:
    """Loss of accuracy against the errors: rows are scopes, columns errors."""
    across = max(map(len, found.norms.values()))
    figure = _figure(1.0 + 4.6 * across, 0.8 + 3.9 * len(found.norms))
    grid = figure.subplots(len(found.norms), across, squeeze=False, sharey="row")
    for line, (scope, norms) in zip(grid, found.norms.items(), strict=True):
        for panel in line[len(norms) :]:
            panel.set_axis_off()
        for panel, (error, claim) in zip(line, norms.items(), strict=False):
            for number, (name, points) in enumerate(claim.points.items()):
                colour, marker = _style(number)
                panel.plot(
                    [size for size, _ in points],
                    [100 * loss for _, loss in points],
                    color=colour,
                    marker=marker,
                    markersize=4,
                    linestyle="none",
                    alpha=0.8,
                    label=_label(name, claim.within[name]),
                )
            panel.set_yscale("symlog", linthresh=1)
            panel.set_xlabel(SIZES[error])
            one = "one layer at a time" if scope == "each" else "all layers at once"
            panel.set_title(_label(f"{one}; across", claim.across).replace("\n", " "), fontsize="small")
            panel.grid(alpha=0.3)
            panel.legend(fontsize="x-small", frameon=False)
        line[0].set_ylabel("loss of accuracy (points)")
    figure.suptitle(f"Loss of accuracy against errors: {_about(about)}", fontsize="medium")
    return figure


def _style(number: int) -> tuple[str, str]:
    return tn.model.DISTINCT_COLOURS[number % len(tn.model.DISTINCT_COLOURS)], tn.studies.MARKERS[
        number % len(tn.studies.MARKERS)
    ]
