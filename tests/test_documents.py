"""The README and the docs say what the library does: their code runs, and what they show is what the library gives."""

from __future__ import annotations

import functools
import inspect
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from torch import nn as torch_nn

import tnalgebra as tn
from docs.examples import NETWORKS, NODES
from docs.generate import SECTIONS, rules_page
from tests import nn_cases
from tests.documents import DOCUMENTS, ROOT, agree, run, run_side_by_side
from tnalgebra import nn as tensor_nn
from tnalgebra.nn.base import Shaping


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning:onnxscript", "ignore::DeprecationWarning:torch.onnx")
@pytest.mark.filterwarnings("ignore::FutureWarning:torch.onnx")  # of the exporter's own use of its libraries
@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_code_blocks_run_and_print_what_the_page_shows(document: Path) -> None:
    assert run(document) == document.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("error  0.784\n-----", "error   0.783\n------", True),
        ("error 0.784", "error 0.80", False),
        ("error 0.78", "loss 0.78", False),
        ("57,232 -> 7,224", "57232 -> 7,250", True),
        ("r=34", "r=35", False),
        ("took 3 s, 607 us", "took 44.5 s, 1.2 ms", True),
        ("conv2d size_2", "conv3d size_2", False),
    ],
)
def test_which_outputs_agree(one: str, other: str, same: bool) -> None:
    assert agree(one, other) == same


def test_the_list_of_rules_is_the_generated_one() -> None:
    assert (ROOT / "docs" / "rules.md").read_text(encoding="utf-8") == rules_page()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize(("page", "mark"), SECTIONS)
def test_a_generated_part_of_a_page_is_up_to_date(page: str, mark: str) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    assert text.count(f"<!-- {mark} -->\n\n{SECTIONS[page, mark]()}\n\n<!-- end -->") == 1


def test_the_drawings_of_the_examples_have_their_labels() -> None:
    for example in (*NODES, *NETWORKS):
        root = ElementTree.parse(ROOT / "docs" / "images" / example.picture).getroot()
        texts = {"".join(text.itertext()).strip() for text in root.iter("{http://www.w3.org/2000/svg}text")}
        network = tn.parse(example.text)
        labels = {label for node in network.nodes for label in node.labels}
        assert {f"{label}:{network.sizes[label]}" for label in labels} <= texts, example.title


@pytest.mark.slow
def test_lines_beside_those_of_other_libraries_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run_side_by_side(ROOT / "docs" / "coming_from.md") >= 20


@pytest.mark.parametrize("layer", nn_cases.LAYERS)
def test_the_table_of_arguments_has_all(layer: str) -> None:
    shown = {case.argument for case in nn_cases.CASES if case.layer == layer}
    ours = {*inspect.signature(getattr(tensor_nn, layer)).parameters, *Shaping.__annotations__} - {"choices"}
    if layer in ("Linear", "Embedding"):
        ours -= {"input_size", "memory_format"}
    public = {name for name in inspect.signature(getattr(torch_nn, layer)).parameters if not name.startswith("_")}
    assert public <= ours
    assert shown == ours


COMMAND = re.compile(
    r"(?:python -m (?P<module>recipes[\w.]*)|(?<![\w/\"])(?<!import )tnalgebra (?P<name>[a-z]+)) (?P<line>[^#&\n]*)"
)


def commands() -> dict[str, set[str]]:
    """The commands that the pages have in blocks of a shell or indented -> the options that they are given."""
    options: dict[str, set[str]] = {}
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8").replace("\\\n", " ")
        blocks = re.findall(r"```(?:sh|bash)\n(.*?)```|((?:^    .*\n)+)", text, re.DOTALL | re.MULTILINE)
        for match in COMMAND.finditer("\n".join(fenced or indented for fenced, indented in blocks)):
            name = match["module"] or f"tnalgebra {match['name']}"
            options.setdefault(name, set()).update(re.findall(r"(?<=\s)--[a-z][\w-]*", f" {match['line']}"))
    return options


@pytest.mark.slow
@pytest.mark.parametrize("name", commands())
def test_commands_of_the_pages_have_their_options(name: str) -> None:
    module, *command = name.split()
    line = [sys.executable, "-m", module, *command, "--help"]
    text = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert commands()[name] <= {*re.findall(r"--[a-z][\w-]*", text)}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_and_pictures_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)#]+)\)|src=\"([^\"]+)\"", text)
    for target in (first or second for first, second in targets):
        if "://" not in target:
            assert (document.parent / target).exists(), f"{document.name} points at {target}"


def test_the_architecture_names_files_that_exist() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    for path in re.findall(r"`((?:tnalgebra|recipes|models|tests|docs)/[\w/.]*)`", page):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_names_of_the_package_exist(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for name in {*re.findall(r"(?<![\w.])tn\.([A-Za-z_][\w.]*\w)", text)}:
        functools.reduce(getattr, name.split("."), tn)
