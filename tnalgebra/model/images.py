"""Labelled images in memory as bytes, and readers of the embedded digits, of CIFAR and of image folders."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import struct
import tarfile
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
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

SPLITS = ("train", "test")
_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm")
_EXPECTED = "FOLDER/train/CLASS/*, FOLDER/test/CLASS/*"
_DIGITS_TEST = 360  # images of the 1797 that are kept for the test
_CACHE_FORMAT = 1  # to be raised whenever decoding changes, so that older files are not used
_IMAGENET_MEAN, _IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True, eq=False)
class Images:
    """Images of one size with their labels.

    Attributes:
        pixels: uint8, shape (n, channels, height, width); 0 is black and 255 full intensity.
        labels: int64, shape (n,); element [i] is the position in `classes` of image i's class.
        classes: the names of the classes.
        source: where the images are from, for messages and reports.
        mean, std: of each channel, on the scale where pixels are 0 to 1: a network is given (pixel - mean) / std. By
            default ImageNet's for three channels, and 0 and 1 for any other number.

    Raises:
        DataError: shapes, dtypes, labels or normalisation are not as above, or a `std` is not positive.
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
        colour, channels = self.channels == 3, self.channels
        object.__setattr__(self, "mean", tuple(self.mean) or (_IMAGENET_MEAN if colour else (0.0,) * channels))
        object.__setattr__(self, "std", tuple(self.std) or (_IMAGENET_STD if colour else (1.0,) * channels))
        if {len(self.mean), len(self.std)} != {channels} or not all(value > 0 for value in self.std):
            raise DataError(
                explain(
                    "mean and std do not fit the images",
                    given=f"mean={self.mean}, std={self.std}",
                    needed=f"{channels} numbers each, std positive",
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
        """SHA-256 (64 hex digits) of pixels, labels and classes; source and normalisation do not count."""
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
        return replace(self, pixels=self.pixels[chosen], labels=self.labels[chosen], source=source)

    def normalise(
        self, pixels: Tensor, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> Tensor:
        """Scale pixels of shape (n, channels, height, width) from 0..255 to 0..1, then to (pixel - mean) / std.

        The arithmetic is in float32, or in float64 if that is the `dtype`; then the result is cast.
        """
        work = torch.float64 if dtype == torch.float64 else torch.float32
        mean, std = (torch.tensor(values, dtype=work, device=device)[:, None, None] for values in (self.mean, self.std))
        return ((pixels.to(device).to(work) / 255 - mean) / std).to(dtype)

    def batches(
        self, batch_size: int, *, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Go through all images in order, normalised; only one batch is ever floating-point.

        Args:
            batch_size: the most images in a batch. Batches are of equal size, to within one image, so that none is
                left with a few images only.
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


def inputs_of(batches: Images | Iterable[Tensor | Sequence[Tensor]]) -> Iterator[Tensor]:
    """The inputs in batches: each batch itself, or its first entry, as of a loader's images and labels.

    Raises:
        DataError: `batches` are none, hold no inputs, or are a single tensor or Images.
    """
    if isinstance(batches, Tensor):  # whose entries would pass for batches
        raise DataError(explain("a tensor is given for batches of inputs", fix="a list of tensors: [x]"))
    if isinstance(batches, Images):
        raise DataError(explain("Images are given without batch_size", source=batches.source, fix="images.batches(64)"))
    if not isinstance(batches, Iterable):  # as untyped callers may
        raise DataError(explain(f"a {type(batches).__name__} is given for batches of inputs", fix="[x], or a loader"))
    number = 0
    for number, batch in enumerate(batches, start=1):
        x = batch[0] if isinstance(batch, Sequence) and batch else batch
        if not isinstance(x, Tensor) or x.ndim == 0 or not x.numel():
            given = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise DataError(explain(f"batch {number} holds no inputs", given=given, needed="a tensor (n, ...), n >= 1"))
        yield x
    if not number:
        raise DataError("there are no batches of inputs")


def batch_rows(order: Tensor, batch_size: int) -> tuple[Tensor, ...]:
    """Cut `order`, shape (n,), into the fewest parts of at most `batch_size` that differ by at most one element.

    Raises:
        DataError: the batch size is not positive.
    """
    if batch_size < 1:
        raise DataError(explain(f"a batch of {batch_size} images is not a batch", needed="batch_size >= 1"))
    return order.tensor_split(-(-len(order) // batch_size)) if len(order) else ()


def check_classes(images: Images, outputs: int) -> None:
    """Check that a network has as many outputs as there are classes.

    Raises:
        DataError: it has not.
    """
    if outputs != len(images.classes):
        fact = f"the network has {outputs} outputs, the images have {len(images.classes)} classes"
        raise DataError(explain(fact, images=images.source, classes=_shorten(images.classes)))


def load_images(name: str | Path, split: Literal["train", "test"], *, image_size: int | None = None) -> Images:
    """Read `digits`, `cifar10`, `cifar100`, or a folder of images.

    `digits` are the 8x8 grey images that come with scikit-learn: 1437 for training and 360 for the test, ten classes,
    the split stratified and fixed; values 0 to 16 become round(value * 255 / 16). CIFAR (32x32, colour; 50,000 for
    training, 10,000 for the test) is downloaded once, into `cache_folder()`.

    Of a folder the images `FOLDER/SPLIT/CLASS/*` are read, as three colour channels without transparency, red, green,
    blue. Classes are in alphabetical order, files in order of their names within a class; files of other kinds than
    png, jpg, jpeg, webp, bmp, ppm and hidden ones are passed over. The decoded images are kept in `cache_folder()`, so
    that the next run starts at once; they are used only as long as no file has changed, and may be deleted at any time.

    Args:
        name: one of these three names, or a folder's path (`./digits` for a folder of such a name).
        split: `train` or `test`.
        image_size: pixels, only for folders; scales the shorter side to this size (bilinear, antialiased) and crops the
            centre. Without it all images must have one size already.

    Source:
        E. Alpaydin and C. Kaynak, "Optical recognition of handwritten digits", UCI repository (1998).
        A. Krizhevsky, "Learning multiple layers of features from tiny images" (2009).

    Raises:
        DataError: a split of another name; the digits without scikit-learn; CIFAR neither in the cache nor on the
            network; a folder that does not exist or lacks the split, a class without images, splits with different
            classes, an image that cannot be decoded or has more than 8 bits a channel, or sizes that differ.
    """
    if split not in SPLITS:
        raise DataError(explain(f"no split is called {split!r}", known=", ".join(SPLITS)))
    if str(name) not in ("digits", "cifar10", "cifar100"):
        if image_size is not None and image_size < 1:
            raise DataError(explain(f"image_size={image_size} is not a size", needed="a positive number of pixels"))
        return _read_folder(Path(name), split, image_size)
    if image_size is not None:
        raise DataError(explain(f"{name} has images of one size", given=f"image_size={image_size}", fix="leave it out"))
    return _read_digits(split) if str(name) == "digits" else _read_cifar(str(name), split)


def _read_digits(split: str) -> Images:
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ModuleNotFoundError as error:
        raise DataError(explain("the digits need scikit-learn", fix='pip install "tnalgebra[study]"')) from error

    data = load_digits()
    parts = train_test_split(np.arange(len(data.target)), test_size=_DIGITS_TEST, random_state=0, stratify=data.target)
    rows = np.sort(parts[SPLITS.index(split)])
    pixels = np.rint(data.images[rows] * (255 / 16)).astype(np.uint8)[:, None]
    labels = data.target[rows].astype(np.int64)
    names = tuple(str(name) for name in data.target_names)
    return Images(torch.from_numpy(pixels), torch.from_numpy(labels), names, f"digits/{split}")


def _read_cifar(name: str, split: str) -> Images:
    from torchvision import datasets

    reader = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
    try:
        data = reader(cache_folder(), train=split == "train", download=True)
    except (OSError, RuntimeError, EOFError, http.client.HTTPException, tarfile.TarError) as error:
        raise DataError(
            explain(
                f"{name} cannot be downloaded",
                reason=f"{type(error).__name__}: {error}",
                searched=cache_folder(),
                fix=f"give a folder of images instead: {_EXPECTED}",
            )
        ) from error
    pixels = torch.from_numpy(np.ascontiguousarray(data.data.transpose(0, 3, 1, 2)))
    return Images(pixels, torch.tensor(data.targets), tuple(data.classes), f"{name}/{split}")


def _read_folder(root: Path, split: str, image_size: int | None) -> Images:
    files, labels, classes = _list_folder(root, split)
    cache = cache_folder() / "images" / f"{_cache_key(root, split, files, image_size)}.npy"
    pixels = _load_cached(cache, len(files))
    if pixels is None:
        pixels = _decode_all(files, image_size)
        try:
            write_whole(cache, lambda temporary: np.save(temporary, pixels))
        except OSError as error:  # which costs time, nothing else
            warnings.warn(f"decoded images are not kept in {str(cache.parent)!r}: {error}", stacklevel=3)
    return Images(torch.from_numpy(pixels), torch.tensor(labels), classes, f"{root}/{split}")


def _list_folder(root: Path, split: str) -> tuple[list[Path], list[int], tuple[str, ...]]:
    """Every image of a split with its label, and the names of the classes."""
    from torchvision.datasets.folder import make_dataset

    if not root.is_dir():
        names = "digits, cifar10, cifar100"
        raise DataError(explain(f"no folder of images at {str(root)!r}", expected=_EXPECTED, known_by_name=names))
    if not (root / split).is_dir():
        found = sorted(entry.name for entry in root.iterdir() if not entry.name.startswith("."))
        raise DataError(
            explain(f"{str(root)!r} has no folder {split!r}", found=_shorten(found) or "nothing", expected=_EXPECTED)
        )

    def is_image(path: str) -> bool:
        file = Path(path)
        visible = file.parent.parent == root / split and not file.name.startswith(".")
        return visible and file.suffix.lower() in _ENDINGS and file.is_file()

    classes, other = _class_folders(root / split), SPLITS[1 - SPLITS.index(split)]
    try:
        samples = make_dataset(root / split, {name: label for label, name in enumerate(classes)}, None, is_image)
    except (FileNotFoundError, ValueError) as error:  # a class without images; no class
        fact = f"no images in {str(root / split)!r}, or in one of its classes"
        raise DataError(explain(fact, reason=error, expected=_EXPECTED, endings=" ".join(_ENDINGS))) from error
    odd = sorted({*classes} ^ {*(_class_folders(root / other) or classes)})
    if odd:
        raise DataError(
            explain(
                f"{split!r} and {other!r} have different classes",
                folder=root,
                not_in_both=_shorten(odd),
                why="a label is a position in the alphabetical list of classes",
            )
        )
    return [Path(file) for file, _ in samples], [label for _, label in samples], tuple(classes)


def _class_folders(folder: Path) -> list[str]:
    entries = folder.iterdir() if folder.is_dir() else ()
    return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _shorten(names: Sequence[str]) -> str:
    return ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")


def _decode_all(files: Sequence[Path], image_size: int | None) -> NDArray[np.uint8]:
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
    """SHA-256 of all that the decoded images depend on, as far as the file system shows."""
    digest = hashlib.sha256(json.dumps([_CACHE_FORMAT, str(root.resolve()), split, image_size]).encode())
    for file in files:
        facts = file.stat()
        digest.update(json.dumps([str(file.relative_to(root)), facts.st_size, facts.st_mtime_ns]).encode())
    return digest.hexdigest()


def _load_cached(file: Path, count: int) -> NDArray[np.uint8] | None:
    """The decoded images that `file` holds, mapped into memory; None if it is missing or broken."""
    try:
        # Copy-on-write: torch warns about arrays it may not write to, and nobody's writing may reach the file.
        pixels: NDArray[np.uint8] = np.load(file, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    usable = pixels.dtype == np.uint8 and pixels.ndim == 4 and pixels.shape[:2] == (count, 3)
    return pixels if usable else None
