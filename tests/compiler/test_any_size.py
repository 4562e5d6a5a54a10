"""A plan computes inputs of every size, whatever the kernel's network is and however many nodes it has."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import tnalgebra as tn
from tnalgebra.compiler import compiled
from tnalgebra.compiler.choose import Candidate, PlanRequest

HYPEREDGE = "K[in out *k] => A[out p *k] B[*k in p]"
"""Both cores have the window, so that no step keeps them apart."""

LAYERS: dict[str, nn.Module] = {
    "1-d": nn.ConvTranspose1d(3, 4, 3, stride=2, padding=1, dtype=torch.float64),
    "2-d": nn.ConvTranspose2d(4, 6, (2, 3), groups=2, dtype=torch.float64),
    "3-d": nn.ConvTranspose3d(4, 4, 2, stride=(2, 1, 1), dilation=(1, 2, 1), groups=2, dtype=torch.float64),
    "2-d, grouped": nn.Conv2d(4, 4, 3, stride=2, padding=2, groups=2, padding_mode="replicate", dtype=torch.float64),
}


@pytest.mark.parametrize("candidates", ["all", "factored"])
@pytest.mark.parametrize("rewrite", ["hierarchical_tucker", "tucker", "tensor_ring", "reshaped_ring", HYPEREDGE])
@pytest.mark.parametrize("axes", LAYERS)
def test_a_layer_takes_inputs_of_every_size(axes: str, rewrite: str, candidates: Any) -> None:
    dense = LAYERS[axes]
    layer = tn.nn.decomposed(dense, rewrite, 2, candidates=candidates, input_size=4, batch_size=2, starts=1, sweeps=1)
    reference = layer.to_dense()
    for size in (3, 4, 7):
        x = torch.randn(3, dense.in_channels, *range(size, size + int(axes[0])), dtype=torch.float64)
        torch.testing.assert_close(layer(x), reference(x), rtol=1e-11, atol=1e-11)
    last = {"2-d": torch.channels_last, "3-d": torch.channels_last_3d}.get(axes[:3], torch.contiguous_format)
    layer.eval().freeze()
    torch.testing.assert_close(layer(x.contiguous(memory_format=last)), reference(x), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("size", [7, 8])
def test_a_weight_along_the_positions_of_a_stride_leaves_the_input_its_size(size: int) -> None:
    network = "X[n i x] Conv[x u k | stride=2 padding=1] K[o i k] W[m o u] -> [n m]"
    shapes = {"K": (4, 3, 3), "W": (5, 4, 4), "X": (2, 3, size)}
    values = {name: torch.randn(shape, dtype=torch.float64) for name, shape in shapes.items()}
    module = tn.compile(network, inputs={"X": shapes["X"]}, values={n: values[n] for n in ("K", "W")})
    torch.testing.assert_close(module(values["X"]), tn.evaluate(network, values), rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("last", [True, False])
def test_vmap_over_a_layer_in_channels_last(last: bool) -> None:
    conv = nn.Conv2d(4, 6, 3, groups=2, padding=1, dtype=torch.float64)
    layout = torch.channels_last if last else torch.contiguous_format
    for rewrite in ("cp", "dct", "tensor_train", "out kh | in kw"):
        layer = tn.nn.decomposed(conv, rewrite, 2, memory_format=layout, input_size=5, starts=1, sweeps=1)
        x = torch.randn(3, 2, 4, 5, 6, dtype=torch.float64)
        expected = torch.stack([layer.to_dense()(one) for one in x])
        torch.testing.assert_close(torch.func.vmap(layer)(x), expected, rtol=1e-11, atol=1e-11)


def test_as_many_elements_of_another_shape_have_a_plan_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    planned = []
    find = compiled.ranked_candidates

    def recorded(request: PlanRequest, *, tune: bool) -> tuple[Candidate, ...]:
        planned.append(tuple(request.network.sizes[label] for label in ("n", "x", "z")))
        return find(request, tune=tune)

    monkeypatch.setattr(compiled, "ranked_candidates", recorded)
    network = tn.parse("X[n c x z] A[o r] B[r c] -> [n o x z]")
    values = {"A": torch.ones(3, 2), "B": torch.ones(2, 5)}
    module = tn.compile(network, inputs={"X": (1, 5, 8, 8)}, values=values, tune=False)
    for sizes in ((16, 8, 8), (1, 32, 32), (15, 9, 7), (1, 33, 31), (1, 8, 8), (2, 8, 8)):
        n, x, z = sizes
        assert module(torch.ones(n, 5, x, z)).shape == (n, 3, x, z)
    assert planned == [(1, 8, 8), (16, 8, 8), (1, 32, 32)]
