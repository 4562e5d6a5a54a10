"""Damaged, hostile and foreign files: an error each time, or the right model."""

from __future__ import annotations

import copy
import json
import random
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from tests.checkpoint_cases import dense_tiny, network, put_together, same_layer, same_state, taken_apart, tiny
from tests.refusals import refused
from tnalgebra.checkpoint import load, save
from tnalgebra.checkpoint.format import CHECK, KEY, MAX_HEADER, MAX_NODES
from tnalgebra.errors import CheckpointError, TnalgebraError


@pytest.fixture
def whole(tmp_path: Path) -> bytes:
    save(tiny(), tmp_path / "whole.safetensors")
    return (tmp_path / "whole.safetensors").read_bytes()


STRANGE = (
    *(None, True, -1, 0, 1, 2, 2**31, 2**63, 10**300, 1e308, 0.5, "", "../../etc/passwd", "/dev/zero", "__class__"),
    *("A" * 3000, "A[o:9999999999 i:9999999999]", "U[out:3 r:2] V[r in:4]", "X[n]", "\ud800", "\x00", [], {}, [[]]),
    *([2**40] * 3, {"a": {}}, "Fill[k:1000000000000 | value=1] U[out:3 r:2] V[r in:4] -> [out in]"),
)


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    for key, item in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(item, (*path, key))


def changed(value: Any, draw: random.Random) -> Any:
    """JSON with one thing in it exchanged, left out, renamed or swapped with another."""
    value = copy.deepcopy(value)
    every = [path for path in places(value) if path]
    path, other = draw.choice(every), draw.choice(every)

    def at(place: tuple[Any, ...]) -> Any:
        found = value
        for key in place:
            found = found[key]
        return found

    holder, key = at(path[:-1]), path[-1]
    match draw.randrange(5):
        case 0:
            del holder[key]
        case 1:
            holder[key] = copy.deepcopy(at(other))
        case 2 if isinstance(holder, dict):
            holder[str(draw.choice(STRANGE))] = holder.pop(key)
        case _:
            holder[key] = draw.choice(STRANGE)
    return value


def mutated(content: bytes, draw: random.Random) -> bytes:
    header, description, data = taken_apart(content)
    text = json.dumps(description)
    match draw.randrange(8):
        case 0:  # bits
            flipped = bytearray(content)
            for _ in range(draw.choice((1, 1, 3))):
                flipped[draw.randrange(len(flipped))] ^= 1 << draw.randrange(8)
            return bytes(flipped)
        case 1:
            return content[: draw.randrange(len(content))] + draw.randbytes(draw.choice((0, 0, 9)))
        case 2:
            return struct.pack("<Q", draw.choice((0, 1, 2**20, 2**62, 2**64 - 1, MAX_HEADER + 1))) + content[8:]
        case 3:
            return put_together(changed(header, draw) | {"__metadata__": header["__metadata__"]}, text, data)
        case 4:
            start = draw.randrange(len(text))
            words = ("NaN", "-Infinity", "1e999", "9" * 5000, "[" * 100_000, '{"a":' * 5000, '"names":["0"],', "null")
            return put_together(header, text[:start] + draw.choice(words) + text[start + draw.randrange(9) :], data)
        case 5:  # the metadata itself, as text
            raw = bytearray(put_together(header, text, data))
            start = draw.randrange(8, len(raw) - len(data))
            raw[start : start + draw.randrange(9)] = draw.choice(
                (b"\xff\xfe", b"{}", b'""', b'"__metadata__":{},', b"[")
            )
            return bytes(raw)
        case _:  # one field of the description
            return put_together(header, json.dumps(changed(description, draw)), data)


@pytest.mark.slow
def test_mutated_files(whole: bytes, tmp_path: Path) -> None:
    """4,000 of them: an error of the package, and the model untouched; or a model that is the right one.

    Where a mutated description is one of the same tensors, its record (a trace, an error, a plan) may be another.
    """
    draw, path = random.Random(0), tmp_path / "mutated.safetensors"
    target, reference, x = dense_tiny(), tiny(), torch.randn(5, 4)
    before = {name: tensor.clone() for name, tensor in target.state_dict().items()}
    loaded = 0
    for number in range(4000):
        content = mutated(whole, draw)
        path.write_bytes(content)
        try:
            load(path, into=target)
        except TnalgebraError:
            if number % 50 == 0:
                assert {*before} == {*target.state_dict()}
                assert all(torch.equal(tensor, before[name]) for name, tensor in target.state_dict().items())
            continue
        loaded += 1
        same_state(target, reference)
        torch.testing.assert_close(target(x), reference(x), rtol=1e-6, atol=1e-6)
        target = dense_tiny()
    assert 0 < loaded < 800


def test_a_file_that_is_cut_short_or_too_long(whole: bytes, tmp_path: Path) -> None:
    path = tmp_path / "cut.safetensors"
    for content in (*(whole[:length] for length in (*range(0, len(whole), 37), len(whole) - 1)), whole + b"12"):
        path.write_bytes(content)
        with refused(CheckpointError, path):
            load(path, into=dense_tiny())


@pytest.mark.slow
def test_a_flipped_bit_is_found_wherever_it_is(whole: bytes, tmp_path: Path) -> None:
    path, reference = tmp_path / "flipped.safetensors", tiny()
    for place in (*range(8), *range(8, len(whole), 3)):
        flipped = bytearray(whole)
        flipped[place] ^= 1 << place % 8
        path.write_bytes(bytes(flipped))
        try:
            loaded = load(path, into=dense_tiny())
        except CheckpointError:
            continue
        same_state(loaded, reference)  # in a word that nothing depends on, such as "format"
        same_layer(loaded[0], reference[0])


def test_sizes_that_the_file_does_not_hold(whole: bytes, tmp_path: Path) -> None:
    header, description, data = taken_apart(whole)
    path = tmp_path / "model.safetensors"

    def rejected(*facts: object, **fields: Any) -> None:
        entry = {**description["layers"][0], **fields}
        path.write_bytes(put_together(header, json.dumps({**description, "layers": [entry]}), data))
        with refused(CheckpointError, *facts):
            load(path, into=dense_tiny())

    kernel = description["layers"][0]["kernel"]
    rejected("1000000000", kernel=kernel.replace(":2", ":1000000000"))
    rejected("label 'k'", "size", kernel=f"{kernel} Fill[k:1000000 | value=1] -> [out in]")
    rejected("size", kernel=f"{kernel} Fuse[k:1000000 l:1000 m:1000] Copy[k n] -> [out in]")
    rejected(f"at most {MAX_NODES}", kernel=f"{kernel} {'Copy[r] ' * MAX_NODES} -> [out in]")
    rejected("at most", "characters", kernel=kernel + " " * 100_000)
    rejected("planned input", "'0'", planned_for=[2**39, 4])
    rejected("'0'", "3 axes", planned_for=[2, 4, 4])
    rejected("error", -1, relative_error=-1)
    rejected("trace", "'0'", trace={"start": "K[a", "steps": []})
    rejected("ranks", "'0'", ranks={})
    rejected("class", "Conv2d", "Linear", **{"class": "Conv2d"})
    path.write_bytes(put_together(header, json.dumps({**description, "version": 2}), data))
    with refused(CheckpointError, "version 2", "a newer tnalgebra"):
        load(path, into=dense_tiny())
    path.write_bytes(struct.pack("<Q", MAX_HEADER + 1) + b" " * (MAX_HEADER + 1))
    with refused(CheckpointError, f"at most {MAX_HEADER}"):
        load(path, into=dense_tiny())


def test_files_of_others(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.zeros(3)}, path)
    with refused(CheckpointError, "description", "tn.save"):
        load(path, into=network())
    torch.save({"a": torch.zeros(3)}, path)
    with refused(CheckpointError, path, "not a whole safetensors file", "tn.save"):
        load(path, into=network())
    path.write_text("some other file")
    with refused(CheckpointError, path, "not a whole safetensors file", "tn.save"):
        load(path)
    with refused(CheckpointError, tmp_path, "tn.save"):
        load(tmp_path, into=network())


def test_the_check_sum_is_the_one_of_the_format(whole: bytes) -> None:
    """Computed here from the words of the format alone."""
    header, description, data = taken_apart(whole)
    text = header["__metadata__"][KEY]
    assert header["__metadata__"][CHECK] == f"{zlib.crc32(text.encode()):08x}"
    assert header["__metadata__"]["format"] == "pt"
    for name, check in description["tensors"].items():
        begin, end = header[name]["data_offsets"]
        words = f"torch.float32 {header[name]['shape']}".encode()
        assert zlib.crc32(words + data[begin:end]) == check
