"""Systems that fall apart into Kronecker factors, against the whole matrix."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tests.kernel_cases import gaussian
from tnalgebra.fitting import Objective
from tnalgebra.fitting.objective import Occurrence
from tnalgebra.fitting.systems import System

SIZES = {"o": 7, "i": 6, "h": 3, "w": 4, "a": 4, "b": 3, "c": 2, "d": 3, "r": 5}
OUTPUT = ("o", "i", "h", "w")

NETWORKS: dict[str, tuple[dict[str, str], bool]] = {
    "Tucker": ({"G": "abcd", "U": "oa", "V": "ib", "P": "hc", "Q": "wd"}, True),
    "Tucker-2": ({"G": "abhw", "U": "oa", "V": "ib"}, True),
    "the middle of a train": ({"G": "aib", "U": "oa", "V": "bhw"}, True),
    "joined bonds": ({"G": "abhw", "U": "oiab"}, False),
    "one bond": ({"G": "ahw", "U": "oia"}, False),
    "batch": ({"G": "abih", "U": "oa", "V": "ibw"}, False),
    "CP": ({"G": "or", "A": "ir", "B": "hr", "C": "wr"}, False),
}
"""Cores, the first of which is in question, and whether its system falls apart."""


def system_of(name: str, *, coupled: str = "") -> tuple[System, dict[str, Tensor]]:
    """Of two layers and three starts of random numbers."""
    cores = NETWORKS[name][0]
    shapes = {core: tuple(SIZES[label] for label in labels) for core, labels in cores.items()}
    metric = None
    if coupled:
        size = torch.Size([SIZES[label] for label in coupled]).numel()
        root = gaussian(2, size, 2 * size)
        metric = (root @ root.mT).reshape(2, *(SIZES[label] for label in coupled * 2))
    objective = Objective(
        tuple(Occurrence(core, tuple(labels)) for core, labels in cores.items()),
        OUTPUT,
        gaussian(2, *(SIZES[label] for label in OUTPUT), seed=1),
        shapes,
        metric=metric,
        coupled=tuple(coupled),
    )
    return System(objective, 0), {core: gaussian(2, 3, *shapes[core], seed=ord(core)) for core in shapes}


@pytest.mark.parametrize("coupled", ["", "i", "ih"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_split_system_is_the_whole_one(name: str, coupled: str) -> None:
    system, values = system_of(name, coupled=coupled)
    split = system.split(system.factor_grams(values))
    if not coupled:
        assert (split is not None) == NETWORKS[name][1]
    if split is None:
        return
    gram = system.gram(values)
    whole = gram + 1e-3 * gram.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None] * torch.eye(gram.shape[-1])
    expected = system.as_core(torch.linalg.solve(whole, system.as_matrix(values["G"])))
    # condition numbers up to 1e3 times rounding
    torch.testing.assert_close(split.solve(values["G"], 1e-3 * split.mean), expected, rtol=1e-9, atol=1e-9)
