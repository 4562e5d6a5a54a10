"""The task of mapping tensors to tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

import tnalgebra as tn
from recipes.training.settings import Training
from recipes.training.task import Task, try_network


@dataclass(frozen=True, eq=False)
class Regression(Task):
    """Map tensors to tensors: the loss is the mean squared error, the score the relative error of the test set.

    The score is ||outputs - targets|| / ||targets||, with Euclidean norms over all elements of all examples. It is 0
    for perfect outputs, and 1 for zeros.

    Args:
        training_inputs: floating-point, shape (n, ...): element [i] is the i-th input of the network.
        training_targets: floating-point, shape (n, ...): element [i] is the output that the network learns for it.
        test_inputs: shape (m, ...).
        test_targets: shape (m, ...).

    Raises:
        DataError: the shapes of the tensors do not fit each other; a tensor is empty or not finite; all test targets
            are 0.
    """

    training_inputs: Tensor
    training_targets: Tensor
    test_inputs: Tensor
    test_targets: Tensor

    score_name: ClassVar[str] = "relative_error"

    def __post_init__(self) -> None:
        for name, tensor in self._tensors().items():
            if not tensor.is_floating_point() or not tensor.ndim or not tensor.numel() or not tensor.isfinite().all():
                shown = f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"
                needed = "finite, floating-point, (n, ...)"
                raise tn.errors.DataError(f"{name} cannot be learnt or tested", given=shown, needed=needed)
        for what, ours, theirs in (
            ("numbers of training inputs and targets", len(self.training_inputs), len(self.training_targets)),
            ("numbers of test inputs and targets", len(self.test_inputs), len(self.test_targets)),
            ("shapes of training and test inputs", self.training_inputs.shape[1:], self.test_inputs.shape[1:]),
            ("shapes of training and test targets", self.training_targets.shape[1:], self.test_targets.shape[1:]),
        ):
            if ours != theirs:
                raise tn.errors.DataError(f"{what} differ", given=f"{ours} and {theirs}")
        if not self.test_targets.any():
            raise tn.errors.DataError("all test targets are 0, so that a relative error is not defined")

    def _tensors(self) -> dict[str, Tensor]:
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def training_size(self) -> int:
        return len(self.training_inputs)

    @property
    def test_size(self) -> int:
        return len(self.test_inputs)

    @cached_property
    def plain_loss(self) -> float:
        """The loss of zeros."""
        return float(self.training_targets.double().square().mean())

    def describe(self) -> dict[str, Any]:
        return {
            "kind": "regression",
            **{name: tn.studies.digest_tensors({name: t}) for name, t in self._tensors().items()},
        }

    def check(self, model: nn.Module, settings: Training) -> None:
        """Check that the network accepts the inputs and that its outputs have the shape of the targets.

        Raises:
            DataError: the outputs have another shape; the settings have label smoothing or distillation, which need
                classes.
            StudyError: the network does not run on the inputs.
        """
        for name in ("label_smoothing", "distillation"):
            if getattr(settings, name):
                raise tn.errors.DataError(f"{name} needs classes, which a regression does not have", fix=f"{name}=0")
        outputs, targets = try_network(model, self.test_inputs[:1]), self.test_targets[:1]
        if outputs.shape != targets.shape:
            fact = "the network's outputs do not have the shape of the targets"
            raise tn.errors.DataError(fact, outputs=tuple(outputs.shape), targets=tuple(targets.shape))

    def training_batch(self, rows: Tensor, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
        return self.training_inputs[rows], self.training_targets[rows]

    def loss(self, outputs: Tensor, inputs: Tensor, targets: Tensor, settings: Training) -> Tensor:
        """The mean of the squared error over all elements."""
        return functional.mse_loss(outputs, targets)

    def measure(self, model: nn.Module, rows: Tensor, *, batch_size: int, device: torch.device | str) -> Tensor:
        """Shape (2,): ||outputs - targets||^2 and ||targets||^2."""
        sums = torch.zeros(2, dtype=torch.float64, device=device)
        with tn.model.evaluating(model):
            for part in tn.model.batch_rows(rows, batch_size):
                targets = self.test_targets[part].to(device).double()
                errors = model(self.test_inputs[part].to(device)).double() - targets
                sums = sums + torch.stack([errors.square().sum(), targets.square().sum()])
        return sums

    def score(self, sums: Tensor) -> float:
        """||outputs - targets|| / ||targets||."""
        error, size = sums.tolist()
        return math.sqrt(error / size)
