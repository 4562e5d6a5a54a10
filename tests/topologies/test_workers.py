"""A search on worker processes finds what one in this process does."""

from __future__ import annotations

import pytest
import torch

import tnalgebra as tn


@pytest.mark.slow
def test_on_two_workers() -> None:
    kernel = torch.randn(6, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    space = tn.Space(cores=(2, 3), bonds=("tree", "hyperedge"), catalogue=False)
    here = tn.search(kernel, "parameters 0.4", space=space)
    there = tn.search(kernel, "parameters 0.4", space=space, scheduler="local:2")
    assert there.best["topology"] == here.best["topology"]
    assert there.best["error"] == pytest.approx(here.best["error"], rel=1e-6)
    assert there.counts["listed"] == here.counts["listed"]
    assert there.counts["evaluations"] >= here.counts["evaluations"]
