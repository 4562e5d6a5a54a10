"""Train a network, dense or decomposed. A training can be stopped at any moment and continues with the same numbers."""

from recipes.training.classification import Classification, crop_and_flip
from recipes.training.history import Epoch, History
from recipes.training.loop import train
from recipes.training.regression import Regression
from recipes.training.settings import Training
from recipes.training.task import Task, evaluate

__all__ = [
    "Classification",
    "Epoch",
    "History",
    "Regression",
    "Task",
    "Training",
    "crop_and_flip",
    "evaluate",
    "train",
]
