"""How evenly is each kernel of a network spread over its singular values, and where has training made it less so?

    python -m recipes.spectra --smoke            # seconds; its numbers mean nothing
    python -m recipes.spectra --skip             # a small CNN on embedded digits, all its layers
    python -m recipes.spectra --model resnet20 --weights W.pth
    python -m recipes.spectra --model resnet50 --weights torchvision:IMAGENET1K_V2 --classes 1000
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
from typing import TYPE_CHECKING, Any, TypeAlias

import pandas as pd
import torch
from torch import nn
from tqdm import tqdm

import tnalgebra as tn
from models import build_model, load_weights
from recipes import compressibility
from recipes.claims.correlation import Correlation, Draws, rank_correlation
from recipes.claims.report import listed
from recipes.command import run_command
from recipes.networks import trained_cnn4
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
SMOKE: dict[str, Any] = {"epochs": 1, "resamples": 200, "skip": ()}
"""Four layers with the same cuts, of which a correlation can just be stated."""


@dataclass(frozen=True)
class Config:
    """Settings; what is printed first is what is used."""

    # one line each: the command's --help breaks them where it must
    model: str = "cnn4"
    """cnn4, resnet20, resnet32, resnet44, resnet56, resnet50, resnet50_cifar (stem for 32x32 images), or a function of
    your own: package.module:function"""
    weights: str | None = None
    """a file of weights, or torchvision:NAME; without one cnn4 is trained first, your own network used as it comes"""
    classes: int = 10
    """that the network has outputs for; those of the data where cnn4 is trained first"""
    channels: int = 3
    """of the network's images, 1 for grey ones; those of the data where cnn4 is trained first"""
    data: str = "digits"
    """what cnn4 is trained on: digits (embedded), cifar10 or cifar100 (downloaded), or a folder with train/CLASS/*"""
    epochs: int = 15
    """passes over the training images, where cnn4 is trained"""
    layers: tuple[str, ...] = ("*",)
    """globs of the layers that are measured"""
    skip: tuple[str, ...] = ("first",)
    """layers left out: globs; first for the first convolution, which has few inputs; linear for linear layers; bare
    --skip skips none"""
    cuts: tuple[str, ...] = ()
    """where kernels are cut in two, each in quotes, such as "out kh | in kw"; by default all cuts of each kernel"""
    norm: float = 0.99
    """part of a kernel's squared norm that "values needed" hold, in (0, 1]"""
    resamples: int = 2000
    """draws for each interval: its ends are then known to a hundredth or two"""
    seed: int = 0
    """of all chance: the weights of the fresh network, training, draws"""
    smoke: bool = False
    """one epoch, few draws, nothing skipped: whether all of it runs"""
    output: Path = Path("runs/spectra")
    """folder for entropies.csv, spectra.csv, report.json, the figures (PNG and SVG) and the trained network"""


Chosen: TypeAlias = tuple[tn.studies.Layer, Sequence[tn.networks.Bipartition]]
"""A layer, and the cuts it is measured over."""


@dataclass(frozen=True)
class Depths:
    """Correlation of depth with a measure: for each cut, among the layers that have it; and the mean of these."""

    cuts: Mapping[str, Correlation]
    mean: Correlation


@dataclass(frozen=True, eq=False)
class Found:
    """Singular values of the network, what they say (see `measure`), and how that depends on depth."""

    spectra: tn.model.Spectra
    rows: pd.DataFrame
    correlations: Mapping[str, Depths]


def main(config: Config) -> Found:
    """Measure the network's kernels; print, write and draw what is found.

    Raises:
        TnalgebraError: a setting, the data or the weights are not what they should be; the output cannot be written.
    """
    if config.smoke:
        config = dataclasses.replace(config, **SMOKE)
    print_settings(config)
    check_least(config, {"resamples": 1})
    check_least(config, {"classes": 1, "channels": 1, "epochs": 1}, tn.errors.DataError)
    check_part(config, "norm")
    training = tn.load_images(config.data, "train") if compressibility.trains_first(config) else None
    if training is not None:
        config = dataclasses.replace(config, classes=len(training.classes), channels=training.channels)
        print(f"\n{len(training)} training images of {config.classes} classes, {config.channels} channels", flush=True)
    sizes = {"classes": config.classes, "channels": config.channels, "seed": config.seed}
    model, fresh = build_model(config.model, **sizes), build_model(config.model, **sizes)
    if config.weights is not None:
        load_weights(model, config.weights)
    chosen = chosen_layers(model, config)  # what does not fit is refused before the training
    if training is not None:  # as recipes.compressibility does, which takes the network from the same folder
        shared = {name: getattr(config, name) for name in ("data", "epochs", "seed", "output")}
        trained = compressibility.Config(**shared, mean=training.mean, std=training.std, device="cpu")
        trained_cnn4(model, training=training, config=trained)
        chosen = chosen_layers(model, config)
    spectra = _spectra(chosen, "kernels")
    rows = measure(spectra, _spectra(_of_fresh(fresh, chosen, config.seed), "fresh kernels"), config.norm)
    draws = Draws(config.seed, config.resamples)
    found = Found(spectra, rows, {name: _depths(rows, name, draws) for name in MEASURES})
    print(f"\n{entropy_table(rows)}\n\n{depth_table(found.correlations)}")
    _write(found, config)
    print(f"\nentropies.csv, spectra.csv, report.json and figures: {config.output}/")
    return found


# Layers -----------------------------------------------------------------------------------------------------------


def chosen_layers(model: nn.Module, config: Config) -> list[Chosen]:
    """The layers that are measured, each with its cuts that are: one name a cut, transposed layers included."""
    names = list(tn.nn.kernel_layers(model))
    for pattern in config.layers:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise tn.errors.StudyError(tn.studies.no_match(f"layers {pattern!r} matches no layer", pattern, names))
    some = tn.studies.layers_of(model, config.skip)
    layers = [layer for layer in some if any(fnmatchcase(layer.name, pattern) for pattern in config.layers)]
    if not layers:
        asked = {"layers": ", ".join(config.layers), "skipped": ", ".join(config.skip)}
        raise tn.errors.StudyError(tn.errors.explain("no layer is left", **asked, fix="other --layers or --skip"))
    return [(layer, cuts) for layer, cuts in _chosen_cuts(layers, config) if cuts]


def _chosen_cuts(layers: Sequence[tn.studies.Layer], config: Config) -> list[Chosen]:
    labels = [tn.networks.kernel_labels(layer.labels) or layer.labels for layer in layers]
    every = {
        layer.name: {_sides(cut): cut for cut in tn.networks.bipartitions(own)}
        for layer, own in zip(layers, labels, strict=True)
    }
    known = {sides: cut for cuts in every.values() for sides, cut in cuts.items()}
    wanted = {_sides(cut): cut for cut in map(tn.networks.parse_bipartition, config.cuts)}
    for sides in wanted.keys() - known.keys():
        fact = f"no kernel has the cut '{wanted[sides]}'"
        raise tn.errors.StudyError(tn.errors.explain(fact, known=", ".join(map(str, known.values()))))
    kept = wanted or known
    return [(layer, [cut for sides, cut in every[layer.name].items() if sides in kept]) for layer in layers]


def _sides(cut: tn.networks.Bipartition) -> frozenset[frozenset[str]]:
    return frozenset((frozenset(cut.left), frozenset(cut.right)))


def _of_fresh(fresh: nn.Module, chosen: Sequence[Chosen], seed: int) -> list[Chosen]:
    """The same kernels of the fresh network.

    Those in which both networks agree are drawn again, as torch does: their builder has loaded weights itself, or the
    network has been given no others. Not from the seed itself, from which the builder draws the same again.
    """
    own = {layer.name: layer.weight for layer, _ in chosen}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed + 1)
        for name, module in tn.nn.kernel_layers(fresh).items():
            if name in own and torch.equal(module.weight.detach().to(own[name]), own[name]):
                module.reset_parameters()
    weights = {layer.name: layer for layer in tn.studies.layers_of(fresh, ())}
    return [(weights[layer.name], cuts) for layer, cuts in chosen]


# Numbers ----------------------------------------------------------------------------------------------------------


def _spectra(chosen: Sequence[Chosen], what: str) -> tn.model.Spectra:
    found: list[tn.model.Spectrum] = []
    for layer, cuts in tqdm(chosen, desc=what, disable=None, leave=False):
        values = tn.model.cut_singular_values(layer.weight, layer.labels, cuts)
        found += [tn.model.Spectrum(layer.name, cut, own) for cut, own in zip(cuts, values, strict=True)]
    return tn.model.Spectra(tuple(found))


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
    rows = pd.DataFrame(
        {
            "layer": item.layer,
            "cut": str(item.cut),
            "values": len(item.singular_values),
            "entropy": item.entropy,
            "effective_rank": item.effective_rank,
            "participation_ratio": item.participation_ratio,
            "needed": int((item.norm_kept.square() < norm - ROUNDING).sum()) + 1,
            "fresh_entropy": other.entropy,
        }
        for item, other in zip(spectra, fresh, strict=True)
    )
    rows.insert(1, "depth", pd.factorize(rows["layer"])[0] + 1)
    largest = rows["values"].map(lambda count: math.log(count) if count > 1 else math.nan)
    rows.insert(5, "normalised_entropy", rows["entropy"] / largest)
    rows.insert(7, "effective_rank_part", rows["effective_rank"] / rows["values"])
    rows.insert(10, "needed_part", rows["needed"] / rows["values"])
    rows["difference"] = rows["entropy"] - rows["fresh_entropy"]
    rows["normalised_difference"] = rows["difference"] / largest
    return rows


def _depths(rows: pd.DataFrame, measure: str, draws: Draws) -> Depths:
    even = rows[rows["values"] > 1]
    cuts = {cut: even[even["cut"] == cut] for cut in rows["cut"].unique()}

    def correlation(some: pd.DataFrame, groups: Sequence[str] | None = None) -> Correlation:
        return rank_correlation(some["depth"], some[measure], units=[*some["depth"]], groups=groups, draws=draws)

    every = pd.concat(cuts.values())
    return Depths({cut: correlation(some) for cut, some in cuts.items()}, correlation(every, [*every["cut"]]))


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
        found = {**depths.cuts, "mean of these": depths.mean} if depths.mean.why is None else {"": depths.mean}
        parts.append(f"Depth and {MEASURES[measure]} (Spearman, 95 % interval)\n{listed(found)}")
    return "\n\n".join(parts)


def figure_of(found: Found, model: str) -> Figure:
    """Normalised entropy by depth, a line a cut: of the network, and dashed of fresh weights."""
    from matplotlib.figure import Figure

    layers = found.rows["layer"].unique()
    figure = Figure(figsize=(max(7.0, 3.4 + 0.28 * len(layers)), 5.0), layout="constrained")
    panel = figure.subplots()
    for number, (cut, correlation) in enumerate(found.correlations["normalised_entropy"].cuts.items()):
        rows = found.rows[(found.rows["cut"] == cut) & (found.rows["values"] > 1)]
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


def _write(found: Found, config: Config) -> None:
    report = {
        "config": plain(config),
        "layers": list(found.rows["layer"].unique()),
        "correlations": plain(found.correlations),
        "version": tn.__version__,
    }
    write(config.output / "entropies.csv", found.rows.to_csv(index=False))
    write(config.output / "spectra.csv", found.spectra.to_pandas().to_csv(index=False))
    write(config.output / "report.json", json.dumps(report, indent=2))
    write_figure(found.spectra.plot(), config.output / "spectra")
    write_figure(figure_of(found, config.model), config.output / "entropies")


def run() -> None:
    """The command line."""
    run_command(Config, main, description=__doc__)


if __name__ == "__main__":
    run()
