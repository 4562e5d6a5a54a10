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
- Much of the norm may go at little cost: of the cuts of one layer that make an error
  of 0.3 to 0.4, say, how many cost at most a point of accuracy.
- Each has an interval that holds 95 % of the draws of layers, with replacement.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tnalgebra as tn
from recipes import compressibility
from recipes.claims.report import Claims, claims_table, depth_figure, loss_figure, plain
from recipes.claims.statistics import (
    Error,
    Scope,
    Size,
    curve_of,
    depth_correlation,
    harmless,
    norm_correlation,
    norm_gain,
)
from recipes.command import run_command
from recipes.reporting import write_figure

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


def main(config: Config) -> Claims:
    """Print the claims, write them and their figures.

    Raises:
        StudyError: there are no rows, or none of single layers; the output cannot be written.
    """
    if config.smoke == (config.rows is not None):
        given = "both --smoke and --rows are given" if config.smoke else "neither --rows nor --smoke is given"
        raise tn.errors.StudyError(tn.errors.explain(given, fix="--rows FOLDER of a study, or --smoke"))
    output = config.output or (config.rows or Path("runs")) / "claims"
    config = dataclasses.replace(config, rows=config.rows or output / "study", output=output)
    for field in dataclasses.fields(config):
        print(f"{field.name:<18}{getattr(config, field.name)}")
    assert config.rows is not None
    if config.smoke:
        compressibility.main(dataclasses.replace(SMOKE, output=config.rows, seed=config.seed))
    rows = tn.studies.read_rows(config.rows)
    if not rows:
        raise tn.errors.StudyError(
            tn.errors.explain(f"{config.rows} holds no rows", fix="the --output of recipes.compressibility")
        )
    found = _claims(rows, config)
    baseline = next((row for row in rows if not tn.studies.touched(row)), rows[0])
    about = {
        "model": baseline["model"],
        "images": baseline["images"],
        "accuracy": baseline["accuracy"] if not tn.studies.touched(baseline) else None,
        "config": baseline["config"],
        "version": baseline["version"],
        "at_most": config.at_most,
        "resamples": config.resamples,
        "seed": config.seed,
    }
    print(f"\n{claims_table(found, config.at_most)}")
    for name in _unfinished(rows):
        print(f"\nthe study is not finished: of {name!r} some layers have fewer rows than others")
    try:
        tn.studies.write_text(
            output / "claims.json", json.dumps(plain({**about, **dataclasses.asdict(found)}), indent=2) + "\n"
        )
    except OSError as error:
        raise tn.errors.StudyError(
            tn.errors.explain(f"{output} cannot be written", because=error, fix="another --output")
        ) from error
    write_figure(depth_figure(found, about), output / "depth")
    write_figure(loss_figure(found, about), output / "losses")
    print(f"\nclaims.json and figures: {output}/")
    return found


def _claims(rows: Sequence[tn.studies.Row], config: Config) -> Claims:
    draws: dict[str, Any] = {"seed": config.seed, "resamples": config.resamples}
    single = [row for row in rows if tn.studies.touched(row) and tn.studies.of_one_layer(row)]
    several = [row for row in rows if tn.studies.touched(row) and row["scope"] == "all" and row["layers"]]
    reported = {"each": any(map(_reports, single)), "all": any(map(_reports, several))}
    sizes: dict[Size, Sequence[tn.studies.Row]] = {"relative_error": rows}
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
        bands={
            error: harmless(rows, at_most=config.at_most, error=error, **draws)
            for error in errors
            if error == "relative_error" or reported["each"]
        },
        gains={scope: norm_gain(rows, scope=scope, **draws) for scope in scopes if reported[scope]},
    )


def _unfinished(rows: Sequence[tn.studies.Row]) -> list[str]:
    """The rewrites of which some layers were tested at fewer sizes, so that their largest cuts are smaller."""
    sizes: dict[str, dict[str, set[object]]] = {}
    for row in rows:
        if tn.studies.touched(row) and tn.studies.of_one_layer(row):
            by_layer = sizes.setdefault(curve_of(row), {})
            by_layer.setdefault(row["scope"], set()).add((row["keep"], row["ranks"]))
    return [name for name, by_layer in sizes.items() if len(set(map(len, by_layer.values()))) > 1]


def _reports(row: tn.studies.Row) -> bool:
    return all(layer.get("output_error") is not None for layer in row["layers"].values())


def run() -> None:
    """The command line."""
    run_command(Config, main, description=__doc__)
