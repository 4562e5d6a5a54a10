"""The commands of `tnalgebra` that take a text or folders: their arguments, their help, and what each of them does.

A command imports what it works with when it is called, so that its help is quick.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from ..errors import CompileError, NotationError, SizeError, StudyError
from ..networks import parse, size_of, tensors_of, with_sizes
from .build import require_packages


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
