"""Where code may live and what it may import: a folder of the package imports from folders above it in `FOLDERS`.

Every import counts, those inside functions and those for type checkers alone too.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Iterator
from pathlib import Path

import networkx
import pytest

from tnalgebra import errors

ROOT = Path(__file__).resolve().parent.parent

FOLDERS = (
    "errors",
    "_files",
    "_lazy",
    "_tables",
    "workers",
    "networks",
    "tensors",
    "fitting",
    "rewriting",
    "decompositions",
    "compiler",
    "nn",
    "operators",
    "model",
    "streams",
    "checkpoint",
    "studies",
    "topologies",
    "pages",
    "command",
    "__main__",
)
"""The folders of the package, and its five single files, each above all that import it."""

WITHOUT_TORCH = FOLDERS[: FOLDERS.index("tensors")]

OUTSIDE = ("models", "recipes", "tests")
"""Folders of the checkout that the package never imports."""

MODELS_MAY_IMPORT = ("tnalgebra.errors",)

LONGEST_FUNCTION = 80
MOST_POSITIONAL = 4
AS_IN_TORCH = ("tnalgebra.nn.layers", "tnalgebra.nn.embedding", "tnalgebra.nn.attention")
"""Modules whose constructors and calls take the arguments that torch's take."""


def imported_folders() -> networkx.DiGraph:
    """An edge from each folder to each other one that it imports from."""
    pairs = (
        (_folder(name), _folder(imported))
        for name, path in _modules("tnalgebra").items()
        for imported, _ in _imports(path, name)
        if imported.startswith("tnalgebra.")
    )
    return networkx.DiGraph((one, other) for one, other in pairs if one and one != other)


def test_every_module_is_in_a_folder_of_the_list() -> None:
    homeless = [name for name in _modules("tnalgebra") if name != "tnalgebra" and _folder(name) not in FOLDERS]
    assert not homeless, f"{', '.join(homeless)}: add the folder to FOLDERS, below everything that it imports"


def test_folders_import_upwards_only_and_by_their_init() -> None:
    wrong = []
    for name, path in _modules("tnalgebra").items():
        if name == "tnalgebra":
            continue
        for imported, number in _imports(path, name):
            top, _, rest = imported.partition(".")
            if top in OUTSIDE:
                wrong.append(f"{path}:{number}: the package imports {imported}")
            elif top == "tnalgebra" and not rest:
                wrong.append(f"{path}:{number}: imports the whole package; import the folder that has the name")
            elif top == "tnalgebra" and _folder(imported) != _folder(name):
                if FOLDERS.index(_folder(imported)) > FOLDERS.index(_folder(name)):
                    wrong.append(f"{path}:{number}: {name} imports {imported}, whose folder stands below")
                elif "." in rest:
                    wrong.append(f"{path}:{number}: import from {'.'.join(imported.split('.')[:2])}, not {imported}")
    assert not wrong, "\n" + "\n".join(wrong)


@pytest.mark.parametrize("package", ["tnalgebra", "models", "recipes"])
def test_no_circle_of_imports(package: str) -> None:
    modules = _modules(package)
    graph = networkx.DiGraph(
        (name, imported)
        for name, path in modules.items()
        for imported, _ in _imports(path, name)
        if imported in modules and imported != name
    )
    circles = [sorted(part) for part in networkx.strongly_connected_components(graph) if len(part) > 1]
    assert not circles, "\n".join(map(" <-> ".join, circles))


def test_networks_need_no_torch() -> None:
    wrong = [
        f"{path}:{number}: {name} imports {imported}"
        for name, path in _modules("tnalgebra").items()
        if _folder(name) in WITHOUT_TORCH
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


def test_recipes_use_public_names_only() -> None:
    wrong = []
    for name, path in _modules("recipes").items():
        wrong += [
            f"{path}:{number}: import tnalgebra as tn, and use tn.NAME or tn.FOLDER.NAME"
            for imported, number in _imports(path, name)
            if imported.startswith("tnalgebra.")
        ]
        wrong += [f"{path}:{number}: {chain} is not public" for chain, number in _uses(path) if not _is_public(chain)]
    assert not wrong, "\n" + "\n".join(wrong)


@pytest.mark.parametrize("package", ["tnalgebra", "models", "recipes"])
def test_functions_are_short_and_take_few_positional_arguments(package: str) -> None:
    wrong = []
    for name, path in _modules(package).items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                continue
            lines = (node.end_lineno or node.lineno) - node.lineno + 1
            positional = [one.arg for one in node.args.posonlyargs + node.args.args if one.arg not in ("self", "cls")]
            if lines > LONGEST_FUNCTION:
                wrong.append(f"{path}:{node.lineno}: {node.name} has {lines} lines")
            if len(positional) > MOST_POSITIONAL and name not in AS_IN_TORCH:
                wrong.append(f"{path}:{node.lineno}: {node.name} has {len(positional)} positional arguments")
    assert not wrong, "\n" + "\n".join(wrong)


@pytest.mark.parametrize(
    ("source", "imports"),
    [
        ("from .errors import explain", ["tnalgebra.networks.errors"]),
        ("from ..errors import explain", ["tnalgebra.errors"]),
        ("from . import nodes, sizes", ["tnalgebra.networks.nodes", "tnalgebra.networks.sizes"]),
        ("from .. import parse", ["tnalgebra"]),
        ("def f():\n    from .nodes import Conv", ["tnalgebra.networks.nodes"]),
        ("if TYPE_CHECKING:\n    import tnalgebra.tensors as t", ["tnalgebra.tensors"]),
        ("from tnalgebra import evaluate", ["tnalgebra"]),
        ("from tnalgebra import networks", ["tnalgebra.networks"]),
        ("import torch.nn.functional, os", ["torch.nn.functional", "os"]),
    ],
)
def test_what_counts_as_an_import(source: str, imports: list[str], tmp_path: Path) -> None:
    file = tmp_path / "notation.py"
    file.write_text(source)
    assert [name for name, _ in _imports(file, "tnalgebra.networks.notation")] == imports


# Reading ----------------------------------------------------------------------------------------------------


def _modules(package: str) -> dict[str, Path]:
    """Dotted name -> file, packages by their own name."""
    found = {}
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    assert found, f"no modules under {ROOT / package}"
    return found


def _folder(name: str) -> str:
    """The part of a module's name that follows the package's; empty for the package itself."""
    return name.partition(".")[2].partition(".")[0]


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
            # `from package import name`: the module of that name, unless the package has a public name like it
            names = (f"{base}.{alias.name}" for alias in node.names if alias.name not in _public_names(base))
            known = {name for name in names if _is_module(name)}
            if len(known) < len(node.names):
                yield base, node.lineno
            yield from (
                (f"{base}.{alias.name}", node.lineno) for alias in node.names if f"{base}.{alias.name}" in known
            )


def _is_module(name: str) -> bool:
    path = ROOT.joinpath(*name.split("."))
    return name.split(".")[0] in ("tnalgebra", *OUTSIDE) and (path.with_suffix(".py").exists() or path.is_dir())


def _public_names(package: str) -> list[str]:
    """`__all__` of a folder of the package; a function may be called like the file that it is in."""
    folder = package.removeprefix("tnalgebra.")
    if package == folder or folder not in FOLDERS:
        return []
    return list(getattr(importlib.import_module(package), "__all__", ()))


def _uses(path: Path) -> Iterator[tuple[str, int]]:
    """Every attribute of `tn` that a file uses, `tn.convert` or `tn.studies.Store`, with the line number."""
    inner: set[ast.expr] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"), str(path))):
        if not isinstance(node, ast.Attribute) or node in inner:
            continue
        names: list[str] = []
        part: ast.expr = node
        while isinstance(part, ast.Attribute):
            inner.add(part)
            names.insert(0, part.attr)
            part = part.value
        if isinstance(part, ast.Name) and part.id == "tn":
            yield ".".join(names), node.lineno


def _is_public(chain: str) -> bool:
    package = importlib.import_module("tnalgebra")
    first, *rest = chain.split(".")
    if first in package.__all__ and first != "errors" and first not in FOLDERS:
        return True
    if first == "errors":
        return not rest[0].startswith("_")
    if first in FOLDERS and not first.startswith("_") and rest:
        return rest[0] in importlib.import_module(f"tnalgebra.{first}").__all__
    return chain == "__version__"


def test_what_counts_as_a_use(tmp_path: Path) -> None:
    file = tmp_path / "recipe.py"
    file.write_text("tn.study(tn.studies.Store(a.tn.b).rows, tn._files.x)\n")
    assert {chain for chain, _ in _uses(file)} == {"study", "studies.Store", "_files.x"}
    assert [_is_public(chain) for chain in ("study", "studies.Store", "_files.x", "studies.store.Store")] == [
        True,
        True,
        False,
        False,
    ]


def test_the_errors_list_themselves_and_nothing_else() -> None:
    public = {name for name, value in vars(errors).items() if getattr(value, "__module__", "") == errors.__name__}
    assert {*dir(errors)} == public - {"__dir__"}
