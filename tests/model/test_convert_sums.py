"""Models whose layers get a kernel that is a sum: converted, compared, saved, loaded and exported like any other."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import tnalgebra as tn

DEPTHWISE = tn.rule("K[o i h w] => U[o a] V[a i h w] + D[o h w] Copy[o i]", name="low rank and depthwise")
TRAIN_AND_CP = tn.rule(
    "K[o i h w] => A[o p] B[p i q] C[q h s] D[s w] + E[o r] F[i r] G[h r] H[w r]", name="train and CP"
)
COLUMNS = tn.rule("W[o i] => U[o a] V[a i] + C[o c] S[c i]", name="low rank and columns")
PATTERNS = {"0": (DEPTHWISE, 2), "2": (TRAIN_AND_CP, 2), "6": (COLUMNS, {"a": 1, "c": 2})}
SHAPE = (4, 6, 9, 8)


def _model() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(6, 6, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(6, 10, 3, stride=2, padding_mode="reflect", padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(10, 7),
    ).eval()


def _dense(model: nn.Sequential) -> nn.Sequential:
    """The model with the kernel that each network has, computed by the oracle."""
    dense = _model()
    for key in PATTERNS:
        layer, plain = model.get_submodule(key), dense.get_submodule(key)
        plain.weight.data = tn.evaluate(layer.kernel, layer.cores()).to(plain.weight)  # type: ignore[operator, union-attr]
    return dense


@pytest.fixture(scope="module")
def converted() -> tuple[nn.Sequential, tn.model.Report]:
    return tn.convert(_model(), PATTERNS, example=SHAPE)


def test_a_model_is_converted(converted: tuple[nn.Sequential, tn.model.Report]) -> None:
    model, report = converted
    plain, dense, x = _model(), _dense(model), torch.randn(SHAPE)
    torch.testing.assert_close(model(x), dense(x), rtol=1e-5, atol=1e-5)
    done = {row.name: row for row in report.rows}
    for key in PATTERNS:
        before, after = plain.get_submodule(key).weight.detach(), dense.get_submodule(key).weight.detach()
        assert done[key].relative_error == pytest.approx(float((before - after).norm() / before.norm()), rel=1e-4)
    gradients = torch.autograd.grad(model(x).square().sum(), [*model.parameters()])
    assert all(bool(one.isfinite().all()) and bool(one.any()) for one in gradients)


def test_sums_share_a_budget_with_products_and_see_the_inputs() -> None:
    patterns = {nn.Conv2d: [DEPTHWISE, TRAIN_AND_CP, "tucker2"], nn.Linear: [COLUMNS, "out | in"]}
    model, report = tn.convert(_model(), patterns, size="parameters 0.7", example=SHAPE)
    assert report.parameters_after <= 0.7 * sum(one.numel() for one in _model().parameters())
    inputs = [torch.randn(SHAPE) for _ in range(3)]
    _, calibrated = tn.convert(_model(), {"0": (DEPTHWISE, 2)}, example=SHAPE, calibration=inputs)
    (row,) = [row for row in calibrated.rows if row.name == "0"]
    assert row.output_error is not None
    model(inputs[0])


def test_compare_lists_sums_among_others() -> None:
    table = tn.compare(_model()[0], [DEPTHWISE, TRAIN_AND_CP, "cp"], "parameters 0.5")
    assert {row.name for row in table.rows} == {DEPTHWISE.name, TRAIN_AND_CP.name, "cp"}
    assert all(row.fit is not None and row.fit.parameters <= 0.5 * 324 for row in table.rows)


def test_files(converted: tuple[nn.Sequential, tn.model.Report], tmp_path: Path) -> None:
    model, x = converted[0], torch.randn(SHAPE)
    tn.save(model, tmp_path / "model.safetensors")
    loaded = tn.load(tmp_path / "model.safetensors", into=_model())
    assert torch.equal(loaded(x), model(x))
    tn.save(model[2], tmp_path / "layer.safetensors")
    hidden = torch.randn(2, 6, 7, 7)
    assert torch.equal(tn.load(tmp_path / "layer.safetensors")(hidden), model[2](hidden))


def test_copies_frozen_models_and_exports(converted: tuple[nn.Sequential, tn.model.Report], tmp_path: Path) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    model = copy.deepcopy(converted[0])
    x: Tensor = torch.randn(SHAPE)
    expected = converted[0](x).detach()
    for key in PATTERNS:
        model.get_submodule(key).freeze()
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-5)
    model = copy.deepcopy(converted[0])
    batch = torch.export.Dim("batch", min=2)
    program = torch.onnx.export(model, (x,), dynamo=True, verbose=False, dynamic_shapes=({0: batch},))
    assert program is not None
    program.save(tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    longer = torch.cat([x, x])
    (output,) = session.run(None, {session.get_inputs()[0].name: longer.numpy()})
    torch.testing.assert_close(torch.from_numpy(output), converted[0](longer).detach(), rtol=1e-4, atol=1e-5)
