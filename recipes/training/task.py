"""What a network can be trained to do: what every task says of itself, and the score of a network at one."""

from __future__ import annotations

import hashlib
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
        ...

    @property
    def test_size(self) -> int:
        """Number of test examples."""
        ...

    @property
    def plain_loss(self) -> float:
        """Loss of the best answer that does not look at the input, or near it; a loss far above has diverged."""
        ...

    @property
    def networks(self) -> Sequence[nn.Module]:
        """Further networks that the loss runs: brought to the device, in evaluation mode, not trained."""
        ...

    def description(self) -> dict[str, Any]:
        """All that the training depends on, as JSON has it; large things as their digests."""
        ...

    def check(self, model: nn.Module, settings: Training) -> None:
        """Raise an error of the package if this network cannot be trained for this task with these settings."""
        ...

    def training_batch(self, rows: Tensor, seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Examples and targets on the CPU. What is done to example rows[i] at random depends on seeds[i] alone."""
        ...

    def test_batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Examples and targets on the CPU."""
        ...

    def inputs(self, examples: Tensor) -> Tensor:
        """What the network is given, made of examples of a batch, where they are."""
        ...

    def loss(self, outputs: Tensor, inputs: Tensor, targets: Tensor, settings: Training) -> Tensor:
        """The mean over the batch."""
        ...

    def measured(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Float64, shape (m,): sums over the examples of which the score is made."""
        ...

    def score(self, sums: Tensor) -> float:
        """The score, given the sums over all test examples."""
        ...


def evaluate(model: nn.Module, task: Task, *, batch_size: int = 128, device: torch.device | str = "cpu") -> float:
    """The score of a network on the test examples, in evaluation mode, as `train` reports it after each epoch.

    Args:
        model: already on `device`.
        batch_size: the most examples at a time.
    """
    with tn.model.modes_kept(model):
        rows = torch.arange(task.test_size)
        return task.score(score_sums(model, task, rows, batch_size=batch_size, device=device))


def score_sums(
    model: nn.Module,
    task: Task,
    rows: Tensor,
    *,
    batch_size: int,
    device: torch.device | str,
    channels_last: bool = False,
) -> Tensor:
    """What `Task.measured` says of the test examples of these rows, summed; the network is in evaluation mode after."""
    model.eval()
    sums = torch.zeros((), dtype=torch.float64, device=device)
    with torch.no_grad():
        for part in tn.model.batch_rows(rows, batch_size):
            examples, targets = task.test_batch(part)
            inputs = task.inputs(examples.to(device))
            outputs = model(as_format(inputs, channels_last=channels_last))
            sums = sums + task.measured(outputs, targets.to(device))
    return sums


def as_format(inputs: Tensor, *, channels_last: bool) -> Tensor:
    """Inputs in the memory format that is wished, where they are images."""
    if channels_last and inputs.ndim == 4:
        return inputs.contiguous(memory_format=torch.channels_last)
    return inputs


def state_digest(model: nn.Module) -> str:
    """SHA-256 (64 hex digits) of all tensors of a model's state, by name."""
    state = model.state_dict()
    return digest_of([(name, value) for name, value in state.items() if isinstance(value, Tensor)])


def digest_of(tensors: Sequence[tuple[str, Tensor]]) -> str:
    digest = hashlib.sha256()
    for name, value in tensors:
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        if value.numel():
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def tried(network: nn.Module, inputs: Tensor) -> Tensor:
    """The network's outputs for one example, in evaluation mode, where the network is."""
    like = next((t for t in (*network.parameters(), *network.buffers())), inputs)
    try:
        with tn.model.modes_kept(network), torch.no_grad():
            outputs = network.eval()(inputs.to(like.device))
    except (RuntimeError, ValueError, TypeError, AttributeError, LookupError) as error:
        name, shape = type(network).__name__, tuple(inputs.shape)
        raise tn.errors.StudyError(
            tn.errors.explain("the network does not take these inputs", network=name, shape=shape, because=error)
        ) from error
    if not isinstance(outputs, Tensor):
        raise tn.errors.StudyError(tn.errors.explain("the network's output is no tensor", given=type(outputs).__name__))
    return outputs
