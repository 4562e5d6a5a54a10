"""Time what depends on the number of nodes: equality of networks, plans of long chains; and windows as matrices.

    python -m recipes.benchmarks.large_networks
    python -m recipes.benchmarks.large_networks --smoke
    python -m recipes.benchmarks.large_networks --nodes 300 --sites 40 --positions 128 512

There are three kinds of cells, and all contenders of a cell take turns:
- `isomorphic`: a network and the same one with its nodes in another order;
- `plan`: `tn.compile`, from a network to its plan, and the greedy search of opt_einsum for the order alone;
- `attention`: attention with relative positions, (Q K^T o T) V with a Toeplitz matrix T of one vector for each head,
  and the same by hand, where T is made at every call or beforehand.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import opt_einsum
import torch
from torch import Tensor

import tnalgebra as tn
from recipes.benchmarks.report import Row
from recipes.benchmarks.runner import INTERRUPTED, Benchmark, Contender, Settings, run
from recipes.command import run_command
from recipes.reporting import aligned

HEADS, WIDTH = 4, 32
"""Heads of the attention, and the size of each."""


@dataclass(frozen=True, kw_only=True)
class Config(Settings):
    """Time equality and plans of large networks, and attention with relative positions."""

    rounds: int = 5
    """turns of each contender"""
    nodes: int = 1000
    """nodes of the networks that are compared"""
    sites: int = 80
    """matrices of a chain or ring and cores of a tree that are planned; a sandwich has a quarter as many sites"""
    positions: tuple[int, ...] = (64, 256)
    """lengths of the sequences of the attention"""
    output: Path = Path("runs/benchmark-large-networks")
    """folder for the rows (results.jsonl) and the table; a cell that it has is not timed again"""


class Cell(NamedTuple):
    kind: str
    network: str
    size: int


def chain(count: int) -> str:
    return " ".join(f"A{n}[b{n}:{2 + n % 7} b{n + 1}:{2 + (n + 1) % 7}]" for n in range(count))


def ring(count: int) -> str:
    return " ".join(f"A{n}[b{n}:3 b{(n + 1) % count}]" for n in range(count))


def tree(count: int) -> str:
    labels = ([f"e{child}:2" for child in (n, 2 * n + 1, 2 * n + 2) if child < count] for n in range(count))
    return " ".join(f"A{n}[{' '.join(words)}]" for n, words in enumerate(labels))


def copies(count: int) -> str:
    return " ".join(f"Copy[b{n}:3 b{(n + 1) % count}]" for n in range(count)) + " -> []"


def pairs(count: int) -> str:
    return " ".join(f"A{n}[x{n}:2 y{n}:3] B{n}[y{n} x{n}]" for n in range(count // 2))


def sandwich(count: int) -> str:
    """A train, an operator and a train, so that all labels are summed."""
    rows = (("A", "a:4", "p"), ("W", "w:3", "pq"), ("B", "b:4", "q"))
    cores = []
    for n in range(count // 4):
        for name, bond, legs in rows:
            label, size = bond.split(":")
            bonds = [f"{label}{place}:{size}" for place in (n, n + 1) if 0 < place < count // 4]
            cores.append(f"{name}{n}[{' '.join([*(f'{leg}{n}:2' for leg in legs), *bonds])}]")
    return " ".join(cores)


NETWORKS: dict[str, Callable[[int], str]] = {one.__name__: one for one in (chain, ring, tree, copies, pairs, sandwich)}


class Problem(NamedTuple):
    cell: Cell
    network: tn.Network
    other: tn.Network
    values: dict[str, Tensor]
    inputs: tuple[str, ...]


class LargeNetworks(Benchmark[Config, Cell, Problem]):
    name = "large networks"
    warmup = 1

    @staticmethod
    def smaller(config: Config) -> Config:
        return dataclasses.replace(config, nodes=20, sites=16, positions=(8,), rounds=1)

    def cells(self) -> list[Cell]:
        config = self.config
        compared = [Cell("isomorphic", name, config.nodes) for name in ("chain", "ring", "copies", "tree", "pairs")]
        planned = [Cell("plan", name, config.sites) for name in ("chain", "ring", "tree", "sandwich")]
        return [*compared, *planned, *(Cell("attention", "attention", size) for size in config.positions)]

    def contenders(self, cell: Cell) -> list[str]:
        peers = {"isomorphic": (), "plan": ("opt_einsum",), "attention": ("ours frozen", "by hand", "by hand, T kept")}
        return ["ours", "ours again", *peers[cell.kind]]

    def problem(self, cell: Cell) -> Problem:
        """The network of a cell, its nodes in another order, and values of all tensors."""
        if cell.kind == "attention":
            heads = f"Q[h:{HEADS} i:{cell.size} m:{WIDTH}] K[h j m] V[h j d:{WIDTH}] c[h r:{2 * cell.size - 1}]"
            network = tn.parse(f"{heads} Conv[i j r | padding={cell.size - 1}] -> [h i d]")
            inputs: tuple[str, ...] = ("Q", "K", "V")
        else:
            network = tn.parse(NETWORKS[cell.network](cell.size))
            inputs = ("A0",)
        generator = random.Random(self.config.seed)
        nodes = generator.sample(network.nodes, len(network.nodes))
        other = tn.Network(nodes, network.output, network.sizes)
        torch.manual_seed(self.config.seed)
        values = {name: torch.randn(shape) for name, shape in tn.networks.shapes(network).items()}
        return Problem(cell, network, other, values, inputs)

    def contender(self, name: str, problem: Problem) -> Contender:
        cell, network = problem.cell, problem.network
        if cell.kind == "isomorphic":
            return Contender(lambda _: tn.networks.isomorphic(network, problem.other))
        if name == "opt_einsum":
            equation, shapes = _equation(network)
            return Contender(lambda _: opt_einsum.contract_path(equation, *shapes, shapes=True, optimize="greedy"))
        inputs = {one: tuple(problem.values[one].shape) for one in problem.inputs}
        weights = {one: value for one, value in problem.values.items() if one not in inputs}
        if cell.kind == "plan":
            return Contender(lambda _: tn.compile(network, inputs=inputs, values=weights))
        taken = [problem.values[one] for one in problem.inputs]
        if name.startswith("ours"):
            module = tn.compile(network, inputs=inputs, values=weights)
            return Contender(_without_gradients(module.freeze() if name == "ours frozen" else module, taken))
        kept = toeplitz(weights["c"]) if name == "by hand, T kept" else None
        return Contender(_without_gradients(partial(attend, vector=weights["c"], matrix=kept), taken))

    def table(self, rows: Sequence[Row], memory: Sequence[Row]) -> str:
        """A line for each cell and contender, with its ratio to ours."""
        lines = [["kind", "network", "size", "contender", "ms", "ours / contender"]]
        for row in rows:
            ours = row["contenders"]["ours"]["seconds"]
            for name, one in row["contenders"].items():
                facts = [row["kind"], row["network"], str(row["size"]), name]
                lines.append([*facts, f"{1e3 * one['seconds']:.3f}", f"{ours / one['seconds']:.2f}"])
        return aligned(lines, left=4, ruled=False)


def toeplitz(vector: Tensor) -> Tensor:
    """Element [h, i, j] is element i - j of the vector, whose middle is 0."""
    size = (vector.shape[-1] + 1) // 2
    return vector.unfold(-1, size, 1).flip(-1).contiguous()


def attend(q: Tensor, k: Tensor, v: Tensor, *, vector: Tensor, matrix: Tensor | None) -> Tensor:
    return ((q @ k.transpose(-1, -2)) * (toeplitz(vector) if matrix is None else matrix)) @ v


def _without_gradients(function: Callable[..., Any], taken: Sequence[Tensor]) -> Callable[[int], Any]:
    def call(_: int) -> Any:
        with torch.no_grad():
            return function(*taken)

    return call


def _equation(network: tn.Network) -> tuple[str, list[tuple[int, ...]]]:
    """The network as opt_einsum reads it."""
    letters = {label: opt_einsum.get_symbol(number) for number, label in enumerate(network.sizes)}
    words = ["".join(letters[label] for label in labels) for labels in [n.labels for n in network.nodes]]
    shapes = [tn.networks.shape_of(network, node.labels) for node in network.nodes]
    return f"{','.join(words)}->{''.join(letters[label] for label in network.output)}", shapes


main = partial(run, LargeNetworks)


if __name__ == "__main__":
    run_command(Config, main, description=__doc__, interrupted=INTERRUPTED)
