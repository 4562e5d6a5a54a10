"""A network as the fastest torch code: simplify, order, lower, choose, emit."""

from .choose import MAX_PLAN_ELEMENTS, Candidates, is_channels_last
from .compile import compile, make_request
from .compiled import Compiled
from .measure_device import calibrate
from .plan import Plan

__all__ = [
    "MAX_PLAN_ELEMENTS",
    "Candidates",
    "Compiled",
    "Plan",
    "calibrate",
    "compile",
    "is_channels_last",
    "make_request",
]
