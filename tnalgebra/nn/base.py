"""`KernelLayer`: what the decomposed layers of `nn` have in common, and how one is made from a layer of torch's."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from math import prod
from os import PathLike
from typing import TYPE_CHECKING, Any, Self, TypeAlias

import torch
from torch import Tensor
from torch import nn as torch_nn

from ..compiler import COMPUTED, MAX_PLAN_ELEMENTS, Compiled, make_request
from ..errors import CompileError, LayerError
from ..fitting import bonds_of
from ..networks import Network, compose, shape_of, tensors_of
from ..rewriting import Fit, Rule, Trace
from ..tensors import bases_among, bind
from .adapter_start import start_adapter
from .kernels import (
    check_kernel,
    check_layer_weight,
    contracted,
    elements_by_default,
    fit_weight,
    scaled_to,
    values_of_fit,
)
from .origin import Origin, check_fit_of, in_type, origin_of_fit
from .planning import LayerChoices, Planning, Shaping, checked_format, nominal_shape, split_choices
from .replacement import Replacement
from .torch_layers import DECOMPOSABLE, AnyLayer, kernel_labels_of, layer_network, memory_format_of

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LayerRewrite: TypeAlias = str | Rule | Fit
"""A decomposition's name, a cut, a rule or its notation, or a fit of the layer's weight."""

_OWN_NAMES = ("X", "weight", "bias", "padding", "kernel", "origin")
"""Names that a tensor of a decomposition cannot have, beside those of the layer's arguments."""


class KernelLayer(Replacement):
    """A layer of torch's whose kernel is a tensor network: base of the layers in `tnalgebra.nn`.

    Its parameters are the network's tensors, under their names, and `bias`; constants are buffers. It is a `Compiled`:
    `plan`, `code`, `freeze()`, `thaw()`.

    Attributes:
        kernel: the decomposition; its output labels are the axes of the kernel as torch stores it.
        network: the whole layer without its bias.
    """

    _computed = COMPUTED
    kernel: Network
    origin: Origin
    _starts_at_zero: bool = False  # as an adapter does

    @classmethod
    def _of_dense(cls, module: torch_nn.Module, rewrite: LayerRewrite, size: object, choices: LayerChoices) -> Self:
        """The layer that does what `module` does, its weight rewritten."""
        check_dense(module)
        if not isinstance(module, cls.dense_class):
            fact = f"nn.{cls.__name__} replaces a torch.nn.{cls.dense_class.__name__}, not a {type(module).__name__}"
            raise LayerError(fact, fix=f"a torch.nn.{cls.dense_class.__name__}, or nn.decomposed")
        check_layer_weight(module)
        with elements_by_default():
            return cls._fitted(module, rewrite, size, choices)

    @classmethod
    def _fitted(cls, module: AnyLayer, rewrite: LayerRewrite, size: object, choices: LayerChoices) -> Self:
        planning, fitting = split_choices(choices)
        if isinstance(rewrite, Fit):
            fit = rewrite
            extra = ["size", *fitting] if size is not None else [*fitting]
            if extra:
                fact = f"the rewrite is a fit, which leaves nothing to choose, and {extra[0]}= is given"
                raise LayerError(fact, fix="a rule, or the fit alone")
        else:
            fit = fit_weight(module, rewrite, size, fitting)
        missing = [name for name in tensors_of(fit.network) if name not in fit.values]
        if missing:
            raise LayerError(f"the fit has no value of {missing[0]!r}", network=fit.network)
        fit = in_type(fit, module.weight.dtype)
        values = values_of_fit(fit)
        layer = cls.of_network(
            module, fit.network, values, constants=fit.constants, planning=planning, origin=origin_of_fit(fit)
        )
        if isinstance(rewrite, Fit):
            check_fit_of(fit, module.weight)
        layer.carry_attributes(module)
        return layer

    @classmethod
    def of_network(
        cls,
        module: AnyLayer,
        network: Network,
        values: Mapping[str, Tensor | str],
        *,
        constants: Collection[str],
        planning: Planning,
        origin: Origin,
    ) -> Self:
        """The layer with these arguments whose kernel is this network; nothing is fitted.

        Args:
            module: torch's layer, whose weight says dtype, device, memory format and whether the tensors are trained.
            network: of the kernel; the labels of its output are the axes of the weight.
            values: of all its tensors; the name of a basis is one, such as "dct".
            constants: names of those that are not trained.
            planning: what the plan is chosen for.
            origin: where the values come from.

        Raises:
            LayerError: the network is one of a tensor of another shape; a tensor named like an attribute.
            ValuesError: a value does not fit the network.
        """
        layer = cls.__new__(cls)
        layer._fill(module, network, values, constants=constants, planning=planning)
        layer.origin = origin
        return layer.train(module.training)

    def _start(self, arguments: Mapping[str, Any], rewrite: str | Rule, size: object, choices: Shaping) -> None:
        """Become a layer with random values, see `reset_parameters`.

        The network and its ranks are those that a rough fit of a random kernel has.

        Args:
            arguments: of torch's layer, by name.
        """
        name = type(self).__name__
        if isinstance(rewrite, Fit):
            fix = f"nn.decomposed(layer, fit), or a rule for an nn.{name} with random values"
            raise LayerError("a fit has the values of a weight, which random values would replace", fix=fix)
        foreign = [choice for choice in choices if choice not in Shaping.__annotations__]
        if foreign:
            fact = f"an nn.{name} with random values does not take {foreign[0]}="
            raise LayerError(fact, choices=" ".join(Shaping.__annotations__))
        module = self._new_dense(arguments)
        check_kernel(module)
        planning, fitting = split_choices(choices)
        rough: Any = {"starts": 1, "sweeps": 0, **fitting}
        with torch.device("cpu"):  # so that the ranks are found if the layer is made without elements
            fit = fit_weight(module, rewrite, size, rough)
            values = values_of_fit(fit)
            self._fill(module, fit.network, values, constants=fit.constants, planning=planning)
        self.origin = Origin()
        self.reset_parameters()

    def _fill(
        self,
        module: AnyLayer,
        network: Network,
        values: Mapping[str, Tensor | str],
        *,
        constants: Collection[str],
        planning: Planning,
    ) -> None:
        """Become the layer of a kernel's network and the values of its tensors."""
        weight, bias = module.weight, module._parameters.get("bias")
        self._check_names(network)
        bases = bases_among(values)
        kernel, elements = bind(network, {name: values[name] for name in tensors_of(network)})
        if shape_of(kernel, kernel.output) != tuple(weight.shape):
            raise LayerError(
                f"the decomposition is one of a tensor of shape {shape_of(kernel, kernel.output)}",
                decomposition=kernel,
                weight=f"{tuple(weight.shape)}, its axes {' '.join(kernel_labels_of(module))}",
            )
        network, inputs = self._network_and_inputs(module, kernel, planning)
        constants = {*constants, *bases} & elements.keys()
        tensors = _own_tensors(module, elements, constants)
        layout = checked_format(planning.get("memory_format"), weight.ndim)
        computed = {*tensors_of(network), "bias"}
        weights = {name: tensor for name, tensor in tensors.items() if name in computed and name not in bases}
        zeros = {name: torch.zeros_like(one, device="cpu") if one.is_meta else one for name, one in weights.items()}
        request, _ = make_request(
            network,
            inputs=inputs,
            values={**zeros, **{name: basis for name, basis in bases.items() if name in computed}},
            constants=constants & computed,
            bias=None if bias is None else network.output[1],
            candidates=planning.get("candidates", "all"),
            backward=planning.get("backward", False),
            dynamic={},
            memory_format=layout or memory_format_of(weight),
            max_elements=MAX_PLAN_ELEMENTS,
            format_kept=True,
        )
        request = replace(request, device=weight.device)
        super().__init__(request, weights, frozenset(constants), planning.get("tune", True))
        for name in tensors.keys() - weights.keys():
            if name in constants:
                self.register_buffer(name, tensors[name])
            else:
                self.register_parameter(name, tensors[name])  # type: ignore[arg-type]
        self._parameters = {name: self._parameters[name] for name in tensors if name in self._parameters}
        if bias is None:
            self.register_parameter("bias", None)
        self._copy_arguments(module)
        self.kernel = kernel
        self._shapes = {name: tuple(getattr(self, name).shape) for name in (*self._weights, *bases)}
        self._watch()
        self._hold(bases)

    def _network_and_inputs(
        self, module: AnyLayer, kernel: Network, planning: Planning
    ) -> tuple[Network, dict[str, tuple[int, ...]]]:
        """The network that is computed, without the bias, and the nominal shape of each of its inputs."""
        dense = layer_network(module)
        return compose(kernel, dense.network, into=next(iter(dense.values))), {"X": nominal_shape(module, planning)}

    def _check_names(self, network: Network) -> None:
        reserved = (*_OWN_NAMES, *self.argument_names, *Compiled.__annotations__)
        for name in tensors_of(network):
            if name in reserved or hasattr(type(self), name):
                raise LayerError(
                    f"a tensor is called {name!r}, as is an attribute of nn.{type(self).__name__} or its input",
                    decomposition=network,
                    fix="another name in the rule",
                )

    # Questions ----------------------------------------------------------------------------------------------------

    @property
    def trace(self) -> Trace | None:
        """The steps that led from the weight to the decomposition, with the errors that they had then.

        None for a layer with random values.
        """
        return self.origin.trace

    @property
    def relative_error(self) -> float | None:
        """||K - K~||_F / ||K||_F, measured when the layer was made; None if its cores are other numbers now.

        They are after training, after a conversion to a type that cannot hold them, and in a layer with random values.
        `(layer.dense_weight() - weight).norm() / weight.norm()` measures the cores as they are.
        """
        return self.origin.relative_error if self.origin.is_of(self.kernel_tensors()) else None

    @property
    def output_error(self) -> float | None:
        """sqrt(E||(K - K~) x||^2 / E||K x||^2); None without a metric, and where `relative_error` is None."""
        return self.origin.output_error if self.origin.is_of(self.kernel_tensors()) else None

    @property
    def parameters_count(self) -> int:
        """The number of trained elements, of the decomposition and the bias; a tied tensor counts once."""
        return sum(parameter.numel() for parameter in self.parameters())

    @property
    def planned_for(self) -> tuple[int, ...]:
        """Shape of the input that the plan was chosen for."""
        return shape_of(self.network, tensors_of(self.network)["X"].labels)

    @property
    def planning(self) -> Planning:
        """What the plan was chosen for; of a frozen layer the plan that it has when it is thawed."""
        request = self._executor.plan.request
        return Planning(
            input_size=self.planned_for[2:] or None,
            batch_size=self.planned_for[0],
            candidates=request.candidates,
            tune=self._tune,
            backward=request.backward,
            memory_format=self._format(),
        )

    @property
    def constants(self) -> tuple[str, ...]:
        """Names of the kernel's tensors that are not trained."""
        return tuple(name for name in tensors_of(self.kernel) if name in self._buffers)

    def dense_weight(self) -> Tensor:
        """The kernel contracted to one tensor, as torch stores it: differentiable, contracted in float64."""
        cores, like = self.kernel_tensors(), self._like()
        if any(core.is_meta for core in cores.values()):
            return torch.empty(shape_of(self.kernel, self.kernel.output), dtype=like.dtype, device="meta")
        return contracted(self.kernel, cores).to(like.dtype)

    def to_dense(self) -> AnyLayer:
        """The layer of torch's with the rebuilt weight, a copy of the bias, and the attributes that it had besides."""
        layer: AnyLayer = self._empty_dense()
        with torch.no_grad():
            weight = self.dense_weight().detach().clone(memory_format=self._format())
        trained = any(core.requires_grad for core in self.kernel_tensors().values())
        layer.weight = torch_nn.Parameter(weight, requires_grad=trained)
        if self.bias is not None:
            layer.bias = torch_nn.Parameter(self.bias.detach().clone(), requires_grad=self.bias.requires_grad)
        self._return_attributes(layer)
        layer.train(self.training)
        return layer

    def _nominal_shapes(
        self, inputs: Mapping[str, Sequence[int]] | Sequence[int], memory_format: torch.memory_format | None
    ) -> Mapping[str, Sequence[int]]:
        """See `Compiled`; the shape may have a batch or not, and of a linear layer any leading axes."""
        axes, channels = len(self.kernel.output) - 2, getattr(self, self.argument_names[0])
        checked_format(memory_format, axes + 2)
        if not isinstance(inputs, Mapping) and (axes == 0 or len(inputs) == axes + 1):
            inputs = (prod(inputs[: len(inputs) - axes - 1]), *inputs[-axes - 1 :])
        shapes = super()._nominal_shapes(inputs, memory_format)
        shape = next(iter(shapes.values()))
        if len(shape) == axes + 2:
            self._check_channels(shape, shape[1], channels)
        return shapes

    def draw(self, path: str | PathLike[str] | None = None) -> Figure:
        """Draw the layer's network; with `path`, write the figure there as .svg, .png or .pdf."""
        return self.network.draw(path)

    def reset_parameters(self) -> None:
        """Draw new values, as torch draws those of its layer.

        The cores are normal, and scaled by one factor so that the mean square of the rebuilt kernel's elements is
        the variance of torch's own: 1 / (3 * fan_in), which is `kaiming_uniform_` with a = sqrt(5), and 1 in an
        embedding. The terms of a sum have equal parts in it. The bias is uniform in +-1 / sqrt(fan_in). The cores of an
        adapter start as `tn.adapt` has them, so that its output is zero.
        """
        self.thaw()
        if any(parameter.is_meta for parameter in self.parameters()):
            return  # without elements there is nothing to draw, as in torch
        fan_in = prod(shape_of(self.kernel, self.kernel.output[1:]))
        variance = 1.0 if self.dense_class is torch_nn.Embedding else 1 / (3 * fan_in)
        cores = {name: core.detach().double() for name, core in self.kernel_tensors().items()}
        drawn = [name for name in cores if name in self._parameters]
        for name in drawn:
            cores[name] = torch.randn(cores[name].shape, dtype=torch.float64, device=cores[name].device)
        if self._starts_at_zero:
            scaled = start_adapter(self.kernel, {name: cores[name].cpu() for name in cores if name not in drawn})
        else:
            scaled = scaled_to(variance, self.kernel, cores, drawn)
        with torch.no_grad():
            for name in drawn:
                getattr(self, name).copy_(scaled[name])
            if self.bias is not None:
                self.bias.uniform_(-1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in))

    def extra_repr(self) -> str:
        sizes = " ".join(f"{bond}={self.kernel.sizes[bond]}" for bond in bonds_of(self.kernel))
        ranks = [f"ranks {sizes}"] if sizes else []
        counts = ", ".join([*ranks, f"{self.parameters_count:,} parameters", self._multiply_adds_text()])
        lines = [self._empty_dense().extra_repr(), str(self.kernel), counts]
        return "\n  " + "\n  ".join(lines) + ("\n  frozen\n" if self.frozen else "\n")

    # Parts -----------------------------------------------------------------------------------------------------

    def cores(self) -> dict[str, torch_nn.Parameter]:
        """Name -> the tensors of the kernel that are trained; the bias is not one of them."""
        return {name: core for name, core in self.kernel_tensors().items() if isinstance(core, torch_nn.Parameter)}

    def kernel_tensors(self) -> dict[str, Tensor]:
        """Name -> each tensor of the kernel, trained or constant."""
        return {name: getattr(self, name) for name in tensors_of(self.kernel)}

    def share_cores(self, other: KernelLayer) -> None:
        """Use the tensors of another layer of the same kernel from now on, as its own: one set of cores for both."""
        for name in tensors_of(self.kernel):
            if name in other._parameters:
                self._parameters[name] = other._parameters[name]
            else:
                self._buffers[name] = other._buffers[name]
        for layer in (self, other):
            if "padding" in layer._buffers:  # of an embedding, whose padding row the other layer trains
                layer._buffers["padding"] = None

    def _title(self) -> str:
        return f"nn.{self.dense_class.__name__}"

    def _multiply_adds_text(self) -> str:
        return f"{self.plan.multiply_adds:,} multiply-adds at {' x '.join(map(str, self.planned_for))}"

    def _format(self) -> torch.memory_format:
        axes = len(self.kernel.output)
        if not self.plan.request.channels_last or axes not in (4, 5):
            return torch.contiguous_format
        return torch.channels_last if axes == 4 else torch.channels_last_3d

    def _check_tensor(self, x: object) -> None:
        if not isinstance(x, Tensor):
            fact = f"the input of an nn.{type(self).__name__} is a {type(x).__name__}"
            raise CompileError(fact, fix="a tensor")

    def _check_channels(self, shape: Sequence[int], size: int, channels: int) -> None:
        """Raise CompileError if an input has another number: the channels of a grouped layer are not a label."""
        if size != channels:
            word = "features" if self.dense_class is torch_nn.Linear else "channels"
            fact = f"the input has {size} {word}, the layer takes {channels}"
            raise CompileError(fact, shape=tuple(shape), layer=f"nn.{type(self).__name__}")

    def _compute(self, x: Tensor, channels: int, axis: int) -> Tensor:
        """The layer's output for an input with one batch axis, which may be empty."""
        shape: Any = x.shape or (1,)
        count = shape[0]
        if isinstance(count, Tensor):  # torch.jit.trace has tensors for sizes
            return super().forward(x)
        if len(shape) > -axis - 1 and shape[axis] != channels:
            self._check_channels(shape, shape[axis], channels)
        return super().forward(x)


def check_dense(module: object) -> None:
    """Raise LayerError if a layer is decomposed already, or a model in which nothing is dense any more, or neither."""
    if not isinstance(module, torch_nn.Module):
        fix = "a layer of torch's, such as torch.nn.Conv2d; a kernel alone by tn.rules()['cp'].apply(kernel, 8)"
        raise LayerError(f"a layer is needed, and a {type(module).__name__} is given", fix=fix)
    kinds = [type(one).__name__ for one in module.modules() if isinstance(one, KernelLayer)]
    if isinstance(module, KernelLayer):
        raise LayerError(f"this nn.{kinds[0]} is decomposed already", fix="its dense layer, layer.to_dense()")
    if kinds and not any(isinstance(one, DECOMPOSABLE) for one in module.modules()):
        fact = f"all kernels of this {type(module).__name__} are decomposed already"
        raise LayerError(fact, fix="the model as it was, or layer.to_dense() of its layers")


def _own_tensors(module: AnyLayer, values: Mapping[str, Tensor], constants: Collection[str]) -> dict[str, Tensor]:
    """Copies of the values of a network, and of the bias, as torch's layer holds its own; parameters but for
    constants.
    """
    weight, bias = module.weight, module._parameters.get("bias")
    tensors: dict[str, Tensor] = {}
    for name, value in values.items():
        copied = value.detach().to(weight.device, weight.dtype, copy=True)
        trained = torch_nn.Parameter(copied, requires_grad=weight.requires_grad)
        tensors[name] = copied if name in constants else trained
    if bias is not None:
        tensors["bias"] = torch_nn.Parameter(bias.detach().clone(), requires_grad=bias.requires_grad)
    return tensors
