"""`HoldsBases`: layers with orthonormal bases among the tensors of their kernels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..compiler import Executor, is_exported, is_traced, is_watched
from ..tensors import basis_matrix, is_basis
from .weight_facts import Weightless


class _Held(NamedTuple):
    """A buffer that has the elements of a basis, and how often it had been changed when they were compared."""

    basis: str
    tensor: Tensor
    version: int | None


class HoldsBases(Weightless):
    """A layer some of whose constants are bases: buffers, whose elements their names say.

    Its plan may apply a basis by a fast transform, which does not read the buffer. Once a buffer has other elements or
    another one stands in for it, the layer computes with the elements: they are compared at the next call.
    """

    _held: Mapping[str, _Held] = {}
    _by_matrices: Executor | None = None

    def _hold(self, bases: Mapping[str, str]) -> None:
        """Remember which buffers are bases: name of a buffer -> name of its basis."""
        self._held = {name: _held(basis, self.get_buffer(name)) for name, basis in bases.items()}

    @property
    def bases(self) -> dict[str, str]:
        """Name of each constant that is a basis, with all elements that it had -> name of the basis."""
        return {name: one.basis for name, one in self._held.items() if self._is_held(name, one)}

    def _is_held(self, name: str, held: _Held) -> bool:
        """Whether a buffer still has the elements of its basis."""
        now = self._buffers.get(name)
        if type(now) is not Tensor:
            return False
        if now is held.tensor and (is_traced() or now.is_meta or _is_version(now, held.version)):
            return True
        if is_watched() or now.is_meta or not is_basis(now, held.basis):
            return False
        self._held = {**self._held, name: _held(held.basis, now)}
        return True

    def _has_bases(self) -> bool:
        return all(self._is_held(name, one) for name, one in self._held.items())

    def _at_once(self, inputs: Sequence[Any]) -> Tensor | None:
        return None if self._held and not self._has_bases() else super()._at_once(inputs)

    def _execute(self, executor: Executor, tensors: Sequence[Tensor], dtype: torch.dtype | None) -> Tensor:
        if not self._held or self._has_bases():
            return super()._execute(executor, tensors, dtype)
        if self._by_matrices is None:
            self._by_matrices = self._executor_by_matrices()
        executor = self._by_matrices
        chosen = executor.direct if executor.direct is not None and is_exported() else executor
        return chosen.run(self, tensors, dtype)

    def _use(self, plan: Any) -> None:
        super()._use(plan)
        self._by_matrices = None

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **keywords: Any) -> Any:
        dtypes = {name: self.get_buffer(name).dtype for name in self.bases}
        super()._apply(fn, *args, **keywords)
        self._by_matrices = None
        for name, dtype in dtypes.items():
            now = self.get_buffer(name)
            if now.dtype != dtype and not now.is_meta:  # a basis in few digits is not one in many
                self._buffers[name] = basis_matrix(self._held[name].basis, len(now)).to(now.device, now.dtype)
        return self


def _held(basis: str, tensor: Tensor) -> _Held:
    return _Held(basis, tensor, None if tensor.is_inference() else tensor._version)


def _is_version(tensor: Tensor, version: int | None) -> bool:
    """Whether a tensor is as often changed as it was; of one that was made in inference mode torch does not count."""
    return version is not None and not tensor.is_inference() and tensor._version == version
