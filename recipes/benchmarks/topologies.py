"""How many fits does a search for the topology need? And is there a better one than CP, Tucker, train and ring?

    python -m recipes.benchmarks.topologies planted
    python -m recipes.benchmarks.topologies planted --smoke
    python -m recipes.benchmarks.topologies resnet20 --weights W.pth --data DIR

- planted: tensors that networks of random cores make, as in the papers on the search for
  structures: rings with permuted modes, trees, and connected graphs. Searched is the one
  with the fewest parameters at an error of 1e-4. The first tensor has the ranks and the
  order of modes of that in the programs of TNLS and TnALE.
- resnet20: every 3x3 kernel but the first. Rings, complete networks and hyperedges of three
  and four cores are compared with the named decompositions at 30 % of the parameters, by
  the error of the output over 1,024 training images.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import prod
from pathlib import Path
from time import perf_counter
from typing import Annotated, Any, Literal

import networkx
import torch
from tyro.conf import Positional

import tnalgebra as tn
from recipes.command import run_command
from recipes.reporting import aligned, print_settings, write

ERROR = "error 0.0001"
SIZE = 3
"""Of every mode of a planted tensor."""

PUBLISHED = {(0, 3): 3, (0, 5): 2, (1, 2): 2, (1, 4): 2, (2, 3): 4, (4, 5): 3}
"""Two modes -> the rank of their bond, in the data of github.com/ChaoLiAtRIKEN/TnALE and TNLS."""

PEERS = ("tucker2", "cp", "tensor_ring", "tensor_train")
PATTERNS = {"ring": "ring", "tree": "tree", "graph": "complete"}
"""What is planted -> what is searched."""

SPACE = tn.Space(
    cores=(3, 4),
    bonds=("ring", "complete", "hyperedge"),
    groups=("out", "in", "kh", "kw", "kh kw"),
    catalogue=False,
)


@dataclass(frozen=True, kw_only=True)
class Config(tn.command.TestSettings):
    """Settings; what is printed first is what is used."""

    part: Annotated[Positional[Literal["planted", "resnet20"]], ...] = "planted"
    """which of the two"""
    model: str = "resnet20"
    """the network of the second part"""
    orders: tuple[int, ...] = (4, 5, 6)
    """numbers of modes of planted tensors"""
    trials: int = 3
    """planted tensors of each kind and order"""
    size: str = "parameters 0.3"
    """of each kernel"""
    smoke: bool = False
    """plant one small tensor of each kind, to see that everything works"""
    output: Path = Path("runs/benchmark-topologies")
    """folder for the rows and the tables; the searches continue where they were stopped"""


def draw_bonds(kind: str, order: int, generator: random.Random) -> dict[tuple[int, int], int]:
    """Random bonds of a kind between so many cores, with random ranks."""
    cores = generator.sample(range(order), order)
    if kind == "ring":
        pairs = list(zip(cores, [*cores[1:], cores[0]], strict=True))
    else:
        tree = networkx.from_prufer_sequence([generator.randrange(order) for _ in range(order - 2)])
        others = [pair for pair in combinations(range(order), 2) if not tree.has_edge(*pair)]
        pairs = [*tree.edges, *(generator.sample(others, 2) if kind == "graph" else [])]
    most = 2 if kind == "graph" else 4
    return {(min(pair), max(pair)): generator.randint(2, most) for pair in pairs}


def plant(bonds: Mapping[tuple[int, int], int], order: int, seed: int) -> tuple[torch.Tensor, int]:
    """The value of a network of random cores, and its parameters."""
    generator = torch.Generator().manual_seed(seed)
    nodes, values = [], {}
    for core in range(order):
        ends = {f"b{one}{two}": rank for (one, two), rank in bonds.items() if core in (one, two)}
        nodes.append(f"T{core}[{' '.join([f'm{core}', *ends])}]")
        values[f"T{core}"] = torch.randn(SIZE, *ends.values(), generator=generator, dtype=torch.float64)
    network = tn.parse(f"{' '.join(nodes)} -> [{labels_of_order(order)}]")
    return tn.evaluate(network, values), sum(prod(value.shape) for value in values.values())


def labels_of_order(order: int) -> str:
    return " ".join(f"m{mode}" for mode in range(order))


def least_of_a_pass(kind: str, order: int) -> str:
    """The evaluations of one pass of TnALE over the ranks of a ring and the swaps of its modes, with radius 1."""
    return str(3 * (2 * order - 1) + order * (order - 1) // 2 + 1) if kind == "ring" else ""


def search_planted(config: Config) -> str:
    """The table of planted tensors."""
    kinds = ["ring"] if config.smoke else ["ring", "tree", "graph"]
    orders, trials = ((4,), 1) if config.smoke else (config.orders, config.trials)
    cases = [] if config.smoke else [("published", "ring", 6, [PUBLISHED])]
    for kind in kinds:
        for order in orders:
            generator = random.Random(f"{config.seed} {kind} {order}")
            cases.append((kind, kind, order, [draw_bonds(kind, order, generator) for _ in range(trials)]))
    rows: list[Sequence[str]] = []
    for name, kind, order, planted in cases:
        labels = labels_of_order(order)
        fields: dict[str, Any] = {"bonds": PATTERNS[kind], "groups": tuple(labels.split())}
        space = tn.Space(cores=(order, order), catalogue=False, **fields)
        start = perf_counter()
        counts, fitting = [], 0
        for seed, bonds in enumerate(planted):
            tensor, parameters = plant(bonds, order, seed)
            folder = config.output / f"{name}-{order}-{seed}"
            result = tn.search(tensor, ERROR, space=space, labels=labels, output=folder, seed=config.seed)
            counts.append(result.counts["evaluations"])
            fitting += result.best["parameters"] <= parameters
        seconds = (perf_counter() - start) / len(planted)
        listed = f"{result.counts['listed']:,}"
        means = f"{sum(counts) / len(counts):.1f} (at most {max(counts)})"
        rows.append(
            (
                name,
                str(order),
                listed,
                f"{fitting} of {len(planted)}",
                means,
                least_of_a_pass(kind, order),
                f"{seconds:.1f}",
            )
        )
        print(*rows[-1], flush=True)
    heading = ("planted", "order", "listed", "met, not larger", "evaluations", "a pass of TnALE", "seconds")
    return aligned([heading, *rows])


def search_network(config: Config) -> str:
    """The table of the kernels of a network."""
    training = config.images("train")
    model = config.network(training)
    names = [name for name, layer in model.named_modules() if isinstance(layer, torch.nn.Conv2d)][1:]
    metrics = tn.input_metrics(model, config.calibration(training), layers=names, batch_size=config.batch_size)
    rows: list[Sequence[str]] = []
    for name in names:
        weight = model.get_submodule(name).weight
        path = config.output / f"{name}.json"
        if not path.exists():
            compared = tn.compare(weight, PEERS, config.size, metric=metrics[name], progress=False)
            result = tn.search(
                weight,
                config.size,
                space=SPACE,
                metric=metrics[name],
                finalists=len(SPACE.topologies("out in kh kw")),
                output=config.output / name,
            )
            best: dict[str, Any] = {"topology": result.best["topology"], "error": result.best["error"]}
            peers = {row.name: None if row.fit is None else row.fit.output_error for row in compared.rows}
            write(path, json.dumps({"best": best, "peers": peers}))
        row = json.loads(path.read_text("utf-8"))
        errors = [row["peers"][peer] for peer in PEERS]
        topology = row["best"]["topology"].split("=>")[1].strip()
        rows.append((name, *(f"{error:.4f}" for error in errors), f"{row['best']['error']:.4f}", topology))
        print(*rows[-1], flush=True)
    return aligned([("layer", *PEERS, "best", "topology"), *rows])


def main(config: Config) -> None:
    """Run one part."""
    print_settings(config)
    table = search_planted(config) if config.part == "planted" else search_network(config)
    write(config.output / f"{config.part}.txt", f"{table}\n")
    print(f"\n{table}")


if __name__ == "__main__":
    run_command(Config, main, description=__doc__)
