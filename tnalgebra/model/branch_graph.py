"""The branches in the graph of a module by torch.fx: found from their sum, and exchanged for one convolution."""

from __future__ import annotations

import operator
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..nn import CONVOLUTIONS, Planning, differing_forward, is_altered, nominal_shape
from .branch_tracing import ADDITIONS, AFFINE_LAYERS, changes_in_place, is_new, torch_class_of
from .branches import (
    Branch,
    Merged,
    TorchConvolution,
    UnmergeableError,
    branch_of,
    identity_branch,
    merge,
    scale_by_statistics,
    why_apart,
)
from .timing import LAYER_ROUNDS, LAYER_SECONDS, time_in_turns

_NORM_ARGUMENTS = ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")

_CLEARLY = 0.97
"""Branches are merged where one convolution takes at most this part of their time."""


@dataclass(frozen=True)
class MergedGroup:
    """Branches of one input whose outputs are added.

    module: name of the module whose forward adds them.
    branches: each as the names of what it consists of, such as "conv1, bn1"; "identity" is the input itself.
    layer: name of the new convolution, and its description; "" where they are left, for this `reason`.
    network: the kernel as a sum of kernels, each placed in the window.
    parameters, parameters_after: of the branches, and of the new convolution.
    """

    module: str
    branches: tuple[str, ...]
    layer: str = ""
    description: str = ""
    network: str = ""
    reason: str = ""
    parameters: int = 0
    parameters_after: int = 0


@dataclass(frozen=True, eq=False)
class Path:
    """A summand: its nodes from the fork, which is not one of them, to the addition."""

    fork: fx.Node
    nodes: tuple[fx.Node, ...]


class BranchGraph:
    """The groups of branches in the graph of one module, which are merged in the graph."""

    def __init__(
        self,
        module: fx.GraphModule,
        name: str,
        shapes: Mapping[nn.Module, tuple[int, ...]],
        reported: set[frozenset[str]],
    ) -> None:
        """Look at the graph of a module.

        Args:
            name: of the module in the model.
            shapes: of the inputs of convolutions, as far as they are known.
            reported: the branches of which it was said already why they are left; more are added.
        """
        self.module, self.graph, self.name, self.shapes, self.reported = module, module.graph, name, shapes, reported
        self.modules = dict(module.named_modules())
        self.groups: list[MergedGroup] = []

    def merge_all(self) -> None:
        """Merge what can be merged, one group after the other."""
        while any(self._merge_at(root) for root in [*self.graph.nodes] if self._is_root(root)):
            self.graph.eliminate_dead_code()
        self.graph.lint()
        self.module.delete_all_unused_submodules()
        self.module.recompile()

    def _merge_at(self, root: fx.Node) -> bool:
        """Whether a group of the summands of an addition was merged."""
        return any(self._merge_group(root, *group) for group in self._forks(self._summands(root)).items())

    # Additions

    def _operands(self, node: object) -> tuple[fx.Node, ...] | None:
        """The two nodes that an addition adds; None if a node does not add two, or changes what others may read."""
        if not isinstance(node, fx.Node) or node.kwargs:
            return None
        plain = node.op == "call_function" and node.target in ADDITIONS
        method = node.op == "call_method" and node.target in ("add", "add_")
        if not (plain or method) or len(node.args) != 2:
            return None
        operands = tuple(one for one in node.args if isinstance(one, fx.Node))
        if changes_in_place(node, self.modules) and not is_new(node, self.modules):
            return None
        return operands if len(operands) == 2 else None

    def _is_inner(self, node: fx.Node) -> bool:
        """Whether a node is an addition whose value is only added to something else."""
        operands = self._operands(next(iter(node.users), None))
        alone = len(node.users) == 1 and operands is not None and len({*operands}) == 2
        return alone and self._operands(node) is not None

    def _is_root(self, node: fx.Node) -> bool:
        return self._operands(node) is not None and not self._is_inner(node)

    def _summands(self, root: fx.Node) -> list[fx.Node]:
        summands = []
        for one in self._operands(root) or ():
            summands += self._summands(one) if self._is_inner(one) else [one]
        return summands

    # Branches

    def _before(self, node: fx.Node) -> fx.Node | None:
        """The node that an affine node takes; None if a node is not affine."""
        source = node.args[0] if node.args else None
        if not isinstance(source, fx.Node):
            return None
        if node.op == "call_module":
            return source if isinstance(self.modules[str(node.target)], AFFINE_LAYERS) and len(node.args) == 1 else None
        return source if node.target is nn.functional.batch_norm else None

    def _forks(self, summands: Sequence[fx.Node]) -> dict[fx.Node, list[Path]]:
        """The nodes at which at least two summands branch off, each with their paths."""
        chains = []
        for summand in summands:
            chain = [summand]
            while (before := self._before(chain[-1])) is not None:
                chain.append(before)
            chains.append(chain)
        times = Counter(node for chain in chains for node in chain)
        forks: dict[fx.Node, list[Path]] = {}
        for chain in chains:
            place = next((number for number, node in enumerate(chain) if times[node] > 1), None)
            if place is not None:
                forks.setdefault(chain[place], []).append(Path(chain[place], tuple(reversed(chain[:place]))))
        return {fork: paths for fork, paths in forks.items() if len(paths) > 1 and self._has_convolution(paths)}

    def _has_convolution(self, paths: Sequence[Path]) -> bool:
        return any(isinstance(module, CONVOLUTIONS) for path in paths for module in self._modules_of(path))

    def _modules_of(self, path: Path) -> list[nn.Module]:
        return [self.modules[str(node.target)] for node in path.nodes if node.op == "call_module"]

    def _text(self, path: Path) -> str:
        parts = [str(node.target) if node.op == "call_module" else "batch_norm" for node in path.nodes]
        return ", ".join(parts) or "identity"

    def _branch(self, path: Path, convolution: nn.Module) -> Branch:
        """What a path computes. Raises UnmergeableError."""
        weight: Any = convolution.weight
        axes, channels = weight.ndim - 2, int(convolution.in_channels)  # type: ignore[arg-type]
        branch = identity_branch(channels, axes, weight)
        for place, node in enumerate(path.nodes):
            if len(node.users) > 1:
                raise UnmergeableError(f"the value of {self._text(path)} is used elsewhere too")
            if node.op == "call_module":
                module = self.modules[str(node.target)]
                if is_altered(module):
                    raise UnmergeableError(f"{node.target} has hooks, parametrisations or a forward of its own")
                if isinstance(module, CONVOLUTIONS) and (reason := differing_forward(module, torch_class_of(module))):
                    raise UnmergeableError(f"{node.target} has {reason}")
                step = branch_of(module, branch.channels[0], axes, weight)
            else:
                branch = self._functional_norm(node, branch)
                continue
            branch = step if place == 0 else branch.followed_by(step)
        return branch

    def _functional_norm(self, node: fx.Node, before: Branch) -> Branch:
        """A branch followed by `torch.nn.functional.batch_norm` with tensors of the module."""
        known = self._norm_arguments(node)
        if known.get("training"):
            raise UnmergeableError("its batch normalisation is in training mode")
        mean, variance = known["running_mean"], known["running_var"]
        if mean is None or variance is None:
            raise UnmergeableError("its batch normalisation has no running statistics")
        affine = known.get("weight"), known.get("bias")
        return scale_by_statistics(before, (mean, variance), affine, known.get("eps", 1e-5))

    def _norm_arguments(self, node: fx.Node) -> dict[str, Any]:
        """The arguments of a functional batch normalisation but for its input."""
        arguments = dict(zip(_NORM_ARGUMENTS, node.args, strict=False)) | node.kwargs
        del arguments["input"]
        if any(isinstance(one, fx.Node) and one.op != "get_attr" for one in arguments.values()):
            raise UnmergeableError("its batch normalisation has statistics that are computed")
        return {
            key: operator.attrgetter(str(one.target))(self.module) if isinstance(one, fx.Node) else one
            for key, one in arguments.items()
        }

    # Groups

    def _merge_group(self, root: fx.Node, fork: fx.Node, paths: Sequence[Path]) -> bool:
        """Merge the branches of a fork that belong together; whether the graph changed."""
        convolutions = [one for path in paths for one in self._modules_of(path) if isinstance(one, CONVOLUTIONS)]
        alike: dict[object, list[tuple[Path, Branch]]] = {}
        for path in paths:
            try:
                branch = self._branch(path, convolutions[0])
                alike.setdefault((branch.channels, branch.stride, branch.excess), []).append((path, branch))
            except UnmergeableError as error:
                self._leave([path], str(error))
        if any(self._merge_alike(root, members, convolutions[0].weight) for members in alike.values()):
            return True
        if len(alike) > 1:
            self._leave(paths, why_apart([branch for members in alike.values() for _, branch in members]))
        return False

    def _merge_alike(self, root: fx.Node, members: Sequence[tuple[Path, Branch]], like: Any) -> bool:
        """Merge branches whose outputs have the same positions; whether the graph changed.

        Args:
            like: a weight whose type, device and training the convolution has.
        """
        paths = [path for path, _ in members]
        if len(members) == 1 or not self._has_convolution(paths):
            return False
        try:
            merged = merge([branch for _, branch in members])
        except UnmergeableError as error:
            self._leave(paths, str(error))
            return False
        layer = merged.layer(like, trained=like.requires_grad)
        if not self._is_cheaper(members, layer):
            self._leave(paths, "one convolution would not be faster")
            return False
        self._exchange(root, paths, merged, layer)
        return True

    def _leave(self, paths: Sequence[Path], reason: str) -> None:
        key = frozenset(f"{self.name}.{node.target}" for path in paths for node in path.nodes)
        if key not in self.reported:
            self.reported.add(key)
            self.groups.append(MergedGroup(self.name, tuple(map(self._text, paths)), reason=reason))

    def _is_cheaper(self, members: Sequence[tuple[Path, Branch]], layer: TorchConvolution) -> bool:
        """Whether one convolution is faster than the branches: surely, if one of them has as large a kernel already."""
        counts = [branch.kernel.numel() for _, branch in members]
        if layer.weight.numel() <= max(counts):
            return True
        if os.environ.get("TNALGEBRA_TUNE") == "0":
            return layer.weight.numel() < sum(counts)
        takes_fork = [one for path, _ in members for one in self._modules_of(path)[:1] if one in self.shapes]
        shape = self.shapes[takes_fork[0]] if takes_fork else nominal_shape(layer, Planning())
        x = torch.randn(shape, dtype=layer.weight.dtype, device=layer.weight.device)

        def branches() -> Tensor:
            total: Any = 0
            for path, _ in members:
                y = x
                for node in path.nodes:
                    y = self._run(node, y)
                total = total + y
            return total  # type: ignore[no-any-return]

        apart, together = time_in_turns(
            [branches, partial(layer, x)], x.device, rounds=LAYER_ROUNDS, seconds=LAYER_SECONDS
        )
        return min(together) <= _CLEARLY * min(apart)

    def _run(self, node: fx.Node, x: Tensor) -> Tensor:
        """The value of an affine node for an input."""
        if node.op == "call_module":
            output: Tensor = self.modules[str(node.target)](x)
            return output
        return nn.functional.batch_norm(x, **self._norm_arguments(node))

    def _exchange(self, root: fx.Node, paths: Sequence[Path], merged: Merged, layer: TorchConvolution) -> None:
        """Put one convolution in the place of branches, and add what is left of the sum to it."""
        name = next(name for n in count() if not hasattr(self.module, name := f"merged{n or ''}"))
        self.module.add_module(name, layer)
        self.modules[name] = layer
        rest = self._summands(root)
        for path in paths:
            rest.remove(path.nodes[-1] if path.nodes else path.fork)
        with self.graph.inserting_before(root):
            total = self.graph.call_module(name, (paths[0].fork,))
            for one in rest:
                total = self.graph.call_function(operator.add, (total, one))
        root.replace_all_uses_with(total)
        self._erase(root)
        before = {one for path in paths for module in self._modules_of(path) for one in module.parameters()}
        self.groups.append(
            MergedGroup(
                self.name,
                tuple(map(self._text, paths)),
                f"{self.name}.{name}" if self.name else name,
                str(layer),
                str(merged.network),
                parameters=sum(one.numel() for one in before),
                parameters_after=sum(one.numel() for one in layer.parameters()),
            )
        )

    def _erase(self, addition: fx.Node) -> None:
        """Erase an addition that nothing reads, and those inside of it."""
        inner = [one for one in self._operands(addition) or () if self._is_inner(one)]
        self.graph.erase_node(addition)
        for one in inner:
            self._erase(one)
