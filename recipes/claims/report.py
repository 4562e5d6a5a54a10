"""The results of recipes.claims as a table and as figures."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

import tnalgebra as tn
from recipes.reporting import aligned, line_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZES: dict[str, str] = {
    "relative_error": "relative error of the kernel",
    "output_error": "relative error of the layer's output",
    "values": "part of the singular values dropped",
}


def claims_table(claims: tn.studies.Claims, at_most: float) -> str:
    """All results as text; `at_most` is the loss of accuracy that a harmless cut may cost, 0 to 1."""
    lines = [f"Depth and the largest cut that costs at most {points_text(at_most)} (Spearman, 95 % interval)"]
    for size, depth in claims.depth.items():
        bounds = [cut.bound for cuts in depth.cuts.values() for cut in cuts]
        below, beyond = bounds.count("smallest"), bounds.count("largest")
        counts = f"of {len(bounds)}, {below} cost more at the smallest cut, {beyond} no more at the largest"
        lines += ["", f"  by {SIZES[size]} ({counts})", listed({**depth.correlations, "mean of these": depth.mean})]
    for scope, norms in claims.norms.items():
        one = "one layer cut at a time" if scope == "each" else "all layers cut at once"
        lines += ["", f"Loss of accuracy and error, {one} (Spearman, 95 % interval)"]
        for error, claim in norms.items():
            correlations = {**claim.within, "mean within": claim.mean_within, "across all": claim.across}
            lines += ["", f"  {SIZES[error]}", listed(correlations)]
        if scope in claims.gains:
            gain = claims.gains[scope]
            lines += ["", "  rho of the output's error less rho of the kernel's"]
            lines.append(listed({"mean within": gain.mean_within, "across all": gain.across}))
    for error, bands in claims.bands.items():
        title = f"Cuts of one layer that cost at most {points_text(at_most)}, by {SIZES[error]} (95 % interval)"
        lines += ["", title, "", *(f"    {line}" for line in _bands(bands))]
    return "\n".join(lines)


def listed(correlations: Mapping[str, tn.studies.Correlation]) -> str:
    """A line for each correlation."""
    width = max(map(len, correlations))
    return "\n".join(f"    {name:<{width}}  {correlation}" for name, correlation in correlations.items())


def _bands(bands: Sequence[tn.studies.Band]) -> list[str]:
    """A line for each band: errors, their squares, cuts, the part of them that is harmless, their losses in points."""
    lines = [["error", "squared", "cuts", "harmless", "95 %", "median loss", "largest"]]
    for band in bands:
        ends = (band.least, band.most)
        errors = [" - ".join(f"{e:g}" for e in some if e < math.inf) for some in (ends, [round(e**2, 4) for e in ends])]
        errors = [text if band.most < math.inf else f"from {text}" for text in errors]
        known = "" if math.isnan(band.low) else f"[{band.low:.0%}, {band.high:.0%}]"
        losses = [f"{100 * loss:.2f}" for loss in (band.median, band.largest)]
        lines.append([*errors, str(band.rows), f"{band.part:.0%}", known, *losses])
    return aligned(lines).splitlines()


def points_text(loss: float) -> str:
    return f"{100 * loss:g} point{'' if loss == 0.01 else 's'} of accuracy"


# Figures ----------------------------------------------------------------------------------------------------------


def _about(about: Mapping[str, Any]) -> str:
    return f"{about['model']}, {about['images']} test images, no retraining"


def _label(name: str, correlation: tn.studies.Correlation) -> str:
    return name if correlation.why is not None else f"{name}\n{correlation.interval}"


def depth_figure(claims: tn.studies.Claims, about: Mapping[str, Any]) -> Figure:
    """The largest cut of each layer, by depth, with a panel for each measure; hollow where only a bound is known."""
    every = [cut.layer for claim in claims.depth.values() for cuts in claim.cuts.values() for cut in cuts]
    layers = list(dict.fromkeys(every))
    size = (max(7.0, 3.2 + 0.28 * len(layers)), 1.2 + 2.5 * len(claims.depth))
    figure = Figure(figsize=size, layout="constrained")
    panels: list[Axes] = list(figure.subplots(len(claims.depth), 1, sharex=True, squeeze=False).flat)
    for panel, (measure, claim) in zip(panels, claims.depth.items(), strict=True):
        for number, (name, cuts) in enumerate(claim.cuts.items()):
            style = line_style(number)
            places = [layers.index(cut.layer) for cut in cuts]
            panel.plot(places, [cut.size for cut in cuts], color=style["color"], linewidth=0.6, alpha=0.6)
            for fill in (style["color"], "white"):
                chosen = [n for n, cut in enumerate(cuts) if (cut.bound is not None) == (fill == "white")]
                points = [places[n] for n in chosen], [cuts[n].size for n in chosen]
                panel.plot(*points, linestyle="none", markersize=5, markerfacecolor=fill, **style)
            panel.plot([], [], label=_label(name, claim.correlations[name]), **style)
        panel.set_ylabel(SIZES[measure].replace(" of ", "\nof "), fontsize="small")
        panel.set_title(_label("mean of these", claim.mean).replace("\n", ": "), fontsize="small")
        panel.grid(alpha=0.3)
        panel.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize="x-small", frameon=False)
    panels[-1].set_xticks(range(len(layers)), layers, rotation=90, fontsize="small")
    figure.suptitle(
        f"Largest cut of one layer that costs at most {points_text(about['at_most'])}: {_about(about)}\n"
        "hollow: a bound, for the smallest cut tested costs more, or the largest does not",
        fontsize="medium",
    )
    return figure


def loss_figure(claims: tn.studies.Claims, about: Mapping[str, Any]) -> Figure:
    """The loss of accuracy against the errors, with a row of panels for each scope and a column for each error."""
    across = max(map(len, claims.norms.values()))
    size = (1.0 + 6.2 * across, 0.8 + 3.9 * len(claims.norms))
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(len(claims.norms), across, squeeze=False, sharey="row")
    for line, (scope, norms) in zip(grid, claims.norms.items(), strict=True):
        for panel in line[len(norms) :]:
            panel.set_axis_off()
        for panel, (error, claim) in zip(line, norms.items(), strict=False):
            for number, (name, points) in enumerate(claim.points.items()):
                sizes, losses = [size for size, _ in points], [100 * loss for _, loss in points]
                label = _label(name, claim.within[name])
                panel.plot(sizes, losses, markersize=4, linestyle="none", alpha=0.8, label=label, **line_style(number))
            panel.set_yscale("symlog", linthresh=1)
            panel.set_xlabel(SIZES[error])
            one = "one layer at a time" if scope == "each" else "all layers at once"
            panel.set_title(_label(f"{one}; across", claim.across).replace("\n", " "), fontsize="small")
            panel.grid(alpha=0.3)
            panel.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), fontsize="x-small", frameon=False)
        line[0].set_ylabel("loss of accuracy (points)")
    figure.suptitle(f"Loss of accuracy against errors: {_about(about)}", fontsize="medium")
    return figure
