"""Systems that fall apart into Kronecker factors, against the whole matrix."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from tnalgebra.fitting.objective import Occurrence, Problem
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


def problem(name: str, *, coupled: str = "") -> tuple[Problem, dict[str, Tensor]]:
    """Two layers and three starts of random numbers; the first core is the one in question."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    cores = NETWORKS[name][0]
    shapes = {core: tuple(SIZES[label] for label in labels) for core, labels in cores.items()}
    metric = None
    if coupled:
        size = torch.Size([SIZES[label] for label in coupled]).numel()
        root = normal(2, size, 2 * size)
        metric = (root @ root.mT).reshape(2, *(SIZES[label] for label in coupled * 2))
    target = normal(2, *(SIZES[label] for label in OUTPUT))
    found = Problem(
        tuple(Occurrence(core, tuple(labels)) for core, labels in cores.items()),
        OUTPUT,
        target,
        shapes,
        metric=metric,
        coupled=tuple(coupled),
    )
    return found, {core: normal(2, 3, *shape) for core, shape in shapes.items()}


@pytest.mark.parametrize("coupled", ["", "i", "ih"])
@pytest.mark.parametrize("name", NETWORKS)
def test_the_split_system_is_the_whole_one(name: str, coupled: str) -> None:
    given, values = problem(name, coupled=coupled)
    system = System(given, 0)
    split = system.split(values)
    if not coupled:
        assert (split is not None) == NETWORKS[name][1]
    if split is None:
        return
    core = values["G"]
    gram = system.gram(values)
    damping = 1e-3 * split.mean
    whole = gram + 1e-3 * gram.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None] * torch.eye(gram.shape[-1])
    expected = system.as_core(torch.linalg.solve(whole, system.as_matrix(core)))
    # condition numbers up to 1e3 times rounding
    torch.testing.assert_close(split.solve(core, damping), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", [name for name, (_, splits) in NETWORKS.items() if splits])
def test_a_solved_core_satisfies_its_equations(name: str) -> None:
    given, values = problem(name)
    system = System(given, 0)
    found = system.solved(values)
    torch.testing.assert_close(system.image(found.core, values), system.right_side(values), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(found.image, system.right_side(values), rtol=1e-8, atol=1e-8)
