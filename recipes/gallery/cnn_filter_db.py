"""How many directions do the filters of a layer use?

The paper collects 1.4 billion trained 3x3 filters and compares their distributions. One of its measures of a layer is
the entropy of the variances along the principal axes of its filters: low where the layer has degenerated to few
patterns, and highest for random weights.

The filters less their mean are a sum of two terms, and the singular values of the cut `out in | kh kw` are those of the
principal axes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

import tnalgebra as tn
from recipes.gallery.frame import Cores, Paper, difference, digits, random_values, value

MEAN = "W[p:6 q:5 kh kw] Fill[p | value=mean] Fill[q | value=mean] Fill[out | value=1] Fill[in | value=-1]"

CORES: Cores = {
    "filters less their mean": tn.parse(f"W[out:6 in:5 kh:3 kw:3] + {MEAN} -> [out in kh kw]"),
}


def principal(weight: Tensor) -> tuple[Tensor, Tensor]:
    """The centred filters, one in each row, and the entropy of their variances to the base 10, as the paper has it."""
    filters = weight.flatten(2).flatten(0, 1)
    centred = filters - filters.mean(0)
    variances = torch.linalg.svdvals(centred).square() / (len(filters) - 1)
    parts = variances / variances.sum()
    return centred, -(parts * parts.log10()).sum()


def check(cores: Cores) -> dict[str, float]:
    """torch's `svdvals` of the matrix of filters, one in each row, less its mean row."""
    core = cores["filters less their mean"]
    values = random_values(core)
    computed = value(core, values)
    spectrum = next(one for one in tn.spectra(computed) if str(one.cut) == "out in | kh kw")
    centred, entropy = principal(values["W"])
    return {
        "centred filters": difference(computed.reshape(30, 9), centred),
        "entropy": difference(torch.tensor(spectrum.entropy / math.log(10)), entropy),
    }


def gain() -> dict[str, float]:
    """A layer of 16 to 32 channels on digits, before and after 200 steps, as parts of the largest entropy."""
    torch.manual_seed(0)
    images, classes = digits()
    layers = [torch.nn.Conv2d(1, 16, 3, padding=1), torch.nn.ReLU(), torch.nn.Conv2d(16, 32, 3, padding=1)]
    model = torch.nn.Sequential(*layers, torch.nn.ReLU(), torch.nn.Flatten(), torch.nn.Linear(2048, 10))
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    weight = model[2].weight
    assert isinstance(weight, Tensor)
    entropies = [float(principal(weight.detach())[1])]
    for _ in range(200):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(images[:1000]), classes[:1000]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    entropies.append(float(principal(weight.detach())[1]))
    return {
        f"entropy {when} training": part / math.log10(9)
        for when, part in zip(("before", "after"), entropies, strict=True)
    }


PAPER = Paper(
    title="CNN Filter DB: An Empirical Investigation of Trained Convolutional Filters",
    arxiv="2203.15331",
    source="`layer_quality_worker` in `main.ipynb` of github.com/paulgavrikov/CNN-Filter-DB",
    cores=CORES,
    check=check,
    gain=gain,
    tolerance=1e-7,  # spectra are those of Gram matrices
    outside="The database, thresholds of sparsity, and divergences between distributions.",
)
