"""What stability costs: measured, and kept within a limit."""

from __future__ import annotations

from dataclasses import replace
from math import sqrt

import torch

from .als import Descent
from .objective import Objective
from .report import SearchResult, Settings
from .search import descend_further, results_of, stacked

PRICE, PRICE_SWEEPS = 0.005, 10
"""The highest price of stability, and the sweeps by which it is measured."""

DEAR_SWEEPS, TOO_DEAR = 40, 2
"""The sweeps after which more stability is given up where its price is this many times the highest one: at first cores
shrink at the cost of the error, of which later sweeps win back less than half."""

DEGENERATE, MORE, LESS = 2.0, (3.0, 10.0), (1 / 4, 1 / 16)
"""The degeneracy above which more stability is tried, and the factors of more and of less."""


def within_price(objective: Objective, fits: list[SearchResult], settings: Settings) -> list[SearchResult]:
    """Descend further where terms still cancel each other, with more stability, and where it costs too much, with less.

    Of several ends for a layer, the one of the most stability is taken whose price is within the limit. The price is
    the part of the error that a few sweeps for the error alone, from the first end, take away.
    """
    if not objective.stability or not settings.sweeps:
        return fits
    values, plain = stacked(replace(objective, stability=0.0), [cores for cores, _ in fits])
    first = Descent.begin(plain, values)
    least = descend_further(plain, first, PRICE_SWEEPS).loss
    exact = objective.fits_exactly(first.loss)
    return [
        end
        if bool(exact[layer])
        else _end_within_price(objective, layer, end, least=float(least[layer, 0]), settings=settings)
        for layer, end in enumerate(fits)
    ]


def _end_within_price(
    objective: Objective, layer: int, end: SearchResult, *, least: float, settings: Settings
) -> SearchResult:
    """The end of one layer that is taken; `least` is the loss after the sweeps for the error alone."""
    part = objective.of_layers(torch.tensor([layer], device=objective.target.device))

    def price(loss: float) -> float:
        return max(0.0, 1 - sqrt(least / loss)) if loss else 0.0

    def priced(descent: Descent) -> SearchResult:
        ((cores, report),) = results_of(part, descent)
        return cores, replace(report, price=price(float(descent.loss[0, 0])))

    values, part = stacked(part, [end[0]])
    cost = price(float(part.loss_of(values)[0, 0]))
    end = end[0], replace(end[1], price=cost)
    for factor in LESS if cost > PRICE else MORE:
        if factor > 1 and not bool((part.squared_components(values) > DEGENERATE**2 * part.power).any()):
            break
        changed = replace(part, stability=factor * objective.stability)
        start = Descent.begin(changed, values, *end[1].method.split(", "))
        descent = descend_further(changed, start, min(DEAR_SWEEPS, settings.sweeps))
        if factor > 1 and price(float(descent.loss[0, 0])) > TOO_DEAR * PRICE:
            break
        descent = descend_further(changed, descent, settings.sweeps - DEAR_SWEEPS)
        trial = priced(descent)
        cost = trial[1].price
        if end[1].price > PRICE or cost <= PRICE:
            end, values = trial, descent.values
        if (cost > PRICE) == (factor > 1):
            break
    return end
