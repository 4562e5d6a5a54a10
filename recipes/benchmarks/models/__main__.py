"""The command `python -m recipes.benchmarks.models`."""

from recipes.benchmarks.models.run import run

if __name__ == "__main__":
    run()
