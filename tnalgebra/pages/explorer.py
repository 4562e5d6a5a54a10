"""The explorer of a model: its kernels' spectra, and what each rewrite of a layer costs and keeps at every rank."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, NamedTuple

from torch import nn

from ..compiler import Plan
from ..errors import RuleError
from ..model import LayerMaker, Spectrum, find_sites, record_calls, spectra, track
from ..networks import NamedTensor, Network, resized
from ..rewriting import Outline, Rule
from ..studies import NO_FORM, Form, Layer, Rewrite, layers_of
from .page import write_page
from .parts import Column, Dataset, Drawing, Panel, Section, ranks_text

REWRITES = (
    *("out | in kh kw", "in | out kh kw", "out in | kh kw", "out kh | in kw", "out kw | in kh", "out | in"),
    *("tucker2", "tucker", "tensor_train", "cp", "tensor_ring"),
)
"""The rewrites that are compared by default, where they exist for a layer."""

RANKS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512, 768, 1024)
"""The ranks that a page has, of all bonds of a rewrite; a bond whose full rank is smaller gets that."""

SHORT_SWEEPS = 10
"""Sweeps of a fit whose error no factorisation shows; one start."""

MOST_VALUES = 64
"""The most singular values of a cut that a page has, evenly spread over the logarithm of their number."""

LAYER, RANK, ERROR = "layer", "rank", "relative error"
ERROR_OF, EXACT, SHORT = "error from", "singular values", "short fit"
PARAMETERS_KEPT, ADDS_KEPT, TIME_KEPT = "parameters kept", "multiply-adds kept", "time kept (predicted)"


class Option(NamedTuple):
    """A layer decomposed by a rewrite, with all bonds of one rank where they allow it.

    ranks: bond -> rank.
    short: whether the error is that of a short fit.
    plan: how the layer would be computed.
    """

    layer: str
    rewrite: str
    rank: int
    ranks: Mapping[str, int]
    error: float
    short: bool
    parameters: int
    plan: Plan

    @property
    def code(self) -> str:
        """The line that decomposes the layer so."""
        pattern = f"{json.dumps(self.layer)}: ({json.dumps(self.rewrite)}, {json.dumps(self.ranks)})"
        return f"model, report = tn.convert(model, {{{pattern}}})"


def write_explorer(
    model: nn.Module,
    path: str | Path,
    *,
    rewrites: Sequence[str] = REWRITES,
    shape: Sequence[int] | None = None,
    title: str | None = None,
    seed: int = 0,
    progress: bool = True,
) -> None:
    """Write a page to explore the kernels of a model: spectra, and errors and costs of each rewrite at every rank.

    Args:
        model: stays as it is.
        path: the HTML file, written whole or not at all.
        rewrites: cuts, names of decompositions, or rules in the notation; each for the layers for which it exists.
        shape: of an input of the model, with the batch, at which layers are planned; by default each layer is planned
            alone, for the inputs that `tn.compare` takes.
        title: of the page; by default the class of the model.
        seed: of fits.
        progress: show a bar, where stderr is a terminal.

    Raises:
        RuleError: a rewrite cannot be read, or exists for no layer.
        LayerError: the model has no kernel, or does not run on this shape.
        MissingPackageError: plotly is not installed.
        OSError: the page cannot be written.

    Example:
        >>> tn.pages.write_explorer(model, "explorer.html", shape=(1, 3, 32, 32))
    """
    read = [Rewrite.read(text) for text in dict.fromkeys(rewrites)]
    twice = next((rewrite.text for rewrite in read if len(rewrite.cuts) > 1), None)
    if twice is not None:
        raise RuleError(f"{twice!r} cuts a kernel twice, and has no single rank", fix="single cuts")
    layers = layers_of(model, ())
    bench = _Bench.of(model, shape, seed)
    kernels = {layer.name: Network([NamedTensor("K", layer.labels)], sizes=_sizes(layer)) for layer in layers}
    dense = {name: bench.plan(name, kernel) for name, kernel in kernels.items()}
    several = [bench.options(rewrite, layers) for rewrite in track(read, "rewrites", shown=progress)]
    options = [option for some in several for option in some]
    if not options:
        raise RuleError("no rewrite makes any layer smaller", rewrites=", ".join(rewrite.text for rewrite in read))
    place = {layer.name: number for number, layer in enumerate(layers)}
    options.sort(key=lambda option: place[option.layer])
    name = title or type(model).__name__
    batch = f"inputs of shape {' x '.join(map(str, shape))}" if shape else "each layer alone, for 16 inputs or 256 rows"
    section = Section(
        title=name,
        kind="kernels",
        facts={"layers": str(len(layers)), "rewrites": str(len(read)), "multiply-adds and times": batch},
        datasets=[_layers(layers, dense), _options(options, layers, dense), _spectra(model)],
        drawings=[Drawing(title, network._repr_svg_()) for title, network in bench.networks.items()],
    )
    script = (files(__package__) / "assets" / "explorer.js").read_text(encoding="utf-8")
    write_page(path, f"Explore {name}", [section], script=script)


def _sizes(layer: Layer) -> dict[str, int]:
    return dict(zip(layer.labels, layer.weight.shape, strict=True))


@dataclass(frozen=True, eq=False)
class _Bench:
    """Prices layers and fits them; layers that agree are priced once, and fitted side by side.

    networks: title -> what a rewrite makes of a kernel, without sizes.
    """

    maker: LayerMaker
    seed: int
    plans: dict[tuple[object, ...], Plan] = field(default_factory=dict)
    networks: dict[str, Network] = field(default_factory=dict)

    @classmethod
    def of(cls, model: nn.Module, shape: Sequence[int] | None, seed: int) -> _Bench:
        sites = find_sites(model)
        calls = record_calls(model, tuple(shape), sites) if shape is not None else {}
        return cls(LayerMaker(sites, calls, "factored", tune=False), seed)

    def plan(self, name: str, network: Network, constants: frozenset[str] = frozenset()) -> Plan:
        calls = self.maker.calls.get(name) or ()
        key = (network, constants, str(self.maker.sites[name].module), *(call.shape for call in calls))
        if key not in self.plans:
            self.plans[key] = self.maker.plan(name, network, constants)
        return self.plans[key]

    def options(self, rewrite: Rewrite, layers: Sequence[Layer]) -> list[Option]:
        """Each layer at each rank at which it has fewer parameters than the dense layer, and at the least rank."""
        groups: dict[tuple[object, ...], tuple[Form, list[Layer]]] = {}
        for layer in layers:
            try:
                form = rewrite.form(layer)
            except NO_FORM:
                continue
            groups.setdefault((layer.labels, *layer.weight.shape), (form, []))[1].append(layer)
        return [option for form, alike in groups.values() for option in self._of_one_shape(rewrite, form, alike)]

    def _of_one_shape(self, rewrite: Rewrite, form: Form, layers: Sequence[Layer]) -> list[Option]:
        options: list[Option] = []
        before: Mapping[str, Any] | None = None
        bonds = form.rule.ranks
        outlines = [form.rule.outline(layer.weight) for layer in layers]
        for rank in RANKS:
            planned = form.plan(dict.fromkeys(bonds, rank))
            if planned.ranks == before or (before is not None and planned.parameters >= layers[0].weight.numel()):
                break
            before = planned.ranks
            network, constants, errors, short = self._fitted(form.rule, planned.ranks, layers, outlines)
            for layer, error in zip(layers, errors, strict=True):
                plan = self.plan(layer.name, network, constants)
                ranks = {bond: network.sizes[bond] for bond in bonds if bond in network.sizes}
                options.append(Option(layer.name, rewrite.text, rank, ranks, error, short, planned.parameters, plan))
            title = rewrite.text if rewrite.cuts else f"{rewrite.text} of {' '.join(layers[0].labels)}"
            self.networks.setdefault(title, resized(network, {}))
        return options

    def _fitted(
        self, rule: Rule, ranks: Mapping[str, Any], layers: Sequence[Layer], outlines: Sequence[Outline | None]
    ) -> tuple[Network, frozenset[str], list[float], bool]:
        """The network at these ranks, the names of its constants, the error of each layer, whether that needed a fit.

        That of a rule with one bond of a tree follows from singular values. Any other error needs a fit.
        """
        known = [outline for outline in outlines if outline is not None and outline.curve.is_exact and len(ranks) == 1]
        losses = [loss for outline in known if (loss := outline.loss(ranks)) is not None]
        if len(losses) == len(layers):
            return known[0].network(ranks), known[0].constants, [math.sqrt(max(loss, 0.0)) for loss in losses], False
        weights = [layer.weight for layer in layers]
        fits = rule.apply_many(weights, ranks or None, starts=1, sweeps=SHORT_SWEEPS, seed=self.seed)
        return fits[0].network, fits[0].constants, [fit.relative_error for fit in fits], True


# Data sets --------------------------------------------------------------------------------------------------------


def _layers(layers: Sequence[Layer], dense: Mapping[str, Plan]) -> Dataset:
    shapes = [ranks_text(_sizes(layer)) for layer in layers]
    return Dataset(
        "Layers",
        [
            Column(LAYER, [layer.name for layer in layers]),
            Column("kernel", shapes),
            Column("parameters", [layer.weight.numel() for layer in layers], "count"),
            Column("multiply-adds", [dense[layer.name].multiply_adds for layer in layers], "count"),
            Column("microseconds (predicted)", [1e6 * dense[layer.name].seconds for layer in layers], "short"),
        ],
        [Panel("Parameters", LAYER, "parameters"), Panel("Predicted time", LAYER, "microseconds (predicted)")],
        text="A click on a point or on a line of the table chooses the layer.",
        folded=True,
    )


def _options(options: Sequence[Option], layers: Sequence[Layer], dense: Mapping[str, Plan]) -> Dataset:
    sizes = {layer.name: layer.weight.numel() for layer in layers}
    adds = {name: plan.multiply_adds for name, plan in dense.items()}
    columns = [
        Column(LAYER, [option.layer for option in options], choose=layers[0].name, shown=False),
        Column("rewrite", [option.rewrite for option in options]),
        Column(RANK, [option.rank for option in options], "count", shown=False),
        Column("ranks", [ranks_text(option.ranks) for option in options]),
        Column("code", [option.code for option in options], "code"),
        Column(ERROR, [option.error for option in options], "short"),
        Column(ERROR_OF, [SHORT if option.short else EXACT for option in options]),
        Column("parameters", [option.parameters for option in options], "count"),
        Column(PARAMETERS_KEPT, [option.parameters / sizes[option.layer] for option in options], "short"),
        Column("multiply-adds", [option.plan.multiply_adds for option in options], "count"),
        Column(ADDS_KEPT, [option.plan.multiply_adds / max(adds[option.layer], 1) for option in options], "short"),
        Column("microseconds", [1e6 * option.plan.seconds for option in options], "short"),
        Column(TIME_KEPT, [option.plan.seconds / dense[option.layer].seconds for option in options], "short"),
    ]
    panels = [Panel(f"Error against {what}", what, ERROR, "lines") for what in (PARAMETERS_KEPT, ADDS_KEPT, TIME_KEPT)]
    text = (
        "Each curve is a rewrite of the chosen layer at all ranks; rings mark the chosen rank, and the table has its "
        "numbers. A rewrite that saves nothing at this rank is shown at the largest rank below. Kept is relative to "
        "the dense layer, so that more than 1 is a loss; times are predicted for the machine that made this page. "
    )
    if any(option.short for option in options):
        text += (
            f"Errors that singular values give are those of the best approximation. Those of a {SHORT} ({SHORT_SWEEPS} "
            "sweeps from one start) are only an upper bound: tn.convert fits longer, and may find a smaller error."
        )
    else:
        text += "All errors follow from singular values: they are those of the best approximation."
    return Dataset("Rewrites of the layer", columns, panels, "rewrite", text, sort=ERROR)


def _spectra(model: nn.Module) -> Dataset:
    lines: list[tuple[str, str, int, float, float]] = []
    for spectrum in spectra(model):
        largest = float(spectrum.singular_values[0]) or 1.0
        values, errors = spectrum.singular_values / largest, spectrum.relative_error
        lines += [
            (spectrum.layer, spectrum.name, place + 1, float(values[place]), float(errors[place]))
            for place in _places(spectrum)
        ]
    columns = [
        Column(LAYER, [line[0] for line in lines], choose=lines[0][0], shown=False),
        Column("cut", [line[1] for line in lines]),
        Column(RANK, [line[2] for line in lines], "count"),
        Column("singular value / largest", [line[3] for line in lines], "short"),
        Column("relative error if cut here", [line[4] for line in lines], "short"),
    ]
    panels = [
        Panel("Singular values", RANK, "singular value / largest", "lines", log=True),
        Panel("What is lost", RANK, "relative error if cut here", "lines"),
    ]
    text = "The singular values of the chosen kernel across all cuts of its labels in two."
    return Dataset("Spectra of the kernel", columns, panels, "cut", text, folded=True)


def _places(spectrum: Spectrum) -> list[int]:
    """The places of the singular values that a page has: those of its ranks, and others evenly between."""
    count = len(spectrum.singular_values)
    even = {round(count ** (number / (MOST_VALUES - 1))) - 1 for number in range(MOST_VALUES)}
    return sorted(even | {rank - 1 for rank in RANKS if rank <= count})
