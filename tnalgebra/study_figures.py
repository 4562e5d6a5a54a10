"""The figures of a study, drawn from the rows there are, each as PNG and SVG."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .bipartition import parse_bipartition
from .decompositions import cut_sequence
from .drawing import draw
from .files import write_whole
from .network import Network
from .nodes import NamedTensor
from .notation import parse
from .spectrum import DISTINCT_COLOURS, Spectra, Spectrum, cut_singular_values
from .study_plan import Layer
from .study_store import Row, of_one_layer

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg")
KERNEL_FIGURES = ("spectra", "networks")
MARKERS = "osD^v<>pX*hP"
CELL = (0.42, 0.27)
"""Width and height of a cell of the heat map, in inches: room for "-12.3"."""
PANELS_ACROSS = 4


def draw_results(folder: Path, rows: Sequence[Row], layers: Sequence[Layer]) -> list[Path]:
    """Draw what the rows say of accuracy: against norm kept, against parameters kept, and layer by layer.

    Args:
        rows: all the study has, of whichever call.
        layers: the kernels that may be cut; the heat map has them in this order.

    Returns:
        The files written; each is written whole or not at all.
    """
    baseline = next((row for row in rows if not row["layers"]), None)
    if baseline is None:
        return []
    figures: dict[str, Figure] = {}
    several = [row for row in rows if row["layers"] and not of_one_layer(row)]
    if several:
        figures["accuracy_against_norm"] = _curves(
            several, baseline, _mean_norm, "norm kept, ||K~|| / ||K||, mean over the layers cut"
        )
        figures["accuracy_against_parameters"] = _curves(
            several,
            baseline,
            lambda row: float(row["parameters_kept"]),
            "parameters kept, of the whole network with its kernels as two factors",
        )
    single = [row for row in rows if of_one_layer(row)]
    if single:
        figures["layers"] = _heat_map(single, baseline, [layer.name for layer in layers])
    return [path for name, figure in figures.items() for path in _stored(figure, folder / name)]


def draw_kernels(folder: Path, rows: Sequence[Row], layers: Sequence[Layer], cuts: Sequence[str]) -> list[Path]:
    """Draw what depends on the weights and cuts alone: singular values, and the kernel's network before and after.

    Called before a cut's first row is written, so that a folder with rows of all `cuts` has these figures already;
    they are drawn again only if one is missing.

    Args:
        rows: all the study has; their cuts are drawn too.
        layers: the kernels that may be cut.
        cuts: as they stand in rows, those to come.

    Returns:
        The files written; each is written whole or not at all.
    """
    there = dict.fromkeys(row["rewrite"] for row in rows if row["layers"])
    files = [folder / (name + suffix) for name in KERNEL_FIGURES for suffix in SUFFIXES]
    if there.keys() >= set(cuts) and all(file.exists() for file in files):
        return []
    everything = list(dict.fromkeys([*there, *cuts]))
    return [
        path
        for name, drawn in zip(KERNEL_FIGURES, (_spectra, _networks), strict=True)
        for path in _stored(drawn(layers, everything), folder / name)
    ]


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


def _of(baseline: Row) -> str:
    return f"{baseline['model']}, {baseline['images']} test images, no retraining"


def _curves(rows: Sequence[Row], baseline: Row, abscissa: Callable[[Row], float], label: str) -> Figure:
    """Accuracy of the whole network against something, one curve a cut (and scope), a point a fraction kept."""
    curves: dict[str, list[Row]] = {}
    for row in rows:
        scope = "" if row["scope"] == "all" else f", {row['scope']}"
        curves.setdefault(row["rewrite"] + scope, []).append(row)
    figure = _figure(7.6, 4.6)
    axes = figure.add_subplot()
    as_it_is = 100 * baseline["accuracy"]
    axes.axhline(as_it_is, color="0.4", linestyle="--", linewidth=1, label=f"as it is: {as_it_is:.2f} %", zorder=1)
    for number, (curve, points) in enumerate(curves.items()):
        points.sort(key=lambda row: float(row["keep"]))
        axes.plot(
            [abscissa(row) for row in points],
            [100 * row["accuracy"] for row in points],
            label=curve,
            marker=MARKERS[number % len(MARKERS)],
            color=DISTINCT_COLOURS[number % len(DISTINCT_COLOURS)],
            linestyle="-" if number < len(DISTINCT_COLOURS) else ":",
            linewidth=1.4,
            markersize=5,
        )
    fractions = ", ".join(f"{keep:g}" for keep in sorted({row["keep"] for row in rows}, reverse=True))
    axes.set(xlabel=f"{label}\n(points of a curve: keep {fractions})", ylabel="top-1 accuracy (%)")
    axes.set_title(f"{'Kernels cut all at once' if _all(rows) else 'Kernels cut'}: {_of(baseline)}", fontsize="medium")
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", fontsize="small", title="cut", frameon=False)
    return figure


def _all(rows: Sequence[Row]) -> bool:
    return all(row["scope"] == "all" for row in rows)


def _heat_map(rows: Sequence[Row], baseline: Row, layers: Sequence[str]) -> Figure:
    """Change of accuracy when one layer alone is cut: layers down, cuts across, a panel for each fraction kept."""
    import numpy as np
    from matplotlib import colormaps
    from matplotlib.ticker import MaxNLocator

    changes = {(row["scope"], row["rewrite"], row["keep"]): 100 * row["accuracy_change"] for row in rows}
    fractions = sorted({keep for _, _, keep in changes}, reverse=True)
    cuts = list(dict.fromkeys(rewrite for _, rewrite, _ in changes))
    layers = [layer for layer in layers if any(scope == layer for scope, _, _ in changes)]
    largest = max(0.5, *(abs(change) for change in changes.values()))
    across = min(PANELS_ACROSS, len(fractions))
    down = -(-len(fractions) // across)
    width, height = CELL[0] * len(cuts), CELL[1] * len(layers)
    names, below = (0.075 * max(map(len, texts)) for texts in (layers, cuts))
    figure = _figure(across * (max(width, 0.7) + 0.2) + names + 1.1, down * (height + 0.4) + below + 0.5)
    panels: list[Axes] = list(figure.subplots(down, across, sharex=True, sharey=True, squeeze=False).flat)
    colours = colormaps["RdBu"].with_extremes(bad="0.85")
    for panel, keep in zip(panels, fractions, strict=False):
        grid = np.array([[changes.get((layer, cut, keep), np.nan) for cut in cuts] for layer in layers])
        image = panel.imshow(grid, vmin=-largest, vmax=largest, cmap=colours, aspect="auto")
        panel.set_title(f"keep {keep:g}", fontsize="medium")
        panel.set_xticks(range(len(cuts)), cuts, rotation=90, fontsize="small")
        panel.set_yticks(range(len(layers)), layers, fontsize="small")
        panel.tick_params(length=0, labelbottom=panel in panels[len(fractions) - across : len(fractions)])
        for (row, column), change in np.ndenumerate(grid):
            if not np.isnan(change):
                ink = "white" if abs(change) > 0.6 * largest else "black"
                panel.text(column, row, f"{change:.1f}", ha="center", va="center", fontsize=6, color=ink)
    for panel in panels[len(fractions) :]:
        panel.set_axis_off()
    bar = figure.colorbar(image, ax=figure.axes, fraction=0.05, aspect=max(4.0, down * height / 0.15))
    bar.locator = MaxNLocator(max(2, min(8, round(2.5 * height))), steps=[1, 2, 5, 10])
    bar.ax.tick_params(labelsize="small")
    bar.set_label("change of top-1 (points)", fontsize="small")
    figure.suptitle(f"One layer cut at a time: {_of(baseline)}", fontsize="medium")
    return figure


def _spectra(layers: Sequence[Layer], cuts: Sequence[str]) -> Figure:
    """Singular values of every layer across every cut that stands alone or in a treatment."""
    bipartitions = {part.name: parse_bipartition(part.name) for cut in cuts for part in cut_sequence(cut)}
    found = []
    for layer in layers:
        fitting = [cut for cut in bipartitions.values() if set(cut.labels) == set(layer.labels)]
        values = cut_singular_values(layer.weight, layer.labels, fitting)
        found += [Spectrum(layer.name, cut, numbers) for cut, numbers in zip(fitting, values, strict=True)]
    figure = Spectra(tuple(found)).plot()
    figure.suptitle("Singular values of the kernels across each cut", fontsize="medium")
    return figure


def _networks(layers: Sequence[Layer], cuts: Sequence[str]) -> Figure:
    """The kernel's network before, and after each cut; of cuts that follow one another, step by step."""
    labels = {frozenset(layer.labels): layer.labels for layer in layers}
    drawn: dict[str, Network] = {}
    for cut in cuts:
        rules = cut_sequence(cut)
        order = labels[frozenset(parse_bipartition(rules[0].name).labels)]
        kernel = Network([NamedTensor("K", order)])
        drawn.setdefault("kernel " + " ".join(order), kernel)
        for number, rule in enumerate(rules):
            after = parse(rule.equation.split("=>")[1].strip())
            if len(rules) == 1:
                drawn[cut] = after
                continue
            title = cut.replace(" then ", "\nthen ")
            if number:
                drawn[f"{title}\nstep {2 * number}: contracted"] = kernel
            drawn[f"{title}\nstep {2 * number + 1}: {rule.name}"] = after
    across = min(PANELS_ACROSS, len(drawn))
    down = -(-len(drawn) // across)
    figure = _figure(3.4 * across, 2.3 * down)
    panels: list[Axes] = list(figure.subplots(down, across, squeeze=False).flat)
    for panel in panels:
        panel.set_axis_off()
    for panel, (title, network) in zip(panels, drawn.items(), strict=False):
        draw(network.nodes, network.output, network.sizes, axes=panel, title=title)
    figure.suptitle("A kernel, and what each cut makes of it (r: the bond that is truncated)", fontsize="medium")
    return figure
