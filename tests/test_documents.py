"""The README and the docs say what the library does: their code runs, their outputs are the ones it prints."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest
from documents import DOCUMENTS, ROOT, produced

sys.path.insert(0, str(ROOT / "docs"))
import generate


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_code_blocks_run_and_print_what_stands_there(document: Path) -> None:
    assert produced(document) == document.read_text(encoding="utf-8")


def test_the_documents_have_code() -> None:
    counts = {document.name: document.read_text(encoding="utf-8").count("```python") for document in DOCUMENTS}
    assert counts["README.md"] >= 1
    assert counts["tutorial.md"] >= 10


def test_the_list_of_rules_is_the_generated_one() -> None:
    assert (ROOT / "docs" / "rules.md").read_text(encoding="utf-8") == generate.rules_page()


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
