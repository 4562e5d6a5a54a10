"""Which rewrites each layer of a model is offered: patterns over names, classes, or a function, and their values."""

from __future__ import annotations

import difflib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, TypeAlias

from torch import nn

from ..decompositions import ADAPTERS, read_rewrite, rules
from ..errors import LayerError, RankError, RuleError
from ..fitting import MultiplyAddsBudget, Size, TimeBudget, read_size
from ..networks import KERNEL_LABELS
from ..nn import KernelLayer
from ..rewriting import Choices, Fit, Options, Rule, SizedChoices
from .attention import is_attention
from .modules import names_of_modules
from .surgery import Site

_log = logging.getLogger(__name__)

_Rewrite: TypeAlias = str | Rule | Fit
"""A rule, its name, a cut such as "out kh | in kw", a rule in the notation, or a fit."""

LayerRequest: TypeAlias = _Rewrite | tuple[Any, Any] | Sequence[Any] | None
"""A rewrite; (rewrite, size); (rewrite, choices of `Rule.apply` and `size`); a list of these; None: it stays dense."""

LayerPattern: TypeAlias = "str | type[nn.Module] | OptionalPattern"
"""A glob over names of layers, or a class of layers; either may be optional."""

Patterns: TypeAlias = Mapping[Any, LayerRequest] | Callable[[str, nn.Module], LayerRequest]
"""Pattern -> what is requested for its layers; or a function of a layer's name and the layer."""


@dataclass(frozen=True)
class OptionalPattern:
    """A pattern that may fit no layer of the model, and whose layers may all be ones that cannot be decomposed."""

    pattern: str | type[nn.Module]


def optional(pattern: str | type[nn.Module]) -> OptionalPattern:
    """Mark a pattern of `convert` as one that need not fit, so that one mapping serves many models.

    Args:
        pattern: a glob over names of layers, or a class of layers.

    Returns:
        A key for the mapping that `convert` takes.

    Example:
        >>> tn.convert(model, {tn.model.optional("head.*"): None, torch.nn.Conv2d: ("tucker2", "parameters 0.5")})
    """
    return OptionalPattern(pattern)


@dataclass(frozen=True, eq=False)
class Offer:
    """A rewrite that a layer may be given, its size where the caller chose one, and other choices."""

    rewrite: _Rewrite
    size: Size | None = None
    choices: Choices = field(default_factory=Choices)


@dataclass(frozen=True, eq=False)
class Assigned:
    """What the first pattern that fits a layer requests.

    offers: None: the layer stays dense.
    pattern: its text; "" where no pattern fits.
    also: later patterns that fit too, where that may be a mistake: no layer follows them, or the first one is not
        narrower than they are. A special pattern before a general one is the usual order.
    optional: whether it may be that none of the pattern's layers can be decomposed.
    """

    offers: tuple[Offer, ...] | None
    pattern: str = ""
    also: tuple[str, ...] = ()
    optional: bool = False


def assign(model: nn.Module, sites: Mapping[str, Site], patterns: Patterns) -> dict[str, Assigned]:
    """For each layer the first pattern that fits.

    Raises:
        LayerError: a pattern that is not optional fits no kernel layer; near names are listed.
        RuleError, RankError, TypeError: a request cannot be read, or names a rule that does not exist.
    """
    if callable(patterns):
        return {
            name: Assigned(_read_request(patterns(name, site.module), f"layer {name!r}"), "the function")
            for name, site in sites.items()
        }
    _check_patterns(patterns)
    requests = {pattern: _read_request(one, f"the pattern {_text(pattern)!r}") for pattern, one in patterns.items()}
    fitting = _fitting(model, sites, patterns)
    followed = {fits[0] for fits in fitting.values() if fits}
    layers = {pattern: {name for name, fits in fitting.items() if pattern in fits} for pattern in patterns}
    assigned = {name: Assigned(None) for name in sites}
    for name, (first, *later) in ((name, fits) for name, fits in fitting.items() if fits):
        late = (
            one for one in later if one not in followed or not (requests[first] is None or layers[first] < layers[one])
        )
        also = tuple(map(_text, late))
        may_fail = isinstance(first, OptionalPattern)
        assigned[name] = Assigned(requests[first], _text(first), also, optional=may_fail)
    return assigned


def _fitting(
    model: nn.Module, sites: Mapping[str, Site], patterns: Iterable[LayerPattern]
) -> dict[str, list[LayerPattern]]:
    """For each layer all patterns that fit. Raises LayerError where one that is not optional fits no layer."""
    attentions = {module: names for module, names in names_of_modules(model).items() if is_attention(module)}
    fitting = {name: [one for one in patterns if _fits_site(one, site, attentions)] for name, site in sites.items()}
    reached = {pattern for fits in fitting.values() for pattern in fits}
    for pattern in (one for one in patterns if one not in reached):
        if not isinstance(pattern, OptionalPattern):
            raise _unmatched(model, sites, pattern)
        _log.info("the optional pattern %r fits no layer", _text(pattern))
    return fitting


def _check_patterns(patterns: object) -> None:
    if not isinstance(patterns, Mapping):
        kind = type(patterns).__name__
        raise RuleError(f"layers are chosen by a {kind}", fix="{'layer3.*': 'tucker2'}, or a function")
    if not patterns:
        raise RuleError("the mapping has no pattern", fix="{'*': ('tucker2', 'parameters 0.5')}")
    for pattern in patterns:
        bare = pattern.pattern if isinstance(pattern, OptionalPattern) else pattern
        if not isinstance(bare, str) and not (isinstance(bare, type) and issubclass(bare, nn.Module)):
            fix = "a glob over names ('layer3.*.conv2'), a class (torch.nn.Conv2d), or tn.model.optional(...) of these"
            raise RuleError(f"{pattern!r} is not a pattern", fix=fix)


def _fits(pattern: LayerPattern, name: str, module: nn.Module) -> bool:
    if isinstance(pattern, OptionalPattern):
        return _fits(pattern.pattern, name, module)
    return fnmatchcase(name, pattern) if isinstance(pattern, str) else isinstance(module, pattern)


def _fits_site(pattern: LayerPattern, site: Site, attentions: Mapping[nn.Module, tuple[str, ...]]) -> bool:
    """Whether a pattern fits a layer, one that is tied to it, or the attention that it is a projection of."""
    if isinstance(pattern, OptionalPattern):
        return _fits_site(pattern.pattern, site, attentions)
    named: list[tuple[str, nn.Module]] = [(name, member.module) for member in site.members for name in member.names]
    holders = [holder for member in site.members for holder, _ in member.holders if holder in attentions]
    if isinstance(pattern, type) and issubclass(pattern, nn.MultiheadAttention):
        return bool(holders)
    named += [(name, holder) for holder in holders for name in attentions[holder]]
    return any(_fits(pattern, name, module) for name, module in named)


def _text(pattern: LayerPattern) -> str:
    if isinstance(pattern, OptionalPattern):
        return _text(pattern.pattern)
    return pattern if isinstance(pattern, str) else f"<{pattern.__name__}>"


def _unmatched(model: nn.Module, sites: Mapping[str, Site], pattern: str | type[nn.Module]) -> LayerError:
    decomposed = {name: one for name, one in model.named_modules() if isinstance(one, KernelLayer)}
    if isinstance(pattern, str):
        done = [name for name in decomposed if fnmatchcase(name, pattern)]
    else:
        done = [name for name, one in decomposed.items() if issubclass(one.dense_class, pattern)]
    if done:
        fact = f"every kernel layer that {_is(pattern)} is decomposed already"
        fix = f"the dense layer back first: model.set_submodule({done[0]!r}, layer.to_dense())"
        listed = ", ".join(done[:4]) + (", ..." if len(done) > 4 else "")
        return LayerError(fact, decomposed=listed, fix=fix)
    names = [alias for site in sites.values() for alias in site.all_names]
    if not isinstance(pattern, str):
        kinds = sorted({type(site.module).__name__ for site in sites.values()})
        return LayerError(f"no kernel layer {_is(pattern)}", kinds=", ".join(kinds))
    inside = [name for name in names if fnmatchcase(name, f"{pattern}.*")]
    others = [name for name, module in model.named_modules() if fnmatchcase(name, pattern)]
    near = difflib.get_close_matches(pattern, names, n=3, cutoff=0.3)
    fact = f"no kernel layer {_is(pattern)}"
    if inside:
        return LayerError(fact, inside_it=", ".join(inside[:4]), fix=f"{pattern + '.*'!r}")
    if others:
        kinds = sorted({type(model.get_submodule(name)).__name__ for name in others})
        return LayerError(fact, modules_of_that_name=", ".join(kinds), near=", ".join(near) or None)
    listed = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
    return LayerError(fact, near=", ".join(near) or None, layers=listed)


def _is(pattern: str | type[nn.Module]) -> str:
    return f"is called {pattern!r}" if isinstance(pattern, str) else f"is a {pattern.__name__}"


def _read_request(request: object, where: str) -> tuple[Offer, ...] | None:
    """A request in one form. Raises RuleError, RankError or TypeError if it cannot be read."""
    if request is None:
        return None
    if isinstance(request, str | Rule | Fit):
        _check_rewrite(request)
        return (Offer(request),)
    if isinstance(request, tuple) and len(request) == 2 and isinstance(request[0], str | Rule | Fit | list):
        _check_order(*request, where)
        offers = _read_request(request[0], where)
        if offers is None or any(offer.size is not None or offer.choices for offer in offers):
            raise RuleError(f"{where}: a size is given twice", fix="(rewrite, size), in the list or around it")
        size, choices = _read_choices(request[1], where)
        return tuple(Offer(offer.rewrite, size, choices) for offer in offers)
    if isinstance(request, list):
        nested = [_read_request(one, where) for one in request]
        if not nested or None in nested:
            raise RuleError(f"{where}: a list of rewrites holds {'None' if nested else 'nothing'}")
        return tuple(offer for offers in nested if offers is not None for offer in offers)
    fix = "a rewrite, (rewrite, size), (rewrite, {'size': ..., 'starts': ...}), a list of these, or None"
    raise RuleError(f"{where} is to be rewritten by {request!r}", fix=fix)


def _check_rewrite(rewrite: _Rewrite) -> None:
    """Raise RuleError or NotationError for a name that no rule has, and for text that cannot be read."""
    if not isinstance(rewrite, str):
        return
    if "=>" in rewrite or "[" in rewrite:
        read_rewrite(rewrite, KERNEL_LABELS[4])
    elif "|" not in rewrite and rewrite.strip() not in ADAPTERS:
        known = rules()
        if known[rewrite.strip()] in known.exact:
            read_rewrite(rewrite, KERNEL_LABELS[4])


def _check_order(rewrite: object, size: object, where: str) -> None:
    """Raise RuleError if the text of a size stands in the place of the rewrite."""
    if isinstance(rewrite, str):
        with suppress(RankError):
            read_size(rewrite)
            fact = f"{where}: a pair is (rewrite, size), and this one begins with a size"
            raise RuleError(fact, fix=f"({size!r}, {rewrite!r})")


_CHOICES = tuple(SizedChoices.__annotations__)


def _read_choices(value: object, where: str) -> tuple[Size | None, Choices]:
    """Read a size, or a mapping of choices with the size among them: `{"size": 8, "starts": 1}`.

    A bond with the name of a choice can be given in the second form only.
    """
    choices: Any = {}
    if isinstance(value, Mapping) and any(key in _CHOICES for key in value):
        odd = [key for key in value if key not in _CHOICES]
        if odd and "size" in value:
            near = difflib.get_close_matches(str(odd[0]), _CHOICES, n=1)
            fact = f"{where}: {odd[0]!r} is not a choice"
            raise RuleError(fact, near=", ".join(near) or None, choices=", ".join(_CHOICES))
        if odd:
            chosen = next(key for key in value if key in _CHOICES)
            fact = f"{where}: the size of bond {odd[0]!r} stands beside the choice {chosen!r}"
            raise RuleError(fact, fix="{'size': {'r': 8}, 'starts': 1}")
        choices = {key: one for key, one in value.items() if key != "size"}
        Options.of(None, choices)  # refuses choices that mean nothing
        value = value.get("size")
    try:
        size = None if value is None else read_size(value)
    except RankError as error:
        raise RankError(f"{where}: the size cannot be read", because=error) from error
    if isinstance(size, MultiplyAddsBudget | TimeBudget):
        fact = f"{where}: {size!r} has no meaning for one layer of a model"
        raise RankError(fact, fix=f"size={str(size)!r} of the whole model; or for the layer {LAYER_SIZES}")
    return size, choices


LAYER_SIZES = "8, 'r=8 s=4', 'keep 0.5', 'error 0.01' or 'parameters 0.3'"
"""The forms of a size that one layer of a model may have, for messages."""
