"""Figures of a study that depend only on weights and rewrites: singular values, and the networks of kernels."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ..decompositions import cut_sequence
from ..model import Spectra, Spectrum, cut_singular_values
from ..networks import KERNEL_LABELS, NamedTensor, Network, parse, parse_bipartition, parse_rule
from .figures import PANELS_ACROSS, SUFFIXES, new_figure, store_figure, wrap
from .kernels import Layer
from .rows import Row, touched

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

CUT = ""
"""Stands for the equation of a cut to a fraction, which does not have one in its row."""


def draw_kernels(
    folder: Path, rows: Sequence[Row], planned: Sequence[Row], layers: Sequence[Layer], *, suffix: str = ""
) -> list[Path]:
    """Draw what depends only on weights and rewrites: singular values, and the network of a kernel before and after.

    This is called before the first row of a rewrite is written. If the folder has rows of all rewrites, it has these
    figures already, and they are drawn again only if one is missing. Singular values are drawn for cuts only.

    Args:
        folder: the folder of the study.
        rows: all its rows of one network; their rewrites are drawn too.
        planned: the keys of the rows of this network that will be made.
        layers: the kernels that may be rewritten.
        suffix: how the names of the files end.

    Returns:
        The paths of the files; each is written whole or not at all.
    """
    drawn, everything = _equations(rows), _equations([*rows, *planned])
    cuts = [rewrite for rewrite, equations in everything.items() if CUT in equations]
    figures: dict[str, Callable[[], Figure]] = {f"networks{suffix}": lambda: _networks(layers, everything)}
    if cuts:
        figures[f"spectra{suffix}"] = lambda: _spectra(layers, cuts)
    if drawn == everything and all((folder / (name + suffix)).exists() for name in figures for suffix in SUFFIXES):
        return []
    return [path for name, draw in figures.items() for path in store_figure(draw(), folder / name)]


def _equations(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Rewrite -> its equations in the rows, each once; `CUT` for cuts to fractions."""
    by_rewrite: dict[str, dict[str, None]] = {}
    for row in rows:
        if touched(row):
            by_rewrite.setdefault(row["rewrite"], {}).update(dict.fromkeys(row["equations"] or [CUT]))
    return {rewrite: list(equations) for rewrite, equations in by_rewrite.items()}


def _spectra(layers: Sequence[Layer], cuts: Sequence[str]) -> Figure:
    """The singular values of every layer across every cut, also across those that are parts of a rewrite."""
    bipartitions = {part.name: parse_bipartition(part.name) for cut in cuts for part in cut_sequence(cut)}
    several = []
    for layer in layers:
        fitting = [cut for cut in bipartitions.values() if set(cut.labels) == set(layer.labels)]
        values = cut_singular_values(layer.weight, layer.labels, fitting)
        several += [Spectrum(layer.name, cut, numbers) for cut, numbers in zip(fitting, values, strict=True)]
    figure = Spectra(tuple(several)).plot()
    figure.suptitle("Singular values of the kernels across each cut", fontsize="medium")
    return figure


def drawn_networks(rows: Sequence[Row]) -> dict[str, Network]:
    """Title -> network: kernels, and what the rewrites of these rows make of them, step by step for several cuts.

    Raises:
        TnalgebraError: a rewrite of a row is not one.
    """
    return _titled(_equations(rows), KERNEL_LABELS.values())


def _titled(rewrites: Mapping[str, Sequence[str]], kernels: Iterable[tuple[str, ...]]) -> dict[str, Network]:
    labels = {frozenset(kernel): kernel for kernel in kernels}
    drawn: dict[str, Network] = {}
    for rewrite, equations in sorted(rewrites.items(), key=lambda item: CUT not in item[1]):
        texts = [text for text in equations if text != CUT]
        if CUT in equations:
            _add_cuts(drawn, rewrite, labels)
        for text in texts:
            left, right = parse_rule(text)
            drawn.setdefault("kernel " + " ".join(left.output), left)
            drawn[wrap(rewrite if len(texts) == 1 else f"{rewrite} of {' '.join(left.output)}")] = right
    return drawn


def _networks(layers: Sequence[Layer], rewrites: Mapping[str, Sequence[str]]) -> Figure:
    drawn = _titled(rewrites, (layer.labels for layer in layers))
    across = min(PANELS_ACROSS, len(drawn))
    down = -(-len(drawn) // across)
    figure = new_figure(3.4 * across, 2.3 * down)
    panels: list[Axes] = list(figure.subplots(down, across, squeeze=False).flat)
    for panel in panels:
        panel.set_axis_off()
    for panel, (title, network) in zip(panels, drawn.items(), strict=False):
        network.draw(axes=panel, title=title)
    truncated = "A kernel, and what each cut makes of it (r: the bond that is truncated)"
    fitted = any(text != CUT for equations in rewrites.values() for text in equations)
    figure.suptitle("A kernel, and what each rewrite makes of it" if fitted else truncated, fontsize="medium")
    return figure


def _add_cuts(drawn: dict[str, Network], cut: str, labels: Mapping[frozenset[str], tuple[str, ...]]) -> None:
    """Add the networks of a cut, or of the steps of several cuts, under their titles."""
    rules = cut_sequence(cut)
    written = parse_bipartition(rules[0].name).labels
    order = labels.get(frozenset(written), written)
    kernel = Network([NamedTensor("K", order)])
    drawn.setdefault("kernel " + " ".join(order), kernel)
    for number, rule in enumerate(rules):
        after = parse(rule.equation.split("=>")[1].strip())
        if len(rules) == 1:
            drawn[cut] = after
            continue
        title = cut.replace(" then ", "\nthen ")
        if number:
            drawn[f"{title}\nstep {2 * number}: contracted"] = kernel
        drawn[f"{title}\nstep {2 * number + 1}: {rule.name}"] = after
