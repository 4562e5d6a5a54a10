"""Readers of images: the digits of scikit-learn, CIFAR, and folders, whose decoded images are kept in a cache."""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import struct
import tarfile
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps

from .._files import cache_folder, write_whole
from ..errors import DataError
from .images import Images, shorten_names
from .progress import track

SPLITS = ("train", "test")
_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".ppm")
_EXPECTED = "FOLDER/train/CLASS/*, FOLDER/test/CLASS/*"
_DIGITS_TEST = 360  # images of the 1797 that are kept for the test
_CACHE_FORMAT = 1  # to be raised whenever decoding changes, so that older files are not used


def load_images(name: str | Path, split: Literal["train", "test"], *, image_size: int | None = None) -> Images:
    """Read the images of `digits`, `cifar10`, `cifar100`, or of a folder.

    The digits are the 8x8 grey images that come with scikit-learn: 1437 for training and 360 for the test, in ten
    classes, with a fixed, stratified split; values 0 to 16 become round(value * 255 / 16). CIFAR (32x32, colour; 50,000
    images for training and 10,000 for the test) is downloaded once, to the package's cache folder.

    The images of a folder are `FOLDER/SPLIT/CLASS/*`. They are read as three channels, red, green and blue, without
    transparency. Classes are in alphabetical order, and files in the order of their names within a class. Hidden files
    and those that are not png, jpg, jpeg, webp, bmp or ppm are skipped. The decoded images are kept in the cache folder
    so that the next run starts at once. They are used while the files do not change, and may be deleted at any time.

    Args:
        name: one of the three names, or the path of a folder (`./digits` for a folder that is called digits).
        split: "train" or "test".
        image_size: pixels, for folders only: the shorter side is scaled to this size (bilinear, antialiased) and the
            centre is cropped. Without it all images must have one size already.

    Returns:
        All images of the split, in memory as bytes.

    Source:
        E. Alpaydin and C. Kaynak, "Optical recognition of handwritten digits", UCI repository (1998).
        A. Krizhevsky, "Learning multiple layers of features from tiny images" (2009).

    Raises:
        DataError: the split has another name; the digits are read without scikit-learn; CIFAR is neither in the cache
            nor can it be downloaded; the folder or its split does not exist, a class has no images, the splits have
            different classes, an image cannot be decoded or has more than 8 bits per channel, or sizes differ.

    Example:
        >>> test = tn.load_images("data/flowers", "test", image_size=224)
    """
    if split not in SPLITS:
        raise DataError(f"no split is called {split!r}", known=", ".join(SPLITS))
    if str(name) not in ("digits", "cifar10", "cifar100"):
        if image_size is not None and image_size < 1:
            raise DataError(f"image_size={image_size} is not a size", needed="a positive number of pixels")
        return _read_folder(Path(name), split, image_size)
    if image_size is not None:
        raise DataError(f"{name} has images of one size", given=f"image_size={image_size}", fix="leave it out")
    return _read_digits(split) if str(name) == "digits" else _read_cifar(str(name), split)


def _read_digits(split: str) -> Images:
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ModuleNotFoundError as error:
        raise DataError("the digits need scikit-learn", fix='pip install "tnalgebra[study]"') from error

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
            f"{name} cannot be downloaded",
            reason=f"{type(error).__name__}: {error}",
            searched=cache_folder(),
            fix=f"give a folder of images instead: {_EXPECTED}",
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
        except OSError as error:  # the next run decodes again
            warnings.warn(f"decoded images are not kept in {str(cache.parent)!r}: {error}", stacklevel=3)
    return Images(torch.from_numpy(pixels), torch.tensor(labels), classes, f"{root}/{split}")


def _list_folder(root: Path, split: str) -> tuple[list[Path], list[int], tuple[str, ...]]:
    """Every image of a split with its label, and the names of the classes."""
    from torchvision.datasets.folder import make_dataset

    if not root.is_dir():
        names = "digits, cifar10, cifar100"
        raise DataError(f"no folder of images at {str(root)!r}", expected=_EXPECTED, known_by_name=names)
    if not (root / split).is_dir():
        found = sorted(entry.name for entry in root.iterdir() if not entry.name.startswith("."))
        raise DataError(
            f"{str(root)!r} has no folder {split!r}", found=shorten_names(found) or "nothing", expected=_EXPECTED
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
        raise DataError(fact, reason=error, expected=_EXPECTED, endings=" ".join(_ENDINGS)) from error
    odd = sorted({*classes} ^ {*(_class_folders(root / other) or classes)})
    if odd:
        raise DataError(
            f"{split!r} and {other!r} have different classes",
            folder=root,
            not_in_both=shorten_names(odd),
            why="a label is a position in the alphabetical list of classes",
        )
    return [Path(file) for file, _ in samples], [label for _, label in samples], tuple(classes)


def _class_folders(folder: Path) -> list[str]:
    entries = folder.iterdir() if folder.is_dir() else ()
    return sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))


def _decode_all(files: Sequence[Path], image_size: int | None) -> NDArray[np.uint8]:
    """Decode all files, shape (n, 3, height, width), in a pool of threads with a progress bar."""
    first = _decode(files[0], image_size)
    pixels = np.empty((len(files), *first.shape), np.uint8)

    def fill(index: int) -> None:
        image = _decode(files[index], image_size)
        if image.shape != first.shape:
            raise DataError(
                "images differ in size",
                file=f"{files[index]}: {image.shape[2]}x{image.shape[1]} (width x height)",
                first=f"{files[0]}: {first.shape[2]}x{first.shape[1]}",
                fix="give image_size= to scale and crop all images to one size",
            )
        pixels[index] = image

    pool = ThreadPoolExecutor(min(16, os.cpu_count() or 1))
    try:
        for image in track([pool.submit(fill, index) for index in range(len(files))], "decoding", shown=True):
            image.result()
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
        raise DataError(f"image {str(file)!r} cannot be decoded", reason=f"{type(error).__name__}: {error}") from error
    if mode.startswith(("I", "F")):  # the conversion to 8 bits clips
        raise DataError(
            f"image {str(file)!r} has more than 8 bits per channel",
            mode=mode,
            fix="store it with 8 bits per channel",
        )
    if image_size is not None:
        colour = ImageOps.fit(colour, (image_size, image_size), Image.Resampling.BILINEAR)
    return np.asarray(colour).transpose(2, 0, 1)


def _cache_key(root: Path, split: str, files: Sequence[Path], image_size: int | None) -> str:
    """SHA-256 of everything that the decoded images depend on, as far as the file system shows it."""
    digest = hashlib.sha256(json.dumps([_CACHE_FORMAT, str(root.resolve()), split, image_size]).encode())
    for file in files:
        facts = file.stat()
        digest.update(json.dumps([str(file.relative_to(root)), facts.st_size, facts.st_mtime_ns]).encode())
    return digest.hexdigest()


def _load_cached(file: Path, count: int) -> NDArray[np.uint8] | None:
    """The decoded images that `file` holds, mapped into memory; None if it is missing or broken."""
    try:
        # copy-on-write: torch warns about read-only arrays, and writing must not reach the file
        pixels: NDArray[np.uint8] = np.load(file, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError, EOFError):
        return None
    usable = pixels.dtype == np.uint8 and pixels.ndim == 4 and pixels.shape[:2] == (count, 3)
    return pixels if usable else None
