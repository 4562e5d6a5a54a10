"""Where a rule is applied, and what the caller chooses there."""

from __future__ import annotations

import difflib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any, TypedDict

import torch

from ..errors import RankError, RuleError
from ..fitting import Metric, MultiplyAddsBudget, Settings, Size, TimeBudget, read_size
from ..networks import Network, all_nodes, node_text
from ..tensors import BASES


@dataclass(frozen=True)
class Place:
    """Where a rule applies: positions of nodes, and the labels that distinguish two places on the same nodes.

    The nodes of a sum are counted from its first term to its last.

    match: what the rule found there, for its `build`; a step that is recorded has none.
    """

    nodes: tuple[int, ...]
    labels: tuple[str, ...] = ()
    match: object = field(default=None, compare=False, repr=False)

    def text(self, network: Network) -> str:
        everywhere = [*all_nodes(network)]
        nodes = " ".join(node_text(everywhere[position]) for position in self.nodes)
        return f"{nodes} at {' '.join(self.labels)}" if self.labels else nodes


class Choices(TypedDict, total=False):
    """What a caller may choose where a rule is applied.

    at: the place, as a number in `places(network)` or as one of them; needed only where the rule applies at several.
    bind: for variables of the left side the name or label of the network that they stand for; narrows the places down.
    sizes: sizes of labels, for the parts of a `Fuse`; parts that are left out become as equal as possible.
    fixed: for tensors of the right side their elements, or the name of a basis ("dct", "fourier",
        "haar", "hadamard"), which are not fitted. Of orthonormal rows, the ones that hold the most of the kernel's norm
        are kept, as many as the size says.
    constraints: what tensors of the right side must be: "orthonormal", "nonnegative", "columns" of the kernel, or
        "sampled columns", see `tn.fitting.fit_cores`.
    metric: the norm of a whole kernel in which the error is made small; by default the Frobenius norm.
    start: cores of the right side to start from, at most as large as the size says.
    seed, starts, sweeps, dtype, stability: choices of the search, see `tn.fitting.Settings`; a tree uses neither seed
        nor starts.
    """

    at: int | Place | None
    bind: Mapping[str, str] | None
    sizes: Mapping[str, int] | None
    fixed: Mapping[str, Any] | None
    constraints: Mapping[str, str] | None
    metric: Metric | None
    start: Mapping[str, Any] | None
    seed: int
    starts: int
    sweeps: int
    dtype: torch.dtype
    stability: float


class SizedChoices(Choices, total=False):
    """The choices and the size, where both travel as one mapping."""

    size: object


_KINDS: dict[str, tuple[type, str]] = {
    "bind": (Mapping, "a mapping of variables of the left side to names or labels of the network"),
    "sizes": (Mapping, "a mapping of labels to integers, such as {'a': 3}"),
    "fixed": (Mapping, "a mapping of tensors of the right side to arrays or names of bases, such as 'dct'"),
    "constraints": (Mapping, "a mapping of tensors of the right side to words, such as {'U': 'orthonormal'}"),
    "start": (Mapping, "a mapping of tensors of the right side to arrays"),
    "metric": (Metric, "a tn.fitting.Metric, as tn.input_metrics gives for each layer"),
}


def check_choice(key: str, known: Collection[str]) -> None:
    """Raises TypeError, as Python does for a keyword argument that does not exist, with the nearest that does."""
    if key not in known:
        near = difflib.get_close_matches(key, known, n=1)
        hint = f": did you mean {near[0]!r}?" if near else "."
        raise TypeError(f"{key!r} is not a choice{hint} The choices are {', '.join(known)}")


def check_basis_name(name: object) -> None:
    """Raises RuleError if no basis has this name."""
    if name not in BASES:
        raise RuleError(f"no basis has the name {name!r}", known=", ".join(BASES))


@dataclass(frozen=True)
class Options:
    """What the user chooses for one application: the size of the bonds, and the fields of `Choices`."""

    size: Size = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    bind: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    constraints: Mapping[str, str] = field(default_factory=dict)
    metric: Metric | None = None
    start: Mapping[str, Any] | None = None
    settings: Settings = field(default_factory=Settings)
    lost: tuple[str, ...] = ()
    """Choices that a file could not hold; the step can be looked at, and not done again."""
    refusals: list[str] | None = field(default=None, compare=False, repr=False)
    """Where it is a list, the search for places adds why sizes forbade a match, for the message if none is left."""

    @classmethod
    def of(cls, size: object, choices: Choices) -> Options:
        """Read a size, None for a rule without bonds, and the choices.

        Raises:
            TypeError: a choice does not exist.
            RankError: the size cannot be read, or is a budget of multiply-adds.
            RuleError, ValuesError: a choice has the wrong type or value.
        """
        fields: dict[str, Any] = {}
        search: dict[str, Any] = {}
        for key, value in choices.items():
            check_choice(key, Choices.__annotations__)
            kind, wanted = _KINDS.get(key, (object, ""))
            if value is not None and not isinstance(value, kind):
                raise RuleError(f"{key}= has the type {type(value).__name__}", fix=f"{key}= is {wanted}")
            if key in ("seed", "starts", "sweeps", "dtype", "stability"):
                search[key] = value
            elif key != "at" and value is not None:
                fields[key] = value
        read: Size = {} if size is None else read_size(size)
        if isinstance(read, MultiplyAddsBudget | TimeBudget):
            counted = "multiply-adds depend" if isinstance(read, MultiplyAddsBudget) else "time depends"
            fact = f"{str(read)!r} is not a size of one kernel, whose {counted} on the size of the input"
            takers = "tn.compare and tn.convert take" if isinstance(read, MultiplyAddsBudget) else "tn.convert takes"
            fix = f"ranks, 'keep 0.5', 'error 0.01' or 'parameters 0.3'; {takers} {str(read)!r}"
            raise RankError(fact, fix=fix)
        return cls(read, **fields, settings=Settings(**search))
