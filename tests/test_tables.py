"""Every result shows itself in the same way: a short `repr`, a table, a data frame, HTML; and drawings write files."""

from __future__ import annotations

import sys
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from matplotlib.figure import Figure

import tnalgebra as tn
from tests.refusals import refused
from tnalgebra._tables import Table, tabulate
from tnalgebra.errors import MissingPackageError, NetworkError

torch.manual_seed(0)
CONV = torch.nn.Conv2d(6, 5, 3)
LONG = " ".join(f"core_{k}[bond_{k} open_{k} bond_{k + 1}]" for k in range(60))


@cache
def fit() -> tn.Fit:
    return tn.rules()["cp"].apply(CONV.weight, 4, starts=2)


@cache
def two_steps() -> tn.Fit:
    return tn.rules()["tucker2"].apply(CONV.weight, {"a": 4, "b": 3}).then(tn.decompositions.truncate("b"), {"b": 2})


@cache
def layer() -> Any:
    return tn.nn.Conv2d.from_conv(CONV, "tucker2", {"a": 3, "b": 2}, input_size=8)


@cache
def report() -> Any:
    model = torch.nn.Sequential(CONV, torch.nn.Conv2d(5, 4, 1))
    return tn.convert(model, {"0": ("tucker2", {"a": 3, "b": 2})}, example=(1, 6, 8, 8))[1]


@cache
def long_fit() -> tn.Fit:
    """A fit without values, of a network whose text is longer than a screen."""
    return tn.simplify(tn.parse(f"{LONG} Copy[open_3 other]"))


RESULTS: dict[str, tuple[Callable[[], Any], set[str]]] = {
    "rule": (lambda: tn.rules()["cp"], {"name", "kind", "equation", "ranks", "about"}),
    "rule of long words": (lambda: tn.decompositions.tensor_train([f"label_{k}" for k in range(40)]), {"name"}),
    "rules": (lambda: tn.rules("o i k"), {"list", "name", "equation"}),
    "trace": (lambda: two_steps().trace, {"rule", "ranks", "relative_error", "degeneracy", "parameters_after"}),
    "fit": (fit, {"rule", "ranks", "relative_error", "degeneracy", "parameters", "parameters_after", "network"}),
    "fit of two steps": (two_steps, {"rule", "output_error"}),
    "fit of a long network": (long_fit, {"rule"}),
    "spectra": (lambda: tn.spectra(CONV), {"layer", "cut", "rank", "singular_value", "entropy"}),
    "plan": (lambda: layer().plan, {"text", "shape", "multiply_adds", "elements", "seconds", "weights"}),
    "comparison": (
        lambda: tn.compare(CONV, ["cp", "out | in kh kw"], "parameters 0.4", starts=2),
        {"name", "parameters", "parameters_kept", "relative_error", "degeneracy", "ranks"},
    ),
    "report": (report, {"name", "parameters", "parameters_after", "multiply_adds_after", "relative_error"}),
}

every_result = pytest.mark.parametrize("name", RESULTS)


@every_result
def test_a_result_has_a_short_repr_a_table_and_a_data_frame(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    result, columns = RESULTS[name][0](), RESULTS[name][1]
    assert len(repr(result)) < 400
    assert "\n" not in repr(result)
    assert repr(result).startswith(f"<{type(result).__name__} ")
    assert str(result) != repr(result)
    frame = result.to_pandas()
    assert columns <= set(frame.columns)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with refused(MissingPackageError, "pandas", "tnalgebra[study]"):
        result.to_pandas()


@every_result
def test_a_result_is_well_formed_html_with_a_table(name: str) -> None:
    root = ElementTree.fromstring(f"<body>{RESULTS[name][0]()._repr_html_()}</body>")
    assert len(list(root.iter("table"))) == 1
    for row in root.iter("tr"):
        assert len(row) == len(next(root.iter("tr")))


def test_a_fit_shows_its_drawing_and_its_degeneracy() -> None:
    html = fit()._repr_html_()
    assert html.index("<svg") < html.index("<table")
    for text in (str(fit()), html):
        assert "degeneracy" in text
        assert f"{fit().degeneracy:.3g}" in text


DRAWN: dict[str, Callable[[], Callable[[Path | None], Figure]]] = {
    "network": lambda: tn.parse("U[out:4 a] V[a:2 in:3]").draw,
    "fit": lambda: fit().draw,
    "layer": lambda: layer().draw,
    "plan": lambda: layer().plan.draw,
    "spectra": lambda: tn.spectra(CONV.weight[:, :, 0]).plot,
}


@pytest.mark.parametrize("name", DRAWN)
def test_a_drawing_is_a_figure_and_writes_each_format(name: str, tmp_path: Path) -> None:
    draw = DRAWN[name]()
    assert isinstance(draw(None), Figure)
    for suffix, start in ((".svg", b"<?xml"), (".png", b"\x89PNG"), (".pdf", b"%PDF")):
        assert isinstance(draw(tmp_path / f"drawing{suffix}"), Figure)
        assert (tmp_path / f"drawing{suffix}").read_bytes().startswith(start)
    with refused(NetworkError, ".jpg", ".svg, .png or .pdf"):
        draw(tmp_path / "drawing.jpg")
    assert len(list(tmp_path.iterdir())) == 3


# Tables ------------------------------------------------------------------------------------------------------


def test_columns_are_aligned_and_the_total_is_set_apart() -> None:
    table = Table([("a", "1", "x"), ("long", "22", "yy")], ("name", "n", "text"), (0, 2), ("sum", "23", ""), ["above"])
    assert str(table).splitlines() == [
        "above",
        "name   n  text",
        "--------------",
        "a      1  x",
        "long  22  yy",
        "--------------",
        "sum   23",
    ]


def test_a_column_without_an_entry_is_left_out() -> None:
    columns: dict[str, Callable[[int], str]] = {"number": str, "nothing": lambda _: "", "square": lambda n: str(n * n)}
    assert str(tabulate([3], columns)).splitlines()[::2] == ["number  square", "3            9"]
    assert str(tabulate([], columns)).splitlines()[0] == "number  nothing  square"


def test_a_text_cannot_break_the_html() -> None:
    html = Table([("<b>&",)], ("<i>",), above=["</pre>"], below=["<script>"]).html()
    assert [text.strip() for text in ElementTree.fromstring(f"<body>{html}</body>").itertext()] == [
        "</pre>",
        "<i>",
        "<b>&",
        "<script>",
    ]
