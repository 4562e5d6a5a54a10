"""An optimizer after surgery: what is gone leaves, what is new joins, what stays keeps its moments."""

from __future__ import annotations

import torch
from torch import nn

from .conversion_report import Report
from .errors import LayerError, explain


def update_optimizer(optimizer: torch.optim.Optimizer, report: Report) -> None:
    """Exchange the parameters of converted layers in an optimizer of the model.

    The cores of a layer stand in the parameter group of its weight, in its place, with fresh state; a bias that the
    new layer took over keeps its state, as does every layer that was not touched. Cores of a weight that the
    optimizer did not hold (a frozen one) do not join. Schedulers go on: the groups are the same objects.

    Args:
        optimizer: with one state for each parameter.
        report: of the conversion of its model, in place.

    Raises:
        LayerError: the optimizer holds neither old nor new parameters of any converted layer, or has one state for
            all parameters together (LBFGS).
    """
    if isinstance(optimizer, torch.optim.LBFGS):
        raise LayerError(explain("LBFGS has one state for all parameters together", fix="a new optimizer"))
    held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    ours = {id(p) for one in report.replaced for p in (*one.old, *one.parameters.values())}
    if report.replaced and not held & ours:
        raise LayerError(
            explain(
                f"the optimizer holds no parameter of the {len(report.replaced)} converted layers",
                fix="the optimizer of the model that was converted, with inplace=True; or a new one",
            )
        )
    for replaced in report.replaced:
        kept = {id(parameter) for parameter in replaced.parameters.values()}
        gone = [parameter for parameter in replaced.old if id(parameter) not in kept]
        new = {name: p for name, p in replaced.parameters.items() if id(p) not in held}
        for old in gone:
            for group in optimizer.param_groups:
                position = _position(group["params"], old)
                if position is not None:
                    # the weight comes first: with it leaves its place, and all that is new takes it
                    group["params"][position : position + 1] = list(new.values())
                    if "param_names" in group:
                        names = [f"{replaced.name}.{name}" for name in new]
                        group["param_names"][position : position + 1] = names
                    new = {}
            optimizer.state.pop(old, None)


def _position(parameters: list[nn.Parameter], wanted: nn.Parameter) -> int | None:
    """By identity: == of tensors compares elements."""
    return next((number for number, one in enumerate(parameters) if one is wanted), None)
