"""`Embedding`: torch's embedding with its table as a tensor network, of which only the requested rows are computed."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from math import prod
from typing import NamedTuple, Self, Unpack

import torch
from torch import Tensor
from torch import nn as torch_nn

from ..compiler import Compiled, is_jit_traced, is_symbolic, leaf_call
from ..errors import CompileError, LayerError
from ..networks import (
    Copy,
    Fuse,
    NamedTensor,
    Network,
    Node,
    all_nodes,
    fresh,
    node_text,
    shape_of,
    sum_of_products,
    tensors_of,
)
from ..rewriting import Rule
from .base import KernelLayer, LayerRewrite
from .planning import LayerChoices, Planning, Shaping, checked_format, nominal_shape
from .torch_layers import AnyLayer


class _Digit(NamedTuple):
    """A part of a row's number: `number // divisor % size`; the remainder changes nothing in the leading part."""

    divisor: int
    size: int
    leading: bool


class _Selected(NamedTuple):
    """A core of which only the requested rows are computed with.

    input: its name in the network that is computed; the label of the tokens is its first there.
    core: the name of its tensor.
    axes: its axes that carry a part of the row's number, with the part.
    """

    input: str
    core: str
    axes: tuple[tuple[int, _Digit], ...]


class Embedding(KernelLayer):
    """`torch.nn.Embedding` with a decomposed table `rows dim`.

    A call selects the requested rows on each core that carries a part of `rows`, then contracts for each token: time
    and memory grow with the number of tokens, and the table is never rebuilt. With `padding_idx` the padding row is a
    buffer, `padding`, that training does not change, as in torch.

    Attributes:
        padding: shape (embedding_dim,), the row of `padding_idx`; None without one, and in a layer whose cores are
            tied to those of another layer, where the padding row follows the cores.
    """

    dense_class = torch_nn.Embedding
    argument_names = (
        *("num_embeddings", "embedding_dim", "padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse"),
    )
    num_embeddings: int
    embedding_dim: int
    padding_idx: int | None
    padding: Tensor | None
    _lowered = False
    _selected: tuple[_Selected, ...]

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        max_norm: float | None = None,
        norm_type: float = 2.0,
        scale_grad_by_freq: bool = False,
        sparse: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        rewrite: str | Rule,
        size: object = None,
        **choices: Unpack[Shaping],
    ) -> None:
        """Make an embedding with random values; arguments and errors as of `Conv2d`.

            train = "W[rows dim] => Fuse[rows r1 r2] Fuse[dim d1 d2] A[r1 d1 p] B[p r2 d2]"
            layer = tn.nn.Embedding(50_000, 512, rewrite=train, size=64, sizes={"r1": 250, "d1": 16})

        Args:
            num_embeddings, ..., dtype: as of `torch.nn.Embedding`, but for `max_norm`, `scale_grad_by_freq` and
                `sparse`, which are refused, as a decomposition has no memory for each row.
        """
        table = (num_embeddings, embedding_dim, padding_idx, max_norm, norm_type, scale_grad_by_freq, sparse)
        arguments = dict(zip((*self.argument_names, "device", "dtype"), (*table, device, dtype), strict=True))
        self._start(arguments, rewrite, size, choices)

    @classmethod
    def from_embedding(
        cls, embedding: torch_nn.Module, rewrite: LayerRewrite, size: object = None, **choices: Unpack[LayerChoices]
    ) -> Self:
        """Make the layer that does what an embedding does, with its table decomposed: see `Conv2d.from_conv`.

        layer = tn.nn.Embedding.from_embedding(model.tokens, "rows | dim", "parameters 0.2")
        """
        return cls._of_dense(embedding, rewrite, size, choices)

    def forward(self, input: Tensor) -> Tensor:  # type: ignore[override]
        """Look up rows.

        Args:
            input: integers, int32 or int64, of any shape: numbers of rows, from 0 to num_embeddings - 1.

        Returns:
            Shape (*input.shape, embedding_dim).

        Raises:
            CompileError: the input does not hold integers.
            IndexError: a number is out of range; on a GPU, as in torch, a failed assertion of the device.
        """
        if is_symbolic(input):
            return leaf_call(self, (input,), {})
        self._check_tensor(input)
        if input.dtype not in (torch.int64, torch.int32):
            raise CompileError(f"the input of nn.Embedding is {input.dtype}", fix="numbers of rows, as torch.int64")
        numbers = input.reshape(-1)
        try:  # torch compares the numbers: where they are traced or batched, Python cannot read them
            numbers.new_zeros(()).expand(self.num_embeddings).index_select(0, numbers)
        except IndexError as error:
            last = self.num_embeddings - 1
            raise IndexError(f"a row is out of range: those of this nn.Embedding are 0 to {last}") from error
        empty = not torch.compiler.is_compiling() and not is_jit_traced() and not numbers.numel()
        if empty:
            numbers = numbers.new_zeros(1)
        inputs = [_select(getattr(self, one.core), one.axes, numbers) for one in self._selected]
        rows = Compiled.forward(self, *inputs)
        if self.padding_idx is not None:
            fixed = rows.detach() if self.padding is None else self.padding.to(rows.dtype)
            rows = torch.where((numbers == self.padding_idx).unsqueeze(1), fixed, rows)
        return (rows[:0] if empty else rows).reshape(*input.shape, self.embedding_dim)

    @property
    def planned_for(self) -> tuple[int, ...]:
        """The number of tokens that the plan was chosen for."""
        return (self.network.sizes[self.network.output[0]],)

    def dense_weight(self) -> Tensor:
        """The table contracted to one tensor, shape (num_embeddings, embedding_dim): differentiable, in float64."""
        table = super().dense_weight()
        if self.padding_idx is None:
            return table
        fixed = table[self.padding_idx].detach() if self.padding is None else self.padding
        return table.index_copy(0, torch.tensor([self.padding_idx], device=table.device), fixed.unsqueeze(0))

    def reset_parameters(self) -> None:
        """Draw new values as torch does: rows of variance 1, and zeros in the padding row."""
        super().reset_parameters()
        if self.padding is not None:
            self.padding.zero_()

    # Parts -----------------------------------------------------------------------------------------------------

    def _fill(
        self,
        module: AnyLayer,
        network: Network,
        values: Mapping[str, Tensor | str],
        *,
        constants: Collection[str],
        planning: Planning,
    ) -> None:
        super()._fill(module, network, values, constants=constants, planning=planning)
        self._selected = _select_rows(self.kernel)[1]
        row = None if self.padding_idx is None else module.weight[self.padding_idx].detach().clone()
        self.register_buffer("padding", row)
        self._straighten()

    def _check_tensors(self, tensors: Sequence[Tensor], lowered: torch.dtype | None) -> None:
        """See `Compiled`; the inputs are rows of cores."""
        self._check_type(getattr(self, self._selected[0].core))
        super()._check_tensors(tensors, lowered)

    def _multiply_adds_text(self) -> str:
        return f"{self.plan.multiply_adds / self.planned_for[0]:,.0f} multiply-adds a token"

    def _network_and_inputs(
        self, module: AnyLayer, kernel: Network, planning: Planning
    ) -> tuple[Network, dict[str, tuple[int, ...]]]:
        network, selected = _select_rows(kernel)
        return network, _input_shapes(network, selected, *nominal_shape(module, planning))

    def _nominal_shapes(
        self, inputs: Mapping[str, Sequence[int]] | Sequence[int], memory_format: torch.memory_format | None
    ) -> Mapping[str, Sequence[int]]:
        """See `Compiled`; the shape is that of the numbers of rows."""
        if not isinstance(inputs, Mapping):
            inputs = _input_shapes(self.network, self._selected, prod(inputs))
        return Compiled._nominal_shapes(self, inputs, checked_format(memory_format, 2))


def _select_rows(kernel: Network) -> tuple[Network, tuple[_Selected, ...]]:
    """The network of the requested rows, one for each value of its first output label, and the cores it selects from.

    Every core with a part of the row's number becomes an input, which has the label of the tokens in place of it.

    Raises:
        LayerError: no core has a part of the row's number, or an index pattern ties one to something else.
    """
    _, dim = kernel.output
    token = fresh("n", {label for node in all_nodes(kernel) for label in node.labels})
    names = {*tensors_of(kernel)}
    selected: list[_Selected] = []
    products = [_select_in_term(kernel, term, token, names, selected) for term in kernel.terms]
    return sum_of_products(products, (token, dim)), tuple(selected)


def _select_in_term(
    kernel: Network, term: Network, token: str, names: set[str], selected: list[_Selected]
) -> tuple[list[Node], dict[str, int]]:
    """The nodes and sizes of one term. New inputs are added to `selected`, and their names to `names`."""
    digits = _digits(term, kernel.output[0])
    nodes: list[Node] = []
    before = len(selected)
    for node in term.nodes:
        axes = tuple((axis, digits[label]) for axis, label in enumerate(node.labels) if label in digits)
        if not axes:
            nodes.append(node)
        elif isinstance(node, NamedTensor):
            name = fresh(f"{node.name}_rows", names)
            names.add(name)
            nodes.append(NamedTensor(name, (token, *(label for label in node.labels if label not in digits))))
            selected.append(_Selected(name, node.name, axes))
        elif not (isinstance(node, Fuse) and node.whole in digits) and not isinstance(node, Copy):
            raise LayerError(
                f"an embedding selects rows on its cores, and {node_text(node)} carries a part of the row's number",
                decomposition=kernel,
                fix="a rule that splits rows by Fuse[rows r1 r2 ...], with r1, r2, ... on tensors",
            )
    if len(selected) == before:
        raise LayerError("no core carries the rows of this embedding", decomposition=term)
    known = {label for node in nodes for label in node.labels}
    return nodes, {label: size for label, size in term.sizes.items() if label in known}


def _digits(kernel: Network, rows: str) -> dict[str, _Digit]:
    """Label -> the part of the row's number that it has, by the `Fuse` and `Copy` that lead to it from the rows."""
    total = kernel.sizes[rows]
    digits = {rows: _Digit(1, total, True)}
    for _ in kernel.nodes:  # as many steps as the longest chain of index patterns
        for node in kernel.nodes:
            if isinstance(node, Fuse) and node.whole in digits:
                divisor = digits[node.whole].divisor
                for part in reversed(node.parts):
                    size = kernel.sizes[part]
                    digits[part] = _Digit(divisor, size, divisor * size == total)
                    divisor *= size
            elif isinstance(node, Copy) and (known := [label for label in node.labels if label in digits]):
                digits |= dict.fromkeys(node.labels, digits[known[0]])
    return digits


def _input_shapes(network: Network, selected: Sequence[_Selected], tokens: int) -> dict[str, tuple[int, ...]]:
    """Name -> shape of each selected core, for a number of tokens."""
    nodes = tensors_of(network)
    return {one.input: (tokens, *shape_of(network, nodes[one.input].labels[1:])) for one in selected}


def _select(core: Tensor, axes: tuple[tuple[int, _Digit], ...], numbers: Tensor) -> Tensor:
    """The slices of a core for each row's number, shape (tokens, the core's other axes)."""
    places = []
    for _, (divisor, size, leading) in axes:
        quotient = torch.div(numbers, divisor, rounding_mode="floor") if divisor > 1 else numbers
        places.append(quotient if leading else quotient % size)
    if len(axes) == 1:
        return core.movedim(axes[0][0], 0).index_select(0, places[0])
    return core.movedim([axis for axis, _ in axes], list(range(len(axes))))[tuple(places)]
