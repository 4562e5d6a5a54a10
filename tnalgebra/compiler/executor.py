"""The code of a plan with the tensors that it takes at a call, and that of a frozen module."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..networks import Network
from .choose import Candidate
from .emit import argument_names, emit
from .keeper import Keeper, lower_type
from .operations import Load, TransformKernel, labels_in
from .packing import may_pack
from .plan import Plan
from .program import Program
from .tracing import is_watched
from .values import plain_label
from .weights import dense_patterns, in_type, supplied_values

SHAPES = 8
"""Number of shapes of inputs for which a frozen module keeps what is made of weights in sizes of the inputs."""


@dataclass
class Executor:
    """The code of a plan, and the tensors that it takes besides the inputs and the tensors of a module.

    patterns: dense patterns. They are neither parameters nor buffers, so nothing that is done to those reaches them.
    """

    plan: Plan
    patterns: dict[str, Tensor]

    def __post_init__(self) -> None:
        program = self.plan.chosen.program
        self.code = emit(program)
        self.arguments = argument_names(program)
        self.fixed = _fixed_axes(self.plan)
        weighted = any(isinstance(one, Load) and one.kind == "weight" for one in program.operations)
        self.halves = _Halves(self.plan) if weighted and supplied_values(program) else None
        self._keeps = weighted and not program.weights_only[-1]
        self.keeper: Keeper | None = None
        self.direct = self._without_transforms()

    def _without_transforms(self) -> Executor | None:
        """The code of the best plan without Fourier transforms, if this one has some and there is another one."""
        others = [one for one in self.plan.candidates if not one.has_transforms]
        if not (self.plan.chosen.has_transforms and others):
            return None
        return Executor(replace(self.plan, candidates=(others[0],)), dense_patterns(others[0], self.plan.request))

    def __getstate__(self) -> dict[str, Any]:
        """The state without the code, because torch.fx would trace it again and rename its arguments."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.__post_init__()

    def move(self, like: Tensor) -> None:
        """Put the patterns where the weights are; they stay where they are if the weights have no memory."""
        self.keeper = None
        if self.direct is not None:
            self.direct.move(like)
        if not like.is_meta:
            self.patterns = in_type(self.patterns, self.plan.chosen.program, like)

    def run(self, module: nn.Module, inputs: Sequence[Tensor], dtype: torch.dtype | None) -> Tensor:
        """The value of the network.

        Args:
            dtype: the type of autocast, which the inputs have already. What is contracted of weights alone is computed
                in the type of the weights and rounded once, as the weight of torch's layer is.
        """
        if dtype is None:
            if self._keeps and may_pack(inputs):
                program = self.plan.chosen.program
                keeper = self.keeper = self.keeper or Keeper(program, self.patterns, prefix="kept", packs=True)
                if keeper.is_current(module) or keeper.keep_unchanged(module):
                    return keeper.run(inputs, None)
            plain: Tensor = self.code.forward(*inputs, *self._taken(module, self.arguments, inputs[0]))
            return plain
        if self.halves is None:
            code, taken = self.code, self._taken(module, self.arguments, inputs[0])
        else:
            like = getattr(module, self.halves.weight)
            contracted = self.halves.first(*self._taken(module, self.halves.taken, like))
            code, taken = self.halves.second, [*self._taken(module, self.halves.left, like), *contracted]
        value: Tensor = code.forward(*inputs, *(lower_type(tensor, dtype) for tensor in taken))
        return value

    def _taken(self, module: nn.Module, names: Sequence[str], like: Tensor) -> list[Tensor]:
        """Tensors of the module by name, and patterns, of the type and on the device of another tensor."""
        patterns = self.patterns
        if any(one.dtype != like.dtype or one.device != like.device for one in patterns.values()):
            patterns = in_type(patterns, self.plan.chosen.program, like)
            if not is_watched():
                self.patterns = patterns
        return [patterns[name] if name in patterns else getattr(module, name) for name in names]


class _Halves:
    """The code of a plan in two parts: what depends on weights alone, and the rest, which takes the results."""

    def __init__(self, plan: Plan) -> None:
        program = plan.chosen.program
        supplied = supplied_values(program)
        self.first = emit(program, wanted=[*supplied])
        self.second = emit(program, supplied=supplied)
        self.taken = argument_names(program, wanted=[*supplied])
        self.left = argument_names(program, supplied)[: -len(supplied)]
        self.weight = next(one.name for one in program.operations if isinstance(one, Load) and one.kind == "weight")


@dataclass
class Frozen:
    """The code of a plan without the steps that depend on weights alone, whose values are kept.

    patterns: dense patterns.
    tensors: name -> the tensors of the module that the values are computed from.
    """

    plan: Plan
    patterns: dict[str, Tensor]
    tensors: dict[str, Tensor]

    @classmethod
    def of_module(cls, plan: Plan, module: nn.Module, names: Sequence[str]) -> Frozen:
        """The weights of a module with these names, contracted for a plan."""
        return cls(plan, dense_patterns(plan.chosen, plan.request), {name: getattr(module, name) for name in names})

    def __post_init__(self) -> None:
        self._sized = self.plan.chosen.program.has_sized_weights
        self._keepers: dict[tuple[bool, tuple[torch.Size, ...]], Keeper] = {}
        keeper = self._kept(self.plan.chosen.program, packs=True)
        self.code, self._packs = keeper.code, keeper.is_packed
        if not self._sized:
            self._keepers[self._packs, ()] = keeper

    __getstate__, __setstate__ = Executor.__getstate__, Executor.__setstate__

    def keeper_for(self, module: nn.Module, inputs: Sequence[Tensor], *, packs: bool) -> Keeper | None:
        """The code for inputs of these shapes; None if others stand in for the module's tensors during the call.

        Where what is made of weights has sizes that follow from the inputs, there is one for each of the last shapes.

        Args:
            packs: whether the code may take packed kernels.
        """
        packs, shapes = packs and self._packs, tuple(one.shape for one in inputs) if self._sized else ()
        key = packs, shapes
        keeper = self._keepers.get(key)
        if keeper is not None and keeper.is_current(module):
            return keeper
        if any(getattr(module, name) is not tensor for name, tensor in self.tensors.items()):
            return None
        program = self.plan.chosen.program
        if len(self._keepers) >= SHAPES:
            del self._keepers[next(iter(self._keepers))]
        keeper = self._kept(_at_shapes(self.plan, shapes) if self._sized else program, packs=packs)
        self._keepers[key] = keeper
        return keeper

    @property
    def keeper(self) -> Keeper | None:
        """The code for inputs of every shape, if there is one; of complex inputs a plan with transforms keeps none."""
        return None if self.plan.chosen.is_spectral else self._keepers.get((self._packs, ()))

    def _kept(self, program: Program, *, packs: bool) -> Keeper:
        like = next(iter(self.tensors.values()), None)
        patterns = self.patterns if like is None else in_type(self.patterns, self.plan.chosen.program, like)
        keeper = Keeper(program, patterns, prefix="frozen", packs=packs)
        keeper.keep(self.tensors)
        return keeper


def _at_shapes(plan: Plan, shapes: Sequence[torch.Size]) -> Program:
    """The program of a plan at the sizes that inputs of these shapes have."""
    program, network = plan.chosen.program, _whole(plan.chosen)
    labels = {one.name: labels_in(one.axes) for one in program.operations if isinstance(one, Load)}
    known = {label: size for label, size in network.sizes.items() if label not in program.moving}
    for name, shape in zip(program.inputs, shapes, strict=True):
        known |= dict(zip(labels[name], shape, strict=True))
    sizes = Network(network.nodes, network.output, known).sizes
    every = dict(program.sizes)  # labels of kernels alone, which the network does not have, stay as they are
    for label, size in program.sizes.items():
        plain = plain_label(label)
        every[label] = sizes[plain] + size - program.sizes[plain] if plain in sizes else size
    circles: set[str] = set()
    for one in program.operations:
        if isinstance(one, TransformKernel):
            ends = zip(one.circles, labels_in(one.axes[-len(one.circles) :]), strict=True)
            points = {label: every[circle] for circle, label in ends if circle}
            every |= {label: size // 2 + 1 if label in one.axes[-1] else size for label, size in points.items()}
            circles |= points.keys()
    counted = frozenset(label for label in program.moving if plain_label(label) not in sizes)
    return replace(program, sizes=every, moving=counted - circles)  # the code counts the blocks of transforms


def _whole(candidate: Candidate) -> Network:
    """The network whose labels a program has; of a sum, the nodes of all terms with the words that they share."""
    computation, sizes = candidate.computation, candidate.program.sizes
    if len(computation.network.terms) == 1:
        return computation.network
    nodes = [*(leaf.node for leaf in computation.leaves), *computation.views]
    labels = {label for node in nodes for label in node.labels}
    return Network(nodes, (), {label: sizes[label] for label in labels if label in sizes})


def _fixed_axes(plan: Plan) -> tuple[tuple[str, int, tuple[tuple[int, int], ...]], ...]:
    """For each input its name, its number of axes, and (axis, size) for each size that cannot change."""
    program = plan.chosen.program
    rows = []
    for name in plan.request.inputs:
        load = next(one for one in program.operations if isinstance(one, Load) and one.name == name)
        labels = labels_in(load.axes)  # those of the simplified network
        fixed = tuple((axis, program.sizes[label]) for axis, label in enumerate(labels) if label not in program.moving)
        rows.append((name, len(labels), fixed))
    return tuple(rows)
