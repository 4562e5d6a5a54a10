"""The options of a study: how it fits kernels and how it tests the network."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

import torch
from torch import nn

from ..errors import StudyError
from ..model import Curves, Images, MetricName
from ..workers import TIME_LIMIT, Scheduler, check_scheduler

Components: TypeAlias = Literal["refit", "drop"]
"""What is done at a smaller rank: "refit" fits again, "drop" drops components of the fit at the largest rank."""


@dataclass(frozen=True, kw_only=True, eq=False)
class StudyOptions:
    """The options of a study beside its rewrites and sizes.

    Raises:
        StudyError: an option has a value that it cannot have, the device does not exist, or the shift has no use.

    Example:
        >>> tn.StudyOptions(scope=("all", "each"), skip=("first", "linear"), seed=(0, 1))
    """

    scope: tuple[str, ...] = ("all",)
    """Which layers one row rewrites: "all" (all together), "each" (a row for each layer), or globs of layers' names."""
    skip: tuple[str, ...] = ("first",)
    """Layers that stay as they are: globs of names, "first" (the first convolution), "linear" (all linear layers)."""
    metric: MetricName = "frobenius"
    """The norm that fits make small; cuts to a fraction always use "frobenius", the norm of the kernel. "input": the
    expected error of the layer's output over the calibration images. "output": the layers are fitted in the order in
    which they run, each to the output that it has in the untouched network, from the inputs that it gets by then."""
    report_metric: bool = False
    """Whether cuts, and fits in the Frobenius norm, report their error in the input metric too, as `output_error` in
    `layers`. Rows with it are distinct from rows without it; their accuracies are equal."""
    curves: Curves = "error"
    """What a budget makes small. "error": the squared relative errors of the fits, in the metric ("input" where the
    metric is "output"). "divergence": the mean Kullback-Leibler divergence, in nats, of the network's answers to the
    calibration images when one layer is rewritten."""
    calibration: Images | None = None
    """Images for metrics and divergences: training images, not test images. Their labels are not used."""
    components: Components = "refit"
    """At several ranks, "refit" makes a fit for each. "drop" fits once, at the largest rank of each bond, and then
    keeps the components of largest norm; its rows say "drop from r=64"."""
    recalibration: Images | None = None
    """Training images on which the batch-norm statistics are estimated again before each test; None: they stay. The
    untouched network is recalibrated too, so that `accuracy_change` compares like with like."""
    recalibration_shift: int = 0
    """The most pixels by which these images are moved at random: as in the training; see `shuffled_batches`."""
    batch_size: int = 128
    """The most images at a time."""
    memory: int = 2 * 2**30
    """The most bytes that are kept between tests. The layers before the first rewritten one give the same in all tests;
    what they give for the test images is kept where there is room, and where there is not, up to eight rows are tested
    in one pass, which computes it once, and are written together. It changes no result."""
    device: str = "cpu"
    """Where the network is tested."""
    dtype: torch.dtype = torch.float32
    """The type in which the network is tested. Kernels are always fitted in float64."""
    seed: int | tuple[int, ...] = 0
    """The seed of fits; of several, each has its rows. Cuts do not depend on it, and have one row."""
    untrained: bool = False
    """Allow a network that looks untrained. Otherwise `study` refuses a network whose accuracy is that of guessing,
    unless its batch-norm statistics show a training, or `prepare` has trained it."""
    prepare: Callable[[str, nn.Module], None] | None = None
    """A function that is called with the name of each model and the copy of it that is studied, for instance to train
    it. By then everything else has been checked, and the folder is locked."""
    facts: Mapping[str, object] = field(default_factory=dict)
    """Further settings for the folder's config, such as those of `prepare`. A later call must have the same."""
    scheduler: Scheduler | None = None
    """Where rows are made: None, in this process; "local" or "local:4", worker processes of this machine; the address
    of a Dask scheduler, "tcp://host:8786"; or a client of `distributed`. The rows are the same."""
    time_limit: float = TIME_LIMIT
    """On workers: seconds that rows which are tested together may take, usually one. A worker that takes longer is
    started again, and others make the row."""
    progress: bool = True
    """Show a progress bar where standard error is a terminal."""

    def __post_init__(self) -> None:
        for name in ("scope", "skip"):
            patterns = getattr(self, name)
            object.__setattr__(self, name, (patterns,) if isinstance(patterns, str) else tuple(patterns))
        if not self.seeds:
            raise StudyError("the study has no seed", fix="seed=0")
        for name, known in (("metric", MetricName), ("curves", Curves), ("components", Components)):
            if getattr(self, name) not in get_args(known):
                fix = " or ".join(map(repr, get_args(known)))
                raise StudyError(f"{name} is {getattr(self, name)!r}", fix=fix)
        if self.memory < 0:
            raise StudyError(f"memory is {self.memory} bytes", fix="0 or more")
        shift = self.recalibration_shift
        if shift < 0 or (shift and self.recalibration is None):
            because = "moves nothing without recalibration images" if shift > 0 else "is not a number of pixels"
            raise StudyError(f"recalibration_shift={shift} {because}", fix="leave it out")
        if not isinstance(self.dtype, torch.dtype) or not self.dtype.is_floating_point:
            raise StudyError(f"dtype is {self.dtype!r}", fix="a floating type, such as torch.float32")
        check_scheduler(self.scheduler)
        if not self.time_limit > 0:
            raise StudyError(f"time_limit is {self.time_limit} seconds", fix="more than 0")
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:
            fact, because = f"the device {self.device!r} does not exist", str(error).strip().partition("\n")[0]
            raise StudyError(fact, because=because, fix="cpu") from error

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds, each once."""
        return (self.seed,) if isinstance(self.seed, int) else tuple(dict.fromkeys(self.seed))
