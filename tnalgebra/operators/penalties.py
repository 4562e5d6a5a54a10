"""Penalties on the norms of layers as linear maps, with gradients: how far from orthogonal, and Lipschitz bounds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import lru_cache
from math import gcd
from typing import Any

import torch
from torch import Tensor

from ..compiler import Compiled
from ..compiler import compile as compile_network
from ..errors import NetworkError, SizeError
from ..networks import Conv, NamedTensor, Network, carriers, fresh, relabel, tensor_nodes, window
from ..tensors import bind
from .kernel import kernel_of
from .linear_map import Target, check_real, network_of

ITERATIONS = 3
"""Number of times that `lipschitz_bound` multiplies a kernel by itself."""

_REMEMBERED = 128
"""Number of compiled networks that a process remembers."""


def orthogonality(target: Target, *, values: Mapping[str, Any] | None = None) -> Tensor:
    """How far a layer is from orthogonal: ||K * K - delta||^2, the sum of the squares of A A^T - 1 for one output.

    K * K is a network: the kernel moved over itself, which has the inner products of every filter with every other one
    at every distance. For a map A with a convolution in two dimensions it is

        K[o in a b] Conv[a u kh | padding=2] Conv[b v kw | padding=2] K[m in kh kw] -> [o m u v]

    and the cores of a decomposed kernel occur twice in it. Where it is 0, circular layers of that kernel have
    orthonormal rows on inputs of every size that is long enough, and padding with zeros only makes outputs smaller. A
    layer with more outputs than inputs cannot have them; its penalty has a positive minimum.

    Args:
        target: a convolution or linear layer of torch's or of `tnalgebra.nn`, or a network in which one tensor, the
            input, has no value. Of a transposed convolution the columns are compared, A^T A.
        values: the elements of a network's other tensors.

    Returns:
        A scalar, through which gradients reach the parameters of the layer, or the values.

    Raises:
        NetworkError: a position of the input does not have one window to the output.
        LayerError, ValuesError: as of `operator_spectra`.

    Source: J. Wang, Y. Chen, R. Chakraborty, S. Yu, Orthogonal Convolutional Neural Networks (CVPR 2020), equation 12.

    Example:
        >>> layer = torch.nn.Conv2d(16, 16, 3, padding=1)
        >>> loss = tn.orthogonality(layer)
        >>> loss.backward()
    """
    product = _gram(target, values)
    centre = tuple(size // 2 for size in product.shape[3:])
    delta = torch.zeros(product.shape[1:], dtype=product.dtype, device=product.device)
    for number in range(product.shape[1]):
        delta[(number, number, *centre)] = 1
    return (product - delta).square().sum()


def lipschitz_bound(target: Target, *, values: Mapping[str, Any] | None = None, iterations: int = ITERATIONS) -> Tensor:
    """A number that the largest singular value of a layer does not exceed, on inputs of any size.

    With G = K * K, as in `orthogonality`, the norm of A is the square root of that of G, and the norm of G * G is the
    square of that of G. So after each product the largest sum of absolute values in a row of G bounds a higher power of
    the norm, and more iterations bring the bound closer to it. It holds for windows that are padded with zeros, for
    circular ones on inputs whose sizes their strides divide, and for every batch.

    Args:
        target, values: as for `orthogonality`.
        iterations: the number of products. Each doubles the width of the kernel, and its cost grows with the square.

    Returns:
        A scalar, through which gradients reach the parameters of the layer, or the values.

    Raises:
        NetworkError: as of `orthogonality`, or a window that is padded in mode reflect or replicate, or a circular
            one that repeats positions: such sums may exceed the bound.
        SizeError: `iterations` is not positive.

    Source: B. Delattre, Q. Barthelemy, A. Araujo, A. Allauzen, Efficient Bound of Lipschitz Constant for Convolutional
    Layers by Gram Iteration (ICML 2023).

    Example:
        >>> layer = torch.nn.Conv2d(16, 16, 3, padding=1)
        >>> bool(tn.lipschitz_bound(layer) >= tn.operator_spectra(layer, 32).norm)
        True
    """
    if isinstance(iterations, bool) or not isinstance(iterations, int) or iterations < 1:
        raise SizeError(f"iterations is {iterations!r}", fix="an integer of at least 1")
    network, tensors, _ = network_of(target, values)
    network, _ = bind(network, tensors)
    for node in network.nodes:
        if isinstance(node, Conv) and node.mode in ("reflect", "replicate") and _is_padded(node):
            raise NetworkError(f"a window is padded in mode {node.mode}", network=network, fix="zeros or circular")
        if isinstance(node, Conv) and node.mode == "circular" and _repeats(node, network.sizes.get(node.k)):
            fact = f"the circular window from {node.x!r} to {node.y!r} repeats positions, which amplifies them again"
            raise NetworkError(fact, network=network, fix="padding of at most dilation * (size - 1) in all")
    product = _gram(target, values)
    logarithm = torch.zeros((), dtype=product.dtype, device=product.device)
    power = 2  # of the norm of the map, that the product has
    for _ in range(iterations - 1):
        scale = product.detach().norm().clamp(min=torch.finfo(product.dtype).tiny)
        logarithm = logarithm + scale.log() / power
        product = _moved_over_itself(product / scale)
        power *= 2
    rows = product.abs().sum(tuple(range(2, product.ndim)))
    return logarithm.exp() * rows.max() ** (1 / power)


def _is_padded(node: Conv) -> bool:
    numbers = window(node)
    return numbers["low"] > 0 or numbers["high"] > 0


def _repeats(node: Conv, width: int | None) -> bool:
    """Whether a circular window makes more positions than there are, or than every s-th one of them."""
    numbers = window(node)
    return width is not None and numbers["low"] + numbers["high"] > numbers["dilation"] * (width - 1)


def _gram(target: Target, values: Mapping[str, Any] | None) -> Tensor:
    """K * K of a layer: element [g, o, m, u, ...] is the product of the filters o and m of group g, moved by u."""
    network, tensors, _ = network_of(target, values)
    network, bound = bind(network, tensors)
    check_real(bound)
    free = [name for name in tensor_nodes(network) if name not in bound]
    if len(free) != 1:
        raise NetworkError(f"{len(free)} tensors have no value, and one is the input", network=network)
    kernel = kernel_of(network, free[0])
    turned = {one.is_transposed for one in kernel.windows}
    if len(turned) > 1:
        raise NetworkError("some windows are transposed and others are not", network=network)
    outs = kernel.ins if True in turned else kernel.outs
    strides = []
    for one in kernel.windows:
        numbers = window(one.node)
        strides.append(numbers["stride"] // gcd(numbers["stride"], numbers["dilation"]))
    ks = [one.node.k for one in kernel.windows]
    product = product_network(kernel.network, groups=kernel.groups, outs=outs, ks=ks, strides=strides)
    names = tuple(tensor_nodes(product))
    held = [bound[name] if bound[name].is_floating_point() else bound[name].double() for name in names]
    module = _compiled(product, names, tuple(tuple(one.shape) for one in held))
    size = kernel.count(outs)
    value: Tensor = module(*held)
    return value.reshape(kernel.count(kernel.groups), size, size, *value.shape[value.ndim - len(strides) :])


def product_network(
    kernel: Network, *, groups: Sequence[str], outs: Sequence[str], ks: Sequence[str], strides: Sequence[int]
) -> Network:
    """A kernel moved over itself: the sum over all labels but groups, outs and the distances.

    Its output is (groups ..., outs ..., outs of the moved kernel ..., distances ...).
    """
    taken = {*carriers(kernel)}
    names: dict[str, str] = {}
    for label in {*carriers(kernel)} - ({*kernel.output} - {*outs, *ks}):
        names[label] = fresh(label, {*taken, *names.values()})
    nodes = [*kernel.nodes, *(relabel(node, names) for node in kernel.nodes)]
    moves: list[str] = []
    for k, stride in zip(ks, strides, strict=True):
        moves.append(fresh("move", {*taken, *names.values(), *moves}))
        most = (kernel.sizes[k] - 1) // stride * stride
        nodes.append(Conv(k, moves[-1], names[k], stride, most, most))
    sizes = {**kernel.sizes, **{name: kernel.sizes[label] for label, name in names.items() if label in kernel.sizes}}
    return Network(nodes, (*groups, *outs, *(names[label] for label in outs), *moves), sizes)


def _moved_over_itself(product: Tensor) -> Tensor:
    """G * G for a kernel G of shape (groups, outs, outs, distances ...)."""
    ks = tuple(f"k{number}" for number in range(product.ndim - 3))
    sizes = dict(zip(("g", "o", "c", *ks), product.shape, strict=True))
    kernel = Network([NamedTensor("G", ("g", "o", "c", *ks))], ("g", "o", "c", *ks), sizes)
    network = product_network(kernel, groups=("g",), outs=("o",), ks=ks, strides=(1,) * len(ks))
    return _compiled(network, ("G",), (tuple(product.shape),))(product)  # type: ignore[no-any-return]


@lru_cache(_REMEMBERED)
def _compiled(network: Network, names: tuple[str, ...], shapes: tuple[tuple[int, ...], ...]) -> Compiled:
    return compile_network(network, inputs=dict(zip(names, shapes, strict=True)), backward=True, tune=False)
