"""Plain torch networks by name, and a loader of their weights."""

from models.registry import MODELS, SURROGATES, build_model, build_surrogate
from models.weights import load_weights

__all__ = ["MODELS", "SURROGATES", "build_model", "build_surrogate", "load_weights"]
