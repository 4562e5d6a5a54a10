"""The uses themselves: what is done to modules, by kind."""

from tests.uses import frozen, numbers, tensors, traced, wrapped  # noqa: F401  each lists its own
