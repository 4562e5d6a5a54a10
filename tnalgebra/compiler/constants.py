"""The constants of the cost model: those that `calibrate` measured on this machine, or the defaults of the package."""

from __future__ import annotations

import json
import math
import platform
import re
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import torch

from .._files import cache_folder
from ..errors import CompileError
from .cost import FORMATS, Constants, Format, Kinds, Rates


def constants_for(device: torch.device, dtype: torch.dtype, memory_format: Format) -> Constants:
    """The constants that `calibrate` stored for a device, or the defaults of the package if it never ran there.

    The defaults are those of float32. For another dtype they are scaled with its number of bytes, except that on CUDA
    arithmetic in two bytes has the speed of tensor cores.

    Raises:
        CompileError: the stored file cannot be read.
    """
    path = calibration_file(device, dtype)
    if path.exists():
        return read_constants(path, device, dtype)[memory_format]
    cuda = device.type == "cuda"
    constants = (CUDA_DEFAULTS if cuda else CPU_DEFAULTS)[memory_format]
    if dtype == torch.float32:
        return constants
    size = dtype.itemsize / 4
    factors = dict.fromkeys(("read", "written", "far", "read_large", "written_large"), size)
    factors["multiply_add"] = 1 / 12 if cuda and dtype.itemsize == 2 else size

    def scale(kinds: Kinds) -> Kinds:
        return Kinds(*(rates._replace(**{n: getattr(rates, n) * f for n, f in factors.items()}) for rates in kinds))

    return Constants(
        view=constants.view,
        cache=constants.cache / size,
        large=constants.large / size,
        kept=constants.kept * size,
        forward=scale(constants.forward),
        backward=scale(constants.backward),
    )


def identity(device: torch.device, dtype: torch.dtype) -> dict[str, str | int]:
    """What measured constants are valid for: the device, the dtype, the number of threads and the version of torch."""
    cuda = device.type == "cuda"
    threads = 0 if cuda else torch.get_num_threads()
    return {
        "device": device_name(device) if cuda else f"{device.type} {device_name(device)}",
        "dtype": str(dtype).removeprefix("torch."),
        "threads": threads,
        "torch": str(torch.__version__),
    }


def device_name(device: torch.device | str) -> str:
    """The name of the hardware: of the GPU, or else of the processor."""
    return torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else _processor()


@cache
def _processor() -> str:
    """The name of the processor; on Linux only /proc has it."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        text = ""
    match = re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE)
    return match.group(1).strip() if match else platform.processor() or platform.machine()


def calibration_file(device: torch.device, dtype: torch.dtype) -> Path:
    """The file in the cache folder that holds the constants for one `identity`."""
    words = "-".join(str(word) for word in identity(device, dtype).values())
    return cache_folder() / "calibrations" / f"{re.sub(r'[^A-Za-z0-9.+]+', '-', words)}.json"


def read_constants(path: Path, device: torch.device, dtype: torch.dtype) -> dict[Format, Constants]:
    """The constants that `calibrate` wrote into a file, for each memory format.

    Raises:
        CompileError: the file is damaged, or was written for another device.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["identity"] != identity(device, dtype):
            raise ValueError(f"it was measured for {data['identity']}, not for {identity(device, dtype)}")
        return {name: _from_record(data["constants"][name]) for name in FORMATS}
    except (OSError, ValueError, TypeError, KeyError) as error:  # errors of JSON and of UTF-8 are ValueErrors
        raise CompileError(
            "the stored calibration cannot be used",
            file=path,
            reason=f"{type(error).__name__}: {error}",
            fix="delete the file to use the defaults, or call tnalgebra.compiler.calibrate() to measure again",
        ) from error


def as_record(constants: Constants) -> dict[str, Any]:
    """The JSON object from which `read_constants` reads the constants."""
    kinds = {"forward": constants.forward, "backward": constants.backward}
    tables = {name: {kind: rates._asdict() for kind, rates in one._asdict().items()} for name, one in kinds.items()}
    return {**asdict(constants), **tables}


def _from_record(record: dict[str, Any]) -> Constants:
    """The constants from their JSON object. Raises ValueError, TypeError or KeyError if it is damaged."""

    def kinds(name: str) -> Kinds:
        return Kinds(
            *(Rates(*(_number(record[name][kind][one], one) for one in Rates._fields)) for kind in Kinds._fields)
        )

    single = {name: _number(record[name], name) for name in ("view", "cache", "large", "kept")}
    if not single["cache"] or not single["large"]:
        raise ValueError("'cache' and 'large' must be above 0")
    return Constants(**single, forward=kinds("forward"), backward=kinds("backward"))


def _number(value: object, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"{name!r} is {value!r}, not a finite number of at least 0")
    return float(value)


# call, multiply_add, narrow_summed, narrow_new, read, written, far, read_large, written_large
CPU_DEFAULTS: Mapping[Format, Constants] = {
    "contiguous": Constants(
        view=1.0e-6,
        cache=7.8e6,
        large=2**23,
        kept=1.8e-10,
        forward=Kinds(
            convolution=Rates(3.0e-5, 8.5e-12, 0.53, 10, 3.7e-10, 3.2e-11, 9.4e-12, 2.3e-9, 4.3e-9),
            one_wide=Rates(9.2e-7, 1.0e-11, 24, 12, 1.5e-10, 4.0e-11, 8.2e-12, 9.2e-10, 2.5e-9),
            grouped=Rates(3.7e-5, 6.8e-12, 6.3, 4.8, 3.4e-10, 1.3e-10, 1.2e-11, 1.1e-9, 4.4e-9),
            depthwise=Rates(5.4e-5, 9.7e-12, 0, 0, 1.0e-10, 1.8e-10, 5.5e-10, 1.0e-9, 3.4e-9),
            long_depthwise=Rates(2.7e-5, 4.8e-10, 0, 0, 1.1e-10, 1.1e-10, 1.0e-11, 1.0e-9, 3.0e-9),
            product=Rates(3.0e-6, 1.1e-11, 3.5, 4.4, 8.7e-12, 1.1e-11, 6.1e-11, 4.6e-11, 1.2e-9),
            copy=Rates(3.2e-6, 0, 0, 0, 1.2e-10, 7.8e-11, 2.8e-10, 2.6e-10, 1.0e-9),
            pointwise=Rates(2.6e-6, 0, 0, 0, 1.9e-11, 1.3e-11, 1.7e-10, 1.2e-11, 1.0e-9),
        ),
        backward=Kinds(
            convolution=Rates(9.2e-5, 1.9e-11, 6.4, 8.8, 7.2e-10, 7.7e-11, 2.5e-11, 4.8e-9, 4.7e-9),
            one_wide=Rates(2.1e-5, 2.3e-11, 22, 14, 6.6e-10, 7.5e-11, 1.7e-11, 4.4e-9, 3.2e-9),
            grouped=Rates(1.3e-4, 1.3e-11, 5.8, 21, 5.6e-10, 9.7e-11, 2.3e-11, 2.4e-9, 2.8e-8),
            depthwise=Rates(1.5e-4, 1.4e-10, 0, 0, 8.3e-11, 7.8e-11, 3.0e-9, 1.4e-9, 2.8e-9),
            long_depthwise=Rates(4.3e-5, 2.0e-9, 0, 0, 9.8e-11, 9.8e-11, 1.0e-11, 1.0e-9, 3.0e-9),
            product=Rates(3.0e-5, 1.9e-11, 7.6, 13, 8.7e-11, 4.5e-11, 2.7e-9, 3.1e-10, 8.5e-10),
            copy=Rates(1.9e-5, 0, 0, 0, 1.0e-10, 3.0e-10, 5.9e-10, 2.7e-10, 2.7e-9),
            pointwise=Rates(2.2e-5, 0, 0, 0, 7.9e-12, 2.8e-10, 4.2e-10, 7.6e-10, 1.3e-9),
        ),
    ),
    "channels_last": Constants(
        view=1.0e-6,
        cache=1.4e7,
        large=2**23,
        kept=3.0e-10,
        forward=Kinds(
            convolution=Rates(2.7e-5, 6.6e-12, 0.48, 7.4, 8.2e-11, 2.0e-11, 5.5e-12, 6.8e-11, 1.1e-9),
            one_wide=Rates(4.6e-6, 7.3e-12, 2.5, 1.8, 1.6e-10, 5.0e-11, 4.0e-12, 3.1e-11, 1.6e-9),
            grouped=Rates(2.2e-5, 2.7e-12, 3.6, 9.2, 5.2e-10, 2.6e-11, 7.2e-12, 3.6e-10, 6.1e-10),
            depthwise=Rates(2.7e-5, 8.2e-12, 0, 0, 2.9e-11, 3.2e-11, 2.2e-10, 3.6e-10, 5.7e-10),
            long_depthwise=Rates(2.9e-5, 2.9e-11, 0, 0, 4.9e-11, 5.0e-11, 1.0e-11, 1.0e-9, 3.0e-9),
            product=Rates(2.1e-6, 9.4e-12, 5.8, 13, 1.1e-11, 7.3e-12, 6.6e-11, 5.8e-10, 2.0e-9),
            copy=Rates(2.4e-6, 0, 0, 0, 4.2e-10, 9.0e-11, 4.1e-10, 2.1e-9, 8.2e-10),
            pointwise=Rates(2.4e-6, 0, 0, 0, 2.5e-11, 1.4e-11, 2.9e-10, 4.4e-11, 1.0e-9),
        ),
        backward=Kinds(
            convolution=Rates(7.7e-5, 1.5e-11, 6.3, 2, 3.8e-10, 3.7e-11, 1.3e-11, 5.2e-10, 1.9e-10),
            one_wide=Rates(2.9e-5, 1.9e-11, 4.6, 2, 3.9e-10, 7.8e-11, 1.1e-11, 1.4e-9, 1.3e-10),
            grouped=Rates(8.8e-5, 1.0e-11, 5.3, 3.2, 9.4e-10, 4.6e-10, 1.6e-11, 7.9e-10, 1.1e-9),
            depthwise=Rates(8.8e-5, 7.4e-11, 0, 0, 1.7e-10, 3.8e-11, 1.3e-11, 3.0e-10, 6.1e-10),
            long_depthwise=Rates(4.8e-5, 2.5e-9, 0, 0, 9.7e-11, 9.7e-11, 1.0e-11, 1.0e-9, 3.0e-9),
            product=Rates(2.5e-5, 2.0e-11, 14, 10, 5.9e-11, 7.0e-11, 7.6e-11, 2.6e-9, 3.3e-10),
            copy=Rates(2.0e-5, 0, 0, 0, 5.8e-11, 1.1e-10, 7.5e-10, 2.0e-10, 5.8e-10),
            pointwise=Rates(1.9e-5, 0, 0, 0, 8.6e-12, 4.1e-10, 2.2e-10, 1.0e-9, 1.0e-9),
        ),
    ),
}
"""Geometric means of what was measured in float32 on an Intel Xeon and an AMD EPYC with AVX-512. `large` is 32 MiB.

The rates of `long_depthwise` were measured on the AMD EPYC alone.

The rates of convolutions in channels_last are a fifth lower than measured, because whole chains of layers are faster
there than their single steps.
"""


def _cuda(*, convolution: float, depthwise: float) -> Constants:
    """The constants of a GPU, given the seconds of a multiply-add in convolutions with windows and depthwise ones."""
    forward = Kinds(
        convolution=Rates(2.0e-5, convolution, 16, 16, 1.6e-12, 1.6e-12),
        one_wide=Rates(2.0e-5, 6.0e-14, 16, 16, 1.6e-12, 1.6e-12),
        grouped=Rates(2.5e-5, 2.0e-13, 8, 8, 3.2e-12, 3.2e-12),
        depthwise=Rates(1.5e-5, depthwise, 0, 0, 1.6e-12, 1.6e-12),
        long_depthwise=Rates(1.5e-5, depthwise, 0, 0, 1.6e-12, 1.6e-12),
        product=Rates(1.0e-5, 5.0e-14, 16, 16, 1.6e-12, 1.6e-12),
        copy=Rates(5.0e-6, 0, 0, 0, 2.4e-12, 2.4e-12),
        pointwise=Rates(5.0e-6, 0, 0, 0, 1.6e-12, 1.6e-12),
    )
    # two gradients cost twice as much; where there are groups, their arithmetic four times as much
    twice = Kinds(
        *(
            rates._replace(
                call=2 * rates.call,
                multiply_add=(4 if kind in ("grouped", "depthwise", "long_depthwise") else 2) * rates.multiply_add,
                read=2 * rates.read,
                written=2 * rates.written,
            )
            for kind, rates in forward._asdict().items()
        )
    )
    return Constants(view=2.0e-6, cache=1.0e7, large=2**60, kept=1.6e-12, forward=forward, backward=twice)


CUDA_DEFAULTS: Mapping[Format, Constants] = {
    "contiguous": _cuda(convolution=7.0e-14, depthwise=2.0e-13),
    "channels_last": _cuda(convolution=1.0e-13, depthwise=6.0e-13),
}
"""Float32 without TF32 on a GPU like the H100, estimated from published figures and not measured.

They assume 2e13 multiply-adds and 2.5e12 bytes per second and 5 to 20 microseconds per call. The allocator keeps freed
memory, so that no tensor counts as large.
"""
