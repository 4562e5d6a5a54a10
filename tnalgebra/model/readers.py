"""Which layers have a weight that the model reads instead of calling the layer, as far as its source says."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Iterator, Mapping

from torch import nn

from ..nn import WEIGHT_FACTS


def weights_read(model: nn.Module) -> dict[str, str]:
    """Name of a layer -> the method that reads `self.LAYER.weight`, of those that `forward` calls.

    Whether the line is reached is not known: a branch may call the layer instead.
    """
    read: dict[str, str] = {}
    of_kind: dict[type[nn.Module], Mapping[str, str]] = {}
    for prefix, module in model.named_modules(remove_duplicate=False):
        kind = type(module)
        if kind not in of_kind:
            of_kind[kind] = _paths_read(kind)
        for path, method in of_kind[kind].items():
            read[f"{prefix}.{path}" if prefix else path] = method
    return read


def _paths_read(kind: type[nn.Module]) -> Mapping[str, str]:
    """Path below an instance, such as "mlp.fc" -> the method of the class that reads its weight."""
    read: dict[str, str] = {}
    if kind.__module__.partition(".")[0] == "torch":
        return read  # of torch's own classes, `find_obstacles` knows the readers
    waiting, seen = ["forward"], set()
    while waiting:
        name = waiting.pop()
        method = inspect.getattr_static(kind, name, None)
        if name in seen or not inspect.isfunction(method):
            continue
        seen.add(name)
        for node, parent in _nodes(method):
            path = _path_from_self(node)
            if path is None or (isinstance(parent, ast.Attribute) and _path_from_self(parent) is not None):
                continue  # of a.b.weight the whole is looked at, and not its beginnings
            *holder, last = path
            if holder and holder[-1] == "weight" and last in WEIGHT_FACTS:
                continue
            if "weight" in path[1:] and not _is_test_of_none(parent):
                read.setdefault(".".join(path[: path.index("weight", 1)]), f"{kind.__name__}.{name}")
            waiting.append(path[0])
    return read


def _nodes(function: object) -> Iterator[tuple[ast.AST, ast.AST]]:
    """Each part of a function's source, with the one that it is in; nothing where the source is not known."""
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))  # type: ignore[arg-type]
    except (OSError, TypeError, SyntaxError):
        return
    for parent in ast.walk(tree):
        for child in ast.iter_child_nodes(parent):
            yield child, parent


def _path_from_self(node: ast.AST) -> tuple[str, ...] | None:
    """("a", "b") of `self.a.b`."""
    names: list[str] = []
    while isinstance(node, ast.Attribute):
        names.append(node.attr)
        node = node.value
    return tuple(reversed(names)) if names and isinstance(node, ast.Name) and node.id == "self" else None


def _is_test_of_none(node: ast.AST) -> bool:
    return isinstance(node, ast.Compare) and all(isinstance(one, ast.Is | ast.IsNot) for one in node.ops)
