"""`KernelLayer`: what the decomposed layers of `nn` have in common, and how one is made from a layer of torch's."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from inspect import signature
from math import prod
from os import PathLike
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeAlias, TypedDict

import torch
from torch import Tensor
from torch import nn as torch_nn

from ..compiler import MAX_PLAN_ELEMENTS, Candidates, Compiled, make_request
from ..decompositions import read_trace, read_rewrite
from ..errors import CompileError, LayerError, RuleError, explain
from ..fitting import bonds_of, open_labels
from ..networks import Fuse, NamedTensor, Network, Numbers, axis_numbers, compose, shape_of, tensor_nodes
from ..rewriting import Fit, Place, Rule, SizedChoices, Trace
from ..tensors import bind, value_of
from .torch_layers import DenseLayer, kernel_labels_of, layer_network, memory_format_of, own_weight

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LayerRewrite: TypeAlias = str | Rule | Fit
"""A decomposition's name, a cut, a rule in the notation, a rule, or a fit of the layer's weight."""

_NOMINAL_BATCH = 16
"""Images, or any things with positions, for which a plan is chosen unless `batch_size` says otherwise."""

_NOMINAL_ROWS = 256
"""The same for linear layers, whose leading axes count together."""

_NOMINAL_POSITIONS = {1: 256, 2: 32, 3: 16}
"""Positions along an axis, by the number of axes, at least as many as a window reaches."""

_OWN_NAMES = (
    *("X", "weight", "bias", "kernel", "origin", "in_features", "out_features", "in_channels", "out_channels"),
    *("kernel_size", "stride", "padding", "output_padding", "dilation", "groups", "padding_mode"),
)
"""Names that no tensor of a layer's decomposition can have: those of a layer's attributes and of its input."""


class Planning(TypedDict, total=False):
    """What a layer's plan is chosen for.

    input_size: positions, one integer for all axes or one for each; inputs of every other size are computed too. By
        default 256 (1-d), 32 (2-d), 16 (3-d), at least the window's reach. A linear layer has none.
    batch_size: by default 16; of a linear layer the rows, its leading axes together, by default 256.
    candidates: "factored" never lets the input meet the whole kernel.
    tune: measure the best few plans.
    backward: choose by the price of forward and backward.
    memory_format: of inputs, and so of outputs; by default that of the weight.
    """

    input_size: Numbers | None
    batch_size: int | None
    candidates: Candidates
    tune: bool
    backward: bool
    memory_format: torch.memory_format | None


class LayerChoices(SizedChoices, Planning, total=False):
    """Choices of the fit, its size among them, and of the plan."""


class Shaping(Planning, total=False):
    """Choices of the plan and, of `Choices`, those that determine the tensors of a layer with random values."""

    at: int | Place | None
    bind: Mapping[str, str] | None
    size: object
    sizes: Mapping[str, int] | None
    fixed: Mapping[str, Any] | None


@dataclass(frozen=True, eq=False)
class Origin:
    """Where a layer's numbers come from, as it was when the layer was made; None where nothing was fitted.

    Its trace is what a file would hold: rules, places and ranks, without metrics and values.
    """

    trace: Trace | None = None
    relative_error: float | None = None
    output_error: float | None = None

    def __deepcopy__(self, memo: dict[int, object]) -> Origin:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        try:
            text = None if self.trace is None else self.trace.to_json()
        except RuleError:  # a rule made of functions
            text = None
        return _read_origin, (text, self.relative_error, self.output_error)


def _read_origin(text: str | None, relative_error: float | None, output_error: float | None) -> Origin:
    return Origin(None if text is None else read_trace(text), relative_error, output_error)


class KernelLayer(Compiled):
    """A layer of torch's whose kernel is a tensor network: base of the layers in `tnalgebra.nn`.

    Its parameters are the network's tensors, under their names, and `bias`; constants are buffers. It is a `Compiled`:
    `plan`, `code`, `freeze()`, `thaw()`.

    Attributes:
        kernel: the decomposition; its output labels are the axes of the kernel as torch stores it.
        network: the whole layer without its bias.
    """

    dense_class: ClassVar[type[Any]]
    argument_names: ClassVar[tuple[str, ...]]
    kernel: Network
    origin: Origin
    bias: torch_nn.Parameter | None

    @classmethod
    def _of_dense(cls, module: torch_nn.Module, rewrite: LayerRewrite, fit: Fit | None, choices: LayerChoices) -> Self:
        """The layer that does what `module` does, its weight rewritten."""
        if not isinstance(module, cls.dense_class):
            fact = f"a {type(module).__name__} is given to nn.{cls.__name__}"
            raise LayerError(explain(fact, fix=f"a torch.nn.{cls.dense_class.__name__}, or nn.decomposed"))
        _check_layer(module)
        planning, fitting = _split(choices)
        if isinstance(rewrite, Fit):
            fit = rewrite
        elif fit is None:
            fit, fitting = _fit_weight(module, rewrite, fitting), {}
        if fitting:
            raise LayerError(explain(f"{next(iter(fitting))}= is given with a fit", fix="a rule, or the fit alone"))
        missing = [name for name in tensor_nodes(fit.network) if name not in fit.values]
        if missing:
            raise LayerError(explain(f"the fit has no value of {missing[0]!r}", network=fit.network))
        return cls.of_network(
            module, fit.network, fit.values, constants=_constants(fit), planning=planning, origin=_origin_of(fit)
        )

    @classmethod
    def of_network(
        cls,
        module: DenseLayer,
        network: Network,
        values: Mapping[str, Tensor],
        *,
        constants: Collection[str],
        planning: Planning,
        origin: Origin,
    ) -> Self:
        """The layer with these arguments whose kernel is this network; nothing is fitted.

        Args:
            module: torch's layer, whose weight says dtype, device, memory format and whether the tensors are trained.
            network: of the kernel; the labels of its output are the axes of the weight.
            values: of all its tensors.
            constants: names of those that are not trained.

        Raises:
            LayerError: the network is one of a tensor of another shape; a tensor named like an attribute.
            ValuesError: a value does not fit the network.
        """
        layer = cls.__new__(cls)
        layer._fill(module, network, values, constants=constants, planning=planning)
        layer.origin = origin
        return layer.train(module.training)  # type: ignore[return-value]

    def _start(self, arguments: Sequence[Any], rewrite: str | Rule, choices: Shaping) -> None:
        """Become a layer with random values, see `reset_parameters`.

        The network and its ranks are those that a rough fit of a random kernel has.

        Args:
            arguments: of torch's layer, in its order.
        """
        name = type(self).__name__
        if isinstance(rewrite, Fit):
            fix = "its from_conv, from_linear, or a rule"
            raise LayerError(explain(f"an nn.{name} with random values is given a fit of a weight", fix=fix))
        foreign = [choice for choice in choices if choice not in Shaping.__annotations__]
        if foreign:
            fact = f"{foreign[0]}= is given to an nn.{name} with random values"
            raise LayerError(explain(fact, choices=" ".join(Shaping.__annotations__)))
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Initializing zero-element tensors")  # which are refused below
                module = self.dense_class(*arguments)
        except (ValueError, RuntimeError) as error:
            named = zip(signature(self.dense_class).parameters, arguments, strict=True)
            given = ", ".join(f"{name}={value!r}" for name, value in named if value is not None)
            fact = f"torch.nn.{self.dense_class.__name__} does not take these arguments"
            raise LayerError(explain(fact, given=given, because=error)) from error
        _check_layer(module)
        planning, fitting = _split(choices)
        rough: Any = {"starts": 1, "sweeps": 0, **fitting}
        fit = _fit_weight(module, rewrite, rough)
        self._fill(module, fit.network, fit.values, constants=_constants(fit), planning=planning)
        self.origin = Origin()
        self.reset_parameters()

    def _fill(
        self,
        module: DenseLayer,
        network: Network,
        values: Mapping[str, Tensor],
        *,
        constants: Collection[str],
        planning: Planning,
    ) -> None:
        weight, bias = module.weight, module.bias
        _check_names(network, type(self).__name__)
        kernel, values = bind(network, {name: values[name] for name in tensor_nodes(network)})
        if shape_of(kernel, kernel.output) != tuple(weight.shape):
            raise LayerError(
                explain(
                    f"the decomposition is one of a tensor of shape {shape_of(kernel, kernel.output)}",
                    decomposition=kernel,
                    weight=f"{tuple(weight.shape)}, its axes {' '.join(kernel_labels_of(module))}",
                )
            )
        dense = layer_network(module)
        network = compose(kernel, dense.network, into=next(iter(dense.values)))
        constants = {*constants} & values.keys()
        tensors: dict[str, Tensor] = {}
        for name, value in values.items():
            moved = value.detach().to(weight.device, weight.dtype, copy=True)
            trained = torch_nn.Parameter(moved, requires_grad=weight.requires_grad)
            tensors[name] = moved if name in constants else trained
        if bias is not None:
            tensors["bias"] = torch_nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)
        layout = checked_format(planning.get("memory_format"), weight.ndim)
        request, tensors = make_request(
            network,
            inputs={"X": _nominal_shape(module, planning)},
            values=tensors,
            constants=constants,
            bias=None if bias is None else network.output[1],
            candidates=planning.get("candidates", "all"),
            backward=planning.get("backward", False),
            dynamic={},
            memory_format=layout or memory_format_of(weight),
            max_elements=MAX_PLAN_ELEMENTS,
            format_kept=True,
        )
        super().__init__(request, tensors, frozenset(constants), planning.get("tune", False))
        if bias is None:
            self.register_parameter("bias", None)
        for name in (*self.argument_names, "output_padding"):
            if name != "bias" and hasattr(module, name):
                setattr(self, name, getattr(module, name))
        self.kernel = kernel

    # Questions ----------------------------------------------------------------------------------------------------

    @property
    def trace(self) -> Trace | None:
        """The steps that led from the weight to the decomposition; None for a layer with random values."""
        return self.origin.trace

    @property
    def relative_error(self) -> float | None:
        """||K - K~||_F / ||K||_F when the layer was made; None for a layer with random values."""
        return self.origin.relative_error

    @property
    def output_error(self) -> float | None:
        """sqrt(E||(K - K~) x||^2 / E||K x||^2) when the layer was made; None if there was no metric."""
        return self.origin.output_error

    @property
    def parameters_count(self) -> int:
        """Numbers that are trained: the decomposition's, tied ones once, and the bias; constants are not."""
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def planned_for(self) -> tuple[int, ...]:
        """Shape of the input that the plan was chosen for."""
        x = next(node for node in self.network.nodes if isinstance(node, NamedTensor) and node.name == "X")
        return shape_of(self.network, x.labels)

    @property
    def planning(self) -> Planning:
        """What the plan was chosen for; of a frozen layer the plan that it has when it is thawed."""
        request = (self._thawed or self.plan).request
        batch, _, *positions = self.planned_for
        return Planning(
            input_size=tuple(positions) or None,
            batch_size=batch,
            candidates=request.candidates,
            tune=self._tune,
            backward=request.backward,
            memory_format=self._format(),
        )

    @property
    def constants(self) -> tuple[str, ...]:
        """Names of the kernel's tensors that are not trained."""
        return tuple(name for name in tensor_nodes(self.kernel) if name in self._buffers)

    def dense_weight(self) -> Tensor:
        """The kernel contracted to one tensor, as torch stores it: differentiable, contracted in float64."""
        return _contracted(self.kernel, self._cores()).to(self._like().dtype)

    def to_dense(self) -> DenseLayer:
        """The layer of torch's with the rebuilt weight, and a copy of the bias."""
        layer: DenseLayer = self._empty_dense()
        with torch.no_grad():
            weight = self.dense_weight().detach().contiguous(memory_format=self._format())
        trained = any(core.requires_grad for core in self._cores().values())
        layer.weight = torch_nn.Parameter(weight, requires_grad=trained)
        if self.bias is not None:
            layer.bias = torch_nn.Parameter(self.bias.detach().clone(), requires_grad=self.bias.requires_grad)
        layer.train(self.training)
        return layer

    def replan(
        self,
        inputs: Mapping[str, Sequence[int]] | Sequence[int],
        *,
        tune: bool | None = None,
        backward: bool | None = None,
        memory_format: torch.memory_format | None = None,
    ) -> Self:
        """Choose another plan, for inputs of this shape: the layer itself.

        Args:
            inputs: with or without a batch; of a linear layer with any leading axes.
        """
        axes = len(self.kernel.output) - 2
        if not isinstance(inputs, Mapping) and (axes == 0 or len(inputs) == axes + 1):
            inputs = (prod(inputs[: len(inputs) - axes - 1]), *inputs[-axes - 1 :])
        checked_format(memory_format, axes + 2)
        return super().replan(inputs, tune=tune, backward=backward, memory_format=memory_format)  # type: ignore[return-value]

    def draw(self, path: str | PathLike[str] | None = None) -> Figure:
        """Draw the layer's network; with `path`, write the figure there as .svg, .png or .pdf."""
        return self.network.draw(path)

    def reset_parameters(self) -> None:
        """Draw new values, as torch draws those of its layer.

        The cores are normal, and scaled by one factor so that the mean square of the rebuilt kernel's elements is
        1 / (3 * fan_in), the variance of torch's own (`kaiming_uniform_` with a = sqrt(5)). The bias is uniform in
        +-1 / sqrt(fan_in).
        """
        self.thaw()
        fan_in = prod(shape_of(self.kernel, self.kernel.output[1:]))
        cores = {name: core.detach().double() for name, core in self._cores().items()}
        drawn = [name for name in cores if name in self._parameters]
        for name in drawn:
            cores[name] = torch.randn(cores[name].shape, dtype=torch.float64, device=cores[name].device)
        times = Counter(node.name for node in self.kernel.nodes if isinstance(node, NamedTensor) and node.name in drawn)
        square = float(_contracted(self.kernel, cores).square().mean())
        factor = (1 / (3 * fan_in * square)) ** (1 / (2 * times.total())) if drawn else 1.0
        with torch.no_grad():
            for name in drawn:
                getattr(self, name).copy_(factor * cores[name])
            if self.bias is not None:
                self.bias.uniform_(-1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in))

    def __getattr__(self, name: str) -> Any:
        if name == "weight":
            raise AttributeError(
                explain(
                    f"nn.{type(self).__name__} has no weight: its kernel is a tensor network",
                    parameters=" ".join(self._parameters),
                    fix="layer.dense_weight(), the rebuilt kernel; layer.to_dense(), torch's layer with it",
                )
            )
        return super().__getattr__(name)

    def extra_repr(self) -> str:
        sizes = " ".join(f"{bond}={self.kernel.sizes[bond]}" for bond in bonds_of(self.kernel))
        shape = " x ".join(map(str, self.planned_for))
        counts = [f"{self.parameters_count:,} parameters", f"{self.plan.multiply_adds:,} multiply-adds at {shape}"]
        ranks = [f"ranks {sizes}"] if sizes else []
        lines = [self._empty_dense().extra_repr(), str(self.kernel), ", ".join([*ranks, *counts])]
        return "\n  " + "\n  ".join(lines) + ("\n  frozen\n" if self.frozen else "\n")

    # Parts -----------------------------------------------------------------------------------------------------

    def _cores(self) -> dict[str, Tensor]:
        return {name: getattr(self, name) for name in tensor_nodes(self.kernel)}

    def _empty_dense(self) -> Any:
        """The layer of torch's, without elements."""
        arguments = {name: getattr(self, name) for name in self.argument_names if name != "bias"}
        return self.dense_class(**arguments, bias=self.bias is not None, device="meta")

    def _format(self) -> torch.memory_format:
        axes = len(self.kernel.output)
        if not self.plan.request.channels_last or axes not in (4, 5):
            return torch.contiguous_format
        return torch.channels_last if axes == 4 else torch.channels_last_3d

    def _compute(self, x: Tensor, channels: int, axis: int) -> Tensor:
        """The layer's output for an input with one batch axis, which may be empty."""
        if x.ndim > -axis - 1 and x.shape[axis] != channels:
            # the channels of a grouped layer are no label of a weight, so that nothing below would know
            word = "features" if self.dense_class is torch_nn.Linear else "channels"
            fact = f"the input has {x.shape[axis]} {word}, the layer takes {channels}"
            raise CompileError(explain(fact, shape=tuple(x.shape), layer=f"nn.{type(self).__name__}"))
        if torch.compiler.is_compiling() or x.ndim == 0 or x.shape[0]:
            return super().forward(x)
        one = torch.cat([x, x.new_zeros((1, *x.shape[1:]))])
        return super().forward(one)[:0]


# Making -------------------------------------------------------------------------------------------------------


def _split(choices: LayerChoices | Shaping) -> tuple[Planning, SizedChoices]:
    """Choices of the plan, and those of the fit."""
    planning: Any = {name: value for name, value in choices.items() if name in Planning.__annotations__}
    fitting: Any = {name: value for name, value in choices.items() if name not in planning}
    return planning, fitting


def _check_layer(module: DenseLayer) -> None:
    """Refuse what a layer made from this one could not do."""
    layer_network(module)  # refuses what has no network
    if own_weight(module).is_meta:
        raise LayerError(explain("the weight has no elements: it is on the meta device", fix="a device with memory"))
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    held = [name.strip("_").replace("_", " ") for name in hooks if getattr(module, name)]
    if held:
        fact = f"this {type(module).__name__} has {held[0]}, which its decomposition would not have"
        raise LayerError(explain(fact, fix="remove them, and put them on the new layer"))


def _check_names(network: Network, layer: str) -> None:
    for name in tensor_nodes(network):
        if name in (*_OWN_NAMES, *Compiled.__annotations__) or hasattr(KernelLayer, name):
            raise LayerError(
                explain(
                    f"a tensor is called {name!r}, as is an attribute of nn.{layer} or its input",
                    decomposition=network,
                    fix="another name in the rule",
                )
            )


def _fit_weight(module: DenseLayer, rewrite: str | Rule, choices: SizedChoices) -> Fit:
    rule = read_rewrite(rewrite, kernel_labels_of(module))
    return rule.apply({rule.tensor: module.weight}, **choices)


def _constants(fit: Fit) -> set[str]:
    """Names of tensors that were held as they are."""
    return {name for step in fit.trace.steps for name in (*step.rule.fixed, *step.options.fixed)}


def _origin_of(fit: Fit) -> Origin:
    steps = fit.trace.steps
    whole = len(steps) == 1 and steps[0].change.pieces is not None and len(fit.trace.start.nodes) == 1
    error = steps[0].relative_error if whole else fit.relative_error
    light = []
    for step in steps:
        given = {"metric": step.options.metric, "start": step.options.start}
        lost = dict.fromkeys((*step.options.lost, *(name for name, value in given.items() if value is not None)))
        options = replace(step.options, metric=None, start=None, lost=tuple(lost))
        light.append(replace(step, options=options, change=replace(step.change, values={})))
    return Origin(Trace(fit.trace.start, tuple(light)), error, fit.output_error)


def _nominal_shape(module: DenseLayer, planning: Planning) -> tuple[int, ...]:
    """Shape of the input that the plan is chosen for."""
    positions, batch = planning.get("input_size"), planning.get("batch_size")
    if batch is not None and batch < 1:
        raise LayerError(explain(f"batch_size is {batch}", fix="at least 1"))
    if isinstance(module, torch_nn.Linear):
        if positions is not None:
            raise LayerError(explain("input_size is given to a layer without positions", fix="batch_size"))
        return (batch or _NOMINAL_ROWS, module.in_features)
    axes = len(module.kernel_size)
    if positions is not None:
        positions = axis_numbers("input_size", positions, axes)
    else:
        pads = (0,) * axes if isinstance(module.padding, str) else module.padding
        reach = [d * (k - 1) + 1 for k, d in zip(module.kernel_size, module.dilation, strict=True)]
        positions = tuple(max(_NOMINAL_POSITIONS[axes], r, 2 * p + 1) for r, p in zip(reach, pads, strict=True))
    return (batch or _NOMINAL_BATCH, module.in_channels, *positions)


def _contracted(kernel: Network, values: Mapping[str, Tensor]) -> Tensor:
    """The value of a kernel's network in float64; labels that a `Fuse` splits are put together by a reshape."""
    parts = open_labels(kernel)
    split = [label for label in kernel.output if label not in parts]
    nodes = [node for node in kernel.nodes if not (isinstance(node, Fuse) and node.whole in split)]
    known = {label for node in nodes for label in node.labels}
    inner = Network(nodes, parts, {label: size for label, size in kernel.sizes.items() if label in known})
    return value_of(inner, values, dtype=torch.float64).reshape(shape_of(kernel, kernel.output))


def checked_format(layout: torch.memory_format | None, axes: int) -> torch.memory_format | None:
    """The memory format that is asked for. Raises LayerError if inputs have another number of axes."""
    formats = {torch.channels_last: 4, torch.channels_last_3d: 5}
    if layout is not None and formats.get(layout, axes) != axes:
        fact = f"memory_format is {layout}, of {formats[layout]} axes"
        raise LayerError(explain(fact, input=f"{axes} axes"))
    return layout
