"""Read traces from files. The text is parsed and never executed; replaying the steps checks what it says."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..errors import RuleError, TnalgebraError
from ..fitting import Settings
from ..networks import Network, all_nodes, parse
from ..rewriting import EXACT_RULES, Change, Options, Place, Rule, Step, Trace, rule
from .components import drop_components
from .cuts import cut
from .degeneracy import correct_degeneracy
from .truncate import truncate

MAX_BYTES = 16 * 2**20
"""Longest file that is read."""

_DTYPES = {"float64": torch.float64, "float32": torch.float32}
"""The types that a search computes in, see `Settings`."""


def load_trace(path: str | Path) -> Trace:
    """Read the file that `Trace.save` wrote.

    Args:
        path: a JSON file of at most 16 MiB.

    Returns:
        The trace without values; `Trace.replay(values)` does its steps on some.

    Raises:
        RuleError: the file does not hold a trace, or it names an unknown rule.
        NotationError: a text in it is not in the notation.

    Example:
        >>> fit.trace.save("trace.json")
        >>> tn.decompositions.load_trace("trace.json").replay({"K": other.weight})
    """
    path = Path(path)
    if not path.is_file():
        raise RuleError(f"{path} is not a file", fix="a file that Trace.save wrote")
    if path.stat().st_size > MAX_BYTES:
        raise RuleError(f"{path} has {path.stat().st_size} bytes", fix=f"a trace has at most {MAX_BYTES}")
    try:
        text = path.read_text(encoding="utf-8")
    except ValueError as error:
        raise RuleError(f"{path} is not a trace", because=f"{type(error).__name__}: {error}") from error
    return read_trace(text, where=str(path))


def read_trace(text: str, *, where: str = "the text") -> Trace:
    """Read the text that `Trace.to_json` made. The errors are those of `load_trace`, and name `where`."""
    try:
        content = json.loads(text)
        network = start = parse(content["start"])
        steps = []
        for entry in content["steps"]:
            step = _step(entry, network)
            steps.append(step)
            network = step.after
    except TnalgebraError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise RuleError(f"{where} is not a trace", because=f"{type(error).__name__}: {error}") from error
    return Trace(start, tuple(steps))


def _step(entry: Mapping[str, Any], before: Network) -> Step:
    place = Place(tuple(map(int, entry["nodes"])), tuple(map(str, entry["labels"])))
    if not all(0 <= position < len([*all_nodes(before)]) for position in place.nodes):
        raise RuleError("a step is at a position where the network has no node", place=place, network=before)
    ranks = {str(bond): int(rank) for bond, rank in entry["ranks"].items()}
    sizes = {str(label): int(size) for label, size in entry["sizes"].items()}
    bind = {str(variable): str(thing) for variable, thing in entry["bind"].items()}
    error = _error(entry["relative_error"], "a relative error")
    of_output = None if "output_error" not in entry else _error(entry["output_error"], "an error of the output")
    change = Change(parse(entry["after"]), relative_error=error, ranks=ranks, output_error=of_output)
    # older traces have no stability, and a correction afterwards (slack), which is not made any more
    search = {"dtype": "float64", "stability": 0.0, **entry.get("search", {})}
    search.pop("slack", None)
    if search["dtype"] not in _DTYPES:
        raise RuleError(f"a step has the unknown type {search['dtype']!r}", fix=" or ".join(_DTYPES))
    settings = Settings(**{**search, "dtype": _DTYPES[search["dtype"]]})
    fixed = {str(name): _elements(value) for name, value in entry.get("fixed", {}).items()}
    constraints = {str(name): str(kind) for name, kind in entry.get("constraints", {}).items()}
    lost = tuple(map(str, entry.get("lost", ())))
    options = Options(ranks, sizes, bind, fixed, constraints, settings=settings, lost=lost)
    return Step(rule_from(entry["rule"]), place, options, before, change)


def _elements(value: Any) -> Any:
    """The elements of a constant; complex ones were saved as their real and imaginary parts."""
    return np.asarray(value["real"]) + 1j * np.asarray(value["imaginary"]) if isinstance(value, dict) else value


def _error(value: object, what: str) -> float:
    if value == "inf":  # of a left side that is 0
        return math.inf
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise RuleError(f"a step records {what} of {value!r}", fix="a number of at least 0, or the text inf")
    return float(value)


def rule_from(spec: Mapping[str, str]) -> Rule:
    """Make the rule that `Rule.spec` describes. Raises RuleError where the description is unknown."""
    match spec:
        case {"exact": name}:
            known = {exact.name: exact for exact in EXACT_RULES}
            if name not in known:
                raise RuleError(f"no exact rule is called {name!r}", rules=", ".join(known))
            return known[name]
        case {"notation": text, "name": str(name)}:
            return rule(text, name=name, fixed=json.loads(spec.get("fixed", "{}")))
        case {"cut": text, "form": ("factors" | "svd") as form}:
            return cut(text, of=spec.get("of"), form=form)
        case {"truncate": bond}:
            return truncate(bond)
        case {"drop_components": bond}:
            return drop_components(bond)
        case {"correct_degeneracy": tolerance}:
            return correct_degeneracy(float(tolerance))
    raise RuleError("the description of a rule is unknown", rule=dict(spec))
