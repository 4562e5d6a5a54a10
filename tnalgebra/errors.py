"""The errors a user can meet: each says what is false, where, and what would be right."""

from __future__ import annotations

from typing import Any

__all__ = [
    "CheckpointError",
    "CompileError",
    "DataError",
    "DivergedError",
    "LayerError",
    "MissingPackageError",
    "NetworkError",
    "NotationError",
    "RankError",
    "RuleError",
    "SizeError",
    "StreamError",
    "StudyError",
    "TnalgebraError",
    "ValuesError",
    "WeightError",
    "WorkersError",
    "explain",
]


def __dir__() -> list[str]:
    return __all__


class TnalgebraError(Exception):
    """Root of every error that this package raises on purpose.

    Args:
        fact: what is false.
        at: the node, or ("->", label) of the output, that is wrong; a text it was read from is pointed at there.
        label: the label whose size is contradicted.
        context: where, and what would be right: lines below the fact, as `explain` lays them out.
    """

    def __init__(self, fact: str, *, at: object = None, label: str | None = None, **context: Any) -> None:
        super().__init__(explain(fact, **context))
        self.fact, self.context = fact, context
        self.at, self.label = at, label


class NotationError(TnalgebraError, ValueError):
    """A text is not in the notation; the message points at the character."""


class NetworkError(TnalgebraError, ValueError):
    """A network, or an operation on one, would not mean anything."""


class SizeError(TnalgebraError, ValueError):
    """Sizes of labels contradict each other, or one that is needed is unknown."""


class ValuesError(TnalgebraError, ValueError):
    """Arrays do not fit the network, or are not finite."""


class RankError(TnalgebraError, ValueError):
    """A rank is outside what its bond allows."""


class RuleError(TnalgebraError, ValueError):
    """A rule is malformed, or does not apply where it was asked to."""


class LayerError(TnalgebraError, ValueError):
    """A layer or module has no tensor network, or not with these arguments."""


class WeightError(LayerError, AttributeError):
    """Code computes with the weight of a decomposed layer, or changes it, which has no such tensor.

    Attributes:
        module: the layer.
    """

    module: object = None


class CompileError(TnalgebraError, ValueError):
    """A network cannot be compiled as asked, or what was compiled is called with what it is not made for."""


class StreamError(TnalgebraError, ValueError):
    """A network, layer or model cannot be computed frame by frame, or a stream is called with what it cannot take."""


class DataError(TnalgebraError, ValueError):
    """Images, labels or weights on disk are not what they should be."""


class CheckpointError(TnalgebraError, ValueError):
    """A file is not a checkpoint, or one of another model; or a model cannot be written as one."""


class StudyError(TnalgebraError, RuntimeError):
    """A study cannot be run, resumed or stored as asked."""


class WorkersError(TnalgebraError, RuntimeError):
    """Worker processes cannot be reached, are not alike, or do not finish a task."""


class MissingPackageError(TnalgebraError, ImportError):
    """Something needs a package that an extra of tnalgebra brings, and that is not installed."""


class DivergedError(StudyError):
    """The loss of a training is not finite, or far above that of guessing."""


def explain(fact: str, **context: object) -> str:
    """Lay out an error message: the false fact first, then one indented line per `key: value`.

    >>> print(explain("label 'k' has no size", known="o=8", fix="give sizes={'k': ...}"))
    label 'k' has no size
      known: o=8
      fix:   give sizes={'k': ...}
    """
    rows = {key.replace("_", " ") + ":": str(value) for key, value in context.items() if value is not None}
    width = max((len(key) for key in rows), default=0)
    indent = "\n" + " " * (width + 3)
    lines = (f"\n  {key:<{width}} " + value.replace("\n", indent) for key, value in rows.items())
    return fact + "".join(lines)
