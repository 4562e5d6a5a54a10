"""The pages of the gallery of papers: written from the recipes, with the figures of a run in `gallery/figures.json`."""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from textwrap import fill

from recipes.gallery.frame import NAMES, TOLERANCE, paper, text

FOLDER = Path(__file__).parent / "gallery"
IMAGES = Path(__file__).parent / "images"
FIGURES = FOLDER / "figures.json"

INTRODUCTION = f"""\
# Papers in the notation

Each page shows what a paper computes at its core, as networks in [the notation](../notation.md) with their pictures,
and says what of the paper lies outside the algebra. The recipe of the same name in `recipes/gallery/` has the networks,
and compares their values on random numbers with a reference that is written without the library. They agree within
{TOLERANCE:g} in float64, and the tests repeat this. Where a paper has public code, the reference computes what that
code computes.

    python -m recipes.gallery                          # all checks and figures
    python -m recipes.gallery --papers dcls snnk       # some

The figures are times on one thread of an AMD EPYC, each the fastest of several turns against the alternative, or errors
and counts. A figure `A : B` is the quotient of A and B, so that above 1 it speaks for B.
"""


def page(name: str) -> str:
    """The page of a recipe."""
    one = paper(name)
    figures = json.loads(FIGURES.read_text("utf-8")).get(name, {})
    summary, _, rest = text(name).partition("\n\n")
    lines = [f"# {one.title}", "", f"[arXiv {one.arxiv}](https://arxiv.org/abs/{one.arxiv}). {summary}", "", rest]
    lines += ["", "## In the notation"]
    for number, (caption, network) in enumerate(one.cores.items(), 1):
        lines += ["", f"{caption[0].upper()}{caption[1:]}:", "", f"```text\n{network}\n```", ""]
        lines += [f"![{caption}](../images/{picture(name, number)})"]
    lines += ["", "## The check", "", inspect.getdoc(one.check) or "", "", paragraph(f"Checked with {one.source}.")]
    if one.gain is not None:
        lines += ["", "## What a user gains", "", inspect.getdoc(one.gain) or "", "", "| figure | |", "|---|---:|"]
        lines += [f"| {what.replace('|', chr(92) + '|')} | {number:.3g} |" for what, number in figures.items()]
    lines += ["", "## Outside the algebra", "", paragraph(one.outside), ""]
    lines += [f"The code is `recipes/gallery/{name}.py`; [all papers](index.md)."]
    return "\n".join(lines) + "\n"


def index() -> str:
    """The page that lists all."""
    rows = [f"| [{paper(name).title}]({name}.md) | {text(name).partition(chr(10) * 2)[0]} |" for name in NAMES]
    return (
        "\n".join([INTRODUCTION, "| paper | its core |", "|---|---|", *(" ".join(row.split()) for row in rows)]) + "\n"
    )


def paragraph(words: str) -> str:
    """One paragraph, in lines of the usual length."""
    return fill(words, 120, break_long_words=False, break_on_hyphens=False)


def picture(name: str, number: int) -> str:
    """The file of the drawing of a paper's n-th network."""
    return f"gallery-{name}-{number}.svg"


def pages() -> dict[str, str]:
    """The name of each page without its suffix -> its text."""
    return {"index": index(), **{name: page(name) for name in NAMES}}


def write_gallery(*, pictures: bool) -> None:
    """Write the pages, and the pictures too if requested."""
    for name, words in pages().items():
        (FOLDER / f"{name}.md").write_text(words, encoding="utf-8")
    if pictures:
        for name in NAMES:
            for number, network in enumerate(paper(name).cores.values(), 1):
                network.draw(IMAGES / picture(name, number))
