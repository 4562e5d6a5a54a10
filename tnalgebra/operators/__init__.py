"""Layers as linear maps of whole inputs: their singular values, solutions, inverses, and penalties on their norms."""

from .penalties import lipschitz_bound, orthogonality
from .solve import InverseNetwork, inverse, solve
from .spectra import OperatorSpectra, operator_spectra

__all__ = [
    "InverseNetwork",
    "OperatorSpectra",
    "inverse",
    "lipschitz_bound",
    "operator_spectra",
    "orthogonality",
    "solve",
]
