"""Models by name. Models are plain torch networks which know nothing of tensor networks."""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial

import torch
from torch import nn

from models.cifar_resnet import resnet20, resnet32, resnet44, resnet56
from models.cnn4 import cnn4
from models.resnet50 import resnet50
from models.wave_net import wave_net
from tnalgebra.errors import DataError, explain

MODELS: dict[str, Callable[..., nn.Module]] = {
    "cnn4": cnn4,
    "resnet20": resnet20,
    "resnet32": resnet32,
    "resnet44": resnet44,
    "resnet56": resnet56,
    "resnet50": resnet50,
    "resnet50_cifar": partial(resnet50, cifar_stem=True),
}

SURROGATES: dict[str, Callable[..., nn.Module]] = {"wave_net": wave_net}
"""Networks that map fields to fields of the same size, and classify nothing."""


def build_model(name: str, *, classes: int, channels: int, seed: int | None = None) -> nn.Module:
    """Build a network of the registry, or one of your own, for images of a given kind.

    Args:
        name: a key of `MODELS`, or `package.module:function`: a function (or class) that returns a network. The
            module is imported as `python -m` would, the current directory included. The function receives the
            keyword arguments `classes` and `channels` as far as its signature has them.
        classes: number of logits.
        channels: number of image channels.
        seed: of the weights; torch's generator is left as it was. None: as the generator is.

    Returns:
        The network, with the weights its builder gave it.

    Raises:
        DataError: nothing is called `name`, its module cannot be imported, the function needs other arguments or
            raises an error, or its result is not a `torch.nn.Module`.
    """
    return _build(name, MODELS, {"classes": classes, "channels": channels}, seed)


def build_surrogate(name: str, *, inputs: int, outputs: int, seed: int | None = None) -> nn.Module:
    """Build a network that maps fields to fields: of `SURROGATES`, or one of your own.

    Args:
        name: a key of `SURROGATES`, or `package.module:function` as in `build_model`. The function receives the keyword
            arguments `inputs` and `outputs` as far as its signature has them.
        inputs: number of channels given.
        outputs: number of channels asked for.
        seed: as in `build_model`.

    Returns:
        The network: (n, inputs, height, width) -> (n, outputs, height, width).

    Raises:
        DataError: see `build_model`.
    """
    return _build(name, SURROGATES, {"inputs": inputs, "outputs": outputs}, seed)


def _build(
    name: str, registry: Mapping[str, Callable[..., nn.Module]], sizes: dict[str, int], seed: int | None
) -> nn.Module:
    if seed is not None:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return _build(name, registry, sizes, None)
    if name in registry:
        return registry[name](**sizes)
    if ":" not in name:
        close = difflib.get_close_matches(name, registry, n=1)
        raise DataError(
            explain(
                f"no model is called {name!r}",
                known=", ".join(registry),
                fix=f"did you mean {close[0]!r}?" if close else None,
                your_own="package.module:function",
            )
        )
    with _current_directory_importable():
        function = _import(name)
        arguments = _accepted(function, name, sizes)
        try:
            model = function(**arguments)
        except Exception as error:  # somebody else's code, which may raise anything
            because = f"{type(error).__name__}: {error}"
            fact = f"{name!r} raised an error instead of returning a network"
            raise DataError(explain(fact, because=because, given=_listing(arguments))) from error
    if not isinstance(model, nn.Module):
        fact = f"{name!r} did not return a network"
        raise DataError(explain(fact, returned=type(model).__name__, needed="a torch.nn.Module"))
    return model


def _import(name: str) -> Callable[..., object]:
    """Import the function that `package.module:function` names."""
    module_name, _, function_name = name.partition(":")
    if not all(part.isidentifier() for part in (*module_name.split("."), function_name)):
        raise DataError(explain(f"{name!r} does not name a function", needed="package.module:function"))
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # somebody else's code, which may raise anything
        fact, reason = f"module {module_name!r} cannot be imported", f"{type(error).__name__}: {error}"
        searched = f"{os.getcwd()} and the installed packages"
        raise DataError(explain(fact, model=name, reason=reason, searched=searched)) from error
    function: Callable[..., object] | None = getattr(module, function_name, None)
    if not callable(function) or isinstance(function, nn.Module):  # a network that is built has no size to choose
        names = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        close = difflib.get_close_matches(function_name, names, n=1)
        raise DataError(
            explain(
                f"module {module_name!r} has no function {function_name!r}",
                file=module.__file__,
                found=None if function is None else f"a {type(function).__name__}",
                known=", ".join(names) or "no functions",
                fix=f"did you mean {module_name}:{close[0]}?" if close else None,
            )
        )
    return function


def _accepted(function: Callable[..., object], name: str, arguments: dict[str, int]) -> dict[str, int]:
    """Those of the keyword arguments that the function's signature has; they must be all it needs."""
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
        raise DataError(explain(fact, signature=text, given=_listing(arguments), fix=fix)) from error
    return arguments


def _listing(arguments: Mapping[str, int]) -> str:
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
