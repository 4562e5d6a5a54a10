"""The commands of `tnalgebra` that take a network: their arguments, their help, and what each of them does.

A command imports what it works with when it is called, so that its help is quick.
"""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from tyro.conf import Positional, Suppress, arg

from .._files import write_text
from ..errors import DataError, LayerError, StudyError
from .build import check_trained, require_packages
from .settings import CompressSettings, ModelSettings, StudySettings, WeightSettings

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True, kw_only=True)
class NetworkArgument(ModelSettings):
    """The network is the first argument of a command; in a recipe it is an option."""

    model: Annotated[Positional[str], arg(metavar="MODEL")]


@dataclass(frozen=True, kw_only=True)
class Compress(NetworkArgument, CompressSettings):
    """Compress a trained network to a size, and test it before and after.

    The output folder receives the network (model.safetensors, which tnalgebra.load reads) and a report of every layer
    as text, as JSON, and as a page with plots. The network needs trained weights: from --weights, from --pretrained, or
    from a function of your own that loads them.

    Example: tnalgebra compress timm:resnet26 --weights W.pth --data DIR --size "multiply-adds 0.5"
    """

    def __call__(self) -> None:
        from .compress import compress_model

        compress_model(self)


@dataclass(frozen=True, kw_only=True)
class StudyNetwork(NetworkArgument, StudySettings):
    """Test the accuracy of networks with their kernels compressed in several ways.

    Nothing is trained again. The rows are written as they are finished, and figures are drawn from them. The same
    command continues where it was stopped, and more rewrites, sizes, networks and seeds can be added to a folder.

    Example: tnalgebra study resnet20 --weights W.pth --data DIR --rewrite "out kh | in kw" cp --also cnn4=shipped
    """

    def __call__(self) -> None:
        from .study import run_study

        run_study(self)


@dataclass(frozen=True, kw_only=True)
class NetworkSettings(NetworkArgument, WeightSettings):
    """A network without images."""

    classes: int | None = None
    """the number of outputs; by default that of the network's builder"""
    channels: int | None = None
    """the number of image channels; by default that of the network's builder"""

    def network(self) -> nn.Module:
        """The network with its weights; a note on stderr says so where some of them are random."""
        wanted = {"classes": self.classes, "channels": self.channels}
        sizes = {name: size for name, size in wanted.items() if size is not None}
        model = self.build(**sizes)
        if self.weights is None:
            try:
                check_trained(model, self.model, pretrained=self.pretrained, seed=self.seed, **sizes)
            except StudyError as error:
                print(f"note: {error.fact}; --weights FILE or --pretrained give others", file=sys.stderr)
        return model


@dataclass(frozen=True, kw_only=True)
class ShowSpectra(NetworkSettings):
    """Print the singular values of every kernel of a network in short, for every cut of its labels in two.

    Example: tnalgebra spectra torchvision:resnet18 --pretrained --output spectra
    """

    output: Path | None = None
    """a folder to write: all singular values (spectra.csv) and their figure (spectra.png and spectra.svg)"""

    def __call__(self) -> None:
        from ..model import spectra
        from ..studies import writing

        if self.output is not None:
            require_packages({"pandas": "study"}, "--output")
        result = spectra(self.network())
        print(result)
        if self.output is not None:
            with writing(self.output):
                write_text(self.output / "spectra.csv", result.to_pandas().to_csv(index=False))
                for suffix in (".png", ".svg"):
                    result.plot(self.output / f"spectra{suffix}")


@dataclass(frozen=True, kw_only=True)
class Explore(NetworkSettings):
    """Write one HTML page to explore the kernels of a network: spectra, and what each rewrite costs at every rank.

    A click chooses a layer, and a slider the rank. For each rewrite the page has the error, the parameters, the
    multiply-adds and the predicted time, and the line of code that makes it. Everything is computed beforehand: the
    page needs neither a server nor a network.

    Example: tnalgebra explore torchvision:resnet18 --pretrained --shape 1 3 224 224 --to explorer.html
    """

    rewrite: tuple[str, ...] = ()
    """decompositions, each in quotes: names, cuts such as "out kh | in kw", notation; by default several"""
    shape: tuple[int, ...] = ()
    """the shape of an input, such as 1 3 224 224, for which layers are planned; by default each layer has its own"""
    to: Path = Path("explorer.html")
    """the file to write"""

    def __call__(self) -> None:
        require_packages({"jinja2": "report", "plotly": "report"}, "the explorer")
        from ..pages import REWRITES, write_explorer
        from ..studies import writing

        if any(size < 1 for size in self.shape):
            raise DataError(f"the shape {' '.join(map(str, self.shape))} has a size below 1", fix="--shape 1 3 32 32")
        network, rewrites = self.network(), self.rewrite or REWRITES
        with writing(self.to.parent):
            shape, title = self.shape or None, self.model
            write_explorer(network, self.to, rewrites=rewrites, shape=shape, title=title, seed=self.seed)
        print(self.to)


@dataclass(frozen=True, kw_only=True)
class CompareRewrites(NetworkSettings):
    """Fit several decompositions of one size to one kernel, and print a table of them, the nearest first.

    Example: tnalgebra compare torchvision:resnet18 layer1.0.conv1 --pretrained --rewrite all --size "parameters 0.25"
    """

    model: Annotated[Positional[str], arg(metavar="MODEL")]
    """the network, as for the other commands; or the shape of a random kernel, such as 64x64x3x3 (out, in, kh, kw)"""
    layer: Annotated[Positional[str | None], arg(metavar="LAYER")] = None
    """the name of the layer whose kernel is compared; not for a shape"""
    rewrite: tuple[str, ...] = ("all",)
    """decompositions, each in quotes: names, cuts such as "out kh | in kw", rules in the notation; or all that exist"""
    size: str = "parameters 0.25"
    """how small: parameters 0.25 or multiply-adds 0.25 of the layer, 8, r=8 s=4, keep 0.5, or error 0.01"""
    time: bool = False
    """measure how long a forward pass of each takes"""

    def __call__(self) -> None:
        from ..model import compare

        print(compare(self._kernel(), self.rewrite, self.size, seed=self.seed, time=self.time))

    def _kernel(self) -> Tensor | nn.Module:
        import torch

        if re.fullmatch(r"\d+(x\d+)+", self.model):
            if self.layer is not None:
                raise LayerError(f"a shape has no layer {self.layer!r}", fix="leave the layer out")
            generator = torch.Generator().manual_seed(self.seed)
            return torch.randn([int(size) for size in self.model.split("x")], generator=generator)
        if re.fullmatch(r"\d[\d\s,*xX]*", self.model):
            fact = f"{self.model!r} is not the shape of a kernel"
            raise LayerError(fact, fix="the sizes joined by x, such as 64x64x3x3 (out, in, kh, kw)")
        return find_layer(self.network(), self.layer)


def find_layer(model: nn.Module, name: str | None) -> nn.Module:
    """The kernel layer with this name. Raises LayerError if the model has none."""
    from ..nn import kernel_layers

    layers = kernel_layers(model)
    if name not in layers:
        fact = "no layer is named" if name is None else f"the network has no kernel layer {name!r}"
        raise LayerError(fact, layers=", ".join(layers))
    return layers[name]


@dataclass(frozen=True, kw_only=True)
class SearchTopologies(CompareRewrites):
    """Search for the decomposition with the least error at a size: which cores, joined by which bonds.

    It is that of one kernel, or one for all kernels of a network, where no layer is named. With --data, errors are
    those of the layers' outputs over training images, and the best decompositions are ordered by the accuracy of the
    network on other training images. The last line is code that makes the best one.

    Example: tnalgebra search resnet20 --weights W.pth --data DIR --size "parameters 0.5" --output runs/search
    """

    layer: Annotated[Positional[str | None], arg(metavar="LAYER")] = None
    """the name of the layer whose kernel is decomposed; by default all; not for a shape"""
    rewrite: Suppress[tuple[str, ...]] = ()
    time: Suppress[bool] = False
    size: str = "parameters 0.3"
    """how small: parameters 0.3 or multiply-adds 0.3; or error 0.1, at which the fewest parameters are searched"""
    data: str | None = None
    """images: a folder with train/CLASS/*, digits (embedded), cifar10 or cifar100 (downloaded once)"""
    calibrate: int = 1024
    """of --data: training images, without labels, for the errors of outputs; 0: errors are those of kernels"""
    tested: int | None = None
    """of --data, without LAYER: others, with labels, for the accuracy of the best, by default those that are left and
    at most 2000; 0: the errors order them"""
    cores: tuple[int, int] = (2, 4)
    """the fewest and the most cores"""
    bonds: tuple[str, ...] = ("tree", "ring", "complete", "hyperedge")
    """how cores are joined: tree, ring, complete, hyperedge, block, graph"""
    groups: tuple[str, ...] | None = None
    """groups of labels that a core may hold, each in quotes; by default any"""
    finalists: int = 4
    """how many of the best decompositions are fitted fully and tested"""
    output: Path | None = None
    """a folder for the rows, where the same command continues"""
    scheduler: str | None = None
    """where the fits are made: local:4, or the address of a Dask scheduler; by default in this process"""

    def __call__(self) -> None:
        from ..topologies import Space, search

        bonds: Any = self.bonds  # which the space checks
        space = Space(cores=self.cores, bonds=bonds, groups=self.groups)
        names = ("output", "seed", "scheduler", "finalists")
        options = {"space": space, **{name: getattr(self, name) for name in names}}
        if self.data is None:
            whole = self.layer is None and not self.model[:1].isdigit()
            print(search(self.network() if whole else self._kernel(), self.size, **options))
            return
        from ..model import load_images
        from .search import search_over_images

        if self.model[:1].isdigit():
            raise LayerError(f"a random kernel of shape {self.model} has no images", fix="leave --data out")
        images = load_images(self.data, "train")
        model = replace(
            self, classes=self.classes or len(images.classes), channels=self.channels or images.channels
        ).network()
        if self.layer is not None:
            find_layer(model, self.layer)
        counts: dict[str, Any] = {name: getattr(self, name) for name in ("layer", "calibrate", "tested")}
        print(search_over_images(model, images, self.size, **counts, **options))
