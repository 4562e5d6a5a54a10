"""All experiments of a paper on one of its networks, each by its recipe, into one folder.

    python -m recipes.paper --smoke      # cnn4 on embedded digits: under a minute, the numbers mean nothing
    python -m recipes.paper --network resnet20-cifar10 --weights W.pth --data DIR
    python -m recipes.paper --network resnet50-16-cifar100 --weights W.safetensors --data DIR \\
        --experiments layers retrain
    python -m recipes.claims --paper runs/paper

The paper: Singh, Jahromi and Orus (arXiv 2403.14379). The experiments, in
OUTPUT/NETWORK/EXPERIMENT:
- spectra: singular values and entropies of all kernels, and how they depend on depth.
- cuts: each of the seven cuts of a kernel, all layers at once, on all test images.
- layers: the same cuts of one layer at a time, on --layer-images test images, with the
  error of the layer's output; then what they say about norm and depth (recipes.claims).
  Kernels of 1x1 have one cut only, for the other six are the same or change nothing.
- several-cuts: cuts one after the other on one kernel.
- cp: sums of rank-one tensors.
- retrain: mild and large truncations, then five epochs in two ways, and a control. It
  takes hours, and is done only where --experiments names it.
- a-priori: the network trained from random weights, dense and with a quarter of each
  kernel's parameters, three seeds. The same is true.
- Nothing is chosen on test images: all settings are fixed before. A stopped run continues
  where it was, and more experiments can be added.
- The networks with 16 channels in their first stage stand for the ResNet-50 of the paper
  where its full width is too much. The presets of the full width have not been run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import tnalgebra as tn
from recipes import compressibility, spectra
from recipes.a_priori import run as a_priori
from recipes.claims import run as claims
from recipes.command import run_command, smoke_folder, smoke_sizes
from recipes.reporting import check_known, check_least, print_settings
from recipes.retrain import run as retrain


class Network(NamedTuple):
    """A network of the experiments.

    model, data: as recipes take them.
    layer_images: test images for the cuts of one layer at a time, of which a deep network needs many tests.
    skip: layers that are not measured one at a time; of four layers each is needed for a correlation.
    """

    model: str
    data: str
    layer_images: int
    skip: tuple[str, ...] = ("first",)


NETWORKS = {
    "cnn4-cifar10": Network("cnn4", "cifar10", 1000, skip=()),
    "cnn4-cifar100": Network("cnn4", "cifar100", 1000, skip=()),
    "resnet20-cifar10": Network("resnet20", "cifar10", 1000),
    "resnet50-16-cifar10": Network("resnet50_cifar16", "cifar10", 500),
    "resnet50-16-cifar100": Network("resnet50_cifar16", "cifar100", 500),
    "resnet50-cifar10": Network("resnet50_cifar", "cifar10", 500),
    "resnet50-cifar100": Network("resnet50_cifar", "cifar100", 500),
    "cnn4-digits": Network("cnn4", "digits", 100, skip=()),
}
"""The networks by name. Each has a preset of this name in recipes.retrain."""

SMOKE = {"images": 60, "layer_images": 60}


@dataclass(frozen=True, kw_only=True)
class Config:
    """Settings; what is printed first is what is used."""

    network: str = "cnn4-cifar10"
    """cnn4-cifar10, cnn4-cifar100, resnet20-cifar10, resnet50-16-cifar10, resnet50-16-cifar100; resnet50-cifar10 and
    resnet50-cifar100 have the full width"""
    weights: str | None = None
    """a file of weights, or shipped: those that this checkout has for the network; cnn4 is trained first without"""
    data: str | None = None
    """a folder with train/CLASS/* and test/CLASS/*; by default CIFAR is downloaded once"""
    experiments: tuple[str, ...] = ("spectra", "cuts", "layers", "several-cuts", "cp")
    """spectra, cuts, layers, several-cuts, cp, retrain, a-priori"""
    images: int | None = None
    """the most test images where all layers are rewritten at once; by default all"""
    layer_images: int | None = None
    """the most test images where one layer is; by default 500 for ResNet-50, 1000 for the others"""
    seeds: tuple[int, ...] = (0,)
    """of retrain: a training for each"""
    precision: Literal["no", "bf16"] = "bf16"
    """of retrain: that of the steps"""
    smoke: bool = False
    """embedded digits, few images and epochs, to see that everything works; the numbers mean nothing"""
    output: Path = Path("runs/paper")
    """the folder that has a folder for each network, and in it one for each experiment"""


def main(config: Config) -> None:
    """Do the experiments that are not done yet.

    Raises:
        TnalgebraError: a setting, the data or the weights are not what they should be.
    """
    if config.smoke:
        most = smoke_sizes(config, SMOKE)
        output = smoke_folder(config.output, [Config.output])
        config = dataclasses.replace(config, network="cnn4-digits", data=None, weights=None, output=output, **most)
    print_settings(config)
    check_known("network", [config.network], NETWORKS)
    check_known("experiment", config.experiments, EXPERIMENTS)
    check_least(config, {"images": 1, "layer_images": 1}, tn.errors.DataError)
    for name in config.experiments:
        print(f"\n{config.network}: {name}\n", flush=True)
        EXPERIMENTS[name](config, config.output / config.network / name)
    print(f"\nrows and figures of all experiments: {config.output / config.network}/")


def _shared(config: Config, output: Path) -> dict[str, Any]:
    """The settings that all recipes have."""
    network = NETWORKS[config.network]
    data = config.data or network.data
    return {"model": network.model, "weights": config.weights, "data": data, "output": output}


def _spectra(config: Config, output: Path) -> None:
    classes, channels = (10, 1) if config.smoke else (100 if config.network.endswith("cifar100") else 10, 3)
    skip = NETWORKS[config.network].skip
    smaller: dict[str, Any] = {"resamples": 200, "epochs": 1} if config.smoke else {}
    spectra.main(spectra.Config(**_shared(config, output), classes=classes, channels=channels, skip=skip, **smaller))


def _study(config: Config, output: Path, preset: str, **changes: Any) -> None:
    chosen = dataclasses.replace(compressibility.PRESETS[preset], **_shared(config, output), **changes)
    if config.smoke:  # the sizes and rewrites of the preset stay: these are what is tried here
        chosen = dataclasses.replace(chosen, epochs=1, calibrate=60, untrained=True)
    compressibility.main(chosen)


def _all_layers(preset: str) -> Callable[[Config, Path], None]:
    """The experiment of a preset, with all layers at once."""
    return lambda config, output: _study(config, output, preset, scope=("all",), limit=config.images)


def _layers(config: Config, output: Path) -> None:
    """Cuts of one layer at a time; kernels of 1x1 across one cut, for which the others are the same or trivial."""
    network = NETWORKS[config.network]
    model = tn.command.build_model(network.model, seed=0)
    layers = [layer for layer in tn.studies.layers_of(model, network.skip) if len(layer.labels) == 4]
    shared: dict[str, Any] = {"limit": config.layer_images or network.layer_images, "skip": network.skip}
    points = tuple(layer.name for layer in layers if layer.weight.shape[2:].numel() == 1)
    windows = tuple(layer.name for layer in layers if layer.name not in points)
    _study(config, output, "claims", scope=("all", *windows), **shared)
    if points:
        _study(config, output, "claims", scope=points, rewrite=("out | in kh kw",), **shared)
    smaller: dict[str, Any] = {"resamples": 200} if config.smoke else {}
    claims.main(claims.Config(rows=output, **smaller))


def _retrain(config: Config, output: Path) -> None:
    preset = retrain.PRESETS[config.network]
    shared = {**_shared(config, output), "precision": config.precision, "seeds": config.seeds, "smoke": config.smoke}
    retrain.main(dataclasses.replace(preset, **shared))


def _a_priori(config: Config, output: Path) -> None:
    shared = {**_shared(config, output), "precision": config.precision, "smoke": config.smoke}
    del shared["weights"]
    preset = a_priori.PRESETS[config.network]
    a_priori.main(dataclasses.replace(preset, **shared, rewrites=("tucker2", "out kh | in kw"), parameters=(0.25,)))


EXPERIMENTS: dict[str, Callable[[Config, Path], None]] = {
    "spectra": _spectra,
    "cuts": _all_layers("cuts"),
    "layers": _layers,
    "several-cuts": _all_layers("several-cuts"),
    "cp": _all_layers("cp"),
    "retrain": _retrain,
    "a-priori": _a_priori,
}


def run() -> None:
    """The command line."""
    run_command(Config, main, description=__doc__, interrupted="stopped: the same command continues where it was")


if __name__ == "__main__":
    run()
