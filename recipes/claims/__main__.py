"""The command `python -m recipes.claims`."""

from recipes.claims.run import run

if __name__ == "__main__":
    run()
