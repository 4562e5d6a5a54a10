"""From one process to another by file, and from there to ONNX: the logits stay what they were."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy
import pytest
import torch
from torch import nn

import tnalgebra as tn
from models import build_model
from tnalgebra.compiler.choose import Candidates
from tnalgebra.model.patterns import Patterns

ROOT = Path(__file__).parents[1]
OWN = "K[o i h w] => A[o p q] B[p i h] C[q w s] D[s p z] E[z q]"
"""A user's rule: five cores in loops, of no name and no closed form."""

CNN4: Patterns = {
    "conv1": ("tucker2", {"a": 9, "b": 1}),
    "conv2": ("out kh | in kw", {"r": 90}),  # so large that the kernel is rebuilt
    "conv3": ("cp", {"r": 20}),
    "conv4": ("tensor_train", tn.ParameterBudget(0.4)),
    "linear": ("out | in", {"r": 6}),
}
RESNET20: Patterns = {
    "layer1.*": ("cp", {"r": 11}),
    "layer2.0.*": ("tensor_train", tn.ParameterBudget(0.6)),
    "layer2.*": ("tucker2", {"a": 9, "b": 11}),
    "layer3.0.*": ("out | in kh kw", tn.KeepFraction(0.3)),
    "layer3.*": (OWN, {"p": 3, "q": 4, "s": 5, "z": 6}),
}

PROGRAM = """
import sys
import numpy, onnxruntime, torch
import tnalgebra as tn
from models import build_model

name, folder, channels, size = sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4])
model = tn.load(f"{folder}/model.safetensors", into=build_model(name, classes=10, channels=channels)).eval()
torch.onnx.export(
    model,
    (torch.zeros(4, channels, size, size),),
    f"{folder}/model.onnx",
    dynamo=True,
    dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=1024)},),
    verbose=False,
)
session = onnxruntime.InferenceSession(f"{folder}/model.onnx", providers=["CPUExecutionProvider"])
for count in (1, 7):
    inputs = {session.get_inputs()[0].name: numpy.load(f"{folder}/images-{count}.npy")}
    numpy.save(f"{folder}/logits-{count}.npy", session.run(None, inputs)[0])
"""


def network(name: str, channels: int, size: int) -> nn.Module:
    """With random weights that keep the size of activations, and the batch statistics of random images."""
    torch.manual_seed(3)
    model = build_model(name, classes=10, channels=channels)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
        elif isinstance(layer, nn.BatchNorm2d):
            layer.momentum = None  # the statistics are those of the images, not mixed with the first guess
    with torch.no_grad():
        model(torch.randn(64, channels, size, size))
    return model.eval()


@pytest.mark.parametrize(
    ("name", "channels", "size", "patterns", "candidates"),
    [("cnn4", 1, 8, CNN4, "all"), ("resnet20", 3, 16, RESNET20, "factored")],
    ids=["cnn4", "resnet20"],
)
def test_saved_loaded_elsewhere_exported_and_run(
    name: str, channels: int, size: int, patterns: Patterns, candidates: Candidates, tmp_path: Path
) -> None:
    model, report = tn.convert(
        network(name, channels, size),
        patterns,
        example=(4, channels, size, size),
        candidates=candidates,
        allow_larger=True,
    )
    skipped = [] if name == "cnn4" else ["conv1", "linear"]
    assert [row.name for row in report.rows if row.rule is None] == skipped, report
    tn.save(model, tmp_path / "model.safetensors")
    wanted = {}
    for count in (1, 7):
        images = torch.randn(count, channels, size, size)
        numpy.save(tmp_path / f"images-{count}.npy", images.numpy())
        with torch.no_grad():
            wanted[count] = model(images).double()
    run = [sys.executable, "-c", PROGRAM, name, str(tmp_path), str(channels), str(size)]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    for count, logits in wanted.items():
        found = torch.from_numpy(numpy.load(tmp_path / f"logits-{count}.npy")).double()
        assert found.shape == (count, 10)
        assert (found - logits).norm() <= 1e-5 * logits.norm()  # float32: sums in another order
    assert wanted[7].std(0).min() > 5e-3 * wanted[7].abs().max(), "logits that do not tell images apart prove little"
