"""`merge_branches`: branches of one input become one convolution where that is cheaper, in any model of torch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .._tables import Table, Tabular, plural, tabulate
from ..errors import LayerError
from ..nn import CONVOLUTIONS
from .branch_graph import BranchGraph, MergedGroup
from .branch_tracing import adds_directly, may_have_branches, trace_module
from .example import CALL_ERRORS, Example, read_example, tensors_in
from .modes import Hook, evaluating, hooked
from .modules import carry_hooks, check_initialised, copy_model, holders_of_modules, put_module
from .surgery import run_example

_TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-3}
"""Relative change of a model's outputs that is rounding, layer upon layer; of coarser types 0.1."""


@dataclass(frozen=True, repr=False)
class MergingReport(Tabular):
    """What `merge_branches` did: prints as a table with a row for each group of branches.

    groups: merged or left.
    untraced: name of a module with branches of its own that torch.fx cannot trace -> why.
    """

    groups: tuple[MergedGroup, ...]
    untraced: Mapping[str, str]

    @property
    def merged(self) -> tuple[MergedGroup, ...]:
        """The groups that became one convolution."""
        return tuple(group for group in self.groups if group.layer)

    def records(self) -> list[dict[str, Any]]:
        """A dictionary for each group, with the fields of `MergedGroup`."""
        return [vars(group) for group in self.groups]

    def _summary(self) -> str:
        return f"{plural(len(self.groups), 'group')} of branches, {len(self.merged)} of them merged"

    def _table(self) -> Table:
        columns: dict[str, Callable[[MergedGroup], str]] = {
            "module": lambda row: row.module or "the model",
            "branches": lambda row: " + ".join(row.branches),
            "done": lambda row: row.description if row.layer else f"left: {row.reason}",
        }
        below = [self._summary()] + [
            f"{name or 'the model'} cannot be traced: {why}" for name, why in self.untraced.items()
        ]
        return tabulate(self.groups, columns, left=("branches", "done"), below=below)


def merge_branches(model: nn.Module, example: Example | None = None) -> tuple[nn.Module, MergingReport]:
    """Make one convolution of parallel branches whose outputs are added, in a copy of a model for evaluation.

    A branch is a convolution, an average pooling, a batch normalisation in evaluation mode, the input itself, or such
    ones after each other, as in the blocks of RepVGG, ACNet, RepLKNet and UniRepLKNet. Branches of one input with equal
    strides and outputs of one size are one convolution: each kernel is placed in a common window, dilated ones with
    zeros between their elements, and groups become fewer where they differ. The outputs are those of the branches, to
    rounding. The graph of torch.fx shows them, whatever modules are called; a module that adds branches becomes a
    `torch.fx.GraphModule`.

    They are merged where one convolution is faster, which is measured on inputs of the sizes of the example unless
    one of the branches has such a window already.

    Args:
        model: in evaluation mode, as far as batch normalisations are to be merged. It stays as it is.
        example: an input of the model in any form that `convert` takes. The merged model is checked to give the same
            output on it. Without one, speeds are measured on inputs of a usual size.

    Returns:
        The new model, and a row for each group of branches with what was made of it, or why it was left.

    Raises:
        LayerError: the model does not run on the example, or gives another output once it is merged.

    Example:
        >>> merged, report = tn.merge_branches(model.eval(), (1, 3, 224, 224))
        >>> print(report)
    """
    check_initialised(model)
    target: nn.Module = copy_model(model)
    groups: list[MergedGroup] = []
    untraced: dict[str, str] = {}
    with torch.inference_mode(False), torch.no_grad():
        shapes = {} if example is None else _input_shapes(target, example)
        holders = holders_of_modules(target)
        names = {module: name for name, module in target.named_modules()}
        reported: set[frozenset[str]] = set()
        for module, name in reversed([*names.items()]):  # what is inside of a module comes before it
            if not may_have_branches(module):
                continue
            try:
                graph = BranchGraph(trace_module(module), name, shapes, reported)
            except Exception as error:  # the model's own code, which may raise anything when it is traced
                if adds_directly(module):
                    untraced[name] = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
                continue
            graph.merge_all()
            groups += graph.groups
            if any(group.layer for group in graph.groups):
                carry_hooks(module, graph.module)
                if module is target:
                    target = graph.module
                else:
                    put_module(holders[module], graph.module)
        if example is not None:
            _check(model, target, example)
    return target, MergingReport(tuple(reversed(groups)), untraced)


def _input_shapes(model: nn.Module, example: Example) -> dict[nn.Module, tuple[int, ...]]:
    """The shape of the input of each convolution in its first call."""
    shapes: dict[nn.Module, tuple[int, ...]] = {}

    def keep(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        shapes.setdefault(module, tuple((args[0] if args else kwargs["input"]).shape))

    watched: dict[nn.Module, Hook] = {module: keep for module in model.modules() if isinstance(module, CONVOLUTIONS)}
    try:
        with hooked(watched):
            run_example(model, example)
    except CALL_ERRORS as error:
        fix = "example=x, or all arguments: (x, y)"
        raise LayerError("the model does not run on the example", because=error, fix=fix) from error
    return shapes


def _check(model: nn.Module, merged: nn.Module, example: Example) -> None:
    """Raise LayerError if a merged model gives another output on an example."""
    args, kwargs = read_example(example, model)
    with evaluating(model), evaluating(merged):
        outputs = [[*tensors_in(one(*args, **kwargs))] for one in (model, merged)]
    for before, after in zip(*outputs, strict=True):
        change = float(torch.dist(after.double(), before.double()) / (before.double().norm() or 1.0))
        if not change < _TOLERANCE.get(before.dtype, 0.1):
            fact = f"{type(model).__name__} computes another output once its branches are merged"
            raise LayerError(fact, relative_error=f"{change:.1e}")
