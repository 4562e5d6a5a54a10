"""How a study fits kernels and tests the network: `StudyOptions`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

import torch
from torch import nn

from ..errors import StudyError, explain
from ..model import Curves, Images, MetricName

Components: TypeAlias = Literal["refit", "drop"]
"""What happens at a smaller rank: a fit of its own; or components of the fit at the largest rank are dropped."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StudyOptions:
    """What a study does beside its rewrites and sizes.

    Raises:
        StudyError: a value is not one of those known, the device does not exist, or the shift has no use.
    """

    scope: tuple[str, ...] = ("all",)
    """What one test rewrites: "all" (the layers together), "each" (one layer at a time), globs of layers' names."""
    skip: tuple[str, ...] = ("first",)
    """Layers left alone: globs of names, "first" for the first convolution, "linear" for all linear layers."""
    metric: MetricName = "frobenius"
    """The norm of fits, those of cuts at fractions apart. "frobenius": of the kernel. "input": the expected error of
    the layer's output, its inputs being those of the calibration images. "output": the layers are fitted in the order
    they run, each to the output of the untouched network, from the inputs that the layers before leave it."""
    report_metric: bool = False
    """Report the error in the input metric too, as `output_error` of `layers`, of all that is made in the Frobenius
    norm. These rows are others than those without; accuracies are the same."""
    curves: Curves = "error"
    """What a layer's ranks cost under a budget: "error", the squared relative error of its fit in the metric (of
    "output": in that of the inputs); "divergence", the mean Kullback-Leibler divergence of the network's answers to
    the calibration images when this layer alone is rewritten."""
    calibration: Images | None = None
    """Images for metrics and divergences, of the training, not of the test. Their labels are not looked at."""
    components: Components = "refit"
    """At smaller ranks "refit" fits again. "drop" fits once, at the largest rank given for each bond, and keeps the
    components of largest norm; rows say "drop from r=64"."""
    recalibration: Images | None = None
    """Training images on which batch-norm statistics are estimated again before each test. The untouched network is
    recalibrated too, so that `accuracy_change` compares like with like. None: the statistics stay."""
    recalibration_shift: int = 0
    """Pixels by which these images are moved at random: that of the training's augmentation; see `shuffled_batches`."""
    batch_size: int = 128
    """The most images at a time."""
    device: str = "cpu"
    """Where the network is tested."""
    dtype: torch.dtype = torch.float32
    """In which the network is tested. Fits are in float64, of the weights as they are given."""
    seed: int = 0
    """Of fits."""
    name: str | None = None
    """Of the model, in rows; by default its class."""
    prepare: Callable[[nn.Module], None] | None = None
    """Called with the copy of the model that is studied: trains it, for instance. Everything else has been checked by
    then, and the folder is locked."""
    facts: Mapping[str, object] = field(default_factory=dict)
    """Further settings for the folder's config, which are compared when it is opened again: those of `prepare`."""
    progress: bool = True
    """Show a progress bar where standard error is a terminal."""

    def __post_init__(self) -> None:
        for name in ("scope", "skip"):
            given = getattr(self, name)
            object.__setattr__(self, name, (given,) if isinstance(given, str) else tuple(given))
        for name, known in (("metric", MetricName), ("curves", Curves), ("components", Components)):
            if getattr(self, name) not in get_args(known):
                fix = " or ".join(map(repr, get_args(known)))
                raise StudyError(explain(f"{name} is {getattr(self, name)!r}", fix=fix))
        shift = self.recalibration_shift
        if shift < 0 or (shift and self.recalibration is None):
            because = "moves nothing without recalibration images" if shift > 0 else "is not a number of pixels"
            raise StudyError(explain(f"recalibration_shift={shift} {because}", fix="leave it out"))
        if not isinstance(self.dtype, torch.dtype) or not self.dtype.is_floating_point:
            raise StudyError(explain(f"dtype is {self.dtype!r}", fix="a floating type, such as torch.float32"))
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:
            fact, because = f"the device {self.device!r} does not exist", str(error).strip().partition("\n")[0]
            raise StudyError(explain(fact, because=because, fix="cpu")) from error
