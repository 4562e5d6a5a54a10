"""Rank correlations as text and as JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from tnalgebra.study_statistics import Correlation


def interval(found: Correlation) -> str:
    """The correlation and the ends of its interval."""
    return f"{found.rho:+.2f} [{found.low:+.2f}, {found.high:+.2f}]"


def shown(found: Correlation) -> str:
    """With the numbers of points and of what was drawn; or why there is none."""
    if found.why is not None:
        return f"none: {found.why}"
    left_out = f", {found.undefined} draws undefined" if found.undefined else ""
    return f"{interval(found)}  {found.points} points, {found.units} drawn{left_out}"


def plain(value: Any) -> Any:
    """As JSON has it, which has no NaN."""
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
