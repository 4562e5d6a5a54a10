"""`Compiled`: a network as a torch module, with its plan, its code, and weights that can be frozen."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from ..errors import CompileError, SizeError, ValuesError, explain
from ..evaluation import pattern
from ..network import Network
from ..nodes import NamedTensor, node_text
from .choosing import Candidate, Request, candidates_for, tuned, weights_only
from .emitting import argument_names, emit
from .lowering import Program
from .operations import Load, sources
from .plans import Plan


class Compiled(nn.Module):
    """A network as a module: call it with its inputs, in their order or by name.

    Its parameters are named after the network's tensors. It computes for inputs of every size that agrees with the
    weights; the plan was chosen for the nominal sizes.

    Attributes:
        network: what is computed.
        plan: how; `print(module.plan)` shows it.
    """

    network: Network
    plan: Plan

    def __init__(self, request: Request, values: Mapping[str, Tensor], constants: frozenset[str], tune: bool) -> None:
        super().__init__()
        _check_names(self, (*request.inputs, *values))
        self.network = request.network
        self._tune = tune
        self._weights = tuple(values)
        self._pattern_names: tuple[str, ...] = ()
        for name, value in values.items():
            if name in constants or not value.is_floating_point():
                self.register_buffer(name, value)
            else:
                own = value if isinstance(value, nn.Parameter) else nn.Parameter(value)
                self.register_parameter(name, own)
        self.plan = self._planned(request)
        self._arrange_memory(self.plan.chosen.program)
        self._register_patterns(self.plan.chosen)
        program = self.plan.chosen.program
        self._arguments = argument_names(program)
        self._code = emit(program)
        self._thawed: tuple[Plan, fx.GraphModule, tuple[str, ...]] | None = None
        self._fixed = _fixed_axes(request, program)

    # Calling ---------------------------------------------------------------------------------------------------

    def forward(self, *inputs: Tensor, **named: Tensor) -> Tensor:
        """The value of the network, one axis for each output label.

        Raises:
            CompileError: an input is missing, has another number of axes, another size where a weight fixes it, or
                another dtype.
        """
        tensors = self._inputs(inputs, named) if named or len(inputs) != len(self._fixed) else inputs
        dtype = getattr(self, self._weights[0]).dtype if self._weights else tensors[0].dtype
        for tensor, (name, count, sizes) in zip(tensors, self._fixed, strict=True):
            if tensor.ndim != count or any(tensor.shape[axis] != size for axis, size in sizes):
                self._refuse_shape(name, tensor)
            if not tensor.is_floating_point():
                raise CompileError(explain(f"the input {name!r} is {tensor.dtype}", fix="floating point numbers"))
            if tensor.dtype != dtype and not torch.is_autocast_enabled(tensor.device.type):
                others = "the weights are" if self._weights else f"{self._fixed[0][0]!r} is"
                raise CompileError(
                    explain(
                        f"the input {name!r} is {tensor.dtype}, {others} {dtype}",
                        fix=f"{name}.to({dtype}), or torch.autocast",
                    )
                )
        own = (getattr(self, name) for name in self._arguments)
        if not self._weights:  # dense patterns alone, which follow the inputs
            own = (tensor.to(dtype) for tensor in own)
        return self._code(*tensors, *own)  # type: ignore[no-any-return]

    def _inputs(self, inputs: Sequence[Tensor], named: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        names = [name for name, _, _ in self._fixed]
        if len(inputs) > len(names):
            raise CompileError(explain(f"{len(inputs)} inputs are given", inputs=" ".join(names)))
        given = dict(zip(names, inputs, strict=False))
        for name, tensor in named.items():
            if name not in names or name in given:
                fact = "is given twice" if name in given else "is no input"
                raise CompileError(explain(f"{name!r} {fact}", inputs=" ".join(names)))
            given[name] = tensor
        missing = [name for name in names if name not in given]
        if missing:
            raise CompileError(explain(f"the input {missing[0]!r} is missing", inputs=" ".join(names)))
        return tuple(given[name] for name in names)

    def _refuse_shape(self, name: str, tensor: Tensor) -> None:
        node = next(n for n in self.network.nodes if isinstance(n, NamedTensor) and n.name == name)
        _, count, sizes = next(row for row in self._fixed if row[0] == name)
        shape = tuple(tensor.shape)
        if tensor.ndim != count:
            fact = f"the input {name!r} has {tensor.ndim} axes, its node has {count}"
        else:
            axis, size = next((axis, size) for axis, size in sizes if shape[axis] != size)
            fact = f"the axis {node.labels[axis]!r} of the input {name!r} has {shape[axis]} elements, needed are {size}"
        raise CompileError(explain(fact, shape=shape, node=node_text(node, self.network.sizes, set())))

    @property
    def code(self) -> str:
        """The Python that runs, as text."""
        return str(self._code.code).strip()

    @property
    def frozen(self) -> bool:
        """Whether contracted weights are stored."""
        return self._thawed is not None

    # Freezing --------------------------------------------------------------------------------------------------

    def freeze(self) -> Compiled:
        """Contract what only weights go into, once, and choose the plan anew for that: the module itself.

        The stored tensors are buffers that no checkpoint holds. `train()` and loading a state thaw: the parameters
        are used again. While frozen, changes of the parameters have no effect and no gradient reaches them.
        """
        if self.frozen:
            return self
        before = (self.plan, self._code, self._arguments)
        plan = self._planned(replace(self.plan.request, frozen=True, backward=False))
        program = plan.chosen.program
        self._register_patterns(plan.chosen)
        given = {number: f"frozen_{count}" for count, number in enumerate(_frontier(program))}
        for name in given.values():
            _check_names(self, (name,))
        if given:
            for name, tensor in zip(given.values(), _contracted(self, program, list(given)), strict=True):
                self.register_buffer(name, tensor, persistent=False)
        self.plan = plan
        self._code = emit(program, given=given)
        self._arguments = argument_names(program, given)
        self._fixed = _fixed_axes(plan.request, program)
        self._thawed = before
        return super().train(False)

    def thaw(self) -> Compiled:
        """Use the parameters again: the module itself."""
        if self._thawed is not None:
            for name in self._arguments:
                if name.startswith("frozen_"):
                    delattr(self, name)
            self.plan, self._code, self._arguments = self._thawed
            self._fixed = _fixed_axes(self.plan.request, self.plan.chosen.program)
            self._thawed = None
        return self

    def train(self, mode: bool = True) -> Compiled:
        """As of any module; training thaws."""
        if mode:
            self.thaw()
        return super().train(mode)

    def _load_from_state_dict(self, *args: Any, **keywords: Any) -> None:
        self.thaw()
        super()._load_from_state_dict(*args, **keywords)

    def extra_repr(self) -> str:
        return f"{self.network}{', frozen' if self.frozen else ''}"

    # Making ----------------------------------------------------------------------------------------------------

    def _planned(self, request: Request) -> Plan:
        listed = candidates_for(request)
        if self._tune and len(listed) > 1:
            listed = tuned(listed, request, lambda candidate: self._timer(candidate, request))
        return Plan(request, tuple(listed))

    def _register_patterns(self, candidate: Candidate) -> None:
        for leaf in (*candidate.problem.leaves, *candidate.program.patterns):
            if leaf.kind == "pattern" and leaf.name not in self._buffers:
                dense = pattern(leaf.node, candidate.problem.network)
                request = candidate_request_dtype(self)
                self.register_buffer(leaf.name, dense.to(request), persistent=False)

    def _arrange_memory(self, program: Program) -> None:
        """Lay each weight out as its first step wants it; shapes and elements stay."""
        self._laid_out(program, {name: tensor for name, tensor in self._parameters.items() if tensor is not None})

    def _laid_out(self, program: Program, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        found = dict(tensors)
        for operation in program.operations:
            if isinstance(operation, Load) and operation.name in program.stored and operation.name in tensors:
                labels = [axis[0] for axis in operation.axes]
                wanted = [labels.index(label) for label in program.stored[operation.name]]
                back = [wanted.index(axis) for axis in range(len(wanted))]
                tensor = tensors[operation.name]
                with torch.no_grad():
                    tensor.data = tensor.data.permute(wanted).contiguous().permute(back)
        return found

    def _timer(self, candidate: Candidate, request: Request) -> Callable[[], float]:
        trial = _Trial(self, candidate, request)
        return trial.seconds


def candidate_request_dtype(module: nn.Module) -> torch.dtype:
    """The dtype of a module's parameters, or torch's default."""
    return next((p.dtype for p in module.parameters() if p.is_floating_point()), torch.get_default_dtype())


class _Trial:
    """One candidate with tensors of its own, to be timed."""

    def __init__(self, module: Compiled, candidate: Candidate, request: Request) -> None:
        program = candidate.program
        self.request = request
        self.device = request.device
        sizes = candidate.problem.sizes
        weights: dict[str, Tensor] = {}
        for operation in program.operations:
            if not isinstance(operation, Load):
                continue
            if operation.kind == "input":
                shape = [sizes[axis[0]] for axis in operation.axes]
                tensor = torch.randn(shape, dtype=request.dtype, device=request.device)
                if request.channels_last and tensor.ndim in (4, 5):
                    layout = torch.channels_last if tensor.ndim == 4 else torch.channels_last_3d
                    tensor = tensor.contiguous(memory_format=layout)
                weights[operation.name] = tensor.requires_grad_(request.backward)
            elif operation.kind == "pattern":
                leaf = next(one for one in (*candidate.problem.leaves, *program.patterns) if one.name == operation.name)
                dense = pattern(leaf.node, candidate.problem.network)
                weights[operation.name] = dense.to(request.device, request.dtype)
            else:
                value = getattr(module, operation.name).detach().clone()
                weights[operation.name] = value.requires_grad_(request.backward)
        module._laid_out(program, {k: v for k, v in weights.items() if k not in program.inputs})
        given: dict[int, str] = {}
        if request.frozen:
            given = {number: f"frozen_{count}" for count, number in enumerate(_frontier(program))}
            parts = emit_values(program, list(given), weights)
            weights |= dict(zip(given.values(), parts, strict=True))
        self.code = emit(program, given=given)
        self.tensors = [weights[name] for name in (*program.inputs, *argument_names(program, given))]
        self.grad: Tensor | None = None

    def seconds(self) -> float:
        """Run once."""
        self._wait()
        started = time.perf_counter()
        if self.request.backward:
            value = self.code(*self.tensors)
            if self.grad is None:
                self.grad = torch.randn_like(value)
            torch.autograd.grad(value, [t for t in self.tensors if t.requires_grad], self.grad)
        else:
            with torch.no_grad():
                self.code(*self.tensors)
        self._wait()
        return time.perf_counter() - started

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


def emit_values(program: Program, wanted: Sequence[int], tensors: Mapping[str, Tensor]) -> list[Tensor]:
    """Values that only weights go into, computed now, each with memory of its own."""
    if not wanted:
        return []
    code = emit(program, wanted=wanted)
    names = [node.target for node in code.graph.nodes if node.op == "placeholder"]
    with torch.no_grad():
        return [value.detach().clone() for value in code(*(tensors[str(name)] for name in names))]


def _contracted(module: nn.Module, program: Program, wanted: Sequence[int]) -> list[Tensor]:
    loads = {operation.name for operation in program.operations if isinstance(operation, Load)}
    tensors = {name: getattr(module, name).detach() for name in loads if name not in program.inputs}
    return emit_values(program, wanted, tensors)


def _frontier(program: Program) -> list[int]:
    """Values that only weights go into, and that something else takes (or that are the result)."""
    flags = weights_only(program)
    taken = {source for n, op in enumerate(program.operations) if not flags[n] for source in sources(op)}
    if flags and flags[-1]:
        taken.add(len(flags) - 1)
    return sorted(number for number in taken if flags[number])


def _fixed_axes(request: Request, program: Program) -> tuple[tuple[str, int, tuple[tuple[int, int], ...]], ...]:
    """For each input its name, its number of axes, and (axis, size) where the size cannot change."""
    rows = []
    for name in request.inputs:
        node = next(n for n in request.network.nodes if isinstance(n, NamedTensor) and n.name == name)
        fixed = tuple(
            (axis, request.network.sizes[label])
            for axis, label in enumerate(node.labels)
            if label not in program.moving
        )
        rows.append((name, len(node.labels), fixed))
    return tuple(rows)


def _check_names(module: nn.Module, names: Sequence[str]) -> None:
    for name in names:
        if hasattr(module, name):
            raise CompileError(
                explain(
                    f"a tensor is called {name!r}, which torch's modules use themselves",
                    fix="another name in the network",
                )
            )


__all__ = ["Compiled", "SizeError", "ValuesError"]
