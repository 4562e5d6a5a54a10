"""The folder of a study: rows survive a killed process, one process writes at a time, configs are not mixed."""

from __future__ import annotations

import json
import random
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.refusals import refused
from tests.study_cases import NO_FIT
from tnalgebra.errors import StudyError
from tnalgebra.studies.folder import LISTED_DIFFERENCES, compare_configs, config_hash, locked
from tnalgebra.studies.rows import FIELDS, Row, table
from tnalgebra.studies.store import CONFIG, ROWS, Store, read_rows

CONFIGURED: dict[str, Any] = {"model": "net", "seed": 0, "mean": (0.5, 0.25)}
WEIGHTS = "0123456789abcdef"
HASH = config_hash({**CONFIGURED, "weights": WEIGHTS})


def row(number: int, **fields: Any) -> Row:
    values = dict.fromkeys(FIELDS, number) | {"rewrite": f"cut {number}", "layers": {"ä": {}}, "config": HASH} | NO_FIT
    return values | fields


def settled(folder: Path, **config: Any) -> Store:
    """A store with its config whole. It is locked only while this runs."""
    store = Store(folder, CONFIGURED | config)
    with store.opened():
        store.settle(weights=WEIGHTS)
    return store


def filled(folder: Path, count: int) -> list[Row]:
    rows = [row(number) for number in range(count)]
    with Store(folder, CONFIGURED).opened() as store:
        store.settle(weights=WEIGHTS)
        for each in rows:
            store.append(each)
    return rows


def test_rows_are_on_the_disk_as_soon_as_they_are_appended(tmp_path: Path) -> None:
    with Store(tmp_path / "new" / "folder", CONFIGURED).opened() as store:
        store.settle(weights=WEIGHTS)
        for number in range(3):
            store.append(row(number))
            lines = (store.folder / ROWS).read_text(encoding="utf-8").splitlines()
            assert [json.loads(line) for line in lines] == store.rows == [row(n) for n in range(number + 1)]
    assert read_rows(store.folder) == [row(n) for n in range(3)]
    assert read_rows(tmp_path / "elsewhere") == []


def test_a_file_cut_off_at_any_byte_loses_the_unfinished_row_only(tmp_path: Path) -> None:
    rows = filled(tmp_path, 3)
    file = tmp_path / ROWS
    content = file.read_bytes()
    ends = [place + 1 for place, byte in enumerate(content) if byte == ord("\n")]
    for length in [*random.Random(0).sample(range(len(content)), 60), 0, ends[0], ends[0] - 1, ends[1] + 1]:
        file.write_bytes(content[:length])
        whole = sum(end <= length for end in ends)
        assert read_rows(tmp_path) == rows[:whole]
        assert file.read_bytes() == content[:length], "reading changes nothing"
        with Store(tmp_path, CONFIGURED).opened() as store:
            assert store.rows == rows[:whole]
            store.settle(weights=WEIGHTS)
            for missing in rows[whole:]:
                store.append(missing)
        assert file.read_bytes() == content


@pytest.mark.parametrize(
    "line", ["{half", "[1, 2]", "3", '{"rewrite": "none"}', "", "\0\0\0"], ids=["cut", "list", "3", "few", "empty", "0"]
)
def test_a_line_that_is_no_row_is_an_error_where_others_follow(line: str, tmp_path: Path) -> None:
    filled(tmp_path, 3)
    lines = (tmp_path / ROWS).read_text(encoding="utf-8").splitlines()
    (tmp_path / ROWS).write_text("\n".join([lines[0], line, lines[2], ""]), encoding="utf-8")
    with refused(StudyError, "line 2", ROWS):
        read_rows(tmp_path)


def test_another_config_is_refused_with_every_difference_and_nothing_changes(tmp_path: Path) -> None:
    filled(tmp_path, 2)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    with refused(StudyError, tmp_path, "seed: 0 there, 1 here", "mean: [0.5, 0.25] there, [0.5, 0.75] here"):
        settled(tmp_path, seed=1, mean=[0.5, 0.75], model="net")
    with Store(tmp_path, dict(reversed(CONFIGURED.items()))).opened() as store:
        with refused(StudyError, f'weights: "{WEIGHTS}" there, "other" here'):
            store.settle(weights="other")
        with refused(StudyError, "epochs: none there, 15 here"):
            store.settle(weights=WEIGHTS, epochs=15)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    settled(tmp_path / "other", epochs=15)
    with refused(StudyError, "epochs: 15 there, none here"):
        settled(tmp_path / "other")


def test_nested_configs_differ_by_their_entries(tmp_path: Path) -> None:
    one = {"a": {"b": 1, "c": {"d": None}}, "e": "text"}
    compare_configs(tmp_path, one, {"e": "text", "a": {"c": {"d": None}, "b": 1}})
    with refused(StudyError, "a.b: 1 there, 2 here", "a.c.d: none there, [3] here"):
        compare_configs(tmp_path, one, {"a": {"b": 2, "c": {"d": (3,)}}, "e": "text"})
    many = {str(number): number for number in range(LISTED_DIFFERENCES + 5)}
    with refused(StudyError, "and 5 more"):
        compare_configs(tmp_path, many, {})


def test_configs_that_cannot_be_read_are_not_overwritten(tmp_path: Path) -> None:
    filled(tmp_path, 1)
    for content in ("{half", "[]"):
        (tmp_path / CONFIG).write_text(content)
        with refused(StudyError, CONFIG, "cannot be read"):
            settled(tmp_path)
        assert (tmp_path / CONFIG).read_text() == content
    (tmp_path / CONFIG).unlink()
    with refused(StudyError, "rows", CONFIG):
        settled(tmp_path)


@pytest.mark.slow
def test_a_folder_is_locked_by_one_process_at_a_time(tmp_path: Path) -> None:
    hold = (
        "import sys; from pathlib import Path; from tnalgebra.studies import locked\n"
        f"with locked(Path({str(tmp_path)!r})): print('open', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen([sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"open\n"
        with refused(StudyError, "another process", tmp_path):
            settled(tmp_path)
        other.kill()
    settled(tmp_path)
    with locked(tmp_path), refused(StudyError, "another process"):
        settled(tmp_path)
    settled(tmp_path)


@pytest.mark.parametrize("place", ["file", "file/below", "/proc/nowhere"])
def test_a_folder_that_cannot_be_written(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    folder = tmp_path / place
    with refused(StudyError, f"{folder} cannot be written"):
        settled(folder)
    assert (tmp_path / "file").read_text() == "not a folder"


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    rows = filled(tmp_path, 2)
    before = (tmp_path / ROWS).read_bytes()
    with Store(tmp_path, CONFIGURED).opened() as store:
        store.settle(weights=WEIGHTS)
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # the write then fails half way, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 40, limits[1]))
        try:
            with refused(StudyError, f"{tmp_path} cannot be written"):
                store.append(row(2))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert store.rows == rows
        assert (tmp_path / ROWS).read_bytes() == before
        store.append(row(2))
    assert read_rows(tmp_path) == [*rows, row(2)]


def test_the_table_is_aligned_and_leaves_single_layers_out() -> None:
    none = row(0, rewrite="none", keep=None, scope="all", layers={}, accuracy=0.9173)
    none |= {"accuracy_change": 0.0, "mean_squared_relative_error": 0.0, "parameters_kept": 1.0}
    numbers = {"accuracy": 0.81789, "accuracy_change": -0.09941, "mean_squared_relative_error": 0.06561}
    several = none | numbers | {"rewrite": "a | b", "keep": 0.5, "layers": {"x": {}, "y": {}}, "parameters_kept": 1.25}
    single = several | {"scope": "x", "layers": {"x": {}}, "accuracy_change": 0.001}
    assert str(table([none, several, single])).splitlines() == [
        "rewrite  keep  scope  top-1 %  change  mean sq. rel. error  parameters kept",
        "---------------------------------------------------------------------------",
        "none           all      91.73                       0.0000            1.000",
        "a | b     0.5  all      81.79   -9.94               0.0656            1.250",
    ]
    assert str(table([none, several, single], scopes=("all", "x"))).splitlines()[4].split()[:5] == [
        "a",
        "|",
        "b",
        "0.5",
        "x",
    ]
    assert str(table([none, single])).splitlines()[3] == (
        "a | b     0.5  x        81.79   +0.10               0.0656            1.250"
    )
    assert str(table([])).splitlines()[0].split()[0] == "rewrite"


def test_settings_of_fits_have_columns_where_a_row_has_them() -> None:
    none = row(0, rewrite="none", keep=None, scope="all", layers={}, accuracy=0.9)
    fit = none | {
        "rewrite": "cp",
        "ranks": "r=16",
        "equations": [""],
        "components": "refit",
        "layers": {"x": {}, "y": {}},
    }
    budget = fit | {"ranks": None, "budget": 0.5, "components": None, "curves": "error"}

    def head(*rows: Row) -> list[str]:
        return str(table([none, *rows])).splitlines()[0].split("  top-1")[0].split()

    assert head() == ["rewrite", "scope"]
    assert head(fit) == ["rewrite", "ranks", "scope"]
    assert head(budget) == ["rewrite", "budget", "scope"]
    assert head(fit, budget | {"metric": "input"}) == ["rewrite", "ranks", "budget", "metric", "scope"]
    lines = str(table([none, fit, budget | {"metric": "input", "curves": "divergence"}])).splitlines()
    assert [line.split()[:-4] for line in lines[3:]] == [
        ["cp", "r=16", "frobenius", "all"],
        ["cp", "0.5", "input", "divergence", "all"],
    ]
    assert head(fit, fit | {"components": "drop from r=64"}) == ["rewrite", "ranks", "components", "scope"]
