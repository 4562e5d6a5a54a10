"""Training a network to give the tensors that belong to tensors."""

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
from recipes.training.task import digest_of, tried


@dataclass(frozen=True, eq=False)
class Regression:
    """Tensors to tensors: mean squared error, scored by the relative L2 error over the whole test set.

    The score is ||outputs - targets|| / ||targets||, norms over all elements of all examples: 0 is perfect, 1 as
    good as zeros.

    Args:
        training_inputs: floating-point, shape (n, ...); examples along the first axis, the others as the network takes
            them.
        training_targets: floating-point, shape (n, ...), the shape of the network's outputs.
        test_inputs: shape (m, ...).
        test_targets: shape (m, ...).

    Raises:
        DataError: the tensors do not fit each other, are not finite or empty; all test targets are 0.
    """

    training_inputs: Tensor
    training_targets: Tensor
    test_inputs: Tensor
    test_targets: Tensor

    score_name: ClassVar[str] = "relative_error"

    def __post_init__(self) -> None:
        tensors = {field.name: getattr(self, field.name) for field in fields(self)}
        for name, tensor in tensors.items():
            if not tensor.is_floating_point() or not tensor.ndim or not tensor.numel():
                given = f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"
                raise tn.errors.DataError(
                    tn.errors.explain(f"{name} cannot be learnt", given=given, needed="floating-point, (n, ...)")
                )
            if not tensor.isfinite().all():
                raise tn.errors.DataError(tn.errors.explain(f"{name} are not finite"))
        for split in ("training", "test"):
            ours, theirs = tensors[f"{split}_inputs"], tensors[f"{split}_targets"]
            if len(ours) != len(theirs):
                raise tn.errors.DataError(tn.errors.explain(f"{len(ours)} {split} inputs have {len(theirs)} targets"))
        for kind in ("inputs", "targets"):
            ours, theirs = tensors[f"training_{kind}"], tensors[f"test_{kind}"]
            if ours.shape[1:] != theirs.shape[1:]:
                shapes = f"{tuple(ours.shape)} and {tuple(theirs.shape)}"
                raise tn.errors.DataError(
                    tn.errors.explain(f"{kind} for training and test differ in shape", given=shapes)
                )
        if not self.test_targets.any():
            raise tn.errors.DataError(tn.errors.explain("all test targets are 0: no error is relative to that"))

    @property
    def training_size(self) -> int:
        """Number of training examples."""
        return len(self.training_inputs)

    @property
    def test_size(self) -> int:
        """Number of test examples."""
        return len(self.test_inputs)

    @cached_property
    def plain_loss(self) -> float:
        """That of zeros."""
        return float(self.training_targets.double().square().mean())

    @property
    def networks(self) -> Sequence[nn.Module]:
        """None."""
        return ()

    def description(self) -> dict[str, Any]:
        """Digests of the four tensors."""
        digests = {field.name: digest_of([(field.name, getattr(self, field.name))]) for field in fields(self)}
        return {"kind": "regression", **digests}

    def check(self, model: nn.Module, settings: Training) -> None:
        """Whether the network takes the inputs and its outputs have the shape of the targets.

        Raises:
            DataError: they have another; label smoothing or distillation, which are of classes.
            StudyError: the network does not run on the inputs.
        """
        for name in ("label_smoothing", "distillation"):
            if getattr(settings, name):
                raise tn.errors.DataError(
                    tn.errors.explain(f"{name} is of classes, and this is a regression", fix=f"{name}=0")
                )
        outputs = tried(model, self.test_inputs[:1])
        if outputs.shape != self.test_targets[:1].shape:
            shapes = {"outputs": tuple(outputs.shape), "targets": tuple(self.test_targets[:1].shape)}
            raise tn.errors.DataError(
                tn.errors.explain("the network's outputs do not have the shape of the targets", **shapes)
            )

    def training_batch(self, rows: Tensor, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Inputs and targets as they are."""
        return self.training_inputs[rows], self.training_targets[rows]

    def test_batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Inputs and targets as they are."""
        return self.test_inputs[rows], self.test_targets[rows]

    def inputs(self, examples: Tensor) -> Tensor:
        """As they are."""
        return examples

    def loss(self, outputs: Tensor, inputs: Tensor, targets: Tensor, settings: Training) -> Tensor:
        """The mean over all elements of the squared error."""
        return functional.mse_loss(outputs, targets)

    def measured(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Shape (2,): ||outputs - targets||^2 and ||targets||^2."""
        return torch.stack([(outputs.double() - targets.double()).square().sum(), targets.double().square().sum()])

    def score(self, sums: Tensor) -> float:
        """||outputs - targets|| / ||targets||."""
        error, size = sums.tolist()
        return math.sqrt(error / size)
