"""How small can the kernels of a network be, and what does that do to its accuracy?

    python -m recipes.compressibility --smoke    # embedded digits, a small CNN: seconds
    python -m recipes.compressibility            # the same in full: half a minute
    python -m recipes.compressibility --model resnet20 --weights W.pth --data DIR \\
        --cuts "out | in kh kw" "out kh | in kw" --keep 0.75 0.5 --output runs/resnet20
    python -m recipes.compressibility --rewrite cp tucker2 --ranks r=8,16 a=4,8 b=4,8
    python -m recipes.compressibility --rewrite tucker2 --budget 0.7 0.5 --metric output
    python -m recipes.compressibility --preset claims --model resnet20 --weights W.pth
    python -m recipes.compressibility --model mylib.nets:build --weights w.pth --data DIR

The study of Singh, Jahromi and Orus (arXiv 2403.14379), and more in its place:
- A kernel of a 2-d convolution has the labels out, in (channels), kh, kw (window).
  Each cut of these labels in two makes it a matrix; that matrix is truncated to a
  fraction of its singular values, put back, and the network tested, not retrained.
- A rewrite is any decomposition, by name or as one line of notation, such as
  "K[o i h w] => A[o p q] B[i q r] C[h r s] D[w s p]": the cores on its right side
  are fitted to the kernel. Labels that are new there are bonds; --ranks gives their
  sizes, or --budget a part of the network's parameters, which is then shared out
  among the layers.
- Presets are experiments, on any network: cuts, the seven cuts of a kernel;
  several-cuts, one after the other on one kernel; cp, sums of rank-one tensors;
  claims, whose rows recipes.claims reads.
- Stopped and started again with the same settings the study continues where it was;
  more cuts, rewrites, sizes, metrics and scopes can be added to a folder.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

import tnalgebra as tn
from models import MODELS, build_model, load_weights
from recipes.command import run_presets, smoke_folder
from recipes.experiment import load_split
from recipes.networks import trained_cnn4
from recipes.reporting import check_least, print_settings

RECALIBRATION_IMAGES = 5000
ALL_SEVEN = tuple(cut.name for cut in tn.all_cuts("out in kh kw"))


@dataclass(frozen=True)
class Config:
    """Settings of the study; what is printed first is what is used."""

    model: str = "cnn4"
    """cnn4, resnet20 to resnet56, resnet50, resnet50_cifar (for 32x32 images), or your own: package.module:function"""
    weights: str | None = None
    """a file of weights, or torchvision:NAME; without one cnn4 is trained first, your own network used as it comes"""
    data: str = "digits"
    """digits (embedded), cifar10 or cifar100 (downloaded), or a folder with train/CLASS/* and test/CLASS/*"""
    cuts: tuple[str, ...] | None = None
    """cuts of a kernel, each in quotes; "A then B" cuts twice; by default all seven, or none beside --rewrite"""
    keep: tuple[float, ...] = (0.75, 0.5, 0.25, 0.125)
    """of --cuts: fractions of the singular values kept, each in (0, 1]: from harmless to ruinous"""
    rewrite: tuple[str, ...] = ()
    """decompositions: names (cp, ...; print(tnalgebra.rules()) lists them), rules in the notation, cuts; in quotes"""
    ranks: tuple[str, ...] = ()
    """of --rewrite: r=16,32 or p=8,16 q=8,16 s=3: a row for each place of the lists; capped at what a layer can use"""
    budget: tuple[float, ...] = ()
    """of --rewrite: parts of the network's parameters that are kept; ranks of all layers together (scope all)"""
    metric: Literal["frobenius", "input", "output"] = "frobenius"
    """norm of the fits of --rewrite: of the kernel; of the layer's output; layer after layer, to the output it had"""
    curves: Literal["error", "divergence"] = "error"
    """under --budget, what a layer's ranks cost: the error of its fit, or the divergence of the network's answers"""
    components: Literal["refit", "drop"] = "refit"
    """under --ranks: a fit for each (as in the paper), or the largest components of the fit at the largest rank"""
    report_metric: Annotated[bool, tyro.conf.arg(name="report-metric")] = False
    """report errors in the input metric too, of cuts and of fits in the Frobenius norm: recipes.claims compares them"""
    calibration: int = 1024
    """training images, chosen by the seed and without their labels, for metrics and divergences; all, if fewer"""
    scope: tuple[str, ...] = ("all", "each")
    """what one test rewrites: all (the layers at once), each (one layer at a time), or globs of layers' names"""
    skip: tuple[str, ...] = ("first",)
    """layers left alone: globs, first (convolution, of few inputs), linear (all linear layers); bare --skip: none"""
    limit: int | None = None
    """test on this number of images only, equally many of each class: quicker, coarser; all images by default"""
    recalibrate_bn: Annotated[bool, tyro.conf.arg(name="recalibrate-bn")] = False
    """estimate batch-norm statistics again before each test, on 5000 training images; off: the plain effect"""
    recalibrate_shift: int = 0
    """pixels by which these images are moved: that of the training's augmentation; 4 for the published CIFAR ResNets"""
    mean: tuple[float, ...] | None = None
    """of each channel, as in the network's training (pixels: 0 to 1); by default ImageNet's for colour, 0 for grey"""
    std: tuple[float, ...] | None = None
    """of each channel likewise; by default ImageNet's for colour images, 1 for grey ones"""
    image_size: int | None = None
    """pixels: resize and crop a folder's images to this; needed only if they differ in size"""
    batch_size: int = 128
    """images at a time; no influence on the result beyond rounding, and more is no faster on a CPU"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """where the network is tested; auto takes a GPU if there is one"""
    dtype: Literal["float32", "float64", "bfloat16", "float16"] = "float32"
    """in which the network is tested; kernels are cut and fitted in float64"""
    epochs: int = 15
    """passes over the training images, where cnn4 has to be trained"""
    smoke: bool = False
    """few images, rows and epochs: whether all of it runs; its numbers mean nothing"""
    seed: int = 0
    """of all chance: first weights, training, fits, the choice of images under --limit and --calibration"""
    output: Path = Path("runs/compressibility")
    """folder for the rows (results.jsonl), the figures (PNG and SVG) and the trained network"""


SEVERAL_CUTS = (
    "out | in kh kw then in | out kh kw",
    "out | in kh kw then in | out kh kw then kh | out in kw then kw | out in kh",
    "out kh | in kw then out kw | in kh",
    "out kh | in kw then in | out kh kw",
)
CLAIMED_CUTS = ("out | in kh kw", "in | out kh kw", "out in | kh kw", "out kh | in kw")
PRESETS = {
    "cuts": Config(),
    "several-cuts": Config(cuts=SEVERAL_CUTS, keep=(0.75, 0.5, 0.25), output=Path("runs/several-cuts")),
    "cp": Config(rewrite=("cp",), ranks=("r=64,32,16,8",), skip=("first", "linear"), output=Path("runs/cp")),
    "claims": Config(cuts=CLAIMED_CUTS, keep=(0.75, 0.5, 0.25, 0.1), report_metric=True, output=Path("runs/claims")),
}
"""Experiments by name; the network and its data are settings of their own."""


def main(config: Config) -> tn.studies.Study:
    """Run the study; returns its rows. Raises TnalgebraError, see `tn.study`, also for data and weights."""
    config = _smaller(config) if config.smoke else config
    device: Any = ("cuda" if torch.cuda.is_available() else "cpu") if config.device == "auto" else config.device
    cuts = config.cuts if config.cuts is not None else () if config.rewrite else ALL_SEVEN
    config = dataclasses.replace(config, device=device, cuts=cuts)
    print_settings(config)
    check_least(config, {"calibration": 1, "epochs": 1})
    trains_first(config)
    sizes: list[Any] = [*tn.studies.read_ranks(config.ranks), *map(tn.ParameterBudget, config.budget)]
    if sizes and not config.rewrite:
        raise tn.errors.StudyError(tn.errors.explain("ranks or a budget, and no rewrite", fix="--rewrite NAME"))
    for rewrite in config.rewrite:  # those are studied after the cuts, and a mistake is to be seen before
        tn.studies.read_rewrite(rewrite)
    images = load_split(config, "test")
    config = dataclasses.replace(config, mean=images.mean, std=images.std)
    shape = " x ".join(map(str, images.pixels.shape[1:]))
    print(f"\n{len(images)} images of {len(images.classes)} classes, {shape}, mean {images.mean}, std {images.std}")
    images = images if config.limit is None else images.subset(config.limit, seed=config.seed)
    model = build_model(config.model, classes=len(images.classes), channels=images.channels, seed=config.seed)
    if config.weights is not None:
        load_weights(model, config.weights)
    options = _options(config, images)
    study = partial(tn.study, model, images, config.output, options=options)
    asked: Any = (cuts, map(tn.KeepFraction, config.keep)), (config.rewrite, sizes)
    first, *more = [study(rewrites=r, sizes=list(s)) for r, s in asked if r or not (cuts or config.rewrite)]
    found = dataclasses.replace(first, rows=first.rows + [row for other in more for row in other.rows[1:]])
    print(f"\n{found.table()}\n\nrows and figures: {config.output}/")
    return found


def _options(config: Config, images: tn.model.Images) -> tn.StudyOptions:
    train_first = trains_first(config)
    calibrated = config.metric != "frobenius" or config.curves == "divergence" or config.report_metric
    training = load_split(config, "train") if train_first or config.recalibrate_bn or calibrated else images
    shared = ("scope", "skip", "metric", "report_metric", "curves", "components", "batch_size", "device", "seed")
    some = training.subset(min(RECALIBRATION_IMAGES, len(training)), seed=config.seed)
    return tn.StudyOptions(
        **{name: getattr(config, name) for name in shared},
        calibration=unlabelled(training, config.calibration, config.seed) if calibrated else None,
        recalibration=some if config.recalibrate_bn else None,
        recalibration_shift=config.recalibrate_shift,
        dtype=getattr(torch, config.dtype),
        name=config.model,
        prepare=partial(trained_cnn4, training=training, config=config) if train_first else None,
        facts={"epochs": config.epochs} if train_first else {},
    )


def trains_first(config: Any) -> bool:
    """Whether a recipe trains its network first, which is cnn4. Raises DataError for others without weights."""
    if config.weights is None and config.model in MODELS and config.model != "cnn4":
        fix = "--weights FILE (only cnn4 is trained here)"
        raise tn.errors.DataError(tn.errors.explain(f"{config.model} needs weights", fix=fix))
    return config.weights is None and config.model == "cnn4"


def _smaller(config: Config) -> Config:
    """So small that all of it runs in seconds."""
    return dataclasses.replace(
        config,
        cuts=config.cuts and config.cuts[:2],
        keep=config.keep[-2:],
        ranks=tuple(",".join(ranks.split(",")[:2]) for ranks in config.ranks),
        limit=min(config.limit or 60, 60),
        calibration=min(config.calibration, 60),
        epochs=min(config.epochs, 2),
        output=smoke_folder(config.output, (preset.output for preset in PRESETS.values())),
    )


def unlabelled(training: tn.model.Images, count: int, seed: int) -> tn.model.Images:
    """Images chosen without a look at their labels, and without them: all have the first."""
    order = torch.randperm(len(training), generator=torch.Generator().manual_seed(seed))
    chosen = order[:count].sort().values
    return dataclasses.replace(training, pixels=training.pixels[chosen], labels=torch.zeros_like(chosen))


def run() -> None:
    """The command line."""
    run_presets(PRESETS, main, description=__doc__)


if __name__ == "__main__":
    run()
