"""How far can the kernels of a network be compressed, and what does that do to its accuracy?

This is the study of Singh, Jahromi and Orus (arXiv 2403.14379, section 4): every kernel is truncated across a cut to a
fraction of its singular values, or decomposed by another rule, and contracted back. The network is then tested without
further training.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._tables import Table, Tabular
from ..errors import DataError, StudyError, TnalgebraError
from ..fitting import Size, read_size
from ..model import Images, batch_norms, check_classes, convert, load_images, recalibrate_batch_norm
from ..nn import kernel_layers
from ..rewriting import Fit, Rule
from .accuracy import accuracy, shuffled_batches
from .compress import Compressed, compress_rows
from .figures import draw_kernels, draw_results
from .kernels import Workbench, layers_of
from .options import StudyOptions
from .plan import Work, plan_rows
from .rewrites import Rewrite
from .store import BASELINE, Key, Row, Store, config_hash, digest_state, read_rows, table

REDRAW_SECONDS = 60
"""Seconds after which the figures are drawn again while rows come in."""

CHANCE = 0.05
"""A network looks trained if guessing would reach its accuracy with a smaller probability than this."""

REFUSALS = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, AssertionError)
"""What a network's `forward` raises on input that it is not made for; torch's own layers raise the first two."""


@dataclass(frozen=True, repr=False)
class Study(Tabular):
    """The result of a study: its folder, and the rows that were asked for, in their order.

    `print` shows the rows as a table. The rows of single layers that only the scope "each" asked for are left out if
    there are others. `to_pandas()` has all rows; in it, `layers` holds dictionaries.

    Attributes:
        folder: where the rows, the config and the figures are.
        rows: a dictionary for each row.
        scope: the scopes that were asked for.
    """

    folder: Path
    rows: list[Row]
    scope: tuple[str, ...]

    def _summary(self) -> str:
        return f"{len(self.rows)} rows in {self.folder}"

    def _table(self) -> Table:
        return table(self.rows, scopes=self.scope)

    def records(self) -> list[Row]:
        """The rows."""
        return self.rows


def study(
    model: nn.Module,
    data: Images | str | Path,
    output: str | Path,
    *,
    rewrites: Sequence[str | Rule | Fit],
    sizes: Sequence[Size | str],
    options: StudyOptions | None = None,
) -> Study:
    """Compress the kernels of a network in many ways, and test its accuracy for each.

    There is a row for each rewrite, size and scope: the kernels are rewritten, contracted back, and the network is
    tested without training. A row is written as soon as it is finished. Called again with the same folder, the study
    continues where it was, and more rewrites, sizes and scopes can be added. `model` itself stays as it is. An image
    counts as a wrong answer if a compressed network gives it a logit that is not finite.

    Args:
        model: a trained network that classifies images, shape (n, channels, height, width), by logits, shape
            (n, classes).
        data: test images; or the name of a data set or a folder, whose test images are read.
        output: the folder for the rows, the config and the figures.
        rewrites: cuts such as "out kh | in kw", or those of `all_cuts`; "A then B", which cuts a kernel twice and
            contracts it back in between; names of decompositions, such as "cp" (`rules()` lists them); rules in the
            notation; rules; fits, which stand for their rules. Layers for whose labels and sizes a rewrite does not
            exist are left out: a cut is for the layers that have exactly its labels, so that one of out in kh kw is
            for 2-d convolutions. A cut whose sides or labels are in another order is the same cut, and rows keep its
            first wording.
        sizes: whatever `tn.fitting.read_size` reads, also as text; each rewrite takes those that suit it.
            "keep 0.5" and "error 0.01" need bonds with singular values, which cuts and trees have. 8, or a mapping of
            bonds, gives ranks; a rewrite takes those of its own bonds, and a bond whose full rank is smaller gets
            that. "parameters 0.5" and "multiply-adds 0.5" are budgets of the whole network, for the scope "all": the
            error curves of all layers decide what each layer gets, and layers may stay as they are. Multiply-adds are
            counted for one image, in the factored form of each layer.
        options: all other choices; by default `StudyOptions()`.

    Returns:
        The folder and the rows that were asked for. In a row, accuracy is top-1, 0 to 1;
        mean_squared_relative_error is the mean of (||K - K~||_F / ||K||_F)^2 over the rewritten layers;
        parameters_kept counts the whole network, with the factors in place of the rewritten kernels, relative to the
        dense network. Rows under a budget also have multiply_adds_kept, above 1 where the budget raises them.

    Raises:
        RuleError, NotationError, RankError: a rewrite or a size cannot be read, which is found before anything runs; a
            budget cannot be met.
        ValuesError: a parameter or buffer is not finite; it is named before anything is written.
        DataError: the images do not fit the network.
        LayerError: a weight is computed from other parameters.
        StudyError: the network looks untrained, and the options do not allow that; a scope matches no layer; the
            outputs of the untouched network are not finite; the folder is in use, has another config, or cannot be
            written.

    Example:
        >>> print(tn.study(model, "digits", "runs/study", rewrites=["out kh | in kw"], sizes=["keep 0.5", "keep 0.25"]))
    """
    options, folder = options or StudyOptions(), Path(output)
    images = data if isinstance(data, Images) else load_images(str(data), "test")
    asked = [Rewrite.read(rewrite) for rewrite in rewrites], [read_size(size) for size in sizes]
    layers = layers_of(model, options.skip)
    works = plan_rows(*asked, layers, options, stored=read_rows(folder))
    network = deepcopy(model).to(options.device).eval()
    check_classes(images, _outputs(network, images, options))
    name = options.name or type(model).__name__
    with Store(folder, _config(name, images, options)).opened() as store:
        if options.prepare is not None:
            options.prepare(network)
            network.to(options.device).eval()
            layers = layers_of(network, options.skip)
        store.settle(weights=digest_state(network)[:16])
        draw_kernels(folder, store.rows, [task.key.fields for work in works for task in work.tasks], layers)
        bench = Workbench(network, {layer.name: layer for layer in layers}, options, one_image(images, options))
        rows = _Runner(bench, images, store).run(works)
        draw_results(folder, store.rows, layers)
    return Study(folder, rows, options.scope)


def _config(name: str, images: Images, options: StudyOptions) -> dict[str, Any]:
    training = options.recalibration
    return {
        "model": name,
        "data": images.source,
        "images": images.fingerprint,
        "mean": list(images.mean),
        "std": list(images.std),
        "skip": list(options.skip),
        "recalibration": None if training is None else [training.fingerprint, options.recalibration_shift],
        "batch_size": options.batch_size,
        "dtype": str(options.dtype).removeprefix("torch."),
        "device": torch.device(options.device).type,
        "seed": options.seed,
        **options.facts,
    }


def _outputs(network: nn.Module, images: Images, options: StudyOptions) -> int:
    """The number of logits that the network gives for an image."""
    image = one_image(images, options).to(options.dtype)
    try:
        with _in_dtype(network, options.dtype), torch.inference_mode():
            logits = network(image)
    except REFUSALS as error:
        raise DataError(
            "the network does not accept these images",
            network=type(network).__name__,
            images=f"{images.source}: (channels, height, width) = {tuple(images.pixels.shape[1:])}",
            because=f"{type(error).__name__}: {error}",
        ) from error
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        gives = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        fact = "the network does not return logits of shape (images, classes)"
        raise DataError(fact, network=type(network).__name__, gives=f"{gives} for one image")
    return logits.shape[1]


@contextmanager
def _in_dtype(network: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Give the network copies of its tensors in another type; at the end it has the original ones again."""
    parameters = [(parameter, parameter.data) for parameter in network.parameters()]
    buffers = [(module._buffers, *item) for module in network.modules() for item in module._buffers.items()]

    def convert(tensor: Tensor) -> Tensor:
        return tensor.to(dtype if tensor.is_floating_point() else tensor.dtype, copy=True)

    try:
        for parameter, data in parameters:
            parameter.data = convert(data)
        for holder, name, buffer in buffers:
            holder[name] = None if buffer is None else convert(buffer)
        yield
    finally:
        for parameter, data in parameters:
            parameter.data = data
        for holder, name, buffer in buffers:
            holder[name] = buffer


class _Runner:
    """Tests the network with some kernels replaced, row by row."""

    def __init__(self, bench: Workbench, images: Images, store: Store) -> None:
        self.bench = bench
        self.images = images
        self.store = store
        self.modules = kernel_layers(bench.model)
        self.done = {Key.of(row): row for row in store.rows}

    def run(self, works: Sequence[Work]) -> list[Row]:
        """Every row that is asked for; those that the store has are not computed again."""
        from tqdm import tqdm

        drawn = started = time.monotonic()
        keys = [BASELINE, *(task.key for work in works for task in work.tasks)]
        with tqdm(
            total=len(keys),
            initial=sum(key in self.done for key in keys),
            unit="row",
            disable=None if self.bench.options.progress else True,
        ) as bar:
            if BASELINE not in self.done:
                bar.set_description("as it is")
                self._finish(BASELINE, {}, started)
                bar.update()
            for work in works:
                todo = [task for task in work.tasks if task.key not in self.done]
                bar.set_description(work.rewrite.text)
                started = time.monotonic()
                for task, kernels in compress_rows(work, todo, self.bench):
                    self._finish(task.key, kernels, started)
                    bar.update()
                    if time.monotonic() - drawn > REDRAW_SECONDS:
                        draw_results(self.store.folder, self.store.rows, list(self.bench.layers.values()))
                        drawn = time.monotonic()
                    started = time.monotonic()
        return [self.done[key] for key in keys]

    def _finish(self, key: Key, kernels: Mapping[str, Compressed], started: float) -> None:
        top1 = self._accuracy(kernels)
        if key == BASELINE:
            self._check_trained(top1)
        before = self.done[BASELINE]["accuracy"] if key != BASELINE else top1
        whole = sum(parameter.numel() for parameter in self.bench.model.parameters())
        saved = sum(self.bench.layers[name].weight.numel() - one.details["parameters"] for name, one in kernels.items())
        errors = [one.details["relative_error"] ** 2 for one in kernels.values()]
        row: Row = {
            "model": self.store.config["model"],
            **key.fields,
            "accuracy": top1,
            "accuracy_change": top1 - before,
            "images": len(self.images),
            "mean_squared_relative_error": math.fsum(errors) / len(errors) if errors else 0.0,
            "parameters_kept": (whole - saved) / whole,
            **self._multiply_adds(key, kernels),
            "layers": {name: dict(one.details) for name, one in kernels.items()},
            "config": config_hash(self.store.config),
            "version": version("tnalgebra"),
            "seconds": round(time.monotonic() - started, 3),
        }
        self.store.append(row)
        self.done[key] = row

    def _multiply_adds(self, key: Key, kernels: Mapping[str, Compressed]) -> Row:
        """`multiply_adds_kept` of a row under a budget: of all kernel layers, for one image, in factored form."""
        if key.budget is None:
            return {}
        quick = {"starts": 1, "sweeps": 0}  # the cores do not matter, only their shapes
        factored = {name: (one.rule, {"size": one.details["ranks"], **quick}) for name, one in kernels.items()}
        try:
            _, report = convert(
                self.bench.model,
                {**factored, "*": None},
                example=self.bench.example,
                inplace=False,
                allow_larger=True,
                candidates="factored",
                progress=False,
            )
        except TnalgebraError:  # a network that cannot be converted has a row all the same
            return {}
        if not report.multiply_adds or report.multiply_adds_after is None or {*report.converted} != {*kernels}:
            return {}
        return {"multiply_adds_kept": report.multiply_adds_after / report.multiply_adds}

    def _check_trained(self, top1: float) -> None:
        """Refuse a network that looks untrained, if the options do not allow it.

        A network whose batch-norm statistics have been updated looks trained. Of others the accuracy decides: the
        binomial distribution gives the probability that guessing reaches it, if a guess is right as often as the most
        frequent class.

        Raises:
            StudyError: the network looks untrained.
        """
        from scipy.stats import binom

        model, count = self.bench.model, len(self.images)
        options = self.bench.options
        trained = options.prepare is not None or any(_has_statistics(module) for module in batch_norms(model))
        if options.untrained or trained:
            return
        frequent = float(self.images.labels.bincount().max()) / count
        probability = float(binom.sf(round(top1 * count) - 1, count, frequent))
        if probability > CHANCE:
            raise StudyError(
                f"{type(model).__name__} looks untrained: its accuracy is that of guessing",
                accuracy=f"{top1:.4f} of {count} images; the most frequent class has {frequent:.4f} of them",
                probability=f"{probability:.2g}, that guessing is as good or better",
                fix="trained weights; or StudyOptions(untrained=True), on the command line --untrained",
            )

    def _accuracy(self, kernels: Mapping[str, Compressed]) -> float:
        network, options = self.bench.model, self.bench.options
        tested: dict[str, Any] = {name: getattr(options, name) for name in ("batch_size", "dtype", "device")}
        with _in_dtype(network, options.dtype):
            with torch.no_grad():
                for name, kernel in kernels.items():
                    self.modules[name].weight.copy_(kernel.weight)
            if options.recalibration is not None and batch_norms(network):
                batches = shuffled_batches(options.recalibration, max_shift=options.recalibration_shift, **tested)
                recalibrate_batch_norm(network, batches)
            # a truncation may make the network overflow, and the study continues then; the untouched one may not
            return accuracy(network, self.images, not_finite="wrong" if kernels else "error", **tested)


def one_image(images: Images, options: StudyOptions) -> Tensor:
    """One of the images, normalised, in float32, on the device: shape (1, channels, height, width)."""
    pixels, _ = next(iter(images.subset(1, seed=0).batches(options.batch_size, device=options.device)))
    return pixels


def _has_statistics(module: nn.Module) -> bool:
    """Whether a batch normalisation has running statistics other than those it was made with."""
    mean, variance = getattr(module, "running_mean", None), getattr(module, "running_var", None)
    return mean is not None and variance is not None and bool((mean != 0).any() or (variance != 1).any())
