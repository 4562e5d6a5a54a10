"""Progress bars of work that takes long."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NoReturn, TypeVar

from tqdm import tqdm

T = TypeVar("T")


def progress_bar(what: str, total: int, *, shown: bool) -> tqdm[NoReturn]:
    """A bar to call `update()` on; hidden unless it is to be shown and stderr is a terminal."""
    return tqdm(desc=what, total=total, disable=None if shown else True, leave=False)


def track(items: Iterable[T], what: str, *, shown: bool, total: int | None = None) -> Iterable[T]:
    """The items, with a bar that counts them; `total` of them, where they have no length."""
    return tqdm(items, what, total, disable=None if shown else True, leave=False)
