"""How evenly is each kernel of a network spread over its singular values, and where has training made it less so?

    python -m recipes.spectra --smoke            # seconds; its numbers mean nothing
    python -m recipes.spectra --skip             # a small CNN on embedded digits, all its layers
    python -m recipes.spectra --model resnet20 --weights W.pth
    python -m recipes.spectra --model torchvision:resnet50 --pretrained --classes 1000
    python -m recipes.spectra --model mylib.nets:build --weights w.pth --cuts "out kh | in kw"

The entanglement of kernels, after Singh, Jahromi and Orus (arXiv 2403.14379):
- Each cut of a kernel's labels in two makes it a matrix with r singular values s. Its
  entropy S = -sum p ln p, p = s^2 / sum s^2, is 0 where one value holds all, and ln r
  where all are equal: S / ln r compares kernels of different sizes. It does not exist
  for one value.
- A kernel of random weights is nearly even. What training did is therefore shown by the
  difference from the same layer of a fresh network, built with --seed.
- Both are compared with depth, the order of the layers in the network: Spearman's
  correlation, with an interval that holds 95 % of the draws of layers, with replacement.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from torch import nn

import tnalgebra as tn
from recipes import compressibility
from recipes.claims.report import listed
from recipes.command import run_command
from recipes.networks import trained_cnn4, trains_first
from recipes.reporting import aligned, check_least, check_part, line_style, plain, print_settings, write, write_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MEASURES = {
    "normalised_entropy": "S / ln r",
    "normalised_difference": "(S - S of fresh weights) / ln r",
}
"""Column -> what is compared with depth."""
ROUNDING = 1e-12
"""Of the squared norm: less is rounding of the singular values."""
MATRIX = "out | in"
"""The cut of a linear layer, and the only one of a kernel without a window."""
SMOKE: dict[str, Any] = {"epochs": 1, "resamples": 200, "skip": ()}
"""Four layers with the same cuts, of which a correlation can just be stated."""


@dataclass(frozen=True, kw_only=True)
class Config(tn.command.WeightSettings):
    """Settings; what is printed first is what is used."""

    model: str = "cnn4"
    """cnn4 (trained first unless it has weights), resnet20, torchvision:NAME, timm:NAME, package.module:function"""
    classes: int = 10
    """the number of the network's outputs; where cnn4 is trained first, that of the data"""
    channels: int = 3
    """the number of channels of the network's images; where cnn4 is trained first, that of the data"""
    data: str = "digits"
    """what cnn4 is trained on: digits, cifar10, cifar100 (downloaded once), or a folder with train/CLASS/*"""
    epochs: int = 15
    """passes over the training images, where cnn4 is trained"""
    layers: tuple[str, ...] = ("*",)
    """globs of the layers that are measured"""
    skip: tuple[str, ...] = ("first",)
    """layers left out: globs, first (the first convolution), linear (all linear layers); bare --skip: none"""
    cuts: tuple[str, ...] = ()
    """where kernels are cut in two, each in quotes, such as "out kh | in kw"; by default all cuts of each kernel"""
    norm: float = 0.99
    """the part of a kernel's squared norm that "values needed" hold, above 0 and at most 1"""
    resamples: int = 10_000
    """draws for each interval: its ends are then known to about a hundredth"""
    smoke: bool = False
    """one epoch, few draws, nothing skipped: whether all of it runs"""
    output: Path = Path("runs/spectra")
    """the folder for entropies.csv, spectra.csv, report.json, the figures (PNG and SVG) and the trained network"""


@dataclass(frozen=True)
class Depths:
    """Correlation of depth with a measure: for each cut, among the layers that have it; and the mean of these."""

    cuts: Mapping[str, tn.studies.Correlation]
    mean: tn.studies.Correlation


@dataclass(frozen=True, eq=False)
class Result:
    """Singular values of the network, what they say (see `measure`), and how that depends on depth."""

    spectra: tn.model.Spectra
    rows: pd.DataFrame
    correlations: Mapping[str, Depths]


def main(config: Config) -> Result:
    """Measure the network's kernels; print, write and draw what they say.

    Raises:
        TnalgebraError: a setting, the data or the weights are not what they should be; the output cannot be written.
    """
    if config.smoke:
        config = dataclasses.replace(config, **SMOKE)
    print_settings(config)
    check_least(config, {"resamples": 1})
    check_least(config, {"classes": 1, "channels": 1, "epochs": 1}, tn.errors.DataError)
    check_part(config, "norm")
    training = tn.load_images(config.data, "train") if trains_first(config) else None
    if training is not None:
        config = dataclasses.replace(config, classes=len(training.classes), channels=training.channels)
        print(f"\n{len(training)} training images of {config.classes} classes, {config.channels} channels", flush=True)
    model = config.build(classes=config.classes, channels=config.channels)
    spectra = chosen_spectra(model, config)  # what does not fit is refused before the training
    if training is not None:  # as recipes.compressibility does, which takes the network from the same folder
        shared = {name: getattr(config, name) for name in ("data", "epochs", "seed", "output")}
        trained_cnn4(model, training, config=compressibility.Config(**shared, device="cpu"))
        spectra = chosen_spectra(model, config)
    sizes: dict[str, Any] = {"classes": config.classes, "channels": config.channels}
    fresh = tn.command.build_model(config.model, seed=config.seed, **sizes)
    rows = measure(spectra, fresh_spectra(fresh, model, config.seed), config.norm)
    draws = tn.studies.Draws(config.seed, config.resamples)
    result = Result(spectra, rows, {name: depths_of(rows, name, draws) for name in MEASURES})
    print(f"\n{entropy_table(rows)}\n\n{depth_table(result.correlations)}")
    _write(result, config)
    print(f"\nentropies.csv, spectra.csv, report.json and figures: {config.output}/")
    return result


# Layers -----------------------------------------------------------------------------------------------------------


def chosen_spectra(model: nn.Module, config: Config) -> tn.model.Spectra:
    """The singular values of the layers and cuts that the config asks for.

    Raises:
        StudyError: a glob matches no layer, no layer is left, or no kernel has one of the cuts.
    """
    names = list(tn.nn.kernel_layers(model))
    for pattern in config.layers:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise tn.errors.StudyError(tn.studies.no_match(f"layers {pattern!r} matches no layer", pattern, names))
    names = [layer.name for layer in tn.studies.layers_of(model, config.skip)]
    kept = {name or "weight" for name in names if any(fnmatchcase(name, pattern) for pattern in config.layers)}
    if not kept:
        requested = {"layers": ", ".join(config.layers), "skipped": ", ".join(config.skip)}
        raise tn.errors.StudyError("no layer is left", **requested, fix="other --layers or --skip")
    items = [item for item in tn.spectra(model) if item.layer in kept]
    known = {_sides(item.cut): item.cut for item in items}
    cuts = {_sides(cut): cut for cut in map(tn.networks.parse_bipartition, config.cuts)}
    for sides in cuts.keys() - known.keys():
        fact = f"no kernel has the cut '{cuts[sides]}'"
        raise tn.errors.StudyError(fact, known=", ".join(map(str, known.values())))
    return tn.model.Spectra(tuple(item for item in items if not cuts or _sides(item.cut) in cuts))


def _sides(cut: tn.networks.Bipartition) -> frozenset[frozenset[str]]:
    return frozenset((frozenset(cut.left), frozenset(cut.right)))


def fresh_spectra(fresh: nn.Module, model: nn.Module, seed: int) -> tn.model.Spectra:
    """The singular values of all kernels of a network with fresh weights.

    A kernel in which both networks agree is drawn again, as torch does: their builder has loaded weights itself, or the
    network has no others. The seed itself is not used for it, because the builder draws the same weights from it.
    """
    kernels = {name: module.weight for name, module in tn.nn.kernel_layers(model).items()}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        for name, module in tn.nn.kernel_layers(fresh).items():
            if torch.equal(module.weight, kernels[name]):
                module.reset_parameters()
    return tn.spectra(fresh)


# Numbers ----------------------------------------------------------------------------------------------------------


def measure(spectra: tn.model.Spectra, fresh: tn.model.Spectra, norm: float) -> pd.DataFrame:
    """A row for each kernel and cut, with that of the fresh network beside it; entropies are in nats.

    Columns:
        depth: 1 for the first layer that is measured.
        values: r, the smaller side of the cut's matrix.
        normalised_entropy: S / ln r, 0 to 1; NaN where r = 1, as all that is over ln r.
        effective_rank, participation_ratio: see `tnalgebra.model.Spectrum`.
        needed: the fewest leading values that hold the part `norm` of the squared norm.
        effective_rank_part, needed_part: these over r.
        fresh_entropy: of the same layer in the fresh network.
        difference: S less that: negative where training has made the kernel less even.
        normalised_difference: this over ln r.
    """
    others = {(item.layer, item.cut): item for item in fresh}
    rows = pd.DataFrame(
        {
            "layer": item.layer,
            "cut": str(item.cut),
            "values": len(item.singular_values),
            "entropy": item.entropy,
            "effective_rank": item.effective_rank,
            "participation_ratio": item.participation_ratio,
            "needed": int((item.norm_kept.square() < norm - ROUNDING).sum()) + 1,
            "fresh_entropy": others[item.layer, item.cut].entropy,
        }
        for item in spectra
    )
    rows.insert(1, "depth", pd.factorize(rows["layer"])[0] + 1)
    largest = rows["values"].map(lambda count: math.log(count) if count > 1 else math.nan)
    rows.insert(5, "normalised_entropy", rows["entropy"] / largest)
    rows.insert(7, "effective_rank_part", rows["effective_rank"] / rows["values"])
    rows.insert(10, "needed_part", rows["needed"] / rows["values"])
    rows["difference"] = rows["entropy"] - rows["fresh_entropy"]
    rows["normalised_difference"] = rows["difference"] / largest
    return rows


def distinct(rows: pd.DataFrame) -> pd.DataFrame:
    """The rows of cuts with more than one value, each spectrum once.

    A kernel without a window, such as that of a 1x1 convolution, is the same matrix across all its cuts: it has one
    row, whose cut is that of a linear layer.
    """
    even = rows[rows["values"] > 1]
    spectra = even.groupby("layer")["normalised_entropy"].transform("nunique")
    matrices = even[spectra == 1].drop_duplicates("layer").assign(cut=MATRIX)
    return pd.concat([even[spectra > 1], matrices]).sort_index()


def depths_of(rows: pd.DataFrame, measure: str, draws: tn.studies.Draws) -> Depths:
    """How a measure depends on depth, of the spectra that are `distinct`."""
    even = distinct(rows)
    found = {*even["cut"]}
    cuts = {cut: even[even["cut"] == cut] for cut in dict.fromkeys([*rows["cut"], MATRIX]) if cut in found}

    def correlation(some: pd.DataFrame, groups: Sequence[str] | None = None) -> tn.studies.Correlation:
        return tn.studies.rank_correlation(
            some["depth"], some[measure], units=[*some["depth"]], groups=groups, draws=draws
        )

    return Depths({cut: correlation(some) for cut, some in cuts.items()}, correlation(even, [*even["cut"]]))


# Tables and figures -----------------------------------------------------------------------------------------------


def entropy_table(rows: pd.DataFrame) -> str:
    """S / ln r: a line a layer, a column a cut; below, means over the layers of both networks."""
    fresh = rows["normalised_entropy"] - rows["normalised_difference"]
    rows = rows.assign(left=rows["cut"].str.partition(" | ")[0], fresh=fresh)
    table = rows.pivot(index="layer", columns="left", values="normalised_entropy").loc[rows["layer"].unique()]
    table.loc["mean"] = table.mean()
    table.loc["mean, fresh weights"] = rows.groupby("left")["fresh"].mean()
    table = table[rows["left"].unique()]
    lines = [["-" if math.isnan(value) else f"{value:.3f}" for value in values] for values in table.to_numpy()]
    cells = [[name, *line] for name, line in zip(table.index, lines, strict=True)]
    return f"S / ln r across each cut (named by its left side)\n\n{aligned([['layer', *table.columns], *cells])}"


def depth_table(correlations: Mapping[str, Depths]) -> str:
    """A line a cut, for each measure."""
    parts = []
    for measure, depths in correlations.items():
        lines = {**depths.cuts, "mean of these": depths.mean} if depths.mean.why is None else {"": depths.mean}
        parts.append(f"Depth and {MEASURES[measure]} (Spearman, 95 % interval)\n{listed(lines)}")
    return "\n\n".join(parts)


def figure_of(measured: pd.DataFrame, depths: Depths, model: str) -> Figure:
    """Normalised entropy by depth, a line a cut: of the network, and dashed of fresh weights."""
    from matplotlib.figure import Figure

    layers, even_rows = measured["layer"].unique(), distinct(measured)
    figure = Figure(figsize=(max(7.0, 3.4 + 0.28 * len(layers)), 5.0), layout="constrained")
    panel = figure.subplots()
    for number, (cut, correlation) in enumerate(depths.cuts.items()):
        rows = even_rows[even_rows["cut"] == cut]
        style = line_style(number)
        label = cut if correlation.why is not None else f"{cut}\n{correlation.interval}"
        even = rows["normalised_entropy"]
        panel.plot(rows["depth"] - 1, even, markersize=4, label=label, **style)
        marker = "_" if len(rows) == 1 else ""  # a line of one point would not be seen
        dashed: dict[str, Any] = {"linestyle": "--", "alpha": 0.45, "linewidth": 1, "marker": marker}
        panel.plot(rows["depth"] - 1, even - rows["normalised_difference"], color=style["color"], **dashed)
    panel.set_xticks(range(len(layers)), layers, rotation=90, fontsize="small")
    panel.set_ylabel("entropy S / ln r")
    panel.grid(alpha=0.3)
    place: dict[str, Any] = {"loc": "center left", "bbox_to_anchor": (1.01, 0.5), "frameon": False}
    panel.legend(title="cut, and rho of depth", fontsize="x-small", title_fontsize="small", **place)
    title = f"Evenness of kernels' singular values: {model} (dashed: fresh weights)"
    panel.set_title(f"{title}\n1: all values of a cut are equal", fontsize="medium")
    return figure


def _write(result: Result, config: Config) -> None:
    report = {
        "config": plain(config),
        "layers": list(result.rows["layer"].unique()),
        "correlations": plain(result.correlations),
        **tn.studies.made_with("cpu"),
    }
    tn.studies.note_command(config.output)
    write(config.output / "entropies.csv", result.rows.to_csv(index=False))
    write(config.output / "spectra.csv", result.spectra.to_pandas().to_csv(index=False))
    write(config.output / "report.json", json.dumps(report, indent=2))
    write_figure(result.spectra.plot(), config.output / "spectra")
    depths = result.correlations["normalised_entropy"]
    write_figure(figure_of(result.rows, depths, config.model), config.output / "entropies")


def run() -> None:
    """The command line."""
    run_command(Config, main, description=__doc__)


if __name__ == "__main__":
    run()
