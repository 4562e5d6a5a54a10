"""A converted model in one safetensors file."""

from .adapters import load_adapter, save_adapter
from .file import load, save

__all__ = ["load", "load_adapter", "save", "save_adapter"]
