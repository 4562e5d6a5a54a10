"""What a network can be trained to do: the methods of every task, and the score of a network at one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

import tnalgebra as tn
from recipes.training.settings import Training


class Task(Protocol):
    """Training and test examples, by their positions, with a loss and a score."""

    score_name: ClassVar[str]

    @property
    def training_size(self) -> int:
        """Number of training examples."""

    @property
    def test_size(self) -> int:
        """Number of test examples."""

    @property
    def plain_loss(self) -> float:
        """Loss of the best answer that ignores the input, or near it; a loss far above it has diverged."""

    @property
    def networks(self) -> Sequence[nn.Module]:
        """Further networks that the loss runs: brought to the device, in evaluation mode, not trained."""
        return ()

    def describe(self) -> dict[str, Any]:
        """All that the training depends on, as JSON has it; large things as their digests."""

    def check(self, model: nn.Module, settings: Training) -> None:
        """Raise an error of the package if this network cannot be trained for this task with these settings."""

    def training_batch(self, rows: Tensor, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Examples and targets on the CPU. What is done to example rows[i] at random depends on seeds[i] alone."""

    def inputs(self, examples: Tensor) -> Tensor:
        """What the network is given, made of examples of a batch, where they are."""
        return examples

    def loss(self, outputs: Tensor, inputs: Tensor, targets: Tensor, settings: Training) -> Tensor:
        """The mean over the batch."""

    def measure(self, model: nn.Module, rows: Tensor, *, batch_size: int, device: torch.device | str) -> Tensor:
        """Float64, shape (m,): sums over these test examples of which the score is made, the network in evaluation."""

    def score(self, sums: Tensor) -> float:
        """The score, given the sums over all test examples."""


def evaluate(model: nn.Module, task: Task, *, batch_size: int = 128, device: torch.device | str = "cpu") -> float:
    """The score of a network on the test examples, in evaluation mode, as `train` reports it after each epoch.

    Args:
        model: already on `device`.
        batch_size: the most examples at a time.
    """
    return task.score(task.measure(model, torch.arange(task.test_size), batch_size=batch_size, device=device))


def try_network(network: nn.Module, inputs: Tensor) -> Tensor:
    """The network's outputs for one example, in evaluation mode, where the network is.

    Raises:
        StudyError: it does not take these inputs, or does not return a tensor.
    """
    like = next((t for t in (*network.parameters(), *network.buffers())), inputs)
    try:
        with tn.model.evaluating(network):
            outputs = network(inputs.to(like.device))
    except (RuntimeError, ValueError, TypeError, AttributeError, LookupError) as error:
        name, shape = type(network).__name__, tuple(inputs.shape)
        raise tn.errors.StudyError(
            "the network does not take these inputs", network=name, shape=shape, because=error
        ) from error
    if not isinstance(outputs, Tensor):
        raise tn.errors.StudyError("the network's output is not a tensor", given=type(outputs).__name__)
    return outputs
