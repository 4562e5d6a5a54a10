"""From one process to another by file, and from there to ONNX: the logits stay what they were."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy
import onnxruntime
import pytest
import torch
from torch import nn

import tnalgebra as tn
from tnalgebra.command import build_model
from tnalgebra.model.patterns import Patterns

ROOT = Path(__file__).parents[2]
OWN = "K[o i h w] => A[o p q] B[p i h] C[q w s] D[s p z] E[z q]"
"""A user's rule: five cores in loops, of no name and no closed form."""

ALL: Patterns = {
    "conv1": ("tucker2", {"a": 9, "b": 1}),
    "conv2": ("out kh | in kw", {"r": 90}),  # so large that the kernel is rebuilt
    "linear": ("out | in", {"r": 6}),
}
FACTORED: Patterns = {
    "conv3": (OWN, {"p": 3, "q": 4, "s": 5, "z": 6}),
    "conv4": ("tensor_train", tn.ParameterBudget(0.4)),
}

PROGRAM = """
import sys
import numpy, onnxruntime, torch
import tnalgebra as tn
from tnalgebra.command import build_model

folder = sys.argv[1]
model = tn.load(f"{folder}/model.safetensors", into=build_model("cnn4", classes=10, channels=1)).eval()
torch.onnx.export(
    model,
    (torch.zeros(4, 1, 8, 8),),
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


@pytest.mark.slow
def test_saved_loaded_elsewhere_exported_and_run(tmp_path: Path) -> None:
    torch.manual_seed(3)
    model = build_model("cnn4", classes=10, channels=1)
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):  # weights that keep the size of activations
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
    model.eval()
    for patterns, candidates in ((ALL, "all"), (FACTORED, "factored")):
        _, report = tn.convert(model, patterns, example=(4, 1, 8, 8), candidates=candidates, allow_larger=True)
        assert set(report.converted) == set(patterns), report
    tn.save(model, tmp_path / "model.safetensors")
    wanted = {}
    for count in (1, 7):
        images = torch.randn(count, 1, 8, 8)
        numpy.save(tmp_path / f"images-{count}.npy", images.numpy())
        with torch.no_grad():
            wanted[count] = model(images).double()
    run = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    done = subprocess.run(run, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
    for count, logits in wanted.items():
        found = torch.from_numpy(numpy.load(tmp_path / f"logits-{count}.npy")).double()
        assert found.shape == (count, 10)
        assert (found - logits).norm() <= 1e-5 * logits.norm()  # float32: sums in another order
    assert wanted[7].std(0).min() > 5e-3 * wanted[7].abs().max(), "logits that hardly differ prove little"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dynamo", [False, True])
def test_a_model_in_onnx_takes_other_sizes(dynamo: bool, tmp_path: Path) -> None:
    """Layers behind layers: the older exporter fixes the sizes of a value whose shape it cannot follow."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(tn.nn.decomposed(nn.Conv2d(6, 6, 3, padding=1), one, 3, starts=1) for one in ("tucker2", "cp", "tucker2"))
    ).eval()
    x, file = torch.randn(2, 6, 8, 8), tmp_path / "model.onnx"
    axes: dict[str, Any] = {"dynamic_axes": {"x": {0: "n", 2: "h", 3: "w"}}, "input_names": ["x"]}
    if dynamo:
        dims = {0: torch.export.Dim("n"), 2: torch.export.Dim("h", min=4), 3: torch.export.Dim("w", min=4)}
        axes = {"dynamic_shapes": (dims,)}
    torch.onnx.export(model, (x,), file, dynamo=dynamo, verbose=False, **axes)
    session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    other = torch.randn(5, 6, 11, 9)
    (value,) = session.run(None, {session.get_inputs()[0].name: other.numpy()})
    torch.testing.assert_close(torch.from_numpy(value), model(other).detach(), rtol=1e-4, atol=1e-4)
