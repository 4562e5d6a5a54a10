"""Study how far the kernels of a network can be compressed, and what that does to its accuracy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from ..fitting import read_size
from ..model import Images
from ..studies import Study, StudyOptions, study
from .build import require_packages
from .settings import StudySettings, describe_images


def run_study(
    settings: StudySettings,
    *,
    prepare: Callable[[nn.Module, Images], object] | None = None,
    facts: Mapping[str, object] | None = None,
) -> Study:
    """Study networks: a row for each network, rewrite, size, scope and seed; their table is printed.

    Args:
        settings: which networks, on which images, how they are compressed.
        prepare: called with the first network and the training images before the first test: trains it, for instance.
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
    models = {
        name: each.network(images, trained_later=prepare is not None and name == settings.model)
        for name, each in settings.each().items()
    }
    training = settings.images("train") if prepare is not None or settings.recalibrate_bn or needs_images else images

    def prepare_first(name: str, network: nn.Module) -> None:
        if prepare is not None and name == settings.model:
            prepare(network, training)

    shared = (
        "scope",
        "skip",
        "metric",
        "report_metric",
        "curves",
        "components",
        "batch_size",
        "memory",
        "untrained",
        "scheduler",
        "time_limit",
    )
    options: dict[str, Any] = {name: getattr(settings, name) for name in shared}
    options |= {
        "device": settings.chosen_device(),
        "calibration": settings.calibration(training) if needs_images else None,
        "recalibration": settings.recalibration(training) if settings.recalibrate_bn else None,
        "recalibration_shift": settings.recalibrate_shift,
        "dtype": getattr(torch, settings.dtype),
        "seed": settings.seeds or settings.seed,
        "prepare": None if prepare is None else prepare_first,
        "facts": facts or {},
    }
    result = study(
        models,
        images,
        settings.output,
        rewrites=settings.rewrite,
        sizes=settings.size,
        options=StudyOptions(**options),
    )
    print(f"\n{result}\n\nrows and figures: {settings.output}/")
    return result
