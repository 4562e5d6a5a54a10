"""Test the claims of a paper with the rows of a study: rank correlations, with intervals.

    python -m recipes.claims --smoke             # a small study on digits first: seconds
    python -m recipes.compressibility --model resnet20 --weights W.pth --data DIR \\
        --scope each --report-metric --output runs/resnet20
    python -m recipes.claims --rows runs/resnet20
    python -m recipes.claims --rows runs/grid --model resnet20    # of several networks
    python -m recipes.claims --paper docs/results    # the table of docs/results.md

The claims of Singh, Jahromi and Orus (arXiv 2403.14379), as numbers:
- Deep layers bear larger cuts: Spearman's correlation of a layer's depth with the
  largest cut of this layer alone that costs at most a point of accuracy. The size of
  a cut is measured by the error of the kernel, by the error of the layer's output,
  and by the part of the singular values that it drops.
- The norm predicts the accuracy: Spearman's correlation of the loss of accuracy with
  the error of the kernel in the Frobenius norm, and with that of the layer's output
  (rows of --report-metric), within a cut and across all of them; and how much better
  the second is.
- Much of the norm may be lost at little cost: the part of the cuts of one layer, with
  an error of 0.3 to 0.4 for instance, that costs at most a point of accuracy.
- Each number has an interval that holds 95 % of the draws of layers, with replacement.
- With --paper: each claim of the abstract on each network of the paper, as a number with
  its interval and a verdict, of the folder that recipes.paper leaves, or of kept rows.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tnalgebra as tn
from recipes import compressibility
from recipes.claims.paper import claims_table as paper_table
from recipes.claims.paper import read_networks
from recipes.claims.report import claims_table, depth_figure, loss_figure
from recipes.command import run_command
from recipes.reporting import check_least, plain, print_settings, write, write_figure

SMOKE = compressibility.Config(
    rewrite=("out | in kh kw", "out kh | in kw"),
    size=("keep 0.5", "keep 0.25", "keep 0.125"),
    skip=(),
    limit=100,
    calibrate=100,
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
    paper: Path | None = None
    """folder of all experiments of recipes.paper: prints the table of the claims, and writes nothing"""
    model: str | None = None
    """the network whose rows count, where the study has several"""
    at_most: float = 0.01
    """the loss of accuracy that a harmless cut may cost: 0.01 is one point"""
    resamples: int = 10_000
    """draws for each interval: its ends are then known to about a hundredth"""
    seed: int = 0
    """the seed of the draws"""
    smoke: bool = False
    """make a small study on digits first, in a folder of the output, to see that everything works"""
    output: Path | None = None
    """folder for claims.json and the figures (PNG and SVG); by default claims/ in the folder of the rows"""


def main(config: Config) -> tn.studies.Claims | None:
    """Print the results, write them, and draw their figures; with a folder of the paper, print its table.

    Raises:
        StudyError: the folder has no rows of single layers, or the output cannot be written.
    """
    chosen = [name for name in ("rows", "paper", "smoke") if getattr(config, name)]
    if len(chosen) != 1:
        fact = f"{' and '.join(f'--{name}' for name in chosen) or 'none of --rows, --paper and --smoke'} given"
        raise tn.errors.StudyError(fact, fix="--rows FOLDER of a study, --paper FOLDER of recipes.paper, or --smoke")
    if config.paper is not None:
        print(paper_table(read_networks(config.paper)))
        return None
    output = config.output or (config.rows or Path("runs")) / "claims"
    folder = config.rows or output / "study"
    print_settings(dataclasses.replace(config, rows=folder, output=output))
    check_least(config, {"resamples": 1})
    if not 0 <= config.at_most < 1:
        raise tn.errors.StudyError(
            f"a loss of at most {config.at_most}", needed="a part of 1, such as 0.01 for one point"
        )
    if config.smoke:
        compressibility.main(dataclasses.replace(SMOKE, output=folder, seed=config.seed))
    rows = tn.studies.read_rows(folder)
    if not rows:
        raise tn.errors.StudyError(f"{folder} holds no rows", fix="the --output of recipes.compressibility")
    if config.model is not None:
        names = list(dict.fromkeys(row["model"] for row in rows))
        rows = [row for row in rows if row["model"] == config.model]
        if not rows:
            raise tn.errors.StudyError(f"{folder} has no rows of {config.model!r}", networks=", ".join(names))
    claims = tn.studies.claims_of(rows, at_most=config.at_most, draws=tn.studies.Draws(config.seed, config.resamples))
    baseline = next((row for row in rows if not tn.studies.touched(row)), None)
    about = {name: (baseline or rows[0])[name] for name in ("model", "images", "config", "version")}
    about |= {"accuracy": baseline and baseline["accuracy"]}
    about |= {name: getattr(config, name) for name in ("at_most", "resamples", "seed")}
    print(f"\n{claims_table(claims, config.at_most)}")
    for name in _unfinished(rows):
        print(f"\nthe study is not finished: of {name!r} some layers have fewer rows than others")
    write(output / "claims.json", json.dumps({**about, **plain(claims)}, indent=2))
    write_figure(depth_figure(claims, about), output / "depth")
    write_figure(loss_figure(claims, about), output / "losses")
    print(f"\nclaims.json and figures: {output}/")
    return claims


def _unfinished(rows: Sequence[tn.studies.Row]) -> list[str]:
    """The rewrites for which some layers were tested at fewer sizes than others."""
    sizes: dict[str, dict[str, set[object]]] = {}
    for row in rows:
        if tn.studies.touched(row) and tn.studies.of_one_layer(row):
            by_layer = sizes.setdefault(tn.studies.curve_of(row), {})
            by_layer.setdefault(row["scope"], set()).add((row["keep"], row["ranks"]))
    return [name for name, by_layer in sizes.items() if len(set(map(len, by_layer.values()))) > 1]


def run() -> None:
    """The command line."""
    run_command(Config, main, description=__doc__)
