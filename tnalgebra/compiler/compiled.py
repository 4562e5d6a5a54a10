"""`Compiled`: a network as a torch module, with its plan, its code, and weights that can be frozen."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from math import log
from typing import Any, ClassVar, NoReturn, Self

import torch
from torch import Tensor, fx, nn

from ..errors import CompileError, SizeError
from ..networks import Conv, Fill, NamedTensor, Network, all_nodes, node_text, resized, tensors_of
from .choose import COMPLEX, COMPUTED, PlanRequest, is_channels_last
from .computation import check_inputs, labels_from_inputs
from .empty import empty_labels, with_one_element, without_elements
from .executor import Executor, Frozen
from .keeper import lower_type
from .operations import Pool
from .packing import may_pack
from .plan import Plan
from .tracing import is_exported, is_jit_traced, is_symbolic, is_traced, is_watched, leaf_call
from .tune import ranked_candidates
from .weights import dense_patterns

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
    """

    network: Network
    _computed: ClassVar[tuple[torch.dtype, ...]] = (*COMPUTED, *COMPLEX)
    _lowered: ClassVar[bool] = True  # whether autocast has the input in its type, as in torch's linear layers
    _unchecked: bool = False  # whether a tensor was replaced since the last call
    _tune: bool
    _weights: tuple[str, ...]
    _executor: Executor
    _frozen: Frozen | None
    _seen: dict[tuple[object, ...], Executor]  # of the shapes that were checked
    _others: dict[tuple[int, ...], Executor]  # by the class of sizes

    def __init__(
        self, request: PlanRequest, values: Mapping[str, Tensor], constants: frozenset[str], tune: bool
    ) -> None:
        super().__init__()
        _check_names(self, (*request.inputs, *values))
        self.network = request.network
        self._tune = tune
        self._weights = tuple(values)
        for name, value in values.items():
            if name in constants or not (value.is_floating_point() or value.is_complex()):
                self.register_buffer(name, value.detach().clone())
            else:
                parameter = value if isinstance(value, nn.Parameter) else nn.Parameter(value.detach().clone())
                self.register_parameter(name, parameter)
        self._straighten()
        self._use(self._make_plan(request))

    # Calling ---------------------------------------------------------------------------------------------------

    def forward(self, *inputs: Tensor, **named: Tensor) -> Tensor:
        """The value of the network: a tensor with one axis for each output label.

        Raises:
            CompileError: an input is missing, or its dtype, number of axes or sizes do not fit the network.
        """
        if named and not is_symbolic(*inputs, *named.values()):
            inputs, named = self._inputs(inputs, named), {}
        if not named and (value := self._at_once(inputs)) is not None:
            return value
        if named or len(inputs) != len(self._executor.fixed):
            if is_symbolic(*inputs, *named.values()):
                return leaf_call(self, inputs, named)
            inputs = self._inputs(inputs, named)
        others = [number for number, one in enumerate(inputs) if not isinstance(one, Tensor)]
        if others:
            if is_symbolic(*inputs):
                return leaf_call(self, inputs, {})
            name, kind = self._executor.fixed[others[0]][0], type(inputs[others[0]]).__name__
            self._refuse(f"the input {name!r} is not a tensor", given=kind)
        kind = inputs[0].device.type
        if kind == "meta" and is_jit_traced():
            fix = "torch.export, or a device with memory"
            self._refuse("torch.jit.trace cannot follow the sizes of tensors on the meta device", fix=fix)
        if kind == "meta" or not torch.is_autocast_enabled(kind):
            return self._run(inputs, None)
        dtype = torch.get_autocast_dtype(kind) if self._lowered and len(self._weights) + len(inputs) > 1 else None
        with torch.autocast(kind, enabled=False):
            return self._run(inputs if dtype is None else [lower_type(one, dtype) for one in inputs], dtype)

    def _at_once(self, inputs: Sequence[Any]) -> Tensor | None:
        """The value, in the least time, if an earlier call has checked the inputs' types and sizes; else None."""
        if self._unchecked or is_watched() or torch._C._is_any_autocast_enabled():
            return None
        if len(inputs) == 1 and type(inputs[0]) is Tensor:
            executor, plain = self._seen.get((None, (inputs[0].shape, inputs[0].dtype))), True
        else:
            tensors = [one for one in inputs if isinstance(one, Tensor)]
            plain = all(type(one) is Tensor for one in tensors)
            executor = self._seen.get((None, *[(one.shape, one.dtype) for one in tensors]))
        if executor is None:
            return None
        if plain and not torch.is_grad_enabled():
            keeper = (self._frozen or executor).keeper
            if keeper is not None and keeper.rows and keeper.is_current(self):
                return keeper.code.forward(*inputs, *keeper.values)  # type: ignore[no-any-return]
        return self._execute(executor, inputs, None)

    def _run(self, tensors: Sequence[Tensor], dtype: torch.dtype | None) -> Tensor:
        """The value of the network, computed in the type of autocast or, without one, in that of the weights."""
        executor: Executor | None = None
        if torch.compiler.is_compiling():
            self._check_tensors(tensors, dtype)
        else:
            seen = (dtype, *[(tensor.shape, tensor.dtype) for tensor in tensors])
            executor = self._seen.get(seen)
            if executor is None and not is_jit_traced():
                self._check_tensors(tensors, dtype)
                request = self.plan.request
                if empty := empty_labels(request, tensors):
                    value = self._run(with_one_element(request, tensors, empty), dtype)
                    return without_elements(request.network, value, empty)
                sizes = self._check_sizes(tensors)
                executor = self._executor_for(sizes)
                if len(self._seen) < SEEN and not is_watched():
                    self._seen[seen] = executor
        return self._execute(executor or self._executor, tensors, dtype)

    def _execute(self, executor: Executor, tensors: Sequence[Tensor], dtype: torch.dtype | None) -> Tensor:
        is_complex = tensors[0].is_complex() and executor.plan.chosen.is_spectral
        if executor.direct is not None and (is_complex or is_exported()):
            return executor.direct.run(self, tensors, dtype)
        frozen = self._frozen
        if frozen is not None and not is_traced() and not (tensors[0].is_complex() and frozen.plan.chosen.is_spectral):
            keeper = frozen.keeper_for(self, tensors, packs=dtype is None and may_pack(tensors))
            if keeper is not None:
                return keeper.run(tensors, dtype)
        return executor.run(self, tensors, dtype)

    def _check_tensors(self, tensors: Sequence[Tensor], lowered: torch.dtype | None) -> None:
        first = getattr(self, self._weights[0]) if self._weights else tensors[0]
        if self._weights:
            self._check_type(first)
        if first.is_complex() and first.dtype in self._computed:
            self._check_complex()
        dtype = first.dtype if lowered is None else lower_type(first.new_empty(0), lowered).dtype
        for tensor, (name, count, sizes) in zip(tensors, self._executor.fixed, strict=True):
            if tensor.ndim != count or any(tensor.shape[axis] != size for axis, size in sizes):
                self._refuse_shape(name, tensor)
            if not tensor.is_floating_point() and tensor.dtype not in self._computed:
                self._refuse(f"the input {name!r} is {tensor.dtype}", fix="floating point numbers")
            if tensor.dtype != dtype:
                others = "the weights are" if self._weights else f"{self._executor.fixed[0][0]!r} is"
                fact = f"the input {name!r} is {tensor.dtype}, {others} {dtype}"
                self._refuse(fact, fix=f"{name}.to({dtype}), or torch.autocast")

    def _check_complex(self) -> None:
        if any(isinstance(operation, Pool) for operation in self.plan.chosen.program.operations):
            fact = "torch has no pooling of complex numbers"
            self._refuse(fact, fix="the real and the imaginary parts one after the other, or tn.evaluate")

    def _check_type(self, weight: Tensor) -> None:
        if weight.dtype not in self._computed:
            self._refuse(f"the weights are {weight.dtype}", fix=f"one of {', '.join(map(str, self._computed))}")

    def _refuse(self, fact: str, **context: Any) -> NoReturn:
        raise CompileError(fact, **context, layer=self._title())

    def _title(self) -> str | None:
        """What an error calls the module; None where the network says it."""
        return None

    def _inputs(self, inputs: Sequence[Tensor], named: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        names = [name for name, _, _ in self._executor.fixed]
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

    def _executor_for(self, sizes: Mapping[str, int]) -> Executor:
        """The code for inputs of other sizes: that of the plan, or of another one for this class of sizes.

        A class has sizes that are each within a factor of 2 of a power of 4 times the nominal one. A frozen module has
        one plan, and so has one that is traced.
        """
        request, computation = self._executor.plan.request, self._executor.plan.chosen.computation
        if not self._moving() & {*self.network.output} <= labels_from_inputs(computation, splits=False):
            return self._executor  # inputs of one size have outputs of several, as in a transposed convolution
        powers = self._class_of(sizes)
        if not any(powers) or self._frozen is not None or request.dynamic or is_watched() or self._like().is_meta:
            return self._executor
        if powers not in self._others:
            request = replace(request, network=resized(self.network, sizes))
            try:
                plan = Plan(request, ranked_candidates(request, tune=self._tune and not request.backward))
            except CompileError:  # another limit of elements than the nominal sizes keep within
                plan = self._executor.plan
            same = plan.chosen.program.text == self._executor.plan.chosen.program.text
            self._others[powers] = self._executor if same else Executor(plan, dense_patterns(plan.chosen, request))
        return self._others[powers]

    def _class_of(self, sizes: Mapping[str, int]) -> tuple[int, ...]:
        """The powers of 4 by which the sizes of the inputs nearly are the nominal ones; 0 of an empty axis.

        Many images of few positions have other plans than one image of as many, so that the product is not enough.
        """
        # of a sum the labels of the term that has an input first, as other terms have other words for the same axes
        names = self._executor.plan.request.inputs
        terms = [next(term for term in self.network.terms if name in tensors_of(term)) for name in names]
        pairs = zip(terms, names, strict=True)
        nodes = [n for term, name in pairs for n in term.nodes if isinstance(n, NamedTensor) and n.name == name]
        free = {label for node in nodes for label in node.labels} & self._moving()
        ratios = [sizes[label] / max(1, self.network.sizes[label]) for label in sorted(free)]
        return tuple(round(log(ratio, 4)) if ratio else 0 for ratio in ratios)

    def _check_sizes(self, tensors: Sequence[Tensor]) -> dict[str, int]:
        """The sizes of all labels. Refuses shapes that do not agree with each other, the windows or the weights."""
        sizes = self._own_sizes()
        shapes = [tuple(tensor.shape) for tensor in tensors]
        by_name = dict(zip(self.plan.request.inputs, shapes, strict=True))
        try:
            known = {**sizes, **check_inputs(self.network, by_name)}
            return dict(resized(self.network, known).sizes)
        except SizeError as error:
            listed = ", ".join(f"{name} {shape}" for name, shape in by_name.items())
            fact = "the sizes of the inputs do not fit each other or the weights"
            raise CompileError(fact, shapes=listed, because=error, layer=self._title()) from None

    def _own_sizes(self) -> dict[str, int]:
        """The sizes that the weights and the windows determine."""
        moving = self._moving()
        return {label: size for label, size in self.network.sizes.items() if label not in moving}

    def _moving(self) -> set[str]:
        """Labels whose size may change: those of the inputs, and those that nodes other than weights tie to them."""
        nodes = list(all_nodes(self.network))
        moving: set[str] = set()
        for name, _, fixed in self._executor.fixed:
            for node in nodes:
                if isinstance(node, NamedTensor) and node.name == name:
                    moving |= {label for axis, label in enumerate(node.labels) if axis not in dict(fixed)}
        fixed_ones = {*self._weights, *self._executor.plan.request.bases}
        settled = {label for node in nodes if node.name in fixed_ones for label in node.labels}
        settled |= {node.k for node in nodes if isinstance(node, Conv)}
        for _ in nodes:
            for node in nodes:
                ends = node.labels[:2] if isinstance(node, Conv) else node.labels
                if not isinstance(node, NamedTensor | Fill) and moving & {*ends}:
                    moving |= {*ends} - settled
        return moving - settled

    def _refuse_shape(self, name: str, tensor: Tensor) -> None:
        node = tensors_of(self.network)[name]
        _, count, sizes = next(row for row in self._executor.fixed if row[0] == name)
        shape = tuple(tensor.shape)
        if tensor.ndim != count:
            fact = f"the input {name!r} has {tensor.ndim} axes, its node has {count}"
        else:
            axis, size = next((axis, size) for axis, size in sizes if shape[axis] != size)
            fact = f"the axis {node.labels[axis]!r} of the input {name!r} has {shape[axis]} elements, not {size}"
        self._refuse(fact, shape=shape, node=node_text(node, self.network.sizes, set()))

    @property
    def plan(self) -> Plan:
        """How the network is computed; `print(module.plan)` shows it."""
        return (self._frozen or self._executor).plan

    @property
    def code(self) -> str:
        """The Python code that runs, as text."""
        return re.sub(r";  [^;]* = None$", "", str(self._code.code).strip(), flags=re.MULTILINE)

    @property
    def _code(self) -> fx.GraphModule:
        return (self._frozen or self._executor).code

    @property
    def frozen(self) -> bool:
        """Whether the module is frozen: whether contracted weights are stored."""
        return self._frozen is not None

    # Freezing --------------------------------------------------------------------------------------------------

    def freeze(self) -> Self:
        """Contract once all that depends on weights alone, store it, and choose a plan for the rest.

        A frozen module is in evaluation mode, and its parameters get no gradients. It is right whatever is done to
        them: once they have other elements, the next call contracts them again, and a call with other tensors in their
        place, as by `torch.func.functional_call`, computes from those, as does code that torch traces, compiles or
        exports. The stored tensors are neither parameters nor buffers. `train()` and loading a state dict thaw it.

        Returns:
            The module itself.

        Raises:
            CompileError: a weight is computed from other tensors, or its type is not one that a plan computes in.
        """
        if self.frozen:
            return self
        computed = [name for name in self._weights if name not in self._parameters and name not in self._buffers]
        if computed:
            self._refuse(
                "a tensor of the layer is computed from others at each call",
                tensor=computed[0],
                because="a parametrisation, pruning or weight norm",
                fix="remove it first, as by torch.nn.utils.parametrize.remove_parametrizations",
            )
        if self._weights:
            self._check_type(getattr(self, self._weights[0]))
        like = self._like()
        dtype = like.dtype if self._weights else torch.float64  # for dense patterns, whose dtype follows the inputs
        request = replace(self.plan.request, frozen=True, backward=False, dtype=dtype, device=like.device)
        self._frozen = Frozen.of_module(self._make_plan(request), self, self._weights)
        return super().train(False)

    def thaw(self) -> Self:
        """Use the parameters again instead of the stored tensors; returns the module itself."""
        self._frozen = None
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
        frozen, like, before = self.frozen, self._like(), self._executor.plan
        sizes = {**self._own_sizes(), **check_inputs(self.network, shapes)}
        network = resized(self.network, sizes)
        request = replace(before.request, network=network, dtype=like.dtype, device=like.device)
        if backward is not None:
            request = replace(request, backward=backward)
        if memory_format is not None:
            request = replace(request, channels_last=is_channels_last(memory_format))
        self._tune = self._tune if tune is None else tune
        plan = self._make_plan(request)
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

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any, **keywords: Any) -> None:
        for name, held in (*self._parameters.items(), *self._buffers.items()):
            new = state_dict.get(prefix + name)
            if held is not None and isinstance(new, Tensor) and new.is_complex() and not held.is_complex():
                fact = f"{prefix + name!r} is {new.dtype}, and the module {held.dtype}: imaginary parts would be lost"
                raise CompileError(fact, fix="real values, such as new.real")
        self.thaw()
        super()._load_from_state_dict(state_dict, prefix, *args, **keywords)
        self._straighten()
        self._seen.clear()

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **keywords: Any) -> Any:
        def flat(tensor: Tensor) -> Tensor:  # as torch would put four or five axes into the order of channels_last
            return fn(tensor.flatten(1)).reshape(tensor.shape) if tensor.ndim in (4, 5) else fn(tensor)

        super()._apply(flat, *args, **keywords)  # type: ignore[no-untyped-call]
        self._straighten()
        for executor in (self._executor, *self._others.values()):
            executor.move(self._like())
        self._seen.clear()  # the dtype may change
        return self

    def _straighten(self) -> None:
        """Put the elements of every parameter and buffer into the order of its axes, as torch's layers have them.

        Axes of one element get the strides of that order too: with others torch can take a kernel for channels_last.
        """
        for tensor in (*self.parameters(recurse=False), *self.buffers(recurse=False)):
            if tensor.stride() != torch.empty(tensor.shape, device="meta").stride():
                tensor.data = tensor.data.reshape(-1).reshape(tensor.shape)

    def extra_repr(self) -> str:
        return f"{self.network}{', frozen' if self.frozen else ''}"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"

    def _executor_by_matrices(self) -> Executor:
        """The code of a plan that takes tensors that are bases, by name, as it takes weights."""
        request = replace(self._executor.plan.request, bases={})
        plan = Plan(request, ranked_candidates(request, tune=False))
        return Executor(plan, dense_patterns(plan.chosen, request))

    # Making ----------------------------------------------------------------------------------------------------

    def _make_plan(self, request: PlanRequest) -> Plan:
        return Plan(request, ranked_candidates(request, tune=self._tune))

    def _use(self, plan: Plan) -> None:
        """Use a plan, with its dense patterns; the module is thawed."""
        self._executor = Executor(plan, dense_patterns(plan.chosen, plan.request))
        self._frozen = None
        self._seen, self._others = {}, {}

    def _like(self) -> Tensor:
        """A tensor with the dtype and the device of the weights."""
        held = (*self.parameters(), *self.buffers())
        tensors = [tensor for tensor in held if tensor.is_floating_point() or tensor.is_complex()]
        return tensors[0] if tensors else torch.empty(0, dtype=self.plan.request.dtype, device=self.plan.request.device)

    def __prepare_scriptable__(self) -> NoReturn:
        self._refuse("torch.jit.script cannot read the code of this layer", fix="torch.jit.trace, or torch.compile")


def _check_names(module: nn.Module, names: Sequence[str]) -> None:
    for name in names:
        if hasattr(module, name) or hasattr(type(module), name) or name in (*Compiled.__annotations__, "self"):
            fact = f"a tensor is called {name!r}, which is an attribute of torch modules or of Compiled"
            raise CompileError(fact, fix="another name in the network")
