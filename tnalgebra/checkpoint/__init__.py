"""A converted model in one safetensors file."""

from .file import load, save

__all__ = ["load", "save"]
