"""Networks by name: of torchvision, of timm, of a module of the user's own, or of the checkout's package `models`."""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import DataError, MissingPackageError, StudyError

if TYPE_CHECKING:
    from torch import nn

CHECKOUT = "models"
"""The package that a plain name is read from. A wheel does not have it."""

SOURCES = "torchvision:NAME, timm:NAME, or package.module:function"


def build_model(name: str, *, pretrained: bool = False, seed: int | None = None, **sizes: int) -> nn.Module:
    """Build the network of a name.

    Args:
        name: "torchvision:resnet18", "timm:resnet26"; "package.module:function", a function (or class) that returns a
            network, whose module is imported as `python -m` would, the current directory included; or a plain name,
            a function of the package `models` of tnalgebra's checkout.
        pretrained: load the weights that torchvision or timm offers for this network; they are downloaded once.
        seed: of the random weights; torch's generator is left as it was. None: as the generator is.
        **sizes: `classes`, the number of outputs, and `channels`, the number of image channels. The libraries' own
            defaults are used for those that are left out. A function receives those that its signature has.

    Returns:
        The network, with the weights that its builder gave it.

    Raises:
        DataError: no network has this name, its module cannot be imported, it cannot be built with these sizes, or its
            weights cannot be downloaded.
        MissingPackageError: timm is not installed.

    Example:
        >>> build_model("torchvision:resnet18", classes=10)
    """
    import torch

    if seed is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return build_model(name, pretrained=pretrained, **sizes)
    source, colon, rest = name.partition(":")
    with _current_directory_importable():
        if colon and source in ("torchvision", "timm"):
            function, arguments = _library(source, rest, pretrained, sizes)
        else:
            if pretrained:
                fact = f"no pretrained weights are known for {name!r}"
                raise DataError(fact, why="only torchvision: and timm: offer them", fix="--weights FILE")
            function = _import(source, rest) if colon else _of_checkout(name)
            arguments = _accepted(function, name, sizes) if colon else dict(sizes)
        try:
            model = function(**arguments)
        except Exception as error:  # somebody else's code, which may raise anything
            fact, because = f"the network {name!r} cannot be built", f"{type(error).__name__}: {error}"
            raise DataError(fact, because=because, arguments=_listing(arguments)) from error
    if not isinstance(model, torch.nn.Module):
        fact = f"{name!r} did not return a network"
        raise DataError(fact, returned=type(model).__name__, needed="a torch.nn.Module")
    return model


def check_trained(model: nn.Module, name: str, *, pretrained: bool, seed: int, **sizes: int) -> None:
    """Check that the weights with which a network was built are not random, by building it again with another seed.

    Raises:
        StudyError: some of its parameters depend on the seed.
    """
    import torch

    other = build_model(name, pretrained=pretrained, seed=seed + 1, **sizes).state_dict()
    random = [key for key, value in model.state_dict().items() if not torch.equal(value.cpu(), other[key].cpu())]
    if random:
        more = f", and {len(random) - 3} more" if len(random) > 3 else ""
        fix = "--weights FILE, --pretrained where the library offers weights, or --untrained if that is meant"
        fact = f"the network {name!r} is not trained: some of its weights are random"
        raise StudyError(fact, random=", ".join(random[:3]) + more, fix=fix)


def require_packages(packages: Mapping[str, str], purpose: str) -> None:
    """Check that packages are installed.

    Args:
        packages: the name of each, and the extra of tnalgebra that brings it.
        purpose: what needs them, for the message.

    Raises:
        MissingPackageError: some of them are not installed.
    """
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        fix = f'pip install "tnalgebra[{",".join(dict.fromkeys(packages[package] for package in missing))}]"'
        raise MissingPackageError(f"{purpose} needs {' and '.join(missing)}, not installed here", fix=fix)


def require_library(name: str) -> None:
    """Check that the library is installed that builds the network of this name. Raises MissingPackageError."""
    if name.startswith("timm:"):
        require_packages({"timm": "study"}, f"the network {name}")


def _library(
    source: str, name: str, pretrained: bool, sizes: Mapping[str, int]
) -> tuple[Callable[..., object], dict[str, Any]]:
    """The function of torchvision or timm that builds a network, and its arguments."""
    arguments: dict[str, Any] = {"num_classes": sizes["classes"]} if "classes" in sizes else {}
    if source == "timm":
        require_library(f"timm:{name}")
        timm: Any = importlib.import_module("timm")
        function, names = timm.create_model, [*timm.list_models(), *timm.list_pretrained()]
        arguments |= {"pretrained": pretrained, **({"in_chans": sizes["channels"]} if "channels" in sizes else {})}
    else:
        library: Any = importlib.import_module("torchvision.models")
        function, names = library.get_model, library.list_models()
        arguments["weights"] = "DEFAULT" if pretrained else None
    if name not in names:
        near = difflib.get_close_matches(name, names, n=3)
        raise DataError(f"{source} has no network {name!r}", similar=", ".join(near) or None)
    if source == "torchvision" and sizes.get("channels", 3) != 3:
        fact = f"torchvision's networks are for images of 3 channels, these have {sizes['channels']}"
        raise DataError(fact, fix="timm:NAME, which builds networks for any number of channels")
    return partial(function, name), arguments


def shipped_files() -> list[Path]:
    """The files of trained weights in the checkout's package `models`; none where it cannot be imported."""
    with _current_directory_importable():
        spec = find_spec(CHECKOUT)
    folders = [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec is not None else []
    return sorted(path for folder in folders for path in (folder / "weights").glob("*.safetensors"))


def _of_checkout(name: str) -> Callable[..., object]:
    try:
        models = importlib.import_module(CHECKOUT)
        names = list(models.__all__)
    except (ImportError, AttributeError) as error:
        fact = f"the network {name!r} is not known: plain names are those of the checkout of tnalgebra"
        where = f"its package {CHECKOUT!r} cannot be imported from {os.getcwd()}"
        raise DataError(fact, where=where, fix=SOURCES) from error
    if name not in names:
        near = difflib.get_close_matches(name, names, n=1)
        fix = f"did you mean {near[0]!r}?" if near else None
        raise DataError(f"no model is called {name!r}", known=", ".join(names), fix=fix, or_else=SOURCES)
    function: Callable[..., object] = getattr(models, name)
    return function


def _import(module_name: str, function_name: str) -> Callable[..., object]:
    """Import the function that `package.module:function` names."""
    from torch import nn

    name = f"{module_name}:{function_name}"
    if not all(part.isidentifier() for part in (*module_name.split("."), function_name)):
        raise DataError(f"{name!r} does not name a function", needed="package.module:function")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # somebody else's code, which may raise anything
        fact, reason = f"module {module_name!r} cannot be imported", f"{type(error).__name__}: {error}"
        searched = f"{os.getcwd()} and the installed packages"
        raise DataError(fact, model=name, reason=reason, searched=searched) from error
    function: Callable[..., object] | None = getattr(module, function_name, None)
    if not callable(function) or isinstance(function, nn.Module):  # a network that is built has no size to choose
        names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        close = difflib.get_close_matches(function_name, names, n=1)
        raise DataError(
            f"module {module_name!r} has no function {function_name!r}",
            file=module.__file__,
            found=None if function is None else f"a {type(function).__name__}",
            known=", ".join(names) or "no functions",
            fix=f"did you mean {module_name}:{close[0]}?" if close else None,
        )
    return function


def _accepted(function: Callable[..., object], name: str, arguments: dict[str, int]) -> dict[str, int]:
    """Those of the keyword arguments that the function's signature has; they must be all that it needs."""
    signature = inspect.signature(function)
    kinds = {parameter.name: parameter.kind for parameter in signature.parameters.values()}
    if inspect.Parameter.VAR_KEYWORD not in kinds.values():
        by_keyword = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        arguments = {key: value for key, value in arguments.items() if kinds.get(key) in by_keyword}
    try:
        signature.bind(**arguments)
    except TypeError as error:
        fact, text = f"{name!r} cannot be called: {error}", f"{name.partition(':')[2]}{signature}"
        fix = "give its other arguments defaults"
        raise DataError(fact, signature=text, arguments=_listing(arguments), fix=fix) from error
    return arguments


def _listing(arguments: Mapping[str, object]) -> str:
    return ", ".join(f"{key}={value}" for key, value in arguments.items()) or "nothing"


@contextmanager
def _current_directory_importable() -> Iterator[None]:
    """Put the current directory first on the import path, as `python -m` does, and take it away afterwards."""
    here = os.getcwd()
    if here in sys.path or "" in sys.path:
        yield
        return
    sys.path.insert(0, here)
    importlib.invalidate_caches()
    try:
        yield
    finally:
        if here in sys.path:
            sys.path.remove(here)
