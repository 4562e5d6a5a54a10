"""Words of the notation: which names are allowed, the labels of torch's kernels, and names that are free."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping

from ..errors import NetworkError, explain

WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

MAX_AXES = 64
"""torch holds at most 64 axes in one tensor."""

MAX_SIZE = 2**40
"""A label longer than this is a slip of the keyboard: no tensor of that length fits any memory."""

MAX_DIGITS = 1000
"""Characters of the longest number: room for any float64 as an exact fraction."""

KERNEL_LABELS: Mapping[int, tuple[str, ...]] = {
    2: ("out", "in"),
    3: ("out", "in", "k"),
    4: ("out", "in", "kh", "kw"),
    5: ("out", "in", "kd", "kh", "kw"),
}
"""Axes of a weight as torch stores them (`Linear`, `Conv1d`, `Conv2d`, `Conv3d`), by the number of axes."""


def kernel_labels(labels: Iterable[str]) -> tuple[str, ...] | None:
    """`labels` in torch's order if they are, as a set, those of a kernel; otherwise None."""
    wanted = set(labels)
    return next((order for order in KERNEL_LABELS.values() if set(order) == wanted), None)


def check_word(word: str, *, what: str) -> str:
    """Return `word` if it is a WORD of the notation.

    Raises:
        NetworkError: it is not.
    """
    if not isinstance(word, str) or not WORD.fullmatch(word):
        raise NetworkError(explain(f"{what} {word!r} is not a word", fix="letters, digits and '_', not a digit first"))
    return word


def fresh(word: str, taken: Container[str]) -> str:
    """`word` itself if it is not taken, else `word_2`, `word_3`, ...: the first that is free."""
    if word not in taken:
        return word
    stem = re.sub(r"_\d+$", "", word)
    number = 2
    while f"{stem}_{number}" in taken:
        number += 1
    return f"{stem}_{number}"


def labels_of(text: str | Iterable[str]) -> tuple[str, ...]:
    """Labels written as one text ("out in, kh kw") or as a sequence of words."""
    words = re.split(r"[\s,]+", text.strip()) if isinstance(text, str) else list(text)
    return tuple(check_word(word, what="label") for word in words if word != "")
