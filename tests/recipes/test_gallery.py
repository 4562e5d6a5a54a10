"""The gallery: each paper's cores agree with its reference, wrong cores do not, and the pages are the recipes'."""

from __future__ import annotations

import ast
import json
import re
import sys
from pathlib import Path

import pytest

import tnalgebra as tn
from docs.gallery_pages import FOLDER, IMAGES, pages, picture
from recipes.gallery import __main__ as command
from recipes.gallery.frame import NAMES, paper, text, verify
from tests.refusals import refused

RECIPES = Path(command.__file__).parent


@pytest.mark.parametrize("name", NAMES)
def test_the_cores_agree_with_the_reference(name: str) -> None:
    assert verify(name) <= paper(name).tolerance <= 1e-7


def shifted(network: tn.Network, place: int) -> tn.Network:
    """The network with a tensor moved by one along an axis: what a padding or an offset that is wrong by one does."""
    outputs = "" if "->" in str(network) else f" -> [{' '.join(network.output)}]"
    words = str(network) + outputs
    axes = [
        (node.start(1) + axis.start(), node.start(1) + axis.end(), axis[0])
        for node in re.finditer(r"\b(?!Conv|Copy|Fuse|Fill)\w+\[([^\]|]*)\]", words.partition("->")[0])
        for axis in re.finditer(r"\S+", node[1])
        if network.sizes[axis[0].partition(":")[0]] > 1
    ]
    begin, end, label = axes[place % len(axes)]
    close = words.index("]", end) + 1
    window = f" Conv[shifted {label} one:1 | padding=1:-1]"
    return tn.parse(words[:begin] + "shifted" + words[end:close] + window + words[close:])


@pytest.mark.parametrize(("name", "core"), [(name, core) for name in NAMES for core in paper(name).cores])
def test_a_core_that_is_wrong_by_one_place_is_caught(name: str, core: str) -> None:
    cores = paper(name).cores
    for place in (len(core), len(core) + 3):
        wrong = {**cores, core: shifted(cores[core], place)}
        try:
            differences = paper(name).check(wrong)
        except (tn.errors.NetworkError, tn.errors.SizeError):
            continue  # no longer a map that has singular values or a solution
        assert max(differences.values()) > 1e-3


def test_a_wrong_core_is_an_error() -> None:
    cores = paper("snnk").cores
    with refused(tn.errors.StudyError, "snnk", "1e-10"):
        verify("snnk", {core: shifted(network, 0) for core, network in cores.items()})


@pytest.mark.parametrize("name", ["index", *NAMES])
def test_a_page_is_up_to_date(name: str) -> None:
    assert (FOLDER / f"{name}.md").read_text("utf-8") == pages()[name], "python docs/generate.py gallery"


def test_every_page_and_picture_belongs_to_a_paper() -> None:
    assert {path.stem for path in FOLDER.glob("*.md")} == {"index", *NAMES}
    drawn = {picture(name, number) for name in NAMES for number in range(1, len(paper(name).cores) + 1)}
    assert {path.name for path in IMAGES.glob("gallery-*.svg")} == drawn
    for name in NAMES:
        for number, network in enumerate(paper(name).cores.values(), 1):
            labels = {label for term in network.terms for node in term.nodes for label in node.labels}
            image = (IMAGES / picture(name, number)).read_text("utf-8")
            assert all(re.search(rf"\b{label}:{network.sizes[label]}\b", image) for label in labels), name


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_short_and_its_reference_is_without_the_library(name: str) -> None:
    source = (RECIPES / f"{name}.py").read_text("utf-8")
    assert len(source.splitlines()) <= 120
    assert len(text(name).split("\n\n")) > 1
    for function in ast.walk(ast.parse(source)):
        if not isinstance(function, ast.FunctionDef) or function.name in ("check", "gain"):
            continue
        names = {node.id for node in ast.walk(function) if isinstance(node, ast.Name)}
        assert not names & {"tn", "value"} or ast.unparse(function.returns or function).startswith("tn."), function.name


def test_smoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["gallery", "--papers", "snnk", "dcls", "--smoke", "--output", str(tmp_path)])
    command.run()
    assert json.loads((tmp_path / "figures.json").read_text("utf-8")) == {"snnk": {}, "dcls": {}}
    assert "2310.13225" in capsys.readouterr().out


def test_an_unknown_paper_is_refused() -> None:
    with refused(tn.errors.StudyError, "'resnet'", "snnk"):
        command.main(command.Config(papers=("resnet",)))
