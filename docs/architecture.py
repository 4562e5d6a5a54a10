"""The picture of docs/architecture.md: what a kernel becomes, in which folder, and which folder imports which."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import networkx
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyBboxPatch

import tnalgebra as tn
from tests.test_layering import FOLDERS, imported_folders

PACKAGE = Path(tn.__file__).parent

RULE = "K[o i h w] => U[o a] G[a b h w] V[b i]"

WIDTH, HEIGHT = 10.4, 7.4  # inches, as all below
PANEL, PANEL_HEIGHT, GAP = 2.5, 2.0, 1.1
LEFT, UPPER, LOWER = 0.35, 4.95, 2.05

INK, GREY, LINE = "#26323d", "#6b7680", "#b9c1c8"
BEFORE, AFTER = "#e6e9ec", tn.networks.PALETTE[0]


def sentence(folder: str) -> str:
    """The first sentence of what the folder says of itself."""
    text = importlib.import_module(f"tnalgebra.{folder}").__doc__ or ""
    return re.split(r"(?<=\.)\s", text.strip())[0]


def folders_table() -> str:
    """The folders of the package in the order of their imports, each with its sentence, in markdown."""
    rows = [f"| `{name}/` | {sentence(name)} |" for name in FOLDERS if (PACKAGE / name).is_dir()]
    return "\n".join(["| folder | what it has |", "|---|---|", *rows])


def draw_architecture(path: Path) -> None:
    """Draw the picture: six values from the notation to the rows of a study, and the folders below them."""
    figure = Figure(figsize=(WIDTH, HEIGHT), facecolor="white")
    page = figure.add_axes((0, 0, 1, 1))
    page.set(xlim=(0, WIDTH), ylim=(0, HEIGHT))
    page.axis("off")
    panels: list[tuple[str, Callable[[Axes], None]]] = [
        ("notation", _notation),
        ("network", _network),
        ("fit", _fit),
        ("layer", _layer),
        ("model", _model),
        ("rows", _rows),
    ]
    for number, (title, draw) in enumerate(panels):
        left, bottom = LEFT + (number % 3) * (PANEL + GAP), (UPPER, LOWER)[number // 3]
        frame = FancyBboxPatch(
            (left, bottom), PANEL, PANEL_HEIGHT, "round,pad=0,rounding_size=0.1", ec=LINE, fc="white"
        )
        page.add_patch(frame)
        page.text(left + 0.12, bottom + PANEL_HEIGHT + 0.09, title, fontsize=12.5, color=INK, weight="bold")
        size = (PANEL - 0.2) / WIDTH, (PANEL_HEIGHT - 0.25) / HEIGHT
        draw(figure.add_axes(((left + 0.1) / WIDTH, (bottom + 0.12) / HEIGHT, *size)))
    _flow(page)
    _folders(page)
    tn.networks.store(figure, path)


# What the panels show ---------------------------------------------------------------------------------------


def _notation(axes: Axes) -> None:
    left, right = RULE.split(" => ")
    axes.axis("off")
    axes.text(0.5, 0.74, f"{left}  =>", ha="center", fontsize=9.5, family="monospace", color=INK)
    axes.text(0.5, 0.60, right, ha="center", fontsize=9.5, family="monospace", color=INK)
    axes.text(0.5, 0.32, "tucker2     out kh | in kw", ha="center", fontsize=9.5, family="monospace", color=INK)
    axes.text(0.5, 0.02, "a rule, a name, or a cut", ha="center", fontsize=8.5, color=GREY)


def _network(axes: Axes) -> None:
    tn.parse("K[o:24 i:16 h:3 w:3]").draw(axes=axes)


def _fit(axes: Axes) -> None:
    fit = _fitted()
    places = {"U": (-1.0, 0.0), "G": (0.0, 0.0), "V": (1.0, 0.0)}
    tn.parse(RULE.partition("=> ")[2]).draw(axes=axes, places=places)
    text = f"error {fit.relative_error:.2f}, {fit.parameters:,} of {24 * 16 * 9:,} numbers"
    axes.text(0.5, 0.02, text, transform=axes.transAxes, ha="center", fontsize=8.5, color=GREY)


def _conv() -> torch.nn.Conv2d:
    torch.manual_seed(0)
    return torch.nn.Conv2d(16, 24, 3, padding=1)


def _fitted() -> tn.Fit:
    return tn.rule(RULE).apply({"K": _conv().weight}, {"a": 10, "b": 8})


def _layer(axes: Axes) -> None:
    plan = tn.nn.Conv2d.from_conv(_conv(), _fitted(), input_size=(28, 28)).plan
    steps = [re.split(r" of .* -> ", step.text) for step in plan.steps if step.multiply_adds]
    axes.axis("off")
    for number, (call, result) in enumerate(steps):
        axes.text(0.02, 0.8 - 0.2 * number, call, fontsize=8.5, color=INK)
        axes.text(0.98, 0.8 - 0.2 * number, result, ha="right", fontsize=8.5, family="monospace", color=INK)
    axes.text(0.5, 0.02, "the calls of torch that are fastest", ha="center", fontsize=8.5, color=GREY)


def _model(axes: Axes) -> None:
    torch.manual_seed(0)
    widths = (3, 16, 24, 32, 40)
    model = torch.nn.Sequential(*(torch.nn.Conv2d(*pair, 3) for pair in pairwise(widths)))
    _, report = tn.convert(model, {"0": None, "*": "tucker2"}, size=tn.ParameterBudget(0.5))
    for number, row in enumerate(report.rows):
        axes.barh(number, row.parameters, color=BEFORE, height=0.72)
        axes.barh(number, row.parameters_after, color=AFTER, height=0.72)
        axes.text(100, number, f"conv{number + 1}", fontsize=8, va="center", family="monospace", color=INK)
    axes.set(ylim=(len(report.rows) + 0.6, -0.6), xlim=(0, None))
    axes.axis("off")
    axes.text(0.5, 0.02, "parameters under one budget", transform=axes.transAxes, ha="center", fontsize=8.5, color=GREY)


def _rows(axes: Axes) -> None:
    fields = ["rewrite", "size", "accuracy", "parameters kept", "error of each layer"]
    axes.axis("off")
    for number, text in enumerate(fields):
        axes.text(0.05, 0.86 - 0.15 * number, text, fontsize=8.8, color=INK)
    axes.text(0.5, 0.02, "one line for each test, and figures", ha="center", fontsize=8.5, color=GREY)


# Between and below the panels -------------------------------------------------------------------------------


def _flow(page: Axes) -> None:
    """The functions that lead from one panel to the next, each with the folders that do the work."""
    first, second = LEFT + PANEL, LEFT + 2 * PANEL + GAP
    steps = [
        (first, UPPER, "parse\nrule", "networks/\nrewriting/"),
        (second, UPPER, "apply", "rewriting/\nfitting/"),
        (first, LOWER, "convert", "model/"),
        (second, LOWER, "study", "studies/"),
    ]
    for left, bottom, function, folder in steps:
        height = bottom + PANEL_HEIGHT / 2
        _arrow(page, (left + 0.08, height), (left + GAP - 0.08, height))
        _name(page, function, folder, (left + GAP / 2, height))
    right, turn = LEFT + 2.5 * PANEL + 2 * GAP, UPPER - 0.32
    down = LEFT + PANEL / 2
    page.plot([right, right, down], [UPPER - 0.06, turn, turn], color=INK, linewidth=1)
    _arrow(page, (down, turn), (down, LOWER + PANEL_HEIGHT + 0.06))
    _name(page, "nn.Conv2d.from_conv, compile", "nn/, compiler/", (WIDTH / 2, turn))
    names = {LEFT + PANEL: "decompositions/", LEFT + 2 * PANEL + GAP: "save, load: checkpoint/"}
    for (end, text), bottom in zip(names.items(), (UPPER, LOWER), strict=True):
        page.text(end, bottom + PANEL_HEIGHT + 0.09, text, ha="right", fontsize=8.5, color=GREY)


def _name(page: Axes, function: str, folder: str, middle: tuple[float, float]) -> None:
    x, y = middle
    page.text(x, y + 0.08, function, ha="center", va="bottom", fontsize=9, family="monospace", color=INK)
    page.text(x, y - 0.1, folder, ha="center", va="top", fontsize=8.5, color=GREY)


def _arrow(page: Axes, start: tuple[float, float], end: tuple[float, float], color: str = INK) -> None:
    page.annotate("", end, start, arrowprops={"arrowstyle": "-|>", "color": color, "shrinkA": 0, "shrinkB": 0})


def _folders(page: Axes) -> None:
    """The folders, each to the right of all that it imports; lines that follow from others are left out."""
    every = imported_folders()
    imports = networkx.transitive_reduction(every.subgraph(name for name in every if (PACKAGE / name).is_dir()))
    columns = list(networkx.topological_generations(imports.reverse()))
    step = (WIDTH - 1.6) / (len(columns) - 1)
    places = {
        name: (0.8 + column * step, 0.78 + 0.22 * (len(names) - 1 - 2 * row))
        for column, names in enumerate(columns)
        for row, name in enumerate(sorted(names, key=FOLDERS.index))
    }
    for name, imported in imports.edges:
        page.plot(*zip(places[imported], places[name], strict=True), color=LINE, linewidth=1.2, zorder=0)
    for name, (x, y) in places.items():
        box = {"boxstyle": "round,pad=0.4", "facecolor": BEFORE, "edgecolor": "none"}
        page.text(x, y, name, ha="center", va="center", fontsize=8.4, color=INK, bbox=box)
    text = "the folders: each imports from those to its left, and none from the right"
    page.text(WIDTH / 2, 1.5, text, ha="center", fontsize=10, color=GREY)
