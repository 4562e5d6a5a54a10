"""What recipes.spectra measures of a kernel, as tables and a figure."""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from statistics import fmean
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import torch
from torch import nn
from tqdm import tqdm

import tnalgebra as tn
from models import MODELS, build_model, load_weights
from recipes import compressibility
from recipes.claims.report import interval, plain, shown
from recipes.claims.statistics import Correlation, rank_correlation
from recipes.command import run_command
from recipes.reporting import aligned, write_figure
from recipes.networks import trained_cnn4

# spectra_rows: What recipes.spectra measures of a kernel, as tables and a figure.


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

    spectra: tn.model.Spectra
    rows: Sequence[Measured]
    correlations: Mapping[str, Depths]


def measured(there: tn.model.Spectra, fresh: tn.model.Spectra, norm: float) -> list[Measured]:
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
        style: dict[str, Any] = {"color": tn.model.DISTINCT_COLOURS[number % len(tn.model.DISTINCT_COLOURS)]}
        marker = tn.studies.MARKERS[number % len(tn.studies.MARKERS)]
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


# spectra: How evenly is each kernel of a network spread over its singular values, and where has training made it less so?


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
    """that the network tells apart; those of the data where cnn4 is trained first"""
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


Chosen: TypeAlias = tuple[tn.studies.Layer, Sequence[tn.network.Bipartition]]
"""A layer, and the cuts it is measured over."""


def main(config: Config) -> Found:
    """Measure the network's kernels; print, write and draw what is found.

    Raises:
        TnalgebraError: a setting, the data or the weights are not what they should be; the output cannot be written.
    """
    if config.smoke:
        config = dataclasses.replace(config, **SMOKE)
    for field in dataclasses.fields(config):
        print(f"{field.name:<18}{getattr(config, field.name)}")
    _check(config)
    training = tn.load_images(config.data, "train") if _trained_first(config) else None
    if training is not None:
        config = dataclasses.replace(config, classes=len(training.classes), channels=training.channels)
        print(f"\n{len(training)} training images of {config.classes} classes, {config.channels} channels", flush=True)
    model, fresh = _built(config), _built(config)
    if config.weights is not None:
        load_weights(model, config.weights)
    _chosen(model, config)  # what does not fit is told before the training
    try:
        config.output.mkdir(parents=True, exist_ok=True)
        if training is not None:
            _train(model, training, config)
        chosen = _chosen(model, config)
        there = _spectra(chosen, "kernels")
        rows = measured(there, _spectra(_of_fresh(fresh, chosen, config.seed), "fresh kernels"), config.norm)
        found = Found(there, rows, {measure: _depths(rows, measure, config) for measure in MEASURES})
        print(f"\n{entropy_table(rows)}\n\n{depth_table(found.correlations)}")
        _write(found, config)
    except OSError as error:
        raise tn.errors.StudyError(
            tn.errors.explain(f"{config.output} cannot be written", because=error, fix="another --output")
        ) from error
    print(f"\nentropies.csv, spectra.csv, report.json and figures: {config.output}/")
    return found


def _check(config: Config) -> None:
    if not 0 < config.norm <= 1:
        raise tn.errors.StudyError(
            tn.errors.explain(f"a part {config.norm:g} of the squared norm", needed="in (0, 1], such as 0.99")
        )
    if config.resamples < 1:
        raise tn.errors.StudyError(
            tn.errors.explain(f"{config.resamples} draws give no interval", fix="--resamples 2000")
        )
    if config.classes < 1 or config.channels < 1:
        raise tn.errors.DataError(
            tn.errors.explain(f"{config.classes} classes, {config.channels} channels", needed="at least one of each")
        )
    if config.weights is None and config.model == "cnn4" and config.epochs < 1:
        raise tn.errors.DataError(
            tn.errors.explain(f"{config.epochs} epochs are no training", fix="--epochs 1 or more, or --weights FILE")
        )
    if config.weights is None and config.model in MODELS and config.model != "cnn4":
        raise tn.errors.DataError(
            tn.errors.explain(f"{config.model} needs weights", fix="--weights FILE (only cnn4 is trained here)")
        )


# Networks ---------------------------------------------------------------------------------------------------------


def _trained_first(config: Config) -> bool:
    return config.weights is None and config.model == "cnn4"


def _built(config: Config) -> nn.Module:
    return build_model(config.model, classes=config.classes, channels=config.channels, seed=config.seed)


def _train(model: nn.Module, training: tn.Images, config: Config) -> None:
    """As recipes.compressibility does, which takes the network from the same folder if it is there."""
    mean, std = tn.model.default_normalisation(training)
    shared = {name: getattr(config, name) for name in ("data", "epochs", "seed", "output")}
    trained_cnn4(model, training=training, config=compressibility.Config(**shared, mean=mean, std=std, device="cpu"))


def _of_fresh(fresh: nn.Module, chosen: Sequence[Chosen], seed: int) -> list[Chosen]:
    """The same kernels of the fresh network.

    Those in which both networks agree are drawn anew, as torch does: their builder has loaded weights itself, or the
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


def _chosen(model: nn.Module, config: Config) -> list[Chosen]:
    """The layers that are measured, each with its cuts that are: one name a cut, transposed layers included."""
    wanted = {_sides(cut): cut for cut in map(tn.network.parse_bipartition, config.cuts)}
    left = tn.studies.layers_of(model, config.skip)
    names = list(tn.nn.kernel_layers(model))
    for pattern in config.layers:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise tn.errors.StudyError(tn.studies.no_match(f"layers {pattern!r} matches no layer", pattern, names))
    layers = [layer for layer in left if any(fnmatchcase(layer.name, pattern) for pattern in config.layers)]
    if not layers:
        asked, skipped = ", ".join(config.layers), ", ".join(config.skip)
        raise tn.errors.StudyError(
            tn.errors.explain("no layer is left", layers=asked, skipped=skipped, fix="other --layers or --skip")
        )
    every = [
        (layer, tn.network.bipartitions(tn.network.kernel_labels(layer.labels) or layer.labels)) for layer in layers
    ]
    known = {_sides(cut): cut for _, cuts in every for cut in cuts}
    for sides, cut in wanted.items():
        if sides not in known:
            raise tn.errors.StudyError(
                tn.errors.explain(f"no kernel has the cut '{cut}'", known=", ".join(map(str, known.values())))
            )
    some = [(layer, [cut for cut in cuts if not wanted or _sides(cut) in wanted]) for layer, cuts in every]
    return [(layer, cuts) for layer, cuts in some if cuts]


def _sides(cut: tn.network.Bipartition) -> frozenset[frozenset[str]]:
    return frozenset((frozenset(cut.left), frozenset(cut.right)))


# Numbers ----------------------------------------------------------------------------------------------------------


def _spectra(chosen: Sequence[Chosen], what: str) -> tn.model.Spectra:
    found: list[tn.model.Spectrum] = []
    for layer, cuts in tqdm(chosen, desc=what, disable=None, leave=False):
        of_cuts = tn.model.cut_singular_values(layer.weight, layer.labels, cuts)
        found += [tn.model.Spectrum(layer.name, cut, numbers) for cut, numbers in zip(cuts, of_cuts, strict=True)]
    return tn.model.Spectra(tuple(found))


def _depths(rows: Sequence[Measured], measure: str, config: Config) -> Depths:
    by_cut: dict[str, list[tuple[int, float]]] = {row.cut: [] for row in rows}
    for row in rows:
        if row.values > 1:
            by_cut[row.cut].append((row.depth, getattr(row, measure)))
    settings: dict[str, Any] = {"seed": config.seed, "resamples": config.resamples}

    def correlation(points: Sequence[tuple[int, float]], groups: Sequence[str] | None = None) -> Correlation:
        depths, values = [depth for depth, _ in points], [value for _, value in points]
        return rank_correlation(depths, values, units=depths, groups=groups, **settings)

    every = [(cut, point) for cut, points in by_cut.items() for point in points]
    mean = correlation([point for _, point in every], [cut for cut, _ in every])
    return Depths({cut: correlation(points) for cut, points in by_cut.items()}, mean)


# What is left ----------------------------------------------------------------------------------------------------


def _write(found: Found, config: Config) -> None:
    """Every file, each whole or not at all. Raises OSError."""
    import pandas as pd

    settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(config).items()}
    correlations = {measure: dataclasses.asdict(depths) for measure, depths in found.correlations.items()}
    report = {"config": settings, "layers": list(dict.fromkeys(row.layer for row in found.rows))}
    report |= {"correlations": plain(correlations), "version": tn.__version__}
    entropies = pd.DataFrame(found.rows, columns=list(Measured._fields))
    tn.studies.write_text(config.output / "entropies.csv", entropies.to_csv(index=False))
    tn.studies.write_text(config.output / "spectra.csv", found.spectra.to_pandas().to_csv(index=False))
    tn.studies.write_text(config.output / "report.json", json.dumps(report, indent=2) + "\n")
    write_figure(found.spectra.plot(), config.output / "spectra")
    write_figure(figure_of(found, config.model), config.output / "entropies")


def run() -> None:
    """The command line."""
    run_command(Config, main, description=__doc__)


if __name__ == "__main__":
    run()
