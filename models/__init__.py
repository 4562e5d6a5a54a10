"""Plain torch networks by name, and a loader of their weights."""

from models.registry import MODELS, build_model
from models.weights import load_weights

__all__ = ["MODELS", "build_model", "load_weights"]
