"""The report of runs, read as data: what it says of rows of each kind, and what it refuses or leaves out."""

from __future__ import annotations

import json
import math
import re
from html import unescape
from pathlib import Path
from typing import Any

import pytest

from tests.claim_rows import BASELINE, row
from tests.pages.read_pages import datasets_of, values
from tests.pages.run_folders import (
    CUTS,
    LAYERS,
    STRONG,
    WEAK,
    benchmark_rows,
    retraining_rows,
    study_rows,
    write_rows,
)
from tests.refusals import refused
from tnalgebra.errors import StudyError
from tnalgebra.pages import write_report


def report(tmp_path: Path, *folders: Path) -> tuple[str, list[dict[str, Any]]]:
    """The page without the library of plots, and its data sets."""
    write_report(folders, tmp_path / "page.html")
    return datasets_of((tmp_path / "page.html").read_text(encoding="utf-8"))


def test_a_study_answers_the_questions_of_the_paper(tmp_path: Path) -> None:
    text, datasets = report(tmp_path, write_rows(tmp_path / "study", study_rows(), seed=7))
    assert f"{WEAK} bears least" in text
    assert f"{STRONG} bears most" in text
    assert f"{CUTS[1]} at keep 0.5, with 65.00 % at 0.50 of the parameters" in text
    assert "With one layer rewritten, " in text
    assert "seed: 7" in text
    by_title = {dataset["title"]: dataset for dataset in datasets}
    several = by_title["Several layers at once"]
    assert values(several, "top-1 %")[:2] == pytest.approx([65.0, 40.0])
    single = by_title["One layer at a time"]
    assert len(values(single, "layer")) == 2 * 3 * 5
    assert {panel["y"] for panel in single["panels"]} == {
        "change of top-1 (points)",
        "relative error of the kernel",
        "seconds of the row",
        "layer",
    }
    titles = set(re.findall(r"<figcaption>(.*?)</figcaption>", text))
    assert titles == {"kernel out in kh kw", *CUTS}


def test_a_grid_compares_its_networks_and_has_a_part_for_each(tmp_path: Path) -> None:
    rows = study_rows()
    half = [{**each, "accuracy_change": each["accuracy_change"] / 2, "model": "other"} for each in rows]
    fits = [
        {**row(LAYERS, [0.5] * 5, loss, rewrite="cp", ranks="r=2", equations=["K[o i] => A[o r] B[i r]"]), "seed": seed}
        for seed, loss in enumerate((0.05, 0.07))
    ]
    fits = [{**each, "parameters_kept": 0.4} for each in fits]
    text, datasets = report(tmp_path, write_rows(tmp_path / "grid", [*half, *rows, *fits]))
    assert "net, which loses 5.00 points of accuracy at half of its parameters." in text
    assert "At half of its parameters, net loses 5.00 points, other loses 12.50 points." in text
    assert re.findall("<option>(.*?)</option>", text) == ["other", "net"]
    assert len(re.findall('<section class="part"', text)) == 2
    compared, side, *parts = datasets
    assert values(compared, "network") == ["other", "net"]
    assert values(compared, "best at half of the parameters") == [f"{CUTS[1]} at keep 0.5", "cp at r=2"]
    assert values(compared, "bears least") == [WEAK, WEAK]
    assert side["series"] == "network"
    assert values(side, "network") == ["other"] * 6 + ["net"] * 8
    assert values(side, "seed") == [None] * 12 + [0, 1]
    alone, _ = report(tmp_path, write_rows(tmp_path / "alone", [*rows, *fits]))
    _, of_net = report(tmp_path, tmp_path / "alone")
    assert parts[-len(of_net) :] == of_net, "a part is the report of its network alone"
    assert "<option>" not in alone


def test_a_retraining_says_what_recovers(tmp_path: Path) -> None:
    text, datasets = report(tmp_path, write_rows(tmp_path / "retrain", retraining_rows()))
    assert "In part: 1 of 2 trainings recovered." in text
    recovery, epochs = datasets
    assert values(recovery, "recovered") == ["after epoch 2", "no"]
    assert values(recovery, "change (points)") == pytest.approx([-0.3, -10.0])
    assert len(values(epochs, "epoch")) == 10
    assert [panel["x"] for panel in epochs["panels"]] == ["epoch"] * 3


def test_a_benchmark_has_a_line_for_each_contender(tmp_path: Path) -> None:
    text, (dataset,) = report(tmp_path, write_rows(tmp_path / "bench", benchmark_rows()))
    assert "torch 2" in text
    assert values(dataset, "milliseconds") == [2.0, 1.0, None] * 2
    assert values(dataset, "times the first's") == [1.0, 0.5, None] * 2


def test_results_of_a_compression_and_of_a_training(tmp_path: Path) -> None:
    layer = {"name": "conv", "kind": "Conv2d", "rule": "cp", "ranks": {"r": 4}, "relative_error": 0.25}
    layer |= {"parameters": 100, "parameters_after": 40}
    compression = {"model": "net", "layers": [layer], "accuracy": {"before": 0.9, "after": 0.8}, "version": "0"}
    epochs = [{"epoch": 1, "test_score": 0.5, "training_loss": 2.0, "seconds": 1.0}]
    training = {"model": "net", "rows": epochs, "accuracy": 0.5, "version": "0"}
    folders = [tmp_path / "compress", tmp_path / "train"]
    for folder, result in zip(folders, (compression, training), strict=True):
        folder.mkdir()
        (folder / "report.json").write_text(json.dumps(result))
    (folders[0] / "drawings").mkdir()
    (folders[0] / "drawings" / "conv, plan.svg").write_text("<svg><script>alert(1)</script></svg>")
    text, (layers, rows) = report(tmp_path, *folders)
    assert "90.00 % -&gt; 80.00 %" in text
    assert "conv saves most parameters" in text
    assert "divergence" not in text
    assert values(layers, "parameters kept") == [0.4]
    assert values(rows, "training loss") == [2.0]
    assert "alert(1)" not in text, "a drawing is an image, in which nothing runs"
    assert re.findall(r'href="#(run-\d)"', text) == ["run-1", "run-2"]


@pytest.mark.parametrize(
    ("divergence", "undone", "said"),
    [
        ([0.02], False, "0.0200 nats<"),
        ([0.02, 0.01], False, "0.0200 nats, 0.0100 nats after the distillation<"),
        ([0.02, math.nan], True, "0.0200 nats, not finite after the distillation, which is undone<"),
    ],
)
def test_a_compression_says_what_a_distillation_did(
    divergence: list[float], undone: bool, said: str, tmp_path: Path
) -> None:
    accuracy = {"before": 0.9, "fitted": 0.85, "after": 0.8}
    layers = [{"name": "conv", "rule": "cp", "relative_error": 0.25}]
    result = {"model": "net", "layers": layers, "accuracy": accuracy, "divergence": divergence, "undone": undone}
    (tmp_path / "report.json").write_text(json.dumps(result))
    text, _ = report(tmp_path, tmp_path)
    assert said in text
    assert "85.00 %" in text


def test_rows_of_an_unknown_kind_are_a_table(tmp_path: Path) -> None:
    rows = [{"colour": "red", "nested": {"a": 1}, "list": [1, 2]}, {"colour": "blue", "more": True}, *study_rows()[:1]]
    text, (dataset,) = report(tmp_path, write_rows(tmp_path / "odd", rows))
    assert "of a kind that this version has no plots" in text
    assert values(dataset, "colour") == ["red", "blue", None]
    assert values(dataset, "nested.a") == [1, None, None]
    assert values(dataset, "list") == ["1, 2", None, None]
    assert values(dataset, "more") == [None, "True", None]


def test_a_result_of_an_unknown_kind_is_a_table(tmp_path: Path) -> None:
    for name, each in (("layers", {"relative_error": 0.1}), ("rows", {"score": 1})):
        (tmp_path / name).mkdir()
        (tmp_path / name / "report.json").write_text(json.dumps({name: [each], "more": 3}))
        text, (dataset,) = report(tmp_path, tmp_path / name)
        assert "of a kind that this version has no plots" in text
        assert values(dataset, "more") == [3]


def test_numbers_that_are_not_finite_are_shown_and_decide_nothing(tmp_path: Path) -> None:
    broken = row("layer0", math.nan, math.inf, keep=0.1)
    _, sound = report(tmp_path, write_rows(tmp_path / "sound", study_rows()))
    text, datasets = report(tmp_path, write_rows(tmp_path / "broken", [*study_rows(), broken]))
    assert "1 row with numbers that are not finite" in text
    assert datasets[:3] == sound[:3], "the answers"
    assert "-inf" in values(datasets[-1], "top-1 %")


def test_names_cannot_end_the_script_or_the_text(tmp_path: Path) -> None:
    evil = "</script><script>alert('\"&')</script>"
    rows = [BASELINE | {"model": evil}, row(evil, 0.5, 0.1, rewrite=evil, ranks=evil, equations=[evil])]
    text, datasets = report(tmp_path, write_rows(tmp_path / "<b>run", rows, data=evil))
    assert text.count("<script") == text.count("</script>") == 3
    assert "<b>" not in text
    assert unescape(text).count(evil) >= 2
    assert evil in values(datasets[-1], "layer")


def test_an_unfinished_last_line_is_left_out(tmp_path: Path) -> None:
    folder = write_rows(tmp_path / "study", study_rows(), tail='{"rewrite": "out |')
    text, _ = report(tmp_path, folder)
    assert "is unfinished, as a stopped process leaves it" in text
    assert (folder / "results.jsonl").read_text().endswith("out |"), "a report changes nothing"


def test_what_is_refused_leaves_no_page(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("before")
    empty = tmp_path / "empty"
    empty.mkdir()
    file = tmp_path / "notes.txt"
    file.write_text("not a run")
    broken = write_rows(tmp_path / "broken", [], tail="{]\n")
    texts = write_rows(tmp_path / "texts", [], tail='"row"\n{}\n')
    only = write_rows(tmp_path / "only", [], tail='{"rewrite": "out')
    result = tmp_path / "result"
    result.mkdir()
    (result / "report.json").write_text("[1]")
    for folder, facts in {
        empty: ("empty", "no finished row"),
        tmp_path / "nowhere": ("nowhere", "does not exist"),
        file: ("notes.txt", "not a folder"),
        broken: ("line 1", "not a row"),
        texts: ("line 1", "not a row"),
        only: ("only", "no finished row"),
        result: ("report.json",),
    }.items():
        with refused(StudyError, *facts):
            write_report([write_rows(tmp_path / f"good-{folder.name}", study_rows()), folder], page)
    with refused(StudyError, "no run"):
        write_report([], page)
    assert page.read_text() == "before"
    assert not list(tmp_path.glob(".page*"))


def test_folders_of_one_name_are_told_apart(tmp_path: Path) -> None:
    one, other = (write_rows(tmp_path / network / "layers", study_rows()) for network in ("first", "second"))
    text, _ = report(tmp_path, one, other)
    assert re.findall(r"<h2[^>]*>([^<\s]+)", text) == ["first/layers", "second/layers"]
    text, _ = report(tmp_path, one)
    assert re.findall(r"<h2[^>]*>([^<\s]+)", text) == ["layers"]


def test_a_file_of_rows_stands_for_its_folder(tmp_path: Path) -> None:
    folder = write_rows(tmp_path / "study", study_rows())
    text, _ = report(tmp_path, folder / "results.jsonl")
    assert "Report: study" in text
