"""How far the outputs of a network are from its original ones when kernels are replaced, on inputs without labels."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from math import isfinite

import torch
from torch import Tensor, nn

from ..errors import LayerError
from .example import Inputs, inputs_of
from .modes import evaluating
from .modules import copy_model
from .steps import ForwardSteps, trace


def output_divergence(reference: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
    """How far outputs are from the original ones, as a sum over a batch and what it is to be divided by.

    Outputs of shape (n, classes), with at least two classes, are logits: the sum of the Kullback-Leibler divergences
    KL(softmax reference || softmax outputs) in nats, and n. Any other outputs: ||outputs - reference||^2, and
    ||reference||^2.

    Args:
        reference: the original outputs, of the same shape.
    """
    if reference.ndim != 2 or reference.shape[1] == 1:
        return squared_distance(reference, outputs)
    old, new = reference.log_softmax(1), outputs.log_softmax(1)
    return (old.exp() * (old - new)).sum(), torch.tensor(float(len(old)), dtype=old.dtype, device=old.device)


def squared_distance(reference: Tensor, outputs: Tensor) -> tuple[Tensor, Tensor]:
    """||outputs - reference||^2 and ||reference||^2."""
    return (outputs - reference).square().sum(), reference.square().sum()


def mean_divergence(reference: nn.Module, model: nn.Module, inputs: Iterable[Tensor]) -> float:
    """How far the outputs of a model are from those of another one, both in evaluation mode, over all inputs.

    Returns:
        The mean of KL(softmax reference || softmax outputs) in nats, where outputs have shape (n, classes) with at
        least two classes; of any other outputs the squared relative error. Infinity where outputs are not finite.

    Example:
        >>> tn.model.mean_divergence(dense, smaller, [x for x, _ in images.batches(128)])
    """
    with evaluating(reference), evaluating(model):
        parts = [torch.stack(output_divergence(reference(x).double(), model(x).double())).cpu() for x in inputs]
    return _ratio(torch.stack(parts).sum(0))


def _ratio(total: Tensor) -> float:
    value = float(total[0] / total[1].clamp(min=1e-30))
    return max(value, 0.0) if isfinite(value) else float("inf")


class Divergence:
    """The divergence of a network's outputs from the original ones, with other kernels in some of its layers.

    It is the mean over the inputs of KL(original || replaced) of the softmax outputs, in nats, where outputs have shape
    (n, classes) with at least two classes; of any other outputs the squared relative error. Where torch.fx can trace
    the network, what the layers before the first other kernel give is computed once for all changes of one call.

    Args:
        model: the network, of which a copy is used.
        inputs: batches of its inputs.

    Raises:
        LayerError: the network does not return one tensor.
    """

    def __init__(self, model: nn.Module, inputs: Sequence[Tensor | Inputs]) -> None:
        self.model = copy_model(model).eval()
        self.inputs = list(inputs_of(inputs, model)) if inputs else []
        with evaluating(self.model):
            self._reference = [self._checked(x.run(self.model)) for x in self.inputs]
            self._steps = self._traced()

    def __call__(self, kernels: Mapping[str, Tensor]) -> float:
        """With these kernels: name of a layer -> its weight."""
        (value,) = self.each([kernels])
        return value

    def each(self, changes: Sequence[Mapping[str, Tensor]]) -> list[float]:
        """For each change of the network. Outputs that are not finite are infinitely far away."""
        totals = torch.zeros(len(changes), 2, dtype=torch.float64)
        with evaluating(self.model):
            for x, reference in zip(self.inputs, self._reference, strict=True):
                for number, outputs in self._outputs(x, changes):
                    totals[number] += torch.stack(output_divergence(reference.double(), outputs.double())).cpu()
        return [_ratio(total) for total in totals]

    def original(self, name: str) -> Tensor:
        """The weight of a layer as it was."""
        return self._weight(name).detach()

    def _outputs(self, x: Inputs, changes: Sequence[Mapping[str, Tensor]]) -> Iterator[tuple[int, Tensor]]:
        """The number of each change, and what the network gives then."""
        steps = self._steps
        if steps is None or x.only is None:
            for number, change in enumerate(changes):
                with self._exchanged(change):
                    yield number, x.run(self.model)
            return
        first = [steps.first_reader([self._weight(name) for name in change]) for change in changes]
        progress = steps.start(x.only)
        for number in sorted(range(len(changes)), key=first.__getitem__):
            steps.advance(progress, first[number])
            with self._exchanged(changes[number]):
                yield number, steps.finish(progress.copy())

    def _weight(self, name: str) -> nn.Parameter:
        return self.model.get_submodule(name).get_parameter("weight")

    @contextmanager
    def _exchanged(self, kernels: Mapping[str, Tensor]) -> Iterator[None]:
        weights = {name: self._weight(name) for name in kernels}
        before = {name: weight.data for name, weight in weights.items()}
        try:
            for name, weight in weights.items():
                weight.data = torch.empty_like(before[name]).copy_(kernels[name])
            yield
        finally:
            for name, weight in weights.items():
                weight.data = before[name]

    def _traced(self) -> ForwardSteps | None:
        """The steps of the network, if they give what it gives."""
        steps = trace(self.model)
        x = self.inputs[0].only if self.inputs else None
        if steps is None or x is None:
            return None
        try:
            same = torch.equal(steps.finish(steps.start(x.clone())), self._reference[0])
        except Exception:  # somebody else's code, which may raise anything
            return None
        return steps if same else None

    def _checked(self, outputs: object) -> Tensor:
        if isinstance(outputs, Tensor):
            return outputs
        fact = f"{type(self.model).__name__} returns a {type(outputs).__name__}, whose divergence is not defined"
        raise LayerError(fact, fix="a module around it that returns one tensor, such as the logits")
