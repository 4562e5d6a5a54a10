"""How far can the kernels of a network be compressed, and what does that do to its accuracy: `study`.

The study of Singh, Jahromi and Orus (arXiv 2403.14379, section 4): every kernel is truncated across a cut to a
fraction of its singular values, or decomposed by another rule at some ranks, contracted back, and the network is tested
without training.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor, nn

from ..errors import DataError, StudyError, explain
from ..fitting import KeepFraction
from ..model import Curves, Images, MetricName, check_classes, default_normalisation, load_images
from ..nn import kernel_layers
from ..rewriting import Rule
from .accuracy import accuracy, recalibrate_batch_norm
from .cuts import fractions_of, treatment_of
from .figures import draw_kernels, draw_results
from .kernels import Layer, Treated, Workbench
from .plan import Plan, Wishes, planned
from .rewrites import Components, budgets_of, rewrite_of, sweep_of
from .store import BASELINE, Key, Row, Store, config_hash, table

if TYPE_CHECKING:
    import pandas as pd

REDRAW_SECONDS = 60
"""How often figures are drawn anew while rows come in."""

REFUSALS = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError)
"""What a network's `forward` raises on input it was not made for; torch's own layers raise the first two."""


@dataclass(frozen=True)
class Study:
    """What a study found: its folder and its rows, in the order in which they were asked for."""

    folder: Path
    rows: list[Row]
    scope: tuple[str, ...]
    """As asked for."""

    def table(self) -> str:
        """The rows as aligned text; those of single layers that only "each" asked for are left out beside others."""
        return table(self.rows, scopes=self.scope)

    def to_pandas(self) -> pd.DataFrame:
        """The rows, one a line; `layers` holds dictionaries."""
        import pandas as pd

        return pd.DataFrame(self.rows)


def study(
    model: nn.Module,
    data: Images | str | Path,
    *,
    output: str | Path,
    cuts: str | Rule | Sequence[str | Rule] = (),
    keep: float | KeepFraction | Sequence[float | KeepFraction] = (),
    rewrites: str | Rule | Sequence[str | Rule] = (),
    ranks: str | Sequence[str] | Mapping[str, int | Sequence[int]] = (),
    budget: float | Sequence[float] = (),
    metric: MetricName = "frobenius",
    curves: Curves = "error",
    calibration: Images | None = None,
    components: Components = "refit",
    report_metric: bool = False,
    scope: str | Sequence[str] = "all",
    skip: str | Sequence[str] = "first",
    limit: int | None = None,
    recalibrate_bn: bool = False,
    recalibrate_shift: int = 0,
    training_data: Images | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    batch_size: int = 128,
    device: str = "cpu",
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
    name: str | None = None,
    prepare: Callable[[nn.Module], None] | None = None,
    facts: Mapping[str, object] | None = None,
    progress: bool = True,
) -> Study:
    """Rewrite kernels, contract them back, test the network; a row for each rewrite, size and scope.

    Kernels are truncated across `cuts` to fractions `keep` of their singular values, or fitted by `rewrites` at
    given `ranks` or at ranks chosen for all layers together under a `budget`.

    A row is written as soon as it is finished; called again with the same folder, the study goes on where it was,
    and more rewrites, sizes and scopes can be added. `model` itself stays as it is. An image for which a compressed
    network gives a logit that is not finite counts as a wrong answer.

    Args:
        model: classifies images, (n, channels, height, width) -> logits (n, classes).
        data: test images; or the name of a data set or a folder, whose test images are read.
        cuts: in notation, "out kh | in kw", or those of `all_cuts`; "A then B" cuts a kernel twice, contracted back
            in between. A cut is for the layers that have just its labels: `out in kh kw` are 2-d convolutions. A cut
            whose sides or labels stand in another order is the same cut: rows keep the first wording.
        keep: fractions of the singular values of a kernel across a cut, numbers in (0, 1]; see `KeepFraction`.
        rewrites: names of decompositions ("cp"; `rules()` lists them), rules in the notation, cuts, or rules. A layer
            is left alone if there is none for its labels and sizes. Rows have the name, or the text, and in
            `equations` what it is for the layers touched.
        ranks: bond -> rank, or ranks: {"r": [16, 32]}, or as text "r=16,32". Several bonds are swept together: the
            i-th row takes the i-th rank of each, a single rank is for all rows. A rewrite takes those of its own
            bonds. Where a bond of a layer needs fewer for an exact fit (in trees, where that is known), it gets
            so many; a row's `layers` tell.
        budget: parts of the parameters of the whole network that are kept, in (0, 1], of the scope "all" alone. What
            a layer gets follows from the error curves of all of them; layers may stay as they are.
        metric: the norm of the fits. "frobenius": of the kernel. "input": the expected error of the layer's output,
            its inputs being those of the calibration images. "output": the layers are fitted in the order they run,
            each to the output of the untouched network, from the inputs that the layers before leave it.
        curves: what a layer's ranks cost under a budget: "error", the squared relative error of its fit in the metric
            (of "output": in that of the inputs); "divergence", the mean Kullback-Leibler divergence of the network's
            answers to the calibration images when this layer alone is rewritten.
        calibration: images for these, of the training, not of the test. Their labels are not looked at.
        components: at smaller ranks "refit" fits anew. "drop" fits once, at the largest of the ranks given for each
            bond, and keeps the components of largest norm; rows say "drop from r=64".
        output: the folder for rows, config and figures.
        report_metric: of what is cut or fitted in the Frobenius norm, report the error in the input metric too, as
            `output_error` of `layers`. These rows are others than those without; accuracies are the same.
        scope: "all" (the layers together), "each" (one layer at a time), or a glob of layers' names.
        skip: layers left alone: globs of names, "first" for the first convolution, "linear" for all linear layers;
            empty for none.
        limit: test on so many images only, equally many of each class, chosen by `seed`.
        recalibrate_bn: estimate batch-norm statistics anew on `training_data` before each test, after truncation. The
            untouched network is recalibrated too, so that `accuracy_change` compares like with like.
        recalibrate_shift: pixels by which these images are moved at random: that of the training's augmentation; 4
            for the published CIFAR ResNets. See `recalibrate_batch_norm`.
        mean, std: of each channel, after scaling to [0, 1]; by default those of `default_normalisation`.
        dtype: in which the network is tested. Truncation is in float64, of the weights as they are given.
        seed: of the choice of images under `limit`, and of fits.
        name: of the model, in rows; by default its class.
        prepare: called with a copy of `model` that is studied in its place: trains it, for instance. Everything
            else has been checked by then, and the folder is locked.
        facts: further settings for the folder's config, which are compared when it is opened again: those of
            `prepare`.
        progress: show a progress bar where standard error is a terminal.

    Returns:
        The folder and the rows asked for. accuracy is top-1, 0 to 1; mean_squared_relative_error is the mean of
        (||K - K~||_F / ||K||_F)^2 over the layers touched; parameters_kept counts the whole model, touched kernels
        as their factors, relative to the dense model.

    Raises:
        RuleError, NotationError, RankError: a cut, a rewrite, a fraction or a rank is none, before anything runs; a
            budget cannot be met.
        ValuesError: a parameter or buffer is not finite (it is named), before anything is written.
        DataError: the images do not fit the network.
        LayerError: a weight is computed from other parameters.
        StudyError: nothing is in the scope; the untouched network's outputs are not finite; the folder is in use, of
            another config, or cannot be written.
    """
    scope, skip = ((given,) if isinstance(given, str) else tuple(given) for given in (scope, skip))
    for setting, value, known in (
        ("metric", metric, MetricName),
        ("curves", curves, Curves),
        ("components", components, Components),
    ):
        if value not in get_args(known):
            raise StudyError(explain(f"{setting} is {value!r}", fix=" or ".join(map(repr, get_args(known)))))
    wishes = Wishes(
        treatments=[treatment_of(each) for each in _several(cuts)],
        keep=fractions_of(keep),
        rewrites=list(
            {each.text: each for each in (rewrite_of(given, metric) for given in _several(rewrites))}.values()
        ),
        sweep=sweep_of(ranks),
        budgets=budgets_of(budget),
        metric=metric,
        components=components,
        curves=curves,
        calibration=None if calibration is None else f"{len(calibration)} images {calibration.fingerprint[:8]}",
        reported="input" if report_metric else None,
        scope=scope,
        skip=skip,
    )
    images = data if isinstance(data, Images) else load_images(str(data), "test")
    if limit is not None:
        images = images.subset(limit, seed=seed)
    if recalibrate_bn and training_data is None:
        raise StudyError(explain("recalibrate_bn needs training images", fix="training_data=..."))
    if recalibrate_shift < 0 or (recalibrate_shift and not recalibrate_bn):
        because = "moves nothing without recalibrate_bn" if recalibrate_shift > 0 else "is no number of pixels"
        raise StudyError(explain(f"recalibrate_shift={recalibrate_shift} {because}", fix="leave it out"))
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise StudyError(explain(f"dtype is {dtype!r}", fix="a floating one of torch's, such as torch.float32"))
    usual_mean, usual_std = default_normalisation(images)
    settings: dict[str, Any] = {
        "mean": list(mean or usual_mean),
        "std": list(std or usual_std),
        "batch_size": batch_size,
        "dtype": dtype,
        "device": _checked_device(device),
    }
    planned(model, wishes)
    check_classes(images, _outputs(_tested(model, settings), images, settings))
    config = {
        "model": name or type(model).__name__,
        "data": images.source,
        "images": images.fingerprint,
        "skip": list(skip),
        "limit": limit,
        "recalibrate_bn": [training_data.fingerprint, recalibrate_shift] if recalibrate_bn and training_data else False,
        **settings,
        "dtype": str(dtype).removeprefix("torch."),
        "device": torch.device(device).type,
        "seed": seed,
        **(facts or {}),
    }
    with Store(Path(output), config).opened() as store:
        if prepare is not None:
            model = deepcopy(model)
            prepare(model)
        plan = planned(model, wishes, rows=store.rows)
        store.settle(weights=_fingerprint(model))
        draw_kernels(store.folder, store.rows, plan.layers, plan.cuts, plan.equations)
        recalibrate = None
        if recalibrate_bn and training_data is not None:
            recalibrate = partial(recalibrate_batch_norm, images=training_data, max_shift=recalibrate_shift, **settings)
        dense = deepcopy(model).to(settings["device"]).eval()
        image_settings = {key: settings[key] for key in ("mean", "std", "batch_size", "device")}
        bench = Workbench(dense, calibration, image_settings, dtype, seed)
        runner = _Runner(_tested(model, settings), images, recalibrate, settings, store)
        tested = runner.run(plan, bench, progress=progress)
        draw_results(store.folder, store.rows, plan.layers)
    return Study(store.folder, tested, scope)


def _several(given: str | Rule | Sequence[str | Rule]) -> Sequence[str | Rule]:
    return (given,) if isinstance(given, str | Rule) else given


def _checked_device(device: str) -> str:
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        because = str(error).strip().partition("\n")[0]
        raise StudyError(explain(f"there is no device {device!r} here", because=because, fix="cpu")) from error
    return device


def _tested(model: nn.Module, settings: Mapping[str, Any]) -> nn.Module:
    """A copy to be tested: on the device, in the dtype, in evaluation mode."""
    return deepcopy(model).to(device=settings["device"], dtype=settings["dtype"]).eval()


def _fingerprint(model: nn.Module) -> str:
    digest = hashlib.sha256()
    for name, tensor in model.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def _outputs(model: nn.Module, images: Images, settings: Mapping[str, Any]) -> int:
    """How many logits the network gives for an image."""
    pixels, _ = next(iter(images.subset(1, seed=0).batches(**settings)))
    try:
        with torch.inference_mode():
            logits = model(pixels)
    except REFUSALS as error:
        raise DataError(
            explain(
                "the network does not take these images",
                network=type(model).__name__,
                images=f"{images.source}: (channels, height, width) = {tuple(images.pixels.shape[1:])}",
                because=f"{type(error).__name__}: {error}",
            )
        ) from error
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        given_instead = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        raise DataError(
            explain(
                "the network gives no logits of shape (images, classes)",
                network=type(model).__name__,
                gives=f"{given_instead} for one image",
            )
        )
    return logits.shape[1]


class _Runner:
    """Tests the network with some weights replaced, a row at a time."""

    def __init__(
        self,
        model: nn.Module,
        images: Images,
        recalibrate: Callable[[nn.Module], None] | None,
        settings: Mapping[str, Any],
        store: Store,
    ) -> None:
        self.model = model
        self.images = images
        self.recalibrate = recalibrate
        self.settings = settings
        self.store = store
        self.modules = kernel_layers(model)
        self.state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        self.parameters = sum(parameter.numel() for parameter in model.parameters())
        self.done = {Key.of(row): row for row in store.rows}

    def run(self, plan: Plan, bench: Workbench, *, progress: bool) -> list[Row]:
        """Every row asked for; those the store has are not computed again."""
        from tqdm import tqdm

        drawn = started = time.monotonic()
        keys = [BASELINE, *(asked.key for asked in plan.rows)]
        with tqdm(
            total=len(keys),
            initial=sum(key in self.done for key in keys),
            unit="row",
            disable=None if progress else True,
        ) as bar:
            if BASELINE not in self.done:
                bar.set_description("as it is")
                self._finish(BASELINE, {}, (), started)
                bar.update()
            for work, rows in plan.works:
                todo = [asked for asked in rows if asked.key not in self.done]
                bar.set_description(work.text)
                started = time.monotonic()
                for asked, kernels in work.treated(todo, bench) if todo else ():
                    self._finish(asked.key, kernels, asked.layers, started)
                    bar.update()
                    if time.monotonic() - drawn > REDRAW_SECONDS:
                        draw_results(self.store.folder, self.store.rows, plan.layers)
                        drawn = time.monotonic()
                    started = time.monotonic()
        return [self.done[key] for key in keys]

    def _finish(self, key: Key, kernels: Mapping[str, Treated], layers: Sequence[Layer], started: float) -> None:
        top1 = self._accuracy({name: treated.weight for name, treated in kernels.items()})
        before = self.done[BASELINE]["accuracy"] if key != BASELINE else top1
        dense = {layer.name: layer.weight.numel() for layer in layers}
        saved = sum(dense[name] - treated.details["parameters"] for name, treated in kernels.items())
        errors = [treated.details["relative_error"] ** 2 for treated in kernels.values()]
        row: Row = {
            "model": self.store.config["model"],
            **key.fields,
            "accuracy": top1,
            "accuracy_change": top1 - before,
            "images": len(self.images),
            "mean_squared_relative_error": math.fsum(errors) / len(errors) if errors else 0.0,
            "parameters_kept": (self.parameters - saved) / self.parameters,
            "layers": {name: dict(treated.details) for name, treated in kernels.items()},
            "config": config_hash(self.store.config),
            "version": version("tnalgebra"),
            "seconds": round(time.monotonic() - started, 3),
        }
        self.store.append(row)
        self.done[key] = row

    def _accuracy(self, weights: Mapping[str, Tensor]) -> float:
        try:
            with torch.no_grad():
                for name, weight in weights.items():
                    self.modules[name].weight.copy_(weight)
            if self.recalibrate is not None:
                self.recalibrate(self.model)
            # a truncation may make the network overflow, and a study goes on then; an untouched network may not
            return accuracy(self.model, self.images, not_finite="wrong" if weights else "error", **self.settings)
        finally:
            self.model.load_state_dict(self.state)
