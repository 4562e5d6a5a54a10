"""Pages and pictures of the docs that are made from the library.

python docs/generate.py                        all pages and drawings that need nothing but the library
python docs/generate.py architecture           the picture of architecture.md: how data flows, and who imports whom
python docs/generate.py text                   what is generated and not a picture, and the notebook of the tutorial
python docs/generate.py results                tables and figures of experiments, from the rows in docs/results
python docs/generate.py results runs/FOLDER    the same, after the rows of a recipe's folder, or of runs/paper, are kept
python docs/generate.py gallery                the pages and pictures of docs/gallery, from the recipes
python docs/generate.py gallery runs/gallery   the same, with the figures of a run of `recipes.gallery`
python docs/generate.py pages R.html E.html    the pictures of a report and of an explorer, by chromium and selenium
python docs/generate.py fits runs/fits         the table and figure of the benchmark of fits, into benchmarks.md
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from textwrap import fill
from typing import TypeAlias

import torch
from matplotlib.figure import Figure

import tnalgebra as tn

sys.path.insert(0, str(Path(__file__).parent.parent))  # recipes and tests are not installed with the package

from docs.architecture import draw_architecture, folders_table
from docs.arguments_table import arguments_table
from docs.commands import commands_section
from docs.examples import NETWORKS, NODES, draw_examples, examples_section
from docs.gallery_pages import FIGURES, write_gallery
from docs.notebook import notebook_of
from docs.pages import picture_pages
from docs.results_page import write_results
from docs.uses_table import uses_table

DOCS = Path(__file__).parent

PICTURES = {
    "convolution": "X[n in x y] Conv[x u kh | stride=2 padding=1] Conv[y v kw | stride=2 padding=1] K[out in kh kw] "
    "-> [n out u v]",
    "tucker": "G[a b c d] U[out a] V[in b] P[kh c] Q[kw d] -> [out in kh kw]",
    "tensor_train": "A[out p] B[p in q] C[q kh s] D[s kw]",
    "tensor_ring": "A[z out p] B[p in q] C[q kh s] D[s kw z]",
    "cp": "A[out r] B[in r] C[kh r] D[kw r] -> [out in kh kw]",
    "triangle": "A[o:24 p:4 z:4] B[p i:16 q:5] C[q h:3 w:3 z]",
    "cut": "L[out kh r] R[r in kw]",
    "patches": "X[n in x y] Conv[x u kh] Conv[y v kw] -> [n in kh kw u v]",
}
"""Networks that the docs show; `images/NAME.svg`."""

Places: TypeAlias = dict[int | str, tuple[float, float]]

LAYER = "X[n in x y] Conv[x u kh] Conv[y v kw] {} -> [n out u v]"
ABOVE: Places = {"X": (0, 2.1), 1: (-1.3, 1.1), 2: (1.3, 1.1)}
ASIDE: Places = {"X": (0, 2.1), 1: (0, 1.1), 2: (1.3, 1.1)}

SIX: dict[str, tuple[str, str, str, Places]] = {
    "tucker": (
        "Tucker",
        "G[a b c d] U[out a] V[in b] P[kh c] Q[kw d]",
        "K_{oihw} = Σ_{abcd} G_{abcd} U_{oa} V_{ib} P_{hc} Q_{wd}",
        {**ABOVE, "V": (0, 1.1), "P": (-1.3, 0), "G": (0, 0), "Q": (1.3, 0), "U": (0, -1)},
    ),
    "cp": (
        "CP",
        "A[out r] B[in r] C[kh r] D[kw r]",
        "K_{oihw} = Σ_r A_{or} B_{ir} C_{hr} D_{wr}",
        {**ABOVE, "B": (0, 1.1), "C": (-1.3, 0), "r": (0, 0), "D": (1.3, 0), "A": (0, -1)},
    ),
    "tensor_train": (
        "tensor train",
        "A[out p] B[p in q] C[q kh s] D[s kw]",
        "K_{oihw} = Σ_{pqs} A_{op} B_{piq} C_{qhs} D_{sw}",
        {**ASIDE, "A": (-2.5, 0), "B": (-1.3, 0), "C": (0, 0), "D": (1.3, 0)},
    ),
    "tensor_ring": (
        "tensor ring",
        "A[z out p] B[p in q] C[q kh s] D[s kw z]",
        "K_{oihw} = Σ_{pqsz} A_{zop} B_{piq} C_{qhs} D_{swz}",
        {**ASIDE, "A": (0, -1), "B": (-1.3, 0), "C": (0, 0), "D": (1.3, 0)},
    ),
    "spatially_separable": (
        "spatially separable",
        "A[out in kh] B[out in kw]",
        "K_{oihw} = A_{oih} B_{oiw}",
        {**ABOVE, "in": (0, 1.0), "A": (-1.3, 0), "B": (1.3, 0), "out": (0, -0.5)},
    ),
    "depthwise_separable": (
        "depthwise separable",
        "D[in kh kw] P[out in]",
        "K_{oihw} = D_{ihw} P_{oi}",
        {"X": (0, 2.1), 1: (-1.3, 1.1), 2: (0, 1.1), "in": (1.3, 1.1), "D": (0, 0), "P": (1.3, 0)},
    ),
}
"""The decompositions of figure 3 of arXiv 2403.14379: title, right side, equation, and where the nodes of the whole
layer are (`images/layer-NAME.svg`)."""

PICTURE_PLACES: dict[str, Places] = {
    "cut": {"L": (-0.6, 0), "R": (0.6, 0)},
    "patches": {"X": (0, 1), 1: (-0.8, 0), 2: (0.8, 0)},
}
"""Places of the nodes of `PICTURES`, if not those of the layout."""

PANELS: dict[str, Places] = {
    "spatially_separable": {"A": (-0.95, 0), "B": (0.95, 0), "in": (0, 0.6), "out": (0, -0.6)},
    "depthwise_separable": {"D": (-0.9, 0), "P": (0.9, 0)},
}
"""Places of the nodes in `images/six_decompositions.png`, if not those of the layout."""

KINDS = {"Linear": 2, "Conv1d": 3, "Conv2d": 4, "Conv3d": 5}
"""What has a kernel -> its number of axes."""


PLANNED = (
    "X[n:16 i:64 x:56 y:56] Conv[x u h:3 | padding=1] Conv[y v w:3 | padding=1] "
    "A[o:64 r:32] B[i r] C[h r] D[w r] -> [n o u v]"
)
"""The layer of `images/plan.svg`."""


def rules_page() -> str:
    """docs/rules.md: every exact rule with its equation and docstring, every decomposition with equation and source."""
    simplifying = {rule.name for rule in tn.rewriting.SIMPLIFY}
    lines = [
        "# Rules",
        "",
        "An exact rule changes a network and keeps its value. A decomposition approximates a tensor by a network.",
        "`print(tn.rules())` lists all of them, and so does the command `tnalgebra rules`. This page is generated from",
        "the library by `python docs/generate.py`.",
        "",
        "## Exact rules",
        "",
        "`tn.simplify` applies the rules that are marked *simplify*. Each of them makes a network smaller, so they",
        "come to an end in every order. `tn.rewriting.rewrite` applies any list of rules.",
    ]
    for rule in tn.rewriting.EXACT_RULES:
        mark = " *(simplify)*" if rule.name in simplifying else ""
        lines += ["", f"### {rule.name}{mark}", "", f"    {rule.equation}", "", rule.explanation]
    lines += [
        "",
        "## Decompositions",
        "",
        "Each decomposition has its rule for every kind of kernel for which it exists. A kernel is a weight as torch",
        "stores it, with one label for each axis. Labels that occur on the right side only are bonds, whose ranks",
        "follow from the size that is requested, or parts of a `Fuse`, whose sizes can be chosen. The text of a cut is",
        "also the name of a decomposition: `out kh | in kw` is `K[out in kh kw] => L[out kh r] R[r in kw]`.",
    ]
    for entry in tn.decompositions.CATALOGUE:
        equations, missing = equations_of(entry)
        lines += ["", f"### {entry.name}", "", fill(entry.source, 110), ""]
        lines += [f"    {kind}  {equation}" for kind, equation in equations.items()]
        for reason in dict.fromkeys(missing.values()):
            kinds = ", ".join(kind for kind, other in missing.items() if other == reason)
            lines += ["", f"It does not exist for {kinds}: {reason}."]
        lines += ["", f"![{entry.name}](images/rule-{entry.name}.svg)"]
    return "\n".join(lines) + "\n"


def equations_of(entry: tn.decompositions.Entry) -> tuple[dict[str, str], dict[str, str]]:
    """Kind of kernel -> the equation of the decomposition, or the reason why it does not exist."""
    found, missing = {}, {}
    for kind, axes in KINDS.items():
        try:
            found[kind] = entry.make(tn.networks.KERNEL_LABELS[axes]).equation
        except tn.errors.RuleError as error:
            missing[kind] = str(error).splitlines()[0]
    return found, missing


def drawn(entry: tn.decompositions.Entry) -> tn.Network:
    """What `images/rule-NAME.svg` shows: the right side for a Conv2d, else for a Linear."""
    equations, _ = equations_of(entry)
    return tn.networks.parse_rule(equations.get("Conv2d") or equations["Linear"])[1]


def draw_six(path: Path) -> None:
    """The six decompositions of a kernel side by side, with their equations."""
    figure = Figure(figsize=(11.2, 9.6), facecolor="white")
    for number, (name, (title, right, equation, _)) in enumerate(SIX.items()):
        left, bottom = (number % 3) / 3, 0.5 * (1 - number // 3)
        axes = figure.add_axes((left + 0.005, bottom + 0.095, 1 / 3 - 0.01, 0.365))
        tn.parse(f"{right} -> [out in kh kw]").draw(axes=axes, places=PANELS.get(name))
        middle = left + 1 / 6
        figure.text(middle, bottom + 0.467, f"({'abcdef'[number]}) {title}", ha="center", fontsize=14)
        figure.text(middle, bottom + 0.066, equation_text(equation), ha="center", fontsize=13)
        figure.text(middle, bottom + 0.018, right, ha="center", fontsize=9.5, family="monospace", color="#6b7680")
    figure.savefig(path, dpi=150, metadata={"Software": None})


def equation_text(equation: str) -> str:
    """An equation as matplotlib sets it."""
    return f"${equation.replace('Σ', chr(92) + 'sum')}$"


def store_fits(folder: Path) -> None:
    """Copy the table and the figure that `recipes.benchmarks.fits` wrote."""
    write_between("benchmarks.md", "fits", (folder / "fits.md").read_text(encoding="utf-8").strip())
    shutil.copyfile(folder / "fits.png", DOCS / "images" / "fits.png")


def write_between(page: str, name: str, block: str) -> str:
    """Put `block` between `<!-- NAME -->` and `<!-- end -->`, if the page has them; the page's text."""
    path = DOCS / page
    text, count = re.subn(
        rf"<!-- {name} -->.*?<!-- end -->",
        lambda _: f"<!-- {name} -->\n\n{block}\n\n<!-- end -->",
        path.read_text(encoding="utf-8"),
        flags=re.DOTALL,
    )
    if count > 1:
        raise SystemExit(f"{page} has {count} places marked <!-- {name} -->")
    path.write_text(text, encoding="utf-8")
    return text


def write_texts() -> None:
    """Write rules.md, the notebook of the tutorial, and what is generated within other pages."""
    (DOCS / "rules.md").write_text(rules_page(), encoding="utf-8")
    (DOCS / "tutorial.ipynb").write_text(notebook_of(DOCS / "tutorial.md"), encoding="utf-8")
    for (page, name), make in SECTIONS.items():
        write_between(page, name, make())


SECTIONS: dict[tuple[str, str], Callable[[], str]] = {
    ("architecture.md", "folders"): folders_table,
    ("layers.md", "arguments"): arguments_table,
    ("layers.md", "uses"): uses_table,
    ("notation.md", "nodes"): lambda: examples_section(NODES),
    ("notation.md", "networks"): lambda: examples_section(NETWORKS),
    ("command.md", "commands"): commands_section,
}
"""The page and the name of each mark -> what is generated there."""


def main() -> None:
    if sys.argv[1:] == ["architecture"]:
        draw_architecture(DOCS / "images" / "architecture.svg")
        return
    if sys.argv[1:2] == ["gallery"]:
        if len(sys.argv) == 3:
            shutil.copyfile(Path(sys.argv[2]) / FIGURES.name, FIGURES)
        write_gallery(pictures=True)
        return
    if len(sys.argv) == 4 and sys.argv[1] == "pages":
        picture_pages(Path(sys.argv[2]), Path(sys.argv[3]), DOCS / "images")
        return
    if len(sys.argv) == 3 and sys.argv[1] == "fits":
        store_fits(Path(sys.argv[2]))
        return
    if sys.argv[1:2] == ["results"]:
        write_results(map(Path, sys.argv[2:]))
        return
    write_texts()
    write_gallery(pictures=sys.argv[1:] != ["text"])
    if sys.argv[1:] == ["text"]:
        return
    draw_examples()
    for name, text in PICTURES.items():
        network = tn.parse(text)
        network.draw(DOCS / "images" / f"{name}.svg", places=PICTURE_PLACES.get(name))
    draw_six(DOCS / "images" / "six_decompositions.png")
    for name, (_, right, _, places) in SIX.items():
        tn.parse(LAYER.format(right)).draw(DOCS / "images" / f"layer-{name}.svg", places=places)
    for entry in tn.decompositions.CATALOGUE:
        drawn(entry).draw(DOCS / "images" / f"rule-{entry.name}.svg")
    draw_plan(DOCS / "images" / "plan.svg")
    draw_architecture(DOCS / "images" / "architecture.svg")


def draw_plan(path: Path) -> None:
    """The contraction tree of a CP layer."""
    layer = tn.parse(PLANNED)
    values = {name: torch.zeros(shape) for name, shape in tn.networks.shapes(layer).items() if name != "X"}
    inputs = {"X": tn.networks.shapes(layer)["X"]}
    tn.compile(layer, inputs=inputs, values=values, candidates="factored").plan.draw(path)


if __name__ == "__main__":
    main()
