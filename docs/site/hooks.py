"""What mkdocs adds to the pages: the reference, a page for each folder of the package, from its `__all__`."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import inspect
import re
import sys
from functools import cache
from pathlib import Path
from types import ModuleType

import griffe
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # tests and docs are not installed with the package

import tnalgebra as tn
from docs.site.docstrings import with_asterisks
from recipes.gallery.frame import NAMES
from tests.test_layering import FOLDERS, ROOT

DOCUMENTED = [name for name in FOLDERS if not name.startswith("_")]
"""The folders that have a page in the reference, and the file of the errors, in the order of their imports."""


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Put the pages of folders in the navigation, and keep the search's worker among our own files."""
    pages: list[str | dict[str, str]] = ["reference/index.md"]
    pages += [{f"tnalgebra.{folder}": f"reference/{folder}.md"} for folder in DOCUMENTED]
    papers = ["gallery/index.md", *(f"gallery/{name}.md" for name in NAMES)]
    made = {"Reference": pages, "Papers": papers}
    folders = ({"Reference": "reference/"}, {"Papers": "gallery/"})
    config.nav = [{title: made[title] for title in entry} if entry in folders else entry for entry in config.nav or []]
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages that docs/ does not have: README.md as the start, and the reference."""
    files.append(File.generated(config, "index.md", content=start_page()))
    files.append(File.generated(config, "CITATION.cff", abs_src_path=str(ROOT / "CITATION.cff")))
    pages = {"index": index_page(), **{folder: folder_page(folder) for folder in DOCUMENTED}}
    for name, text in pages.items():
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    return files


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    r"""Show `|` in the code of tables, where markdown has `\|` and would show that."""
    return re.sub(r"<code>[^<]*</code>", lambda code: code[0].replace(r"\|", "|"), html)


def start_page() -> str:
    """README.md, whose links begin at the checkout, as a page beside those of docs/."""
    return (ROOT / "README.md").read_text(encoding="utf-8").replace("](docs/", "](")


def index_page() -> str:
    """The names of `tnalgebra` itself, each with its first sentence and a link to its entry."""
    lines = [
        "# Reference",
        "",
        "In this reference `tn` is `import tnalgebra as tn`. These are the names of `tn`; everything else is in the",
        "folder that it belongs to, as in `tn.networks.patch_tensor`. Each folder has a page.",
        "",
        "| name | what it is |",
        "|---|---|",
    ]
    for name in sorted(tn.__all__, key=str.lower):
        value = getattr(tn, name)
        if isinstance(value, ModuleType):
            target = f"{name}.md"
        else:
            folder = next(folder for folder in DOCUMENTED if name in paths_of(folder))
            target = f"{folder}.md#{paths_of(folder)[name]}"
        lines.append(f"| [`tn.{name}`]({target}) | {summary(value)} |")
    return "\n".join(lines) + "\n"


def folder_page(folder: str) -> str:
    """What mkdocstrings shows of a folder: every name that its `__init__` offers."""
    module = importlib.import_module(f"tnalgebra.{folder}")
    lines = [f"# tnalgebra.{folder}", "", inspect.getdoc(module) or ""]
    for path in paths_of(folder).values():
        lines += ["", f"::: {path}"]
    return "\n".join(lines) + "\n"


@cache
def paths_of(folder: str) -> dict[str, str]:
    """Each documented name that a folder offers -> the path of its definition, from the imports of the `__init__`.

    The name alone would not do: in `model` the function `compare` and the file `compare.py` have the same.
    """
    module = importlib.import_module(f"tnalgebra.{folder}")
    if not hasattr(module, "__all__"):
        classes = inspect.getmembers(module, inspect.isclass)
        return {name: f"{module.__name__}.{name}" for name, one in classes if one.__module__ == module.__name__}
    paths = {name: f"{module.__name__}.{name}" for name in sorted(module.__all__, key=str.lower)}
    for statement in ast.parse(inspect.getsource(module)).body:
        if isinstance(statement, ast.ImportFrom):
            source = importlib.util.resolve_name("." * statement.level + (statement.module or ""), module.__name__)
            paths |= {one.name: f"{source}.{one.name}" for one in statement.names if one.name in paths}
    return {name: path for name, path in paths.items() if documented(path)}


@cache
def package() -> griffe.Object | griffe.Alias:
    """The package as mkdocstrings reads it."""
    return griffe.load("tnalgebra", search_paths=[ROOT], resolve_aliases=True)


def documented(path: str) -> bool:
    """Whether the definition has a docstring that can be read without running the code."""
    try:
        return package()[path.partition(".")[2]].has_docstring
    except (KeyError, griffe.AliasResolutionError):
        return False


def summary(value: object) -> str:
    """The first sentence of a docstring, as a cell of a table."""
    text = " ".join((inspect.getdoc(value) or "").split("\n\n")[0].split())
    return with_asterisks(text).replace("|", r"\|")
