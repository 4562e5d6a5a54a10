"""The compiler: from a network to fast torch code, by the passes simplify, order, lower, choose and emit."""

from .choose import COMPUTED, MAX_PLAN_ELEMENTS, Candidates, is_channels_last
from .compile import check_names, compile, make_request
from .compiled import Compiled
from .constants import device_name
from .executor import Executor
from .keeper import Snapshot
from .measure_device import calibrate
from .plan import Plan
from .tracing import is_exported, is_jit_traced, is_symbolic, is_traced, is_watched, leaf_call

__all__ = [
    "COMPUTED",
    "MAX_PLAN_ELEMENTS",
    "Candidates",
    "Compiled",
    "Executor",
    "Plan",
    "Snapshot",
    "calibrate",
    "check_names",
    "compile",
    "device_name",
    "is_channels_last",
    "is_exported",
    "is_jit_traced",
    "is_symbolic",
    "is_traced",
    "is_watched",
    "leaf_call",
    "make_request",
]
