"""Labelled images in memory, as bytes."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from ..errors import DataError

_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, eq=False, repr=False)
class Images:
    """Images of one size with their labels.

    Attributes:
        pixels: uint8, shape (n, channels, height, width); 0 is black and 255 is full intensity.
        labels: int64, shape (n,); element [i] is the position in `classes` of the class of image i.
        classes: the names of the classes.
        source: where the images come from, for messages and reports.
        mean, std: of each channel, on the scale where pixels are 0 to 1; a network gets (pixel - mean) / std. By
            default those of ImageNet for three channels, and 0 and 1 for any other number of channels.

    Raises:
        DataError: a shape, a dtype, a label or the normalisation is not as described above.

    Example:
        >>> digits = tn.load_images("digits", "test")
        >>> for x, labels in digits.batches(64): model(x)
    """

    pixels: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    source: str
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.pixels.dtype != torch.uint8 or self.pixels.ndim != 4:
            raise DataError(
                f"pixels of {self.source!r} are {self.pixels.dtype} of shape {tuple(self.pixels.shape)}",
                needed="torch.uint8 of shape (n, channels, height, width)",
            )
        if self.labels.dtype != torch.int64 or self.labels.shape != self.pixels.shape[:1]:
            raise DataError(
                f"labels of {self.source!r} are {self.labels.dtype} of shape {tuple(self.labels.shape)}",
                needed=f"torch.int64 of shape ({len(self.pixels)},)",
            )
        if len(self.labels) and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < len(self.classes):
            raise DataError(
                f"labels of {self.source!r} run from {int(self.labels.min())} to {int(self.labels.max())}",
                needed=f"0 to {len(self.classes) - 1}, positions in the list of classes",
            )
        colour, channels = self.channels == 3, self.channels
        object.__setattr__(self, "mean", tuple(self.mean) or (_IMAGENET_MEAN if colour else (0.0,) * channels))
        object.__setattr__(self, "std", tuple(self.std) or (_IMAGENET_STD if colour else (1.0,) * channels))
        if {len(self.mean), len(self.std)} != {channels} or not all(value > 0 for value in self.std):
            raise DataError(
                "mean and std do not fit the images",
                given=f"mean={self.mean}, std={self.std}",
                needed=f"{channels} numbers each, std positive",
            )

    def __len__(self) -> int:
        return len(self.pixels)

    def __repr__(self) -> str:
        shape = " x ".join(map(str, self.pixels.shape[1:]))
        return f"Images({self.source!r}, {len(self)} of {shape}, {len(self.classes)} classes)"

    @property
    def channels(self) -> int:
        """Number of channels: 1 for grey images, 3 for colour."""
        return self.pixels.shape[1]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256, as 64 hexadecimal digits, of pixels, labels and classes, without source and normalisation."""
        digest = hashlib.sha256(json.dumps([list(self.pixels.shape), self.classes]).encode())
        digest.update(self.pixels.contiguous().numpy().data)
        digest.update(self.labels.contiguous().numpy().data)
        return digest.hexdigest()

    def subset(self, count: int, *, seed: int) -> Images:
        """Choose images of all classes at random.

        The classes' counts differ by at most one, unless a class has too few images.

        Args:
            count: the number of images.
            seed: the same seed gives the same images.

        Returns:
            The chosen images, in the order that they have here.

        Raises:
            DataError: `count` is not between 1 and the number of images.
        """
        return self._part(self._shuffled(count, seed)[:count], f" ({count} of {len(self)}, seed {seed})")

    def split(self, count: int, *, seed: int) -> tuple[Images, Images]:
        """Choose images as `subset` does, and return the others too, for instance to train on them.

        Returns:
            The chosen images and the rest, each in the order that they have here.

        Raises:
            DataError: `count` is not between 1 and the number of images.
        """
        rest = self._shuffled(count, seed)[count:]
        return self.subset(count, seed=seed), self._part(rest, f" without {count}, seed {seed}")

    def _shuffled(self, count: int, seed: int) -> Tensor:
        """The numbers of all images at random, so that the first ones are balanced. Raises DataError for a count."""
        if not 1 <= count <= len(self):
            raise DataError(f"cannot choose {count} images", source=self.source, needed=f"1 to {len(self)}")
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        turn = torch.empty_like(order)  # element [i]: how many of its class come before image order[i]
        for label in range(len(self.classes)):
            members = (self.labels[order] == label).nonzero().squeeze(1)
            turn[members] = torch.arange(len(members))
        return order[turn.argsort(stable=True)]

    def _part(self, rows: Tensor, which: str) -> Images:
        rows = rows.sort().values
        return replace(self, pixels=self.pixels[rows], labels=self.labels[rows], source=f"{self.source}{which}")

    def normalise(
        self, pixels: Tensor, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> Tensor:
        """Scale pixels, shape (n, channels, height, width), from 0..255 to 0..1, then to (pixel - mean) / std.

        The arithmetic is in float32, or in float64 if `dtype` is; the result is cast to `dtype` at the end.
        """
        work = torch.float64 if dtype == torch.float64 else torch.float32
        mean, std = (torch.tensor(values, dtype=work, device=device)[:, None, None] for values in (self.mean, self.std))
        return ((pixels.to(device).to(work) / 255 - mean) / std).to(dtype)

    def batches(
        self, batch_size: int, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Go through all images in order, normalised. Only one batch at a time is floating-point.

        Args:
            batch_size: the largest number of images in a batch. The sizes of the batches differ by at most one, so
                that the last batch is not much smaller than the others.
            dtype: of the images.
            device: of images and labels.

        Yields:
            Images, shape (b, channels, height, width), and labels, int64 of shape (b,).

        Raises:
            DataError: the batch size is not positive.
        """
        for rows in batch_rows(torch.arange(len(self)), batch_size):
            part = slice(int(rows[0]), int(rows[-1]) + 1)
            pixels = self.normalise(self.pixels[part], dtype=dtype, device=device)
            yield pixels, self.labels[part].to(device)


def batch_rows(order: Tensor, batch_size: int) -> tuple[Tensor, ...]:
    """Cut `order`, shape (n,), into the fewest parts of at most `batch_size` that differ by at most one element.

    Raises:
        DataError: the batch size is not positive.
    """
    if batch_size < 1:
        raise DataError(f"a batch of {batch_size} images is not a batch", needed="batch_size >= 1")
    return order.tensor_split(-(-len(order) // batch_size)) if len(order) else ()


def check_classes(images: Images, outputs: int) -> None:
    """Raise DataError unless a network has one output for each class of the images."""
    if outputs != len(images.classes):
        fact = f"the network has {outputs} outputs, the images have {len(images.classes)} classes"
        raise DataError(fact, images=images.source, classes=shorten_names(images.classes))


def shorten_names(names: Sequence[str]) -> str:
    """The first ten names, for messages."""
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
