"""The command `python -m recipes.a_priori`."""

from recipes.a_priori.run import run

if __name__ == "__main__":
    run()
