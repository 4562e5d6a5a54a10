"""`WeightFacts`: what code may read from `layer.weight` of a decomposed layer, which has no such tensor."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from ..compiler import Compiled, is_jit_traced
from ..errors import WeightError
from ..networks import Network, shape_of

_OF_SHAPE = (
    *("dim", "element_size", "is_complex", "is_floating_point", "is_quantized", "is_signed", "is_sparse", "itemsize"),
    *("layout", "nbytes", "ndim", "ndimension", "nelement", "numel", "size"),
)
_OF_DEVICE = ("get_device", "is_cpu", "is_cuda", "is_meta", "is_mps", "is_xpu")
_NEW = ("new_empty", "new_full", "new_ones", "new_tensor", "new_zeros")
_LIKE: tuple[Callable[..., Any], ...] = (Tensor.to, Tensor.type_as)
"""Methods of another tensor that read only dtype and device of the one that they are given."""

WEIGHT_FACTS = frozenset({"shape", "dtype", "device", "requires_grad", *_OF_SHAPE, *_OF_DEVICE, *_NEW})
"""What `layer.weight` answers."""

_OPERATORS = (
    *("__abs__", "__add__", "__and__", "__array__", "__bool__", "__contains__", "__delitem__", "__eq__", "__float__"),
    *("__floordiv__", "__ge__", "__getitem__", "__gt__", "__iadd__", "__imul__", "__index__", "__int__", "__invert__"),
    *("__isub__", "__iter__", "__itruediv__", "__le__", "__len__", "__lt__", "__matmul__", "__mod__", "__mul__"),
    *("__ne__", "__neg__", "__or__", "__pos__", "__pow__", "__radd__", "__rmatmul__", "__rmul__", "__round__"),
    *("__rpow__", "__rsub__", "__rtruediv__", "__setitem__", "__sub__", "__truediv__", "__xor__"),
)


class WeightFacts:
    """Shape, dtype and device of the dense kernel of a decomposed layer; it has no elements.

    Code that reads no more than these runs as it does with torch's layer. Everything else raises `WeightError`: a
    tensor that is made for the caller would be one that training does not reach.

    Attributes:
        shape: of the dense kernel, as torch stores it.
        dtype, device: of the layer's tensors.
        requires_grad: whether any of them is trained.
    """

    _layer: Weightless

    def __init__(self, layer: Weightless) -> None:
        object.__setattr__(self, "_layer", layer)

    @property
    def shape(self) -> torch.Size:
        return torch.Size(shape_of(self._layer.kernel, self._layer.kernel.output))

    @property
    def dtype(self) -> torch.dtype:
        return self._layer._like().dtype

    @property
    def device(self) -> torch.device:
        return self._layer._like().device

    @property
    def requires_grad(self) -> bool:
        return any(core.requires_grad for core in self._layer.cores().values())

    def __getattr__(self, name: str) -> Any:
        if name in _OF_SHAPE:
            return getattr(torch.empty(self.shape, dtype=self.dtype, device="meta"), name)
        if name in _OF_DEVICE or name in _NEW:
            return getattr(self._layer._like(), name)
        raise no_weight(self._layer, name)

    def __setattr__(self, name: str, value: object) -> None:
        raise no_weight(self._layer, f"{name} = ...")

    @classmethod
    def __torch_function__(
        cls, function: Callable[..., Any], types: Sequence[type], args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        facts = next(one for one in _flat((*args, *(kwargs or {}).values())) if isinstance(one, cls))
        if function in _LIKE and len(args) > 1 and args[1] is facts:
            return args[0].to(facts.device, facts.dtype, *args[2:], **(kwargs or {}))
        raise no_weight(facts._layer, getattr(function, "__name__", str(function)))

    def __repr__(self) -> str:
        return f"WeightFacts(shape={tuple(self.shape)}, dtype={self.dtype}, device={str(self.device)!r})"


def _refusing(name: str) -> Callable[..., Any]:
    def refuse(self: WeightFacts, *args: Any, **kwargs: Any) -> Any:
        raise no_weight(self._layer, name)

    return refuse


for _name in _OPERATORS:
    setattr(WeightFacts, _name, _refusing(_name))


def no_weight(layer: Weightless, reader: str, *, fix: str = "") -> WeightError:
    """The error of code that needs elements of the weight, or replaces it; a fix comes before the usual ones."""
    error = WeightError(
        f"nn.{type(layer).__name__} has no weight to compute with or to change: its kernel is a tensor network",
        read_by=reader,
        layer=f"{layer._empty_dense()}, of the kernel {layer.kernel}",
        fix=f"{fix}layer.dense_weight(), the rebuilt kernel; layer.cores(), the tensors that are trained; "
        "layer.to_dense(), torch's layer; in tn.convert, {NAME: None} for this layer",
    )
    error.module = layer
    return error


def _flat(values: Sequence[Any]) -> list[Any]:
    """The values, and those inside of sequences and mappings of them."""
    flat: list[Any] = []
    for value in values:
        inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list | tuple) else ()
        flat += [value, *_flat(tuple(inner))]
    return flat


class _Held(dict[str, Any]):
    """Parameters or buffers of a layer.

    torch asks these by name for a `weight` to normalise, parametrise or replace. Other tensors in them have the layer
    look at the shapes at its next call. A copy or a pickle is a plain `dict`.
    """

    def __init__(self, layer: Weightless, tensors: Mapping[str, Any]) -> None:
        super().__init__(tensors)
        self._layer = weakref.ref(layer)

    def __reduce__(self) -> tuple[Any, ...]:
        return dict, (dict(self),)

    def __setitem__(self, name: str, tensor: Any) -> None:
        super().__setitem__(name, tensor)
        layer = self._layer()
        if layer is not None:
            layer.__dict__["_unchecked"] = True

    def __missing__(self, name: str) -> NoReturn:
        self._refuse(name)
        raise KeyError(name)

    def __delitem__(self, name: str) -> None:
        if name not in self.keys():
            self._refuse(name)
        super().__delitem__(name)

    def _refuse(self, name: str) -> None:
        layer = self._layer()
        if name == "weight" and layer is not None:
            cores = ", ".join(map(repr, layer.cores()))
            raise no_weight(layer, "a change of the parameter 'weight'", fix=f"the name of a core: {cores}; ")


class _HeldBuffers(_Held):
    """Buffers, of which torch's parametrisations ask whether one has a name before they look at the parameters."""

    def __contains__(self, name: object) -> bool:
        if name == "weight":
            self._refuse(name)
        return super().__contains__(name)


class Weightless(Compiled):
    """A layer that has a kernel and no weight: `weight` answers what shape, dtype and device are, and cannot be set."""

    kernel: Network
    _shapes: dict[str, tuple[int, ...]]

    def cores(self) -> dict[str, nn.Parameter]:
        """Name -> the tensors of the kernel that are trained; the bias is not one of them."""
        raise NotImplementedError

    def _empty_dense(self) -> nn.Module:
        """The layer of torch's with the same arguments, its tensors without elements."""
        raise NotImplementedError

    @property
    def weight(self) -> Any:
        """Shape, dtype and device of the dense kernel, for code that reads these; see `WeightFacts`."""
        return WeightFacts(self)

    def __setattr__(self, name: str, value: Any) -> None:
        if name == "weight":
            raise no_weight(self, "weight = ...")
        super().__setattr__(name, value)

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._watch()

    def _watch(self) -> None:
        """Have torch's functions that take a parameter's name raise `WeightError` for "weight", and see new tensors."""
        self._unchecked = False
        self.__dict__["_parameters"] = _Held(self, self._parameters)
        self.__dict__["_buffers"] = _HeldBuffers(self, self._buffers)

    def _run(self, tensors: Sequence[Tensor], dtype: torch.dtype | None) -> Tensor:
        if self._unchecked and not is_jit_traced():
            self._check_shapes()
            if not torch.compiler.is_compiling():
                self._unchecked = False
        return super()._run(tensors, dtype)

    def _check_shapes(self) -> None:
        """Raise CompileError if a tensor that was put into the layer has another shape than the plan's."""
        for name, shape in self._shapes.items():
            tensor = getattr(self, name, None)
            if tensor is None or tensor.shape != shape:
                held = "missing" if tensor is None else f"of shape {tuple(tensor.shape)}"
                fix = f"a tensor of shape {shape}; or a new layer"
                self._refuse(f"the tensor {name!r} is {held}, and the layer is made for another", fix=fix)
        if "bias" not in self._shapes and getattr(self, "bias", None) is not None:
            self._refuse("the layer was made without a bias, and has one", fix="a new layer, with bias=True")

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        if name == "weight" or isinstance(param, WeightFacts):  # as pruning of the weight does
            raise no_weight(self, "register_parameter")
        super().register_parameter(name, param)

    def register_buffer(self, name: str, tensor: Tensor | None, persistent: bool = True) -> None:
        if name == "weight":
            raise no_weight(self, "register_buffer")
        super().register_buffer(name, tensor, persistent)
