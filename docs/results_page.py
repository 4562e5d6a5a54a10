"""The tables and figures of docs/results.md and docs/study.md, from the rows that docs/results/ keeps."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd

import tnalgebra as tn
from docs.experiment_block import experiment_block
from docs.network_tables import ACROSS, DOCS, KEPT, NOT_RUN, SOURCES, sources_text
from recipes import spectra
from recipes.a_priori import report as a_priori
from recipes.claims.paper import AT_MOST, DRAWS
from recipes.claims.report import depth_figure, loss_figure
from recipes.experiment import Row
from recipes.kept import Kept, keep, read_folder, read_kept
from recipes.retrain import report as retrain

PAGES = ("study.md", "results.md", "search.md")


def keep_folders(folders: Iterable[Path]) -> None:
    """Keep the rows of output folders, and of the folders in them: `runs/paper` becomes `NETWORK/EXPERIMENT.jsonl`."""
    for folder in folders:
        for one in [folder, *sorted(folder.glob("*/*/"))]:
            if read_folder(one):
                name = one.relative_to(folder) if one != folder else Path(one.name)
                keep(one, KEPT / name.with_suffix(".jsonl"))


def experiments() -> dict[str, Kept]:
    """The name of each file, such as "budgets" or "resnet20-cifar10/cuts" -> what it keeps."""
    paths = sorted(KEPT.rglob("*.jsonl"))
    return {path.relative_to(KEPT).with_suffix("").as_posix(): read_kept(path) for path in paths}


def block_of(name: str, kept: Mapping[str, Kept]) -> str:
    """What is generated at a mark of a page: an experiment, or a table across networks."""
    if name in ACROSS:
        return "\n\n".join(filter(None, [ACROSS[name](kept), sources_text(kept, SOURCES.get(name, name))]))
    return experiment_block(kept[name]) if name in kept else f"*{NOT_RUN.capitalize()}: no rows are kept.*"


def page_with_results(page: str) -> str:
    """The text of a page, with what is generated between `<!-- rows NAME -->` and `<!-- end -->`."""
    kept = experiments()
    return re.sub(
        r"<!-- rows (\S+) -->.*?<!-- end -->",
        lambda mark: f"<!-- rows {mark[1]} -->\n\n{block_of(mark[1], kept)}\n\n<!-- end -->",
        (DOCS / page).read_text(encoding="utf-8"),
        flags=re.DOTALL,
    )


def write_results(folders: Iterable[Path]) -> None:
    """Keep the rows of these folders, if any; write the tables of the pages, and their figures."""
    keep_folders(folders)
    for page in PAGES:
        (DOCS / page).write_text(page_with_results(page), encoding="utf-8")
    draw_figures(experiments())


def draw_figures(kept: Mapping[str, Kept]) -> None:
    """Draw the figures of all experiments, and store those that a page shows as `images/NAME_FIGURE.png`."""
    pages = "".join((DOCS / name).read_text(encoding="utf-8") for name in PAGES)
    pages += (DOCS.parent / "README.md").read_text(encoding="utf-8")
    for name, one in kept.items():
        stem = name.replace("/", "-")
        if f"images/{stem}_" not in pages:
            continue
        with tempfile.TemporaryDirectory() as temporary:
            draw(one.rows, Path(temporary))
            for figure in Path(temporary).glob("*.png"):
                if f"images/{stem}_{figure.name}" in pages:
                    shutil.copyfile(figure, DOCS / "images" / f"{stem}_{figure.name}")


def draw(rows: Sequence[Row], folder: Path) -> None:
    """The figures of an experiment, as its recipe draws them."""
    if "truncation" in rows[0]:
        retrain.figure(rows).savefig(folder / "accuracy.png", dpi=150)
    elif "contender" in rows[0]:
        a_priori.figure(rows).savefig(folder / "score.png", dpi=150)
    elif "cut" in rows[0]:
        frame = pd.DataFrame(rows)
        depths = spectra.depths_of(frame, "normalised_entropy", DRAWS)
        spectra.figure_of(frame, depths, rows[0]["model"]).savefig(folder / "entropies.png", dpi=150)
    elif "rewrite" in rows[0]:
        layers = dict.fromkeys(name for row in rows for name in row["layers"])
        tn.studies.draw_results(folder, rows, list(layers))
        if any(map(tn.studies.of_one_layer, rows)):
            claims = tn.studies.claims_of(rows, at_most=AT_MOST, draws=DRAWS)
            about = {"model": rows[0]["model"], "images": rows[0]["images"], "at_most": AT_MOST}
            depth_figure(claims, about).savefig(folder / "depth.png", dpi=150)
            loss_figure(claims, about).savefig(folder / "losses.png", dpi=150)
