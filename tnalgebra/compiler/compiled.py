"""`Compiled`: a network as a torch module, with its plan, its code, and weights that can be frozen."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any, Self

import torch
from torch import Tensor, fx, nn

from ..errors import CompileError, SizeError
from ..networks import Conv, Fill, NamedTensor, Network, node_text
from .choose import Candidate, PlanRequest, candidates_for, is_channels_last
from .computation import check_inputs
from .emit import argument_names, emit
from .operations import Load, Program, labels_in
from .plan import Plan
from .tune import make_timer, tune_candidates
from .weights import contract_weights, dense_patterns, lay_out

SEEN = 256
"""Number of different shapes of inputs that are remembered as checked."""


class Compiled(nn.Module):
    """A network as a torch module, made by `compile` and called with the inputs in their order or by name.

    Its parameters have the names of the network's tensors. It computes for all inputs whose sizes agree with the
    weights; the plan is chosen for the nominal sizes.

        module = tn.compile("X[n i] W[o i] -> [n o]", inputs={"X": (16, 64)}, values={"W": weight})
        module(x)                                       # shape (n, o)

    Attributes:
        network: the network, with its nominal sizes.
        plan: how the network is computed; `print(module.plan)` shows it.
    """

    network: Network
    plan: Plan
    _tune: bool
    _weights: tuple[str, ...]
    _code: fx.GraphModule
    _supplied: dict[int, str]
    _arguments: tuple[str, ...]
    _fixed: tuple[tuple[str, int, tuple[tuple[int, int], ...]], ...]
    _thawed: Plan | None
    _seen: set[tuple[tuple[torch.Size, torch.dtype], ...]]

    def __init__(
        self, request: PlanRequest, values: Mapping[str, Tensor], constants: frozenset[str], tune: bool
    ) -> None:
        super().__init__()
        _check_names(self, (*request.inputs, *values))
        self.network = request.network
        self._tune = tune
        self._weights = tuple(values)
        self._thawed = None
        for name, value in values.items():
            if name in constants or not value.is_floating_point():
                self.register_buffer(name, value.detach().clone())
            else:
                parameter = value if isinstance(value, nn.Parameter) else nn.Parameter(value.detach().clone())
                self.register_parameter(name, parameter)
        self._use(self._make_plan(request))

    # Calling ---------------------------------------------------------------------------------------------------

    def forward(self, *inputs: Tensor, **named: Tensor) -> Tensor:
        """The value of the network: a tensor with one axis for each output label.

        Raises:
            CompileError: an input is missing, or its dtype, number of axes or sizes do not fit the network.
        """
        tensors = self._inputs(inputs, named) if named or len(inputs) != len(self._fixed) else inputs
        if torch.compiler.is_compiling():
            self._check_tensors(tensors)
        else:
            try:
                seen = tuple((tensor.shape, tensor.dtype) for tensor in tensors)
            except AttributeError:
                self._check_tensors(tensors)
                raise
            if seen not in self._seen:
                self._check_tensors(tensors)
                self._check_sizes(tensors)
                if len(self._seen) < SEEN and not torch.is_autocast_enabled(tensors[0].device.type):
                    self._seen.add(seen)
        stored = [getattr(self, name) for name in self._arguments]
        if not self._weights:  # the arguments are dense patterns, whose dtype follows the inputs
            stored = [tensor.to(tensors[0].dtype) for tensor in stored]
        return self._code.forward(*tensors, *stored)  # type: ignore[no-any-return]

    def _check_tensors(self, tensors: Sequence[Tensor]) -> None:
        dtype = getattr(self, self._weights[0]).dtype if self._weights else getattr(tensors[0], "dtype", None)
        for tensor, (name, count, sizes) in zip(tensors, self._fixed, strict=True):
            if not isinstance(tensor, Tensor):
                raise CompileError(f"the input {name!r} is not a tensor", given=type(tensor).__name__)
            if tensor.ndim != count or any(tensor.shape[axis] != size for axis, size in sizes):
                self._refuse_shape(name, tensor)
            if not tensor.is_floating_point():
                raise CompileError(f"the input {name!r} is {tensor.dtype}", fix="floating point numbers")
            if tensor.dtype != dtype and not torch.is_autocast_enabled(tensor.device.type):
                others = "the weights are" if self._weights else f"{self._fixed[0][0]!r} is"
                raise CompileError(
                    f"the input {name!r} is {tensor.dtype}, {others} {dtype}",
                    fix=f"{name}.to({dtype}), or torch.autocast",
                )

    def _inputs(self, inputs: Sequence[Tensor], named: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        names = [name for name, _, _ in self._fixed]
        if len(inputs) > len(names):
            raise CompileError(f"{len(inputs)} inputs are given to a network of {len(names)}", inputs=" ".join(names))
        by_name = dict(zip(names, inputs, strict=False))
        for name, tensor in named.items():
            if name not in names or name in by_name:
                fact = "is given twice" if name in by_name else "is not an input"
                raise CompileError(f"{name!r} {fact}", inputs=" ".join(names))
            by_name[name] = tensor
        missing = [name for name in names if name not in by_name]
        if missing:
            raise CompileError(f"the input {missing[0]!r} is missing", inputs=" ".join(names))
        return tuple(by_name[name] for name in names)

    def _check_sizes(self, tensors: Sequence[Tensor]) -> None:
        """Refuse inputs whose shapes do not agree with each other, with the windows or with the weights."""
        sizes = self._own_sizes()
        shapes = [tuple(tensor.shape) for tensor in tensors]
        by_name = dict(zip(self.plan.request.inputs, shapes, strict=True))
        try:
            Network(self.network.nodes, self.network.output, {**sizes, **check_inputs(self.network, by_name)})
        except SizeError as error:
            listed = ", ".join(f"{name} {shape}" for name, shape in by_name.items())
            fact = "the sizes of the inputs do not fit each other or the weights"
            raise CompileError(fact, shapes=listed, because=error) from None

    def _own_sizes(self) -> dict[str, int]:
        """The sizes that the weights and the windows determine."""
        moving = self._moving()
        return {label: size for label, size in self.network.sizes.items() if label not in moving}

    def _moving(self) -> set[str]:
        """Labels whose size may change: those of the inputs, and those that nodes other than weights tie to them."""
        nodes = self.network.nodes
        moving: set[str] = set()
        for name, _, fixed in self._fixed:
            labels = next(node.labels for node in nodes if isinstance(node, NamedTensor) and node.name == name)
            moving |= {label for axis, label in enumerate(labels) if axis not in dict(fixed)}
        settled = {label for node in nodes if node.name in self._weights for label in node.labels}
        settled |= {node.k for node in nodes if isinstance(node, Conv)}
        for _ in nodes:
            for node in nodes:
                ends = node.labels[:2] if isinstance(node, Conv) else node.labels
                if not isinstance(node, NamedTensor | Fill) and moving & {*ends}:
                    moving |= {*ends} - settled
        return moving - settled

    def _refuse_shape(self, name: str, tensor: Tensor) -> None:
        node = next(n for n in self.network.nodes if isinstance(n, NamedTensor) and n.name == name)
        _, count, sizes = next(row for row in self._fixed if row[0] == name)
        shape = tuple(tensor.shape)
        if tensor.ndim != count:
            fact = f"the input {name!r} has {tensor.ndim} axes, its node has {count}"
        else:
            axis, size = next((axis, size) for axis, size in sizes if shape[axis] != size)
            fact = f"the axis {node.labels[axis]!r} of the input {name!r} has {shape[axis]} elements, not {size}"
        raise CompileError(fact, shape=shape, node=node_text(node, self.network.sizes, set()))

    @property
    def code(self) -> str:
        """The Python code that runs, as text."""
        return re.sub(r";  [^;]* = None$", "", str(self._code.code).strip(), flags=re.MULTILINE)

    @property
    def frozen(self) -> bool:
        """Whether the module is frozen: whether contracted weights are stored."""
        return self._thawed is not None

    # Freezing --------------------------------------------------------------------------------------------------

    def freeze(self) -> Self:
        """Contract once all that depends on weights alone, store it, and choose a plan for the rest.

        A frozen module is in evaluation mode. Changes of its parameters have no effect, and they get no gradients. The
        stored tensors are buffers that are not in the state dict. `train()` and loading a state dict thaw the module.

        Returns:
            The module itself.
        """
        if self.frozen:
            return self
        like = self._like()
        dtype = like.dtype if self._weights else torch.float64  # for dense patterns, whose dtype follows the inputs
        request = replace(self.plan.request, frozen=True, backward=False, dtype=dtype, device=like.device)
        plan = self._make_plan(request)
        weights = {name: getattr(self, name).detach() for name in self._weights}
        supplied, stored = contract_weights(plan.chosen.program, weights | dense_patterns(plan.chosen, request))
        for name, tensor in stored.items():
            self.register_buffer(name, tensor, persistent=False)
        self._thawed = self.plan
        self._run(plan, supplied)
        return super().train(False)

    def thaw(self) -> Self:
        """Use the parameters again instead of the stored tensors; returns the module itself."""
        if self._thawed is not None:
            for name in self._supplied.values():
                delattr(self, name)
            plan, self._thawed = self._thawed, None
            self._run(plan, {})
        return self

    def replan(
        self,
        inputs: Mapping[str, Sequence[int]] | Sequence[int],
        *,
        tune: bool | None = None,
        backward: bool | None = None,
        memory_format: torch.memory_format | None = None,
    ) -> Self:
        """Choose another plan, for other nominal shapes and the present device and dtype of the weights.

        Args:
            inputs: the nominal shape of every input, by name; for a module with one input, the shape alone.
            tune, backward, memory_format: as in `compile`; by default they remain as they are.

        Returns:
            The module itself.

        Raises:
            CompileError, SizeError: the shapes do not fit, or no plan keeps within the largest number of elements.
        """
        shapes = self._nominal_shapes(inputs, memory_format)
        frozen, like, before = self.frozen, self._like(), self._thawed or self.plan
        sizes = {**self._own_sizes(), **check_inputs(self.network, shapes)}
        network = Network(self.network.nodes, self.network.output, sizes)
        request = replace(before.request, network=network, dtype=like.dtype, device=like.device)
        if backward is not None:
            request = replace(request, backward=backward)
        if memory_format is not None:
            request = replace(request, channels_last=is_channels_last(memory_format))
        self._tune = self._tune if tune is None else tune
        plan = self._make_plan(request)
        self.thaw()
        for name in dense_patterns(before.chosen, before.request):
            delattr(self, name)
        self.network = request.network
        self._use(plan)
        return self.freeze() if frozen else self

    def _nominal_shapes(
        self, inputs: Mapping[str, Sequence[int]] | Sequence[int], memory_format: torch.memory_format | None
    ) -> Mapping[str, Sequence[int]]:
        """The nominal shape of every input, by name, from the arguments of `replan`; layers check the format too."""
        names = self.plan.request.inputs
        if not isinstance(inputs, Mapping):
            if len(names) > 1:
                raise CompileError(f"one shape is given for {len(names)} inputs", inputs=" ".join(names))
            inputs = {names[0]: inputs}
        missing = [name for name in names if name not in inputs]
        if missing:
            raise CompileError(f"the input {missing[0]!r} has no shape", inputs=" ".join(names))
        return inputs

    def train(self, mode: bool = True) -> Self:
        """Set training or evaluation mode; training mode thaws the module."""
        if mode:
            self.thaw()
        return super().train(mode)

    def _load_from_state_dict(self, *args: Any, **keywords: Any) -> None:
        self.thaw()
        self._seen.clear()
        super()._load_from_state_dict(*args, **keywords)

    def _apply(self, *args: Any, **keywords: Any) -> Any:
        self._seen.clear()  # the dtype may change
        return super()._apply(*args, **keywords)  # type: ignore[no-untyped-call]

    def extra_repr(self) -> str:
        return f"{self.network}{', frozen' if self.frozen else ''}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"

    # Making ----------------------------------------------------------------------------------------------------

    def _make_plan(self, request: PlanRequest) -> Plan:
        listed = candidates_for(request)
        if self._tune and len(listed) > 1:
            listed = tune_candidates(listed, request, lambda candidate: self._timer(candidate, request))
        return Plan(request, tuple(listed))

    def _use(self, plan: Plan) -> None:
        """Use a plan, with its dense patterns and with the order of each weight in memory that it needs."""
        lay_out(plan.chosen.program, {name: tensor for name, tensor in self._parameters.items() if tensor is not None})
        for name, dense in dense_patterns(plan.chosen, plan.request).items():
            self.register_buffer(name, dense, persistent=False)
        self._run(plan, {})

    def _run(self, plan: Plan, supplied: dict[int, str]) -> None:
        """Run the code of a plan; `supplied`: the names of the buffers of stored values, by their position."""
        program = plan.chosen.program
        self.plan, self._supplied = plan, supplied
        self._code = emit(program, supplied=supplied).train(self.training)
        self._seen = set()
        self._arguments = argument_names(program, supplied)
        self._fixed = _fixed_axes(plan.request, program)

    def _like(self) -> Tensor:
        """A tensor with the dtype and the device of the weights."""
        tensors = [tensor for tensor in (*self.parameters(), *self.buffers()) if tensor.is_floating_point()]
        return tensors[0] if tensors else torch.empty(0, dtype=self.plan.request.dtype, device=self.plan.request.device)

    def __getstate__(self) -> dict[str, Any]:
        """The state without the code, because torch.fx would trace it again and rename its arguments."""
        modules = {name: module for name, module in self._modules.items() if name != "_code"}
        return {**self.__dict__, "_modules": modules}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._run(self.plan, self._supplied)

    def _timer(self, candidate: Candidate, request: PlanRequest) -> Callable[[], float]:
        return make_timer(candidate, request, {name: getattr(self, name) for name in self._weights})


def _fixed_axes(request: PlanRequest, program: Program) -> tuple[tuple[str, int, tuple[tuple[int, int], ...]], ...]:
    """For each input its name, its number of axes, and (axis, size) for each size that cannot change."""
    rows = []
    for name in request.inputs:
        load = next(one for one in program.operations if isinstance(one, Load) and one.name == name)
        labels = labels_in(load.axes)  # those of the simplified network
        fixed = tuple((axis, program.sizes[label]) for axis, label in enumerate(labels) if label not in program.moving)
        rows.append((name, len(labels), fixed))
    return tuple(rows)


def _check_names(module: nn.Module, names: Sequence[str]) -> None:
    for name in names:
        if hasattr(module, name) or hasattr(type(module), name) or name in (*Compiled.__annotations__, "self"):
            fact = f"a tensor is called {name!r}, which is an attribute of torch modules or of Compiled"
            raise CompileError(fact, fix="another name in the network")
