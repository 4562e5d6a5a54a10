"""A network as the fastest torch code: simplify, order, lower, choose, emit."""

from .choose import Candidates, is_channels_last
from .compile import MAX_ELEMENTS, compile, prepared
from .compiled import Compiled
from .plan import Plan

__all__ = ["MAX_ELEMENTS", "Candidates", "Compiled", "Plan", "compile", "is_channels_last", "prepared"]
