"""What stability costs: measured, and kept within a limit."""

from __future__ import annotations

from dataclasses import replace

import torch

from .als import Cores, Descent
from .objective import Objective
from .report import SearchResult, Settings
from .search import descend_further, refine, stacked

PRICE, PRICE_SWEEPS = 0.005, 10
"""The highest price of stability, and the sweeps by which it is measured."""

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

    def price(cores: Cores, layer: int) -> float:
        loss = plain.of_layers(layers[layer]).loss(
            plain.model({name: core[None, None] for name, core in cores.items()})
        )
        return 0.0 if bool(exact[layer]) else max(0.0, 1 - float((least[layer, 0] / loss[0, 0]).sqrt()))

    layers = torch.arange(objective.layers, device=least.device)[:, None]
    results = []
    for layer, (cores, report) in enumerate(fits):
        cost, part = price(cores, layer), objective.of_layers(layers[layer])
        end = cores, replace(report, price=cost)
        degenerate = float(plain.squared_components(values)[layer, 0] / objective.power[layer, 0]) > DEGENERATE**2
        for factor in LESS if cost > PRICE else MORE if degenerate and not bool(exact[layer]) else ():
            ((cores, report),) = refine(replace(part, stability=factor * objective.stability), [end], settings)
            cost = price(cores, layer)
            if end[1].price > PRICE or cost <= PRICE:
                end = cores, replace(report, price=cost)
            if (cost > PRICE) == (factor > 1):
                break
        results.append(end)
    return results
