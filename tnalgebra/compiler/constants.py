"""The constants of the cost model: those that `calibrate` stored for this machine, or the package's own."""

from __future__ import annotations

import json
import math
import platform
import re
from collections.abc import Mapping
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

import torch

from .._files import cache_folder
from ..errors import CompileError
from .cost import FORMATS, Constants, Format, Kinds, Rates


def constants_for(device: torch.device, dtype: torch.dtype, memory_format: Format) -> Constants:
    """The constants that `calibrate` stored for a device; if it never ran there, the ones of the package.

    Those of the package were measured in float32; for another dtype arithmetic and traffic are scaled with its size
    (on CUDA, types of two bytes to the speed of tensor cores).

    Raises:
        CompileError: what is stored cannot be read.
    """
    path = calibration_file(device, dtype)
    if path.exists():
        return read_constants(path, device, dtype)[memory_format]
    cuda = device.type == "cuda"
    constants = (CUDA_DEFAULTS if cuda else CPU_DEFAULTS)[memory_format]
    if dtype == torch.float32:
        return constants
    size = dtype.itemsize / 4
    arithmetic = 1 / 12 if cuda and dtype.itemsize == 2 else size
    factors = dict.fromkeys(("read", "written", "far", "read_large", "written_large"), size)
    factors["multiply_add"] = arithmetic

    def scale(kinds: Kinds) -> Kinds:
        rates = {field.name: getattr(kinds, field.name) for field in fields(Kinds)}
        return Kinds(
            **{
                kind: replace(one, **{n: getattr(one, n) * f for n, f in factors.items()})
                for kind, one in rates.items()
            }
        )

    return Constants(
        view=constants.view,
        cache=constants.cache / size,
        large=constants.large / size,
        kept=constants.kept * size,
        forward=scale(constants.forward),
        backward=scale(constants.backward),
    )


def identity(device: torch.device, dtype: torch.dtype) -> dict[str, str | int]:
    """What measured constants hold for: the device's name, dtype, threads, and the version of torch."""
    if device.type == "cuda":
        name, threads = torch.cuda.get_device_name(device), 0
    else:
        name, threads = f"{device.type} {_processor()}", torch.get_num_threads()
    return {
        "device": name,
        "dtype": str(dtype).removeprefix("torch."),
        "threads": threads,
        "torch": str(torch.__version__),
    }


def _processor() -> str:
    """The processor's name, which Linux gives nowhere but in /proc."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    found = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return found.group(1).strip() if found else platform.processor() or platform.machine()


def calibration_file(device: torch.device, dtype: torch.dtype) -> Path:
    """Where `calibrate` stores the constants of a device: one file in the cache for each identity."""
    words = "-".join(str(word) for word in identity(device, dtype).values())
    return cache_folder() / "calibrations" / f"{re.sub(r'[^A-Za-z0-9.+]+', '-', words)}.json"


def read_constants(path: Path, device: torch.device, dtype: torch.dtype) -> dict[Format, Constants]:
    """The constants in a file of `calibrate`, one for each memory format.

    Raises:
        CompileError: the file is broken, or of another device.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        _check_keys(data, ("identity", "constants"), "the file")
        if data["identity"] != identity(device, dtype):
            raise ValueError(f"it is of {data['identity']}, not of {identity(device, dtype)}")
        _check_keys(data["constants"], FORMATS, "'constants'")
        found = {name: _read_record(Constants, data["constants"][name], name) for name in FORMATS}
        for name, constants in found.items():
            if not constants.cache or not constants.large:
                raise ValueError(f"{name}: 'cache' and 'large' are above 0")
        return found
    except (OSError, ValueError) as error:  # what json raises is a ValueError, as is what is not UTF-8
        raise CompileError(
            "the stored calibration cannot be used",
            file=path,
            reason=error,
            fix="delete the file; calibrate() measures again, without it the package's own constants hold",
        ) from error


def _read_record(record: Any, data: object, at: str) -> Any:
    """A dataclass of numbers, or of dataclasses of numbers, from what JSON holds of it."""
    types = get_type_hints(record)
    _check_keys(data, sorted(types), at)
    assert isinstance(data, dict)
    found: dict[str, object] = {}
    for name, value in data.items():
        place = f"{at}.{name}"
        if is_dataclass(types[name]):
            found[name] = _read_record(types[name], value, place)
        elif isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value < 0:
            raise ValueError(f"{place} is {value!r}, not a finite number of 0 or more")
        else:
            found[name] = float(value)
    return record(**found)


def _check_keys(data: object, names: Any, at: str) -> None:
    if not isinstance(data, dict) or data.keys() != set(names):
        raise ValueError(f"{at} does not hold {', '.join(names)}")


# call, multiply_add, narrow_summed, narrow_new, read, written, far, read_large, written_large
CPU_DEFAULTS: Mapping[Format, Constants] = {
    "contiguous": Constants(
        view=1.0e-6,
        cache=2.7e6,
        large=2**23,
        kept=1.3e-10,
        forward=Kinds(
            convolution=Rates(3.4e-5, 4.9e-12, 0.62, 8.9, 3.1e-10, 3.4e-11, 9.4e-12, 2.6e-9, 4.3e-9),
            one_wide=Rates(1.2e-6, 5.8e-12, 41, 19, 1.3e-10, 4.5e-11, 8.0e-12, 1.1e-9, 1.7e-9),
            grouped=Rates(3.6e-5, 3.8e-12, 8.1, 5.2, 2.7e-10, 1.4e-10, 1.2e-11, 1.1e-9, 3.7e-9),
            depthwise=Rates(5.6e-5, 5.4e-12, 0, 0, 1.1e-10, 1.6e-10, 2.2e-10, 1.0e-9, 2.9e-9),
            product=Rates(3.8e-6, 5.6e-12, 3.4, 3.2, 9.2e-12, 1.2e-11, 5.2e-11, 4.5e-11, 8.5e-10),
            copy=Rates(3.7e-6, 0, 0, 0, 8.7e-11, 4.4e-11, 1.7e-10, 2.8e-10, 6.5e-10),
            pointwise=Rates(2.6e-6, 0, 0, 0, 8.5e-12, 8.3e-12, 1.2e-10, 9.2e-12, 6.4e-10),
        ),
        backward=Kinds(
            convolution=Rates(1.0e-4, 1.1e-11, 7.1, 10, 6.0e-10, 8.9e-11, 2.5e-11, 5.3e-9, 5.0e-9),
            one_wide=Rates(2.3e-5, 1.3e-11, 39, 24, 6.3e-10, 8.3e-11, 1.7e-11, 2.8e-9, 2.7e-9),
            grouped=Rates(1.3e-4, 7.3e-12, 7.7, 27, 3.8e-10, 1.0e-10, 2.3e-11, 3.1e-9, 1.2e-7),
            depthwise=Rates(1.5e-4, 1.1e-10, 0, 0, 5.8e-11, 7.9e-11, 1.7e-9, 1.3e-9, 2.3e-9),
            product=Rates(3.3e-5, 9.9e-12, 7.6, 9.9, 9.8e-11, 5.7e-11, 7.1e-10, 2.8e-10, 1.2e-9),
            copy=Rates(1.8e-5, 0, 0, 0, 9.0e-11, 1.4e-10, 3.4e-10, 2.7e-10, 2.9e-9),
            pointwise=Rates(1.6e-5, 0, 0, 0, 1.0e-11, 3.0e-10, 2.3e-10, 8.8e-10, 8.5e-10),
        ),
    ),
    "channels_last": Constants(
        view=1.0e-6,
        cache=6.9e6,
        large=2**23,
        kept=2.9e-10,
        forward=Kinds(
            convolution=Rates(3.0e-05, 3.6e-12, 0.65, 8.6, 9.6e-11, 2.5e-11, 6.2e-12, 8.0e-11, 8.8e-10),
            one_wide=Rates(3.8e-06, 3.9e-12, 5.2, 2, 1.2e-10, 1.1e-10, 4.6e-12, 3.5e-11, 1.8e-09),
            grouped=Rates(3.1e-05, 2.3e-12, 3.4, 9.4, 2.1e-10, 2.9e-11, 8.0e-12, 3.4e-10, 4.8e-10),
            depthwise=Rates(2.8e-05, 5.7e-12, 0, 0, 4.5e-11, 3.4e-11, 6.1e-11, 3.5e-10, 4.9e-10),
            product=Rates(3.4e-6, 5.2e-12, 5.2, 10, 1.1e-11, 8.5e-12, 6.2e-11, 6.1e-10, 2.1e-9),
            copy=Rates(2.3e-6, 0, 0, 0, 2.7e-10, 6.2e-11, 4.4e-10, 2.5e-9, 4.6e-10),
            pointwise=Rates(2.2e-6, 0, 0, 0, 1.3e-11, 1.4e-11, 2.8e-10, 1.5e-11, 7.9e-10),
        ),
        backward=Kinds(
            convolution=Rates(8.0e-05, 7.9e-12, 8.3, 2, 3.9e-10, 4.6e-11, 1.5e-11, 5.5e-10, 2.2e-10),
            one_wide=Rates(2.6e-05, 1.1e-11, 3.3, 2.4, 5.8e-10, 7.9e-11, 1.2e-11, 1.8e-09, 1.4e-10),
            grouped=Rates(8.8e-05, 6.3e-12, 6.2, 3.9, 5.7e-10, 2.9e-10, 1.8e-11, 8.0e-10, 1.1e-09),
            depthwise=Rates(8.8e-05, 5.4e-11, 0, 0, 2.3e-10, 5.3e-11, 1.3e-11, 2.7e-10, 3.3e-10),
            product=Rates(3.1e-5, 1.1e-11, 11, 9.5, 7.0e-11, 8.3e-11, 7.1e-11, 3.4e-9, 3.3e-10),
            copy=Rates(1.8e-5, 0, 0, 0, 4.7e-11, 6.1e-11, 3.7e-10, 2.0e-10, 6.0e-10),
            pointwise=Rates(1.3e-5, 0, 0, 0, 1.1e-11, 5.7e-10, 5.7e-11, 1.3e-9, 5.7e-10),
        ),
    ),
}
"""float32 on two cores of an Intel Xeon with AVX-512: measured, rounded to two digits. `large` is 32 MiB.

Windows in channels_last are lowered by a fifth, forward and backward, after whole chains of layers were measured in
both formats.
"""

_CUDA = Constants(
    view=2.0e-6,
    cache=1.0e7,
    large=2**60,
    kept=1.6e-12,
    forward=Kinds(
        convolution=Rates(2.0e-5, 7.0e-14, 16, 16, 1.6e-12, 1.6e-12, 0, 0, 0),
        one_wide=Rates(2.0e-5, 6.0e-14, 16, 16, 1.6e-12, 1.6e-12, 0, 0, 0),
        grouped=Rates(2.5e-5, 2.0e-13, 8, 8, 3.2e-12, 3.2e-12, 0, 0, 0),
        depthwise=Rates(1.5e-5, 2.0e-13, 0, 0, 1.6e-12, 1.6e-12, 0, 0, 0),
        product=Rates(1.0e-5, 5.0e-14, 16, 16, 1.6e-12, 1.6e-12, 0, 0, 0),
        copy=Rates(5.0e-6, 0, 0, 0, 2.4e-12, 2.4e-12, 0, 0, 0),
        pointwise=Rates(5.0e-6, 0, 0, 0, 1.6e-12, 1.6e-12, 0, 0, 0),
    ),
    backward=Kinds(
        convolution=Rates(4.0e-5, 1.4e-13, 16, 16, 3.2e-12, 3.2e-12, 0, 0, 0),
        one_wide=Rates(4.0e-5, 1.2e-13, 16, 16, 3.2e-12, 3.2e-12, 0, 0, 0),
        grouped=Rates(5.0e-5, 8.0e-13, 8, 8, 6.4e-12, 6.4e-12, 0, 0, 0),
        depthwise=Rates(3.0e-5, 8.0e-13, 0, 0, 3.2e-12, 3.2e-12, 0, 0, 0),
        product=Rates(2.0e-5, 1.0e-13, 16, 16, 3.2e-12, 3.2e-12, 0, 0, 0),
        copy=Rates(1.0e-5, 0, 0, 0, 4.8e-12, 4.8e-12, 0, 0, 0),
        pointwise=Rates(1.0e-5, 0, 0, 0, 3.2e-12, 3.2e-12, 0, 0, 0),
    ),
)

CUDA_DEFAULTS: Mapping[Format, Constants] = {
    "contiguous": _CUDA,
    "channels_last": replace(
        _CUDA,
        forward=replace(
            _CUDA.forward,
            convolution=Rates(2.0e-5, 1.0e-13, 16, 16, 1.6e-12, 1.6e-12, 0, 0, 0),
            depthwise=Rates(1.5e-5, 6.0e-13, 0, 0, 1.6e-12, 1.6e-12, 0, 0, 0),
        ),
        backward=replace(
            _CUDA.backward,
            convolution=Rates(4.0e-5, 2.0e-13, 16, 16, 3.2e-12, 3.2e-12, 0, 0, 0),
            depthwise=Rates(3.0e-5, 2.4e-12, 0, 0, 3.2e-12, 3.2e-12, 0, 0, 0),
        ),
    ),
}
"""float32 without TF32 on a GPU of the H100's order of magnitude, from published figures: not measured.

2e13 multiply-adds and 2.5e12 bytes a second, 5 to 20 microseconds a call; its allocator keeps what is freed, so nothing
is large.
"""
