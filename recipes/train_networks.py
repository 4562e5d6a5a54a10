"""The networks that a training starts from: dense, fitted, with random cores, or compressed before."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

import tnalgebra as tn
from models import load_weights
from recipes.training_rows import fresh_model, write_network
from tnalgebra.conversion_report import Report
from tnalgebra.errors import LayerError, RuleError, explain
from tnalgebra.images import Images
from tnalgebra.layers import kernel_layers
from tnalgebra.nn_kernel import KernelLayer, Origin
from tnalgebra.study_layers import globs_of, layers_of
from tnalgebra.study_rewrites import NO_FORM, Form, free_bonds, rewrite_of
from tnalgebra.study_store import config_hash

Wishes: TypeAlias = Callable[[str, nn.Module], Any]
"""Patterns of `tnalgebra.convert`: what is done with a layer of this name, None: it stays dense."""


class Settings(Protocol):
    """What a recipe's config says about the network."""

    @property
    def model(self) -> str: ...
    @property
    def weights(self) -> str | None: ...
    @property
    def load(self) -> Path | None: ...
    @property
    def rewrite(self) -> tuple[str, ...]: ...
    @property
    def parameters(self) -> float | None: ...
    @property
    def skip(self) -> tuple[str, ...]: ...
    @property
    def teacher(self) -> str | None: ...
    @property
    def teacher_model(self) -> str | None: ...
    @property
    def seed(self) -> int: ...
    @property
    def output(self) -> Path: ...


def network(config: Settings, settings: dict[str, Any], images: Images) -> nn.Module:
    """The network as it is before the training.

    One that is decomposed is kept in the output folder: so a training goes on from the very same numbers, which a fit
    with other threads would not give.

    Raises:
        TnalgebraError: the network, its weights or the decomposition are not what they should be.
    """
    model = fresh_model(config.model, images, seed=config.seed)
    if config.load is not None:
        return tn.load(config.load, into=model)
    if config.weights is not None:
        model = with_weights(model, config.weights)
    if not config.rewrite:
        return model
    assert config.parameters is not None
    start = config.output / f"start-{config_hash(settings)}.safetensors"
    if start.exists():
        return tn.load(start, into=model)
    dense: dict[str | type[nn.Module], Any] = dict.fromkeys(globs_of(kernel_layers(model), config.skip))
    example = (1, images.channels, *images.pixels.shape[2:])
    if config.weights is not None:
        model, report = tn.convert(
            model,
            {**dense, "*": list(config.rewrite)},
            budget=tn.ParameterBudget(config.parameters),
            example=example,
            backward=True,
            seed=config.seed,
        )
    else:
        if len(config.rewrite) > 1:
            given = ", ".join(config.rewrite)
            raise LayerError(explain("random cores are all alike", given=given, fix="one --rewrite, or --weights"))
        wishes = even_wishes(model, config.rewrite[0], parameters=config.parameters, skip=config.skip)
        model, report = from_random_cores(model, wishes, example=example, seed=config.seed)
    random = "\nrandom cores: the errors are those of random kernels" if config.weights is None else ""
    if os.environ.get("RANK", "0") == "0":  # of several processes, each of which has made the same
        print(f"\n{report}{random}", flush=True)
    write_network(model, start)
    return model


def from_random_cores(
    model: nn.Module, wishes: Wishes, *, example: tuple[int, ...], seed: int
) -> tuple[nn.Module, Report]:
    """Decompose a network that has not been trained, its cores drawn anew.

    They are scaled so that the kernel they make has the variance of torch's own initialisation.

    Args:
        model: with random weights; converted in place.
        wishes: see `even_wishes`.
        example: shape of an input.
        seed: of the cores.

    Raises:
        TnalgebraError: as `tnalgebra.convert`.
    """
    model, report = tn.convert(model, wishes, example=example, backward=True, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for layer in model.modules():
            if isinstance(layer, KernelLayer):
                layer.reset_parameters()
                layer.origin = Origin()  # not the fit, whose values are gone
    return model, report


def all_dense(name: str, layer: nn.Module) -> None:
    """What `tnalgebra.convert` does with a network that stays as it is."""


def even_wishes(model: nn.Module, rewrite: str, *, parameters: float, skip: Sequence[str]) -> Wishes:
    """What `tnalgebra.convert` is to do with a network that has not been trained: only convolutions are decomposed.

    A classifier has so few outputs that a part of its parameters would be a rank of one or two.

    Args:
        parameters: part of each kernel's parameters that is kept at most; layers that cannot be so small stay dense.
        skip: layers that stay dense: globs, or first.

    Raises:
        StudyError: skip matches no layer, or all.
        RuleError: there is no layer that the rewrite makes so small.
    """
    wishes: dict[str, Any] = {}
    chosen = rewrite_of(rewrite, "frobenius")
    for layer in layers_of(model, skip):
        with suppress(*NO_FORM):
            form = chosen.form(layer)
            ranks = even_ranks(form, parameters * layer.weight.numel()) if len(layer.labels) > 2 else None
            if ranks is not None:
                wishes[layer.name] = (form.rule, {"ranks": ranks, "starts": 1, "sweeps": 0})
    if not wishes:
        fact = f"{rewrite!r} at {parameters:g} of the parameters leaves every layer as it is"
        raise RuleError(explain(fact, fix="more of the parameters, or another rewrite"))
    return lambda name, layer: wishes.get(name)


def even_ranks(form: Form, allowed: float) -> dict[str, int] | None:
    """The largest ranks, each the same part of its bond's full one, that have so many parameters; None: none has.

    Errors could not say how to share them out: of a random kernel they mean nothing.
    """

    def ranks(part: float) -> dict[str, int]:
        return {bond: max(1, round(part * form.full[bond])) for bond in free_bonds(form.rule)}

    if form.planned(ranks(0)).parameters > allowed:
        return None
    low, high = 0.0, 1.0
    for _ in range(50):  # halvings: beyond the last digit
        middle = (low + high) / 2
        low, high = (middle, high) if form.planned(ranks(middle)).parameters <= allowed else (low, middle)
    return ranks(low)


def teacher(config: Settings, images: Images) -> nn.Module:
    """The trained network whose answers are learnt; a file of tnalgebra.save may hold one that is decomposed.

    Raises:
        TnalgebraError: the network or its weights are not what they should be.
    """
    assert config.teacher is not None
    model = fresh_model(config.teacher_model or config.model, images, seed=config.seed)
    return with_weights(model, config.teacher)


def with_weights(model: nn.Module, source: str) -> nn.Module:
    """The network with these weights: of `models.load_weights`, or of `tnalgebra.save`, which may be decomposed.

    Raises:
        DataError, CheckpointError: they are not of this network, or cannot be read.
    """
    if source.endswith(".safetensors") and Path(source).is_file() and _is_ours(source):
        return tn.load(source, into=model)
    load_weights(model, source)
    return model


def _is_ours(source: str) -> bool:
    """Whether `tnalgebra.save` has written a file, as far as that can be told; what is damaged is not."""
    with suppress(SafetensorError, OSError), safe_open(source, framework="pt") as file:
        return "tnalgebra" in (file.metadata() or {})
    return False
