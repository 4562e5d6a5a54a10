"""A guard against work that would take hours: it says that code is stuck, not how fast it is."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

MINUTE = 60


@contextmanager
def not_stuck(seconds: int = MINUTE) -> Iterator[None]:
    """Fail what runs inside after so long a time that only growth of the wrong order reaches it."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise AssertionError(f"not done after {seconds} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
