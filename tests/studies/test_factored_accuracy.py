"""A ResNet-20 with its kernels cut: the factors, compiled, answer as the kernels rebuilt from them do."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import tnalgebra as tn
from models import build_model, load_weights
from tnalgebra.model.images import Images, load_images
from tnalgebra.nn.torch_layers import kernel_layers
from tnalgebra.studies.accuracy import accuracy

STUDY = {("out kh | in kw", 0.5): 0.9068, ("out | in kh kw", 0.75): 0.8179, ("out kw | in kh", 0.25): 0.6121}
"""(cut, keep) -> top-1, as docs/study.md has it."""


@pytest.fixture(scope="module")
def images(cifar10_folder: Path) -> Images:
    return load_images(cifar10_folder, "test")


@pytest.mark.parametrize(("cut", "keep"), STUDY)
def test_in_factors_and_rebuilt_the_accuracy_agrees(
    cut: str, keep: float, images: Images, resnet20_weights: Path
) -> None:
    rebuilt = build_model("resnet20", classes=10, channels=3)
    load_weights(rebuilt, resnet20_weights)
    factored, report = tn.convert(
        rebuilt,
        {"conv1": None, "linear": None, "*": (cut, tn.KeepFraction(keep))},
        example=(250, 3, 32, 32),
        candidates="factored",
        allow_larger=True,
        inplace=False,
    )
    assert len(report.converted) == 18
    layers = kernel_layers(rebuilt)
    with torch.no_grad():
        for name in report.converted:
            kernel = layers[name].weight
            kernel.copy_(tn.cut(cut).apply({"K": kernel}, ranks=tn.KeepFraction(keep)).dense())
    found = [
        accuracy(model, images, batch_size=250, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
        for model in (rebuilt, factored)
    ]
    assert found[0] == pytest.approx(STUDY[cut, keep], abs=5e-4)
    assert abs(found[1] - found[0]) <= 5e-4
