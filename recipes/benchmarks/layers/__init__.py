"""Layers against the best that torch and other libraries offer."""
