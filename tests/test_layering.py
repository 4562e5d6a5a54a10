"""Imports go one way only: a module of the package imports from modules above its own in `ORDER`, nothing else.

Every import counts, those inside functions and those for type checkers alone too.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

ORDER = (
    # symbols: no torch
    "_version",
    "errors",
    "labels",
    "files",
    "ranks",
    "bipartition",
    "nodes",
    "sizes",
    "drawing_vertices",
    "drawing_places",
    "drawing_layout",
    "drawing_paint",
    "drawing",
    "network",
    "isomorphism",
    "editing",
    "notation",
    "windows",
    # values
    "contraction",
    "evaluation",
    "valuation",
    "quimb_bridge",
    # numbers
    "linalg",
    "fitting.metric",
    "fitting.trees",
    "fitting.problem",
    "fitting.right_sides",
    "fitting.kronecker",
    "fitting.systems",
    "fitting.als",
    "fitting.*",
    "fitting",
    # what may change
    "options",
    "matching",
    "rewriting",
    "exact_rules.*",
    "exact_rules",
    "driver",
    "decompositions.*",
    "decompositions",
    # network -> torch
    "compiler.problem",
    "compiler.operations",
    "compiler.search",
    "compiler.programs",
    "compiler.finishing",
    "compiler.arranging",
    "compiler.viewing",
    "compiler.lowering",
    "compiler.emitting",
    "compiler.cost",
    "compiler.calibration",
    "compiler.choosing",
    "compiler.plan_drawing",
    "compiler.plans",
    "compiler.compiled",
    "compiler",
    # what a user holds
    "modes",
    "layers",
    "spectrum",
    "images",
    "running_statistics",
    "training",
    "patches",
    "calibration",
    "allocation",
    "compar*",
    "compression",
    "nn_kernel",
    "nn",
    "normalisation",
    "surgery",
    "conversion_*",
    "conversion",
    "optimizers",
    "checkpoint*",
    "trainer*",
    "stud*",
)
"""One pattern a line; a module belongs to the first line that fits. Modules of one line may import each other."""

NO_TORCH = ORDER[: ORDER.index("contraction")]

OUTSIDE = ("models", "recipes", "tests")
"""Folders of the checkout that the package never imports."""

MODELS_MAY_IMPORT = ("tnalgebra.errors",)


def test_every_module_has_a_place() -> None:
    homeless = [name for name in _modules("tnalgebra") if name != "tnalgebra" and _line(name) is None]
    assert not homeless, f"{', '.join(homeless)}: add a line to ORDER in {__file__}, below everything it imports"


def test_the_package_imports_upwards_only() -> None:
    wrong = []
    for name, path in _modules("tnalgebra").items():
        own = _line(name)
        for imported, number in _imports(path, name):
            if imported.split(".")[0] in OUTSIDE:
                wrong.append(f"{path}:{number}: the package imports {imported}")
            elif imported.split(".")[0] == "tnalgebra" and own is not None:
                other = _line(imported)
                if imported == "tnalgebra":
                    wrong.append(f"{path}:{number}: imports the whole package; import the module that has it")
                elif other is not None and other > own:
                    wrong.append(
                        f"{path}:{number}: {name} ({ORDER[own]}) imports {imported} ({ORDER[other]}), below it"
                    )
    assert not wrong, "\n" + "\n".join(wrong)


def test_symbols_need_no_torch() -> None:
    wrong = [
        f"{path}:{number}: {name} imports {imported}"
        for name, path in _modules("tnalgebra").items()
        if (line := _line(name)) is not None and line < len(NO_TORCH)
        for imported, number in _imports(path, name)
        if imported.split(".")[0] in ("torch", "torchvision", "quimb", "opt_einsum")
    ]
    assert not wrong, "\n" + "\n".join(wrong)


def test_models_know_nothing_of_tensor_networks() -> None:
    wrong = [
        f"{path}:{number}: {name} imports {imported}"
        for name, path in _modules("models").items()
        for imported, number in _imports(path, name)
        if imported.split(".")[0] in ("tnalgebra", "recipes") and imported not in MODELS_MAY_IMPORT
    ]
    assert not wrong, f"\n{chr(10).join(wrong)}\nmodels may import {', '.join(MODELS_MAY_IMPORT)}, nothing else of ours"


@pytest.mark.parametrize(
    ("source", "imports"),
    [
        ("from .errors import explain", ["tnalgebra.errors"]),
        ("from . import errors, drawing", ["tnalgebra.errors", "tnalgebra.drawing"]),
        ("from . import parse", ["tnalgebra"]),
        ("def f():\n    from .network import Network", ["tnalgebra.network"]),
        ("if TYPE_CHECKING:\n    import tnalgebra.notation as n", ["tnalgebra.notation"]),
        ("from tnalgebra import evaluate", ["tnalgebra"]),
        ("from tnalgebra import network", ["tnalgebra.network"]),
        ("import torch.nn.functional, os", ["torch.nn.functional", "os"]),
        ("import importlib\nimportlib.import_module('quimb.tensor')", ["importlib"]),
    ],
)
def test_what_counts_as_an_import(source: str, imports: list[str], tmp_path: Path) -> None:
    file = tmp_path / "evaluation.py"
    file.write_text(source)
    assert [name for name, _ in _imports(file, "tnalgebra.evaluation")] == imports


# Reading ----------------------------------------------------------------------------------------------------


def _modules(package: str) -> dict[str, Path]:
    """Dotted name -> file, packages by their own name."""
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    assert found, f"no modules under {ROOT / package}"
    return found


def _line(name: str) -> int | None:
    """The line of ORDER a module stands on; None for the package itself, which imports everything."""
    inner = name.removeprefix("tnalgebra").removeprefix(".")
    return next((number for number, pattern in enumerate(ORDER) if inner and fnmatch(inner, pattern)), None)


def _imports(path: Path, module: str) -> Iterator[tuple[str, int]]:
    """Every module that a file imports, by its full name, with the line number."""
    package = module if path.name == "__init__.py" else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")
                base = ".".join([*parts[: len(parts) - node.level + 1], *([node.module] if node.module else [])])
            # `from package import name`: the module of that name, if there is one
            known = {name for name in (f"{base}.{alias.name}" for alias in node.names) if _is_module(name)}
            if len(known) < len(node.names):
                yield base, node.lineno
            yield from (
                (f"{base}.{alias.name}", node.lineno) for alias in node.names if f"{base}.{alias.name}" in known
            )


def _is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return name.split(".")[0] in ("tnalgebra", *OUTSIDE) and (path.with_suffix(".py").exists() or path.is_dir())
