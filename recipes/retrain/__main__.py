"""The command `python -m recipes.retrain`."""

from recipes.retrain.run import run

if __name__ == "__main__":
    run()
