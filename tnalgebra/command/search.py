"""Search for the topology of a layer or a network over images: by the errors of outputs, then by the accuracy."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import DataError
from ..model import Images, input_metrics
from ..nn import kernel_layers
from ..studies import accuracy
from ..topologies import FoundTopologies, search

BATCH = 128
MOST_TESTED = 2000
"""Images that give the accuracy, where their number is not given."""


def search_over_images(
    model: nn.Module,
    images: Images,
    size: str,
    *,
    layer: str | None,
    calibrate: int,
    tested: int | None,
    seed: int,
    **options: Any,
) -> FoundTopologies:
    """Search as `tn.search`, with training images of which no more is needed than their numbers say.

    Args:
        model: the dense network.
        images: training images. They are put into an order that the seed determines.
        size: the budget: of the layer, or of the whole network.
        layer: the name of the layer that is decomposed; None for all that have the labels of most, which get one
            topology.
        calibrate: how many of the first images give the errors of outputs, without their labels; with 0, errors are
            those of kernels.
        tested: of a whole network: how many of the images after them give the accuracy, by which the best topologies
            are ordered: None for those that are left, at most 2000; with 0, their order is that of the errors.
        options: further arguments of `tn.search`.

    Raises:
        DataError: a number is negative, or there are fewer images.
        TnalgebraError: see `tn.search`.
    """
    for name, count in {"calibrate": calibrate, "tested": tested}.items():
        if count is not None and count < 0:
            raise DataError(f"{name} is {count}", fix="at least 0")
    if layer is not None:
        tested = 0
    elif tested is None:
        tested = max(0, min(MOST_TESTED, len(images) - calibrate))
    if calibrate + tested > len(images):
        fact = f"{calibrate} images for errors and {tested} for accuracies are more than the {len(images)} there are"
        raise DataError(fact, fix="--calibrate 256 --tested 512")
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(seed))
    calibration = [x for x, _ in _chosen(images, order[:calibrate]).batches(BATCH)] if calibrate else None
    if layer is not None:
        metric = None if calibration is None else input_metrics(model, calibration, layers=[layer])[layer]
        return search(kernel_layers(model)[layer], size, metric=metric, seed=seed, **options)
    held_out = _chosen(images, order[calibrate : calibrate + tested])
    return search(
        model,
        size,
        example=(1, *images.pixels.shape[1:]),
        calibration=calibration,
        test=(lambda network: accuracy(network, held_out, batch_size=BATCH, not_finite="wrong")) if tested else None,
        seed=seed,
        **options,
    )


def _chosen(images: Images, numbers: Tensor) -> Images:
    return dataclasses.replace(images, pixels=images.pixels[numbers], labels=images.labels[numbers])
