"""An optimizer after a conversion: old parameters leave it, new ones join, the others keep their moments."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import nn

from ..errors import LayerError, explain
from .report import ConversionReport, Replaced

MATRICES_ONLY: tuple[type[torch.optim.Optimizer], ...] = (torch.optim.Muon,) if hasattr(torch.optim, "Muon") else ()
"""Optimizers of torch that refuse a parameter of other than two axes; older versions have none."""


def update_optimizer(optimizer: torch.optim.Optimizer, report: ConversionReport) -> None:
    """Exchange the parameters of converted layers in an optimizer of the model.

    The cores of a layer take the place of its weight in its parameter group, with fresh state; a bias that the
    new layer took over keeps its state, as does every layer that was not touched. Cores of a weight that the
    optimizer did not hold (a frozen one, or one of another optimizer) do not join, nor does such a bias. Schedulers
    continue: the groups are the same objects. On an error the optimizer is as it was.

    Args:
        optimizer: with one state for each parameter.
        report: of the conversion of its model, in place.

    Raises:
        LayerError: the optimizer holds neither old nor new parameters of any converted layer; has one state for all
            parameters together (LBFGS); takes matrices only (Muon), and a core that would join is not a matrix.
    """
    if isinstance(optimizer, torch.optim.LBFGS):
        raise LayerError(explain("LBFGS has one state for all parameters together", fix="a new optimizer"))
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    ours = {id(p) for one in report.replaced for p in (*one.old, *one.parameters.values())}
    if report.replaced and not held & ours:
        raise LayerError(
            explain(
                f"the optimizer holds no parameter of the converted layers ({len(report.replaced)})",
                fix="the optimizer of the model that was converted, with inplace=True; or a new one",
            )
        )
    exchanged = []
    for replaced in report.replaced:
        cores = _cores(replaced, held)
        for old in _gone(replaced):
            if id(old) in held:
                exchanged.append((replaced, old, cores))
                cores = {}  # with the weight, which comes first, leaves its place, and all that is new takes it
    for replaced, _, cores in exchanged:
        for name, core in cores.items():
            if isinstance(optimizer, MATRICES_ONLY) and core.ndim != 2:
                kind = type(optimizer).__name__
                fact = f"{kind} takes matrices, and {replaced.name}.{name} has {core.ndim} axes"
                raise LayerError(explain(fact, fix="a rewrite with matrices; or a new optimizer for tensors"))
    for replaced, old, cores in exchanged:
        for group in optimizer.param_groups:
            position = _position(group["params"], old)
            if position is not None:
                group["params"][position : position + 1] = list(cores.values())
                if "param_names" in group:
                    names = [f"{replaced.name}.{name}" for name in cores]
                    group["param_names"][position : position + 1] = names
        optimizer.state.pop(old, None)


def _gone(replaced: Replaced) -> list[nn.Parameter]:
    """Parameters of the dense layer that went, where something still holds them; its bias went over to the new one."""
    kept = {id(parameter) for parameter in replaced.parameters.values()}
    return [parameter for parameter in replaced.old if id(parameter) not in kept]


def _cores(replaced: Replaced, held: Collection[int]) -> dict[str, nn.Parameter]:
    """Parameters that came with the new layer, and are not in the optimizer yet."""
    before = {*held, *map(id, replaced.old)}
    return {name: core for name, core in replaced.parameters.items() if id(core) not in before}


def _position(parameters: list[nn.Parameter], wanted: nn.Parameter) -> int | None:
    """By identity: == of tensors compares elements."""
    return next((number for number, one in enumerate(parameters) if one is wanted), None)
