"""The tables over all networks of the paper, those of topologies, and that of the weights that are shipped."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
from safetensors import safe_open

import tnalgebra as tn
from docs.experiment_block import images_text, listed, made_text
from recipes import paper, spectra
from recipes.benchmarks import topologies
from recipes.claims.paper import AT_MOST, DRAWS, NETWORKS, claims_table, read_networks
from recipes.experiment import Row
from recipes.kept import Kept
from recipes.reporting import markdown
from recipes.retrain import report as retrain

DOCS = Path(__file__).parent
KEPT = DOCS / "results"
NOT_RUN = "not run"


def sources_text(kept: Mapping[str, Kept], name: str) -> str:
    """For each network that has this experiment: its images, with what its rows were made, the commands; as a list."""
    lines = []
    for network in NETWORKS:
        one = kept.get(f"{network}/{name}")
        if one is not None:
            note = f" {one.note.strip('*')}" if one.note else ""
            commands = " and ".join(f"`{command}`" for command in one.commands)
            lines.append(f"- {network}: {images_text(one.rows)} {made_text(one)}{note} By {commands}.")
    return "\n".join(lines)


def networks_table(kept: Mapping[str, Kept]) -> str:
    """What each network is: its size, its accuracy, and with what its rows were made."""
    lines = []
    for network in NETWORKS:
        rows = _rows(kept, network, "cuts") or _rows(kept, network, "layers")
        every = [row for name, one in kept.items() if name.startswith(f"{network}/") for row in one.rows]
        trained = _rows(kept, network, "training")
        model, data = paper.NETWORKS[network][:2]
        built = tn.command.build_model(model, classes=100 if data == "cifar100" else 10, channels=3, seed=0)
        parameters = f"{sum(parameter.numel() for parameter in built.parameters()):,}"
        epochs = f"{len(trained)} epochs, here" if trained else "published weights" if model == "resnet20" else NOT_RUN
        accuracy = f"{100 * rows[0]['accuracy']:.2f}" if rows else NOT_RUN
        made = f"{listed(every, 'machine')}, torch {listed(every, 'torch')}"
        lines.append([network, parameters, epochs, accuracy, f"{rows[0]['images']:,}" if rows else "", made])
    return markdown(["network", "parameters", "training", "top-1, %", "test images", "rows made on"], lines)


def spectra_table(kept: Mapping[str, Kept]) -> str:
    """The mean of S / ln r across each cut, trained and of fresh weights, and how it depends on depth."""
    cells: dict[str, dict[str, str]] = {}
    depths: dict[str, str] = {}
    for network in NETWORKS:
        rows = _rows(kept, network, "spectra")
        if not rows:
            depths[network] = NOT_RUN
            continue
        some = spectra.distinct(pd.DataFrame(rows)).assign(
            fresh=lambda some: some["normalised_entropy"] - some["normalised_difference"]
        )
        for cut, means in some.groupby("cut", sort=False)[["normalised_entropy", "fresh"]].mean().iterrows():
            cells.setdefault(str(cut), {})[network] = "{:.3f} ({:.3f})".format(*means)
        depth = spectra.depths_of(some, "normalised_difference", DRAWS).mean
        depths[network] = depth.interval if depth.why is None else depth.why
    cuts = sorted(cells, key=lambda cut: cut == spectra.MATRIX)
    lines = [[network, *(cells[cut].get(network, "") for cut in cuts), depths[network]] for network in NETWORKS]
    heads = [f"`{cut}`".replace("|", r"\|") for cut in cuts]
    return markdown(["network", *heads, "depth and change"], lines)


def changes_table(kept: Mapping[str, Kept], name: str) -> str:
    """A line for each rewrite and size, a column for each network.

    A cell has the change of accuracy, the norm lost, and the parameters kept. Sizes that leave the same network share a
    line, as of three singular values a quarter and an eighth are both one.
    """
    settings: dict[tuple[str, str], dict[str, str]] = {}
    heads = []
    for network in NETWORKS:
        rows = _rows(kept, network, name)
        heads.append(f"{network}, {100 * rows[0]['accuracy']:.2f} %" if rows else f"{network}, {NOT_RUN}")
        for row in filter(tn.studies.touched, rows):
            size = f"keep {row['keep']:g}" if row["keep"] is not None else row["ranks"]
            numbers = f"{row['mean_squared_relative_error']:.3f}, {row['parameters_kept']:.2f}"
            cell = f"{100 * row['accuracy_change']:+.2f} ({numbers})"
            settings.setdefault((row["rewrite"], size), {})[network] = cell
    lines: list[tuple[str, list[str], dict[str, str]]] = []
    for (rewrite, size), cells in settings.items():
        for other, sizes, known in lines:
            if other == rewrite and all(known.get(network, cell) == cell for network, cell in cells.items()):
                sizes.append(size)
                known.update(cells)
                break
        else:
            lines.append((rewrite, [size], dict(cells)))
    table = []
    for rewrite, sizes, cells in lines:
        named = [f"`{rewrite}`".replace("|", r"\|"), " and ".join(sizes).replace("and keep", "and")]
        table.append([*named, *(cells.get(network, NOT_RUN) for network in NETWORKS)])
    return markdown(["rewrite", "size", *heads], table, left=2)


def layers_table(kept: Mapping[str, Kept]) -> str:
    """Of the cuts of one layer, the part that costs at most a point, by the squared norm that is lost."""
    bands: dict[tuple[float, float], dict[str, str]] = {}
    for network in NETWORKS:
        claims = _claims(kept.get(f"{network}/layers"))
        for band in claims.bands["relative_error"] if claims is not None else ():
            interval = "" if math.isnan(band.low) else f" [{100 * band.low:.0f}, {100 * band.high:.0f}]"
            text = f"{100 * band.part:.0f}{interval} of {band.rows}"
            bands.setdefault((band.least, min(band.most, 1.0)), {})[network] = text
    lines = [
        [f"{least**2:.2g} to {most**2:.2g}", *(cells.get(network, "") for network in NETWORKS)]
        for (least, most), cells in sorted(bands.items())
    ]
    heads = [network if _rows(kept, network, "layers") else f"{network}, {NOT_RUN}" for network in NETWORKS]
    return markdown(["squared norm lost", *heads], lines)


def norms_table(kept: Mapping[str, Kept]) -> str:
    """Rank correlations of the loss of accuracy, and of depth, on each network."""
    lines = [[f"{text}{words}"] for words in ERRORS.values() for text in CORRELATED]
    for network in NETWORKS:
        claims = _claims(kept.get(f"{network}/layers"))
        values: list[tn.studies.Correlation | None] = []
        for error in ERRORS:
            norm = None if claims is None else claims.norms["each"].get(error)
            depth = None if claims is None else {**claims.depth}.get(error)
            values += [norm and norm.mean_within, norm and norm.across, depth and depth.mean]
        for line, value in zip(lines, values, strict=True):
            line.append(NOT_RUN if value is None else value.interval if value.why is None else "not defined")
    return markdown(["Spearman's correlation, and its interval over layers", *NETWORKS], lines)


ERRORS = {"relative_error": "the kernel", "output_error": "the layer's output"}
CORRELATED = (
    "loss of accuracy, and error within a cut, of ",
    "loss of accuracy, and error across all cuts, of ",
    "depth, and the largest cut that costs at most a point, by the error of ",
)


@cache
def _claims(kept: Kept | None) -> tn.studies.Claims | None:
    return None if kept is None else tn.studies.claims_of(kept.rows, at_most=AT_MOST, draws=DRAWS)


def _rows(kept: Mapping[str, Kept], network: str, experiment: str) -> list[Row]:
    one = kept.get(f"{network}/{experiment}")
    return one.rows if one is not None else []


def recovery_table(kept: Mapping[str, Kept]) -> str:
    """A line for each network and truncation: the accuracies before, truncated and retrained, and the control's."""
    lines = []
    for network in NETWORKS:
        experiments = [one.rows for name, one in kept.items() if name.startswith(f"{network}/retrain")]
        lines += [[network, *line] for rows in experiments for line in _recovery_lines(rows)]
        lines += [] if experiments else [[network, NOT_RUN, *[""] * 6]]
    heads = ["network", "truncation", "before", "truncated", "kernels trained", "factors trained", "control", "seeds"]
    return markdown(heads, lines, left=2)


def _recovery_lines(rows: Sequence[Row]) -> Iterator[list[str]]:
    before = next(row["accuracy"] for row in rows if row["way"] is None)
    claims = retrain.claims(rows)
    for text in dict.fromkeys(claim.truncation for claim in claims):
        some = {claim.way: claim for claim in claims if claim.truncation == text}
        start = next(row["accuracy"] for row in rows if row["truncation"] == text and row["epoch"] == 0)
        cells = []
        for way in ("dense", "factored"):
            claim = some.get(way)
            mark = f" (epoch {claim.epoch})" if claim is not None and claim.recovered else ""
            cells.append("" if claim is None else f"{100 * (before + claim.change):.2f}{mark}")
        controls = [claim.change - claim.to_control for claim in some.values() if claim.to_control is not None]
        cells.append(f"{100 * (before + controls[0]):.2f}" if controls else "")
        seeds = " and ".join(dict.fromkeys(str(claim.of) for claim in some.values()))
        yield [f"`{text}`".replace("|", r"\|"), f"{100 * before:.2f}", f"{100 * start:.2f}", *cells, seeds]


def weights_table(_: Mapping[str, Kept]) -> str:
    """The weights that are shipped, from the files' metadata."""
    lines = []
    for path in sorted((DOCS.parent / "models" / "weights").glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            facts = file.metadata()
        lines.append([path.name, f"{path.stat().st_size:,}", facts["about"], f"`{facts['origin']}`", facts["licence"]])
    return markdown(["file", "bytes", "network and accuracy", "from", "licence"], lines)


def planted_table(kept: Mapping[str, Kept]) -> str:
    """How many fits the search for planted topologies took."""
    return _topologies(kept, "topologies/planted", topologies.planted_table, left=1)


def searched_table(kept: Mapping[str, Kept]) -> str:
    """The errors of the layers of ResNet-20 in named decompositions, and in the topology that a search has chosen."""
    return _topologies(kept, "topologies/resnet20", topologies.layers_table, left=7)


def _topologies(kept: Mapping[str, Kept], name: str, table: Callable[..., Any], *, left: int) -> str:
    one = kept[name]
    return "\n\n".join([markdown(*table(one.rows), left=left), made_text(one)])


SOURCES = dict.fromkeys(("networks", "weights", "claims", "norms", "recovery", "planted", "searched"), "")
"""The tables whose rows are those of other tables, which say where they are from."""
ACROSS: dict[str, Callable[[Mapping[str, Kept]], str]] = {
    "networks": networks_table,
    "spectra": spectra_table,
    "cuts": lambda kept: changes_table(kept, "cuts"),
    "several-cuts": lambda kept: changes_table(kept, "several-cuts"),
    "cp": lambda kept: changes_table(kept, "cp"),
    "layers": layers_table,
    "norms": norms_table,
    "recovery": recovery_table,
    "weights": weights_table,
    "planted": planted_table,
    "searched": searched_table,
    "claims": lambda kept: claims_table(read_networks(KEPT)),
}
"""The name of a table over all networks of the paper -> how it is made."""
