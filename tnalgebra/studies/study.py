"""How far can the kernels of a network be compressed, and what does that do to its accuracy?

This is the study of Singh, Jahromi and Orus (arXiv 2403.14379, section 4): every kernel is truncated across a cut to a
fraction of its singular values, or decomposed by another rule, and contracted back. The network is then tested without
further training.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from .._files import write_text
from .._tables import Table, Tabular
from ..errors import DataError, LayerError
from ..fitting import Size, read_size
from ..model import Images, check_classes, load_images
from ..rewriting import Fit, Rule
from .figures import figure_suffix
from .folder import digest_state, locked, read_config, writing
from .kernel_figures import draw_kernels
from .kernels import Layer, check_skip, layers_left
from .options import StudyOptions
from .plan import Task, plan_rows, untouched
from .rewrites import Rewrite
from .row_results import RowTester, in_dtype, one_image
from .rows import Row, table
from .runner import Runner
from .store import CONFIG, ROWS, Store, read_lines, read_rows

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
    model: nn.Module | Mapping[str, nn.Module],
    data: Images | str | Path,
    output: str | Path,
    *,
    rewrites: str | Rule | Fit | Sequence[str | Rule | Fit],
    sizes: Size | str | Sequence[Size | str],
    options: StudyOptions | None = None,
) -> Study:
    """Compress the kernels of networks in many ways, and test the accuracy for each.

    There is a row for each network, rewrite, size, scope, and seed of fits: the kernels are rewritten, contracted back,
    and the network is tested without training. A row is written as soon as it is finished. Called again with the same
    folder, the study continues where it was, and more of each of these can be added. `model` itself stays as it is. An
    image counts as a wrong answer if a compressed network gives it a logit that is not finite.

    Args:
        model: a trained network that classifies images, shape (n, channels, height, width), by logits, shape
            (n, classes); or several by name, all for the same images. In rows, a network without a name has that of
            its class. A rewrite, a scope or a layer to skip need not exist for all of them.
        data: test images, `tn.model.Images`; or the name of a data set or a folder, whose test images are read.
        output: the folder for the rows, the config and the figures.
        rewrites: one or several: cuts such as "out kh | in kw", or those of `all_cuts`; "A then B", which cuts a kernel
            twice and contracts it back in between; names of decompositions, such as "cp" (`rules()` lists them); rules
            in the notation; rules; fits, which stand for their rules. Layers for whose labels and sizes a rewrite does
            not exist are left out: a cut is for the layers that have exactly its labels, so that one of out in kh kw is
            for 2-d convolutions. A cut whose sides or labels are in another order is the same cut, and rows keep its
            first wording.
        sizes: one or several: whatever `tn.fitting.read_size` reads, also as text; each rewrite takes those that suit
            it. "keep 0.5" and "error 0.01" need bonds with singular values, which cuts and trees have. 8, or a mapping
            of bonds, gives ranks; a rewrite takes those of its own bonds, and a bond whose full rank is smaller gets
            that. "parameters 0.5" and "multiply-adds 0.5" are budgets of the whole network, for the scope "all": the
            error curves of all layers decide what each layer gets, and layers may stay as they are. Multiply-adds are
            counted for one image, in the factored form of each layer.
        options: all other choices; by default `StudyOptions()`.

    Returns:
        The folder and the rows that were asked for, those of the first network first. In a row, accuracy is top-1,
        0 to 1; mean_squared_relative_error is the mean of (||K - K~||_F / ||K||_F)^2 over the rewritten layers;
        parameters_kept counts the whole network, with the factors in place of the rewritten kernels, relative to the
        dense network. Rows under a budget also have multiply_adds_kept, above 1 where the budget raises them.

    Raises:
        RuleError, NotationError, RankError: a rewrite or a size cannot be read, which is found before anything runs; a
            budget cannot be met.
        ValuesError: a parameter or buffer is not finite; it is named before anything is written.
        DataError: the images do not fit the network, or are given in another form.
        LayerError: a weight is computed from other parameters; no network is given, or it is not one.
        StudyError: the network looks untrained, and the options do not allow that; a scope matches no layer; the
            outputs of the untouched network are not finite; the folder is in use, has another config, or cannot be
            written.

    Example:
        >>> print(tn.study(model, "digits", "runs/study", rewrites=["out kh | in kw"], sizes=["keep 0.5", "keep 0.25"]))
    """
    options, folder = options or StudyOptions(), Path(output)
    models = _by_name(model)
    images = _read_images(data)
    asked = [Rewrite.read(rewrite) for rewrite in _listed(rewrites)], [read_size(size) for size in _listed(sizes)]
    check_skip(models.values(), options.skip)
    layers = {name: layers_left(each, options.skip) for name, each in models.items()}
    tasks = plan_rows(*asked, layers, options, stored=read_rows(folder))
    networks = {name: deepcopy(each).to(options.device).eval() for name, each in models.items()}
    for network in networks.values():
        check_classes(images, _outputs(network, images, options))
    _renew(folder)
    with Store(folder, _config(images, options)).opened() as store:
        if options.prepare is not None:
            for name, network in networks.items():
                options.prepare(name, network)
                network.to(options.device).eval()
                layers[name] = layers_left(network, options.skip)
        store.settle(models={name: digest_state(network)[:16] for name, network in networks.items()})
        _draw(store, tasks, layers)
        testers = {name: RowTester(network, images, options) for name, network in networks.items()}
        all_tasks = [task for name in models for task in (untouched(name), *(t for t in tasks if t.key.model == name))]
        rows = Runner(testers, store).run(all_tasks)
    return Study(folder, rows, options.scope)


def _read_images(data: object) -> Images:
    if isinstance(data, Images):
        return data
    if isinstance(data, str | Path):
        return load_images(data, "test")
    fix = "the name of a data set, a folder, or tn.model.Images(pixels, labels, classes, source)"
    raise DataError(f"the images of a study are given as a {type(data).__name__}", fix=fix)


def _listed(values: Any) -> list[Any]:
    """Several values, or one, as a list."""
    single = isinstance(values, str | Mapping) or not isinstance(values, Iterable)
    return [values] if single else list(values)


def _draw(store: Store, tasks: Sequence[Task], layers: Mapping[str, Sequence[Layer]]) -> None:
    """Draw the kernels of each network."""
    for name, some in layers.items():
        stored = [row for row in store.rows if row["model"] == name]
        planned = [task.key.fields for task in tasks if task.key.model == name]
        draw_kernels(store.folder, stored, planned, some, suffix=figure_suffix(store.config["models"], name))


def _by_name(model: nn.Module | Mapping[str, nn.Module]) -> Mapping[str, nn.Module]:
    models = model if isinstance(model, Mapping) else {type(model).__name__: model}
    if not models or not all(isinstance(name, str) for name in models):
        fact = "the study has no network" if not models else "the names of the networks are not texts"
        raise LayerError(fact, fix="a network, or a mapping of names to networks")
    return models


def _renew(folder: Path) -> None:
    """Bring a folder of an earlier version, which has one network and one seed in its config, into the present form."""
    config = read_config(folder / CONFIG)
    if config is None or not {"model", "weights", "seed"} <= config.keys():
        return
    model, weights, seed = (config.pop(name) for name in ("model", "weights", "seed"))
    with locked(folder), writing(folder):
        rows, _ = read_lines(folder / ROWS)
        for row in rows:
            row.setdefault("seed", seed if row["equations"] and not Rewrite.read(row["rewrite"]).cuts else None)
        write_text(folder / ROWS, "".join(json.dumps(row) + "\n" for row in rows))
        write_text(folder / CONFIG, json.dumps({**config, "models": {model: weights}}, indent=2) + "\n")


def _config(images: Images, options: StudyOptions) -> dict[str, Any]:
    training = options.recalibration
    return {
        "data": images.source,
        "images": images.fingerprint,
        "mean": list(images.mean),
        "std": list(images.std),
        "skip": list(options.skip),
        "recalibration": None if training is None else [training.fingerprint, options.recalibration_shift],
        "batch_size": options.batch_size,
        "dtype": str(options.dtype).removeprefix("torch."),
        "device": torch.device(options.device).type,
        **options.facts,
    }


def _outputs(network: nn.Module, images: Images, options: StudyOptions) -> int:
    """The number of logits that the network gives for an image."""
    image = one_image(images, network, options).to(options.dtype)
    try:
        with in_dtype(network, options.dtype), torch.inference_mode():
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
