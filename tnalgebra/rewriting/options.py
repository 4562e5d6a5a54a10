"""Where a rule is applied, and what the caller chooses there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypedDict

import torch

from ..errors import RankError, RuleError
from ..fitting import Metric, MultiplyAddsBudget, Settings, Size, read_size
from ..networks import Network, node_text


@dataclass(frozen=True)
class Place:
    """Where a rule applies: positions of nodes, and the labels that distinguish two places on the same nodes.

    match: what the rule found there, for its `build`; a step that is recorded has none.
    """

    nodes: tuple[int, ...]
    labels: tuple[str, ...] = ()
    match: object = field(default=None, compare=False, repr=False)

    def text(self, network: Network) -> str:
        nodes = " ".join(node_text(network.nodes[position]) for position in self.nodes)
        return f"{nodes} at {' '.join(self.labels)}" if self.labels else nodes


class Choices(TypedDict, total=False):
    """What a caller may choose where a rule is applied.

    at: the place, as a number in `places(network)` or as one of them; needed only where the rule applies at several.
    bind: for variables of the left side the name or label of the network that they stand for; narrows the places down.
    sizes: sizes of labels, for the parts of a `Fuse`; parts that are left out become as equal as possible.
    fixed: for tensors of the right side their elements, or the name of a basis ("dct"), which are not fitted. Of
        orthonormal rows, the ones that hold the most of the kernel's norm are kept, as many as the size says.
    metric: the norm of a whole kernel in which the error is made small; by default the Frobenius norm.
    start: cores of the right side to start from, at most as large as the size says.
    seed, starts, sweeps, dtype, slack: choices of the search, see `tn.fitting.Settings`; a tree uses neither seed nor
        starts.
    """

    at: int | Place | None
    bind: Mapping[str, str] | None
    sizes: Mapping[str, int] | None
    fixed: Mapping[str, Any] | None
    metric: Metric | None
    start: Mapping[str, Any] | None
    seed: int
    starts: int
    sweeps: int
    dtype: torch.dtype
    slack: float


class SizedChoices(Choices, total=False):
    """The choices and the size, where both travel as one mapping."""

    size: object


_KINDS = {"bind": Mapping, "sizes": Mapping, "fixed": Mapping, "start": Mapping, "metric": Metric}


@dataclass(frozen=True)
class Options:
    """What the user chooses for one application: the size of the bonds, and the fields of `Choices`."""

    size: Size = field(default_factory=dict)
    sizes: Mapping[str, int] = field(default_factory=dict)
    bind: Mapping[str, str] = field(default_factory=dict)
    fixed: Mapping[str, Any] = field(default_factory=dict)
    metric: Metric | None = None
    start: Mapping[str, Any] | None = None
    settings: Settings = field(default_factory=Settings)
    lost: tuple[str, ...] = ()
    """Choices that a file could not hold; the step can be looked at, and not done again."""

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
            if key not in Choices.__annotations__:
                raise TypeError(f"{key!r} is not a choice; the choices are {', '.join(Choices.__annotations__)}")
            kind = _KINDS.get(key, object)
            if value is not None and not isinstance(value, kind):
                wanted = "a Metric" if kind is Metric else "a mapping"
                raise RuleError(f"{key}= is a {type(value).__name__}", fix=f"{wanted}, see `Choices`")
            if key in ("seed", "starts", "sweeps", "dtype", "slack"):
                search[key] = value
            elif key != "at" and value is not None:
                fields[key] = value
        read: Size = {} if size is None else read_size(size)
        if isinstance(read, MultiplyAddsBudget):
            fact = (
                f"{str(read)!r} needs a layer or a model: the multiply-adds of a kernel depend on the size of the input"
            )
            raise RankError(fact, fix="tn.compare(layer, ...), tn.convert(model, ...), or a ParameterBudget")
        return cls(read, **fields, settings=Settings(**search))
