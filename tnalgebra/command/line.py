"""The commands of `tnalgebra`: their arguments, their help, and what each of them does.

A command imports what it works with when it is called, so that its help is quick.
"""

from __future__ import annotations

import difflib
import re
import sys
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Protocol

from tyro.conf import Positional, Suppress, arg

from .._files import write_text
from ..errors import CompileError, DataError, LayerError, NotationError, SizeError, StudyError
from ..networks import parse, size_of, tensors_of, with_sizes
from .build import check_trained, require_packages
from .settings import CompressSettings, ModelSettings, StudySettings, WeightSettings

if TYPE_CHECKING:
    from torch import Tensor, nn


class Command(Protocol):
    """A dataclass whose fields are the arguments of a command, and whose docstring is the beginning of its help."""

    def __call__(self) -> None:
        """Do it."""


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
class Report:
    """Write one HTML page about runs: tables, plots, drawings, and the answers that their rows give.

    It takes the output folders of tnalgebra study and compress, and of the recipes that train, retrain and measure. The
    page needs neither a server nor a network.

    Example: tnalgebra report runs/study runs/compress --to report.html
    """

    output: Annotated[Positional[tuple[Path, ...]], arg(metavar="OUTPUT...")]
    """the folders of the runs"""
    to: Path | None = None
    """the file to write; by default report.html in the folder of the first run"""

    def __call__(self) -> None:
        require_packages({"jinja2": "report", "plotly": "report", "pandas": "study"}, "a report")
        from ..pages import write_report
        from ..studies import writing

        if not self.output:
            raise StudyError("no run is named", fix="tnalgebra report runs/study")
        first = self.output[0]
        path = self.to or (first if first.is_dir() else first.parent) / "report.html"
        with writing(path.parent):
            write_report(self.output, path)
        print(path)


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


@dataclass(frozen=True, kw_only=True)
class Draw:
    """Draw a network that is written in the notation.

    Example: tnalgebra draw "U[out a] G[a b kh kw] V[b in] -> [out in kh kw]" tucker2.svg
    """

    notation: Annotated[Positional[str], arg(metavar="NOTATION")]
    """the network"""
    output: Annotated[Positional[Path], arg(metavar="FILE")]
    """the file to write: .svg, .png or .pdf"""

    def __call__(self) -> None:
        if "=>" in self.notation:
            side = self.notation.split("=>")[1].strip()
            raise NotationError("a rule is not a network", rule=self.notation, fix=f"draw one of its sides, {side!r}")
        parse(self.notation).draw(self.output)
        print(self.output)


@dataclass(frozen=True, kw_only=True)
class ShowRules:
    """Print all rules: the exact ones, and the decompositions of kernels with their equations.

    Example: tnalgebra rules "out in kd kh kw"
    """

    labels: Annotated[Positional[str | None], arg(metavar="LABELS")] = None
    """the labels of the kernel, in quotes; by default out in kh kw, those of a 2-d convolution"""

    def __call__(self) -> None:
        from ..decompositions import rules

        print(rules(self.labels))


@dataclass(frozen=True, kw_only=True)
class ShowPlan:
    """Print how a network in the notation is computed: its steps, their costs, and why this order was chosen.

    Example: tnalgebra plan "X[n i x] Conv[x u k | padding=1] A[o:64 r:8] B[r i k:3] -> [n o u]" --input X=16,64,32
    """

    notation: Annotated[Positional[str], arg(metavar="NOTATION")]
    """the network; labels that no input has need a size, such as r:8"""
    input: tuple[str, ...]
    """the tensors that are given at each call, with their shapes, such as X=16,64,32,32"""
    code: bool = False
    """print the generated torch code as well"""

    def __call__(self) -> None:
        import torch

        from ..compiler import compile

        network, inputs = parse(self.notation), dict(map(_read_input, self.input))
        tensors = {name: node.labels for name, node in tensors_of(network).items()}
        for name, shape in inputs.items():
            if len(tensors.get(name, ())) != len(shape):
                fact = f"the network has no tensor {name!r} of {len(shape)} axes"
                raise CompileError(fact, network=network, fix="--input NAME=SIZES, one size for each label of a tensor")
            network = with_sizes(network, dict(zip(tensors[name], shape, strict=True)))
        try:
            values = {
                name: torch.zeros([size_of(network, label) for label in labels])
                for name, labels in tensors.items()
                if name not in inputs
            }
        except SizeError as error:
            fix = "write it in the network, such as r:8, or give the tensor's shape by --input"
            raise SizeError(str(error).partition("\n")[0], network=network, fix=fix) from error
        compiled = compile(network, inputs=inputs, values=values)
        print(compiled.plan)
        if self.code:
            print(f"\n{compiled.code}")


def _read_input(text: str) -> tuple[str, tuple[int, ...]]:
    match = re.fullmatch(r"\s*(\w+)\s*=\s*(\d+(?:\s*,\s*\d+)*)\s*", text)
    if match is None:
        fact = f"the input {text!r} is not a name and its shape"
        raise CompileError(fact, fix="--input X=16,64,32,32")
    return match[1], tuple(map(int, match[2].split(",")))


COMMANDS: dict[str, type[Command]] = {
    "compress": Compress,
    "study": StudyNetwork,
    "report": Report,
    "explore": Explore,
    "spectra": ShowSpectra,
    "compare": CompareRewrites,
    "search": SearchTopologies,
    "draw": Draw,
    "rules": ShowRules,
    "plan": ShowPlan,
}


def run_line(arguments: Sequence[str]) -> None:
    """Run the command that the arguments name. Raises SystemExit for help and wrong arguments, else TnalgebraError."""
    name, *rest = arguments or ["--help"]
    if name in ("-h", "--help"):
        lines = [f"  {command:<10}{_paragraphs(kind)[0]}" for command, kind in COMMANDS.items()]
        print("usage: tnalgebra COMMAND ...\n\nTensor networks for convolutional networks.\n", *lines, sep="\n")
        print("\ntnalgebra COMMAND --help prints the arguments of a command, and an example.")
    elif name == "--version":
        from importlib.metadata import version

        print(version("tnalgebra"))
    elif name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS, n=1)
        fix = f"did you mean {near[0]!r}?" if near else None
        raise DataError(f"tnalgebra has no command {name!r}", known=", ".join(COMMANDS), fix=fix)
    else:
        kind = COMMANDS[name]
        first, *others, example = _paragraphs(kind)
        indented = [textwrap.indent(textwrap.fill(text, 78), "  ") for text in others]
        description = "\n".join([first, *indented, "", example.replace("Example: ", "Example:\n    ")])
        from tyro import cli
        from tyro.conf import FlagCreatePairsOff

        cli(kind, prog=f"tnalgebra {name}", description=description, args=rest, config=(FlagCreatePairsOff,))()


def _paragraphs(kind: type[Command]) -> list[str]:
    """The docstring of a command, each paragraph in one line."""
    return [" ".join(paragraph.split()) for paragraph in (kind.__doc__ or "").split("\n\n")]
