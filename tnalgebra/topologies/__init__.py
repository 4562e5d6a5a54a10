"""The search for a topology: spaces of topologies, bounds on their errors, and the fits of those that are left."""

from .result import FoundTopologies
from .search import search
from .space import Space
from .topology import Topology

__all__ = ["FoundTopologies", "Space", "Topology", "search"]
