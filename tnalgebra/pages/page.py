"""One HTML file with everything in it: the text, the style, the script, the library of plots, and the data."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path

from .._files import write_text
from ..errors import MissingPackageError
from .parts import Dataset, Drawing, Section


def write_page(path: str | Path, title: str, sections: Sequence[Section], *, script: str = "") -> None:
    """Write a page, whole or not at all.

    Args:
        title: the heading of the page.
        sections: what it has, one below another.
        script: the text of one more script, which runs last.

    Raises:
        MissingPackageError: plotly or jinja2 is not installed.
        OSError: the file cannot be written.
    """
    missing = [package for package in ("jinja2", "plotly") if find_spec(package) is None]
    if missing:
        fact = f"a page needs {' and '.join(missing)}, not installed here"
        raise MissingPackageError(fact, fix='pip install "tnalgebra[report]"')
    from jinja2 import Environment, StrictUndefined

    datasets: list[Dataset] = []

    def place(dataset: Dataset) -> int:
        datasets.append(dataset)
        return len(datasets) - 1

    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.globals.update(place=place, source=_source)
    assets = files(__package__) / "assets"
    texts = {name: (assets / name).read_text(encoding="utf-8") for name in ("page.html", "page.css", "page.js")}
    body = environment.from_string(texts["page.html"]).render(
        title=title,
        sections=sections,
        style=texts["page.css"],
        plotly=(files("plotly") / "package_data" / "plotly.min.js").read_text(encoding="utf-8"),
        script=texts["page.js"] + script,
        data=lambda: script_json([dataset.data() for dataset in datasets]),
    )
    write_text(path, body)


def script_json(value: object) -> str:
    """JSON for a script element, which no text in it can end."""
    return json.dumps(value, allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")


def _source(drawing: Drawing) -> str:
    return "data:image/svg+xml;base64," + base64.b64encode(drawing.svg.encode("utf-8")).decode("ascii")
