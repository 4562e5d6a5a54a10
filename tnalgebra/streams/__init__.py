"""Streams: networks, layers and models that take one frame at a step, with a state of past frames."""

from .make import Padding, stream
from .stream import State, Stream

__all__ = ["Padding", "State", "Stream", "stream"]
