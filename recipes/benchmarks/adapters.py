"""Time adapters beside those of `peft`: LoRA, LoHa and LoKr with the same cores, forward and training.

    python -m recipes.benchmarks.adapters --threads 1
    python -m recipes.benchmarks.adapters --smoke

Each cell is one layer with one adapter. Ours and that of `peft` get the same numbers, and their outputs and the
gradients of all cores are compared before they take turns. "dense" is the layer without an adapter, which has no
gradient but that of its input. Without `peft` installed (the extra `bench`) the cells have ours alone.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from math import isqrt
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn

import tnalgebra as tn
from recipes.benchmarks.report import AGAIN, Row
from recipes.benchmarks.runner import INTERRUPTED, Benchmark, Call, Contender, NetworkSettings, Pass, run
from recipes.command import run_command
from recipes.reporting import aligned


class Layer(NamedTuple):
    make: Callable[[], nn.Module]
    shape: tuple[int, ...]


LAYERS = {
    "linear 768": Layer(lambda: nn.Linear(768, 768), (197, 768)),
    "linear 768, 8 rows": Layer(lambda: nn.Linear(768, 768), (8, 768)),
    "linear 384 to 1536": Layer(lambda: nn.Linear(384, 1536), (2, 197, 384)),
    "conv 96": Layer(lambda: nn.Conv2d(96, 96, 3, padding=1), (4, 96, 28, 28)),
    "conv 128, stride 2": Layer(lambda: nn.Conv2d(128, 256, 3, stride=2, padding=1), (2, 128, 28, 28)),
    "embedding 5000": Layer(lambda: nn.Embedding(5000, 256), (16, 64)),
}
SMALL = {
    "linear": Layer(lambda: nn.Linear(24, 24), (5, 24)),
    "conv": Layer(lambda: nn.Conv2d(8, 8, 3, padding=1), (2, 8, 6, 6)),
    "embedding": Layer(lambda: nn.Embedding(24, 16), (3, 4)),
}


@dataclass(frozen=True, kw_only=True)
class Config(NetworkSettings):
    """Time adapters beside those of peft."""

    rounds: int = 41
    """turns of each contender"""
    rank: int = 4
    """of all adapters"""
    adapters: tuple[str, ...] = ("LoRA", "LoHa", "LoKr")
    """their names"""
    output: Path = Path("runs/benchmark-adapters")
    """folder for the rows (results.jsonl) and the table; a cell that it has is not timed again"""


class Cell(NamedTuple):
    layer: str
    adapter: str
    goes: Pass


class Problem(NamedTuple):
    cell: Cell
    dense: nn.Module
    ours: nn.Module
    adapters: tn.model.Adapters
    x: Tensor


class AdapterBenchmark(Benchmark[Config, Cell, Problem]):
    name = "adapters"
    packages: ClassVar = {"peft": "peft"}
    tolerance = 1e-4
    """Of float32: gradients are sums over thousands of positions."""

    @staticmethod
    def smaller(config: Config) -> Config:
        return dataclasses.replace(config, rounds=1, rank=1)

    @property
    def layers(self) -> dict[str, Layer]:
        return SMALL if self.config.smoke else LAYERS

    def cells(self) -> list[Cell]:
        pairs = [
            (layer, name)
            for layer in self.layers
            for name in self.config.adapters
            if name == "LoRA" or not layer.startswith("embedding")  # peft has no other for embeddings
        ]
        return [Cell(*pair, goes) for pair in pairs for goes in self.config.passes]

    def contenders(self, cell: Cell) -> list[str]:
        return ["ours", "ours" + AGAIN, *(["peft"] if find_spec("peft") else []), "dense"]

    def alike(self, name: str) -> str:
        return "dense" if name == "dense" else "adapted"

    def problem(self, cell: Cell) -> Problem:
        """The layer, and the same with an adapter of random cores."""
        torch.manual_seed(self.config.seed)
        make, shape = self.layers[cell.layer]
        dense = nn.Sequential(make())
        x = torch.randint(0, 20, shape) if cell.layer.startswith("embedding") else torch.randn(shape)
        if x.is_floating_point() and cell.goes == "training":
            x.requires_grad_()
        choices: dict[str, Any] = {"size": self.config.rank}
        if cell.adapter == "LoKr":  # the factors that peft chooses
            out, in_, *_ = dense[0].get_parameter("weight").shape
            choices["sizes"] = {"o1": _least_factor(out), "i1": _least_factor(in_)}
        patterns = {"0": (cell.adapter, choices)}
        ours, adapters = tn.adapt(dense, patterns, scale=2.0, example=x.detach(), inplace=False)
        for core in adapters.parameters():
            nn.init.normal_(core, std=0.2)
        return Problem(cell, dense, ours, adapters, x)

    def contender(self, name: str, problem: Problem) -> Contender:
        if name == "dense":
            cores: Sequence[Tensor] = ()
            module = problem.dense.requires_grad_(False)
        elif name == "peft":
            module, cores = _of_peft(problem, self.config.rank)
        else:
            module, cores = problem.ours, problem.adapters.parameters()
        return Contender(_call(module, problem.x, cores, problem.cell.goes))

    def table(self, rows: Sequence[Row], memory: Sequence[Row]) -> str:
        """A line for each cell: milliseconds of ours, and the ratios of fastest turns."""
        lines = [["layer", "adapter", "pass", "ours ms", "ours / peft", "ours again / ours", "ours / dense"]]
        for row in rows:
            least = {name: min(one["times"]) for name, one in row["contenders"].items()}
            others = [("ours", "peft"), ("ours" + AGAIN, "ours"), ("ours", "dense")]
            ratios = [f"{least[one] / least[two]:.3f}" if two in least else "" for one, two in others]
            lines.append([row["layer"], row["adapter"], row["pass"], f"{1e3 * least['ours']:.3f}", *ratios])
        return aligned(lines, left=3, ruled=False)


def _least_factor(size: int) -> int:
    """The lesser of the two factors of a size that are as equal as they can be."""
    return max(factor for factor in range(1, isqrt(size) + 1) if size % factor == 0)


def _call(module: nn.Module, x: Tensor, cores: Sequence[Tensor], goes: Pass) -> Call:
    """The output; in training also the gradients of the cores, and of the input where it has one."""

    @torch.no_grad()
    def forward(_: int) -> tuple[Tensor, ...]:
        return (module(x),)

    def training(_: int) -> tuple[Tensor, ...]:
        output: Tensor = module(x)
        wanted = [*([x] if x.requires_grad else []), *cores]
        if not wanted:
            return (output,)
        gradients = torch.autograd.grad(output, wanted, torch.ones_like(output))
        # peft has the matrices of an embedding transposed, and windows of a core flattened
        return (output, *(gradient.norm() for gradient in gradients))

    return forward if goes == "forward" else training


def _of_peft(problem: Problem, rank: int) -> tuple[nn.Module, list[Tensor]]:
    """The same adapter made by peft, with the same numbers; its cores in the order of ours."""
    import peft

    adapter = problem.cell.adapter
    kinds = {"LoRA": peft.LoraConfig, "LoHa": peft.LoHaConfig, "LoKr": peft.LoKrConfig}
    alpha = {"lora_alpha" if adapter == "LoRA" else "alpha": 2 * rank}
    config = kinds[adapter](r=rank, target_modules=["0"], **alpha)
    module = peft.get_peft_model(copy.deepcopy(problem.dense), config)
    layer: Any = module.base_model.model[0]
    if adapter == "LoRA":
        embedding = isinstance(problem.dense[0], nn.Embedding)  # type: ignore[index]
        cores = {"A": layer.lora_A, "B": layer.lora_B}
        theirs = {name: one["default"].weight for name, one in cores.items() if len(one)}
        if embedding:
            theirs = {"B": layer.lora_embedding_A["default"], "A": layer.lora_embedding_B["default"]}
    elif adapter == "LoHa":
        names = {"B1": "hada_w1_a", "A1": "hada_w1_b", "B2": "hada_w2_a", "A2": "hada_w2_b"}
        theirs = {name: getattr(layer, key)["default"] for name, key in names.items()}
    else:
        names = {"C": "lokr_w1", "B": "lokr_w2_a", "A": "lokr_w2_b"}
        theirs = {name: getattr(layer, key)["default"] for name, key in names.items()}
    ours: Any = problem.ours[0].adapters["default"]  # type: ignore[index]
    tensors = ours.kernel_tensors()
    with torch.no_grad():
        for name, tensor in tensors.items():
            value = tensor.T if isinstance(problem.dense[0], nn.Embedding) else tensor  # type: ignore[index]
            theirs[name].copy_(value.reshape(theirs[name].shape))
    return module, [theirs[name] for name in tensors]


main = partial(run, AdapterBenchmark)


if __name__ == "__main__":
    run_command(Config, main, description=__doc__, interrupted=INTERRUPTED)
