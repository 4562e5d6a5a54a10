"""What a training tells: a row an epoch, as CSV, for TensorBoard, as a table and a figure."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import tnalgebra as tn

if TYPE_CHECKING:
    import pandas
    from matplotlib.figure import Figure

HISTORY, EVENTS = "history.csv", "tensorboard"


class Row(NamedTuple):
    """One epoch."""

    epoch: int
    """from 1"""
    step: int
    """steps done by its end"""
    learning_rate: float
    """of its last step"""
    training_loss: float
    """mean over the epoch's examples, each as the network was when it came"""
    test_score: float
    """at its end"""
    seconds: float
    """that it took, its test included; the one field that another run of the same settings has otherwise"""


@dataclass(frozen=True)
class History:
    """Rows of a training, one an epoch.

    Attributes:
        rows: in their order.
        score_name: what `test_score` is: accuracy (0 to 1), or relative_error.
    """

    rows: tuple[Row, ...]
    score_name: str

    def to_pandas(self) -> pandas.DataFrame:
        """One row an epoch, columns as in `Row`."""
        import pandas

        return pandas.DataFrame([row._asdict() for row in self.rows], columns=list(Row._fields))

    def plot(self) -> Figure:
        """Loss and score by epoch."""
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


def write_history(folder: Path, rows: Sequence[Row]) -> None:
    """Write `history.csv`, all rows, whole or not at all."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(Row._fields)
    writer.writerows(rows)
    tn.studies.write_text(folder / HISTORY, text.getvalue())


def read_history(folder: str | Path, *, score_name: str = "accuracy") -> History:
    """The rows that a training has written into its folder so far.

    Raises:
        StudyError: there is no such file, or it is not one of a training.
    """
    path = Path(folder) / HISTORY
    try:
        with path.open(encoding="utf-8", newline="") as file:
            reader = csv.DictReader(file)
            rows = [row_of(row) for row in reader]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise tn.errors.StudyError(
            tn.errors.explain(f"{path} cannot be read", because=f"{type(error).__name__}: {error}")
        ) from error
    return History(tuple(rows), score_name)


def row_of(fields: dict[str, Any]) -> Row:
    """A row of fields that were read: numbers, or their texts."""
    epoch, step, *numbers = (fields[name] for name in Row._fields)
    return Row(int(epoch), int(step), *map(float, numbers))


class Events:
    """Scalars for TensorBoard: what an earlier process left is written anew, so that no row is there twice."""

    def __init__(self, folder: Path, rows: Sequence[Row], score_name: str) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.score_name = score_name
        for old in (folder / EVENTS).glob("events.out.tfevents.*"):
            old.unlink()
        self.writer = SummaryWriter(str(folder / EVENTS))
        for row in rows:
            self.add(row)

    def add(self, row: Row) -> None:
        """Add one epoch; it is on the disk when this returns."""
        for name, value in (
            ("loss/training", row.training_loss),
            (f"{self.score_name}/test", row.test_score),
            ("learning_rate", row.learning_rate),
            ("seconds", row.seconds),
        ):
            self.writer.add_scalar(name, value, row.epoch)
        self.writer.flush()

    def close(self) -> None:
        """No more rows come."""
        self.writer.close()
