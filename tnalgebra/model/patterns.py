"""Which rewrites each layer of a model is offered: patterns over names, classes, or a function, and their values."""

from __future__ import annotations

import difflib
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

from torch import nn

from ..decompositions import read_rewrite, rules
from ..errors import LayerError, RankError, RuleError, explain
from ..fitting import KeepFraction, ParameterBudget, RelativeError
from ..networks import KERNEL_LABELS
from ..rewriting import Options, Rule, SizedChoices
from .surgery import Site

_Rewrite: TypeAlias = str | Rule
"""A rule, its name, a cut such as "out kh | in kw", or a rule in the notation."""

LayerRequest: TypeAlias = _Rewrite | tuple[Any, Any] | Sequence[Any] | None
"""A rewrite; (rewrite, ranks); (rewrite, choices of `Rule.apply`); a list of these; None: the layer stays dense."""

Patterns: TypeAlias = Mapping[str | type[nn.Module], LayerRequest] | Callable[[str, nn.Module], LayerRequest]
"""A glob over names or a class -> what is requested for its layers; or a function of a layer's name and the layer."""


@dataclass(frozen=True, eq=False)
class Offer:
    """A rewrite that a layer may be given, with the caller's choices; `ranks` among them where there are any."""

    rewrite: _Rewrite
    choices: SizedChoices


@dataclass(frozen=True, eq=False)
class Assigned:
    """What the first pattern that fits a layer requests.

    offers: None: the layer stays dense.
    pattern: its text; "" where no pattern fits.
    also: later patterns that would have fitted. Of a layer that is to stay dense only those that no other layer
        follows: `None` before a wider pattern is how a layer is left out.
    """

    offers: tuple[Offer, ...] | None
    pattern: str = ""
    also: tuple[str, ...] = ()


def assign(model: nn.Module, sites: Mapping[str, Site], patterns: Patterns) -> dict[str, Assigned]:
    """For each layer the first pattern that fits.

    Raises:
        LayerError: a pattern fits no kernel layer; near names are listed.
        RuleError, RankError, TypeError: a request that cannot be read, or a name that no rule has.
    """
    if callable(patterns):
        return {
            name: Assigned(_read_request(patterns(name, site.module), f"layer {name!r}"), "the function")
            for name, site in sites.items()
        }
    _check_patterns(patterns)
    requests = {pattern: _read_request(one, f"the pattern {_text(pattern)!r}") for pattern, one in patterns.items()}
    fitting = {
        name: [pattern for pattern in patterns if any(_fits(pattern, alias, site.module) for alias in site.names)]
        for name, site in sites.items()
    }
    for pattern in patterns:
        if not any(pattern in fits for fits in fitting.values()):
            raise _unmatched(model, sites, pattern)
    followed = {fits[0] for fits in fitting.values() if fits}
    assigned = {name: Assigned(None) for name in sites}
    for name, fits in fitting.items():
        if fits:
            first, *later = fits
            also = tuple(_text(one) for one in later if requests[first] is not None or one not in followed)
            assigned[name] = Assigned(requests[first], _text(first), also)
    return assigned


def _check_patterns(patterns: object) -> None:
    if not isinstance(patterns, Mapping):
        kind = type(patterns).__name__
        raise RuleError(explain(f"layers are chosen by a {kind}", fix="{'layer3.*': 'tucker2'}, or a function"))
    if not patterns:
        raise RuleError(explain("no pattern is given", fix="{'*': ('tucker2', tn.ParameterBudget(0.5))}"))
    for pattern in patterns:
        if not isinstance(pattern, str) and not (isinstance(pattern, type) and issubclass(pattern, nn.Module)):
            fix = "a glob over names ('layer3.*.conv2'), or a class (torch.nn.Conv2d)"
            raise RuleError(explain(f"{pattern!r} is not a pattern", fix=fix))


def _fits(pattern: str | type[nn.Module], name: str, module: nn.Module) -> bool:
    return fnmatchcase(name, pattern) if isinstance(pattern, str) else isinstance(module, pattern)


_CHOICES = tuple(SizedChoices.__annotations__)


def _text(pattern: str | type[nn.Module]) -> str:
    return pattern if isinstance(pattern, str) else f"<{pattern.__name__}>"


def _unmatched(model: nn.Module, sites: Mapping[str, Site], pattern: str | type[nn.Module]) -> LayerError:
    names = [alias for site in sites.values() for alias in site.names]
    if not isinstance(pattern, str):
        kinds = sorted({type(site.module).__name__ for site in sites.values()})
        return LayerError(explain(f"no kernel layer is a {pattern.__name__}", kinds=", ".join(kinds)))
    inside = [name for name in names if fnmatchcase(name, f"{pattern}.*")]
    others = [name for name, module in model.named_modules() if fnmatchcase(name, pattern)]
    near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.3)
    fact = f"no kernel layer is called {pattern!r}"
    if inside:
        return LayerError(explain(fact, inside_it=", ".join(inside[:4]), fix=f"{pattern + '.*'!r}"))
    if others:
        kinds = sorted({type(model.get_submodule(name)).__name__ for name in others})
        return LayerError(explain(fact, modules_of_that_name=", ".join(kinds), near=", ".join(near) or None))
    listed = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return LayerError(explain(fact, near=", ".join(near) or None, layers=listed))


def _read_request(request: object, where: str) -> tuple[Offer, ...] | None:
    """A request in one form. Raises RuleError, RankError or TypeError if it cannot be read."""
    if request is None:
        return None
    if isinstance(request, str | Rule):
        _check_rewrite(request)
        return (Offer(request, {}),)
    if isinstance(request, tuple) and len(request) == 2 and isinstance(request[0], str | Rule | list):
        offers = _read_request(request[0], where)
        if offers is None or any(offer.choices for offer in offers):
            raise RuleError(explain(f"{where}: choices are given twice", fix="(rewrite, ranks), in the list or around"))
        return tuple(Offer(offer.rewrite, _choices(request[1], where)) for offer in offers)
    if isinstance(request, list):
        nested = [_read_request(one, where) for one in request]
        if not nested or None in nested:
            raise RuleError(explain(f"{where}: a list of rewrites holds {'None' if nested else 'nothing'}"))
        return tuple(offer for offers in nested if offers is not None for offer in offers)
    fix = "a rewrite, (rewrite, ranks), (rewrite, {'size': ..., 'starts': ...}), a list of these, or None"
    raise RuleError(explain(f"{where} is to be rewritten by {request!r}", fix=fix))


def _check_rewrite(rewrite: _Rewrite) -> None:
    """Raise RuleError or NotationError for a name that no rule has, and for text that cannot be read."""
    if isinstance(rewrite, Rule):
        return
    if "=>" in rewrite or "[" in rewrite:
        read_rewrite(rewrite, KERNEL_LABELS[4])
    elif "|" not in rewrite:
        known = rules()
        if known[rewrite.strip()] in known.exact:
            read_rewrite(rewrite, KERNEL_LABELS[4])


def _choices(given: object, where: str) -> SizedChoices:
    """`{"r": 8}` are ranks, `{"size": ..., "starts": 1}` choices; a bond named like a choice goes into the latter."""
    if isinstance(given, Mapping):
        chosen = [key for key in given if key in _CHOICES]
        if len(chosen) == len(given):
            choices: SizedChoices = dict(given)  # type: ignore[assignment]
            Options.of(given.get("size"), {key: value for key, value in given.items() if key != "size"})  # type: ignore[arg-type]
            return choices
        if chosen:
            odd = next(key for key in given if key not in chosen)
            if "size" in chosen:
                near = difflib.get_close_matches(str(odd), _CHOICES, n=1)
                fact = f"{where}: {odd!r} is not a choice"
                raise RuleError(explain(fact, near=", ".join(near) or None, choices=", ".join(_CHOICES)))
            raise RuleError(
                explain(f"{where}: ranks beside the choice {chosen[0]!r}", fix="{'size': {'r': 8}, 'starts': 1}")
            )
        return {"size": given}
    if isinstance(given, KeepFraction | RelativeError | ParameterBudget):
        return {"size": given}
    try:
        if isinstance(given, bool):
            raise TypeError
        return {"size": operator.index(given)}  # type: ignore[arg-type]
    except TypeError:
        fraction = isinstance(given, float) and 0 < given < 1
        fix = f"KeepFraction({given}) or ParameterBudget({given})" if fraction else "an integer, KeepFraction, ..."
        raise RankError(explain(f"{where}: the ranks are {given!r}", fix=fix)) from None
