"""The README and the docs say what the library does: their code runs, their outputs are the ones it prints."""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path

import generate
import pytest
from arguments_table import arguments_table
from torch import nn as torch_nn

from tests import nn_cases
from tests.documents import DOCUMENTS, ROOT, produced
from tnalgebra import nn as tensor_nn
from tnalgebra.nn.base import Shaping

sys.path.insert(0, str(ROOT / "docs"))


@pytest.mark.filterwarnings("ignore::DeprecationWarning:onnxscript", "ignore::DeprecationWarning:torch.onnx")
@pytest.mark.filterwarnings("ignore::FutureWarning:torch.onnx")  # of the exporter's own use of its libraries
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_code_blocks_run_and_print_what_stands_there(document: Path) -> None:
    assert produced(document) == document.read_text(encoding="utf-8")


def test_the_documents_have_code() -> None:
    counts = {document.name: document.read_text(encoding="utf-8").count("```python") for document in DOCUMENTS}
    assert counts["README.md"] >= 1
    assert counts["tutorial.md"] >= 10
    assert counts["layers.md"] >= 8
    assert counts["models.md"] >= 10


def test_the_list_of_rules_is_the_generated_one() -> None:
    assert (ROOT / "docs" / "rules.md").read_text(encoding="utf-8") == generate.rules_page()


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
def test_the_table_of_arguments_is_what_the_cases_gave() -> None:
    page = (ROOT / "docs" / "layers.md").read_text(encoding="utf-8")
    assert page.count(f"<!-- arguments -->\n\n{arguments_table()}\n\n<!-- end -->") == 1


@pytest.mark.parametrize("layer", nn_cases.NAMES)
def test_the_table_of_arguments_has_all(layer: str) -> None:
    there = {case.argument for case in nn_cases.CASES if case.layer == layer}
    ours = {*inspect.signature(getattr(tensor_nn, layer)).parameters, *Shaping.__annotations__} - {"choices"}
    assert {*inspect.signature(getattr(torch_nn, layer)).parameters} <= ours
    assert there == ours


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_pictures_are_there(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)#]+)\)|src=\"([^\"]+)\"", text)
    for target in (first or second for first, second in targets):
        if "://" not in target:
            assert (document.parent / target).exists(), f"{document.name} points at {target}"


def test_the_continuous_integration_runs_the_second_command() -> None:
    commands = re.findall(r"^python3 -m venv .*$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(commands) == 2
    assert commands[0].endswith("-m recipes.compressibility")
    assert commands[1].endswith("-m tests")
