"""Images: their readers, the cache of decoded folders, batches and subsets."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image

from tnalgebra._files import cache_folder
from tnalgebra.errors import DataError
from tnalgebra.model import images as images_module
from tnalgebra.model.images import Images, batch_rows, check_classes, default_normalisation, load_images, normalised

Write = Callable[..., Path]


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
    """Every file that is decoded from now on."""
    files: list[Path] = []
    decode = images_module._decode

    def recorded(file: Path, image_size: int | None) -> Any:
        files.append(file)
        return decode(file, image_size)

    monkeypatch.setattr(images_module, "_decode", recorded)
    return files


# Images


@pytest.mark.parametrize(
    ("pixels", "labels", "part"),
    [
        (torch.zeros(2, 3, 4, 4), torch.zeros(2, dtype=torch.int64), "pixels of 'here' are torch.float32"),
        (torch.zeros(2, 4, 4, dtype=torch.uint8), torch.zeros(2, dtype=torch.int64), "of shape (2, 4, 4)"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(2), "labels of 'here' are torch.float32"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.zeros(3, dtype=torch.int64), "torch.int64 of shape (2,)"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor([0, 2]), "run from 0 to 2"),
        (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), torch.tensor([-1, 1]), "run from -1 to 1"),
    ],
)
def test_images_that_contradict_themselves(pixels: torch.Tensor, labels: torch.Tensor, part: str) -> None:
    with pytest.raises(DataError) as caught:
        Images(pixels, labels, ("a", "b"), "here")
    assert part in str(caught.value)


def test_the_fingerprint_is_that_of_the_content() -> None:
    images = some_images()
    assert len(images.fingerprint) == 64
    again = Images(images.pixels.clone(), images.labels.clone(), images.classes, "elsewhere")
    assert again.fingerprint == images.fingerprint
    pixels, labels = images.pixels.clone(), images.labels.clone()
    pixels[6, 2, 4, 3] ^= 1
    labels[6] ^= 1
    others = [
        Images(pixels, images.labels, images.classes, "some"),
        Images(images.pixels, labels, images.classes, "some"),
        Images(images.pixels, images.labels, ("class0", "other"), "some"),
        Images(images.pixels.reshape(7, 3, 4, 5), images.labels, images.classes, "some"),
    ]
    assert len({images.fingerprint, *(other.fingerprint for other in others)}) == 5


def test_the_fingerprint_does_not_depend_on_strides() -> None:
    images = some_images()
    strided = images.pixels.to(memory_format=torch.channels_last)
    assert Images(strided, images.labels, images.classes, "some").fingerprint == images.fingerprint


@pytest.mark.parametrize("count", [1, 2, 7, 9, 12, 13])
def test_a_subset_is_balanced_ordered_and_of_the_images(count: int) -> None:
    labels = torch.tensor([0, 0, 1, 2, 0, 2, 0, 1, 2, 2, 0, 2, 0])  # 6, 2 and 5 of a class
    pixels = torch.arange(13, dtype=torch.uint8)[:, None, None, None]
    chosen = Images(pixels, labels, ("a", "b", "c"), "some").subset(count, seed=3)
    rows = chosen.pixels.flatten().long()
    assert len(chosen) == count
    assert (rows.diff() > 0).all()
    assert torch.equal(chosen.labels, labels[rows])
    assert chosen.source == f"some ({count} of 13, seed 3)"
    counts = chosen.labels.bincount(minlength=3).tolist()
    most = max(counts)
    for chosen_of_class, there_are in zip(counts, (6, 2, 5), strict=True):
        assert chosen_of_class >= min(there_are, most - 1)


def test_a_subset_depends_on_the_seed_alone() -> None:
    images = some_images(count=60, classes=3)
    torch.manual_seed(1)
    first = images.subset(12, seed=0).pixels
    torch.manual_seed(2)
    assert torch.equal(images.subset(12, seed=0).pixels, first)
    assert not torch.equal(images.subset(12, seed=1).pixels, first)


@pytest.mark.parametrize("count", [0, 8])
def test_a_subset_of_a_size_that_cannot_be(count: int) -> None:
    with pytest.raises(DataError, match=rf"cannot choose {count} images\n  source: some\n  needed: 1 to 7"):
        some_images().subset(count, seed=0)


@pytest.mark.parametrize(("batch_size", "sizes"), [(1, [1] * 7), (3, [3, 2, 2]), (4, [4, 3]), (7, [7]), (50, [7])])
def test_batches_are_even_and_hold_every_image_once(batch_size: int, sizes: list[int]) -> None:
    images = some_images()
    settings = {"mean": (0.0, 0.25, 0.5), "std": (1.0, 0.5, 2.0)}
    batches = list(images.batches(batch_size, **settings, dtype=torch.float64))
    assert [len(labels) for _, labels in batches] == sizes
    assert torch.equal(torch.cat([labels for _, labels in batches]), images.labels)
    result = torch.cat([pixels for pixels, _ in batches])
    assert result.dtype == torch.float64
    for channel in range(3):
        expected = (images.pixels[:, channel].double() / 255 - settings["mean"][channel]) / settings["std"][channel]
        torch.testing.assert_close(result[:, channel], expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_low_precision_is_rounded_only_once(dtype: torch.dtype) -> None:
    images = some_images()
    settings = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
    exact = normalised(images.pixels, **settings, dtype=torch.float32)
    assert torch.equal(normalised(images.pixels, **settings, dtype=dtype), exact.to(dtype))


def test_batches_of_no_images() -> None:
    nothing = Images(torch.zeros(0, 1, 2, 2, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64), ("a",), "none")
    assert list(nothing.batches(4, mean=(0.0,), std=(1.0,))) == []


def test_settings_of_batches_that_do_not_fit() -> None:
    images = some_images()
    for mean, std in [((0.0,), (1.0,)), ((0.0,) * 3, (1.0,)), ((0.0,) * 3, (1.0, 0.0, 1.0))]:
        with pytest.raises(DataError, match=r"(?s)mean and std do not fit the images.*3 numbers each, std positive"):
            next(images.batches(2, mean=mean, std=std))
    with pytest.raises(DataError, match="a batch of 0 images is no batch"):
        batch_rows(torch.arange(3), 0)


def test_the_usual_normalisation() -> None:
    assert default_normalisation(some_images()) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert default_normalisation(some_images(channels=1)) == ((0.0,), (1.0,))
    assert default_normalisation(some_images(channels=2)) == ((0.0, 0.0), (1.0, 1.0))


def test_a_network_has_an_output_for_every_class() -> None:
    images = some_images(count=14, classes=7)
    check_classes(images, 7)
    with pytest.raises(DataError) as caught:
        check_classes(images, 10)
    assert str(caught.value) == (
        "the network has 10 outputs, the images have 7 classes\n"
        "  images:  some\n"
        "  classes: class0, class1, class2, class3, class4, ..."
    )


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
    parts = [load_images("digits", split) for split in images_module.SPLITS]
    pixels = torch.cat([part.pixels for part in parts]).double().mul(16 / 255).round().flatten(1)
    labels = torch.cat([part.labels for part in parts])
    ours = sorted((int(label), tuple(image.tolist())) for image, label in zip(pixels, labels, strict=True))
    assert ours == theirs
    values = load_images("digits", "train").pixels.unique().tolist()
    assert values == [round(value * 255 / 16) for value in range(17)]


def test_digits_have_one_size() -> None:
    with pytest.raises(DataError, match="digits has images of one size"):
        load_images("digits", "test", image_size=16)


@pytest.mark.parametrize("name", ["digits", "cifar10", "anywhere"])
def test_there_are_two_splits(name: str) -> None:
    unknown: Any = "val"
    with pytest.raises(DataError, match="there is no split 'val'\n  known: train, test"):
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
    with pytest.raises(DataError) as caught:
        load_images("cifar10", "train")
    assert str(caught.value) == (
        "cifar10 cannot be downloaded\n"
        "  reason:   URLError: <urlopen error no network>\n"
        f"  searched: {cache}\n"
        "  fix:      give a folder of images instead: FOLDER/train/CLASS/*, FOLDER/test/CLASS/*"
    )


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


@pytest.mark.parametrize("ending", ["png", "jpg", "jpeg", "webp", "bmp", "ppm"])
@pytest.mark.parametrize("mode", ["RGB", "L"])
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
    with pytest.raises(DataError, match=r"(?s)x\.png' has more than 8 bits a channel.*mode: I;16"):
        load_images(data, "train")


def test_sizes_that_differ(write: Write) -> None:
    write("train/a/1.png", size=(4, 5))
    data = write("train/b/2.png", size=(6, 3))
    with pytest.raises(DataError) as caught:
        load_images(data, "train")
    assert str(caught.value) == (
        "images differ in size\n"
        f"  file:  {data}/train/b/2.png: 6x3 (width x height)\n"
        f"  first: {data}/train/a/1.png: 4x5\n"
        "  fix:   give image_size= to scale and crop all images to one size"
    )
    assert tuple(load_images(data, "train", image_size=3).pixels.shape) == (2, 3, 3, 3)


@pytest.mark.parametrize("upright", [False, True])
def test_image_size_scales_the_shorter_side_and_crops_the_centre(upright: bool, write: Write) -> None:
    data = write("train/a/1.png", size=(8, 24) if upright else (24, 8))
    with Image.open(data / "train/a/1.png") as image:
        scaled = image.resize((4, 12) if upright else (12, 4), Image.Resampling.BILINEAR)
    expected = np.asarray(scaled.crop((0, 4, 4, 8) if upright else (4, 0, 8, 4))).transpose(2, 0, 1)
    assert np.array_equal(load_images(data, "train", image_size=4).pixels[0].numpy(), expected)


def test_image_size_leaves_images_of_that_size_alone(write: Write) -> None:
    data = write("train/a/1.png", size=(5, 5))
    assert torch.equal(load_images(data, "train", image_size=5).pixels, load_images(data, "train").pixels)


@pytest.mark.parametrize("image_size", [0, -3])
def test_an_image_size_that_is_none(image_size: int, write: Write) -> None:
    with pytest.raises(DataError, match=f"image_size={image_size} is no size"):
        load_images(write("train/a/1.png"), "train", image_size=image_size)


def test_a_folder_that_is_missing(tmp_path: Path) -> None:
    with pytest.raises(DataError) as caught:
        load_images(tmp_path / "cifra10", "train")
    assert str(caught.value) == (
        f"no folder of images at '{tmp_path}/cifra10'\n"
        "  expected:      FOLDER/train/CLASS/*, FOLDER/test/CLASS/*\n"
        "  known by name: digits, cifar10, cifar100"
    )


def test_a_folder_without_the_split(write: Write) -> None:
    write("cat/1.png")
    data = write("lone.png")
    with pytest.raises(DataError) as caught:
        load_images(data, "test")
    assert str(caught.value) == (
        f"'{data}' has no folder 'test'\n"
        "  found:    cat/, lone.png\n"
        "  expected: FOLDER/train/CLASS/*, FOLDER/test/CLASS/*"
    )


@pytest.mark.parametrize("entry", ["train/1.png", "train/a/deeper/1.png", "train/.a/1.png", "train/a/.1.png"])
def test_a_split_without_images(entry: str, write: Write) -> None:
    data = write(entry)
    with pytest.raises(DataError, match=r"(?s)no images in '.*train'\n.*png"):
        load_images(data, "train")


def test_a_class_without_images(write: Write) -> None:
    data = write("train/a/1.png")
    (data / "train" / "b").mkdir()
    with pytest.raises(DataError, match="class 'b' has no images"):
        load_images(data, "train")


def test_splits_with_different_classes_have_different_labels(write: Write) -> None:
    for name in ("train/a/1.png", "train/b/1.png", "train/c/1.png", "test/a/1.png", "test/c/1.png"):
        data = write(name)
    for split in images_module.SPLITS:
        with pytest.raises(DataError, match=r"(?s)have different classes.*not in both: b\n"):
            load_images(data, split)


@pytest.mark.parametrize("ending", ["png", "jpg", "webp", "bmp", "ppm"])
@pytest.mark.parametrize("damage", ["cut", "text", "empty"])
def test_a_broken_image_is_named(ending: str, damage: str, write: Write) -> None:
    write("train/a/good.png", size=(40, 30))
    data = write(f"train/b/bad.{ending}", size=(40, 30))
    file = data / "train" / "b" / f"bad.{ending}"
    content = file.read_bytes()
    file.write_bytes({"cut": content[: len(content) // 2], "text": b"not an image", "empty": b""}[damage])
    with pytest.raises(DataError, match=rf"(?s)image '{file}' cannot be decoded\n  reason: "):
        load_images(data, "train")


# the cache


def test_a_folder_is_decoded_once(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    write("train/a/1.png")
    data = write("train/b/2.png")
    files = decodes(monkeypatch)
    first = load_images(data, "train")
    assert len(files) > 0
    files.clear()
    second = load_images(data, "train")
    assert files == []
    assert second.fingerprint == first.fingerprint
    assert second.source == first.source


def test_decoded_images_may_be_written_to_without_harm(write: Write) -> None:
    data = write("train/a/1.png")
    fingerprint = load_images(data, "train").fingerprint
    load_images(data, "train").pixels.zero_()
    assert load_images(data, "train").fingerprint == fingerprint


def _touch(data: Path) -> None:
    os.utime(data / "train/a/1.png", ns=(1, 1))


def _rename(data: Path) -> None:
    (data / "train/a/1.png").rename(data / "train/a/0.png")


def _add(data: Path) -> None:
    shutil.copy(data / "train/a/1.png", data / "train/a/3.png")


@pytest.mark.parametrize("change", [_touch, _rename, _add])
def test_a_change_in_the_folder_is_seen(
    change: Callable[[Path], None], write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write("train/a/1.png")
    load_images(data, "train")
    change(data)
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


def _cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-7])


def _empty(file: Path) -> None:
    file.write_bytes(b"")


def _text(file: Path) -> None:
    file.write_text("not an array")


def _other_shape(file: Path) -> None:
    np.save(file, np.zeros((2, 3, 5, 4), np.uint8))


def _other_dtype(file: Path) -> None:
    np.save(file, np.zeros((1, 3, 5, 4), np.float32))


@pytest.mark.parametrize("damage", [_cut, _empty, _text, _other_shape, _other_dtype])
def test_a_broken_cache_is_made_again(damage: Callable[[Path], None], write: Write, cache: Path) -> None:
    data = write("train/a/1.png")
    fingerprint = load_images(data, "train").fingerprint
    (file,) = (cache / "images").iterdir()
    good = file.read_bytes()
    damage(file)
    assert load_images(data, "train").fingerprint == fingerprint
    assert list((cache / "images").iterdir()) == [file]
    assert file.read_bytes() == good


def test_nothing_is_left_in_the_cache_when_writing_stops(
    write: Write, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(file: Path, array: Any) -> None:
        file.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        load_images(write("train/a/1.png"), "train")
    assert list((cache / "images").iterdir()) == []


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
