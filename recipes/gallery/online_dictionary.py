"""An orthogonal dictionary is learnt from a stream, by the gradient of a norm that likes sparse codes.

The paper maximises the p-norm, p above 2, of the codes D^T y over dictionaries D near the orthogonal matrices, because
sparse codes have the largest norm of this kind. Each new sample adds to an average of gradients, and a step of
Frank and Wolfe moves D towards the orthogonal matrix that agrees most with it.

The gradient is a network of tied tensors: for p = 4 a code occurs three times, and D and the samples themselves may
stand in its place. For p = 3 the absolute value of the codes enters as a tensor.
"""

from __future__ import annotations

import torch

import tnalgebra as tn
from recipes.gallery.frame import Cores, Paper, difference, random_values, times_faster, value

CORES: Cores = {
    "gradient of the 4-norm": tn.parse("Y[d:6 n:8] Z[a:5 n] Z[a n] Z[a n] -> [d a]"),
    "the same, of dictionary and samples": tn.parse(
        "Y[d:6 n:8] Y[e:6 n] D[e a:5] Y[f:6 n] D[f a] Y[g:6 n] D[g a] -> [d a]"
    ),
    "gradient of the 3-norm": tn.parse("Y[d:6 n:8] Z[a:5 n] M[a n] -> [d a]"),
}


def check(cores: Cores) -> dict[str, float]:
    """torch's gradients of the sum of |D^T y|^p / p over the samples."""
    fourth, whole, third = cores.values()
    values = random_values(whole)
    y, d = values["Y"], values["D"].requires_grad_()
    expected = {p: torch.autograd.grad((d.T @ y).abs().pow(p).sum() / p, d)[0] for p in (3, 4)}
    values["D"] = d.detach()
    z = d.detach().T @ y
    return {
        "4-norm": difference(value(fourth, {"Y": y, "Z": z}), expected[4]),
        "4-norm of dictionary and samples": difference(value(whole, values), expected[4]),
        "3-norm": difference(value(third, {"Y": y, "Z": z, "M": z.abs()}), expected[3]),
    }


def gain() -> dict[str, float]:
    """32 dimensions, 4096 samples with codes that are 10 % full: learnt in 30 steps of the power method.

    The agreement is 1 where the dictionary is the true one up to signs and order. The time is that of torch's autograd
    for the same gradient.
    """
    generator = torch.Generator().manual_seed(0)
    truth = torch.linalg.qr(torch.randn(32, 32, generator=generator)).Q
    codes = torch.randn(32, 4096, generator=generator) * (torch.rand(32, 4096, generator=generator) < 0.1)
    y, d = truth @ codes, torch.linalg.qr(torch.randn(32, 32, generator=generator)).Q
    gradient = tn.compile("Y[d n] Z[a n] Z[a n] Z[a n] -> [d a]", inputs={"Y": (32, 4096), "Z": (32, 4096)})
    for _ in range(30):
        left, _, right = torch.linalg.svd(gradient(Y=y, Z=d.T @ y), full_matrices=False)
        d = left @ right

    def theirs() -> torch.Tensor:
        with torch.enable_grad():
            leaf = d.clone().requires_grad_()
            result: torch.Tensor = torch.autograd.grad((leaf.T @ y).pow(4).sum() / 4, leaf)[0]
            return result

    ratio = times_faster(lambda: gradient(Y=y, Z=d.T @ y), theirs)
    return {"agreement": float((truth.T @ d).abs().amax(0).mean()), "autograd : compiled": ratio}


PAPER = Paper(
    title="Online Orthogonal Dictionary Learning Based on Frank-Wolfe Method",
    arxiv="2103.01484",
    source="the abstract, which was all that could be read; maximisation of the 4-norm is that of arXiv 1906.02435, "
    "and of other p that of arXiv 2002.10043",
    cores=CORES,
    check=check,
    gain=gain,
    outside="The singular value decomposition of a step, the averages over time, and absolute values.",
)
