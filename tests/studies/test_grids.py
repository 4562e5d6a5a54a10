"""A grid of networks and seeds is what studies of each alone are, in one folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor, nn

import tnalgebra as tn
from tests.refusals import refused
from tests.study_cases import CLASSES, CUTS, labelled, network, some_images, study, without_seconds
from tnalgebra.errors import LayerError, RuleError, StudyError
from tnalgebra.model.images import Images
from tnalgebra.studies import read_rows
from tnalgebra.studies.shared_tests import SharedTests

pytestmark = pytest.mark.usefixtures("undrawn")

REWRITES = ("out | in kh kw", "cp")
SIZES = ("keep 0.5", "r=2")


class Small(nn.Module):
    """A network of other layers than `Net`, for the same images."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3)
        self.second = nn.Conv2d(4, 6, (2, 3))
        self.head = nn.Linear(18, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.second(self.first(images).relu()).tanh().flatten(1)[:, :18])


@pytest.fixture(scope="module")
def models(model: nn.Module) -> dict[str, nn.Module]:
    return {"net": model, "small": network(Small)}


@pytest.fixture(scope="module")
def grid(models: dict[str, nn.Module], images: Images, tmp_path_factory: pytest.TempPathFactory) -> tn.studies.Study:
    return study(models, images, tmp_path_factory.mktemp("grid"), REWRITES, SIZES, **EVERYTHING)


EVERYTHING: dict[str, Any] = {
    "scope": ("all", "each", "wide", "sec*"),
    "skip": ("first", "stem", "linear"),
    "seed": (0, 3),
}


def test_the_rows_of_a_grid_are_those_of_each_network_and_seed(
    grid: tn.studies.Study, models: dict[str, nn.Module], images: Images, tmp_path: Path
) -> None:
    alone: list[dict[str, Any]] = []
    for name, model in models.items():
        for seed in (0, 3):
            folder = tmp_path / f"{name}{seed}"
            scope = ("all", "each", "sec*" if name == "small" else "wide")
            skip = ("first", "linear") if name == "small" else ("first", "stem", "linear")
            alone += study({name: model}, images, folder, REWRITES, SIZES, scope=scope, skip=skip, seed=seed).rows
    expected = {key(row): row for row in alone}
    assert len(grid.rows) == len({key(row) for row in grid.rows})
    assert {key(row) for row in grid.rows} == {*expected}
    for row in grid.rows:
        for name in ("accuracy", "accuracy_change", "layers", "parameters_kept", "multiply_adds_kept"):
            assert row.get(name) == expected[key(row)].get(name)
    assert read_rows(grid.folder)[:2] == [row for row in grid.rows if row["rewrite"] == "none"], "the first rows"
    assert len({row["config"] for row in grid.rows}) == 2


def key(row: dict[str, Any]) -> tuple[object, ...]:
    return tuple(row[name] for name in ("model", "seed", "rewrite", "scope", "keep", "ranks", "budget"))


def test_seeds_are_of_fits_alone(grid: tn.studies.Study) -> None:
    fits = [row for row in grid.rows if row["rewrite"] == "cp"]
    assert {row["seed"] for row in grid.rows if row["rewrite"] != "cp"} == {None}
    assert {row["seed"] for row in fits} == {0, 3}
    first, second = ([row["layers"] for row in fits if row["seed"] == seed] for seed in (0, 3))
    assert any(one != other for one, other in zip(first, second, strict=True))


def test_a_grid_grows_and_continues(
    grid: tn.studies.Study,
    models: dict[str, nn.Module],
    images: Images,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    some = {**EVERYTHING, "scope": ("all", "each", "wide"), "seed": 3}
    study({"net": models["net"]}, images, tmp_path / "parts", REWRITES, SIZES, **some)
    with refused(StudyError, "another config", 'skip: ["first", "stem", "linear"] there, ["stem"] here'):
        study(models, images, tmp_path / "parts", REWRITES, SIZES, **{**EVERYTHING, "skip": ("stem",)})
    before = read_rows(tmp_path / "parts")
    found = study(models, images, tmp_path / "parts", REWRITES, SIZES, **EVERYTHING)
    assert read_rows(tmp_path / "parts")[: len(before)] == before
    assert without_seconds(found.rows) == without_seconds(grid.rows)
    assert [key(row) for row in found.rows] == [key(row) for row in grid.rows]
    changed = {**models, "small": network(Small, seed=5)}
    with refused(StudyError, "another config", "models.small: "):
        study(changed, images, tmp_path / "parts", REWRITES, SIZES, **EVERYTHING)
    monkeypatch.setattr("tnalgebra.studies.runner.run_tasks", lambda *_, **__: (_ for _ in ()))
    assert study(models, images, tmp_path / "parts", REWRITES, SIZES, **EVERYTHING).rows == found.rows


def test_one_network_keeps_its_prefixes_at_a_time(
    models: dict[str, nn.Module], images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    testers: list[SharedTests] = []
    kept: list[int] = []
    shared = SharedTests._shared

    def counted(self: SharedTests, tests: Any) -> Any:
        testers.append(self)
        result = shared(self, tests)
        kept.append(sum(bool(one._kept) for one in {id(one): one for one in testers}.values()))
        return result

    monkeypatch.setattr(SharedTests, "_shared", counted)
    study(models, images, tmp_path, CUTS, scope="each", skip=("first", "stem", "linear"))
    assert len({id(one) for one in testers}) == 2
    assert {*kept} == {1}


def test_a_network_that_looks_untrained_is_found_before_rows_of_others(model: nn.Module, tmp_path: Path) -> None:
    images = labelled(some_images(), model)
    fresh = network(Small)
    with refused(StudyError, "small looks untrained"):
        study({"net": model, "small": fresh}, images, tmp_path, CUTS, untrained=False)
    assert [row["model"] for row in read_rows(tmp_path)] == ["net"]


def test_what_exists_for_none_of_the_networks_is_refused(models: dict[str, nn.Module], images: Images) -> None:
    folder = Path("/nowhere")
    with refused(RuleError, "out in k"):
        study(models, images, folder, ["K[out in k] => A[out r] B[in r] C[k r]"], [2])
    with refused(StudyError, "scope 'third' matches no layer", "grouped", "second"):
        study(models, images, folder, CUTS, scope=("all", "third"))
    with refused(StudyError, "skip 'third' matches no layer", "grouped", "second"):
        study(models, images, folder, CUTS, skip=("third",))
    with refused(StudyError, "no seed", "seed=0"):
        study(models, images, folder, CUTS, seed=())
    with refused(LayerError, "no network", "mapping"):
        study({}, images, folder, CUTS)
    with refused(LayerError, "not texts"):
        study({1: models["net"]}, images, folder, CUTS)  # type: ignore[dict-item]


def test_claims_are_of_one_network(grid: tn.studies.Study) -> None:
    draws = tn.studies.Draws(resamples=2)
    with refused(StudyError, "several networks", "net, small", "--model"):
        tn.studies.claims_of(grid.rows, at_most=0.01, draws=draws)
    claims = tn.studies.claims_of([row for row in grid.rows if row["model"] == "net"], at_most=0.01, draws=draws)
    assert {*claims.depth["relative_error"].cuts} == {"out | in kh kw", "cp", "cp, seed 3"}


def test_the_table_names_networks_and_seeds(grid: tn.studies.Study) -> None:
    head, _, *lines = str(grid).splitlines()
    assert head.split()[:2] == ["network", "rewrite"]
    assert "seed" in head.split()
    assert [line.split()[0] for line in lines if " none " in line] == ["net", "small"]


def test_a_folder_of_an_earlier_version_is_continued(model: nn.Module, images: Images, tmp_path: Path) -> None:
    """It has the network and the seed in its config, and rows without a seed."""
    found = study({"net": model}, images, tmp_path / "now", REWRITES, SIZES, skip=("first", "linear"), seed=3)
    config = json.loads((tmp_path / "now" / "config.json").read_text())
    ((name, weights),) = config.pop("models").items()
    rows = [{field: value for field, value in row.items() if field != "seed"} for row in found.rows[:-1]]
    folder = tmp_path / "earlier"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({"model": name, **config, "seed": 3, "weights": weights}))
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + '{"unfini')
    assert read_rows(folder) == rows
    again = study({"net": model}, images, folder, REWRITES, SIZES, skip=("first", "linear"), seed=3)
    assert again.rows[:-1] == found.rows[:-1]
    assert again.rows[-1] == {**found.rows[-1], "seconds": again.rows[-1]["seconds"]}
    with refused(StudyError, "models.net: "):
        study({"net": network(seed=4)}, images, folder, REWRITES, SIZES, skip=("first", "linear"))


def test_budgets_are_shared_out_for_each_network_and_seed(
    models: dict[str, nn.Module], images: Images, tmp_path: Path
) -> None:
    sizes = ("parameters 0.8", "parameters 0.9")
    rows = study(models, images, tmp_path / "grid", ["tucker2"], sizes, seed=(0, 3)).rows
    alone = [
        row
        for name, model in models.items()
        for row in study({name: model}, images, tmp_path / name, ["tucker2"], sizes, seed=3).rows
    ]
    assert [key(row) for row in rows if row["seed"] != 0] == [key(row) for row in alone]
    assert without_seconds([row for row in rows if row["seed"] != 0]) == without_seconds(alone)
    assert len(rows) == 2 * (1 + 2 * 2)


def test_figures_of_further_networks_have_their_number(
    models: dict[str, nn.Module], images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[str, str, list[str], str]] = []

    def note(what: str) -> Any:
        def draw(_: Path, rows: Any, *args: Any, suffix: str) -> None:
            drawn.append((what, suffix, sorted({row["model"] for row in rows}), ""))

        return draw

    monkeypatch.setattr("tnalgebra.studies.runner.draw_results", note("rows"))
    study({"small": models["small"]}, images, tmp_path, CUTS[:1])
    study({"net": models["net"], "small": models["small"]}, images, tmp_path, CUTS[:1])
    assert [entry[:3] for entry in drawn] == [("rows", "", ["small"]), ("rows", "-2", ["net"]), ("rows", "", ["small"])]
