"""The command `python -m recipes.benchmarks.layers`."""

from recipes.benchmarks.layers.run import command

if __name__ == "__main__":
    command()
