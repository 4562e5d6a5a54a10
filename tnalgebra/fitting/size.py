"""How small a decomposition is to be. Each size has a type and a text, so that 0.5 never means two things."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, SupportsFloat, TypeAlias

from ..errors import RankError
from ..networks import WORD, integer


@dataclass(frozen=True, slots=True)
class _Fraction:
    """A size that is a part of something, in (0, 1]. `str` gives the text that `read_size` reads."""

    fraction: float

    word: ClassVar[str]

    def __post_init__(self) -> None:
        value, name = self.fraction, type(self).__name__
        if isinstance(value, bool | str) or not isinstance(value, SupportsFloat):
            raise RankError(f"{name} needs a number, and {value!r} is not one", fix=f"{name}(0.5)")
        if not 0 < float(value) <= 1:
            fact = f"{name}({value}) is not a fraction: it must be greater than 0 and at most 1"
            raise RankError(fact, fix=f"{name}(0.5)")

    def __str__(self) -> str:
        return f"{self.word} {float(self.fraction)!r}"


class KeepFraction(_Fraction):
    """Keep a fraction of the singular values of a bond: `max(1, round(fraction * their number))`.

    `round` is Python's, so that a half goes to the even number. The text form is "keep 0.5".

    Args:
        fraction: greater than 0 and at most 1.

    Raises:
        RankError: the fraction is not a number in this range.

    Example:
        >>> tn.cut("out kh | in kw").apply(conv.weight, tn.KeepFraction(0.5))
    """

    __slots__ = ()
    word = "keep"


class ParameterBudget(_Fraction):
    """Keep at most a fraction of the parameters: of the kernel in `Rule.apply`, of the whole model in `convert`.

    All bonds share the budget. A bond grows where one more value adds most to the norm that is kept, for each
    parameter, or shrinks where one value fewer costs the least; of several such ways the one that keeps most is taken.
    Bonds without singular values of their own, which are those in loops and on hyperedges, grow evenly. The text
    form is "parameters 0.3".

    Args:
        fraction: greater than 0 and at most 1.

    Raises:
        RankError: the fraction is not a number in this range.

    Example:
        >>> tn.rule("K[o i h w] => A[o p] B[p i q] C[q h w]").apply(conv.weight, tn.ParameterBudget(0.3))
    """

    __slots__ = ()
    word = "parameters"


class MultiplyAddsBudget(_Fraction):
    """Keep at most a fraction of the multiply-adds of a layer in `compare`, or of the whole model in `convert`.

    A kernel alone has no multiply-adds, because they depend on the size of the input; `Rule.apply` therefore refuses
    this size. The text form is "multiply-adds 0.5".

    Args:
        fraction: greater than 0 and at most 1.

    Raises:
        RankError: the fraction is not a number in this range.

    Example:
        >>> model, report = tn.convert(model, {torch.nn.Conv2d: "tucker2"}, size=tn.MultiplyAddsBudget(0.5), example=x)
    """

    __slots__ = ()
    word = "multiply-adds"


class TimeBudget(_Fraction):
    """Keep at most a fraction of the time that a whole model takes for one forward pass, in `convert`.

    The time is measured on the example, on the machine at hand: of the model, of its layers as they are, and of each
    layer in the form that is considered for it. Another machine, or a busy one, may therefore choose other ranks. The
    text form is "time 0.7".

    Args:
        fraction: greater than 0 and at most 1.

    Raises:
        RankError: the fraction is not a number in this range.

    Example:
        >>> model, report = tn.convert(model, {torch.nn.Conv2d: "tucker2"}, size=tn.TimeBudget(0.7), example=x)
    """

    __slots__ = ()
    word = "time"


@dataclass(frozen=True, slots=True)
class RelativeError:
    """Keep the fewest values of a bond with ||dropped||_2 <= error * ||all||_2.

    Values that are equal to the last one that is kept are kept as well. Each bond may lose this much; in a tree of n
    bonds the whole loses at most sqrt(n) times as much. The text form is "error 0.01".

    Args:
        error: at least 0 and less than 1.

    Raises:
        RankError: the error is not a number in this range.

    Example:
        >>> tn.cut("out | in kh kw").apply(conv.weight, tn.RelativeError(0.01)).relative_error
    """

    error: float

    def __post_init__(self) -> None:
        if isinstance(self.error, bool | str) or not isinstance(self.error, SupportsFloat):
            fact = f"RelativeError needs a number, and {self.error!r} is not one"
            raise RankError(fact, fix="RelativeError(0.01)")
        if not 0 <= float(self.error) < 1:
            fact = f"RelativeError({self.error}) is out of range: it must be at least 0 and less than 1"
            raise RankError(fact, fix="RelativeError(0.01)")

    def __str__(self) -> str:
        return f"error {float(self.error)!r}"


Rank: TypeAlias = int | KeepFraction | RelativeError
"""How many values one bond keeps."""

ModelBudget: TypeAlias = ParameterBudget | MultiplyAddsBudget | TimeBudget
"""A size of all layers of a model together; that of parameters is one of a single kernel, too."""

Size: TypeAlias = Rank | ModelBudget | Mapping[str, Rank]
"""How small a decomposition is to be. One rank is for every bond; a mapping has a rank for each bond."""

FORMS = "8, 'r=8 s=4', 'keep 0.5', 'error 0.01', 'parameters 0.3', 'multiply-adds 0.5', 'time 0.7'"

_CLASSES: dict[str, Callable[[float], Size]] = {
    "keep": KeepFraction,
    "error": RelativeError,
    "parameters": ParameterBudget,
    "multiply-adds": MultiplyAddsBudget,
    "time": TimeBudget,
}
_BOND = re.compile(rf"\s*({WORD.pattern})\s*=\s*(?:([+-]?\d+)(?![.\d])|(keep|error)\s+([^\s,]+))\s*(?:,|\s|$)")


def read_size(size: object) -> Size:
    """Read a size: an object of one of the types, or its text.

    Args:
        size: an int, which every bond gets, or its full rank where that is smaller; `KeepFraction` or `RelativeError`
            for every bond; `ParameterBudget`, `MultiplyAddsBudget` or `TimeBudget` for all bonds together; a mapping
            of each bond to an int, `KeepFraction` or `RelativeError`; or a text: "8", "r=8 s=4", "keep 0.5",
            "error 0.01", "parameters 0.3", "multiply-adds 0.5", "time 0.7".

    Returns:
        The size as an object, its integers as Python's.

    Raises:
        RankError: it is none of these, such as a bare float, or its number is out of range.

    Example:
        >>> read_size("r=8 s=4")
        {'r': 8, 's': 4}
    """
    if isinstance(size, str):
        return _read_text(size)
    if isinstance(size, Mapping):
        ranks = {}
        for bond, rank in size.items():
            try:
                read = read_size(rank)
            except RankError as error:
                raise RankError(f"the size of bond {bond!r} cannot be read", because=error) from None
            if not isinstance(read, int | KeepFraction | RelativeError):
                fact = f"the size of bond {bond!r} is {rank!r}, which is not a size of one bond"
                raise RankError(fact, fix=f"{{{bond!r}: 8}}, or KeepFraction or RelativeError")
            ranks[str(bond)] = read
        return ranks
    if isinstance(size, KeepFraction | RelativeError | ModelBudget):
        return size
    number = integer(size)
    if number is None:
        fact, forms = f"the size {size!r} does not say what it counts", FORMS
        if isinstance(size, float) and 0 < size < 1:
            forms = ", ".join(f"'{word} {float(size)!r}'" for word in _CLASSES)
        raise RankError(fact, fix=forms)
    if number < 1:
        raise RankError(f"the rank {number} is less than 1", fix="a rank of at least 1")
    return number


def _read_text(text: str) -> Size:
    words = text.split()
    if len(words) == 1 and re.fullmatch(r"[+-]?\d+", words[0]):
        return read_size(int(words[0]))
    if len(words) == 2 and words[0] in _CLASSES:
        return _CLASSES[words[0]](_number(words[1], text))
    ranks: dict[str, Rank] = {}
    end = 0
    while match := _BOND.match(text, end):
        bond, count, word, number = match.groups()
        if bond in ranks:
            raise RankError(f"the bond {bond!r} has two sizes", where=text, fix="one size for each bond")
        ranks[bond] = int(count) if count else _CLASSES[word](_number(number, text))  # type: ignore[assignment]
        end = match.end()
    if not ranks or text[end:].strip():
        fact = f"the text {text!r} is not a size"
        raise RankError(fact, unread=text[end:].strip() if ranks else None, fix=FORMS)
    return read_size(ranks)


def _number(word: str, text: str) -> float:
    try:
        return float(word)
    except ValueError:
        fact = f"{word!r} is not a number"
        raise RankError(fact, where=text, fix=f"{text.replace(word, '0.5')!r}") from None


def size_text(size: Size) -> str:
    """The text of a size, which `read_size` reads back to an equal one: "r=8 s=4", "keep 0.5".

    Raises:
        RankError: a mapping is empty, which no text can say.
    """
    if not isinstance(size, Mapping):
        return str(size)
    if not size:
        raise RankError("an empty mapping has no text", fix=FORMS)
    return " ".join(f"{bond}={rank}" for bond, rank in size.items())
