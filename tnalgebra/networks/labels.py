"""Words of the notation: which words are allowed, the labels of torch's kernels, and words that are not taken."""

from __future__ import annotations

import operator
import re
from collections.abc import Container, Iterable, Mapping

from ..errors import NetworkError

WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

MAX_OUTPUT = 4096
"""Most open labels of a network. Its value has an axis for each, so that beyond 64 of them it is never dense."""

MAX_AXES = 64
"""Most axes of a tensor, which is torch's limit."""

MAX_SIZE = 2**40
"""Largest size of a label. A tensor with a longer axis would not fit any memory, so a larger number is a slip."""

MAX_DIGITS = 1000
"""Most characters of a number, which is enough for any float64 as an exact fraction."""

KERNEL_LABELS: Mapping[int, tuple[str, ...]] = {
    2: ("out", "in"),
    3: ("out", "in", "k"),
    4: ("out", "in", "kh", "kw"),
    5: ("out", "in", "kd", "kh", "kw"),
}
"""Number of axes -> the labels of a weight of torch's `Linear`, `Conv1d`, `Conv2d` or `Conv3d`, in torch's order."""


def kernel_labels(labels: Iterable[str]) -> tuple[str, ...] | None:
    """`labels` in torch's order if they are those of a kernel, in whatever order; otherwise None."""
    words = set(labels)
    return next((order for order in KERNEL_LABELS.values() if set(order) == words), None)


def integer(number: object) -> int | None:
    """A number as Python's integer; None if it is not an integer, as True is not."""
    try:
        return None if isinstance(number, bool) else operator.index(number)  # type: ignore[arg-type]
    except TypeError:
        return None


def check_word(word: str, *, what: str) -> str:
    """Return `word` if it is a word of the notation. Raises NetworkError, which calls it `what`, if it is not."""
    if not isinstance(word, str) or not WORD.fullmatch(word):
        raise NetworkError(f"{what} {word!r} is not a word", fix="letters, digits and '_', and not a digit first")
    return word


def check_words(words: Iterable[str], *, what: str) -> None:
    """`check_word` for each word."""
    for word in words:
        check_word(word, what=what)


def fresh(word: str, taken: Container[str]) -> str:
    """`word` if it is not taken; otherwise the first of `word_2`, `word_3`, ... that is not."""
    if word not in taken:
        return word
    stem = re.sub(r"_\d+$", "", word)
    number = 2
    while f"{stem}_{number}" in taken:
        number += 1
    return f"{stem}_{number}"


def labels_of(text: object) -> tuple[str, ...]:
    """Labels as a tuple, from one text ("out in, kh kw") or from a sequence of words. Raises NetworkError."""
    if not isinstance(text, Iterable):
        raise NetworkError(f"a {type(text).__name__} is given where labels are needed", fix="'out in kh kw'")
    words = re.split(r"[\s,]+", text.strip()) if isinstance(text, str) else list(text)
    return tuple(check_word(word, what="label") for word in words if word != "")
