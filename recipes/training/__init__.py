"""Train a network, dense or decomposed: stopped at any moment, and resumed with the same numbers."""
