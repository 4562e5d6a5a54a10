"""What cores have to come near: a kernel, or what a metric makes of it, in the axes of a right side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ..errors import ValuesError
from ..networks import Network
from ..tensors import in_precision, scaled
from .metric import Metric
from .trees import splitting, with_open_axes


def in_one_type(
    kernels: Sequence[Tensor], constants: Mapping[str, Tensor], *, dtype: torch.dtype, kept: torch.dtype
) -> tuple[list[Tensor], dict[str, Tensor], torch.dtype]:
    """Kernels and constants, all of them complex where one is, and the type of the cores that are kept."""
    constants = {name: in_precision(value, dtype) for name, value in constants.items()}
    if not any(tensor.is_complex() for tensor in (*kernels, *constants.values())):
        return list(kernels), constants, kept
    constants = {name: value.to(dtype.to_complex()) for name, value in constants.items()}
    kernels = [in_precision(kernel, torch.float64).to(torch.complex128) for kernel in kernels]
    return kernels, constants, kept.to_complex()


def prepare_target(kernel: Tensor, right: Network, metric: Metric | None, dtype: torch.dtype) -> tuple[Tensor, float]:
    """The target of the fit and its scale; axes: `open_labels(right)`."""
    target, scale = scaled(kernel, what="the kernel", dtype=dtype)
    if metric is not None:
        if kernel.is_complex():
            fact = "the kernel is complex, and the inputs of a layer, whose metric is asked for, are real"
            raise ValuesError(fact, fix="a fit without a metric")
        target = (metric.target(kernel.to(torch.float64), right.output) / scale).to(dtype)
    return with_open_axes(target, right), scale


def split_metric(metric: Metric, right: Network) -> Metric:
    """The metric over the labels that the cores of the right side have."""
    parts = {node.whole: node.parts for node in splitting(right)}
    if not parts.keys() & {*metric.labels, *metric.outputs}:
        return metric
    labels, batch, outputs = (
        tuple(part for label in each for part in parts.get(label, (label,)))
        for each in (metric.labels, metric.batch, metric.outputs)
    )
    sizes = [right.sizes[label] for label in labels]
    covariance = metric.covariance.reshape([*(right.sizes[label] for label in batch), *sizes, *sizes])
    cross = None
    if metric.cross is not None:
        cross = metric.cross.reshape([*(right.sizes[label] for label in outputs), *sizes])
    return replace(metric, labels=labels, covariance=covariance, batch=batch, cross=cross, outputs=outputs)
