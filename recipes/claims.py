"""What the rows of a study say of its claims: rank correlations, with intervals.

    python -m recipes.claims --smoke             # a small study on digits first: seconds
    python -m recipes.compressibility --model resnet20 --weights W.pth --data DIR \\
        --scope each --report-metric --output runs/resnet20
    python -m recipes.claims --rows runs/resnet20

The claims of Singh, Jahromi and Orus (arXiv 2403.14379), as numbers:
- Deep layers bear larger cuts: Spearman's correlation of a layer's depth with the
  largest cut of this layer alone that costs at most a point of accuracy. How large a
  cut is, is told by what it takes away from the kernel, from the layer's output, and
  from the number of singular values.
- The norm tells the accuracy: Spearman's correlation of the loss of accuracy with the
  error of the kernel in the Frobenius norm, and with that of the layer's output (rows
  of --report-metric), within a cut and across all of them; and how much better the
  second is.
- Each has an interval that holds 95 % of the draws of layers, with replacement.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recipes import compressibility
from recipes.command import run_command
from tnalgebra.errors import StudyError, explain
from tnalgebra.files import write_text, write_whole
from tnalgebra.spectrum import DISTINCT_COLOURS
from tnalgebra.study_figures import MARKERS, SUFFIXES
from tnalgebra.study_statistics import (
    Correlation,
    DepthClaim,
    Error,
    Gain,
    NormClaim,
    Scope,
    Size,
    curve_of,
    depth_correlation,
    norm_correlation,
    norm_gain,
)
from tnalgebra.study_store import Row, of_one_layer, read_rows, touched

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SIZES: dict[str, str] = {
    "relative_error": "relative error of the kernel",
    "output_error": "relative error of the layer's output",
    "values": "part of the singular values dropped",
}
SMOKE = compressibility.Config(
    cuts=("out | in kh kw", "out kh | in kw"),
    keep=(0.5, 0.25, 0.125),
    scope=("all", "each"),
    skip=(),
    limit=100,
    calibration=100,
    report_metric=True,
    epochs=3,
    device="cpu",
)
"""Four layers, of which a correlation can just be stated; its numbers mean nothing."""


@dataclass(frozen=True)
class Config:
    """Settings; what is printed first is what is used."""

    rows: Path | None = None
    """folder of a study with rows of single layers (recipes.compressibility --scope each), best with --report-metric"""
    at_most: float = 0.01
    """loss of accuracy that a largest cut may cost: 0.01 is one point"""
    resamples: int = 2000
    """draws for each interval: its ends are then known to a hundredth or two"""
    seed: int = 0
    """of the draws"""
    smoke: bool = False
    """make a small study on digits first, in a folder of the output: whether all of it runs"""
    output: Path | None = None
    """folder for claims.json and the figures (PNG and SVG); by default claims/ in that of the rows"""


@dataclass(frozen=True)
class Claims:
    """What was found; of what the rows do not have there is nothing.

    depth: how large a cut is -> claim.
    norms: "each" or "all" -> error -> claim.
    gains: "each" or "all" -> claim.
    """

    depth: Mapping[str, DepthClaim]
    norms: Mapping[str, Mapping[str, NormClaim]]
    gains: Mapping[str, Gain]


def main(config: Config) -> Claims:
    """Print the claims, write them and their figures.

    Raises:
        StudyError: there are no rows, or none of single layers; the output cannot be written.
    """
    if config.smoke == (config.rows is not None):
        given = "both --smoke and --rows are given" if config.smoke else "neither --rows nor --smoke is given"
        raise StudyError(explain(given, fix="--rows FOLDER of a study, or --smoke"))
    output = config.output or (config.rows or Path("runs")) / "claims"
    config = dataclasses.replace(config, rows=config.rows or output / "study", output=output)
    for field in dataclasses.fields(config):
        print(f"{field.name:<18}{getattr(config, field.name)}")
    assert config.rows is not None
    if config.smoke:
        compressibility.main(dataclasses.replace(SMOKE, output=config.rows, seed=config.seed))
    rows = read_rows(config.rows)
    if not rows:
        raise StudyError(explain(f"{config.rows} holds no rows", fix="the --output of recipes.compressibility"))
    found = _claims(rows, config)
    baseline = next((row for row in rows if not touched(row)), rows[0])
    about = {
        "model": baseline["model"],
        "images": baseline["images"],
        "accuracy": baseline["accuracy"] if not touched(baseline) else None,
        "config": baseline["config"],
        "version": baseline["version"],
        "at_most": config.at_most,
        "resamples": config.resamples,
        "seed": config.seed,
    }
    print(f"\n{_table(found, config)}")
    for name in _unfinished(rows):
        print(f"\nthe study is not finished: of {name!r} some layers have fewer rows than others")
    try:
        write_text(output / "claims.json", json.dumps(_plain({**about, **dataclasses.asdict(found)}), indent=2) + "\n")
        for name, figure in (("depth", _depth_figure(found, about)), ("losses", _loss_figure(found, about))):
            for suffix in SUFFIXES:
                write_whole((output / name).with_suffix(suffix), partial(figure.savefig, dpi=150))
    except OSError as error:
        raise StudyError(explain(f"{output} cannot be written", because=error, fix="another --output")) from error
    print(f"\nclaims.json and figures: {output}/")
    return found


def _claims(rows: Sequence[Row], config: Config) -> Claims:
    draws: dict[str, Any] = {"seed": config.seed, "resamples": config.resamples}
    single = [row for row in rows if touched(row) and of_one_layer(row)]
    several = [row for row in rows if touched(row) and row["scope"] == "all" and row["layers"]]
    reported = {"each": any(map(_reports, single)), "all": any(map(_reports, several))}
    sizes: dict[Size, Sequence[Row]] = {"relative_error": rows}
    if reported["each"]:
        sizes["output_error"] = rows
    cuts = [row for row in single if row["keep"] is not None]
    if cuts:
        sizes["values"] = [*several, *cuts]
    scopes: tuple[Scope, ...] = ("each", "all") if several else ("each",)
    errors: tuple[Error, ...] = ("relative_error", "output_error")
    return Claims(
        depth={
            size: depth_correlation(there, at_most=config.at_most, size=size, **draws) for size, there in sizes.items()
        },
        norms={
            scope: {
                error: norm_correlation(rows, error=error, scope=scope, **draws)
                for error in errors
                if error == "relative_error" or reported[scope]
            }
            for scope in scopes
        },
        gains={scope: norm_gain(rows, scope=scope, **draws) for scope in scopes if reported[scope]},
    )


def _unfinished(rows: Sequence[Row]) -> list[str]:
    """The rewrites of which some layers were tested at fewer sizes, so that their largest cuts are smaller."""
    sizes: dict[str, dict[str, set[object]]] = {}
    for row in rows:
        if touched(row) and of_one_layer(row):
            by_layer = sizes.setdefault(curve_of(row), {})
            by_layer.setdefault(row["scope"], set()).add((row["keep"], row["ranks"]))
    return [name for name, by_layer in sizes.items() if len(set(map(len, by_layer.values()))) > 1]


def _reports(row: Row) -> bool:
    return all(layer.get("output_error") is not None for layer in row["layers"].values())


# Text -------------------------------------------------------------------------------------------------------------


def _table(found: Claims, config: Config) -> str:
    lines = [f"Depth and the largest cut that costs at most {_points(config.at_most)} (Spearman, 95 % interval)"]
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
    return "\n".join(lines)


def _points(loss: float) -> str:
    return f"{100 * loss:g} point{'' if loss == 0.01 else 's'} of accuracy"


def _counted(bounds: Sequence[str | None]) -> str:
    below, beyond = bounds.count("smallest"), bounds.count("largest")
    return f"of {len(bounds)}, {below} cost more at the smallest cut, {beyond} no more at the largest"


def _listed(correlations: Mapping[str, Correlation]) -> list[str]:
    width = max(map(len, correlations))
    return [f"    {name:<{width}}  {_shown(found)}" for name, found in correlations.items()]


def _shown(found: Correlation) -> str:
    if found.why is not None:
        return f"none: {found.why}"
    left_out = f", {found.undefined} draws undefined" if found.undefined else ""
    return (
        f"{found.rho:+.2f}  [{found.low:+.2f}, {found.high:+.2f}]  {found.points} points, {found.units} drawn{left_out}"
    )


def _plain(value: Any) -> Any:
    """As JSON has it, which has no NaN."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


# Figures ----------------------------------------------------------------------------------------------------------


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _about(about: Mapping[str, Any]) -> str:
    return f"{about['model']}, {about['images']} test images, no retraining"


def _label(name: str, found: Correlation) -> str:
    return name if found.why is not None else f"{name}\n{found.rho:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"


def _depth_figure(found: Claims, about: Mapping[str, Any]) -> Figure:
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


def _loss_figure(found: Claims, about: Mapping[str, Any]) -> Figure:
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
    return DISTINCT_COLOURS[number % len(DISTINCT_COLOURS)], MARKERS[number % len(MARKERS)]


def run() -> None:
    """The command line."""
    run_command(Config, main, description=__doc__)


if __name__ == "__main__":
    run()
