"""Streams: networks, layers and models that take one frame at a step, with a state of past frames."""

from .make import StreamPadding, stream
from .stream import State, Stream

__all__ = ["State", "Stream", "StreamPadding", "stream"]
