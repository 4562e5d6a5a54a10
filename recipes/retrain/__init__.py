"""Truncate the kernels of a trained network and train it again."""
