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
  claims, what recipes.claims needs: how losses go with depth and with the norm.
- Stopped and started again with the same settings the study goes on where it was;
  more cuts, rewrites, sizes, metrics and scopes can be added to a folder.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import torch
import tyro

import tnalgebra as tn
from models import MODELS, build_model, load_weights
from recipes.command import run_presets, smoke_folder
from recipes.networks import trained_cnn4

RECALIBRATION_IMAGES = 5000
ALL_SEVEN = tuple(cut.name for cut in tn.all_cuts("out in kh kw"))


@dataclass(frozen=True)
class Config:
    """Settings of the study; what is printed first is what is used."""

    # one line each: the command's --help breaks them where it must
    model: str = "cnn4"
    """cnn4, resnet20, resnet32, resnet44, resnet56, resnet50, resnet50_cifar (stem for 32x32 images), or a function of
    your own: package.module:function"""
    weights: str | None = None
    """a file of weights, or torchvision:NAME; without one cnn4 is trained first, your own network used as it comes"""
    data: str = "digits"
    """digits (embedded), cifar10 or cifar100 (downloaded), or a folder with train/CLASS/* and test/CLASS/*"""
    cuts: tuple[str, ...] | None = None
    """where a kernel is cut in two, each in quotes; "A then B" cuts by A, then by B; by default all seven of a 2-d
    kernel, or none beside --rewrite"""
    keep: tuple[float, ...] = (0.75, 0.5, 0.25, 0.125)
    """of --cuts: fractions of the singular values kept, each in (0, 1]: from harmless to ruinous"""
    rewrite: tuple[str, ...] = ()
    """decompositions: names (cp, tucker2, tensor_train, ...: print(tnalgebra.decompositions.rules()) lists them), rules
    in the notation, cuts; each in quotes; they need --ranks or --budget"""
    ranks: tuple[str, ...] = ()
    """of --rewrite: the rank of each bond, such as r=16,32 or p=8,16 q=8,16 s=3: a row for each of the lists' places;
    one larger than a layer can use is cut down to what loses nothing there"""
    budget: tuple[float, ...] = ()
    """of --rewrite: parts of the whole network's parameters that are kept, each in (0, 1]; ranks of all layers are
    chosen together, so of scope all only"""
    metric: Literal["frobenius", "input", "output"] = "frobenius"
    """norm of the fits of --rewrite: of the kernel; of the layer's output, over its real inputs; or layer after layer,
    to the output the network had, from the inputs it has by then"""
    curves: Literal["error", "divergence"] = "error"
    """under --budget, what a layer's ranks cost: the error of its fit, or the divergence of the network's answers"""
    components: Literal["refit", "drop"] = "refit"
    """under --ranks, at smaller ranks: a fit of its own (as in the paper), or the largest components of the fit at the
    largest rank"""
    report_metric: Annotated[bool, tyro.conf.arg(name="report-metric")] = False
    """report errors in the input metric too, of cuts and of fits in the Frobenius norm: recipes.claims compares them"""
    calibration: int = 1024
    """training images, chosen by the seed and without their labels, for metrics and divergences; all, if fewer"""
    scope: tuple[str, ...] = ("all", "each")
    """what one test rewrites: all (the layers at once), each (one layer at a time), or globs of layers' names"""
    skip: tuple[str, ...] = ("first",)
    """layers left alone: globs; first for the first convolution, which has few inputs; linear for linear layers; bare
    --skip skips none"""
    limit: int | None = None
    """test on so many images only, equally many of each class: quicker, coarser; all images by default"""
    recalibrate_bn: Annotated[bool, tyro.conf.arg(name="recalibrate-bn")] = False
    """estimate batch-norm statistics anew before each test, on 5000 training images; off: the plain effect"""
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


PRESETS = {
    "cuts": Config(),
    "several-cuts": Config(
        cuts=(
            "out | in kh kw then in | out kh kw",
            "out | in kh kw then in | out kh kw then kh | out in kw then kw | out in kh",
            "out kh | in kw then out kw | in kh",
            "out kh | in kw then in | out kh kw",
        ),
        keep=(0.75, 0.5, 0.25),
        output=Path("runs/several-cuts"),
    ),
    "cp": Config(rewrite=("cp",), ranks=("r=64,32,16,8",), skip=("first", "linear"), output=Path("runs/cp")),
    "claims": Config(
        cuts=("out | in kh kw", "in | out kh kw", "out in | kh kw", "out kh | in kw"),
        keep=(0.75, 0.5, 0.25, 0.1),
        report_metric=True,
        output=Path("runs/claims"),
    ),
}
"""Experiments by name; the network and its data are settings of their own."""

SMOKE = {"keep": 2, "ranks": 2, "limit": 60, "calibration": 60, "epochs": 2}
"""The most of each; of --ranks, the places of their lists."""


def main(config: Config) -> tn.Study:
    """Run the study; returns its rows.

    Raises:
        TnalgebraError: a setting, the data or the weights are not what they should be; see `tn.study`.
    """
    if config.smoke:
        config = _smaller(config)
    device = ("cuda" if torch.cuda.is_available() else "cpu") if config.device == "auto" else config.device
    cuts = config.cuts if config.cuts is not None else () if config.rewrite else ALL_SEVEN
    config = dataclasses.replace(config, device=device, cuts=cuts)
    for field in dataclasses.fields(config):
        print(f"{field.name:<18}{getattr(config, field.name)}")
    train_first = config.weights is None and config.model == "cnn4"
    if train_first and config.epochs < 1:
        raise tn.errors.DataError(
            tn.errors.explain(f"{config.epochs} epochs are no training", fix="--epochs 1 or more, or --weights FILE")
        )
    if config.weights is None and config.model in MODELS and not train_first:
        raise tn.errors.DataError(
            tn.errors.explain(f"{config.model} needs weights", fix="--weights FILE (only cnn4 is trained here)")
        )
    images = tn.load_images(config.data, "test", image_size=config.image_size)
    usual_mean, usual_std = tn.model.default_normalisation(images)
    config = dataclasses.replace(config, mean=config.mean or usual_mean, std=config.std or usual_std)
    print(f"\n{len(images)} images of {len(images.classes)} classes, {images.channels} x ", end="")
    print(f"{images.pixels.shape[2]} x {images.pixels.shape[3]}, mean {config.mean}, std {config.std}", flush=True)
    model = build_model(config.model, classes=len(images.classes), channels=images.channels, seed=config.seed)
    if config.weights is not None:
        load_weights(model, config.weights)
    training = None
    calibrated = config.metric != "frobenius" or config.curves == "divergence" or config.report_metric
    if train_first or config.recalibrate_bn or calibrated:
        training = tn.load_images(config.data, "train", image_size=config.image_size)
    found = tn.study(
        model,
        images,
        output=config.output,
        cuts=cuts,
        keep=config.keep if cuts or not config.rewrite else (),
        rewrites=config.rewrite,
        ranks=config.ranks,
        budget=config.budget,
        metric=config.metric,
        curves=config.curves,
        calibration=_unlabelled(training, config.calibration, config.seed) if training and calibrated else None,
        components=config.components,
        report_metric=config.report_metric,
        scope=config.scope,
        skip=config.skip,
        limit=config.limit,
        recalibrate_bn=config.recalibrate_bn,
        recalibrate_shift=config.recalibrate_shift,
        training_data=_some(training, config.seed) if training and config.recalibrate_bn else None,
        mean=config.mean,
        std=config.std,
        batch_size=config.batch_size,
        device=device,
        dtype=getattr(torch, config.dtype),
        seed=config.seed,
        name=config.model,
        prepare=partial(trained_cnn4, training=training, config=config) if train_first and training else None,
        facts={"epochs": config.epochs} if train_first else None,
    )
    print(f"\n{found.table()}\n\nrows and figures: {config.output}/")
    return found


def _smaller(config: Config) -> Config:
    """So small that all of it runs in seconds."""
    return dataclasses.replace(
        config,
        cuts=config.cuts and config.cuts[:2],
        keep=config.keep[-SMOKE["keep"] :],
        ranks=tuple(",".join(ranks.split(",")[: SMOKE["ranks"]]) for ranks in config.ranks),
        limit=min(config.limit or SMOKE["limit"], SMOKE["limit"]),
        calibration=min(config.calibration, SMOKE["calibration"]),
        epochs=min(config.epochs, SMOKE["epochs"]),
        output=smoke_folder(config.output, (preset.output for preset in PRESETS.values())),
    )


def _some(training: tn.Images, seed: int) -> tn.Images:
    return training.subset(min(RECALIBRATION_IMAGES, len(training)), seed=seed)


def _unlabelled(training: tn.Images, count: int, seed: int) -> tn.Images:
    """Images chosen without a look at their labels, and without them: all have the first."""
    if count < 1:
        raise tn.errors.DataError(tn.errors.explain(f"{count} calibration images are none", fix="--calibration 1024"))
    order = torch.randperm(len(training), generator=torch.Generator().manual_seed(seed))
    chosen = order[:count].sort().values
    return tn.Images(training.pixels[chosen], torch.zeros_like(chosen), training.classes, training.source)


def run() -> None:
    """The command line."""
    run_presets(PRESETS, main, description=__doc__)


if __name__ == "__main__":
    run()
