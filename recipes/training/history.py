"""The history of a training, with a row for each epoch: as CSV, for TensorBoard, as a data frame, as a figure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import tnalgebra as tn

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure
    from torch.utils.tensorboard import SummaryWriter

HISTORY, EVENTS = "history.csv", "tensorboard"


class Epoch(NamedTuple):
    """One epoch of a training: a row of its history."""

    epoch: int
    """from 1"""
    step: int
    """the number of steps done by its end"""
    learning_rate: float
    """that of its last step"""
    training_loss: float
    """the mean over the examples of the epoch, each with the network as it was in its step"""
    test_score: float
    """the score on the test examples at its end"""
    seconds: float
    """its duration, the test included; only this field differs in another run with the same settings"""


@dataclass(frozen=True)
class History:
    """The history of a training.

    Attributes:
        rows: one for each epoch, in their order.
        score_name: what `test_score` is: "accuracy" (0 to 1), or "relative_error".
    """

    rows: tuple[Epoch, ...]
    score_name: str

    def to_pandas(self) -> pandas.DataFrame:
        """A data frame with a row for each epoch and the columns of `Epoch`."""
        import pandas

        return pandas.DataFrame([row._asdict() for row in self.rows], columns=list(Epoch._fields))

    def plot(self) -> Figure:
        """A figure of the loss and the score by epoch."""
        from matplotlib.figure import Figure
        from matplotlib.ticker import MaxNLocator

        figure = Figure(figsize=(8, 3.2), layout="constrained")
        epochs = [row.epoch for row in self.rows]
        curves = {
            "training loss": [row.training_loss for row in self.rows],
            f"test {self.score_name.replace('_', ' ')}": [row.test_score for row in self.rows],
        }
        for axes, (name, values) in zip(figure.subplots(1, 2), curves.items(), strict=True):
            axes.plot(epochs, values, marker="o" if len(epochs) < 30 else None, markersize=4)
            axes.set(xlabel="epoch", ylabel=name)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))
            axes.grid(alpha=0.3)
        return figure


def write_history(folder: Path, rows: Sequence[Epoch]) -> None:
    """Write all rows into `history.csv`, whole or not at all."""
    lines = [",".join(map(str, row)) for row in (Epoch._fields, *rows)]
    tn.studies.write_text(folder / HISTORY, "\n".join(lines) + "\n")


def tensorboard_writer(folder: Path) -> SummaryWriter:
    """A writer for scalars. Those of an earlier process are removed, because all of them are written again."""
    from torch.utils.tensorboard import SummaryWriter

    for old in (folder / EVENTS).glob("events.out.tfevents.*"):
        old.unlink()
    return SummaryWriter(str(folder / EVENTS))


def log_epoch(writer: SummaryWriter, score_name: str, row: Epoch) -> None:
    """Write the scalars of an epoch, and flush them to the disk."""
    scalars = {"loss/training": row.training_loss, f"{score_name}/test": row.test_score}
    for name, value in {**scalars, "learning_rate": row.learning_rate, "seconds": row.seconds}.items():
        writer.add_scalar(name, value, row.epoch)
    writer.flush()
