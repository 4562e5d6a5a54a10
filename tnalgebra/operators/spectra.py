"""`operator_spectra`: the singular values of a layer as a linear map of whole inputs, not of its kernel alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import inf, prod
from typing import Any

import torch
from torch import Tensor

from .._tables import Table, Tabular, plural, tabulate
from ..errors import NetworkError, SizeError
from ..fitting import Settings
from .lanczos import EXTRA, largest_singular_values
from .linear_map import InputSizes, LinearMap, Target, read_map
from .symbol import FourierSymbol, symbol_of

_SHOWN = 10
"""Number of singular values that a printed table lists."""

_TOLERANCE = 1e-8
"""The bound of each value, relative to the largest one, at which the iteration for the largest values ends."""

_MOST_STEPS = 1000
"""Largest number of times that the iteration applies the map to a block of vectors."""


@dataclass(frozen=True, eq=False, repr=False)
class OperatorSpectra(Tabular):
    """The singular values of a linear map of inputs of one size.

    singular_values: descending, float64, on the CPU: all of them, or the largest.
    bounds: for each value how far from it a singular value of the map is at most; 0 where it was computed directly,
        apart from rounding.
    shape: the numbers of elements of one output and one input: rows and columns of the map's matrix.
    by_frequency: shape (frequencies of each axis ..., values of one frequency), each row descending, if the map has a
        matrix for each frequency; else None. The frequencies are those of `torch.fft.fftfreq` of the output, or of
        the input if the windows are transposed. A batch and other axes on which the map does not depend are left out.
    why: what keeps the map from having a matrix for each frequency, or None.
    """

    singular_values: Tensor
    bounds: Tensor
    shape: tuple[int, int]
    by_frequency: Tensor | None
    why: str | None

    @property
    def is_complete(self) -> bool:
        """Whether all singular values are known."""
        return len(self.singular_values) == min(self.shape)

    @property
    def norm(self) -> float:
        """The largest singular value: the Lipschitz constant of the map in the Euclidean norm."""
        return float(self.singular_values[0])

    @property
    def condition(self) -> float | None:
        """The largest singular value over the smallest; infinity if that is 0, and None if it is not known."""
        if not self.is_complete:
            return None
        smallest = float(self.singular_values[-1])
        return self.norm / smallest if smallest else inf

    def _summary(self) -> str:
        how = "all of them" if self.is_complete else "the largest"
        return (
            f"of a map of {self.shape[1]:,} to {self.shape[0]:,} elements: {self._count()}, {how}, norm {self.norm:.6g}"
        )

    def _count(self) -> str:
        return plural(len(self.singular_values), "singular value")

    def _table(self) -> Table:
        columns: dict[str, Callable[[dict[str, Any]], str]] = {
            "rank": lambda row: f"{row['rank']:,}",
            "singular value": lambda row: f"{row['singular_value']:.8g}",
            "within": lambda row: "rounding" if row["bound"] == 0 else f"{row['bound']:.1e}",
        }
        rows = self.records()
        shown = rows if len(rows) <= _SHOWN else [*rows[: _SHOWN - 1], rows[-1]]
        above = [f"a linear map of {self.shape[1]:,} elements to {self.shape[0]:,}"]
        if self.by_frequency is not None:
            frequencies = plural(prod(self.by_frequency.shape[:-1]), "frequency").replace("frequencys", "frequencies")
            above.append(f"all {self._count()}, by {frequencies}; condition number {self.condition:.6g}")
        else:
            above += [f"the largest {self._count()}, by Lanczos", f"  because: {self.why}"]
        return tabulate(shown, columns, above=[*above, ""])

    def records(self) -> list[dict[str, Any]]:
        """A dictionary for each singular value: its rank, counted from 1, the value, and its bound."""
        pairs = zip(self.singular_values.tolist(), self.bounds.tolist(), strict=True)
        return [{"rank": n, "singular_value": value, "bound": bound} for n, (value, bound) in enumerate(pairs, start=1)]


def operator_spectra(
    target: Target,
    size: InputSizes = None,
    *,
    values: Mapping[str, Any] | None = None,
    count: int = 6,
    seed: int = 0,
) -> OperatorSpectra:
    """The singular values of a layer, or of a network, as a linear map of whole inputs of one size.

    A map whose windows are circular has a small matrix for each frequency, and all its singular values are those of
    these matrices, for any stride, dilation and groups, transposed layers and decomposed ones. Of any other map, such
    as a convolution that is padded with zeros, the largest values are computed by a Lanczos method on the compiled
    network and its transpose, and each has a bound. The matrix of the whole map is never made.

    Args:
        target: a layer of torch's or of `tnalgebra.nn`, whose bias is left out, or a network or its notation in which
            one tensor, the input, has no value.
        size: sizes of the input's positions (without batch and channels): one integer for all axes, one for each, or a
            mapping of labels. None for a map without positions, and where the network has the sizes. A batch, and the
            channels of a pooling, have one element.
        values: the elements of a network's other tensors.
        count: how many of the largest values to compute where not all of them follow from matrices by frequency.
        seed: of the random vectors that the iteration starts from.

    Returns:
        The values, with one axis for each frequency where there are matrices by frequency.

    Raises:
        LayerError: a module that is not a linear map of its input, such as an activation.
        NetworkError: a network without an input, with several, or that is not linear in it.
        SizeError: a size is not known, or contradicts the network; `count` is not positive.
        ValuesError: values that do not fit, or are not finite.

    Sources: H. Sedghi, V. Gupta, P. Long, The Singular Values of Convolutional Layers (ICLR 2019); the iteration as
    `largest_singular_values` says.

    Example:
        >>> layer = torch.nn.Conv2d(3, 8, 3, padding=1, padding_mode="circular")
        >>> spectra = tn.operator_spectra(layer, (32, 32))
        >>> spectra.singular_values.shape, spectra.by_frequency.shape
        (torch.Size([3072]), torch.Size([32, 32, 3]))
    """
    if isinstance(count, bool) or not isinstance(count, int) or count < 1:
        raise SizeError(f"count is {count!r}", fix="an integer of at least 1")
    seed = Settings(seed=seed).seed
    linear = read_map(target, size, values)
    try:
        symbol = symbol_of(linear)
    except NetworkError as error:
        return _largest(linear, min(count, *linear.shape), seed, error)
    return _by_frequency(symbol)


def _by_frequency(symbol: FourierSymbol) -> OperatorSpectra:
    half = torch.cat([_singular_values(part).flatten(-2) for part in symbol.matrices(half=True)]).cpu()
    values = half.sort(dim=-1, descending=True).values
    if symbol.axes:  # the matrix of a frequency is the conjugate of that of its negative
        last = len(symbol.axes) - 1
        missing = symbol.frequencies[-1] - values.shape[last]
        mirrored = values.narrow(last, 1, missing)
        for dim in range(last + 1):
            mirrored = mirrored.flip(dim) if dim == last else mirrored.flip(dim).roll(1, dim)
        values = torch.cat([values, mirrored], last)
    repeated = prod(symbol.of.network.sizes[label] for label in symbol.kernel.alike)
    flat = values.flatten().sort(descending=True).values.repeat_interleave(repeated)
    return OperatorSpectra(flat, torch.zeros_like(flat), symbol.of.shape, values, None)


def _singular_values(matrices: Tensor) -> Tensor:
    """Of complex matrices; those of one row or column need no decomposition."""
    for dim in (-2, -1):
        if matrices.shape[dim] == 1:
            norms: Tensor = torch.linalg.vector_norm(matrices, dim=(-2, -1))
            return norms.unsqueeze(-1)
    values: Tensor = torch.linalg.svdvals(matrices)
    return values


def _largest(linear: LinearMap, count: int, seed: int, error: NetworkError) -> OperatorSpectra:
    columns = min(count + EXTRA, *linear.shape)
    forward, backward = (linear.function(columns=columns, transposed=turned) for turned in (False, True))
    before, after = linear.input_shape, linear.output_shape
    start = torch.randn(linear.shape[1], columns, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    device = next((value.device for value in linear.values.values()), torch.device("cpu"))

    def apply(function: Callable[[Tensor], Tensor], shape: tuple[int, ...]) -> Callable[[Tensor], Tensor]:
        return lambda block: function(block.mT.reshape(-1, *shape)).flatten(1).mT

    result = largest_singular_values(
        apply(forward, before),
        apply(backward, after),
        start.to(device),
        count=count,
        tolerance=_TOLERANCE,
        steps=_MOST_STEPS,
    )
    because = str(error.context.get("because", error.fact))
    return OperatorSpectra(result.values.cpu(), result.bounds.cpu(), linear.shape, None, because)
