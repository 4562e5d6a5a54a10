"""The figures of a study, drawn from its rows, each as PNG and SVG."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .._files import write_whole
from ..model import DISTINCT_COLOURS
from .folder import writing
from .rows import BASELINE, Row, of_one_layer, touched, variant

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

SUFFIXES = (".png", ".svg")
MARKERS = "osD^v<>pX*hP"
CELL = (0.42, 0.27)
"""Width and height of a cell of the heat map in inches, which is enough for "-12.3"."""
PANELS_ACROSS = 4
LEGEND = 34
"""The most characters of a line in legends and titles, where rules in the notation are broken."""


def figure_suffix(models: Iterable[str], name: str) -> str:
    """How the names of a network's figures end: the first network of a folder has none, others have their number."""
    number = list(models).index(name) + 1
    return f"-{number}" if number > 1 else ""


def draw_results(folder: Path, rows: Sequence[Row], layers: Sequence[str], *, suffix: str = "") -> list[Path]:
    """Draw the accuracy against the norm that is kept, against the parameters that are kept, and layer by layer.

    Args:
        folder: the folder of the study.
        rows: all its rows of one network, of whichever call.
        layers: the names of the layers; the heat maps have them in this order.
        suffix: how the names of the files end.

    Returns:
        The paths of the files; each is written whole or not at all.
    """
    baseline = next((row for row in rows if not touched(row)), None)
    if baseline is None:
        return []
    rows = [row for row in rows if touched(row)]
    figures = _accuracy_curves([row for row in rows if not of_one_layer(row)], baseline, cut=_cut_only(rows))
    single = [row for row in rows if of_one_layer(row)]
    for name, chosen in (
        ("layers", [row for row in single if row["keep"] is not None]),
        ("layers_ranks", [row for row in single if row["keep"] is None]),
    ):
        if chosen:
            figures[name] = _heat_map(chosen, baseline, list(layers))
    return [path for name, figure in figures.items() for path in store_figure(figure, folder / f"{name}{suffix}")]


def _accuracy_curves(rows: Sequence[Row], baseline: Row, *, cut: bool) -> dict[str, Figure]:
    """The figures of rows of several layers; `cut` says whether all rows of the study are of cuts."""
    figures: dict[str, Figure] = {}
    # other metrics do not try to keep the norm; and a large budget may leave all layers as they are
    kept = [row for row in rows if row["metric"] == BASELINE.metric and row["layers"]]
    if kept:
        label = f"norm kept, ||K~|| / ||K||, mean over the layers {'cut' if cut else 'rewritten'}"
        figures["accuracy_against_norm"] = _curves(kept, baseline, _mean_norm, label)
    if rows:
        factors = "two factors" if cut else "their factors"
        label = f"parameters kept, of the whole network with its kernels as {factors}"
        whole = [row for row in rows if row["scope"] == "all"]
        front = best_rows(whole) if len({_curve(row) for row in whole}) > 1 else []
        figures["accuracy_against_parameters"] = _curves(
            rows, baseline, lambda row: float(row["parameters_kept"]), label, front=front
        )
    return figures


def best_rows(rows: Sequence[Row]) -> list[Row]:
    """The rows with a higher accuracy than all rows with at most as many parameters. The smallest comes first."""
    best: list[Row] = []
    for row in sorted(rows, key=lambda row: (row["parameters_kept"], -row["accuracy"])):
        if not best or row["accuracy"] > best[-1]["accuracy"]:
            best.append(row)
    return best


def store_figure(figure: Figure, stem: Path) -> list[Path]:
    """Write a figure as PNG and SVG; returns the paths. Raises StudyError where one cannot be written."""
    paths = [stem.with_suffix(suffix) for suffix in SUFFIXES]
    for path in paths:
        with writing(path):
            write_whole(path, lambda temporary: figure.savefig(temporary, dpi=150))
    return paths


def new_figure(width: float, height: float) -> Figure:
    """An empty figure of a size in inches, which is laid out so that nothing is clipped."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def _mean_norm(row: Row) -> float:
    kept: list[float] = [layer["norm_kept"] for layer in row["layers"].values()]
    return sum(kept) / len(kept)


def _of(baseline: Row) -> str:
    return f"{baseline['model']}, {baseline['images']} test images, no retraining"


def _cut_only(rows: Iterable[Row]) -> bool:
    return all(row["keep"] is not None for row in rows)


def _curve(row: Row) -> str:
    """The name of a curve: the rewrite, how its sizes are chosen, and the scope."""
    scope = "" if row["scope"] == "all" or of_one_layer(row) else row["scope"]
    budget = "" if row["budget"] is None else "budget"
    return wrap(", ".join(filter(None, [row["rewrite"], budget, variant(row), scope])))


def wrap(text: str) -> str:
    """A text for legends and titles, broken into lines."""
    return "\n".join(textwrap.wrap(text, LEGEND, break_long_words=False, break_on_hyphens=False))


def _along(row: Row) -> float:
    """The number by which the points of a curve are ordered."""
    return float(row["keep"] if row["keep"] is not None else row["parameters_kept"])


def _curves(
    rows: Sequence[Row],
    baseline: Row,
    abscissa: Callable[[Row], float],
    label: str,
    *,
    front: Sequence[Row] = (),
) -> Figure:
    """The accuracy of the whole network over `abscissa`: one curve for each rewrite, fit and scope.

    front: the best rows, joined by a line of steps.
    """
    curves: dict[str, list[Row]] = {}
    for row in rows:
        curves.setdefault(_curve(row), []).append(row)
    figure = new_figure(7.6, 4.6)
    axes = figure.add_subplot()
    as_it_is = 100 * baseline["accuracy"]
    axes.axhline(as_it_is, color="0.4", linestyle="--", linewidth=1, label=f"as it is: {as_it_is:.2f} %", zorder=1)
    for number, (curve, points) in enumerate(curves.items()):
        points.sort(key=_along)
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
    if front:
        axes.plot(
            [abscissa(row) for row in front],
            [100 * row["accuracy"] for row in front],
            label="best of all",
            color="0.75",
            drawstyle="steps-post",
            linewidth=5,
            zorder=0.5,
        )
    axes.set(xlabel="\n".join(filter(None, [label, _points(rows)])), ylabel="top-1 accuracy (%)")
    what = "Kernels cut" if _cut_only(rows) else "Kernels rewritten"
    axes.set_title(f"{what}{' all at once' if _all(rows) else ''}: {_of(baseline)}", fontsize="medium")
    axes.grid(alpha=0.3)
    title = "cut" if _cut_only(rows) else "rewrite"
    figure.legend(loc="outside right upper", fontsize="small", title=title, frameon=False)
    return figure


def _points(rows: Sequence[Row]) -> str:
    """The sizes that the points of the curves have, as text."""
    parts = ["ranks"] if any(row["ranks"] for row in rows) else []
    for name in ("keep", "budget"):
        sizes = sorted({row[name] for row in rows if isinstance(row[name], float)}, reverse=True)
        texts = [f"{size:g}" for size in sizes]
        texts += dict.fromkeys(row[name] for row in rows if isinstance(row[name], str))
        parts += [f"{name} {', '.join(texts)}"] if texts else []
    return f"(points of a curve: {'; '.join(parts)})" if parts else ""


def _all(rows: Sequence[Row]) -> bool:
    return all(row["scope"] == "all" for row in rows)


def _heat_map(rows: Sequence[Row], baseline: Row, layers: Sequence[str]) -> Figure:
    """The change of accuracy when one layer is rewritten, with a line for each layer.

    Cuts have a panel for each fraction, with a column for each cut; other rewrites have a panel each, with a column for
    each of its sizes.
    """
    from matplotlib.ticker import MaxNLocator

    shared = _cut_only(rows)
    panels = _changes(rows, shared=shared)
    layers = [layer for layer in layers if any(row["scope"] == layer for row in rows)]
    across = min(PANELS_ACROSS, len(panels))
    down = -(-len(panels) // across)
    width, height = CELL[0] * max(map(len, panels.values())), CELL[1] * len(layers)
    names = 0.075 * max(map(len, layers))
    below = 0.075 * max(len(column) for columns in panels.values() for column in columns)
    above = 0.2 * (max(title.count("\n") for title in panels))
    figure = new_figure(
        across * (max(width, 0.7 if shared else 1.6) + 0.2) + names + 1.1,
        down * (height + above + 0.4 + (0 if shared else below)) + (below if shared else 0) + 0.5,
    )
    grid: list[Axes] = list(figure.subplots(down, across, sharex=shared, sharey=True, squeeze=False).flat)
    largest = max(0.5, *(abs(100 * row["accuracy_change"]) for row in rows))
    for axes, (title, columns) in zip(grid, panels.items(), strict=False):
        axes.set_title(title, fontsize="medium" if shared else "small")
        image = _draw_panel(axes, columns, layers, largest)
        axes.tick_params(length=0, labelbottom=not shared or axes in grid[len(panels) - across : len(panels)])
    for axes in grid[len(panels) :]:
        axes.set_axis_off()
    bar = figure.colorbar(image, ax=figure.axes, fraction=0.05, aspect=max(4.0, down * height / 0.15))
    bar.locator = MaxNLocator(max(2, min(8, round(2.5 * height))), steps=[1, 2, 5, 10])
    bar.ax.tick_params(labelsize="small")
    bar.set_label("change of top-1 (points)", fontsize="small")
    what = "cut" if shared else "rewritten"
    figure.suptitle(f"One layer {what} at a time: {_of(baseline)}", fontsize="medium")
    return figure


def _changes(rows: Sequence[Row], *, shared: bool) -> dict[str, dict[str, dict[str, float]]]:
    """Panel -> column -> layer -> change in points; `shared` says whether all panels have the same columns."""
    panels: dict[str, dict[str, dict[str, float]]] = {}
    for row in sorted(rows, key=lambda row: -(row["keep"] or 0)):
        panel, column = (f"keep {row['keep']:g}", row["rewrite"]) if shared else (_curve(row), str(row["ranks"] or ""))
        panels.setdefault(panel, {}).setdefault(column, {})[row["scope"]] = 100 * row["accuracy_change"]
    if shared:  # the same columns in each panel, in the order of the rows
        cuts = dict.fromkeys(row["rewrite"] for row in rows)
        panels = {panel: {cut: columns.get(cut, {}) for cut in cuts} for panel, columns in panels.items()}
    return panels


def _draw_panel(
    axes: Axes, columns: Mapping[str, Mapping[str, float]], layers: Sequence[str], largest: float
) -> AxesImage:
    """Draw a cell with its number for each layer and column, coloured from -largest to largest."""
    import numpy as np
    from matplotlib import colormaps

    cells = np.array([[column.get(layer, np.nan) for column in columns.values()] for layer in layers])
    colours = colormaps["RdBu"].with_extremes(bad="0.85")
    image = axes.imshow(cells, vmin=-largest, vmax=largest, cmap=colours, aspect="auto")
    axes.set_xticks(range(len(columns)), list(columns), rotation=90, fontsize="small")
    axes.set_yticks(range(len(layers)), layers, fontsize="small")
    for (row, column), change in np.ndenumerate(cells):
        if not np.isnan(change):
            ink = "white" if abs(change) > 0.6 * largest else "black"
            axes.text(column, row, f"{change:.1f}", ha="center", va="center", fontsize=6, color=ink)
    return image
