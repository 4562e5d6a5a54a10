"""Every candidate in float32, where torch takes other kernels than in float64: those of oneDNN, by memory format."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import tnalgebra as tn
from tnalgebra.compiler.emit import argument_names, emit
from tnalgebra.compiler.keeper import Keeper

KERNELS = {
    "svd": ("L[out kh r] R[r in kw]", {"r": 2}),
    "svd the other way": ("L[out kw r] R[r in kh]", {"r": 3}),
    "cp": ("A[out r] B[in r] C[kh r] D[kw r]", {"r": 5}),
    "tucker2": ("U[out a] G[a b kh kw] V[b in]", {"a": 3, "b": 2}),
    "train": ("A[in p] B[p kh q] C[q kw s] D[s out]", {"p": 2, "q": 3, "s": 5}),
    "separable": ("A[out in kh] B[out in kw]", {}),
}
CELLS = [
    (name, groups, shape)
    for name in KERNELS
    for groups, shape in ((1, (8, 6, 3, 3)), (2, (8, 3, 3, 3)), (4, (8, 1, 3, 3)), (1, (8, 6, 3, 1)), (2, (8, 4, 1, 3)))
]
BOUND = 1e-5
"""Relative, of float32 with a few hundred terms: rounding is 1e-7 a term, a wrong kernel is off by 1."""


@pytest.mark.parametrize(("name", "groups", "weight"), CELLS)
def test_every_candidate_in_float32(name: str, groups: int, weight: tuple[int, ...]) -> None:
    text, ranks = KERNELS[name]
    network = tn.networks.compose(
        tn.parse(f"{text} -> [out in kh kw]"),
        tn.networks.convolution(weight[2:], padding=(weight[2] // 2, weight[3] // 2), groups=groups),
        into="K",
    )
    generator = torch.Generator().manual_seed(0)
    sizes = {**dict(zip(("out", "in", "kh", "kw"), weight, strict=True)), **ranks}
    cores = {
        node.name: torch.randn([sizes[label] for label in node.labels], generator=generator)
        for node in tn.parse(text).nodes
    }
    x = torch.randn(2, groups * weight[1], 14, 9, generator=generator)
    seed = torch.randn(2, weight[0], 14, 9, generator=generator)
    # the nominal sizes are those of a real layer, so that its plans are candidates
    module = tn.compile(network, inputs={"X": (16, groups * weight[1], 56, 56)}, values=cores, candidates="factored")
    wanted = _expected(text, cores, x, seed, weight, groups)
    both = [(one, False) for one in module.plan.candidates] + [(one, True) for one in module.freeze().plan.candidates]
    packed = False
    for candidate, frozen in both:
        program = candidate.program
        leaves = {"X": x.clone().requires_grad_(), **{key: getattr(module, key).detach() for key in cores}}
        if frozen:
            keeper, packing = (Keeper(program, {}, prefix="frozen", packs=packs) for packs in (False, True))
            keeper.keep({key: leaves[key] for key in cores})
            packing.keep({key: leaves[key] for key in cores})
            with torch.no_grad():
                value = packing.run([x], None)
            packed |= packing.is_packed
            _check(value, wanted["value"], str(program.style), packing.code.code)
            code, value = keeper.code, keeper.run([leaves["X"]], None)
        else:
            leaves = {key: tensor.requires_grad_() for key, tensor in leaves.items()}
            code = emit(program)
            value = code(leaves["X"], *(leaves[key] for key in argument_names(program)))
        taken = ["X"] if frozen else list(wanted)[1:]
        gradients = torch.autograd.grad(value, [leaves[key] for key in taken], seed)
        for key, tensor in zip(("value", *taken), (value, *gradients), strict=True):
            _check(tensor, wanted[key], key, str(program.style), code.code)
    assert packed or groups > 1 or name == "separable" or not torch.backends.mkldnn.is_available()


def _check(tensor: Tensor, wanted: Tensor, *facts: str) -> None:
    assert torch.linalg.vector_norm(tensor - wanted) < BOUND * torch.linalg.vector_norm(wanted), facts


def _expected(
    text: str, cores: dict[str, Tensor], x: Tensor, seed: Tensor, weight: tuple[int, ...], groups: int
) -> dict[str, Tensor]:
    """Value and gradients by torch's own convolution in float64."""
    leaves = {key: core.double().requires_grad_() for key, core in cores.items()}
    taken = x.double().requires_grad_()
    nodes = tn.parse(text).nodes
    words = {label: chr(97 + n) for n, label in enumerate(dict.fromkeys(one for node in nodes for one in node.labels))}
    terms = ("".join(words[label] for label in node.labels) for node in nodes)
    output = "".join(words[label] for label in ("out", "in", "kh", "kw"))
    kernel = torch.einsum(f"{','.join(terms)}->{output}", *leaves.values())
    value = torch.conv2d(taken, kernel, padding=(weight[2] // 2, weight[3] // 2), groups=groups)
    grads = torch.autograd.grad(value, [taken, *leaves.values()], seed.double())
    return {"value": value.detach(), **dict(zip(("X", *leaves), grads, strict=True))}
