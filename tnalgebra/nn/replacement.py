"""`Replacement`: what a layer of `nn` has of the layer of torch's in whose place it is."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from typing import Any, ClassVar, NoReturn

from torch import nn as torch_nn

from ..errors import LayerError
from .held_bases import HoldsBases
from .torch_layers import AnyLayer


class Replacement(HoldsBases):
    """A layer in place of one of torch's: it has its arguments, which are fixed, and its own attributes.

    Attributes:
        dense_class: the class of torch's layer.
        argument_names: the arguments of its constructor, such as "in_channels", which are attributes here too.
    """

    dense_class: ClassVar[type[Any]]
    argument_names: ClassVar[tuple[str, ...]]
    bias: torch_nn.Parameter | None
    _carried: tuple[str, ...] = ()

    def _copy_arguments(self, module: AnyLayer) -> None:
        """Have the arguments of torch's layer as attributes, under their names."""
        for name in self._fixed_names():
            if hasattr(module, name):
                setattr(self, name, getattr(module, name))

    def _fixed_names(self) -> tuple[str, ...]:
        """The attributes by which the layer is planned."""
        return tuple(name for name in (*self.argument_names, "output_padding") if name != "bias")

    def __setattr__(self, name: str, value: Any) -> None:
        """See `Module`. Raises LayerError for an argument of the layer, by which it is planned."""
        if name in self._fixed_names() and "kernel" in self.__dict__ and value != getattr(self, name):
            fact = (
                f"{name} of an nn.{type(self).__name__} cannot be changed: its plan is made for {getattr(self, name)}"
            )
            raise LayerError(fact, fix=f"dense = layer.to_dense(); dense.{name} = ...; nn.decomposed(dense, ...)")
        super().__setattr__(name, value)

    @classmethod
    def own_attributes(cls, module: AnyLayer) -> dict[str, Any]:
        """Plain attributes of a layer of torch's that its class does not give it, such as a factor that a model reads.

        Raises:
            LayerError: a name is one of the classes', such as a method that is replaced on the object.
        """
        arguments = {name: getattr(module, name) for name in cls.argument_names if name != "bias"}
        known = {*vars(cls.empty_dense(arguments)), "_compiled_call_impl"}
        own = {name: value for name, value in vars(module).items() if name not in known}
        for name in own:
            if hasattr(cls, name) or hasattr(cls.dense_class, name):
                cls._refuse_attribute(name)
        return own

    def carry_attributes(self, module: AnyLayer) -> None:
        """Have the own attributes of torch's layer. Raises LayerError for the name of a core, or another one in use."""
        own = self.own_attributes(module)
        for name in own:
            if name in {*vars(self), *self._parameters, *self._buffers, *self._modules}:
                self._refuse_attribute(name)
        self.__dict__.update(own, _carried=tuple(own))

    @classmethod
    def _refuse_attribute(cls, name: str) -> NoReturn:
        fact = f"the layer has an attribute of its own, {name!r}, and an nn.{cls.__name__} has another of this name"
        raise LayerError(fact, fix=f"another name for it, or del layer.{name} first")

    def _return_attributes(self, module: AnyLayer) -> None:
        """Give a layer of torch's the own attributes that the replaced one had."""
        module.__dict__.update({name: vars(self)[name] for name in self._carried if name in vars(self)})

    def _new_dense(self, arguments: Mapping[str, Any]) -> Any:
        """torch's layer with these arguments and random values. Raises LayerError where torch refuses them."""
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Initializing zero-element tensors")  # which are refused below
                return self.dense_class(**arguments)
        except (ValueError, RuntimeError, AssertionError) as error:
            requested = ", ".join(f"{name}={value!r}" for name, value in arguments.items() if value is not None)
            fact = f"torch.nn.{self.dense_class.__name__} does not take these arguments"
            raise LayerError(fact, given=requested, because=error) from error

    @classmethod
    def empty_dense(cls, arguments: Mapping[str, Any]) -> Any:
        """The layer of torch's with these arguments, its tensors without elements and nothing drawn for them."""
        undrawn = type(cls.dense_class.__name__, (cls.dense_class,), {"reset_parameters": lambda layer: None})
        layer = undrawn(**arguments, device="meta")
        layer.__class__ = cls.dense_class
        return layer

    def _empty_dense(self) -> Any:
        arguments = {name: getattr(self, name) for name in self.argument_names if name != "bias"}
        if "bias" in self.argument_names:
            arguments["bias"] = self.bias is not None
        return self.empty_dense(arguments)
