"""What a network can be trained to do: the methods of every task, and the score of a network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor, nn

import tnalgebra as tn
from recipes.training.settings import Training


class Task(Protocol):
    """Training examples and test examples, accessed by their positions, with a loss and a score."""

    score_name: ClassVar[str]

    @property
    def training_size(self) -> int:
        """The number of training examples."""

    @property
    def test_size(self) -> int:
        """The number of test examples."""

    @property
    def plain_loss(self) -> float:
        """About the loss of the best answer that ignores the input; a loss far above it has diverged."""

    @property
    def networks(self) -> Sequence[nn.Module]:
        """Further networks that the loss uses; they are moved to the device, in evaluation mode, and not trained."""
        return ()

    def describe(self) -> dict[str, Any]:
        """Everything that the training depends on, as JSON; large tensors by their digests."""

    def check(self, model: nn.Module, settings: Training) -> None:
        """Raise a TnalgebraError if this network cannot be trained for this task with these settings."""

    def training_batch(self, rows: Tensor, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Examples and targets on the CPU. The random changes of example rows[i] depend only on seeds[i]."""

    def inputs(self, examples: Tensor) -> Tensor:
        """The input of the network, made from the examples of a batch on their device."""
        return examples

    def loss(self, outputs: Tensor, inputs: Tensor, targets: Tensor, settings: Training) -> Tensor:
        """The mean loss over the batch."""

    def measure(self, model: nn.Module, rows: Tensor, *, batch_size: int, device: torch.device | str) -> Tensor:
        """Float64, shape (m,): sums over these test examples, from which `score` follows, in evaluation mode."""

    def score(self, sums: Tensor) -> float:
        """The score that follows from the sums over all test examples."""


def evaluate(model: nn.Module, task: Task, *, batch_size: int = 128, device: torch.device | str = "cpu") -> float:
    """The score of a network on the test examples, in evaluation mode, as `train` reports it after each epoch.

    Args:
        model: already on `device`.
        batch_size: the most examples at a time.
    """
    return task.score(task.measure(model, torch.arange(task.test_size), batch_size=batch_size, device=device))


def try_network(network: nn.Module, inputs: Tensor) -> Tensor:
    """The outputs of a network for one example, in evaluation mode, on its device.

    Raises:
        StudyError: the network does not accept these inputs, or does not return a tensor.
    """
    like = next((t for t in (*network.parameters(), *network.buffers())), inputs)
    try:
        with tn.model.evaluating(network):
            outputs = network(inputs.to(like.device))
    except (RuntimeError, ValueError, TypeError, AttributeError, LookupError) as error:
        name, shape = type(network).__name__, tuple(inputs.shape)
        raise tn.errors.StudyError(
            "the network does not accept these inputs", network=name, shape=shape, because=error
        ) from error
    if not isinstance(outputs, Tensor):
        raise tn.errors.StudyError("the output of the network is not a tensor", given=type(outputs).__name__)
    return outputs
