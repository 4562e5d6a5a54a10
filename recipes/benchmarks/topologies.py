"""How many fits does a search for the topology need? And is there a better one than CP, Tucker, train and ring?

    python -m recipes.benchmarks.topologies planted
    python -m recipes.benchmarks.topologies planted --smoke
    python -m recipes.benchmarks.topologies resnet20 --weights W.pth --data DIR

Every row is written as soon as it is finished, and the same command continues where it was
stopped.

- planted: tensors that networks of random cores make, as in the papers on the search for
  structures: rings with permuted modes, trees, and connected graphs. Searched is the one
  with the fewest parameters at an error of 1e-4. The first tensor has the ranks and the
  order of modes of that in the programs of TNLS and TnALE.
- resnet20: every 3x3 kernel but the first. Rings, complete networks and hyperedges of three
  and four cores are compared with the named decompositions at 30 % of the parameters, by
  the error of the output over 1,024 training images.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
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
from recipes.experiment import Row
from recipes.reporting import aligned, check_known, print_settings, write

ERROR = "error 0.0001"
SIZE = 3
"""Of every mode of a planted tensor."""

PUBLISHED = {(0, 3): 3, (0, 5): 2, (1, 2): 2, (1, 4): 2, (2, 3): 4, (4, 5): 3}
"""Two modes -> the rank of their bond, in the data of github.com/ChaoLiAtRIKEN/TnALE and TNLS."""

PEERS = {"tucker2": "Tucker-2", "cp": "CP", "tensor_ring": "ring", "tensor_train": "train"}
"""Name in the catalogue -> in the table."""
SEARCHED = "searched"
"""The contender that a search has chosen."""
FINALISTS = 8
"""Topologies of a kernel that are fitted from all starts: those of the space."""
FIELDS = {
    "planted": ("planted", "order", "trial", "listed", "evaluations", "parameters", "planted_parameters"),
    "resnet20": ("layer", "contender", "topology", "ranks", "parameters", "error"),
}
"""Part -> the fields that each of its rows has."""
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
    layers: tuple[str, ...] = ()
    """of the second part: names of layers, by default all 3x3 kernels but the first"""
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


def cases(config: Config) -> Iterator[tuple[str, str, int, int, dict[tuple[int, int], int]]]:
    """Name, kind, order, number and bonds of each tensor that is planted."""
    kinds = ["ring"] if config.smoke else ["ring", "tree", "graph"]
    orders, trials = ((4,), 1) if config.smoke else (config.orders, config.trials)
    if not config.smoke:
        yield "published ring", "ring", 6, 0, PUBLISHED
    for kind in kinds:
        for order in orders:
            generator = random.Random(f"{config.seed} {kind} {order}")
            for trial in range(trials):
                yield kind, kind, order, trial, draw_bonds(kind, order, generator)


def search_planted(config: Config, store: tn.studies.Store) -> None:
    """A row for each planted tensor."""
    store.settle()
    done = {(row["planted"], row["order"], row["trial"]) for row in store.rows}
    for name, kind, order, trial, bonds in cases(config):
        if (name, order, trial) in done:
            continue
        labels = labels_of_order(order)
        fields: dict[str, Any] = {"bonds": PATTERNS[kind], "groups": tuple(labels.split())}
        space = tn.Space(cores=(order, order), catalogue=False, **fields)
        tensor, parameters = plant(bonds, order, trial)
        start = perf_counter()
        folder = store.folder / f"{name}-{order}-{trial}".replace(" ", "-")
        found: Row = dict.fromkeys(("listed", "evaluations", "parameters"))
        try:
            result = tn.search(tensor, ERROR, space=space, labels=labels, output=folder, seed=config.seed)
        except tn.errors.RankError as error:  # no fit met the error
            print(error)
        else:
            found |= {"listed": result.counts["listed"], "evaluations": result.counts["evaluations"]}
            found["parameters"] = result.best["parameters"]
        row: Row = {
            "planted": name,
            "order": order,
            "trial": trial,
            **found,
            "planted_parameters": parameters,
            **tn.studies.made_with("cpu"),
            "seconds": round(perf_counter() - start, 1),
        }
        store.append(row)
        print(*row.values(), flush=True)


def planted_table(rows: Sequence[Row]) -> tuple[Sequence[str], list[Sequence[str]]]:
    """The heading and the lines of the planted tensors: a line for each kind and order."""
    lines: list[Sequence[str]] = []
    for name, order in dict.fromkeys((row["planted"], row["order"]) for row in rows):
        some = [row for row in rows if (row["planted"], row["order"]) == (name, order)]
        reached = [row for row in some if row["parameters"] is not None]
        counts = [row["evaluations"] for row in reached]
        met = sum(row["parameters"] <= row["planted_parameters"] for row in reached)
        mean = f"{sum(counts) / len(counts):.1f}" if counts else ""
        lines.append(
            (
                name,
                str(order),
                f"{reached[0]['listed']:,}" if reached else "",
                f"{met} of {len(some)}",
                mean if len(set(counts)) <= 1 else f"{mean} (at most {max(counts)})",
                least_of_a_pass(name.split()[-1], order),
                f"{sum(row['seconds'] for row in some) / len(some):.1f}",
            )
        )
    heading = ("planted", "order", "topologies", "met, not larger", "evaluations", "one round of TnALE", "seconds")
    return heading, lines


class Network:
    """The network whose kernels are searched; it and the images are loaded where a row is missing."""

    def __init__(self, config: Config) -> None:
        self._config = config

    @cached_property
    def _training(self) -> tn.model.Images:
        return self._config.images("train")

    @cached_property
    def model(self) -> torch.nn.Module:
        """With its weights."""
        return self._config.network(self._training)

    def metric(self, layer: str) -> tn.Metric:
        """The norm of a layer's output over training images."""
        images = self._config.calibration(self._training)
        return tn.input_metrics(self.model, images, layers=[layer], batch_size=self._config.batch_size)[layer]


def search_network(config: Config, store: tn.studies.Store) -> None:
    """A row for each kernel and contender."""
    done = {(row["layer"], row["contender"]) for row in store.rows}
    network = Network(config)
    outline = tn.command.build_model(config.model)
    listed = [name for name, layer in outline.named_modules() if isinstance(layer, torch.nn.Conv2d)][1:]
    check_known("layer", config.layers, listed)
    for name in config.layers or listed:
        todo = [one for one in (*PEERS, SEARCHED) if (name, one) not in done]
        if not todo:
            continue
        store.settle(weights=tn.studies.digest_state(network.model))
        weight, metric = network.model.get_submodule(name).weight, network.metric(name)
        for contender in todo:
            start = perf_counter()
            if contender == SEARCHED:
                choices: dict[str, Any] = {"space": SPACE, "metric": metric, "seed": config.seed}
                folder = store.folder / name
                best = tn.search(weight, config.size, finalists=FINALISTS, output=folder, **choices).best
                found = best["topology"], best["ranks"]["kernel"], best["parameters"], best["error"]
            else:
                (row,) = tn.compare(
                    weight, contender, config.size, metric=metric, seed=config.seed, progress=False
                ).rows
                if row.fit is None:
                    raise tn.errors.RankError(f"{contender} of {name}: {row.reason}", fix="a larger --size")
                ranks = dict(row.fit.trace.steps[-1].change.ranks)
                found = contender, ranks, row.fit.parameters, row.fit.output_error
            store.append(
                {
                    **dict(zip(FIELDS["resnet20"], (name, contender, *found), strict=True)),
                    **tn.studies.made_with("cpu"),
                    "seconds": round(perf_counter() - start, 1),
                }
            )
            print(name, contender, *found, flush=True)


def layers_table(rows: Sequence[Row]) -> tuple[Sequence[str], list[Sequence[str]]]:
    """The heading and the lines of the layers that have all rows: the errors, and the best topology."""
    lines: list[Sequence[str]] = []
    for name in sorted({row["layer"] for row in rows}):
        each = {row["contender"]: row for row in rows if row["layer"] == name}
        if {*each} == {*PEERS, SEARCHED}:
            errors = [f"{each[contender]['error']:.4f}" for contender in (*PEERS, SEARCHED)]
            lines.append((name, *errors, f"`{each[SEARCHED]['topology'].split('=>')[-1].strip()}`"))
    return ("layer", *PEERS.values(), "searched", "topology"), lines


def main(config: Config) -> None:
    """Run one part."""
    print_settings(config)
    is_planted = config.part == "planted"
    names = ("part", "seed") if is_planted else ("part", "model", "data", "calibrate", "size", "mean", "std", "seed")
    folder = config.output / config.part
    shared = {name: getattr(config, name) for name in names}
    store = tn.studies.Store(folder, shared, fields=FIELDS[config.part])
    with store.opened():
        (search_planted if is_planted else search_network)(config, store)
    heading, lines = (planted_table if is_planted else layers_table)(store.rows)
    table = aligned([heading, *lines])
    write(folder / "table.txt", f"{table}\n")
    print(f"\n{table}")


if __name__ == "__main__":
    run_command(Config, main, description=__doc__)
