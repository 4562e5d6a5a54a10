"""The figures of a study, drawn from the rows there are, each as PNG and SVG."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .._files import write_whole
from ..decompositions import cut_sequence
from ..model import DISTINCT_COLOURS, Spectra, Spectrum, cut_singular_values
from ..networks import NamedTensor, Network, parse, parse_bipartition, parse_rule
from .kernels import Layer
from .store import BASELINE, Row, of_one_layer, touched, variant

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

SUFFIXES = (".png", ".svg")
MARKERS = "osD^v<>pX*hP"
CELL = (0.42, 0.27)
"""Width and height of a cell of the heat map, in inches: room for "-12.3"."""
PANELS_ACROSS = 4
CUT = ""
"""In place of the equation of a cut to a fraction."""
LEGEND = 34
"""Characters of a line in legends and titles: rules in the notation are long."""


def draw_results(folder: Path, rows: Sequence[Row], layers: Sequence[Layer]) -> list[Path]:
    """Draw what the rows say of accuracy: against norm kept, against parameters kept, and layer by layer.

    Args:
        rows: all the study has, of whichever call.
        layers: the kernels that may be rewritten; the heat maps have them in this order.

    Returns:
        The files written; each is written whole or not at all.
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
            figures[name] = _heat_map(chosen, baseline, [layer.name for layer in layers])
    return [path for name, figure in figures.items() for path in _stored(figure, folder / name)]


def _accuracy_curves(rows: Sequence[Row], baseline: Row, *, cut: bool) -> dict[str, Figure]:
    """Of rows of several layers; `cut`: all rows of the study are of cuts."""
    figures: dict[str, Figure] = {}
    # other metrics give the norm away on purpose; and a large budget may leave all layers as they are
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
    """Those that no other row beats: none has a higher accuracy with as few parameters. The smallest comes first."""
    found: list[Row] = []
    for row in sorted(rows, key=lambda row: (row["parameters_kept"], -row["accuracy"])):
        if not found or row["accuracy"] > found[-1]["accuracy"]:
            found.append(row)
    return found


def draw_kernels(folder: Path, rows: Sequence[Row], planned: Sequence[Row], layers: Sequence[Layer]) -> list[Path]:
    """Draw what depends on the weights and rewrites alone: singular values, the kernel's network before and after.

    Called before a rewrite's first row is written, so that a folder with rows of all of them has these figures
    already; they are drawn again only if one is missing.

    Args:
        rows: all the study has; their rewrites are drawn too.
        planned: the keys of rows to come.
        layers: the kernels that may be rewritten.

    Returns:
        The files written; each is written whole or not at all. Singular values are drawn across cuts only.
    """
    drawn, everything = _equations(rows), _equations([*rows, *planned])
    cuts = [rewrite for rewrite, equations in everything.items() if CUT in equations]
    figures: dict[str, Callable[[], Figure]] = {"networks": lambda: _networks(layers, everything)}
    if cuts:
        figures["spectra"] = lambda: _spectra(layers, cuts)
    if drawn == everything and all((folder / (name + suffix)).exists() for name in figures for suffix in SUFFIXES):
        return []
    return [path for name, draw in figures.items() for path in _stored(draw(), folder / name)]


def _equations(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Rewrite -> the equations that rows have of it, each once; `CUT` for cuts to fractions."""
    found: dict[str, dict[str, None]] = {}
    for row in rows:
        if touched(row):
            found.setdefault(row["rewrite"], {}).update(dict.fromkeys(row["equations"] or [CUT]))
    return {rewrite: list(equations) for rewrite, equations in found.items()}


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


def _cut_only(rows: Iterable[Row]) -> bool:
    return all(row["keep"] is not None for row in rows)


def _curve(row: Row) -> str:
    """What the points of a curve have in common: the rewrite, how its sizes are chosen, the scope."""
    scope = "" if row["scope"] == "all" or of_one_layer(row) else row["scope"]
    budget = "" if row["budget"] is None else "budget"
    return _wrapped(", ".join(filter(None, [row["rewrite"], budget, variant(row), scope])))


def _wrapped(text: str) -> str:
    return "\n".join(textwrap.wrap(text, LEGEND, break_long_words=False, break_on_hyphens=False))


def _along(row: Row) -> float:
    """The order of a curve's points."""
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
    figure = _figure(7.6, 4.6)
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
    """Which sizes the points of curves are of."""
    found = ["ranks"] if any(row["ranks"] for row in rows) else []
    for name in ("keep", "budget"):
        sizes = sorted({row[name] for row in rows if row[name] is not None}, reverse=True)
        if sizes:
            found.append(f"{name} {', '.join(f'{size:g}' for size in sizes)}")
    return f"(points of a curve: {'; '.join(found)})" if found else ""


def _all(rows: Sequence[Row]) -> bool:
    return all(row["scope"] == "all" for row in rows)


def _heat_map(rows: Sequence[Row], baseline: Row, layers: Sequence[str]) -> Figure:
    """Change of accuracy when one layer alone is rewritten: layers down, a panel for each fraction with a column for
    each cut; of other rewrites a panel for each, with a column for each of its ranks.
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
    figure = _figure(
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
    """Panel -> column -> layer -> change in points; `shared`: all panels have the same columns."""
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
    """A cell for each layer and column with its number, coloured from -largest to largest."""
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


def _networks(layers: Sequence[Layer], rewrites: Mapping[str, Sequence[str]]) -> Figure:
    """The kernel's network before, and after each cut and rewrite; of cuts that follow one another, step by step."""
    labels = {frozenset(layer.labels): layer.labels for layer in layers}
    drawn: dict[str, Network] = {}
    for rewrite, equations in sorted(rewrites.items(), key=lambda item: CUT not in item[1]):
        texts = [text for text in equations if text != CUT]
        if CUT in equations:
            _add_cuts(drawn, rewrite, labels)
        for text in texts:
            left, right = parse_rule(text)
            drawn.setdefault("kernel " + " ".join(left.output), left)
            drawn[_wrapped(rewrite if len(texts) == 1 else f"{rewrite} of {' '.join(left.output)}")] = right
    across = min(PANELS_ACROSS, len(drawn))
    down = -(-len(drawn) // across)
    figure = _figure(3.4 * across, 2.3 * down)
    panels: list[Axes] = list(figure.subplots(down, across, squeeze=False).flat)
    for panel in panels:
        panel.set_axis_off()
    for panel, (title, network) in zip(panels, drawn.items(), strict=False):
        network.draw(axes=panel, title=title)
    truncated = "A kernel, and what each cut makes of it (r: the bond that is truncated)"
    fitted = any(text != CUT for equations in rewrites.values() for text in equations)
    figure.suptitle("A kernel, and what each rewrite makes of it" if fitted else truncated, fontsize="medium")
    return figure


def _add_cuts(drawn: dict[str, Network], cut: str, labels: Mapping[frozenset[str], tuple[str, ...]]) -> None:
    """Add the networks of a cut, or of the steps of several, under their titles."""
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
