"""An optimizer after a conversion: old parameters leave it, new ones join, the others keep their moments."""

from __future__ import annotations

from collections.abc import Set
from itertools import repeat

import torch
from torch import nn

from ..errors import LayerError
from .report import ConversionReport

_MATRICES_ONLY: tuple[type[torch.optim.Optimizer], ...] = (torch.optim.Muon,) if hasattr(torch.optim, "Muon") else ()
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

    Example:
        >>> model, report = tn.convert(model, {torch.nn.Conv2d: ("tucker2", "keep 0.5")})
        >>> tn.update_optimizer(optimizer, report)
    """
    if isinstance(optimizer, torch.optim.LBFGS):
        raise LayerError("LBFGS has one state for all parameters together", fix="a new optimizer")
    held = {parameter for group in optimizer.param_groups for parameter in group["params"]}
    ours = {parameter for one in report.replaced for parameter in (one.old, *one.parameters.values())}
    if report.replaced and not held & ours:
        raise LayerError(
            f"the optimizer holds no parameter of the converted layers ({len(report.converted)})",
            fix="the optimizer of the model that was converted, with inplace=True; or a new one",
        )
    swaps = _swaps(report, held)
    for name, core in (pair for cores in swaps.values() for pair in cores):
        if isinstance(optimizer, _MATRICES_ONLY) and core.ndim != 2:
            fact = f"{type(optimizer).__name__} takes matrices, and {name} has {core.ndim} axes"
            raise LayerError(fact, fix="a rewrite with matrices; or a new optimizer for tensors")
    for group in optimizer.param_groups:
        named = zip(group.get("param_names", repeat("")), group["params"], strict=False)
        pairs = [pair for name, parameter in named for pair in swaps.get(parameter, [(name, parameter)])]
        group["params"] = [parameter for _, parameter in pairs]
        if "param_names" in group:
            group["param_names"] = [name for name, _ in pairs]
    for old in swaps:
        optimizer.state.pop(old, None)


def _swaps(report: ConversionReport, held: Set[nn.Parameter]) -> dict[nn.Parameter, list[tuple[str, nn.Parameter]]]:
    """Old parameter that the optimizer holds -> names and parameters that take its place.

    Layers that are tied replace one weight by one set of cores; the projections of an attention replace one weight by
    the cores of three.
    """
    swaps: dict[nn.Parameter, list[tuple[str, nn.Parameter]]] = {}
    joined = {*held}
    for replaced in report.replaced:
        old = replaced.old
        if old is not None and old in held - {*replaced.parameters.values()}:
            cores = swaps.setdefault(old, [])
            for name, core in replaced.parameters.items():
                if core not in joined:
                    joined.add(core)
                    cores.append((f"{replaced.name}.{name}", core))
    return swaps
