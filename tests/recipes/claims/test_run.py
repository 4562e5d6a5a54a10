"""Claims as a command: what it prints, writes and draws is what the rows say; and its errors."""

from __future__ import annotations

import dataclasses
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from recipes.claims import report as claims_rows
from recipes.claims import run as claims
from recipes.claims.report import plain
from recipes.claims.run import Config, main
from recipes.claims.statistics import depth_correlation, harmless, norm_correlation, norm_gain
from tests.study_cases import NO_FIT
from tnalgebra.errors import StudyError
from tnalgebra.studies.store import ROWS, Row, read_rows

ROOT = Path(__file__).parents[2]
CUTS = ("out | in kh kw", "out kh | in kw")
LAYERS = tuple(f"layer{number}" for number in range(5))


def row(rewrite: str, scope: str, errors: dict[str, tuple[float, float | None]], loss: float, **fields: Any) -> Row:
    return {
        "model": "net",
        "rewrite": rewrite,
        "keep": None,
        "scope": scope,
        "accuracy": 0.9 - loss,
        "accuracy_change": -loss,
        "images": 1000,
        "mean_squared_relative_error": 0.0,
        "parameters_kept": 1.0,
        "layers": {
            name: {"rank": 1, "relative_error": error, "norm_kept": 1.0, "parameters": 1}
            | ({} if output is None else {"output_error": output})
            for name, (error, output) in errors.items()
        },
        "config": "0123456789ab",
        "version": "0",
        "seconds": 1.0,
        **NO_FIT,
        **fields,
    }


def some_rows(*, reported: bool = True, together: bool = True) -> list[Row]:
    rows = [row("none", "all", {}, 0.0)]
    for place, cut in enumerate(CUTS):
        for step, keep in enumerate((0.75, 0.5, 0.25)):
            errors = {
                name: (0.1 * (step + 1) + 0.01 * number, (0.05 * (step + 1) + 0.02 * place) if reported else None)
                for number, name in enumerate(LAYERS)
            }
            fields = {"keep": keep, "reported": "input" if reported else None}
            rows += [
                row(cut, name, {name: errors[name]}, 0.01 * (step * (1 + place) - 0.3 * number), **fields)
                for number, name in enumerate(LAYERS)
            ]
            if together:
                rows.append(row(cut, "all", errors, 0.1 * step + 0.05 * place, **fields))
    return rows


def written(folder: Path, rows: list[Row]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / ROWS).write_text("".join(json.dumps(each) + "\n" for each in rows))
    return folder


QUICK = Config(resamples=40)


def test_the_smoke_makes_a_study_and_reads_it(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "recipes.claims",
        "--smoke",
        "--resamples",
        "50",
        "--output",
        str(tmp_path / "out"),
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == f"rows              {tmp_path}/out/study"
    assert f"claims.json and figures: {tmp_path}/out/" in done.stdout
    rows = read_rows(tmp_path / "out" / "study")
    assert len(rows) == 1 + 2 * 3 * 5
    assert {each["reported"] for each in rows[1:]} == {"input"}
    names = {"depth.png", "depth.svg", "losses.png", "losses.svg", "claims.json", "study"}
    assert {file.name for file in (tmp_path / "out").iterdir()} == names
    found = json.loads((tmp_path / "out" / "claims.json").read_text())
    assert found["norms"]["each"]["output_error"]["across"]["points"] == 24
    assert [len(cuts) for cuts in found["depth"]["relative_error"]["cuts"].values()] == [4, 4]


def test_what_it_finds_is_what_the_statistics_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = some_rows()
    found = main(dataclasses.replace(QUICK, rows=written(tmp_path, rows), seed=3, at_most=0.005))
    draws: dict[str, Any] = {"seed": 3, "resamples": 40}
    assert list(found.depth) == ["relative_error", "output_error", "values"]
    for size, claim in found.depth.items():
        assert claim == depth_correlation(rows, size=size, at_most=0.005, **draws)  # type: ignore[arg-type]
    assert list(found.norms) == ["each", "all"]
    for scope, norms in found.norms.items():
        for error, norm in norms.items():
            assert norm == norm_correlation(rows, error=error, scope=scope, **draws)  # type: ignore[arg-type]
        assert found.gains[scope] == norm_gain(rows, scope=scope, **draws)  # type: ignore[arg-type]
    stored = json.loads((tmp_path / "claims" / "claims.json").read_text())
    assert (stored["model"], stored["images"], stored["config"]) == ("net", 1000, "0123456789ab")
    assert (stored["at_most"], stored["resamples"], stored["seed"]) == (0.005, 40, 3)
    across = found.norms["each"]["relative_error"].across
    assert stored["norms"]["each"]["relative_error"]["across"] == dataclasses.asdict(across)
    shown = capsys.readouterr().out
    assert "costs at most 0.5 points of accuracy" in shown
    line = f"    across all      {across.rho:+.2f} [{across.low:+.2f}, {across.high:+.2f}]  30 points, 5 drawn"
    assert line in shown.splitlines()
    assert "  relative error of the layer's output" in shown.splitlines()
    assert list(found.bands) == ["relative_error", "output_error"]
    for error, bands in found.bands.items():
        assert bands == harmless(rows, error=error, at_most=0.005, **draws)  # type: ignore[arg-type]
    largest = found.bands["relative_error"][-1]
    last = shown.split("by relative error of the kernel (95 % interval)\n\n")[1].split("\n\n")[0].splitlines()[-1]
    assert last.split()[:3] == [f"{largest.least:g}", "-", f"{largest.most:g}"]
    assert last.split()[-1] == f"{100 * largest.largest:.2f}"


def test_without_reported_errors_the_kernels_alone_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = written(tmp_path, some_rows(reported=False, together=False))
    found = main(dataclasses.replace(QUICK, rows=folder, output=tmp_path / "elsewhere"))
    assert (list(found.depth), list(found.norms), found.gains) == (["relative_error", "values"], ["each"], {})
    assert list(found.norms["each"]) == ["relative_error"]
    assert "output" not in capsys.readouterr().out.replace(f"output            {tmp_path}", "")
    assert not (tmp_path / "claims").exists()
    assert (tmp_path / "elsewhere" / "losses.svg").exists()


def test_numbers_that_there_are_not(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [each for each in some_rows() if each["scope"] in ("all", "layer0", "layer1")]
    main(dataclasses.replace(QUICK, rows=written(tmp_path, rows)))
    assert "none: fewer than 4 layers or rows: 2" in capsys.readouterr().out
    text = (tmp_path / "claims" / "claims.json").read_text()
    assert "NaN" not in text
    across = json.loads(text)["norms"]["each"]["relative_error"]["across"]
    assert (across["rho"], across["why"]) == (None, "fewer than 4 layers or rows: 2")


def test_an_unfinished_study_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = some_rows()
    main(dataclasses.replace(QUICK, rows=written(tmp_path, rows)))
    assert "not finished" not in capsys.readouterr().out
    main(dataclasses.replace(QUICK, rows=written(tmp_path, rows[:-2])))
    told = "the study is not finished: of 'out kh | in kw' some layers have fewer rows than others"
    assert told in capsys.readouterr().out


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_visible() and text.get_text()]


def test_the_figures_show_the_points(tmp_path: Path) -> None:
    found = main(dataclasses.replace(QUICK, rows=written(tmp_path, some_rows())))
    about = {"model": "net", "images": 1000, "at_most": 0.01}
    figure = claims_rows.depth_figure(found, about)
    panels = figure.axes
    assert len(panels) == 3
    assert [label.get_text() for label in panels[-1].get_xticklabels()] == list(LAYERS)
    for panel, claim in zip(panels, found.depth.values(), strict=True):
        shown = {
            (float(x), float(y))
            for line in panel.lines
            if line.get_linestyle() == "None"
            for x, y in zip(*line.get_data(), strict=True)
        }
        assert shown == {(LAYERS.index(cut.layer), cut.size) for cuts in claim.cuts.values() for cut in cuts}
        hollow = sum(len(line.get_xdata()) for line in panel.lines if line.get_markerfacecolor() == "white")
        assert hollow == sum(cut.bound is not None for cuts in claim.cuts.values() for cut in cuts) > 0
    losses = claims_rows.loss_figure(found, about)
    assert len(losses.axes) == 4
    for panel, (scope, error) in zip(
        losses.axes, [(s, e) for s in ("each", "all") for e in ("relative_error", "output_error")], strict=True
    ):
        points = [pair for line in panel.lines for pair in zip(*line.get_data(), strict=True)]
        wanted = [(x, 100 * y) for cut in found.norms[scope][error].points.values() for x, y in cut]
        np.testing.assert_allclose(points, wanted)
    for each in (figure, losses):
        each.draw_without_rendering()
        box = each.get_tightbbox().padded(-0.02)
        assert box.x0 >= -0.01
        assert box.y0 >= -0.01
        assert box.x1 <= each.get_figwidth() + 0.01
        assert box.y1 <= each.get_figheight() + 0.01
        assert any("net, 1000 test images" in text for text in texts(each))
    with Image.open(tmp_path / "claims" / "depth.png") as image:
        assert image.size[0] > 800


def test_one_point_is_a_point() -> None:
    assert [claims_rows._points(loss) for loss in (0.01, 0.005, 0.02)] == [
        "1 point of accuracy",
        "0.5 points of accuracy",
        "2 points of accuracy",
    ]


def test_json_has_no_nan() -> None:
    assert plain({"a": [math.nan, 1.0, (math.inf, None)], "b": {"c": "x"}}) == {
        "a": [None, 1.0, [None, None]],
        "b": {"c": "x"},
    }


def test_bad_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = written(tmp_path / "rows", some_rows())
    (tmp_path / "file").write_text("")
    alone = written(tmp_path / "alone", some_rows()[:1])
    for config, fact in (
        (Config(), "neither --rows nor --smoke is given"),
        (Config(rows=folder, smoke=True), "both --smoke and --rows are given"),
        (Config(rows=tmp_path / "nowhere"), "nowhere holds no rows"),
        (Config(rows=alone), "there are no rows of single layers\n"),
        (Config(rows=folder, at_most=2), "a loss of at most 2\n"),
        (Config(rows=folder, output=tmp_path / "file" / "below", resamples=5), "cannot be written"),
    ):
        with pytest.raises(StudyError, match=fact):
            main(config)
    monkeypatch.setattr("sys.argv", ["claims", "--rows", str(tmp_path / "nowhere")])
    with pytest.raises(SystemExit, match=r"error: .*nowhere holds no rows\n  fix: the --output"):
        claims.run()


def test_the_help_names_every_setting(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["claims", "--help"])
    with pytest.raises(SystemExit) as caught:
        claims.run()
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    for field in dataclasses.fields(Config):
        assert "--" + field.name.replace("_", "-") in shown
    assert max(map(len, shown.splitlines())) <= 90
