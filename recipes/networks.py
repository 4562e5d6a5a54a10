"""The networks that recipes start from: with random weights, with those of a file, with random cores, or trained."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

import tnalgebra as tn
from recipes.experiment import Settings, classification
from recipes.training import train

Patterns: TypeAlias = dict[str | type[nn.Module], Any] | Callable[[str, nn.Module], Any]
"""What `tnalgebra.convert` does with each layer."""


def fresh_model(name: str, images: tn.model.Images, *, seed: int) -> nn.Module:
    """The network of this name for these images, its random weights drawn from the seed."""
    return tn.command.build_model(name, classes=len(images.classes), channels=images.channels, seed=seed)


def with_weights(model: nn.Module, source: str) -> nn.Module:
    """The network with the weights of a file, which may hold decomposed layers that `tnalgebra.save` has written.

    Raises:
        DataError, CheckpointError: the weights are not of this network, or the file cannot be read.
    """
    if source.endswith(".safetensors"):
        with suppress(SafetensorError, OSError), safe_open(source, framework="pt") as file:
            if "tnalgebra" in (file.metadata() or {}):
                return tn.load(source, into=model)
    tn.command.load_weights(model, source)
    return model


def write_network(model: nn.Module, path: Path) -> None:
    """Save a network by `tnalgebra.save`, in a folder that is made. Raises StudyError where it cannot be written."""
    with tn.studies.writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        tn.save(model, path)


def trains_first(config: Any) -> bool:
    """Whether a recipe trains its network before the experiment: cnn4 that has no weights."""
    return bool(config.model == "cnn4" and config.weights is None and not getattr(config, "untrained", False))


def trained_cnn4(model: nn.Module, training: tn.model.Images, *, config: Any) -> None:
    """Train cnn4 and keep it in the output folder; where the folder has it already, it is read from there.

    Args:
        model: cnn4 with random weights.
        training: the images that it learns.
        config: of a recipe: `tn.command.ImageSettings` with `epochs`.

    Raises:
        StudyError: the folder cannot be written.
    """
    settings = Settings(epochs=config.epochs, warmup=min(1.0, config.epochs / 5), seed=config.seed)
    facts = {**settings.shared(), "mean": training.mean, "std": training.std, "images": training.fingerprint}
    path = config.output / f"cnn4-{tn.studies.config_hash(facts)}.safetensors"
    if not path.exists():
        print(f"training cnn4 on {len(training)} images of {config.data}", flush=True)
        task = classification(settings, training, dataclasses.replace(config, limit=None).images("test"))
        train(model, task, settings.training(), path.with_suffix(""), device=config.device, log_tensorboard=False)
        write_network(model.cpu(), path)
    tn.command.load_weights(model, path)


def from_random_cores(
    model: nn.Module, patterns: Patterns, *, example: tuple[int, ...], seed: int
) -> tuple[nn.Module, tn.model.ConversionReport]:
    """Decompose a network that is not trained, with random cores.

    The cores are scaled so that the kernel which they make has the variance of torch's own initialisation.

    Args:
        model: a network with random weights, which is converted in place.
        patterns: what is done with each layer, see `even_patterns`.
        example: the shape of an input.
        seed: the seed of the cores.

    Raises:
        TnalgebraError: as `tnalgebra.convert`.
    """
    model, report = tn.convert(model, patterns, example=example, backward=True, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for layer in model.modules():
            if isinstance(layer, tn.nn.KernelLayer):
                layer.reset_parameters()
                layer.origin = tn.nn.Origin()  # the fit's values are not in the layer any more
    return model, report


def even_patterns(model: nn.Module, rewrite: str, *, parameters: float, skip: Sequence[str]) -> Patterns:
    """Patterns that decompose the convolutions of a network that is not trained, all to the same part.

    Linear layers stay dense: a classifier has few outputs, and a part of its parameters would be a rank of one or two.

    Args:
        parameters: the largest part of its parameters that a kernel may keep; a layer that cannot be that small stays
            dense.
        skip: further layers that stay dense: globs, or first.

    Raises:
        StudyError: skip matches no layer, or all of them.
        RuleError: the rewrite cannot make any layer that small.
    """
    patterns: dict[str, Any] = {}
    chosen = tn.studies.Rewrite.read(rewrite)
    for layer in tn.studies.layers_of(model, skip):
        with suppress(*tn.studies.NO_FORM):
            form = chosen.form(layer)
            ranks = even_ranks(form, parameters * layer.weight.numel()) if len(layer.labels) > 2 else None
            if ranks is not None:
                patterns[layer.name] = (form.rule, {"size": ranks, "starts": 1, "sweeps": 0})
    if not patterns:
        fact = f"{rewrite!r} at {parameters:g} of the parameters leaves every layer as it is"
        raise tn.errors.RuleError(fact, fix="more of the parameters, or another rewrite")
    return lambda name, layer: patterns.get(name)


def even_ranks(form: tn.studies.Form, allowed: float) -> dict[str, int] | None:
    """The largest ranks with at most this number of parameters, each the same part of its bond's full rank.

    None where rank 1 has more already. Errors are not used to choose the ranks: those of random kernels mean nothing.
    """

    def ranks(part: float) -> dict[str, int]:
        return {bond: max(1, round(part * form.full[bond])) for bond in form.rule.ranks}

    if form.plan(ranks(0)).parameters > allowed:
        return None
    low, high = 0.0, 1.0
    for _ in range(50):  # halvings: beyond the last digit
        middle = (low + high) / 2
        low, high = (middle, high) if form.plan(ranks(middle)).parameters <= allowed else (low, middle)
    return ranks(low)
