"""Kept rows say what the rows of the folder said, and the pages are what the kept rows give."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tnalgebra as tn
from docs.results_page import PAGES, experiments, page_with_results
from recipes.kept import Kept, keep, read_kept, write_kept
from tests.claim_rows import BASELINE, row
from tests.documents import ROOT
from tests.refusals import refused
from tnalgebra.errors import StudyError

CUTS = ("out | in kh kw", "out kh | in kw")
LAYERS = tuple(f"layer{number}" for number in range(5))


def some_rows() -> list[tn.studies.Row]:
    rows = [BASELINE]
    for place, cut in enumerate(CUTS):
        for step, keep_part in enumerate((0.75, 0.5, 0.25)):
            errors = [0.1 * (step + 1) + 0.01 * number for number in range(5)]
            fields = {"rewrite": cut, "keep": keep_part, "output": 0.05 * (step + 1) + 0.02 * place}
            losses = [0.01 * (step * (1 + place) - 0.3 * number) for number in range(5)]
            rows += [row(*one, **fields) for one in zip(LAYERS, errors, losses, strict=True)]
            rows.append(row(LAYERS, errors, 0.1 * step + 0.05 * place, **fields))
    return [{**one, "torch": "2.14.1", "machine": "abacus"} for one in rows]


def test_kept_rows_give_the_same_table_and_claims(tmp_path: Path) -> None:
    rows = some_rows()
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / tn.studies.COMMANDS_FILE).write_text(
        "python -m recipes.paper --data /some/where/cifar10 --output out --smoke\n"
    )
    (folder / "config.json").write_text(json.dumps({"data": "/some/where/cifar10", "seed": 0}))
    (folder / "results.jsonl").write_text("".join(json.dumps(one) + "\n" for one in rows))
    keep(folder, tmp_path / "kept" / "run.jsonl")
    kept = read_kept(tmp_path / "kept" / "run.jsonl")
    assert str(tn.studies.table(kept.rows)) == str(tn.studies.table(rows))
    draws = tn.studies.Draws(1, 50)
    before, after = (tn.studies.claims_of(some, at_most=0.01, draws=draws) for some in (rows, kept.rows))
    assert after.depth["output_error"].mean == before.depth["output_error"].mean
    assert after.norms["all"]["relative_error"].across == before.norms["all"]["relative_error"].across
    assert [band.part for band in after.bands["relative_error"]] == [
        band.part for band in before.bands["relative_error"]
    ]
    assert kept.commands == ("python -m recipes.paper --data cifar10 --smoke",)
    assert kept.config == {"data": "cifar10", "seed": 0}
    assert {(one["torch"], one["machine"]) for one in kept.rows} == {("2.14.1", "abacus")}


def test_what_rows_lack_is_missing_again(tmp_path: Path) -> None:
    rows = [{"epoch": 0, "score": float("nan"), "seed": None}, {"epoch": 1, "score": 0.123456789, "layers": {"a": {}}}]
    write_kept(tmp_path / "a.jsonl", Kept(rows, (), {}))
    first, second = read_kept(tmp_path / "a.jsonl").rows
    assert (first["score"], first["layers"], second["score"], second["seed"]) == (None, {}, 0.123457, None)


def test_folders_and_files_without_rows_are_refused(tmp_path: Path) -> None:
    with refused(StudyError, tmp_path):
        keep(tmp_path, tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl").write_text('{"rows": 3}\n[1]\n')
    with refused(StudyError, "b.jsonl"):
        read_kept(tmp_path / "b.jsonl")


def test_kept_rows_are_small_and_name_no_folder_of_a_machine() -> None:
    texts = [path.read_text("utf-8") for path in (ROOT / "docs" / "results").rglob("*.jsonl")]
    assert sum(map(len, texts)) < 1_000_000
    assert not [text[:100] for text in texts if "/tmp" in text or "/home" in text]


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_the_pages_are_what_the_kept_rows_give(page: str) -> None:
    assert experiments()
    assert (ROOT / "docs" / page).read_text("utf-8") == page_with_results(page), "python docs/generate.py results"
