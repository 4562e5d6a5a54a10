"""Labelled images in memory as bytes, and readers of the embedded digits, of CIFAR and of image folders."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import struct
import tarfile
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps
from torch import Tensor

from .._files import cache_folder, write_whole
from ..errors import DataError, explain

Split = Literal["train", "test"]
SPLITS: tuple[Split, ...] = ("train", "test")
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm")
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
DIGITS_TEST = 360  # images of the 1797 that are kept for the test
CACHE_FORMAT = 1  # to be raised whenever decoding changes, so that older files are not used


@dataclass(frozen=True, eq=False)
class Images:
    """Images of one size with their labels.

    Attributes:
        pixels: uint8, shape (n, channels, height, width); 0 is black and 255 full intensity.
        labels: int64, shape (n,); element [i] is the position in `classes` of image i's class.
        classes: the names of the classes.
        source: where the images are from, for messages and reports.

    Raises:
        DataError: shapes, dtypes or labels are not as above.
    """

    pixels: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    source: str

    def __post_init__(self) -> None:
        if self.pixels.dtype != torch.uint8 or self.pixels.ndim != 4:
            raise DataError(
                explain(
                    f"pixels of {self.source!r} are {self.pixels.dtype} of shape {tuple(self.pixels.shape)}",
                    needed="torch.uint8 of shape (n, channels, height, width)",
                )
            )
        if self.labels.dtype != torch.int64 or self.labels.shape != self.pixels.shape[:1]:
            raise DataError(
                explain(
                    f"labels of {self.source!r} are {self.labels.dtype} of shape {tuple(self.labels.shape)}",
                    needed=f"torch.int64 of shape ({len(self.pixels)},)",
                )
            )
        if len(self.labels) and not 0 <= int(self.labels.min()) <= int(self.labels.max()) < len(self.classes):
            raise DataError(
                explain(
                    f"labels of {self.source!r} run from {int(self.labels.min())} to {int(self.labels.max())}",
                    needed=f"0 to {len(self.classes) - 1}, positions in the list of classes",
                )
            )

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def channels(self) -> int:
        """Number of channels: 1 for grey images, 3 for colour."""
        return self.pixels.shape[1]

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 (64 hex digits) of pixels, labels and classes; the source does not count."""
        digest = hashlib.sha256(json.dumps([list(self.pixels.shape), self.classes]).encode())
        digest.update(self.pixels.contiguous().numpy().data)
        digest.update(self.labels.contiguous().numpy().data)
        return digest.hexdigest()

    def subset(self, count: int, *, seed: int) -> Images:
        """Choose `count` images, the same for the same seed, in their order here.

        Classes are as balanced as they can be: their counts differ by at most one, unless a class has no more images.

        Raises:
            DataError: `count` is not between 1 and the number of images.
        """
        if not 1 <= count <= len(self):
            raise DataError(explain(f"cannot choose {count} images", source=self.source, needed=f"1 to {len(self)}"))
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        turn = torch.empty_like(order)  # element [i]: how many of its class come before image order[i]
        for label in range(len(self.classes)):
            members = (self.labels[order] == label).nonzero().squeeze(1)
            turn[members] = torch.arange(len(members))
        chosen = order[turn.argsort(stable=True)[:count]].sort().values
        source = f"{self.source} ({count} of {len(self)}, seed {seed})"
        return Images(self.pixels[chosen], self.labels[chosen], self.classes, source)

    def batches(
        self,
        batch_size: int,
        *,
        mean: Sequence[float],
        std: Sequence[float],
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Go through all images in order; only one batch is ever floating-point.

        Args:
            batch_size: the most images in a batch. Batches are of equal size, to within one image, so that none is
                left with a few images only.
            mean: per channel, on the scale where pixels are 0 to 1.
            std: per channel, on the same scale.
            dtype: of the images.
            device: of images and labels.

        Yields:
            Images, shape (b, channels, height, width), and labels, int64 of shape (b,).

        Raises:
            DataError: as `normalised`, or the batch size is not positive.
        """
        for rows in batch_rows(torch.arange(len(self)), batch_size):
            part = slice(int(rows[0]), int(rows[-1]) + 1)
            yield (
                normalised(self.pixels[part], mean=mean, std=std, dtype=dtype, device=device),
                self.labels[part].to(device),
            )


def batch_rows(order: Tensor, batch_size: int) -> tuple[Tensor, ...]:
    """Cut `order`, shape (n,), into the fewest parts of at most `batch_size` that differ by at most one element.

    Raises:
        DataError: the batch size is not positive.
    """
    if batch_size < 1:
        raise DataError(explain(f"a batch of {batch_size} images is no batch", needed="batch_size >= 1"))
    return order.tensor_split(-(-len(order) // batch_size)) if len(order) else ()


def normalised(
    pixels: Tensor,
    *,
    mean: Sequence[float],
    std: Sequence[float],
    dtype: torch.dtype = torch.float32,
    device: torch.device | str = "cpu",
) -> Tensor:
    """Scale pixels of shape (n, channels, height, width) from 0..255 to 0..1, then to (pixel - mean) / std.

    The arithmetic is in float32, or in float64 if that is the `dtype`; then the result is cast.

    Raises:
        DataError: `mean` and `std` do not have one number per channel, or a `std` is not positive.
    """
    channels = pixels.shape[1]
    if len(mean) != channels or len(std) != channels or not all(value > 0 for value in std):
        raise DataError(
            explain(
                "mean and std do not fit the images",
                given=f"mean={tuple(mean)}, std={tuple(std)}",
                needed=f"{channels} numbers each, std positive",
            )
        )
    work = torch.float64 if dtype == torch.float64 else torch.float32
    shift = torch.tensor(mean, dtype=work, device=device)[:, None, None]
    scale = torch.tensor(std, dtype=work, device=device)[:, None, None]
    return ((pixels.to(device).to(work) / 255 - shift) / scale).to(dtype)


def default_normalisation(images: Images) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std per channel: ImageNet's for colour images, 0 and 1 for any other number of channels."""
    if images.channels == 3:
        return IMAGENET_MEAN, IMAGENET_STD
    return (0.0,) * images.channels, (1.0,) * images.channels


def check_classes(images: Images, outputs: int) -> None:
    """Check that a network has as many outputs as there are classes.

    Raises:
        DataError: it has not.
    """
    if outputs != len(images.classes):
        shown = ", ".join(images.classes[:5]) + (", ..." if len(images.classes) > 5 else "")
        raise DataError(
            explain(
                f"the network has {outputs} outputs, the images have {len(images.classes)} classes",
                images=images.source,
                classes=shown,
            )
        )


def load_images(name: str | Path, split: Split, *, image_size: int | None = None) -> Images:
    """Read `digits`, `cifar10`, `cifar100`, or a folder of images.

    Args:
        name: one of these three names, or a folder's path (`./digits` for a folder of such a name).
        split: `train` or `test`.
        image_size: see `folder`; only for folders.

    Raises:
        DataError: as the reader in question.
    """
    _check_split(split)
    if str(name) not in ("digits", "cifar10", "cifar100"):
        return folder(name, split, image_size=image_size)
    if image_size is not None:
        raise DataError(explain(f"{name} has images of one size", given=f"image_size={image_size}", fix="leave it out"))
    if name == "digits":
        return digits(split)
    return cifar("cifar100" if str(name) == "cifar100" else "cifar10", split)


def digits(split: Split) -> Images:
    """Read the 8x8 grey digits that come with scikit-learn: 1437 for training and 360 for the test, ten classes.

    The split is stratified and fixed. Values 0 to 16 become round(value * 255 / 16).

    Source:
        E. Alpaydin and C. Kaynak, "Optical recognition of handwritten digits", UCI repository (1998).

    Raises:
        DataError: there is no such split, or scikit-learn is not installed.
    """
    _check_split(split)
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ModuleNotFoundError as error:
        raise DataError(explain("the digits need scikit-learn", fix='pip install "tnalgebra[study]"')) from error

    data = load_digits()
    parts = train_test_split(np.arange(len(data.target)), test_size=DIGITS_TEST, random_state=0, stratify=data.target)
    rows = np.sort(parts[SPLITS.index(split)])
    pixels = np.rint(data.images[rows] * (255 / 16)).astype(np.uint8)[:, None]
    labels = data.target[rows].astype(np.int64)
    names = tuple(str(name) for name in data.target_names)
    return Images(torch.from_numpy(pixels), torch.from_numpy(labels), names, f"digits/{split}")


def cifar(which: Literal["cifar10", "cifar100"], split: Split, root: str | Path | None = None) -> Images:
    """Read CIFAR-10 or CIFAR-100 (32x32, colour; 50,000 for training, 10,000 for the test), downloaded once.

    Args:
        which: the data set.
        split: `train` or `test`.
        root: where torchvision keeps its download; `cache_folder()` if not given.

    Source:
        A. Krizhevsky, "Learning multiple layers of features from tiny images" (2009).

    Raises:
        DataError: there is no such split, or the data are neither in `root` nor can they be downloaded.
    """
    _check_split(split)
    from torchvision import datasets

    reader = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[which]
    root = cache_folder() if root is None else Path(root)
    try:
        data = reader(root, train=split == "train", download=True)
    except (OSError, RuntimeError, EOFError, http.client.HTTPException, tarfile.TarError) as error:
        raise DataError(
            explain(
                f"{which} cannot be downloaded",
                reason=f"{type(error).__name__}: {error}",
                searched=root,
                fix=f"give a folder of images instead: {_EXPECTED}",
            )
        ) from error
    pixels = torch.from_numpy(np.ascontiguousarray(data.data.transpose(0, 3, 1, 2)))
    return Images(pixels, torch.tensor(data.targets), tuple(data.classes), f"{which}/{split}")


def folder(path: str | Path, split: Split, *, image_size: int | None = None) -> Images:
    """Read the images `PATH/SPLIT/CLASS/*`, as three colour channels without transparency.

    Classes are in alphabetical order, files in order of their names within a class; files of other kinds than
    png, jpg, jpeg, webp, bmp, ppm and hidden ones are passed over. The decoded images are kept in `cache_folder()`,
    so that the next run starts at once; there they are found only as long as no file has changed, and may be
    deleted at any time.

    Args:
        path: the folder that holds `train` and `test`.
        split: `train` or `test`.
        image_size: pixels; scales the shorter side to this size (bilinear, antialiased) and crops the centre. Without
            it all images must have one size already.

    Returns:
        The images, channels in the order red, green, blue.

    Raises:
        DataError: there is no such folder or split, a class has no images, the splits have different classes, an
            image cannot be decoded or has more than 8 bits a channel, or sizes differ.
    """
    _check_split(split)
    if image_size is not None and image_size < 1:
        raise DataError(explain(f"image_size={image_size} is no size", needed="a positive number of pixels"))
    root = Path(path)
    files, labels, classes = _listing(root, split)
    cache = cache_folder() / "images" / f"{_cache_key(root, split, files, image_size)}.npy"
    pixels = _cached(cache, len(files))
    if pixels is None:
        pixels = _decoded(files, image_size)
        _store(cache, pixels)
    return Images(torch.from_numpy(pixels), torch.tensor(labels), classes, f"{root}/{split}")


_EXPECTED = "FOLDER/train/CLASS/*, FOLDER/test/CLASS/*"


def _check_split(split: str) -> None:
    if split not in SPLITS:
        raise DataError(explain(f"there is no split {split!r}", known=", ".join(SPLITS)))


def _visible(directory: Path) -> list[Path]:
    """What a directory holds, hidden entries left out, sorted by name."""
    return sorted(entry for entry in directory.iterdir() if not entry.name.startswith("."))


def _class_folders(directory: Path) -> list[Path]:
    return [entry for entry in _visible(directory) if entry.is_dir()] if directory.is_dir() else []


def _listing(root: Path, split: Split) -> tuple[list[Path], list[int], tuple[str, ...]]:
    """Every image of a split with its label, and the names of the classes."""
    if not root.is_dir():
        raise DataError(
            explain(
                f"no folder of images at {str(root)!r}",
                expected=_EXPECTED,
                known_by_name="digits, cifar10, cifar100",
            )
        )
    if not (root / split).is_dir():
        found = [entry.name + ("/" if entry.is_dir() else "") for entry in _visible(root)]
        raise DataError(
            explain(
                f"{str(root)!r} has no folder {split!r}",
                found=", ".join(found[:10]) + (", ..." if len(found) > 10 else "") or "nothing",
                expected=_EXPECTED,
            )
        )
    by_class = {
        entry.name: [file for file in _visible(entry) if file.suffix.lower() in ENDINGS and file.is_file()]
        for entry in _class_folders(root / split)
    }
    if not any(by_class.values()):
        raise DataError(explain(f"no images in {str(root / split)!r}", expected=_EXPECTED, endings=" ".join(ENDINGS)))
    for name, files in by_class.items():
        if not files:
            raise DataError(
                explain(f"class {name!r} has no images", folder=root / split / name, endings=" ".join(ENDINGS))
            )
    for other in SPLITS:
        names = {entry.name for entry in _class_folders(root / other)}
        if names and names != set(by_class):
            odd = sorted(names ^ set(by_class))
            raise DataError(
                explain(
                    f"{split!r} and {other!r} have different classes",
                    folder=root,
                    not_in_both=", ".join(odd[:10]) + (", ..." if len(odd) > 10 else ""),
                    why="a label is a position in the alphabetical list of classes",
                )
            )
    files = [file for of_class in by_class.values() for file in of_class]
    labels = [label for label, of_class in enumerate(by_class.values()) for _ in of_class]
    return files, labels, tuple(by_class)


def _decoded(files: Sequence[Path], image_size: int | None) -> NDArray[np.uint8]:
    """Decode all files, shape (n, 3, height, width), in a pool of threads with a progress bar."""
    from tqdm import tqdm

    first = _decode(files[0], image_size)
    pixels = np.empty((len(files), *first.shape), np.uint8)

    def fill(index: int) -> None:
        image = _decode(files[index], image_size)
        if image.shape != first.shape:
            raise DataError(
                explain(
                    "images differ in size",
                    file=f"{files[index]}: {image.shape[2]}x{image.shape[1]} (width x height)",
                    first=f"{files[0]}: {first.shape[2]}x{first.shape[1]}",
                    fix="give image_size= to scale and crop all images to one size",
                )
            )
        pixels[index] = image

    pool = ThreadPoolExecutor(min(16, os.cpu_count() or 1))
    try:
        for _ in tqdm(pool.map(fill, range(len(files))), "decoding", len(files), unit="image", disable=None):
            pass
    finally:
        pool.shutdown(cancel_futures=True)
    return pixels


def _decode(file: Path, image_size: int | None) -> NDArray[np.uint8]:
    """Decode one file as red, green, blue: shape (3, height, width)."""
    try:
        with Image.open(file) as image:
            mode = image.mode
            # Pillow warns where a palette with transparency becomes RGB at once; the colours are the same.
            colour = (image.convert("RGBA") if mode == "P" else image).convert("RGB")
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError) as error:
        raise DataError(
            explain(f"image {str(file)!r} cannot be decoded", reason=f"{type(error).__name__}: {error}")
        ) from error
    if mode.startswith(("I", "F")):  # the conversion to 8 bits clips
        raise DataError(
            explain(
                f"image {str(file)!r} has more than 8 bits a channel",
                mode=mode,
                fix="store it with 8 bits a channel",
            )
        )
    if image_size is not None:
        colour = ImageOps.fit(colour, (image_size, image_size), Image.Resampling.BILINEAR)
    return np.asarray(colour).transpose(2, 0, 1)


def _cache_key(root: Path, split: str, files: Sequence[Path], image_size: int | None) -> str:
    """SHA-256 of all that the decoded images depend on, as far as the file system tells."""
    digest = hashlib.sha256(json.dumps([CACHE_FORMAT, str(root.resolve()), split, image_size]).encode())
    for file in files:
        facts = file.stat()
        digest.update(json.dumps([str(file.relative_to(root)), facts.st_size, facts.st_mtime_ns]).encode())
    return digest.hexdigest()


def _cached(file: Path, count: int) -> NDArray[np.uint8] | None:
    """The decoded images that `file` holds, mapped into memory; None if it is missing or broken."""
    try:
        # Copy-on-write: torch warns about arrays it may not write to, and nobody's writing may reach the file.
        pixels: NDArray[np.uint8] = np.load(file, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    usable = pixels.dtype == np.uint8 and pixels.ndim == 4 and pixels.shape[:2] == (count, 3)
    return pixels if usable else None


def _store(file: Path, pixels: NDArray[np.uint8]) -> None:
    """Keep decoded images in `file`, whole or not at all; a cache that cannot be written costs time, nothing else."""

    def write(temporary: Path) -> None:
        np.save(temporary, pixels)

    try:
        write_whole(file, write)
    except OSError as error:
        warnings.warn(f"decoded images are not kept in {str(file.parent)!r}: {error}", stacklevel=3)
