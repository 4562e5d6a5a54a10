"""Decompose a network before it is trained."""
