"""Images: their readers, the cache of decoded folders, batches and subsets."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image

from tests.refusals import refused
from tnalgebra._files import cache_folder
from tnalgebra.errors import DataError
from tnalgebra.model import Images, batch_rows, check_classes, load_images

Write = Callable[..., Path]
SPLITS: tuple[Literal["train", "test"], ...] = ("train", "test")


def some_images(*, count: int = 7, channels: int = 3, classes: int = 2) -> Images:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, channels, 5, 4), dtype=torch.uint8, generator=generator)
    names = tuple(f"class{label}" for label in range(classes))
    return Images(pixels, torch.arange(count) % classes, names, "some")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the test's own."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("TNALGEBRA_CACHE", str(folder))
    return folder


@pytest.fixture
def write(tmp_path: Path, cache: Path) -> Write:
    """Write a random image, width x height, to a path in a folder of data; give that folder."""
    generator = np.random.default_rng(0)
    data = tmp_path / "data"

    def write(name: str, *, size: tuple[int, int] = (4, 5), mode: str = "RGB") -> Path:
        file = data / name
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(generator.integers(256, size=(size[1], size[0], 3), dtype=np.uint8)).convert(mode).save(file)
        return data

    return write


def decodes(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Every file that is opened as an image from now on."""
    files: list[Path] = []
    plain = Image.open

    def recorded(file: Path) -> Any:
        files.append(file)
        return plain(file)

    monkeypatch.setattr(Image, "open", recorded)
    return files


# Images


BYTES = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
INTEGERS = torch.zeros(2, dtype=torch.int64)


@pytest.mark.parametrize(
    ("changed", "facts"),
    [
        ({"pixels": torch.zeros(2, 3, 4, 4)}, ["torch.float32"]),
        ({"pixels": torch.zeros(2, 4, 4, dtype=torch.uint8)}, ["(2, 4, 4)"]),
        ({"labels": torch.zeros(2)}, ["labels", "torch.float32"]),
        ({"labels": torch.zeros(3, dtype=torch.int64)}, ["(3,)", "(2,)"]),
        ({"labels": torch.tensor([0, 2])}, [2, "0 to 1"]),
        ({"labels": torch.tensor([-1, 1])}, [-1]),
        ({"mean": (0.0,)}, ["mean", "3 numbers"]),
        ({"std": (1.0, 0.0, 1.0)}, ["std", "positive"]),
    ],
)
def test_images_that_contradict_themselves(changed: dict[str, Any], facts: list[Any]) -> None:
    with refused(DataError, *facts):
        Images(**{"pixels": BYTES, "labels": INTEGERS, "classes": ("a", "b"), "source": "here", **changed})


def test_the_fingerprint_is_that_of_the_content() -> None:
    images = some_images()
    assert len(images.fingerprint) == 64
    again = Images(images.pixels.clone(), images.labels.clone(), images.classes, "elsewhere")
    assert again.fingerprint == images.fingerprint
    pixels, labels = images.pixels.clone(), images.labels.clone()
    pixels[6, 2, 4, 3] ^= 1
    labels[6] ^= 1
    strided = images.pixels.to(memory_format=torch.channels_last)
    assert Images(strided, images.labels, images.classes, "some", std=(1.0, 2.0, 3.0)).fingerprint == images.fingerprint
    others = [
        Images(pixels, images.labels, images.classes, "some"),
        Images(images.pixels, labels, images.classes, "some"),
        Images(images.pixels, images.labels, ("class0", "other"), "some"),
        Images(images.pixels.reshape(7, 3, 4, 5), images.labels, images.classes, "some"),
    ]
    assert len({images.fingerprint, *(other.fingerprint for other in others)}) == 5


@pytest.mark.parametrize("count", [1, 7, 12, 13])
def test_a_subset_is_balanced_ordered_and_of_the_images(count: int) -> None:
    labels = torch.tensor([0, 0, 1, 2, 0, 2, 0, 1, 2, 2, 0, 2, 0])  # 6, 2 and 5 of a class
    pixels = torch.arange(13, dtype=torch.uint8)[:, None, None, None]
    images = Images(pixels, labels, ("a", "b", "c"), "some", mean=(0.25,))
    chosen = images.subset(count, seed=3)
    torch.manual_seed(count)
    assert torch.equal(images.subset(count, seed=3).pixels, chosen.pixels)  # by this seed alone
    rows = chosen.pixels.flatten().long()
    assert len(chosen) == count
    assert (rows.diff() > 0).all()
    assert torch.equal(chosen.labels, labels[rows])
    assert (chosen.mean, chosen.std) == ((0.25,), (1.0,))
    assert chosen.source == f"some ({count} of 13, seed 3)"
    same, rest = images.split(count, seed=3)
    assert torch.equal(same.pixels, chosen.pixels)
    others = rest.pixels.flatten().long()
    assert sorted([*rows.tolist(), *others.tolist()]) == list(range(13))
    assert (others.diff() > 0).all()
    assert torch.equal(rest.labels, labels[others])
    assert (rest.mean, rest.source) == ((0.25,), f"some without {count}, seed 3")
    counts = chosen.labels.bincount(minlength=3).tolist()
    most = max(counts)
    for chosen_of_class, there_are in zip(counts, (6, 2, 5), strict=True):
        assert chosen_of_class >= min(there_are, most - 1)


@pytest.mark.parametrize("count", [0, 8])
def test_a_subset_of_a_size_that_cannot_be(count: int) -> None:
    with refused(DataError, f"cannot choose {count}", "some", "1 to 7"):
        some_images().subset(count, seed=0)


@pytest.mark.parametrize(("batch_size", "sizes"), [(1, [1] * 7), (3, [3, 2, 2]), (50, [7])])
def test_batches_are_even_and_hold_every_image_once(batch_size: int, sizes: list[int]) -> None:
    images = replace(some_images(), mean=(0.0, 0.25, 0.5), std=(1.0, 0.5, 2.0))
    batches = list(images.batches(batch_size, dtype=torch.float64))
    assert [len(labels) for _, labels in batches] == sizes
    assert torch.equal(torch.cat([labels for _, labels in batches]), images.labels)
    result = torch.cat([pixels for pixels, _ in batches])
    assert result.dtype == torch.float64
    for channel in range(3):
        expected = (images.pixels[:, channel].double() / 255 - images.mean[channel]) / images.std[channel]
        torch.testing.assert_close(result[:, channel], expected, rtol=0, atol=1e-15)
    rounded = images.normalise(images.pixels, dtype=torch.float16)  # once, from float32
    assert torch.equal(rounded, images.normalise(images.pixels).half())


def test_batches_of_no_images_or_no_size() -> None:
    nothing = Images(torch.zeros(0, 1, 2, 2, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64), ("a",), "none")
    assert list(nothing.batches(4)) == []
    with refused(DataError, "0 images"):
        batch_rows(torch.arange(3), 0)


def test_the_usual_normalisation() -> None:
    assert (some_images().mean, some_images().std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    for channels in (1, 2):
        images = some_images(channels=channels)
        assert (images.mean, images.std) == ((0.0,) * channels, (1.0,) * channels)


def test_a_network_has_an_output_for_every_class() -> None:
    images = some_images(count=14, classes=7)
    check_classes(images, 7)
    with refused(DataError, "10 outputs", "7 classes", "some", "class6"):
        check_classes(images, 10)


def test_images_are_one_line_without_their_pixels() -> None:
    assert repr(some_images(count=14, classes=7)).startswith("Images('some', 14 of 3 x ")
    assert str(some_images(count=14, classes=7)).endswith(", 7 classes)")


# digits


def test_digits_are_split_once_and_for_all() -> None:
    train, test = load_images("digits", "train"), load_images("digits", "test")
    assert tuple(train.pixels.shape) == (1437, 1, 8, 8)
    assert tuple(test.pixels.shape) == (360, 1, 8, 8)
    assert train.classes == test.classes == tuple("0123456789")
    counts = torch.stack([train.labels.bincount(), test.labels.bincount()])
    share = counts[1] / counts.sum(dim=0)
    assert (share - 360 / 1797).abs().max() < 0.005  # a rounded image of about 180
    assert load_images("digits", "train").fingerprint == train.fingerprint != test.fingerprint


def test_digits_are_scikit_learns() -> None:
    from sklearn.datasets import load_digits

    data = load_digits()
    theirs = sorted(
        (int(label), tuple(image.ravel().tolist())) for image, label in zip(data.images, data.target, strict=True)
    )
    parts = [load_images("digits", split) for split in SPLITS]
    pixels = torch.cat([part.pixels for part in parts]).double().mul(16 / 255).round().flatten(1)
    labels = torch.cat([part.labels for part in parts])
    ours = sorted((int(label), tuple(image.tolist())) for image, label in zip(pixels, labels, strict=True))
    assert ours == theirs
    values = load_images("digits", "train").pixels.unique().tolist()
    assert values == [round(value * 255 / 16) for value in range(17)]


def test_digits_have_one_size() -> None:
    with refused(DataError, "digits", "image_size=16"):
        load_images("digits", "test", image_size=16)


@pytest.mark.parametrize("name", ["digits", "cifar10", "anywhere"])
def test_there_are_two_splits(name: str) -> None:
    unknown: Any = "val"
    with refused(DataError, "'val'", "train, test"):
        load_images(name, unknown)


# CIFAR


def test_cifar_is_read_from_torchvision(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []
    data = np.arange(2 * 32 * 32 * 3).reshape(2, 32, 32, 3).astype(np.uint8)

    def dataset(root: Path, *, train: bool, download: bool) -> SimpleNamespace:
        asked.append((root, train, download))
        return SimpleNamespace(data=data, targets=[1, 0], classes=["apple", "bear"])

    monkeypatch.setattr("torchvision.datasets.CIFAR100", dataset)
    images = load_images("cifar100", "test")
    assert asked == [(cache, False, True)]
    assert np.array_equal(images.pixels.numpy(), np.moveaxis(data, 3, 1))
    assert images.labels.tolist() == [1, 0]
    assert images.classes == ("apple", "bear")


def test_cifar_that_cannot_be_downloaded(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: Any, **kwargs: Any) -> None:
        raise URLError("no network")

    monkeypatch.setattr("torchvision.datasets.CIFAR10", fail)
    with refused(DataError, "cifar10", "URLError: <urlopen error no network>", cache, "FOLDER/train/CLASS/*"):
        load_images("cifar10", "train")


# folders


def test_a_folder_is_read_in_order(write: Write) -> None:
    names = ["b/2.png", "b/10.png", "a/z.PNG", "a/y.bmp", "c/only.ppm"]
    for name in names:
        data = write(f"test/{name}")
    for ignored in (".hidden.png", "notes.txt"):
        (data / "test" / "a" / ignored).write_text("not an image")
    (data / "test" / ".hidden").mkdir()
    (data / "test" / "README").write_text("not a class")
    images = load_images(data, "test")
    assert images.classes == ("a", "b", "c")
    assert images.labels.tolist() == [0, 0, 1, 1, 2]
    assert images.source == f"{data}/test"
    in_order = ["a/y.bmp", "a/z.PNG", "b/10.png", "b/2.png", "c/only.ppm"]
    expected = [np.asarray(Image.open(data / "test" / name)).transpose(2, 0, 1) for name in in_order]
    assert np.array_equal(images.pixels.numpy(), np.stack(expected))


@pytest.mark.parametrize(
    ("ending", "mode"), [("png", "RGB"), ("png", "L"), ("jpg", "L"), ("jpeg", "RGB"), ("webp", "RGB"), ("bmp", "L")]
)
def test_every_kind_of_file_becomes_three_channels(ending: str, mode: str, write: Write) -> None:
    data = write(f"train/a/x.{ending}", mode=mode)
    pixels = load_images(data, "train").pixels
    assert tuple(pixels.shape) == (1, 3, 5, 4)
    with Image.open(data / "train" / "a" / f"x.{ending}") as image:
        assert np.array_equal(pixels[0].numpy(), np.asarray(image.convert("RGB")).transpose(2, 0, 1))
    assert (mode == "L") == bool((pixels[:, :1] == pixels).all())


def test_transparency_is_left_out(write: Write) -> None:
    data = write("train/a/x.png")
    colours = Image.open(data / "train/a/x.png").quantize(8)
    colours.save(data / "train/a/x.png", transparency=bytes(range(8)))
    expected = np.asarray(colours.convert("RGB")).transpose(2, 0, 1)
    assert np.array_equal(load_images(data, "train").pixels[0].numpy(), expected)


def test_sixteen_bits_are_refused(write: Write) -> None:
    data = write("train/a/x.png")
    Image.fromarray(np.full((5, 4), 40_000, dtype=np.uint16)).save(data / "train/a/x.png")
    with refused(DataError, "x.png", "8 bits", "I;16"):
        load_images(data, "train")


def test_sizes_that_differ(write: Write) -> None:
    write("train/a/1.png", size=(4, 5))
    data = write("train/b/2.png", size=(6, 3))
    with refused(DataError, data / "train/b/2.png", "6x3", data / "train/a/1.png", "4x5", "image_size="):
        load_images(data, "train")
    assert tuple(load_images(data, "train", image_size=3).pixels.shape) == (2, 3, 3, 3)


@pytest.mark.parametrize("upright", [False, True])
def test_image_size_scales_the_shorter_side_and_crops_the_centre(upright: bool, write: Write) -> None:
    data = write("train/a/1.png", size=(8, 24) if upright else (24, 8))
    with Image.open(data / "train/a/1.png") as image:
        scaled = image.resize((4, 12) if upright else (12, 4), Image.Resampling.BILINEAR)
    expected = np.asarray(scaled.crop((0, 4, 4, 8) if upright else (4, 0, 8, 4))).transpose(2, 0, 1)
    assert np.array_equal(load_images(data, "train", image_size=4).pixels[0].numpy(), expected)


def test_an_image_size_that_is_not_one(write: Write) -> None:
    with refused(DataError, "image_size=0"):
        load_images(write("train/a/1.png"), "train", image_size=0)


def test_a_folder_that_is_missing(tmp_path: Path) -> None:
    with refused(DataError, tmp_path / "cifra10", "FOLDER/train/CLASS/*", "digits, cifar10, cifar100"):
        load_images(tmp_path / "cifra10", "train")


def test_a_folder_without_the_split(write: Write) -> None:
    write("cat/1.png")
    data = write("lone.png")
    with refused(DataError, data, "'test'", "cat, lone.png", "FOLDER/test/CLASS/*"):
        load_images(data, "test")


def test_a_class_may_have_the_name_of_a_split(write: Write) -> None:
    """As CIFAR-100's class of trains."""
    write("train/train/1.png")
    data = write("train/test/1.png")
    images = load_images(data, "train")
    assert (images.classes, images.labels.tolist()) == (("test", "train"), [0, 1])


@pytest.mark.parametrize("entry", ["train/1.png", "train/a/deeper/1.png", "train/.a/1.png", "train/a/.1.png"])
def test_a_split_without_images(entry: str, write: Write) -> None:
    data = write(entry)
    with refused(DataError, "no images", data / "train", "png"):
        load_images(data, "train")


def test_a_class_without_images(write: Write) -> None:
    data = write("train/a/1.png")
    (data / "train" / "b").mkdir()
    with refused(DataError, "classes b", data / "train"):
        load_images(data, "train")


def test_splits_with_different_classes_have_different_labels(write: Write) -> None:
    for name in ("train/a/1.png", "train/b/1.png", "train/c/1.png", "test/a/1.png", "test/c/1.png"):
        data = write(name)
    for split in SPLITS:
        with refused(DataError, "different classes", data, "not in both: b\n"):
            load_images(data, split)


@pytest.mark.parametrize(
    ("ending", "damage"), [("png", "empty"), *((ending, "cut") for ending in ("png", "jpg", "webp", "bmp", "ppm"))]
)
def test_a_broken_image_is_named(ending: str, damage: str, write: Write) -> None:
    write("train/a/good.png", size=(40, 30))
    data = write(f"train/b/bad.{ending}", size=(40, 30))
    file = data / "train" / "b" / f"bad.{ending}"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2] if damage == "cut" else b"")
    with refused(DataError, file, "cannot be decoded"):
        load_images(data, "train")


# the cache


def test_a_folder_is_decoded_once(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    write("train/a/1.png")
    data = write("train/b/2.png")
    first = load_images(data, "train")
    files = decodes(monkeypatch)
    second = load_images(data, "train")
    assert files == []
    assert (second.fingerprint, second.source) == (first.fingerprint, first.source)


def test_decoded_images_may_be_written_to_without_harm(write: Write) -> None:
    data = write("train/a/1.png")
    fingerprint = load_images(data, "train").fingerprint
    load_images(data, "train").pixels.zero_()
    assert load_images(data, "train").fingerprint == fingerprint


CHANGES: dict[str, Callable[[Path], object]] = {
    "touched": lambda folder: os.utime(folder / "1.png", ns=(1, 1)),
    "renamed": lambda folder: (folder / "1.png").rename(folder / "0.png"),
    "added": lambda folder: shutil.copy(folder / "1.png", folder / "3.png"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_in_the_folder_is_seen(change: str, write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write("train/a/1.png")
    load_images(data, "train")
    CHANGES[change](data / "train/a")
    files = decodes(monkeypatch)
    load_images(data, "train")
    assert len(files) > 0


def test_other_folders_splits_and_sizes_have_their_own_files(write: Write, cache: Path, tmp_path: Path) -> None:
    write("train/a/1.png", size=(5, 5))
    data = write("test/a/1.png", size=(5, 5))
    shutil.copytree(data, tmp_path / "copy")  # which keeps the times of the files
    variants = [(data, "train", None), (data, "test", None), (data, "train", 4), (tmp_path / "copy", "train", None)]
    for count, (folder, split, image_size) in enumerate(variants, 1):
        load_images(folder, split, image_size=image_size)
        assert len(list((cache / "images").iterdir())) == count


DAMAGE: dict[str, Callable[[Path], object]] = {
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-7]),
    "text": lambda file: file.write_text("not an array"),
    "another shape": lambda file: np.save(file, np.zeros((2, 3, 5, 4), np.uint8)),
    "another dtype": lambda file: np.save(file, np.zeros((1, 3, 5, 4), np.float32)),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_broken_cache_is_made_again(damage: str, write: Write, cache: Path) -> None:
    data = write("train/a/1.png")
    fingerprint = load_images(data, "train").fingerprint
    (file,) = (cache / "images").iterdir()
    good = file.read_bytes()
    DAMAGE[damage](file)
    assert load_images(data, "train").fingerprint == fingerprint
    assert list((cache / "images").iterdir()) == [file]
    assert file.read_bytes() == good


def test_a_cache_that_cannot_be_written_costs_only_time(write: Write, cache: Path) -> None:
    data = write("train/a/1.png")
    cache.write_text("a file where the folder should be")
    with pytest.warns(UserWarning, match="decoded images are not kept in"):
        images = load_images(data, "train")
    assert len(images) == 1


def test_where_the_cache_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TNALGEBRA_CACHE", "/own")
    monkeypatch.setenv("XDG_CACHE_HOME", "/xdg")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert cache_folder() == Path("/own")
    monkeypatch.delenv("TNALGEBRA_CACHE")
    assert cache_folder() == Path("/xdg/tnalgebra")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert cache_folder() == tmp_path / ".cache" / "tnalgebra"


def test_a_progress_bar_only_on_a_terminal(write: Write, capsys: pytest.CaptureFixture[str]) -> None:
    load_images(write("train/a/1.png"), "train")
    assert capsys.readouterr() == ("", "")


@pytest.mark.slow
def test_cifar10_as_a_folder(cifar10_folder: Path) -> None:
    test = load_images(cifar10_folder, "test")
    assert tuple(test.pixels.shape) == (10_000, 3, 32, 32)
    assert test.classes[:4] + test.classes[-1:] == ("airplane", "automobile", "bird", "cat", "truck")
    assert test.labels.bincount().tolist() == [1000] * 10
    # The mean of each channel, 0 to 255, computed from the archive with Pillow and numpy alone.
    mean = test.pixels.double().mean(dim=(0, 2, 3))
    torch.testing.assert_close(mean, torch.tensor([126.025, 123.709, 114.854]).double(), rtol=0, atol=6e-4)
    train = load_images(cifar10_folder, "train")
    assert train.classes == test.classes
    assert train.labels.bincount().tolist() == [200] * 10
