"""Apply a rule in the notation at a place: exact rules by substitution, approximate ones by a fit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from torch import Tensor

from ..errors import RuleError
from ..fitting import ErrorCurve, FitReport, bonds_of, fit_cores
from ..networks import (
    NamedTensor,
    Network,
    all_nodes,
    carriers,
    with_sizes,
)
from ..tensors import (
    Values,
    evaluate,
    magnitude,
    values_for,
)
from .options import Options, Place
from .outline import Outline, grown_sizes
from .reading import Reading
from .step import Change
from .trace import EXACT_TO


def build_exact(network: Network, place: Place, values: Values, options: Options) -> Change:
    """Make the change of a rule whose sides are equal."""
    reading = _reading(network, place, values, options)
    before, after = reading.before, reading.piece({})
    if not reading.new:
        if not reading.missing and len(before.sizes) == len(carriers(before)):
            _check_values(before, after, values)
        return Change(reading.after)
    definition = Network(before.nodes, after.nodes[0].labels, before.sizes)  # the right side is one new tensor
    return Change(reading.after, {reading.names[reading.new[0]]: definition})


def _reading(network: Network, place: Place, values: Values, options: Options) -> Reading:
    reading = place.match
    assert isinstance(reading, Reading)
    return replace(reading, values=values, options=options)


def _check_values(before: Network, after: Network, values: Values) -> None:
    old, new = evaluate(before, values_for(before, values)), evaluate(after, values_for(after, values))
    scale = magnitude(before, values_for(before, values))
    if not bool(((new - old).abs() <= EXACT_TO * scale).all()):
        raise RuleError("the two sides of an exact rule differ on these values", before=before, after=after)


def build_fitted(network: Network, place: Place, values: Values, options: Options) -> Change:
    """Make the change of an approximate rule."""
    return build_fitted_many([(network, place, values, options)])[0]


def build_fitted_many(jobs: Sequence[tuple[Network, Place, Values, Options]]) -> list[Change]:
    """Make the changes of an approximate rule. Kernels of one shape are fitted side by side."""
    readings = [_reading(*job) for job in jobs]
    groups: dict[object, list[int]] = {}
    for number, reading in enumerate(readings):
        groups.setdefault(reading.alike if len(jobs) > 1 else None, []).append(number)
    changes: dict[int, Change] = {}
    for members in groups.values():
        together = [readings[number] for number in members]
        first = together[0]
        fits = fit_cores(
            [reading.target for reading in together],
            first.sized,
            first.options.size,
            before=first.before.parameters,
            settings=first.options.settings,
            constants=first.constants,
            constraints=first.constraints,
            metrics=[reading.metric for reading in together if reading.metric is not None],
            start=first.start,
            kept=first.dtype,
        )
        for number, reading, (cores, report) in zip(members, together, fits, strict=True):
            changes[number] = _change(reading, cores, report)
    return [changes[number] for number in range(len(readings))]


def outline_fitted(network: Network, place: Place, values: Values, options: Options) -> Outline:
    """What an approximate rule would make at any size."""
    reading = _reading(network, place, values, options)
    curve = ErrorCurve(
        reading.target,
        reading.sized,
        before=reading.before.parameters,
        constants=reading.constants,
        metric=reading.metric,
        dtype=options.settings.dtype,
    )
    return Outline(reading.after, reading.labels, curve, frozenset(reading.constants))


def _change(reading: Reading, cores: Mapping[str, Tensor], report: FitReport) -> Change:
    right = reading.sized
    core_sizes = {
        label: size
        for node in all_nodes(right)
        if isinstance(node, NamedTensor)
        for label, size in zip(node.labels, cores[node.name].shape, strict=True)
    }
    ranks = {bond: core_sizes[bond] for bond in bonds_of(right) if bond in core_sizes}
    grown = grown_sizes(reading.labels, {**right.sizes, **ranks})
    new = {reading.names[name] for name in reading.new}
    return Change(
        with_sizes(reading.after, grown),
        values={name: core.to(reading.dtype) for name, core in cores.items() if name in new},
        relative_error=report.relative_error,
        ranks=ranks,
        output_error=report.output_error,
        report=report,
        pieces=(reading.before, with_sizes(right, ranks)),
    )
