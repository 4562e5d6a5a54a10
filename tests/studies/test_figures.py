"""The figures of a study: what they show is what the rows say, and they are up to date when the study ends."""

from __future__ import annotations

import errno
import re
from collections.abc import Sequence
from importlib import import_module
from itertools import pairwise
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.text import Text
from PIL import Image
from torch import nn

import tnalgebra as tn
from tests.refusals import refused
from tests.study_cases import NO_FIT
from tests.study_cases import study as run_study
from tnalgebra.errors import StudyError
from tnalgebra.model.images import Images
from tnalgebra.studies import figures, kernel_figures
from tnalgebra.studies.figures import draw_results
from tnalgebra.studies.kernel_figures import draw_kernels
from tnalgebra.studies.kernels import Layer
from tnalgebra.studies.rows import Row

runner = import_module("tnalgebra.studies.runner")

CURVES = ("accuracy_against_norm", "accuracy_against_parameters")
KERNELS = ("networks", "spectra")
CUTS = tuple(cut.name for cut in tn.all_cuts("out in kh kw"))


def row(rewrite: str, keep: float | None, scope: str, layers: list[str], accuracy: float, kept: float = 1.0) -> Row:
    details = {"rank": 1, "relative_error": 0.1, "norm_kept": 0.9 if keep is None else keep, "parameters": 1}
    return {
        "model": "net",
        "rewrite": rewrite,
        "keep": keep,
        "scope": scope,
        "accuracy": accuracy,
        "accuracy_change": accuracy - 0.9,
        "images": 123,
        "parameters_kept": kept,
        "layers": {name: dict(details) for name in layers},
        **NO_FIT,
    }


BASELINE = row("none", None, "all", [], 0.9)


def planned(cuts: Sequence[str]) -> list[Row]:
    return [row(cut, 0.5, "all", ["a"], 0.5) for cut in cuts]


def layers_named(names: list[str], size: int = 4) -> list[Layer]:
    generator = torch.Generator().manual_seed(0)
    shape = (size, size + 1, 3, 2)
    return [
        Layer(name, ("out", "in", "kh", "kw"), torch.randn(shape, generator=generator, dtype=torch.float64))
        for name in names
    ]


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> dict[str, Figure]:
    """The figures by name, kept in memory instead of files."""
    kept: dict[str, Figure] = {}

    def keep(figure: Figure, stem: Path) -> list[Path]:
        kept[stem.name] = figure
        return []

    for module in (figures, kernel_figures):
        monkeypatch.setattr(module, "store_figure", keep)
    return kept


def texts(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(Text) if text.get_visible() and text.get_text()]


def all_inside(figure: Figure) -> None:
    """Nothing is clipped at the edge of the figure, and no two tick labels of an axis overlap."""
    figure.draw_without_rendering()
    drawn, whole = figure.get_tightbbox(), figure.bbox_inches
    assert drawn.x0 >= -0.01, "clipped on the left"
    assert drawn.y0 >= -0.01, "clipped below"
    assert drawn.x1 <= whole.x1 + 0.01, "clipped on the right"
    assert drawn.y1 <= whole.y1 + 0.01, "clipped above"
    for axis in (axis for axes in figure.axes if axes.axison for axis in (axes.xaxis, axes.yaxis)):
        low, high = sorted(axis.get_view_interval())
        labels = [
            text
            for tick in axis.get_major_ticks()
            if low <= tick.get_loc() <= high
            for text in (tick.label1, tick.label2)
            if text.get_visible() and text.get_text()
        ]
        boxes = [label.get_window_extent() for label in labels]
        for (one, other), label in zip(pairwise(boxes), labels, strict=False):
            assert not one.overlaps(other), f"the tick label {label.get_text()!r} overlaps the next"


def test_curves_hold_the_rows_numbers(drawn: dict[str, Figure]) -> None:
    rows = [BASELINE]
    for number, cut in enumerate(CUTS):
        rows += [row(cut, keep, "all", ["a", "b"], keep * (number + 3) / 10, keep / 2) for keep in (0.75, 0.25, 0.5)]
        rows += [row(cut, 0.5, "a", ["a"], 0.1)]
    rows += [row(CUTS[0], 0.5, "lay*", ["a", "b"], 0.33, 0.2)]
    draw_results(Path(), rows, ["a", "b"])
    assert sorted(drawn) == [*CURVES, "layers"]
    for name, scale in zip(CURVES, (1, 0.5), strict=True):
        (axes,) = drawn[name].axes
        lines = {str(line.get_label()): line for line in axes.lines}
        front = ["best of all"] if name == CURVES[1] else []
        assert list(lines) == ["as it is: 90.00 %", *CUTS, f"{CUTS[0]}, lay*", *front]
        assert set(lines["as it is: 90.00 %"].get_ydata()) == {90.0}
        for number, cut in enumerate(CUTS):
            keep = np.array([0.25, 0.5, 0.75])
            np.testing.assert_allclose(lines[cut].get_xdata(), keep * scale, rtol=1e-12)
            np.testing.assert_allclose(lines[cut].get_ydata(), keep * (number + 3) * 10, rtol=1e-12)
        looks = {(to_hex(line.get_color()), line.get_marker()) for line in axes.lines}
        own = 8 + len(front)
        assert len({colour for colour, _ in looks}) == own, "seven cuts, the baseline, the front have their own colours"
        assert len(looks) == len(lines)
        assert "net" in axes.get_title()
        assert "123 test images" in axes.get_title()
        assert "keep 0.75, 0.5, 0.25" in axes.get_xlabel()
        all_inside(drawn[name])


def heat_maps(figure: Figure) -> dict[str, np.ndarray]:
    found = {}
    for axes in figure.axes:
        if axes.get_title():
            (image,) = (child for child in axes.get_children() if isinstance(child, AxesImage))
            found[axes.get_title()] = np.ma.filled(np.ma.asarray(image.get_array(), float), np.nan)
    return found


@pytest.mark.parametrize(("layers", "keeps"), [(2, 1), (18, 3), (3, 6)])
def test_the_heat_map_holds_the_rows_numbers(layers: int, keeps: int, drawn: dict[str, Figure]) -> None:
    names = [f"layer{number // 6}.{number % 6}.conv" for number in range(layers)]
    fractions = [1 / 2**number for number in range(keeps)]
    generator = np.random.default_rng(0)
    changes = generator.uniform(-0.8, 0.05, (keeps, layers, 7)).round(3)
    rows = [BASELINE] + [
        row(cut, fractions[k], names[i], [names[i]], 0.9 + changes[k, i, j])
        for (k, i, j) in np.ndindex(keeps, layers, 7)
        for cut in [CUTS[j]]
    ]
    missing = rows.pop(-1)
    rows = [rows[place] for place in generator.permutation(len(rows))]
    draw_results(Path(), rows, ["skipped", *names])
    assert sorted(drawn) == ["layers"]
    figure = drawn["layers"]
    maps = heat_maps(figure)
    assert list(maps) == [f"keep {keep:g}" for keep in fractions]
    columns = [tick.get_text() for tick in figure.axes[keeps - 1].get_xticklabels()]
    assert sorted(columns) == sorted(CUTS)
    assert [tick.get_text() for tick in figure.axes[0].get_yticklabels()] == names
    for k, grid in enumerate(maps.values()):
        expected = 100 * changes[k][:, [CUTS.index(column) for column in columns]]
        if fractions[k] == missing["keep"]:
            expected[-1, columns.index(missing["rewrite"])] = np.nan
        np.testing.assert_allclose(grid, expected, atol=1e-9)
    largest = 100 * abs(changes).max()
    for axes in figure.axes[:keeps]:
        (image,) = axes.images
        low, high = image.get_clim()
        assert -low == high, "no change is white"
        assert high <= largest + 1e-9
    assert f"{100 * changes[0, 0, 0]:.1f}" in texts(figure)
    assert "One layer cut at a time: net, 123 test images, no retraining" in texts(figure)
    all_inside(figure)
    cell = figure.axes[0].get_window_extent()
    shape = (cell.width / 7) / (cell.height / layers)
    assert 0.6 < shape < 3, "a cell is neither a sliver nor a bar"


def fit(
    rewrite: str, ranks: str | None, scope: str, layers: list[str], accuracy: float, kept: float, **more: Any
) -> Row:
    return row(rewrite, None, scope, layers, accuracy, kept) | {
        "ranks": ranks,
        "equations": ["K[out in kh kw] => A[out r] B[in r] C[kh r] D[kw r]"],
        **more,
    }


def test_curves_of_rewrites_and_the_best_of_all(drawn: dict[str, Figure]) -> None:
    both = ["a", "b"]
    rows = [
        BASELINE,
        row(CUTS[0], 0.5, "all", both, 0.7, 0.6),
        fit("cp", "r=2", "all", both, 0.5, 0.3),
        fit("cp", "r=1", "all", both, 0.2, 0.2),
        fit("cp", "r=2", "all", both, 0.65, 0.3, metric="output"),
        fit("cp", "r=2", "all", both, 0.1, 0.3, components="drop from r=4"),
        fit("cp", None, "all", both, 0.64, 0.5, budget=0.5, curves="error"),
        fit("cp", None, "all", [], 0.9, 1.0, budget=1.0, curves="error"),
        fit("a rule that is so long that no legend has a place for it", None, "a*", both, 0.99, 0.1),
    ]
    draw_results(Path(), rows, layers_named(both))
    (axes,) = drawn[CURVES[1]].axes
    lines = {str(line.get_label()): (list(line.get_xdata()), list(line.get_ydata())) for line in axes.lines[1:]}
    assert lines == {
        CUTS[0]: ([0.6], [70]),
        "cp": ([0.2, 0.3], [20, 50]),
        "cp, metric output": ([0.3], [65]),
        "cp, components drop from r=4": ([0.3], [10]),
        "cp, budget": ([0.5, 1.0], [64, 90]),
        "a rule that is so long that no\nlegend has a place for it, a*": ([0.1], [99]),
        "best of all": ([0.2, 0.3, 0.6, 1.0], [20, 65, 70, 90]),
    }
    assert "Kernels rewritten: net" in axes.get_title()
    assert "(points of a curve: ranks; keep 0.5; budget 1, 0.5)" in axes.get_xlabel()
    (axes,) = drawn[CURVES[0]].axes
    assert "cp, metric output" not in {str(line.get_label()) for line in axes.lines}, "its norm says nothing"
    for figure in drawn.values():
        all_inside(figure)


def test_the_heat_map_of_ranks_has_a_panel_for_each_rewrite(drawn: dict[str, Figure]) -> None:
    rows = [BASELINE, row(CUTS[0], 0.5, "a", ["a"], 0.7)]
    rows += [fit("cp", ranks, name, [name], 0.8, 0.5) for ranks in ("r=2", "r=4", "r=8") for name in ("a", "b")]
    rows += [fit("cp", "r=2", "b", ["b"], 0.6, 0.5, metric="input"), fit("separable", None, "a", ["a"], 0.3, 0.1)]
    draw_results(Path(), rows, ["a", "b"])
    assert sorted(drawn) == ["layers", "layers_ranks"]
    maps = heat_maps(drawn["layers_ranks"])
    assert list(maps) == ["cp", "cp, metric input", "separable"]
    np.testing.assert_allclose(maps["cp"], np.full((2, 3), -10), atol=1e-9)
    np.testing.assert_allclose(maps["cp, metric input"], [[np.nan], [-30]], atol=1e-9)
    np.testing.assert_allclose(maps["separable"], [[-60], [np.nan]], atol=1e-9)
    assert [tick.get_text() for tick in drawn["layers_ranks"].axes[0].get_xticklabels()] == ["r=2", "r=4", "r=8"]
    all_inside(drawn["layers_ranks"])


def test_what_there_are_no_rows_for_is_not_drawn(drawn: dict[str, Figure]) -> None:
    for rows, names in [
        ([], []),
        ([BASELINE], []),
        ([BASELINE, row(CUTS[0], 0.5, "all", ["a", "b"], 0.5)], list(CURVES)),
        ([BASELINE, row(CUTS[0], 0.5, "a", ["a"], 0.5)], ["layers"]),
        ([BASELINE, row(CUTS[0], 0.5, "all", ["a"], 0.9)], list(CURVES)),
    ]:
        drawn.clear()
        draw_results(Path(), rows, ["a", "b"])
        assert sorted(drawn) == names


@pytest.mark.slow
def test_networks_and_spectra_show_every_cut_once(drawn: dict[str, Figure]) -> None:
    names = [f"layer{number}" for number in range(18)]
    layers = [*layers_named(names), Layer("linear", ("out", "in"), torch.eye(3, 5, dtype=torch.float64))]
    draw_kernels(Path("/nowhere"), [BASELINE], planned([*CUTS, f"{CUTS[0]} then {CUTS[1]}", "in | out"]), layers)
    titles = {name: [axes.get_title() for axes in drawn[name].axes if axes.get_title()] for name in drawn}
    assert titles == {
        "spectra": [*CUTS, "in | out"],
        "networks": [
            "kernel out in kh kw",
            *CUTS,
            f"{CUTS[0]}\nthen {CUTS[1]}\nstep 1: {CUTS[0]}",
            f"{CUTS[0]}\nthen {CUTS[1]}\nstep 2: contracted",
            f"{CUTS[0]}\nthen {CUTS[1]}\nstep 3: {CUTS[1]}",
            "kernel out in",
            "in | out",
        ],
    }
    for axes, cut in zip(drawn["spectra"].axes, CUTS, strict=False):
        assert len(axes.lines) == 18
        left, right = (side.split() for side in cut.split("|"))
        order = [["out", "in", "kh", "kw"].index(label) for label in left + right]
        for layer, line in zip(layers, axes.lines, strict=False):
            matrix = layer.weight.numpy().transpose(order)
            values = np.linalg.svd(matrix.reshape(np.prod(matrix.shape[: len(left)]), -1), compute_uv=False)
            np.testing.assert_allclose(line.get_ydata(), values / values[0], rtol=1e-6)
    assert len({to_hex(line.get_color()) for line in drawn["spectra"].axes[0].lines}) == 18
    for figure in drawn.values():
        all_inside(figure)


def test_networks_of_rewrites(drawn: dict[str, Figure]) -> None:
    ring = "K[o i h w] => A[o p q] B[i q r] C[h r s] D[w s p]"
    rows = [BASELINE, fit("cp", "r=2", "all", ["a"], 0.5, 0.5)]
    coming = [
        fit(ring, "p=2", "all", ["a"], 0.5, 0.5, equations=[ring]),
        fit("cp", "r=2", "all", ["a"], 0.5, 0.5, equations=["K[out in] => A[out r] B[in r]"]),
    ]
    draw_kernels(Path("/nowhere"), rows, coming, layers_named(["a"]))
    assert sorted(drawn) == ["networks"], "singular values are drawn for cuts only"
    assert [axes.get_title() for axes in drawn["networks"].axes if axes.get_title()] == [
        "kernel out in kh kw",
        "cp of out in kh kw",
        "kernel out in",
        "cp of out in",
        "kernel o i h w",
        "K[o i h w] => A[o p q] B[i q r]\nC[h r s] D[w s p]",
    ]
    all_inside(drawn["networks"])


def test_cuts_that_were_not_asked_for_alone_are_not_shown_alone(drawn: dict[str, Figure]) -> None:
    draw_kernels(Path("/nowhere"), [BASELINE], planned([f"{CUTS[5]} then {CUTS[1]}"]), layers_named(["a", "b"]))
    title = f"{CUTS[5]}\nthen {CUTS[1]}\nstep"
    assert [axes.get_title() for axes in drawn["networks"].axes if axes.get_title()] == [
        "kernel out in kh kw",
        f"{title} 1: {CUTS[5]}",
        f"{title} 2: contracted",
        f"{title} 3: {CUTS[1]}",
    ]


# files


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(1, 3, 3)
        self.b = nn.Conv2d(3, 4, 2)
        self.c = nn.Conv2d(4, 3, 2)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.c(self.b(self.a(images).relu()).relu()).mean(dim=(2, 3))


def study(
    folder: Path, rewrites: Sequence[str] = CUTS[:1], sizes: Sequence[Any] = (0.5,), **options: Any
) -> tn.studies.Study:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (20, 1, 6, 6), dtype=torch.uint8, generator=generator)
    images = Images(pixels, torch.arange(20) % 3, ("x", "y", "z"), "tiny")
    torch.manual_seed(0)
    return run_study(Tiny(), images, folder, rewrites, sizes, dtype=torch.float32, **options)


def stamps(folder: Path) -> dict[str, int]:
    return {file.name: file.stat().st_mtime_ns for file in folder.iterdir() if file.suffix in (".png", ".svg")}


def words(file: Path) -> str:
    """What an SVG says: matplotlib writes texts as outlines, and beside them as comments."""
    return "\n".join(re.findall(r"<!-- (.*?) -->", file.read_text(encoding="utf-8")))


@pytest.mark.slow
def test_figures_are_png_and_svg_and_follow_the_rows(tmp_path: Path) -> None:
    study(tmp_path)
    first = stamps(tmp_path)
    assert sorted(first) == sorted(f"{name}.{kind}" for name in (*CURVES, *KERNELS) for kind in ("png", "svg"))
    for name in (*CURVES, *KERNELS):
        with Image.open(tmp_path / f"{name}.png") as image:
            image.load()
            assert image.width > 600
            assert len(set(image.convert("L").resize((80, 60)).tobytes())) > 5, "something is drawn"
        assert ElementTree.parse(tmp_path / f"{name}.svg").getroot().tag.endswith("svg")
        assert CUTS[0] in words(tmp_path / f"{name}.svg")

    study(tmp_path)
    assert [stamps(tmp_path)[f"{name}.svg"] for name in KERNELS] == [first[f"{name}.svg"] for name in KERNELS]

    study(tmp_path, CUTS[5:6], scope=("all", "each"))
    for name in (*CURVES, *KERNELS):
        assert stamps(tmp_path)[f"{name}.png"] > first[f"{name}.png"]
        assert CUTS[0] in words(tmp_path / f"{name}.svg"), "a cut that was not asked for again is still there"
        assert CUTS[5] in words(tmp_path / f"{name}.svg")
    layers = words(tmp_path / "layers.svg")
    assert re.findall(r"^[abc]$", layers, re.MULTILINE) == ["b", "c"]

    study(tmp_path, scope=["b"])
    layers = words(tmp_path / "layers.svg")
    assert CUTS[0] in layers
    assert CUTS[5] in layers

    (tmp_path / "networks.png").unlink()
    study(tmp_path)
    assert (tmp_path / "networks.png").exists()
    assert [file for file in tmp_path.iterdir() if file.name.startswith(".") and file.name != ".lock"] == []


def test_figures_are_drawn_again_while_rows_come_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = []
    monkeypatch.setattr(runner, "draw_results", lambda folder, rows, layers, suffix: counts.append(len(rows)))
    monkeypatch.setattr(runner, "REDRAW_SECONDS", 0)
    study(tmp_path, CUTS[:3])
    assert counts == [2, 3, 4, 4]


def test_a_figure_that_cannot_be_written_is_an_error_of_the_study(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(Figure, "savefig", full)
        with refused(StudyError, "cannot be written", "No space left"):
            study(tmp_path)
    assert len(study(tmp_path).rows) == 2, "it continues once there is space"


def test_kernels_are_drawn_before_their_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(import_module("tnalgebra.studies.row_results"), "accuracy", _stop)
    with pytest.raises(KeyboardInterrupt):
        study(tmp_path)
    assert sorted(stamps(tmp_path)) == sorted(f"{name}.{kind}" for name in KERNELS for kind in ("png", "svg"))


def _stop(*_: object, **__: object) -> float:
    raise KeyboardInterrupt
