"""A plain training loop, top-1 accuracy, and batch normalisation estimated anew."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from tnalgebra.errors import DataError, StudyError, explain
from tnalgebra.images import Images, batch_rows, normalised


def train_classifier(
    model: nn.Module,
    images: Images,
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    weight_decay: float,
    seed: int,
    mean: Sequence[float],
    std: Sequence[float],
    max_shift: int = 0,
    device: torch.device | str = "cpu",
    progress: bool = True,
) -> list[float]:
    """Train a classifier in place: cross-entropy, AdamW, one cycle of the learning rate, float32.

    All chance (order of the images, shifts, dropout) comes from `seed`, and torch's global generators are left as
    they were: the same network, images and seed give the same weights on the same device and thread count.

    Args:
        model: maps (n, channels, height, width) to logits, shape (n, classes); moved to `device`.
        images: the training set.
        epochs: passes over the images.
        batch_size: the most images in a step; the steps of an epoch are of equal size, to within one image.
        learning_rate: the highest of the cycle, reached after 30 % of the steps.
        weight_decay: AdamW's, per step relative to the learning rate.
        seed: of all chance.
        mean: per channel, see `normalised`.
        std: per channel, see `normalised`.
        max_shift: pixels; each image is moved by up to so many in both directions, black coming in from outside.
        device: where to train.
        progress: show a progress bar where standard error is a terminal.

    Returns:
        The mean cross-entropy of each epoch, in nats per image.

    Source:
        L. Smith and N. Topin, "Super-convergence" (arXiv 1708.07120), for the cycle; I. Loshchilov and F. Hutter
        (arXiv 1711.05101) for AdamW.

    Raises:
        DataError: there are no images, or a setting is not what it should be.
        StudyError: the loss is not finite. The network is left as it is then.
    """
    if not len(images) or epochs < 1:
        raise DataError(
            explain("nothing to train on", images=f"{len(images)} in {images.source}", epochs=epochs, needed=">= 1 of both")
        )
    from tqdm import tqdm

    steps = len(batch_rows(images.labels, batch_size))
    model.to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=weight_decay)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=epochs * steps)
    losses: list[float] = []
    with _modes_kept(model), _seeded(seed, device), tqdm(total=epochs, desc="training", unit="epoch", disable=None if progress else True) as bar:
        model.train()
        for epoch in range(epochs):
            total = torch.zeros((), device=device)
            for rows in batch_rows(torch.randperm(len(images)), batch_size):
                pixels = _shifted(images.pixels[rows], max_shift)
                loss = F.cross_entropy(
                    model(normalised(pixels, mean=mean, std=std, device=device)), images.labels[rows].to(device)
                )
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()
                total += loss.detach() * len(rows)
            losses.append(total.item() / len(images))
            ...
    return losses
