"""The running statistics of batch normalisations, measured again."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from tests.conversion_cases import assert_same, inputs, network, state
from tests.refusals import refused
from tnalgebra.errors import DataError, LayerError, ValuesError
from tnalgebra.model.batch_norm import recalibrate_batch_norm
from tnalgebra.model.convert import convert


def test_running_statistics_are_those_of_the_data() -> None:
    model = network()
    model.insert(2, nn.Dropout(0.5))
    model.train()
    model[0].eval()
    convert(model, {"0": ("out | in kh kw", 2)})
    modes = [module.training for module in model.modules()]
    batches = inputs(4)
    assert recalibrate_batch_norm(model, [(x, None) for x in batches], batches=3) is model
    with torch.no_grad():
        outputs = [model[0](x) for x in batches[:3]]
    mean = torch.stack([y.mean((0, 2, 3)) for y in outputs]).mean(0)
    variance = torch.stack([y.var((0, 2, 3)) for y in outputs]).mean(0)
    torch.testing.assert_close(model[1].running_mean, mean)
    torch.testing.assert_close(model[1].running_var, variance)
    assert model[1].momentum == 0.1
    assert [module.training for module in model.modules()] == modes


def test_statistics_stay_where_they_cannot_be_measured() -> None:
    model = network()
    model[1].running_mean += 3
    before = state(model)
    with refused(DataError, "no batches"):
        recalibrate_batch_norm(model, [])
    with refused(DataError, "tensor"):
        recalibrate_batch_norm(model, inputs()[0])
    with refused(DataError, "batches=0"):
        recalibrate_batch_norm(model, inputs(), batches=0)
    with pytest.raises(RuntimeError):
        recalibrate_batch_norm(model, [inputs()[0], torch.zeros(1, 2, 9, 9)])
    with refused(ValuesError, "running_mean of '1'", "not finite"):
        recalibrate_batch_norm(model, [inputs()[0], inputs()[0] * float("nan")])
    assert_same(before, state(model))
    assert model[1].momentum == 0.1
    with refused(LayerError, "running statistics"):
        recalibrate_batch_norm(nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)), inputs())
