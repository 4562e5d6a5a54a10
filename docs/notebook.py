"""A page of the docs as a notebook: its python blocks are the cells, and their outputs are those of the page."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from tests.documents import BLOCK


def notebook_of(page: Path) -> str:
    """The text of the notebook, in the format of Jupyter, version 4.5."""
    text = page.read_text(encoding="utf-8")
    cells: list[dict[str, Any]] = []
    end = 0
    for block in BLOCK.finditer(text):
        _add(cells, _words(text[end : block.start()]))
        _add(cells, _code(block["code"], block["output"]))
        end = block.end()
    _add(cells, _words(text[end:]))
    notebook = {
        "cells": cells,
        "metadata": {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    return json.dumps(notebook, indent=1, ensure_ascii=False) + "\n"


def _add(cells: list[dict[str, Any]], cell: dict[str, Any]) -> None:
    if cell["source"]:
        cells.append({"id": f"cell-{len(cells)}"} | cell)


def _words(text: str) -> dict[str, Any]:
    return {"cell_type": "markdown", "metadata": {}, "source": _lines(text)}


def _code(code: str, output: str | None) -> dict[str, Any]:
    outputs = [{"name": "stdout", "output_type": "stream", "text": _lines(output, end="\n")}] if output else []
    return {"cell_type": "code", "execution_count": None, "metadata": {}, "outputs": outputs, "source": _lines(code)}


def _lines(text: str, end: str = "") -> list[str]:
    stripped = text.strip("\n")
    return (stripped + end).splitlines(keepends=True) if stripped else []
