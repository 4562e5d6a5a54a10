"""The figures of a study, drawn from the rows there are, each as PNG and SVG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .bipartition import parse_bipartition
from .decompositions import cut_sequence
from .files import write_whole
from .network import Network, draw
from .nodes import NamedTensor
from .notation import parse
from .spectrum import Spectra, Spectrum, cut_singular_values
from .study_plan import Layer
from .study_store import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg")


def draw_figures(folder: Path, rows: Sequence[Row], layers: Sequence[Layer], cuts: Sequence[str]) -> list[Path]:
    """Draw what the rows allow: accuracy against norm kept and parameters kept, layers by cuts, spectra, networks.

    Args:
        rows: of the study, the baseline among them.
        layers: the kernels that may be cut.
        cuts: as they stand in the rows; the spectra and networks drawn are those of these cuts.

    Returns:
        The files written; each is written whole or not at all.
    """
    figures: dict[str, Figure] = {}
    together = [row for row in rows if row["scope"] == "all" and row["layers"]]
    baseline = next((row for row in rows if row["rewrite"] == "none"), None)
    if together and baseline is not None:
        figures["accuracy_against_norm"] = _curves(together, baseline, _mean_norm, "mean over layers of the norm kept")
        figures["accuracy_against_parameters"] = _curves(
            together, baseline, lambda row: float(row["parameters_kept"]), "parameters kept, kernels as two factors"
        )
    single = [row for row in rows if row["scope"] in row["layers"]]
    if single:
        figures["layers"] = _heat_map(single, [layer.name for layer in layers], cuts)
    paths = [path for name, figure in figures.items() for path in _stored(figure, folder / name)]
    # these depend on the weights only: once is enough
    if not (folder / "spectra.svg").exists():
        paths += _stored(_spectra(layers, cuts), folder / "spectra")
    if not (folder / "networks.svg").exists():
        paths += _stored(_networks(layers, cuts), folder / "networks")
    return paths


def _stored(figure: Figure, stem: Path) -> list[Path]:
    paths = [stem.with_suffix(suffix) for suffix in SUFFIXES]
    for path in paths:
        write_whole(path, lambda temporary: figure.savefig(temporary, dpi=150))
    return paths


def _figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _mean_norm(row: Row) -> float:
    kept: list[float] = [layer["norm_kept"] for layer in row["layers"].values()]
    return sum(kept) / len(kept)


def _curves(rows: Sequence[Row], baseline: Row, abscissa: Callable[[Row], float], label: str) -> Figure:
    """Accuracy of the whole network against something, one curve a cut, all layers truncated at once."""
    figure = _figure(7.2, 4.6)
    axes = figure.add_subplot()
    markers = "osD^v<>pX*hP"
    for number, cut in enumerate(dict.fromkeys(row["rewrite"] for row in rows)):
        points = sorted((abscissa(row), 100 * row["accuracy"], row["keep"]) for row in rows if row["rewrite"] == cut)
        x, y, _ = zip(*points, strict=True)
        axes.plot(x, y, marker=markers[number % len(markers)], label=cut, color=f"C{number % 10}", linewidth=1.4)
    axes.axhline(100 * baseline["accuracy"], color="0.4", linestyle="--", linewidth=1, label="not truncated")
    axes.set(xlabel=label, ylabel="top-1 accuracy (%)")
    axes.set_title(f"{baseline['model']}: all kernels cut at once, no retraining", fontsize="medium")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize="small", title="cut", frameon=False)
    return figure


def _heat_map(rows: Sequence[Row], layers: Sequence[str], cuts: Sequence[str]) -> Figure:
    """Change of accuracy when one layer alone is cut: layers down, cuts across, a panel for each fraction kept."""
    import numpy as np

    changes = {(row["scope"], row["rewrite"], row["keep"]): 100 * row["accuracy_change"] for row in rows}
    fractions = sorted({keep for _, _, keep in changes}, reverse=True)
    layers = [layer for layer in layers if any(scope == layer for scope, _, _ in changes)]
    cuts = [cut for cut in cuts if any(rewrite == cut for _, rewrite, _ in changes)]
    worst = max(0.5, -min(changes.values()))
    figure = _figure(1.6 + len(fractions) * max(1.6, 0.42 * len(cuts)), 1.8 + max(1.2, 0.27 * len(layers)))
    panels = figure.subplots(1, len(fractions), sharey=True, squeeze=False)[0]
    for panel, keep in zip(panels, fractions, strict=True):
        grid = np.array([[changes.get((layer, cut, keep), np.nan) for cut in cuts] for layer in layers])
        image = panel.imshow(grid, vmin=-worst, vmax=worst, cmap="RdBu", aspect="auto")
        panel.set_title(f"keep {keep:g}", fontsize="medium")
        panel.set_xticks(range(len(cuts)), cuts, rotation=90, fontsize="small")
        panel.set_yticks(range(len(layers)), layers, fontsize="small")
        for (down, across), change in np.ndenumerate(grid):
            if len(layers) * len(cuts) <= 200 and not np.isnan(change):
                ink = "white" if abs(change) > 0.6 * worst else "black"
                panel.text(across, down, f"{change:.1f}", ha="center", va="center", fontsize=5.5, color=ink)
    figure.colorbar(image, ax=panels, label="change of top-1 (points)", shrink=0.9)
    figure.suptitle("one layer cut at a time", fontsize="medium")
    return figure


def _spectra(layers: Sequence[Layer], cuts: Sequence[str]) -> Figure:
    """Singular values of every layer across every cut that stands alone or first in a treatment."""
    bipartitions = {part.name: parse_bipartition(part.name) for cut in cuts for part in cut_sequence(cut)}
    found = []
    for layer in layers:
        fitting = [cut for cut in bipartitions.values() if set(cut.labels) == set(layer.labels)]
        values = cut_singular_values(layer.weight, layer.labels, fitting)
        found += [Spectrum(layer.name, cut, numbers) for cut, numbers in zip(fitting, values, strict=True)]
    return Spectra(tuple(found)).plot()


def _networks(layers: Sequence[Layer], cuts: Sequence[str]) -> Figure:
    """The kernel's network before, and after each cut."""
    rules = {rule.name: rule for cut in cuts for rule in cut_sequence(cut)}
    labels = {frozenset(layer.labels): layer.labels for layer in layers}
    drawn: dict[str, Network] = {}
    for name, rule in rules.items():
        order = next(o for found, o in labels.items() if found == frozenset(parse_bipartition(name).labels))
        drawn.setdefault("kernel " + " ".join(order), Network([NamedTensor("K", order)]))
        drawn[name] = parse(rule.equation.split("=>")[1].strip())
    across = min(4, len(drawn))
    down = -(-len(drawn) // across)
    figure = _figure(3.4 * across, 2.3 * down)
    panels: list[Axes] = list(figure.subplots(down, across, squeeze=False).flat)
    for panel in panels:
        panel.set_axis_off()
    for panel, (title, network) in zip(panels, drawn.items(), strict=False):
        draw(network, axes=panel, title=title)
    return figure
