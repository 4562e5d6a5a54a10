"""Kernels that a right side gives exactly are found again, whatever its topology."""

from __future__ import annotations

import pytest
import torch

from tests.fit_cases import PLANTED
from tests.kernel_cases import check_claim

FOUND = 1e-7
"""A fit that stopped on its way is far above, one that arrived is near 1e-15."""


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_network_is_found(name: str, seed: int) -> None:
    case = PLANTED[name]
    values = case.planted(seed)
    fit = case.rule.apply(values, **case.choices, seed=seed)
    assert fit.relative_error < FOUND
    check_claim(fit)
    for label, size in case.sizes.items():
        assert fit.network.sizes.get(label, size) <= size
    assert all(bool(core.isfinite().all()) for core in fit.values.values())


@pytest.mark.parametrize("name", ["cp", "ring", "tucker", "tied matrix"])
def test_in_single_precision_it_is_found_to_single_precision(name: str) -> None:
    case = PLANTED[name]
    values = {key: value.float() for key, value in case.planted(0).items()}
    fit = case.rule.apply(values, **case.choices, dtype=torch.float32)
    assert fit.relative_error < 1e-3
    assert all(core.dtype == torch.float32 for core in fit.values.values())
    fit.trace.check(values)


def test_components_of_a_canonical_form_are_those_that_were_planted() -> None:
    """Kruskal 1977: they are unique up to order and scale, so each column is parallel to one of those planted."""
    case = PLANTED["cp"]
    planted, fit = case.cores(0), case.rule.apply(case.planted(0), **case.choices)
    for name, core in planted.items():
        one, other = (torch.nn.functional.normalize(each, dim=0) for each in (core, fit.values[name]))
        cosines = (one.mT @ other).abs()
        torch.testing.assert_close(cosines.max(0).values, torch.ones(5, dtype=torch.float64), rtol=0, atol=1e-9)
        assert sorted(cosines.argmax(0).tolist()) == list(range(5))
