"""The networks that a training starts from: dense, fitted, with random cores, or compressed before."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

import tnalgebra as tn
from models import build_model, load_weights
from tnalgebra.conversion_report import Report
from tnalgebra.errors import LayerError, StudyError, explain
from tnalgebra.images import Images
from tnalgebra.layers import kernel_layers
from tnalgebra.nn_kernel import KernelLayer, Origin
from tnalgebra.study_store import config_hash


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
    model = _built(config.model, config, images)
    if config.load is not None:
        return tn.load(config.load, into=model)
    if config.weights is not None:
        load_weights(model, config.weights)
    if not config.rewrite:
        return model
    assert config.parameters is not None
    start = config.output / f"start-{config_hash(settings)}.safetensors"
    if start.exists():
        return tn.load(start, into=model)
    first = next((name for name, layer in kernel_layers(model).items() if not isinstance(layer, nn.Linear)), None)
    stay = [first if glob == "first" else glob for glob in config.skip]
    dense: dict[str | type[nn.Module], Any] = {glob: None for glob in stay if glob is not None}
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
        model, report = from_random_cores(
            model, {**dense, "*": config.rewrite}, parameters=config.parameters, example=example, seed=config.seed
        )
    random = "\nrandom cores: the errors are those of random kernels" if config.weights is None else ""
    if os.environ.get("RANK", "0") == "0":  # of several processes, each of which has made the same
        print(f"\n{report}{random}", flush=True)
    try:
        tn.save(model, start)
    except OSError as error:
        raise StudyError(explain(f"{start} cannot be written", because=error, fix="another --output")) from error
    return model


def from_random_cores(
    model: nn.Module,
    patterns: Mapping[str | type[nn.Module], tuple[str, ...] | None],
    *,
    parameters: float,
    example: tuple[int, ...],
    seed: int,
) -> tuple[nn.Module, Report]:
    """Decompose a network that has not been trained: ranks of each layer by a budget of its own, cores drawn anew.

    Ranks cannot follow errors here, as there is nothing yet to come near to; the cores are scaled so that the kernel
    they make has the variance of torch's own initialisation.

    Args:
        model: with random weights; converted in place.
        patterns: glob over layers' names -> one decomposition, or None: dense.
        parameters: part of each kernel's parameters that is kept at most.
        example: shape of an input.
        seed: of the cores.

    Raises:
        LayerError: several decompositions for a layer, of which none can be preferred yet.
        TnalgebraError: as `tnalgebra.convert`.
    """
    wishes: dict[str | type[nn.Module], Any] = {}
    for glob, rewrites in patterns.items():
        if rewrites is not None and len(rewrites) != 1:
            given = ", ".join(rewrites)
            raise LayerError(explain("random cores are all alike", given=given, fix="one --rewrite, or --weights"))
        budget = {"ranks": tn.ParameterBudget(parameters), "starts": 1, "sweeps": 0}
        wishes[glob] = None if rewrites is None else (rewrites[0], budget)
    model, report = tn.convert(model, wishes, example=example, backward=True, seed=seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        for layer in model.modules():
            if isinstance(layer, KernelLayer):
                layer.reset_parameters()
                layer.origin = Origin()  # not the fit, whose values are gone
    return model, report


def teacher(config: Settings, images: Images) -> nn.Module:
    """The trained network whose answers are learnt; a file of tnalgebra.save may hold one that is decomposed.

    Raises:
        TnalgebraError: the network or its weights are not what they should be.
    """
    assert config.teacher is not None
    model = _built(config.teacher_model or config.model, config, images)
    if config.teacher.endswith(".safetensors"):
        return tn.load(config.teacher, into=model)
    load_weights(model, config.teacher)
    return model


def _built(name: str, config: Settings, images: Images) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return build_model(name, classes=len(images.classes), channels=images.channels)
