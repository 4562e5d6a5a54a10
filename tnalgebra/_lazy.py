"""Packages whose modules are imported when one of their names is first used (PEP 562)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Sequence
from importlib import import_module
from typing import Any


def lazy(package: str, modules: Sequence[str], names: Collection[str]) -> Callable[[str], Any]:
    """The `__getattr__` of a package that does not import its modules itself.

    Type checkers need the same imports under `TYPE_CHECKING`; a test compares the two.

    Args:
        package: its full name.
        modules: those that are imported later, each after those that it imports. They are attributes of the package.
        names: what the package offers. A name is that of the first module that offers it.

    Returns:
        A function from a name to its value, which becomes an attribute of the package, so that Python asks once.

    Raises:
        AttributeError: (the function) the package does not offer this name.
    """

    def load(name: str) -> Any:
        if name in modules:
            return import_module(f"{package}.{name}")  # this makes it an attribute
        for module in map(load, modules if name in names else ()):
            if name in getattr(module, "__all__", vars(module)):
                setattr(sys.modules[package], name, getattr(module, name))
                return getattr(module, name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return load
