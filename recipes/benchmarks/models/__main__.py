"""The command `python -m recipes.benchmarks.models`."""

from recipes.benchmarks.models.run import command

if __name__ == "__main__":
    command()
