"""Solutions of linear equations with layers and networks, and the networks of inverses, by Fourier transforms."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..errors import NetworkError, SizeError, ValuesError
from ..networks import Conv, Fuse, NamedTensor, Network, Node, fresh, shape_of, tensor_nodes, window
from ..tensors import bind, is_finite
from .linear_map import InputSizes, LinearMap, Target, network_of, read_map
from .symbol import FourierSymbol, symbol_of

_DAMPING = 1e-3
"""Of the circulant map in the preconditioner: singular values below this part of the largest are not divided by."""

_MOST_STEPS = 2000
"""Largest number of steps of the iteration."""


class InverseNetwork(NamedTuple):
    """The inverse of a linear map as a network, and the values of its kernel."""

    network: Network
    values: dict[str, Tensor]


def solve(
    target: Target,
    right_side: Tensor,
    *,
    values: Mapping[str, Any] | None = None,
    tolerance: float = 1e-10,
) -> Tensor:
    """The input that a layer, or a network, takes to a given output.

    A map whose windows are circular is solved directly, in O(n log n) for n positions: by a Fourier transform, a small
    system for each frequency, and the inverse transform. A map whose windows are padded in another way but keep the
    positions, such as a Toeplitz matrix, is solved by conjugate gradients on the compiled network and its transpose,
    preconditioned by the circular map with the same kernel, until the residual is at most `tolerance`.

    Args:
        target: a layer, whose bias is subtracted from the right side, or a network or its notation in which one tensor,
            the input, has no value.
        right_side: a tensor with the axes of the output; a batch may have any size.
        values: the elements of a network's other tensors.
        tolerance: ||A x - b|| / ||b|| at which the iteration ends.

    Returns:
        A tensor with the axes of the input, of the type of the right side; it is computed in float64.

    Raises:
        NetworkError: a map whose windows do not keep the positions, or of another number of outputs than inputs.
        SizeError: the right side has another shape than the outputs.
        ValuesError: the map is singular, or so nearly that the residual stays above the tolerance.
        LayerError: a module that is not a linear map of its input.

    Sources: P. Davis, Circulant Matrices (1979); R. Chan, M. Ng, Conjugate Gradient Methods for Toeplitz Systems (SIAM
    Review 38, 1996), with the circulant matrix of T. Chan's kind replaced by that of the same kernel.

    Example:
        >>> layer = torch.nn.Conv1d(2, 2, 3, padding=1, padding_mode="circular").double()
        >>> x = torch.randn(5, 2, 100, dtype=torch.float64)
        >>> torch.dist(tn.solve(layer, layer(x)), x) < 1e-8
        tensor(True)
    """
    if not isinstance(right_side, Tensor):
        raise ValuesError(
            f"the right side is a {type(right_side).__name__}", fix="a tensor with the axes of the output"
        )
    if isinstance(tolerance, bool) or not isinstance(tolerance, (int, float)) or not tolerance > 0:
        raise ValuesError(f"tolerance is {tolerance!r}", fix="a positive number, such as 1e-10")
    if right_side.is_complex() or right_side.is_meta or not right_side.numel() or not is_finite(right_side):
        raise ValuesError(
            "the right side is empty, complex, on the meta device, or holds NaN or infinity",
            shape=tuple(right_side.shape),
        )
    linear = read_map(target, _input_sizes(target, right_side, values), values)
    if tuple(right_side.shape) != linear.output_shape:
        raise SizeError(
            f"the right side has shape {tuple(right_side.shape)}, the output {linear.output_shape}",
            output=" ".join(linear.network.output),
        )
    _check_square(linear)
    right = right_side.detach().to(torch.float64)
    if linear.bias is not None:
        right = right - linear.bias.detach().double().reshape(-1, *(1 for _ in right.shape[2:]))
    try:
        symbol, is_circular = symbol_of(linear), True
    except NetworkError:
        symbol, is_circular = symbol_of(_circular(linear)), False
    solution = _direct(symbol, right) if is_circular else _iterated(linear, symbol, right, tolerance)
    return solution.to(right_side.dtype if right_side.is_floating_point() else torch.float64)


def inverse(target: Target, size: InputSizes = None, *, values: Mapping[str, Any] | None = None) -> InverseNetwork:
    """The inverse of a map whose windows are circular, as a network with a circular window over all positions.

        inverse = tn.inverse(layer, (32, 32))
        undo = tn.compile(inverse.network, inputs={"Y": layer(x).shape}, values=inverse.values)

    Args:
        target, values: as for `solve`; the bias of a layer is left out.
        size: sizes of the input's positions, as in `operator_spectra`.

    Returns:
        A network whose input Y has the axes of the map's output, and the elements of its kernel in float64.

    Raises:
        NetworkError: a map without circular windows, or of another number of outputs than inputs.
        ValuesError: the map is singular.
        LayerError, SizeError: as of `operator_spectra`.
    """
    linear = read_map(target, size, values)
    _check_square(linear)
    symbol = symbol_of(linear)
    matrices = symbol.all_matrices()
    unit = torch.eye(matrices.shape[-1], dtype=matrices.dtype, device=matrices.device)
    elements = _solve_each(matrices, unit.expand(matrices.shape))
    for number, axis in reversed(list(enumerate(symbol.axes))):  # the aliases are frequencies of the longer side
        side = -1 if axis.transposed else -2
        apart = torch.unflatten(elements, side, (axis.stride, -1))
        elements = apart.movedim(side - 1, number).flatten(number, number + 1)
    for number, axis in enumerate(symbol.axes):
        elements = axis.stride**0.5 * (
            torch.fft.fft(elements, dim=number, norm="forward")
            if axis.transposed
            else torch.fft.ifft(elements, dim=number)
        )
    kernel, taken = symbol.kernel, {*linear.network.sizes}
    windows: list[Conv] = []
    for axis in symbol.axes:
        x, y = (axis.after, axis.before) if axis.transposed else (axis.before, axis.after)
        k = fresh(f"k_{x}", {*taken, *(node.k for node in windows)})
        windows.append(Conv(x, y, k, axis.stride, 0, axis.size - axis.stride, 1, "circular"))
    labels = (*(node.k for node in windows), *kernel.groups, *kernel.ins, *kernel.outs)
    shape = [*(axis.size for axis in symbol.axes), *shape_of(kernel.network, labels[len(windows) :])]
    name = fresh("Y", {*tensor_nodes(linear.network), "K"})
    reshapes = [Fuse(whole, parts) for whole, parts in kernel.parts.items()]
    nodes: list[Node] = [NamedTensor(name, linear.network.output), *windows, *reshapes, NamedTensor("K", labels)]
    return InverseNetwork(Network(nodes, linear.source.labels), {"K": elements.real.reshape(shape).contiguous()})


def _input_sizes(target: Target, right_side: Tensor, values: Mapping[str, Any] | None) -> dict[str, int]:
    """The sizes that follow from the shape of the output, with x = stride * y where a window has as many positions."""
    network, tensors, _ = network_of(target, values)
    if right_side.ndim != len(network.output):
        fact = f"the right side has {right_side.ndim} axes, the output {len(network.output)}"
        raise SizeError(fact, output=" ".join(network.output))
    sizes = dict(zip(network.output, right_side.shape, strict=True))
    windows = [node for node in network.nodes if isinstance(node, Conv)]
    network, _ = bind(network, tensors)
    for _ in windows:
        for node in windows:
            numbers = window(node)
            width, count = network.sizes.get(node.k), sizes.get(node.y)
            if width and count and node.x not in sizes:
                size = numbers["stride"] * count
                reach = size + numbers["low"] + numbers["high"] - numbers["dilation"] * (width - 1) - 1
                if reach // numbers["stride"] + 1 == count:
                    sizes[node.x] = size
    return sizes


def _check_square(linear: LinearMap) -> None:
    rows, columns = linear.shape
    if rows != columns:
        fact = f"the map has {rows} outputs and {columns} inputs"
        raise NetworkError(fact, network=linear.network, fix="as many outputs as inputs")


def _circular(linear: LinearMap) -> LinearMap:
    """The map with circular windows in place of others."""
    network = linear.network
    nodes = [replace(node, mode="circular") if isinstance(node, Conv) else node for node in network.nodes]
    return replace(linear, network=Network(nodes, network.output, network.sizes))


def _direct(symbol: FourierSymbol, right: Tensor) -> Tensor:
    linear = symbol.of
    split = symbol.split(right, linear.network.output, output=True)
    solved = _solve_each(symbol.all_matrices(), split)
    return symbol.merge(solved, linear.source.labels, linear.input_shape, output=False)


def _solve_each(matrices: Tensor, right: Tensor) -> Tensor:
    """Solve the system of each frequency. Raises ValuesError if one is singular in float64."""
    if matrices.shape[-1] == 1:
        solved, flags = right / matrices, (matrices == 0).flatten(-3).any(-1).int()
    else:
        solved, flags = torch.linalg.solve_ex(matrices, right)
    sizes = torch.linalg.matrix_norm(matrices) * torch.linalg.matrix_norm(solved)
    limit = 0.01 / torch.finfo(torch.float64).eps
    lost = sizes > limit * torch.linalg.matrix_norm(right).clamp(min=torch.finfo(torch.float64).tiny)
    if bool(flags.any()) or not bool(solved.isfinite().all()) or bool(lost.any()):
        raise ValuesError(
            "the map is singular: it takes an input other than 0 to 0, up to rounding",
            fix="operator_spectra shows its smallest singular values, by frequency",
        )
    return solved


def _iterated(linear: LinearMap, symbol: FourierSymbol, right: Tensor, tolerance: float) -> Tensor:
    """Conjugate gradients on the normal equations, preconditioned by those of the circular map."""
    forward, backward = (linear.function(columns=1, transposed=turned) for turned in (False, True))
    matrices = symbol.all_matrices()
    normal = matrices.mH @ matrices
    largest = torch.linalg.matrix_norm(matrices).max()
    unit = torch.eye(normal.shape[-1], dtype=normal.dtype, device=normal.device)
    if not largest:
        raise ValuesError("the map is singular: its kernel is zero", network=linear.network)
    factors = torch.linalg.cholesky(normal + (_DAMPING * largest) ** 2 * unit)
    labels, shape = linear.source.labels, linear.input_shape

    def precondition(tensor: Tensor) -> Tensor:
        split = symbol.split(tensor, labels, output=False)
        return symbol.merge(torch.cholesky_solve(split, factors), labels, shape, output=False)

    return _conjugate_gradients(
        (lambda x: forward(x[None])[0], lambda y: backward(y[None])[0], precondition), right, shape, tolerance
    )


def _conjugate_gradients(
    functions: tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]],
    right: Tensor,
    shape: tuple[int, ...],
    tolerance: float,
) -> Tensor:
    """x with A x = right, from the functions A, its transpose and a preconditioner of their product."""
    forward, backward, precondition = functions
    limit = tolerance * float(torch.linalg.vector_norm(right))
    solution, residual = right.new_zeros(shape), right
    gradient = backward(residual)
    direction = conditioned = precondition(gradient)
    inner = float((gradient * conditioned).sum())
    for _ in range(_MOST_STEPS):
        if float(torch.linalg.vector_norm(residual)) <= limit:
            return solution
        image = forward(direction)
        energy = float(image.square().sum())
        if not energy or not inner:
            break
        solution = solution + inner / energy * direction
        residual = residual - inner / energy * image
        gradient = backward(residual)
        conditioned = precondition(gradient)
        before, inner = inner, float((gradient * conditioned).sum())
        direction = conditioned + inner / before * direction
    reached = float(torch.linalg.vector_norm(residual) / torch.linalg.vector_norm(right))
    raise ValuesError(
        f"the iteration reached a residual of {reached:.1e} of the right side, not {tolerance:.1e}",
        because="the map is singular, or nearly",
        fix="a larger tolerance; operator_spectra shows the map's singular values",
    )
