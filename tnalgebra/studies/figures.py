"""The figures of a study, drawn from the rows there are, each as PNG and SVG."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from .._files import write_whole
from ..decompositions import cut_sequence
from ..model import DISTINCT_COLOURS, Spectra, Spectrum, cut_singular_values
from ..network import NamedTensor, Network, draw, parse, parse_bipartition, parse_rule
from .kernels import Layer
from .plan import equations_of
from .store import BASELINE, Row, of_one_layer, touched, variant

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

SUFFIXES = (".png", ".svg")
MARKERS = "osD^v<>pX*hP"
CELL = (0.42, 0.27)
"""Width and height of a cell of the heat map, in inches: room for "-12.3"."""
PANELS_ACROSS = 4
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
    figures: dict[str, Figure] = {}
    rows = [row for row in rows if touched(row)]
    several = [row for row in rows if not of_one_layer(row)]
    if several:
        # other metrics give the norm away on purpose; and a large budget may leave all layers as they are
        kept = [row for row in several if row["metric"] == BASELINE.metric and row["layers"]]
        cut = _cut_only(rows)
        if kept:
            figures["accuracy_against_norm"] = _curves(
                kept,
                baseline,
                _mean_norm,
                f"norm kept, ||K~|| / ||K||, mean over the layers {'cut' if cut else 'rewritten'}",
            )
        figures["accuracy_against_parameters"] = _curves(
            several,
            baseline,
            _parameters_kept,
            f"parameters kept, of the whole network with its kernels as {'two factors' if cut else 'their factors'}",
            front=_front(several),
        )
    single = [row for row in rows if of_one_layer(row)]
    names = [layer.name for layer in layers]
    for name, chosen, panel, column in (
        ("layers", [row for row in single if row["keep"] is not None], _fraction, _rewrite),
        ("layers_ranks", [row for row in single if row["keep"] is None], _curve, _ranks),
    ):
        if chosen:
            figures[name] = _heat_map(chosen, baseline, names, panel, column)
    return [path for name, figure in figures.items() for path in _stored(figure, folder / name)]


def _front(rows: Sequence[Row]) -> list[Row]:
    """The best rows of the scope all, if they are to choose from several curves."""
    whole = [row for row in rows if row["scope"] == "all"]
    return best_rows(whole) if len({_curve(row) for row in whole}) > 1 else []


def best_rows(rows: Sequence[Row]) -> list[Row]:
    """Those that no other row beats: none has a higher accuracy with as few parameters. The smallest comes first."""
    found: list[Row] = []
    for row in sorted(rows, key=lambda row: (row["parameters_kept"], -row["accuracy"])):
        if not found or row["accuracy"] > found[-1]["accuracy"]:
            found.append(row)
    return found


def draw_kernels(
    folder: Path,
    rows: Sequence[Row],
    layers: Sequence[Layer],
    cuts: Sequence[str],
    equations: Mapping[str, Sequence[str]] = {},
) -> list[Path]:
    """Draw what depends on the weights and rewrites alone: singular values, the kernel's network before and after.

    Called before a rewrite's first row is written, so that a folder with rows of all of them has these figures
    already; they are drawn again only if one is missing.

    Args:
        rows: all the study has; their cuts and rewrites are drawn too.
        layers: the kernels that may be rewritten.
        cuts: as they stand in rows, those to come.
        equations: rewrites to come -> their equations, without sizes.

    Returns:
        The files written; each is written whole or not at all. Singular values are drawn across cuts only.
    """
    there = dict.fromkeys(row["rewrite"] for row in rows if touched(row) and row["keep"] is not None)
    written = equations_of([row for row in rows if touched(row)])
    known = there.keys() >= set(cuts) and all(
        set(written.get(rewrite, ())) >= set(texts) for rewrite, texts in equations.items()
    )
    for rewrite, texts in equations.items():
        written[rewrite] = list(dict.fromkeys([*written.get(rewrite, ()), *texts]))
    everything = list(dict.fromkeys([*there, *cuts]))
    figures: dict[str, Callable[[], Figure]] = {"networks": lambda: _networks(layers, everything, written)}
    if everything:
        figures["spectra"] = lambda: _spectra(layers, everything)
    if known and all((folder / (name + suffix)).exists() for name in figures for suffix in SUFFIXES):
        return []
    return [path for name, drawn in figures.items() for path in _stored(drawn(), folder / name)]


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


def _parameters_kept(row: Row) -> float:
    return float(row["parameters_kept"])


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
    """Accuracy of the whole network against something, one curve a rewrite, its fits and scope, a point a size.

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


def _fraction(row: Row) -> str:
    return f"keep {row['keep']:g}"


def _rewrite(row: Row) -> str:
    return str(row["rewrite"])


def _ranks(row: Row) -> str:
    return str(row["ranks"] or "")


def _heat_map(
    rows: Sequence[Row],
    baseline: Row,
    layers: Sequence[str],
    panel_of: Callable[[Row], str],
    column_of: Callable[[Row], str],
) -> Figure:
    """Change of accuracy when one layer alone is rewritten: layers down, a panel for each of one thing, columns for
    each of another.
    """
    import numpy as np
    from matplotlib import colormaps
    from matplotlib.ticker import MaxNLocator

    changes = {(panel_of(row), row["scope"], column_of(row)): 100 * row["accuracy_change"] for row in rows}
    order = sorted(rows, key=lambda row: -(row["keep"] or 0))
    titles = list(dict.fromkeys(panel_of(row) for row in order))
    shared = _cut_only(rows)
    columns = {
        title: list(dict.fromkeys(column_of(row) for row in rows if shared or panel_of(row) == title))
        for title in titles
    }
    layers = [layer for layer in layers if any(scope == layer for _, scope, _ in changes)]
    largest = max(0.5, *(abs(change) for change in changes.values()))
    across = min(PANELS_ACROSS, len(titles))
    down = -(-len(titles) // across)
    most = max(map(len, columns.values()))
    width, height = CELL[0] * most, CELL[1] * len(layers)
    names = 0.075 * max(map(len, layers))
    below = 0.075 * max(len(column) for there in columns.values() for column in there)
    above = 0.2 * (max(title.count("\n") for title in titles))
    size = (
        across * (max(width, 0.7 if shared else 1.6) + 0.2) + names + 1.1,
        down * (height + above + 0.4 + (0 if shared else below)) + (below if shared else 0) + 0.5,
    )
    figure = _figure(*size)
    panels: list[Axes] = list(figure.subplots(down, across, sharex=shared, sharey=True, squeeze=False).flat)
    colours = colormaps["RdBu"].with_extremes(bad="0.85")
    for panel, title in zip(panels, titles, strict=False):
        there = columns[title]
        grid = np.array([[changes.get((title, layer, column), np.nan) for column in there] for layer in layers])
        image = panel.imshow(grid, vmin=-largest, vmax=largest, cmap=colours, aspect="auto")
        panel.set_title(title, fontsize="medium" if shared else "small")
        panel.set_xticks(range(len(there)), there, rotation=90, fontsize="small")
        panel.set_yticks(range(len(layers)), layers, fontsize="small")
        bottom = not shared or panel in panels[len(titles) - across : len(titles)]
        panel.tick_params(length=0, labelbottom=bottom)
        for (row, column), change in np.ndenumerate(grid):
            if not np.isnan(change):
                ink = "white" if abs(change) > 0.6 * largest else "black"
                panel.text(column, row, f"{change:.1f}", ha="center", va="center", fontsize=6, color=ink)
    for panel in panels[len(titles) :]:
        panel.set_axis_off()
    bar = figure.colorbar(image, ax=figure.axes, fraction=0.05, aspect=max(4.0, down * height / 0.15))
    bar.locator = MaxNLocator(max(2, min(8, round(2.5 * height))), steps=[1, 2, 5, 10])
    bar.ax.tick_params(labelsize="small")
    bar.set_label("change of top-1 (points)", fontsize="small")
    what = "cut" if shared else "rewritten"
    figure.suptitle(f"One layer {what} at a time: {_of(baseline)}", fontsize="medium")
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


def _networks(layers: Sequence[Layer], cuts: Sequence[str], equations: Mapping[str, Sequence[str]]) -> Figure:
    """The kernel's network before, and after each cut and rewrite; of cuts that follow one another, step by step."""
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
    for rewrite, texts in equations.items():
        for text in texts:
            left, right = parse_rule(text)
            drawn.setdefault("kernel " + " ".join(left.output), left)
            title = _wrapped(rewrite if len(texts) == 1 else f"{rewrite} of {' '.join(left.output)}")
            drawn[title] = right
    across = min(PANELS_ACROSS, len(drawn))
    down = -(-len(drawn) // across)
    figure = _figure(3.4 * across, 2.3 * down)
    panels: list[Axes] = list(figure.subplots(down, across, squeeze=False).flat)
    for panel in panels:
        panel.set_axis_off()
    for panel, (title, network) in zip(panels, drawn.items(), strict=False):
        draw(network, axes=panel, title=title)
    truncated = "A kernel, and what each cut makes of it (r: the bond that is truncated)"
    figure.suptitle("A kernel, and what each rewrite makes of it" if equations else truncated, fontsize="medium")
    return figure
