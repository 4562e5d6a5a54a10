"""The command `python -m recipes.benchmarks.layers`."""

from recipes.benchmarks.layers.run import run

if __name__ == "__main__":
    run()
