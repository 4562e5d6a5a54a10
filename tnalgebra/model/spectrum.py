"""Spectra of kernels as a result: their measures, as a table, as a data frame and as a plot."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import exp
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import numpy as np
import torch
from torch import Tensor

from .._tables import Table, Tabular, data_frame, plural, shorten, tabulate
from ..errors import LayerError
from ..networks import Bipartition, check_suffix, store
from .hosvd import HOSVD, hosvd

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

_LONGEST_CUT = 60
"""Most characters of a cut in the table."""

_LEAST_DRAWN = 1e-8
_LEGEND_ROWS = 40
DISTINCT_COLOURS = ("#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#56B4E9", "#000000")
"""Distinct for the colour-blind too (M. Okabe and K. Ito 2002), without the yellow, which is faint on white."""


@dataclass(frozen=True, eq=False)
class Spectrum:
    """The singular values of one kernel over one cut.

    They are accurate as `gram_singular_values` says: above 1e-6 of the largest, to 1e-8 of the largest; a relative
    error below 1e-6 is rounding. A kernel of zeros counts as one that any rank keeps in full: entropy 0, effective
    rank 1, participation ratio 1, norm kept 1, relative error 0.
    """

    layer: str
    """Name of the layer in its model; "weight" of a bare weight, "network" of a network."""
    cut: Bipartition
    singular_values: Tensor
    """Shape (r,), float64, descending, on the CPU; r is the smaller side of the cut's matrix, or of what joins them."""
    bond: str | None = None
    """The bond of a network that makes the cut, where it was requested by this name."""

    @property
    def name(self) -> str:
        """The bond, or the cut as a text."""
        return self.bond or str(self.cut)

    @property
    def entropy(self) -> float:
        """S = -sum_k p_k ln p_k in nats, p_k = s_k^2 / sum s^2: 0 at one value, ln r where all r are equal."""
        return float(torch.special.entr(self._shares).sum())

    @property
    def effective_rank(self) -> float:
        """exp(entropy), 1 to r: how many equal values would have this entropy."""
        return exp(self.entropy)

    @property
    def participation_ratio(self) -> float:
        """(sum s^2)^2 / sum s^4, 1 to r: like the effective rank, with less weight on small values."""
        return 1 / float(self._shares.square().sum())

    @property
    def norm_kept(self) -> Tensor:
        """Shape (r,); element [k - 1] is ||K~||_F / ||K||_F with the k leading values kept."""
        return self._shares.cumsum(0).clamp(max=1).sqrt()

    @property
    def relative_error(self) -> Tensor:
        """Shape (r,); element [k - 1] is ||K - K~||_F / ||K||_F with the k leading values kept. The last is 0."""
        dropped = self._shares.flip(0).cumsum(0).flip(0)[1:]
        return torch.cat([dropped, dropped.new_zeros(1)]).sqrt()

    @property
    def _shares(self) -> Tensor:
        """p_k = s_k^2 / sum s^2; of a kernel of zeros (1, 0, 0, ...)."""
        largest = self.singular_values[0]
        if largest == 0:
            return torch.eye(len(self.singular_values), dtype=torch.float64)[0]
        squares = (self.singular_values / largest).square()
        return squares / squares.sum()


@dataclass(frozen=True, eq=False, repr=False)
class Spectra(Tabular, Sequence[Spectrum]):
    """The spectra of some kernels: layer by layer in the model's order, and of each layer every cut.

    The spectrum of a single mode is that of its cut from all others; `hosvd` has the mode matrices with it.
    """

    items: tuple[Spectrum, ...]
    kernels: Mapping[str, tuple[Tensor, tuple[str, ...]]] = field(default_factory=dict)
    """layer -> its kernel (not a copy of it) and the labels of its axes."""

    def __len__(self) -> int:
        return len(self.items)

    def __iter__(self) -> Iterator[Spectrum]:
        return iter(self.items)

    @overload
    def __getitem__(self, index: int) -> Spectrum: ...
    @overload
    def __getitem__(self, index: slice) -> Spectra: ...
    def __getitem__(self, index: int | slice) -> Spectrum | Spectra:
        return Spectra(self.items[index], self.kernels) if isinstance(index, slice) else self.items[index]

    def hosvd(self, layer: str | None = None) -> HOSVD:
        """Mode matrices, single-mode spectra and core of a kernel.

        Args:
            layer: its name; may be left out if there is one layer.

        Raises:
            LayerError: no layer has this name, or there are several and none is named.
        """
        names = list(self.kernels)
        chosen = names[0] if layer is None and len(names) == 1 else layer
        if chosen is None or chosen not in self.kernels:
            fact = "no layer is named" if layer is None else f"no layer is called {layer!r}"
            raise LayerError(fact, layers=", ".join(names[:8]) + (", ..." if len(names) > 8 else ""))
        return hosvd(*self.kernels[chosen])

    def _summary(self) -> str:
        return f"of {plural(len(self), 'cut')} in {plural(len({item.layer for item in self}), 'layer')}"

    def _table(self) -> Table:
        """How many values a spectrum has, how many matter by three measures, and the norm that half of them keep."""
        columns: dict[str, Callable[[Spectrum], str]] = {
            "layer": lambda item: item.layer,
            "cut": lambda item: shorten(item.name, _LONGEST_CUT),
            "values": lambda item: str(len(item.singular_values)),
            "entropy": lambda item: f"{item.entropy:.2f}",
            "effective rank": lambda item: f"{item.effective_rank:.2f}",
            "participation ratio": lambda item: f"{item.participation_ratio:.2f}",
            "half": lambda item: str(_half(item)),
            "norm kept": lambda item: f"{float(item.norm_kept[_half(item) - 1]):.4f}",
        }
        return tabulate(self.items, columns, left=("cut",))

    def records(self) -> list[dict[str, Any]]:
        """A dictionary for each spectrum: layer, cut (text, or its bond), values (how many) and the three measures."""
        return [
            {
                "layer": item.layer,
                "cut": item.name,
                "values": len(item.singular_values),
                "entropy": item.entropy,
                "effective_rank": item.effective_rank,
                "participation_ratio": item.participation_ratio,
            }
            for item in self
        ]

    def to_pandas(self) -> pd.DataFrame:
        """One row a singular value.

        Columns: `layer`, `cut` (text), `rank` (1 for the largest value), `singular_value`; `norm_kept` and
        `relative_error` with the values up to this one kept; and of the whole spectrum, the same in all its rows,
        `entropy`, `effective_rank`, `participation_ratio`.
        """
        columns = ("layer", "cut", "rank", "singular_value", "norm_kept", "relative_error")
        measures = ("entropy", "effective_rank", "participation_ratio")
        rows = []
        for item in self:
            whole = [getattr(item, measure) for measure in measures]
            numbers = (item.singular_values, item.norm_kept, item.relative_error)
            for rank, of_rank in enumerate(zip(*(column.tolist() for column in numbers), strict=True), start=1):
                rows.append((item.layer, item.name, rank, *of_rank, *whole))
        return data_frame(rows, [*columns, *measures])

    def plot(self, path: str | Path | None = None) -> Figure:
        """Draw every spectrum over its own largest value: one panel a cut, one line a layer, logarithmic.

        The horizontal axis is rank / number of values, so that layers of different sizes lie over each other.
        Values below 1e-8 of the largest are not drawn: they are rounding.

        Args:
            path: the file to write, .svg, .png or .pdf; it is written whole or not at all.

        Returns:
            The figure. It is not a pyplot figure: it does not open a window and need not be closed.

        Raises:
            NetworkError: another suffix.
        """
        check_suffix(path)
        figure = _draw(self)
        store(figure, path)
        return figure


def _half(spectrum: Spectrum) -> int:
    """How many values `KeepFraction(0.5)` keeps."""
    return max(1, round(0.5 * len(spectrum.singular_values)))


def _draw(spectra: Spectra) -> Figure:
    from matplotlib import colormaps
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    layers = list(dict.fromkeys(item.layer for item in spectra))
    cuts = list(dict.fromkeys(item.name for item in spectra))
    across = min(4, max(1, len(cuts)))
    down = max(1, -(-len(cuts) // across))
    figure = Figure(figsize=(3.4 * across + 1.6, 2.8 * down + 0.4), layout="constrained", dpi=150)
    panels = dict(zip(cuts, figure.subplots(down, across, squeeze=False, sharey=True).flat, strict=False))
    for panel in figure.axes[len(cuts) :]:
        panel.set_axis_off()
    few = len(layers) <= len(DISTINCT_COLOURS)
    shades = np.linspace(0, 0.93, len(layers))  # viridis up to where it is too bright for white paper
    colours = DISTINCT_COLOURS[: len(layers)] if few else [colormaps["viridis"](shade) for shade in shades]
    for cut, panel in panels.items():
        panel.set(title=cut, yscale="log", xlim=(0, 1.02))
        panel.grid(alpha=0.3)
    for item in spectra:
        numbers = item.singular_values
        shown = numbers[numbers > _LEAST_DRAWN * numbers[0]] / numbers[0]
        ranks = torch.arange(1, len(shown) + 1) / len(numbers)
        panels[item.name].plot(
            ranks,
            shown,
            color=colours[layers.index(item.layer)],
            linewidth=1,
            marker="." if len(numbers) <= 16 else "",
        )
    figure.supxlabel("rank / number of singular values")
    figure.supylabel("singular value / largest")
    lines = [Line2D([], [], color=colour) for colour in colours]
    columns = max(1, -(-len(layers) // _LEGEND_ROWS))
    figure.legend(lines, layers, loc="outside right upper", fontsize="x-small", ncols=columns, frameon=False)
    return figure
