"""Check the cores of published papers against their references, and measure what a user gains.

    python -m recipes.gallery                                  # all papers: a table
    python -m recipes.gallery --papers inceptionnext dcls      # these
    python -m recipes.gallery --smoke                          # the checks alone

The pages in docs/gallery have the networks, their pictures and the figures:
- `python docs/generate.py gallery` writes the pages from the recipes;
- `python docs/generate.py gallery runs/gallery` takes over the figures of a run before that.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from recipes.command import run_command
from recipes.gallery.frame import NAMES, paper, verify
from recipes.reporting import aligned, check_known, print_settings, write


@dataclass(frozen=True, kw_only=True)
class Config:
    """Check the papers of the gallery."""

    papers: tuple[str, ...] = NAMES
    """names of recipes, which are files in recipes/gallery"""
    threads: int = 1
    """threads of torch"""
    smoke: bool = False
    """the checks alone, without timings"""
    output: Path = Path("runs/gallery")
    """folder for figures.json, to which the figures of this run are added"""


def main(config: Config) -> None:
    """Print a line for each paper, and write the figures."""
    print_settings(config)
    check_known("paper", config.papers, NAMES)
    torch.set_num_threads(config.threads)
    path = config.output / "figures.json"
    figures = json.loads(path.read_text("utf-8")) if path.exists() else {}
    rows = [["paper", "arXiv", "difference", "figure", ""]]
    for name in config.papers:
        one, difference = paper(name), verify(name)
        gains = {} if config.smoke or one.gain is None else one.gain()
        figures[name] = gains
        lines = [(f"{number:.3g}", what) for what, number in gains.items()] or [("", "")]
        rows += [
            [*((name, one.arxiv, f"{difference:.1e}") if not row else ("", "", "")), *line]
            for row, line in enumerate(lines)
        ]
    print(aligned([[*row[:2], row[2], row[3], row[4]] for row in rows], left=2))
    write(path, json.dumps(figures, indent=1))


def run() -> None:
    """The command line."""
    run_command(Config, main, description=__doc__)


if __name__ == "__main__":
    run()
