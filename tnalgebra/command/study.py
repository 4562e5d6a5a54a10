"""Study how far the kernels of a network can be compressed, and what that does to its accuracy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from ..decompositions import all_cuts
from ..fitting import read_size
from ..model import Images
from ..studies import Study, StudyOptions, study
from .build import require_packages
from .settings import TestSettings, describe_images


@dataclass(frozen=True, kw_only=True)
class StudySettings(TestSettings):
    """Settings of a study."""

    rewrite: tuple[str, ...] = tuple(cut.name for cut in all_cuts("out in kh kw"))
    """decompositions, each in quotes: cuts ("A then B" cuts twice), names (see tnalgebra rules), notation"""
    size: tuple[str, ...] = ("keep 0.75", "keep 0.5", "keep 0.25", "keep 0.125")
    """sizes, each in quotes: keep 0.5, r=8, a=8 b=4, parameters 0.5 (of all); each rewrite takes those that suit it"""
    scope: tuple[str, ...] = ("all",)
    """what one test compresses: all (the layers together), each (one layer at a time), or globs of layers' names"""
    metric: Literal["frobenius", "input", "output"] = "frobenius"
    """the norm of fits: of the kernel; of the layer's output; or layer after layer, to the output it had"""
    curves: Literal["error", "divergence"] = "error"
    """what ranks cost under a budget: the error of the layer's fit, or the divergence of the network's answers"""
    components: Literal["refit", "drop"] = "refit"
    """at several ranks: a fit for each, or the largest components of the fit at the largest rank"""
    report_metric: bool = False
    """report the errors of the layers' outputs as well, for cuts and for fits in the Frobenius norm"""
    dtype: Literal["float32", "float64", "bfloat16", "float16"] = "float32"
    """the type in which the network is tested; kernels are cut and fitted in float64"""
    output: Path = Path("runs/study")
    """the folder for the rows (results.jsonl) and the figures (PNG and SVG)"""


def run_study(
    settings: StudySettings,
    *,
    prepare: Callable[[nn.Module, Images], object] | None = None,
    facts: Mapping[str, object] | None = None,
) -> Study:
    """Study a network: a row for each rewrite, size and scope; its table is printed.

    Args:
        settings: which network, on which images, how it is compressed.
        prepare: called with the network and the training images before its first test: trains it, for instance.
        facts: settings of `prepare`, which are kept in the folder and compared when it is opened again.

    Returns:
        The rows, see `tnalgebra.study`.

    Raises:
        TnalgebraError: a setting, the data or the weights are not what they should be; see `tnalgebra.study`.
    """
    needs_images = settings.metric != "frobenius" or settings.curves == "divergence" or settings.report_metric
    settings.check(**{"calibrate": 1} if needs_images else {})
    for size in settings.size:
        read_size(size)
    require_packages({"tqdm": "study"}, "a study")
    images = settings.images("test")
    print(describe_images(images))
    model = settings.network(images, trained_later=prepare is not None)
    training = settings.images("train") if prepare is not None or settings.recalibrate_bn or needs_images else images
    shared = ("scope", "skip", "metric", "report_metric", "curves", "components", "batch_size", "seed", "untrained")
    options: dict[str, Any] = {name: getattr(settings, name) for name in shared}
    options |= {
        "device": settings.chosen_device(),
        "calibration": settings.calibration(training) if needs_images else None,
        "recalibration": settings.recalibration(training) if settings.recalibrate_bn else None,
        "recalibration_shift": settings.recalibrate_shift,
        "dtype": getattr(torch, settings.dtype),
        "name": settings.model,
        "prepare": None if prepare is None else lambda network: prepare(network, training),
        "facts": facts or {},
    }
    result = study(
        model,
        images,
        settings.output,
        rewrites=settings.rewrite,
        sizes=settings.size,
        options=StudyOptions(**options),
    )
    print(f"\n{result}\n\nrows and figures: {settings.output}/")
    return result
