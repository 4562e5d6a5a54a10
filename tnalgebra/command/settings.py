"""Settings that the commands and the recipes share. Each field becomes an option; the line below it is the help.

Nothing here imports torch before it is used, so that the help of a command is quick.
"""

from __future__ import annotations

import dataclasses
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from ..errors import DataError, RuleError, StudyError, TnalgebraError
from ..networks import KERNEL_LABELS, bipartitions
from ..workers import check_scheduler
from .build import build_model, check_trained, require_library, require_packages

if TYPE_CHECKING:
    from torch import nn

    from ..model import Images

RECALIBRATION_IMAGES = 5000


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """Which network."""

    model: str
    """torchvision:resnet18, timm:resnet26, package.module:function, or a network of tnalgebra's checkout (resnet20)"""
    seed: int = 0
    """the seed of all random choices: first weights, fits, the choice of images"""


@dataclass(frozen=True, kw_only=True)
class WeightSettings(ModelSettings):
    """Which network, and its weights."""

    weights: str | None = None
    """a file with the network's weights: a state dict of torch.save, or a safetensors file; or shipped: those that
    tnalgebra's checkout has for the network"""
    pretrained: bool = False
    """download the weights that torchvision or timm offers for the network"""

    def build(self, **sizes: int) -> nn.Module:
        """The network with its weights. Raises DataError, see `build_model` and `load_weights`."""
        model = build_model(self.model, pretrained=self.pretrained, seed=self.seed, **sizes)
        if self.weights is not None:
            from .weights import load_weights

            load_weights(model, self.weights)
        return model


@dataclass(frozen=True, kw_only=True)
class ImageSettings(ModelSettings):
    """Which network, on which images, and where the result is written."""

    data: str = "digits"
    """images: a folder with train/CLASS/* and test/CLASS/*, digits (embedded), cifar10 or cifar100 (downloaded once)"""
    image_size: int | None = None
    """pixels to which the images of a folder are scaled and cropped; needed only where their sizes differ"""
    mean: tuple[float, ...] | None = None
    """mean of each channel (pixels: 0 to 1), as in the training; by default ImageNet's for colour images, 0 for grey"""
    std: tuple[float, ...] | None = None
    """standard deviation of each channel; by default ImageNet's for colour images, 1 for grey ones"""
    limit: int | None = None
    """the most test images that are used, all classes equally often: quicker, but coarser; by default all images"""
    skip: tuple[str, ...] = ("first",)
    """layers left alone: globs, first (the first convolution), linear (all linear layers); bare --skip: none"""
    batch_size: int = 128
    """the number of images in a batch; it changes the result by rounding only"""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """where the work is done; auto takes a GPU if torch finds one"""
    output: Path = Path("runs")
    """the folder for the results"""

    def images(self, split: Literal["train", "test"]) -> Images:
        """The images of a split, with the mean and the standard deviation of these settings; of the test as many as
        the limit allows."""
        from ..model import load_images

        images = load_images(self.data, split, image_size=self.image_size)
        if split == "test" and self.limit is not None:
            images = images.subset(min(self.limit, len(images)), seed=self.seed)
        return dataclasses.replace(images, mean=self.mean or images.mean, std=self.std or images.std)

    def chosen_device(self) -> Literal["cpu", "cuda"]:
        """The device with "auto" resolved. Raises StudyError where a GPU is requested and torch finds none."""
        import torch

        if self.device == "cuda" and not torch.cuda.is_available():
            raise StudyError("the device is 'cuda', and torch finds no GPU", fix="--device cpu")
        return "cuda" if self.device != "cpu" and torch.cuda.is_available() else "cpu"


@dataclass(frozen=True, kw_only=True)
class TestSettings(ImageSettings, WeightSettings):
    """A trained network, and how it is tested and calibrated."""

    __test__ = False  # for pytest: this is not a class of tests

    untrained: bool = False
    """allow a network without trained weights, of which accuracies mean nothing"""
    calibrate: int = 1024
    """training images, without labels, over which errors of outputs are measured; 0: errors of kernels are taken"""
    recalibrate_bn: bool = False
    """measure the statistics of batch normalisations again after the compression, on 5000 training images"""
    recalibrate_shift: int = 0
    """pixels by which these images are moved at random, as in the training; 4 for the published CIFAR ResNets"""
    scheduler: str | None = None
    """who fits and tests: by default this process; local or local:4, worker processes here; tcp://HOST:8786, Dask's"""

    def network(self, images: Images, *, trained_later: bool = False) -> nn.Module:
        """The network for these images, with its weights.

        Raises:
            StudyError: its weights are random, which `untrained` does not allow.
            DataError: see `build`.
        """
        sizes = {"classes": len(images.classes), "channels": images.channels}
        model = self.build(**sizes)
        if self.weights is None and not self.untrained and not trained_later:
            check_trained(model, self.model, pretrained=self.pretrained, seed=self.seed, **sizes)
        return model

    def check(self, **least: int) -> None:
        """Check the settings before anything is loaded.

        Raises:
            DataError: a number is below its least value.
            MissingPackageError: the library that builds the network is not installed.
        """
        require_library(self.model)
        check_scheduler(self.scheduler)
        least = {"calibrate": 0, "recalibrate_shift": 0, "batch_size": 1, "limit": 1, **least}
        for name, bound in least.items():
            value: Any = getattr(self, name)
            if value is not None and value < bound:
                raise DataError(f"{name.replace('_', '-')} is {value}", fix=f"at least {bound}")

    def recalibration(self, training: Images) -> Images:
        """The training images for the batch normalisations."""
        return training.subset(min(RECALIBRATION_IMAGES, len(training)), seed=self.seed)

    def calibration(self, training: Images) -> Images:
        """Images that are chosen without a look at their labels, and without them: all have the first."""
        return self.unlabelled(training, 0, self.calibrate)

    def unlabelled(self, training: Images, first: int, end: int) -> Images:
        """Images `first` to `end` of a random order, without labels."""
        import torch

        order = torch.randperm(len(training), generator=torch.Generator().manual_seed(self.seed))
        chosen = order[first:end].sort().values
        return dataclasses.replace(training, pixels=training.pixels[chosen], labels=torch.zeros_like(chosen))


@dataclass(frozen=True, kw_only=True)
class CompressSettings(TestSettings):
    """Settings of a compression."""

    rewrite: tuple[str, ...] = ("tucker2", "out kh | in kw")
    """decompositions, each in quotes: names (see tnalgebra rules), cuts, notation; each layer gets the best of them"""
    size: str = "parameters 0.5"
    """parameters 0.5, multiply-adds 0.5 or time 0.7, of the whole network; or of each layer 8, r=8 s=4, keep 0.5"""
    held_out: int = 0
    """calibration images held out of the fits: of several ways to share out a budget, the best on these is taken"""
    sequential: bool = False
    """fit the layers in the order they run, each to the output it had, from the inputs it gets by then"""
    distil: float = 0.0
    """passes over the training images, without labels, in which the cores then learn the dense network's outputs;
    undone where that raises the divergence on the images held out"""
    autocast: Literal["no", "bf16"] = "no"
    """the type of products in that training: bf16 is faster where the device has it"""
    memory_format: Literal["auto", "contiguous", "channels_last"] = "auto"
    """the format that the network is compressed for; auto takes the one in which it is faster as it is"""
    tune: bool = True
    """measure the plans of each layer whose predicted times are close, instead of trusting these"""
    onnx: bool = False
    """export the compressed network as model.onnx too, for batches of any size"""
    example_batch: int = 16
    """images in the batch for which layers are planned and multiply-adds are counted"""
    output: Path = Path("runs/compress")
    """the folder for the compressed network and the reports"""

    def check(self, **least: int) -> None:
        """Check what can be known to be wrong before anything is loaded or trained. Raises TnalgebraError."""
        from ..decompositions import read_rewrite
        from ..fitting import read_size

        super().check(example_batch=1, distil=0, held_out=0, **least)
        if self.held_out and self.held_out >= self.calibrate:
            fact = f"{self.held_out} of {self.calibrate} calibration images cannot be held out"
            raise DataError(fact, fix=f"--calibrate {4 * self.held_out}")
        self.chosen_device()
        read_size(self.size)
        if not self.rewrite:
            raise RuleError("no rewrite is requested", fix="--rewrite tucker2")
        for rewrite in self.rewrite:
            with suppress(TnalgebraError):  # a rule may exist for convolutions only, or for linear layers only
                read_rewrite(rewrite, KERNEL_LABELS[2])
                continue
            read_rewrite(rewrite, KERNEL_LABELS[4])
        if self.sequential and not self.calibrate:
            raise DataError("sequential fits need images for calibration", fix="--calibrate 1024")
        if self.onnx:
            require_packages({"onnx": "onnx", "onnxscript": "onnx"}, "--onnx")

    def calibration(self, training: Images) -> Images:
        """As of all settings, without those that are held out."""
        return self.unlabelled(training, self.held_out, self.calibrate)

    def check_held_out(self, training: Images) -> None:
        """Raise DataError where no training image is left for the fits."""
        if self.held_out >= len(training):
            fact = f"{self.held_out} of {len(training)} training images are held out, and none is left for the fits"
            raise DataError(fact, fix=f"--held-out {len(training) // 4}")

    def recalibration(self, training: Images) -> Images:
        """As of all settings, without labels and without the images that are held out."""
        return self.unlabelled(training, self.held_out, self.held_out + RECALIBRATION_IMAGES)

    def held_out_images(self, training: Images) -> Images:
        """Others of the kind of `calibration`."""
        return self.unlabelled(training, 0, self.held_out)

    def distillation(self, training: Images) -> Images:
        """All images but those held out, without labels."""
        return self.unlabelled(training, self.held_out, len(training))


@dataclass(frozen=True, kw_only=True)
class StudySettings(TestSettings):
    """Settings of a study."""

    rewrite: tuple[str, ...] = tuple(map(str, bipartitions(KERNEL_LABELS[4])))
    """decompositions, each in quotes: cuts ("A then B" cuts twice), names (see tnalgebra rules), notation"""
    size: tuple[str, ...] = ("keep 0.75", "keep 0.5", "keep 0.25", "keep 0.125")
    """sizes, each in quotes: keep 0.5, r=8, a=8 b=4, parameters 0.5 (of all); each rewrite takes those that suit it"""
    scope: tuple[str, ...] = ("all",)
    """what one test compresses: all (the layers together), each (one layer at a time), or globs of layers' names"""
    metric: Literal["frobenius", "input", "output"] = "frobenius"
    """the norm of fits: of the kernel; of the layer's output; or layer after layer, to the output it had"""
    curves: Literal["error", "divergence"] = "error"
    """what ranks cost under a budget: the error of the layer's fit, or the divergence of the network's answers"""
    components: Literal["refit", "drop"] = "refit"
    """at several ranks: a fit for each, or the largest components of the fit at the largest rank"""
    report_metric: bool = False
    """report the errors of the layers' outputs as well, for cuts and for fits in the Frobenius norm"""
    also: tuple[str, ...] = ()
    """further networks, each as MODEL=WEIGHTS, such as resnet20=shipped, or MODEL: the rows name their network"""
    seeds: tuple[int, ...] = ()
    """the seeds of fits, each of which has its rows; by default that of --seed"""
    dtype: Literal["float32", "float64", "bfloat16", "float16"] = "float32"
    """the type in which the network is tested; kernels are cut and fitted in float64"""
    memory: int = 2 * 2**30
    """bytes of what layers before the rewritten ones give that are kept between tests; it changes no result"""
    time_limit: float = 3600.0
    """with a scheduler: seconds for a row; a worker that takes longer is started again, and another makes the row"""
    output: Path = Path("runs/study")
    """the folder for the rows (results.jsonl) and the figures (PNG and SVG)"""

    def each(self) -> dict[str, StudySettings]:
        """The settings of every network by its name: that of its builder, or MODEL=WEIGHTS where another has it."""
        found = {self.model: self}
        for text in self.also:
            model, _, weights = text.partition("=")
            found[text if model in found else model] = dataclasses.replace(
                self, model=model, weights=weights or None, pretrained=self.pretrained and not weights, also=()
            )
        return found

    def check(self, **least: int) -> None:
        """Check the settings of all networks. Raises TnalgebraError, see `TestSettings.check`."""
        super().check(**least)
        for settings in self.each().values():
            require_library(settings.model)


def describe_images(images: Images) -> str:
    """One line about images."""
    shape = " x ".join(map(str, images.pixels.shape[1:]))
    return f"{len(images)} images of {len(images.classes)} classes, {shape}, mean {images.mean}, std {images.std}"
