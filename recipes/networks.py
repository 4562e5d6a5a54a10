"""The small network that recipes train where no weights are given."""

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
from recipes.experiment import fresh_model, write_network

# cnn4_training: The small network that recipes train where no weights are given.


class Settings(Protocol):
    """What a recipe's config says about the training."""

    @property
    def epochs(self) -> int: ...
    @property
    def seed(self) -> int: ...
    @property
    def mean(self) -> tuple[float, ...] | None: ...
    @property
    def std(self) -> tuple[float, ...] | None: ...
    @property
    def data(self) -> str: ...
    @property
    def device(self) -> str: ...
    @property
    def output(self) -> Path: ...


def trained_cnn4(model: nn.Module, *, training: tn.Images, config: Settings) -> None:
    """Train cnn4 and keep it in the output folder; take it from there if it is there.

    Raises:
        StudyError: the folder cannot be written.
    """
    settings: dict[str, Any] = {
        "epochs": config.epochs,
        "batch_size": 64,
        "learning_rate": 5e-3,
        "weight_decay": 1e-2,
        "max_shift": 1,
        "seed": config.seed,
        "mean": config.mean,
        "std": config.std,
    }
    path = config.output / f"cnn4-{tn.studies.config_hash({**settings, 'images': training.fingerprint})}.pth"
    if not path.exists():
        print(f"training cnn4 on {len(training)} images of {config.data}", flush=True)
        tn.studies.train_classifier(model, training, **settings, device=config.device)
        state = model.cpu().state_dict()
        try:
            tn.studies.write_whole(path, lambda temporary: torch.save({"state_dict": state}, temporary))
        except OSError as error:
            raise tn.errors.StudyError(
                tn.errors.explain(f"{path} cannot be written", because=error, fix="another --output")
            ) from error
    load_weights(model, path)


# train_networks: The networks that a training starts from: dense, fitted, with random cores, or compressed before.


Wishes: TypeAlias = Callable[[str, nn.Module], Any]
"""Patterns of `tnalgebra.convert`: what is done with a layer of this name, None: it stays dense."""


class NetworkSettings(Protocol):
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


def network(config: NetworkSettings, settings: dict[str, Any], images: tn.Images) -> nn.Module:
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
    start = config.output / f"start-{tn.studies.config_hash(settings)}.safetensors"
    if start.exists():
        return tn.load(start, into=model)
    dense: dict[str | type[nn.Module], Any] = dict.fromkeys(
        tn.studies.globs_of(tn.nn.kernel_layers(model), config.skip)
    )
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
            raise tn.errors.LayerError(
                tn.errors.explain("random cores are all alike", given=given, fix="one --rewrite, or --weights")
            )
        wishes = even_wishes(model, config.rewrite[0], parameters=config.parameters, skip=config.skip)
        model, report = from_random_cores(model, wishes, example=example, seed=config.seed)
    random = "\nrandom cores: the errors are those of random kernels" if config.weights is None else ""
    if os.environ.get("RANK", "0") == "0":  # of several processes, each of which has made the same
        print(f"\n{report}{random}", flush=True)
    write_network(model, start)
    return model


def from_random_cores(
    model: nn.Module, wishes: Wishes, *, example: tuple[int, ...], seed: int
) -> tuple[nn.Module, tn.model.Report]:
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
            if isinstance(layer, tn.nn.KernelLayer):
                layer.reset_parameters()
                layer.origin = tn.nn.Origin()  # not the fit, whose values are gone
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
    chosen = tn.studies.rewrite_of(rewrite, "frobenius")
    for layer in tn.studies.layers_of(model, skip):
        with suppress(*tn.studies.NO_FORM):
            form = chosen.form(layer)
            ranks = even_ranks(form, parameters * layer.weight.numel()) if len(layer.labels) > 2 else None
            if ranks is not None:
                wishes[layer.name] = (form.rule, {"ranks": ranks, "starts": 1, "sweeps": 0})
    if not wishes:
        fact = f"{rewrite!r} at {parameters:g} of the parameters leaves every layer as it is"
        raise tn.errors.RuleError(tn.errors.explain(fact, fix="more of the parameters, or another rewrite"))
    return lambda name, layer: wishes.get(name)


def even_ranks(form: tn.studies.Form, allowed: float) -> dict[str, int] | None:
    """The largest ranks, each the same part of its bond's full one, that have so many parameters; None: none has.

    Errors could not say how to share them out: of a random kernel they mean nothing.
    """

    def ranks(part: float) -> dict[str, int]:
        return {bond: max(1, round(part * form.full[bond])) for bond in tn.studies.free_bonds(form.rule)}

    if form.planned(ranks(0)).parameters > allowed:
        return None
    low, high = 0.0, 1.0
    for _ in range(50):  # halvings: beyond the last digit
        middle = (low + high) / 2
        low, high = (middle, high) if form.planned(ranks(middle)).parameters <= allowed else (low, middle)
    return ranks(low)


def teacher(config: NetworkSettings, images: tn.Images) -> nn.Module:
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
