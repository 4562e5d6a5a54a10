"""The benchmark of whole models: decomposed by this library, by hand, and dense."""
