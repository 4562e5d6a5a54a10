"""The explorer, read as data: its errors, counts and lines of code are those of the library for the same layer."""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import tnalgebra as tn
from tests.pages.read_pages import datasets_of, values
from tests.refusals import refused
from tnalgebra.errors import LayerError, NotationError, RuleError, ValuesError
from tnalgebra.pages import write_explorer


@pytest.fixture(scope="module")
def model() -> nn.Sequential:
    torch.manual_seed(0)
    grouped = nn.Conv2d(8, 6, 3, groups=2, stride=2)
    return nn.Sequential(nn.Conv2d(3, 8, (3, 5)), grouped, nn.Flatten(), nn.Linear(24, 10))


SHAPE = (2, 3, 7, 10)
REWRITES = ("out | in kh kw", "tucker2", "cp")


@pytest.fixture(scope="module")
def data(model: nn.Sequential, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    path = tmp_path_factory.mktemp("explorer") / "page.html"
    write_explorer(model, path, rewrites=REWRITES, shape=SHAPE, progress=False)
    return {dataset["title"]: dataset for dataset in datasets_of(path.read_text(encoding="utf-8"))[1]}


def options(data: dict[str, Any]) -> list[dict[str, Any]]:
    columns = data["Rewrites of the layer"]["columns"]
    names = [column["name"] for column in columns]
    return [dict(zip(names, row, strict=True)) for row in zip(*(c["values"] for c in columns), strict=True)]


def test_the_code_makes_the_layer_that_the_numbers_describe(model: nn.Sequential, data: dict[str, Any]) -> None:
    rows = options(data)
    assert {row["rewrite"] for row in rows} == set(REWRITES)
    planned_alike = partial(tn.convert, example=SHAPE, candidates="factored", tune=False)
    for row in [row for row in rows if row["rewrite"] != "cp"][::3]:
        scope: dict[str, Any] = {"tn": SimpleNamespace(convert=planned_alike), "model": copy.deepcopy(model)}
        exec(row["code"], scope)
        (done,) = [each for each in scope["report"].rows if each.rule is not None]
        assert done.name == row["layer"]
        assert done.relative_error == pytest.approx(row["relative error"], rel=1e-3)
        bias = model[int(row["layer"])].bias.numel()
        assert done.parameters_after - bias == row["parameters"]
        assert done.multiply_adds_after == row["multiply-adds"]


def test_a_cut_has_the_errors_of_its_singular_values(data: dict[str, Any]) -> None:
    spectra = data["Spectra of the kernel"]
    columns = ("layer", "cut", "rank", "relative error if cut here")
    errors = {key[:3]: key[3] for key in zip(*(values(spectra, name) for name in columns), strict=True)}
    cuts = [row for row in options(data) if row["rewrite"] == "out | in kh kw"]
    assert cuts
    for row in cuts:
        assert row["relative error"] == pytest.approx(errors[row["layer"], row["rewrite"], row["rank"]], abs=1e-6)


def test_errors_of_short_fits_are_marked(model: nn.Sequential, data: dict[str, Any], tmp_path: Path) -> None:
    of_convolutions = {(row["rewrite"], row["error from"]) for row in options(data) if row["layer"] != "3"}
    assert of_convolutions == {("out | in kh kw", "singular values"), ("tucker2", "short fit"), ("cp", "short fit")}
    of_matrix = {row["error from"] for row in options(data) if (row["layer"], row["rewrite"]) == ("3", "cp")}
    assert of_matrix == {"singular values"}, "of a matrix it is a cut"
    for rewrites, noted in ((REWRITES[:1], False), (REWRITES[1:2], True)):
        write_explorer(model, tmp_path / "page.html", rewrites=rewrites, progress=False)
        assert ("only an upper bound" in (tmp_path / "page.html").read_text(encoding="utf-8")) == noted


def test_errors_fall_and_sizes_rise_with_the_rank(data: dict[str, Any]) -> None:
    by_curve: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in options(data):
        by_curve.setdefault((row["layer"], row["rewrite"]), []).append(row)
    for rows in by_curve.values():
        assert [row["rank"] for row in rows] == sorted({row["rank"] for row in rows})
        sizes = [row["parameters"] for row in rows]
        assert sizes == sorted(sizes)
        assert all(0 <= row["relative error"] <= 1 for row in rows)
        assert all(row["parameters kept"] < 1 for row in rows[1:]), "only the least rank may save nothing"


def test_bad_input_leaves_no_page(model: nn.Sequential, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    broken = nn.Sequential(nn.Linear(2, 2))
    nn.init.constant_(broken[0].weight, float("nan"))
    with refused(RuleError, "nonsense"):
        write_explorer(model, page, rewrites=["nonsense"])
    with refused(NotationError):
        write_explorer(model, page, rewrites=["K[out in => A[out r] B[r in]"])
    with refused(RuleError, "twice"):
        write_explorer(model, page, rewrites=["out | in kh kw then in | out kh kw"])
    with refused(LayerError, "example"):
        write_explorer(model, page, rewrites=["cp"], shape=(1, 5, 7, 10))
    with refused(ValuesError, "0.weight"):
        write_explorer(broken, page)
    assert not page.exists()
