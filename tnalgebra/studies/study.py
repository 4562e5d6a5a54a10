"""How far can the kernels of a network be compressed, and what does that do to its accuracy: `study`.

The study of Singh, Jahromi and Orus (arXiv 2403.14379, section 4): every kernel is truncated across a cut to a
fraction of its singular values, or decomposed by another rule at some ranks, contracted back, and the network is tested
without training.
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
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..errors import DataError, explain
from ..model import Images, batch_norms, check_classes, load_images, recalibrate_batch_norm
from ..nn import kernel_layers
from ..rewriting import Rule
from .accuracy import accuracy, shuffled_batches
from .compress import Compressed, compress_rows
from .figures import draw_kernels, draw_results
from .kernels import Workbench, layers_of
from .options import StudyOptions
from .plan import Size, Work, plan_rows, read_size
from .rewrites import read_rewrite
from .store import BASELINE, Key, Row, Store, config_hash, digest_state, read_rows, table

if TYPE_CHECKING:
    import pandas as pd

REDRAW_SECONDS = 60
"""How often figures are drawn again while rows come in."""

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
    output: str | Path,
    *,
    rewrites: Sequence[str | Rule],
    sizes: Sequence[Size],
    options: StudyOptions | None = None,
) -> Study:
    """Rewrite kernels, contract them back, test the network; a row for each rewrite, size and scope.

    A row is written as soon as it is finished; called again with the same folder, the study continues where it was,
    and more rewrites, sizes and scopes can be added. `model` itself stays as it is. An image for which a compressed
    network gives a logit that is not finite counts as a wrong answer.

    Args:
        model: classifies images, (n, channels, height, width) -> logits (n, classes).
        data: test images; or the name of a data set or a folder, whose test images are read.
        output: the folder for rows, config and figures.
        rewrites: cuts, "out kh | in kw", or those of `all_cuts`; "A then B", which cuts a kernel twice, contracted
            back in between; names of decompositions ("cp"; `rules()` lists them); rules in the notation; rules. A
            layer is left alone if a rewrite does not exist for its labels and sizes: a cut is for the layers that
            have just its labels, `out in kh kw` are 2-d convolutions. A cut whose sides or labels are in another
            order is the same cut: rows keep the first wording.
        sizes: each rewrite takes those that suit it. `KeepFraction(0.5)`, of cuts: of the singular values of a
            kernel. `ParameterBudget(0.5)`: of the parameters of the whole network, of the scope "all" alone; what a
            layer gets follows from the error curves of all of them; layers may stay as they are. An integer, or a
            mapping of bonds to integers: ranks, of which a rewrite takes those of its own bonds. Where a bond of a
            layer needs fewer for an exact fit (in trees, where that is known), it gets that many.
        options: all else; by default `StudyOptions()`.

    Returns:
        The folder and the rows asked for. accuracy is top-1, 0 to 1; mean_squared_relative_error is the mean of
        (||K - K~||_F / ||K||_F)^2 over the layers touched; parameters_kept counts the whole model, touched kernels
        as their factors, relative to the dense model.

    Raises:
        RuleError, NotationError, RankError: a rewrite or a size cannot be read, before anything runs; a budget cannot
            be met.
        ValuesError: a parameter or buffer is not finite (it is named), before anything is written.
        DataError: the images do not fit the network.
        LayerError: a weight is computed from other parameters.
        StudyError: nothing is in the scope; the untouched network's outputs are not finite; the folder is in use, of
            another config, or cannot be written.
    """
    options, folder = options or StudyOptions(), Path(output)
    images = data if isinstance(data, Images) else load_images(str(data), "test")
    given = [read_rewrite(rewrite) for rewrite in rewrites], [read_size(size) for size in sizes]
    layers = layers_of(model, options.skip)
    works = plan_rows(*given, layers, options, stored=read_rows(folder))
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
        bench = Workbench(network, {layer.name: layer for layer in layers}, options)
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
    """How many logits the network gives for an image."""
    one = images.subset(1, seed=0).batches(options.batch_size, dtype=options.dtype, device=options.device)
    pixels, _ = next(iter(one))
    try:
        with _in_dtype(network, options.dtype), torch.inference_mode():
            logits = network(pixels)
    except REFUSALS as error:
        raise DataError(
            explain(
                "the network does not take these images",
                network=type(network).__name__,
                images=f"{images.source}: (channels, height, width) = {tuple(images.pixels.shape[1:])}",
                because=f"{type(error).__name__}: {error}",
            )
        ) from error
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        gives = f"shape {tuple(logits.shape)}" if isinstance(logits, Tensor) else f"a {type(logits).__name__}"
        fact = "the network gives no logits of shape (images, classes)"
        raise DataError(explain(fact, network=type(network).__name__, gives=f"{gives} for one image"))
    return logits.shape[1]


@contextmanager
def _in_dtype(network: nn.Module, dtype: torch.dtype) -> Iterator[None]:
    """Let the network have tensors of another type, to be written to; at the end it has its own back, as they were."""
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
    """Tests the network with some kernels replaced, a row at a time."""

    def __init__(self, bench: Workbench, images: Images, store: Store) -> None:
        self.bench = bench
        self.images = images
        self.store = store
        self.modules = kernel_layers(bench.model)
        self.done = {Key.of(row): row for row in store.rows}

    def run(self, works: Sequence[Work]) -> list[Row]:
        """Every row asked for; those the store has are not computed again."""
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
            "layers": {name: dict(one.details) for name, one in kernels.items()},
            "config": config_hash(self.store.config),
            "version": version("tnalgebra"),
            "seconds": round(time.monotonic() - started, 3),
        }
        self.store.append(row)
        self.done[key] = row

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
            # a truncation may make the network overflow, and a study continues then; an untouched network may not
            return accuracy(network, self.images, not_finite="wrong" if kernels else "error", **tested)
