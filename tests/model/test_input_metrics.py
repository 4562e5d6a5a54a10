"""Metrics against the layers themselves: the error of a layer's output, measured by torch on the same inputs."""

from __future__ import annotations

import copy
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from tests.refusals import refused
from tnalgebra.command import build_model, load_weights
from tnalgebra.errors import DataError, LayerError, ValuesError
from tnalgebra.fitting import Metric
from tnalgebra.model import Images, convert, fit_in_order, input_metrics, load_images, patches
from tnalgebra.networks.nodes import MODES
from tnalgebra.nn import kernel_labels_of, kernel_layers
from tnalgebra.studies import accuracy
from tnalgebra.tensors import truncated_svd

CONVOLUTIONS: dict[int, Any] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
TRANSPOSED: dict[int, Any] = {1: nn.ConvTranspose1d, 2: nn.ConvTranspose2d, 3: nn.ConvTranspose3d}
RIDGE = 1e-3
CLOSE = 1e-9  # float64 sums of some thousand squares


def gaussian(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) + 0.1


def each(draw: st.DrawFn, axes: int, least: int, most: int) -> tuple[int, ...]:
    return tuple(draw(st.lists(st.integers(least, most), min_size=axes, max_size=axes)))


@st.composite
def convolutions(draw: st.DrawFn) -> tuple[nn.Module, tuple[int, ...]]:
    """A convolution, transposed or not, in float64, and the sizes of an input's positions."""
    axes = draw(st.sampled_from((1, 2, 2, 3)))
    groups = draw(st.sampled_from((1, 1, 2, 4)))
    kernel = tuple(draw(st.permutations((1, 2, 3)))[:axes])
    bias = draw(st.booleans())
    if draw(st.booleans()):
        stride, dilation = each(draw, axes, 1, 3), each(draw, axes, 1, 3)
        extra = tuple(draw(st.integers(0, max(s, d) - 1)) for s, d in zip(stride, dilation, strict=True))
        padding = each(draw, axes, 0, 2)
        module = TRANSPOSED[axes](4, groups * 3, kernel, stride, padding, extra, groups, bias, dilation)
        return module.double(), tuple(draw(st.permutations((5, 6, 7)))[:axes])
    padding = draw(st.one_of(st.just("valid"), st.just("same"), st.just(each(draw, axes, 0, 3))))
    module = CONVOLUTIONS[axes](
        4,
        groups * draw(st.sampled_from((1, 5))),
        kernel,
        stride=(1,) * axes if padding == "same" else each(draw, axes, 1, 3),
        padding=padding,
        dilation=each(draw, axes, 1, 3),
        groups=groups,
        bias=bias,
        padding_mode=draw(st.sampled_from(MODES)),
    )
    return module.double(), tuple(draw(st.permutations((7, 8, 9)))[:axes])


def output(module: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    """Of the layer with another weight and no bias."""
    assert isinstance(module.weight, Tensor)
    weights = {"weight": weight}
    if isinstance(module.bias, Tensor):
        weights["bias"] = torch.zeros_like(module.bias)
    with torch.no_grad():
        result: Tensor = torch.func.functional_call(module, weights, (x,))
    return result


def other_weight(module: nn.Module, seed: int = 5) -> Tensor:
    assert isinstance(module.weight, Tensor)
    return gaussian(*module.weight.shape, seed=seed)


def noise_of(metric: Metric, ridge: float = RIDGE) -> float:
    """The variance on the diagonal of a metric that its ridge has put there."""
    d = math.prod(metric.sizes)
    return float(metric.covariance.reshape(-1, d, d).diagonal(dim1=1, dim2=2).mean()) * ridge / (1 + ridge)


# one layer


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@given(convolutions(), st.sampled_from((1, 60, 2**20)), st.lists(st.integers(1, 3), min_size=1, max_size=2))
def test_the_form_is_the_measured_error(case: tuple[nn.Module, tuple[int, ...]], block: int, counts: list[int]) -> None:
    module, positions = case
    batches = [gaussian(count, 4, *positions, seed=number) for number, count in enumerate(counts)]
    (metric,) = input_metrics(module, batches, ridge=RIDGE, block=block).values()
    kernel, labels = other_weight(module), kernel_labels_of(module)
    measured = sum(float(output(module, x, kernel).square().sum()) for x in batches) / sum(counts)
    ridge = noise_of(metric) * float(kernel.square().sum())
    assert metric.squared(kernel, labels) == pytest.approx(measured + ridge, rel=CLOSE)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@given(convolutions(), st.sampled_from((1, 60, 2**20)), st.sampled_from((0, 2**20)))
def test_in_order_the_wanted_output_is_the_original(
    case: tuple[nn.Module, tuple[int, ...]], block: int, cache: int
) -> None:
    module, positions = case
    first = CONVOLUTIONS[len(positions)](4, 4, 1).double()
    model = nn.Sequential(first, module)
    changed = first.weight.detach() + 0.3 * other_weight(first)
    batches = [gaussian(count, 4, *positions, seed=count) for count in (2, 1)]
    metrics = {}

    def fit(name: str, weight: Tensor, metric: Metric) -> Tensor:
        metrics[name] = metric
        return changed if name == "0" else weight

    weights = fit_in_order(model, batches, fit, ridge=RIDGE, block=block, cache=cache)
    assert list(weights) == ["0", "1"]
    assert torch.equal(weights["0"], changed)
    with torch.no_grad():
        wanted = [output(module, first(x), module.weight) for x in batches]
        inputs = [torch.func.functional_call(first, {"weight": changed}, (x,)) for x in batches]
    metric, labels, kernel = metrics["1"], kernel_labels_of(module), module.weight.detach()
    noise = noise_of(metric)
    assert metric.power == pytest.approx(
        sum(float(y.square().sum()) for y in wanted) / 3 + noise * float(kernel.square().sum()), rel=CLOSE
    )
    other = other_weight(module)
    pairs = zip(inputs, wanted, strict=True)
    measured = sum(float((output(module, x, other) - y).square().sum()) for x, y in pairs) / 3
    missed = measured + noise * float((kernel - other).square().sum())
    assert metric.power is not None
    assert metric.power * metric.output_error(other, labels) ** 2 == pytest.approx(missed, rel=1e-7)
    # the first layer has the inputs it had, so there is nothing to make up for
    own = metrics["0"].target(first.weight.detach(), kernel_labels_of(first))
    assert torch.allclose(own, first.weight, rtol=0, atol=1e-9)


@given(st.permutations((2, 3, 5, 7)), st.integers(1, 4))
def test_a_linear_layer_with_leading_axes(sizes: list[int], axes: int) -> None:
    n, inner, outputs, *_ = sizes
    module = nn.Linear(inner, outputs).double()
    x = gaussian(*(n, 4, 6)[:axes], inner)
    (metric,) = input_metrics(nn.Sequential(module), [x], ridge=RIDGE).values()
    assert metric.labels == ("in",)
    kernel = other_weight(module)
    measured = float((x @ kernel.T).square().sum()) / len(x)
    expected = measured + noise_of(metric) * float(kernel.square().sum())
    assert metric.squared(kernel, ("out", "in")) == pytest.approx(expected, rel=CLOSE)


class Calls(nn.Module):
    """A layer that runs twice, one with an in-place ReLU behind it, one given by keyword, one without a batch axis."""

    def __init__(self) -> None:
        super().__init__()
        self.late = nn.Linear(4, 5)
        self.twice = nn.Conv2d(3, 3, 3, padding=1, bias=False)
        self.single = nn.Conv2d(3, 4, (2, 3))
        self.relu = nn.ReLU(inplace=True)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.twice(self.relu(self.twice(x))))
        x = torch.stack([self.single(input=image) for image in x])
        return torch.as_tensor(self.late(x.movedim(1, -1)))


def test_every_call_counts() -> None:
    model = Calls()
    x = gaussian(2, 3, 5, 6)
    metrics = input_metrics(model, [x], ridge=RIDGE)
    assert list(metrics) == ["late", "twice", "single"]
    with torch.no_grad():
        inputs = {"twice": [x, model.twice(x).relu()]}
        inputs["single"] = [model.twice(inputs["twice"][1]).relu()]
        inputs["late"] = [model.single(inputs["single"][0]).movedim(1, -1)]
    for name, module in kernel_layers(model).items():
        kernel = other_weight(module)
        measured = sum(float(output(module, x, kernel).square().sum()) for x in inputs[name]) / len(x)
        expected = measured + noise_of(metrics[name]) * float(kernel.square().sum())
        assert metrics[name].squared(kernel, kernel_labels_of(module)) == pytest.approx(expected, rel=CLOSE)


def test_layers_are_fitted_in_the_order_they_run() -> None:
    model = Calls()
    order: list[str] = []

    def fit(name: str, weight: Tensor, metric: Metric) -> Tensor:
        order.append(name)
        labels = kernel_labels_of(kernel_layers(model)[name])
        assert torch.allclose(metric.target(weight, labels), weight, rtol=0, atol=1e-8)
        return weight

    weights = fit_in_order(model, [gaussian(2, 3, 5, 6), gaussian(1, 3, 5, 6, seed=1)], fit, ridge=RIDGE)
    assert order == list(weights) == ["twice", "single", "late"]
    for name, module in kernel_layers(model).items():
        assert torch.equal(weights[name], module.weight)


def test_chosen_layers_alone() -> None:
    model = Calls()
    assert list(input_metrics(model, [gaussian(1, 3, 5, 6)], layers=["s*", "late"])) == ["late", "single"]
    weights = fit_in_order(model, [gaussian(1, 3, 5, 6)], lambda name, weight, metric: weight * 2, layers=["single"])
    assert list(weights) == ["single"]
    assert torch.equal(weights["single"], model.single.weight * 2)
    assert list(input_metrics(model.late, [gaussian(3, 4)])) == [""]


def test_the_type_of_a_covariance() -> None:
    model = nn.Sequential(nn.Linear(3, 2049), nn.Linear(2049, 2))
    x = torch.randn(5, 3)
    assert [metric.covariance.dtype for metric in input_metrics(model, [x]).values()] == [torch.float64, torch.float32]
    (asked,) = input_metrics(model, [x], dtype=torch.float32, layers=["0"]).values()
    assert asked.covariance.dtype == torch.float32


def test_a_covariance_of_several_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    for groups in (1, 2):
        module, x = nn.Conv2d(6, 4, (2, 3), groups=groups).double(), gaussian(3, 6, 5, 7)
        (whole,) = input_metrics(module, [x]).values()
        with monkeypatch.context() as patch:
            patch.setattr(patches, "_STRIP", 7)
            (strips,) = input_metrics(module, [x]).values()
        assert torch.allclose(whole.covariance, strips.covariance, rtol=1e-12, atol=0)


def some_images(count: int = 7) -> Images:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, 3, 5, 6), dtype=torch.uint8, generator=generator)
    return Images(pixels, torch.arange(count) % 2, ("a", "b"), "some")


def test_images_and_batches_are_the_same() -> None:
    model, images = Calls(), some_images()
    batches = list(images.batches(3, dtype=torch.float64))
    read = input_metrics(model, images, batch_size=3)
    for other in (input_metrics(model, batches), input_metrics(model, iter([x for x, _ in batches]))):
        assert all(torch.equal(read[name].covariance, other[name].covariance) for name in read)


# the model stays as it is


def state(model: nn.Module) -> tuple[Any, ...]:
    modes = [module.training for module in model.modules()]
    hooks = [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()]
    return modes, hooks, {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(a: tuple[Any, ...], b: tuple[Any, ...]) -> bool:
    return a[:2] == b[:2] and all(torch.equal(a[2][name], b[2][name]) for name in a[2])


def network() -> nn.Sequential:
    """With all that depends on the mode."""
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(48, 3)
    )
    model[1].eval()
    return model


def test_the_model_stays_as_it_is() -> None:
    model = network()
    before = state(model)
    x = torch.randn(5, 3, 5, 6)
    metrics = input_metrics(model, [x])
    fit_in_order(model, [x], lambda name, weight, metric: weight * 0.5)
    assert same(before, state(model))
    assert all(
        not metric.covariance.requires_grad and not metric.covariance.is_inference() for metric in metrics.values()
    )
    with torch.no_grad():
        inner = model[:3].eval()(x).flatten(1).double()  # without dropout, with the running statistics
    kernel = torch.ones(1, 48, dtype=torch.float64)
    expected = float((inner @ kernel.T).square().sum()) / 5 + noise_of(metrics["5"], 1e-4) * 48
    assert metrics["5"].squared(kernel, ("out", "in")) == pytest.approx(expected, rel=CLOSE)


def test_fits_may_use_gradients() -> None:
    def fit(name: str, weight: Tensor, metric: Metric) -> Tensor:
        factor = torch.ones((), dtype=weight.dtype, requires_grad=True)
        (gradient,) = torch.autograd.grad((factor * weight).square().sum(), factor)
        return weight * factor * (1 if float(gradient) > 0 else 0)

    weights = fit_in_order(network(), [torch.randn(5, 3, 5, 6)], fit)
    assert not any(weight.requires_grad for weight in weights.values())


class Broken(nn.Module):
    """Fails behind its layer, or gives it what is not finite."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.first = nn.Linear(3, 3)
        self.second = nn.Linear(3, 2)
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x)
        if self.how == "infinite":
            x = x / 0
        if self.how == "zero":
            x = x * 0
        if self.how == "fails":
            raise RuntimeError("broken")
        return x if self.how == "silent" else torch.as_tensor(self.second(x))


@pytest.mark.parametrize(
    ("how", "error", "facts"),
    [
        ("infinite", ValuesError, ["'second'", "inputs", "NaN or infinity"]),
        ("zero", ValuesError, ["'second'", "the covariance is 0"]),
        ("silent", LayerError, ["'second'", "never called"]),
        ("fails", LayerError, ["does not run on batch 1", "broken"]),
    ],
)
def test_a_forward_that_fails(how: str, error: type[Exception], facts: list[str]) -> None:
    model = Broken(how)
    before = state(model)
    x = torch.randn(4, 3)
    with refused(error, *facts):
        input_metrics(model, [x])
    assert same(before, state(model))
    with refused(error, *facts):
        fit_in_order(model, [x], lambda name, weight, metric: weight)
    assert same(before, state(model))


class Sometimes(Broken):
    """Its second layer depends on the batch, or on what the first gives."""

    def forward(self, x: Tensor) -> Tensor:
        enough = len(x) > 1 if self.how == "batch" else bool(self.first(x).any())
        x = self.first(x)
        return torch.as_tensor(self.second(x)) if enough else x


def test_a_layer_that_is_not_called_for_every_batch() -> None:
    batches = [torch.randn(1, 3), torch.randn(4, 3)]
    weights = fit_in_order(Sometimes("batch"), batches, lambda name, weight, metric: weight + metric.sizes[0])
    assert list(weights) == ["first", "second"]
    model = Sometimes("values")
    nn.init.zeros_(model.first.bias)
    with refused(LayerError, "'second'", "0 times in the copy", "1 times in the model"):
        fit_in_order(model, batches, lambda name, weight, metric: weight * 0)


@pytest.mark.parametrize(
    "returned", [torch.zeros(2, 2), torch.full((3, 3), math.nan), None], ids=["shape", "not finite", "nothing"]
)
def test_a_fit_that_returns_no_weight(returned: Any) -> None:
    model = Broken("")
    before = state(model)
    with refused(ValuesError, "'first'", "(3, 3)"):
        fit_in_order(model, [torch.randn(4, 3)], lambda name, weight, metric: returned)
    assert same(before, state(model))


# what is refused


def tied() -> nn.Module:
    model = nn.Sequential(nn.Embedding(7, 3), nn.Linear(3, 7))
    model[1].weight = model[0].weight
    return model


class Own(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) * 2


@pytest.mark.parametrize(
    ("model", "facts"),
    [
        (tied(), ["'1'", "0.weight, 1.weight"]),
        (nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 3))), ["'0'", "remove_parametrizations"]),
        (nn.Sequential(nn.LazyLinear(3)), ["'0.weight'", "run the model once"]),
        (nn.Sequential(Own(3, 3)), ["'0'", "a forward of its own"]),
        (nn.Sequential(nn.Linear(3, 3, dtype=torch.complex64)), ["'0'", "torch.complex64"]),
        (nn.ReLU(), ["ReLU"]),
        (nn.Sequential(nn.Linear(3, 20_000)), ["'conv1'", "layers: 0"]),
    ],
)
def test_models_that_are_refused(model: nn.Module, facts: list[str]) -> None:
    layers = ["conv1"] if "'conv1'" in facts else None
    with refused(LayerError, *facts):
        input_metrics(model, [torch.randn(2, 3)], layers=layers)
    with refused(LayerError, *facts):
        fit_in_order(model, [torch.randn(2, 3)], lambda name, weight, metric: weight, layers=layers)


def test_covariances_that_are_too_large() -> None:
    with refused(LayerError, "layer ''", "each output channel"):
        input_metrics(nn.Conv2d(512, 512, 3, groups=2), [])
    with refused(LayerError, 268468225):
        input_metrics(nn.Linear(16385, 1), [])


NOTHING = Images(torch.zeros(0, 3, 5, 6, dtype=torch.uint8), torch.zeros(0, dtype=torch.int64), ("a",), "none")


@pytest.mark.parametrize(
    ("batches", "settings", "facts"),
    [
        ([], {}, ["no batches"]),
        ([torch.randn(1, 3), torch.zeros(0, 3)], {}, ["batch 2", "(0, 3)"]),
        ([[]], {}, ["batch 1", "list"]),
        (torch.randn(2, 3), {}, ["tensor", "[x]"]),
        ([torch.randn(1, 3)], {"batch_size": 2}, ["batch_size"]),
        (some_images(), {}, ["batch_size", "some"]),
        (NOTHING, {"batch_size": 2}, ["no batches"]),
    ],
)
def test_batches_that_are_refused(batches: Any, settings: dict[str, Any], facts: list[str]) -> None:
    model = nn.Linear(3, 2)
    with refused(DataError, *facts):
        input_metrics(model, batches, **settings)
    with refused(DataError, *facts):
        fit_in_order(model, batches, lambda name, weight, metric: weight, **settings)
    assert model.training


# size

LARGE = """
import pathlib, torch
from torch import nn
from tnalgebra import input_metrics
torch.set_num_threads(1)
layer = nn.Conv2d(512, 512, 3, padding=1, bias=False)
batches = (torch.randn(16, 512, 8, 8) for _ in range(2))
(metric,) = input_metrics(layer, batches, dtype=torch.float64).values()
assert metric.factor().shape == (4608, 4608)
assert metric.squared(layer.weight, ("out", "in", "kh", "kw")) > 0
status = pathlib.Path("/proc/self/status").read_text()
print(1024 * int(status.partition("VmHWM:")[2].split()[0]))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss begins with what the parent had when it forked")
def test_a_large_layer_takes_less_than_2_gib() -> None:
    """With torch itself, the covariance, its check and its Cholesky factor."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", LARGE], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 2 * 2**30


def cut_in_half(weight: Tensor, metric: Metric | None) -> Tensor:
    """The kernel of half the parameters, cut out | in kh kw, that is best in the metric (its closed form)."""
    matrix = weight.double().flatten(1)
    rank = matrix.numel() // (2 * sum(matrix.shape))
    if metric is None:
        U, S, V = truncated_svd(matrix, rank)
        return ((U * S) @ V).reshape(weight.shape).to(weight.dtype)
    labels = ("out", "in", "kh", "kw")[: weight.ndim]
    factor = metric.factor()
    U, S, V = truncated_svd(metric.target(weight.double(), labels).flatten(1) @ factor, rank)
    halved = torch.linalg.solve_triangular(factor, (U * S) @ V, upper=False, left=False)
    return halved.reshape(weight.shape).to(weight.dtype)


@pytest.mark.slow
def test_resnet20_at_half_its_parameters(cifar10_folder: Path, resnet20_weights: Path) -> None:
    """Without retraining: real inputs are worth points of top-1, and making up for earlier layers some more."""
    model = build_model("resnet20", classes=10, channels=3)
    load_weights(model, resnet20_weights)
    calibration = load_images(cifar10_folder, "train").subset(128, seed=0)
    test = load_images(cifar10_folder, "test").subset(500, seed=0)
    layers = [name for name, module in kernel_layers(model).items() if name.startswith("layer")]
    metrics = input_metrics(model, calibration, layers=layers, batch_size=128)
    weights = {name: kernel_layers(model)[name].weight.detach() for name in layers}
    fits = {
        "plain": {name: cut_in_half(weight, None) for name, weight in weights.items()},
        "metric": {name: cut_in_half(weight, metrics[name]) for name, weight in weights.items()},
        "in order": fit_in_order(
            model, calibration, lambda name, weight, metric: cut_in_half(weight, metric), layers=layers, batch_size=128
        ),
    }
    top1 = {}
    for name, fitted in fits.items():
        other = copy.deepcopy(model)
        other.load_state_dict({f"{layer}.weight": weight for layer, weight in fitted.items()}, strict=False)
        top1[name] = accuracy(other, test, batch_size=128)
    # 0.164, 0.602, 0.834 where this was written; 0.917 is the whole network's
    assert top1["plain"] + 0.2 < top1["metric"] < top1["in order"] - 0.1, top1
    assert top1["in order"] > 0.8


# Several inputs ------------------------------------------------------------------------------------------------------


class Masked(nn.Module):
    """The mask has a default, or none."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.c = nn.Conv2d(4, 4, 3)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        return torch.as_tensor(self.c(x if mask is None else x * mask))


class MaskNeeded(Masked):
    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        return super().forward(x, mask)


PAIR = torch.randn(5, 4, 7, 7, generator=torch.Generator().manual_seed(1)), torch.linspace(0, 1, 7)
NAMED = dict(zip(("x", "mask"), PAIR, strict=True))


def output_error(model: nn.Module, batches: Any, **settings: Any) -> float | None:
    request = {"c": ("tucker2", 2)}
    return convert(model, request, calibration=batches, progress=False, **settings)[1]["c"].output_error


@pytest.mark.parametrize(
    ("kind", "example", "batches"),
    [
        (Masked, PAIR, [PAIR]),
        (Masked, PAIR, [list(PAIR)]),
        (Masked, (PAIR[0], {"mask": PAIR[1]}), [(PAIR[0], {"mask": PAIR[1]})]),
        (Masked, NAMED, [(PAIR, torch.zeros(5))]),
        (Masked, None, [(PAIR, torch.zeros(5))]),
        (Masked, None, [(NAMED, torch.zeros(5))]),
        (Masked, None, [(PAIR,)]),
        (Masked, None, [NAMED]),
        (Masked, None, NAMED),
        (MaskNeeded, None, [PAIR]),
        (MaskNeeded, None, [NAMED]),
    ],
)
def test_all_inputs_of_a_batch_are_used(kind: type[Masked], example: Any, batches: Any) -> None:
    wanted = output_error(Masked(), [PAIR[0] * PAIR[1]])
    assert wanted != pytest.approx(output_error(Masked(), [PAIR[0]]), rel=1e-3)
    assert output_error(kind(), batches, example=example) == pytest.approx(wanted, rel=1e-5)
    budget = convert(kind(), {"c": "tucker2"}, size="parameters 0.6", example=example, calibration=batches)
    measured = convert(
        kind(), {"c": "tucker2"}, size="parameters 0.6", example=example, calibration=batches, held_out=batches
    )
    assert budget[1].converted == measured[1].converted == ("c",)
    assert output_error(kind(), batches, example=example, sequential=True) == pytest.approx(wanted, rel=1e-5)


def test_the_second_entry_of_a_pair_is_labels_otherwise() -> None:
    for batch in (PAIR, [PAIR[0], "labels"]):
        assert output_error(Masked(), [batch]) == output_error(Masked(), [PAIR[0]])
    metrics = input_metrics(MaskNeeded(), [PAIR])
    assert metrics.keys() == {"c"}


def test_batches_that_are_not_inputs_of_the_model() -> None:
    for batch, example in ((PAIR, NAMED), ((*PAIR, PAIR[0]), PAIR)):
        with refused(DataError, "batch 1", "not all inputs that the example has"):
            output_error(Masked(), [batch], example=example)
    with refused(LayerError, "does not run on batch 1", "'mask'"):
        output_error(MaskNeeded(), [PAIR[0]])
    with refused(LayerError, "does not run on batch 2", "(5, 3, 7, 7)"):
        input_metrics(Masked(), [PAIR[0], PAIR[0][:, :3]])
    with refused(DataError, "one mapping is given"):
        input_metrics(Masked(), NAMED)
