"""Claims as a command: what it prints, writes and draws is what the rows say; and its errors."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text

from recipes.claims import run as claims
from recipes.claims.report import depth_figure, loss_figure, points_text
from recipes.claims.run import Config, main
from tests.claim_rows import BASELINE, row
from tests.refusals import refused
from tnalgebra.errors import StudyError
from tnalgebra.studies.claims import claims_of, depth_correlation, harmless, norm_correlation, norm_gain
from tnalgebra.studies.correlation import Draws
from tnalgebra.studies.rows import Row
from tnalgebra.studies.store import ROWS, read_rows

CUTS = ("out | in kh kw", "out kh | in kw")
LAYERS = tuple(f"layer{number}" for number in range(5))
DRAWS = Draws(3, 40)
QUICK = Config(resamples=40, seed=3)


def some_rows(*, reported: bool = True, together: bool = True) -> list[Row]:
    rows = [BASELINE]
    for place, cut in enumerate(CUTS):
        for step, keep in enumerate((0.75, 0.5, 0.25)):
            errors = [0.1 * (step + 1) + 0.01 * number for number in range(5)]
            output = 0.05 * (step + 1) + 0.02 * place if reported else None
            fields = {"rewrite": cut, "keep": keep, "output": output, "reported": "input" if reported else None}
            losses = [0.01 * (step * (1 + place) - 0.3 * number) for number in range(5)]
            rows += [row(*one, **fields) for one in zip(LAYERS, errors, losses, strict=True)]
            if together:
                rows.append(row(LAYERS, errors, 0.1 * step + 0.05 * place, **fields))
    return rows


def written(folder: Path, rows: list[Row]) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / ROWS).write_text("".join(json.dumps(each) + "\n" for each in rows))
    return folder


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers alone, which are quicker without their figures."""
    monkeypatch.setattr(claims, "write_figure", lambda *_: None)


@pytest.mark.slow
def test_the_smoke_makes_a_study_and_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["claims", "--smoke", "--resamples", "50", "--output", str(tmp_path / "out")])
    claims.run()
    assert f"claims.json and figures: {tmp_path}/out/" in capsys.readouterr().out
    rows = read_rows(tmp_path / "out" / "study")
    assert len(rows) == 1 + 2 * 3 * 5
    assert {each["reported"] for each in rows[1:]} == {"input"}
    names = {"depth.png", "depth.svg", "losses.png", "losses.svg", "claims.json", "study"}
    assert {file.name for file in (tmp_path / "out").iterdir()} == names
    found = json.loads((tmp_path / "out" / "claims.json").read_text())
    single = [row for row in rows if row["scope"] in row["layers"]]
    kept = {(row["rewrite"], row["scope"], row["layers"][row["scope"]]["rank"]) for row in single}
    assert found["norms"]["each"]["output_error"]["across"]["points"] == len(kept) < len(single) == 24
    assert [len(cuts) for cuts in found["depth"]["relative_error"]["cuts"].values()] == [4, 4]


@pytest.mark.usefixtures("undrawn")
def test_what_it_finds_is_what_the_statistics_say(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = some_rows()
    found = main(dataclasses.replace(QUICK, rows=written(tmp_path, rows), at_most=0.005))
    assert list(found.depth) == ["relative_error", "output_error", "values"]
    for size, claim in found.depth.items():
        assert claim == depth_correlation(rows, size=size, at_most=0.005, draws=DRAWS)
    assert list(found.norms) == ["each", "all"]
    for scope, norms in found.norms.items():
        for error, norm in norms.items():
            assert norm == norm_correlation(rows, error=error, scope=scope, draws=DRAWS)
        assert found.gains[scope] == norm_gain(rows, scope=scope, draws=DRAWS)
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
    assert "not finished" not in shown
    assert list(found.bands) == ["relative_error", "output_error"]
    for error, bands in found.bands.items():
        assert bands == harmless(rows, error=error, at_most=0.005, draws=DRAWS)
    largest = found.bands["relative_error"][-1]
    last = shown.split("by relative error of the kernel (95 % interval)\n\n")[1].split("\n\n")[0].splitlines()[-1]
    assert last.split()[:3] == [f"{largest.least:g}", "-", f"{largest.most:g}"]
    assert last.split()[-1] == f"{100 * largest.largest:.2f}"


@pytest.mark.usefixtures("undrawn")
def test_numbers_that_the_rows_do_not_have(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = some_rows(reported=False, together=False)
    folder = written(tmp_path / "study", [each for each in rows if each["scope"] in ("all", "layer0", "layer1")][:-1])
    found = main(dataclasses.replace(QUICK, rows=folder, output=tmp_path / "elsewhere"))
    assert (list(found.depth), list(found.norms), found.gains) == (["relative_error", "values"], ["each"], {})
    assert list(found.norms["each"]) == list(found.bands) == ["relative_error"]
    shown = capsys.readouterr().out
    assert "layer's output" not in shown
    assert "none: fewer than 4 layers or rows: 2" in shown
    assert "the study is not finished: of 'out kh | in kw' some layers have fewer rows than others" in shown
    assert not (folder / "claims").exists()
    text = (tmp_path / "elsewhere" / "claims.json").read_text()
    assert "NaN" not in text
    across = json.loads(text)["norms"]["each"]["relative_error"]["across"]
    assert (across["rho"], across["why"]) == (None, "fewer than 4 layers or rows: 2")


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_visible() and text.get_text()]


def test_the_figures_show_the_points() -> None:
    found = claims_of(some_rows(), at_most=0.01, draws=DRAWS)
    about = {"model": "net", "images": 1000, "at_most": 0.01}
    figure = depth_figure(found, about)
    panels = figure.axes
    assert len(panels) == 3
    assert [label.get_text() for label in panels[-1].get_xticklabels()] == list(LAYERS)
    for panel, claim in zip(panels, found.depth.values(), strict=True):
        points = [line for line in panel.lines if line.get_linestyle() == "None"]
        shown = {(float(x), float(y)) for line in points for x, y in zip(*line.get_data(), strict=True)}
        cuts = [cut for own in claim.cuts.values() for cut in own]
        assert shown == {(LAYERS.index(cut.layer), cut.size) for cut in cuts}
        hollow = sum(len(line.get_xdata()) for line in points if line.get_markerfacecolor() == "white")
        assert hollow == sum(cut.bound is not None for cut in cuts) > 0
    losses = loss_figure(found, about)
    claims_shown = [norm for norms in found.norms.values() for norm in norms.values()]
    for panel, claim in zip(losses.axes, claims_shown, strict=True):
        pairs = [pair for line in panel.lines for pair in zip(*line.get_data(), strict=True)]
        np.testing.assert_allclose(pairs, [(x, 100 * y) for cut in claim.points.values() for x, y in cut])
    for each in (figure, losses):
        each.draw_without_rendering()
        box = each.get_tightbbox().padded(-0.02)
        assert min(box.x0, box.y0) >= -0.01
        assert box.x1 <= each.get_figwidth() + 0.01
        assert box.y1 <= each.get_figheight() + 0.01
        assert any("net, 1000 test images" in text for text in texts(each))


def test_one_point_is_a_point() -> None:
    assert [points_text(loss) for loss in (0.01, 0.005)] == ["1 point of accuracy", "0.5 points of accuracy"]


def test_bad_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    folder = written(tmp_path / "rows", some_rows())
    (tmp_path / "file").write_text("")
    alone = written(tmp_path / "alone", [BASELINE])
    for config, *facts in (
        (Config(), "none of", "--smoke"),
        (Config(rows=folder, smoke=True), "--rows and --smoke"),
        (Config(rows=folder, paper=tmp_path), "--rows and --paper"),
        (Config(rows=tmp_path / "nowhere"), "nowhere"),
        (Config(rows=alone), "rows of single layers"),
        (Config(rows=folder, at_most=2), "at most 2"),
        (Config(rows=folder, resamples=0), "resamples is 0"),
        (Config(rows=folder, output=tmp_path / "file" / "below", resamples=5), "claims.json"),
    ):
        with refused(StudyError, *facts):
            main(config)
    monkeypatch.setattr("sys.argv", ["claims", "--rows", str(tmp_path / "nowhere")])
    with pytest.raises(SystemExit) as caught:
        claims.run()
    assert caught.value.code == 2
    assert capsys.readouterr().err.startswith("error: ")
