"""Batch normalisations taken into the layers before them: the same outputs, or the model as it was."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import tnalgebra.nn as layers
from tests.refusals import refused
from tnalgebra.errors import LayerError
from tnalgebra.model.adapt import adapt
from tnalgebra.model.convert import convert
from tnalgebra.model.folding import fold_batch_norm

# Sums of at most a few hundred products of size 1, in float64.
ROUNDING: Any = {"rtol": 1e-11, "atol": 1e-11}


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def settled(*modules: nn.Module) -> nn.Sequential:
    """In float64 and evaluation mode, with weights and running statistics that are not those of a new normalisation."""
    torch.manual_seed(0)
    model = nn.Sequential(*modules).double().eval()
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for name, tensor in (*module.named_parameters(), *module.named_buffers()):
                if tensor.is_floating_point():
                    tensor.data.uniform_(0.5, 2.0) if "var" in name or "weight" in name else tensor.data.normal_()
    return model


LAYERS: dict[str, tuple[nn.Module, type[nn.Module], int, tuple[int, ...]]] = {
    "Conv1d": (nn.Conv1d(4, 6, 3, groups=2), nn.BatchNorm1d, 6, (2, 4, 9)),
    "Conv2d": (
        nn.Conv2d(4, 6, (3, 2), bias=False, padding_mode="circular", padding=1),
        nn.BatchNorm2d,
        6,
        (2, 4, 9, 8),
    ),
    "Conv3d": (nn.Conv3d(2, 3, 2), nn.BatchNorm3d, 3, (2, 2, 5, 4, 6)),
    "ConvTranspose1d": (nn.ConvTranspose1d(4, 6, 3, stride=2), nn.BatchNorm1d, 6, (2, 4, 9)),
    "ConvTranspose2d": (nn.ConvTranspose2d(4, 6, 3, output_padding=1, stride=2), nn.BatchNorm2d, 6, (2, 4, 5, 6)),
    "Linear": (nn.Linear(5, 6, bias=False), nn.BatchNorm1d, 6, (4, 5)),
}


@pytest.mark.parametrize("decomposed", [False, True])
@pytest.mark.parametrize("name", LAYERS)
def test_folded_layers_compute_the_same(name: str, decomposed: bool) -> None:
    layer, norm, channels, shape = LAYERS[name]
    model, x = settled(layer, norm(channels, affine=name != "Conv1d"), nn.ReLU()), normal(*shape)
    if decomposed:
        convert(model, {"0": ("cp", {"size": 3, "starts": 1, "sweeps": 2})}, allow_larger=True)
    with torch.no_grad():
        expected = model(x)
        assert fold_batch_norm(model, x).folded == {"1": "0"}
        assert isinstance(model[0], layers.KernelLayer) == decomposed
        assert isinstance(model[1], nn.Identity)
        torch.testing.assert_close(model(x), expected, **ROUNDING)


def test_a_linear_layer_is_folded_where_its_outputs_are_rows() -> None:
    """Of outputs (n, length, features) it is the length that is normalised, here as long as the features."""
    model = settled(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.Linear(6, 6), nn.BatchNorm1d(6))
    x = normal(4, 6, 5)
    for example in (None, x):
        report = fold_batch_norm(model, example)
        assert not report.folded
        assert report.left.keys() == {"1", "3"}
        assert "linear layer" in report.left["1"]
    with torch.no_grad():
        expected = model(x[0])
        fold_batch_norm(model, x[0])
        torch.testing.assert_close(model(x[0]), expected, **ROUNDING)
    assert [type(module) for module in model[1::2]] == [nn.Identity, nn.Identity]


def test_what_is_watched_or_replaced_stays() -> None:
    watched, norm = nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4)
    watched.register_forward_hook(lambda *_: None)
    replaced = nn.Conv2d(4, 4, 1)
    replaced.forward = lambda x: 2 * x
    parametrised = parametrizations.weight_norm(nn.Conv2d(4, 4, 1))
    last = nn.Conv2d(4, 5, 1)
    model = settled(
        *(watched, norm, replaced, nn.BatchNorm2d(4), parametrised, nn.BatchNorm2d(4)),
        *(nn.ConvTranspose2d(4, 4, 1, groups=2), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)),
        *(nn.BatchNorm2d(4, track_running_stats=False), last, nn.BatchNorm2d(5)),
    )
    x = normal(2, 3, 6, 5)
    with torch.no_grad():
        expected = model(x)
        report = fold_batch_norm(model, x)
        torch.testing.assert_close(model(x), expected, **ROUNDING)
    assert [number for number, module in enumerate(model) if isinstance(module, nn.Identity)] == [11]
    assert report.folded == {"11": "10"}
    for name, reason in {"1": "hooks", "3": "forward of its own", "5": "parametrisations", "7": "groups"}.items():
        assert reason in report.left[name]
    assert "running statistics" in report.left["9"]
    assert len(str(report).splitlines()) == 6


def test_without_batch_normalisation_nothing_is_done(caplog: pytest.LogCaptureFixture) -> None:
    model = settled(nn.Conv2d(3, 4, 2), nn.ReLU())
    with caplog.at_level("INFO", "tnalgebra"):
        report = fold_batch_norm(model, (1, 3, 5, 5))
    assert not report.folded
    assert not report.left
    assert str(report) == "the model has no batch normalisation"
    assert "0 of 0 batch normalisations" in caplog.text


class Reading(nn.Module):
    """Adds a number of its layer or of its normalisation to the output."""

    def __init__(self, number: Callable[[Any], Any]) -> None:
        super().__init__()
        self.conv, self.norm = settled(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4))
        self.number = number

    def forward(self, x: Tensor) -> Any:
        return self.norm(self.conv(x)) + self.number(self)


@pytest.mark.parametrize("example", [None, (2, 3, 6, 5)])
@pytest.mark.parametrize(
    ("number", "read"),
    [
        (lambda model: model.conv.weight.square().sum(), True),
        (lambda model: model.conv.bias[0], True),
        (lambda model: model.norm.weight.sum(), True),
        (lambda model: model.norm.running_mean.abs().sum(), True),
        (lambda model: model.conv.weight.shape[1] + model.conv.weight.size(0), False),
        (lambda model: torch.ones(1, dtype=model.conv.weight.dtype), False),
    ],
)
def test_a_layer_whose_weight_is_read_elsewhere_stays(
    number: Callable[[Any], Any], read: bool, example: tuple[int, ...] | None
) -> None:
    model, x = Reading(number).eval(), normal(2, 3, 6, 5)
    with torch.no_grad():
        expected = model(x)
        report = fold_batch_norm(model, example)
        torch.testing.assert_close(model(x), expected, **ROUNDING)
    assert bool(report.left) == read
    assert bool(report.folded) == (not read)


@pytest.mark.parametrize("given", ["example", "nothing", "pairs"])
@pytest.mark.parametrize("traceable", [False, True])
def test_a_layer_with_adapters_stays(traceable: bool, given: str) -> None:
    """Adapters that are inactive have no effect on the example, and would have the old scale once they are active."""
    inner = settled(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4))
    model, x = (inner if traceable else Untraceable(inner).eval()), normal(2, 3, 6, 5)
    name = "0" if traceable else "inner.0"
    _, adapters = adapt(model, {name: "LoRA"}, 2, tune=False)
    adapters.activate()
    with torch.no_grad():
        for core in (one for one in model.parameters() if one.requires_grad):
            core.normal_()
        pairs = {f"{name}.base": f"{name[:-1]}1"} if given == "pairs" else None
        report = fold_batch_norm(model, None if given == "nothing" else x, pairs=pairs)
        assert not report.folded
        assert "adapters" in report.left[f"{name[:-1]}1"]


class Untraceable(nn.Module):
    """Chooses by the values of its input."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Any:
        return self.inner(x if float(x.sum()) > 0 else -x)


class Several(nn.Module):
    """Gives its output in a dictionary."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = settled(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"out": self.inner(x)}


def test_outputs_in_any_nesting_are_compared() -> None:
    model, x = Several().eval(), normal(2, 3, 6, 5)
    with torch.no_grad():
        expected = model(x)["out"]
        assert fold_batch_norm(model, {"x": x}).folded == {"inner.1": "inner.0"}
        torch.testing.assert_close(model(x)["out"], expected, **ROUNDING)


class Shapely(nn.Module):
    """Gives a shape, which holds no numbers to compare."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = settled(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> tuple[int, ...]:
        return tuple(self.inner(x).shape)


def test_a_model_that_cannot_be_compared_stays_as_it_was() -> None:
    model = Shapely().eval()
    before = list(model.modules())
    with refused(LayerError, "Shapely", "no tensor"):
        fold_batch_norm(model, normal(2, 3, 6, 5))
    assert all(one is two for one, two in zip(before, model.modules(), strict=True))


class Branching(nn.Module):
    """Chooses by the values of its input, so that it cannot be traced; the second layer's output is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = settled(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4), nn.ReLU())
        self.conv, self.norm = settled(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))
        self.last, self.after = settled(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.stem(x if float(x.sum()) > 0 else -x)
        hidden = self.conv(hidden)
        return self.after(self.last(hidden + self.norm(hidden)))


@pytest.mark.parametrize("given", ["example", "nothing", "pairs"])
def test_where_tracing_fails_layers_are_folded_one_by_one(given: str) -> None:
    model, x = Branching().eval(), normal(2, 3, 6, 5)
    example = None if given == "nothing" else x
    pairs = {"last": "after", "stem.0": "stem.1"} if given == "pairs" else None
    with torch.no_grad():
        expected = model(x)
        report = fold_batch_norm(model, example, pairs=pairs)
        torch.testing.assert_close(model(x), expected, **ROUNDING)
    folded = {"stem.1": "stem.0"} | ({} if given == "nothing" else {"after": "last"})
    assert report.folded == folded
    reason = {"example": "output changes", "nothing": "cannot be traced", "pairs": "not named"}[given]
    assert reason in report.left["norm"]
    assert isinstance(model.norm, nn.BatchNorm2d)


def test_pairs_that_are_wrong() -> None:
    model, x = Branching().eval(), normal(2, 3, 6, 5)
    before = list(model.modules())
    with refused(LayerError, "'conv'", "'last'", "after"):
        fold_batch_norm(model, x, pairs={"conv": "last"})
    with refused(LayerError, "relative error"):
        fold_batch_norm(model, x, pairs={"last": "after", "conv": "norm"})
    assert all(one is two for one, two in zip(before, model.modules(), strict=True))


class Changing(nn.Module):
    """Looks at what follows its convolution, as no trace can see."""

    def __init__(self, *, fails: bool) -> None:
        super().__init__()
        self.inner, self.fails = settled(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4)), fails

    def forward(self, x: Tensor) -> Tensor:
        folded = isinstance(self.inner[1], nn.Identity)
        if folded and self.fails:
            raise RuntimeError("no normalisation")
        return self.inner(x) + folded


@pytest.mark.parametrize("fails", [False, True])
def test_a_model_that_changes_is_restored(fails: bool) -> None:
    model = Changing(fails=fails).eval()
    before = list(model.modules())
    with refused(RuntimeError if fails else LayerError, "no normalisation" if fails else "relative error"):
        fold_batch_norm(model, normal(2, 3, 6, 5))
    assert all(one is two for one, two in zip(before, model.modules(), strict=True))


def test_outputs_of_zero_are_compared_too() -> None:
    model = settled(nn.Conv2d(3, 4, 2), nn.BatchNorm2d(4))
    with torch.no_grad():
        model[1].weight.zero_()
        model[1].bias.zero_()
        fold_batch_norm(model, normal(2, 3, 6, 5))
        assert not model(normal(2, 3, 6, 5)).any()
