"""How evenly is each kernel of a network spread over its singular values, and where has training made it less so?

    python -m recipes.spectra --smoke            # seconds; its numbers mean nothing
    python -m recipes.spectra --skip             # a small CNN on embedded digits, all its layers
    python -m recipes.spectra --model resnet20 --weights W.pth
    python -m recipes.spectra --model resnet50 --weights torchvision:IMAGENET1K_V2 --classes 1000
    python -m recipes.spectra --model mylib.nets:build --weights w.pth --cuts "out kh | in kw"

The entanglement of kernels, after Singh, Jahromi and Orus (arXiv 2403.14379):
- Each cut of a kernel's labels in two makes it a matrix with r singular values s. Its
  entropy S = -sum p ln p, p = s^2 / sum s^2, is 0 where one value holds all, and ln r
  where all are equal: S / ln r compares kernels of different sizes. Of one value there
  is no such number.
- A kernel of random weights is nearly even. What training did is therefore told by the
  difference from the same layer of a fresh network, built with --seed.
- Both are compared with depth, the order of the layers in the network: Spearman's
  correlation, with an interval that holds 95 % of the draws of layers, with replacement.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, TypeAlias

import torch
from torch import nn
from tqdm import tqdm

import tnalgebra as tn
from models import MODELS, build_model, load_weights
from recipes import compressibility
from recipes.cnn4_training import trained_cnn4
from recipes.command import run_command
from recipes.correlation_rows import plain
from recipes.spectra_rows import MEASURES, Depths, Found, Measured, depth_table, entropy_table, figure_of, measured
from recipes.training_rows import write_figure
from tnalgebra.bipartition import Bipartition, bipartitions, parse_bipartition
from tnalgebra.errors import DataError, StudyError, explain
from tnalgebra.files import write_text
from tnalgebra.images import Images, default_normalisation, load_images
from tnalgebra.labels import kernel_labels
from tnalgebra.layers import kernel_layers
from tnalgebra.spectrum import Spectra, Spectrum, cut_singular_values
from tnalgebra.study_layers import Layer, layers_of, no_match
from tnalgebra.study_statistics import Correlation, rank_correlation

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


Chosen: TypeAlias = tuple[Layer, Sequence[Bipartition]]
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
    training = load_images(config.data, "train") if _trained_first(config) else None
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
        raise StudyError(
            explain(f"{config.output} cannot be written", because=error, fix="another --output")
        ) from error
    print(f"\nentropies.csv, spectra.csv, report.json and figures: {config.output}/")
    return found


def _check(config: Config) -> None:
    if not 0 < config.norm <= 1:
        raise StudyError(explain(f"a part {config.norm:g} of the squared norm", needed="in (0, 1], such as 0.99"))
    if config.resamples < 1:
        raise StudyError(explain(f"{config.resamples} draws give no interval", fix="--resamples 2000"))
    if config.classes < 1 or config.channels < 1:
        raise DataError(explain(f"{config.classes} classes, {config.channels} channels", needed="at least one of each"))
    if config.weights is None and config.model == "cnn4" and config.epochs < 1:
        raise DataError(explain(f"{config.epochs} epochs are no training", fix="--epochs 1 or more, or --weights FILE"))
    if config.weights is None and config.model in MODELS and config.model != "cnn4":
        raise DataError(explain(f"{config.model} needs weights", fix="--weights FILE (only cnn4 is trained here)"))


# Networks ---------------------------------------------------------------------------------------------------------


def _trained_first(config: Config) -> bool:
    return config.weights is None and config.model == "cnn4"


def _built(config: Config) -> nn.Module:
    return build_model(config.model, classes=config.classes, channels=config.channels, seed=config.seed)


def _train(model: nn.Module, training: Images, config: Config) -> None:
    """As recipes.compressibility does, which takes the network from the same folder if it is there."""
    mean, std = default_normalisation(training)
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
        for name, module in kernel_layers(fresh).items():
            if name in own and torch.equal(module.weight.detach().to(own[name]), own[name]):
                module.reset_parameters()
    weights = {layer.name: layer for layer in layers_of(fresh, ())}
    return [(weights[layer.name], cuts) for layer, cuts in chosen]


def _chosen(model: nn.Module, config: Config) -> list[Chosen]:
    """The layers that are measured, each with its cuts that are: one name a cut, transposed layers included."""
    wanted = {_sides(cut): cut for cut in map(parse_bipartition, config.cuts)}
    left = layers_of(model, config.skip)
    names = list(kernel_layers(model))
    for pattern in config.layers:
        if not any(fnmatchcase(name, pattern) for name in names):
            raise StudyError(no_match(f"layers {pattern!r} matches no layer", pattern, names))
    layers = [layer for layer in left if any(fnmatchcase(layer.name, pattern) for pattern in config.layers)]
    if not layers:
        asked, skipped = ", ".join(config.layers), ", ".join(config.skip)
        raise StudyError(explain("no layer is left", layers=asked, skipped=skipped, fix="other --layers or --skip"))
    every = [(layer, bipartitions(kernel_labels(layer.labels) or layer.labels)) for layer in layers]
    known = {_sides(cut): cut for _, cuts in every for cut in cuts}
    for sides, cut in wanted.items():
        if sides not in known:
            raise StudyError(explain(f"no kernel has the cut '{cut}'", known=", ".join(map(str, known.values()))))
    some = [(layer, [cut for cut in cuts if not wanted or _sides(cut) in wanted]) for layer, cuts in every]
    return [(layer, cuts) for layer, cuts in some if cuts]


def _sides(cut: Bipartition) -> frozenset[frozenset[str]]:
    return frozenset((frozenset(cut.left), frozenset(cut.right)))


# Numbers ----------------------------------------------------------------------------------------------------------


def _spectra(chosen: Sequence[Chosen], what: str) -> Spectra:
    found: list[Spectrum] = []
    for layer, cuts in tqdm(chosen, desc=what, disable=None, leave=False):
        of_cuts = cut_singular_values(layer.weight, layer.labels, cuts)
        found += [Spectrum(layer.name, cut, numbers) for cut, numbers in zip(cuts, of_cuts, strict=True)]
    return Spectra(tuple(found))


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
    write_text(config.output / "entropies.csv", entropies.to_csv(index=False))
    write_text(config.output / "spectra.csv", found.spectra.to_pandas().to_csv(index=False))
    write_text(config.output / "report.json", json.dumps(report, indent=2) + "\n")
    write_figure(found.spectra.plot(), config.output / "spectra")
    write_figure(figure_of(found, config.model), config.output / "entropies")


def run() -> None:
    """The command line."""
    run_command(Config, main, description=__doc__)


if __name__ == "__main__":
    run()
