"""Layers that stay dense, and why; conversions that are refused: the model is as it was."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

from tests.conversion_cases import EXACT, SHAPE, assert_same, network, state
from tests.refusals import refused
from tnalgebra import nn as layers
from tnalgebra.checkpoint import load, save
from tnalgebra.errors import LayerError, NotationError, RankError, RuleError
from tnalgebra.fitting.ranks import KeepFraction
from tnalgebra.model.adapt import adapt
from tnalgebra.model.convert import convert

# Layers that stay dense ----------------------------------------------------------------------------------------------


def test_a_layer_that_would_not_get_smaller_stays() -> None:
    model = network()
    _, report = convert(model, {"3": ("out | in kh kw", EXACT), "5": ("out | in kh kw", 2)})
    assert report["3"].reason == f"break-even: {10 * (10 + 72):,} parameters decomposed, 720 dense"
    _, report = convert(model, {"3": ("out | in kh kw", EXACT)}, allow_larger=True)
    assert report["3"].parameters_after == 10 * (10 + 72) + 10


def test_computed_weights_stay() -> None:
    model = nn.Sequential(*(nn.Linear(6, 6) for _ in range(5)))
    parametrizations.weight_norm(model[0])
    with pytest.warns(FutureWarning):
        weight_norm(model[1])
    spectral_norm(model[2])
    model[3].forward = lambda x: x
    _, report = convert(model, {"*": ("out | in", 1)})
    assert report.converted == ("4",)
    assert report["0"].reason == "its weight is parametrised: remove_parametrizations first"
    assert report["1"].reason.startswith("its weight is computed from weight_g, weight_v")
    assert report["2"].reason.startswith("its weight is computed from weight_orig")
    assert report["3"].reason == "its forward is replaced on the object itself"


@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("example", [None, (4, 6)])
def test_adapted_layers_stay(example: tuple[int, ...] | None, merged: bool) -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6)).eval()
    _, adapters = adapt(model, {"0": "LoRA"}, 1, tune=False)
    if merged:
        adapters.merge()
    _, report = convert(model, {nn.Linear: ("out | in", 1)}, example=example, tune=False)
    assert report.converted == ("2",)
    assert report["0.base"].reason.startswith("it has adapters")
    with refused(LayerError, "'0.base'", "adapters"):
        convert(model, {"0.*": ("out | in", 1)}, example=example, tune=False)
    adapters.remove()
    _, report = convert(model, {"0": ("out | in", 1)}, example=example, tune=False)
    assert report.converted == ("0",)


def test_what_a_layer_holds_besides_is_no_reason_to_lose_it() -> None:
    model = nn.Sequential(*(nn.Linear(6, 6) for _ in range(4)))
    model[0].register_buffer("scale", torch.ones(6))
    model[1].register_parameter("gain", nn.Parameter(torch.ones(6)))
    model[2].add_module("adapter", nn.ReLU())
    _, report = convert(model, {"*": ("out | in", 1)})
    assert report.converted == ("3",)
    for name, held in zip("012", ("scale", "gain", "adapter"), strict=True):
        assert report[name].reason == f"it holds {held}, which the new layer would not have"


class _Scaled(nn.Module):
    """Multiplies by a plain attribute of its layer."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a = nn.Linear(6, 6)
        self.a.scale = 3.0

    def forward(self, x: Any) -> Any:
        return self.a(x) * getattr(self.a, "scale", 1.0)


def test_plain_attributes_of_a_layer_are_carried_over(tmp_path: Path) -> None:
    model: Any = _Scaled()
    changed: Any
    changed, report = convert(model, {"a": ("out | in", 6)}, inplace=False, allow_larger=True, example=(2, 6))
    assert report.converted == ("a",)
    x = torch.randn(2, 6)
    torch.testing.assert_close(changed(x), model(x), rtol=1e-4, atol=1e-5)
    for layer in (changed.a.to_dense(), copy.deepcopy(changed).a.to_dense()):
        assert layer.scale == 3.0
    assert not {*vars(changed.a.to_dense())} ^ {*vars(model.a)}
    save(changed, tmp_path / "model.safetensors")
    assert torch.equal(load(tmp_path / "model.safetensors", into=_Scaled())(x), changed(x))


@pytest.mark.parametrize("name", ["L", "plan", "kernel", "extra_repr"])
def test_an_attribute_that_a_new_layer_has_too_keeps_the_layer_dense(name: str) -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    model[0].__dict__[name] = str
    _, report = convert(model, {"*": ("out | in", 1)})
    assert report.converted == ("1",)
    assert f"an attribute of its own, '{name}'" in report["0"].reason
    assert type(model[0]) is nn.Linear


def test_a_forward_of_a_convolution_that_is_replaced_on_the_object_stays() -> None:
    model = nn.Sequential(nn.Conv2d(6, 6, 3), nn.Conv2d(6, 6, 3))
    model[0]._conv_forward = lambda x, weight, bias: x
    _, report = convert(model, {"*": ("out | in kh kw", 1)})
    assert report.converted == ("1",)
    assert report["0"].reason == "its forward is replaced on the object itself"


def test_types_of_one_byte_stay() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    model[0].weight = nn.Parameter(model[0].weight.detach().to(torch.float8_e4m3fn), requires_grad=False)
    _, report = convert(model, {"*": ("out | in", 1)})
    assert report.converted == ("1",)
    assert report["0"].reason == "its weight is torch.float8_e4m3fn"


def test_an_example_of_a_model_without_elements() -> None:
    model = nn.Sequential(nn.Linear(6, 6)).to("meta")
    with refused(LayerError, "meta device"):
        convert(model, {"*": ("out | in", 1)}, example=(2, 6))


def test_hooks_of_the_state_are_refused_by_name() -> None:
    def rename(module: nn.Module, state: dict[str, Any], *rest: Any) -> None: ...

    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    model[0]._register_state_dict_hook(rename)
    _, report = convert(model, {"*": ("out | in", 1)})
    assert report["0"].reason == ("it has state dict hooks (rename), which know its parameters: remove them first")


def test_shared_parameters_stay_and_shared_modules_stay_shared() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6))
    model[1].bias = model[0].bias
    model.append(model[2])
    x = torch.randn(5, 6)
    _, report = convert(model, {"*": ("out | in", 2)}, example=x, candidates="factored")
    assert report["0"].reason == "its bias is shared with 1.bias"
    assert model[2] is model[3]
    assert report.converted == ("2",)
    assert report["3"].aliases == ("3",)
    assert report["2"].multiply_adds == 2 * 5 * 36
    assert report["2"].multiply_adds_after == 2 * 5 * 24
    with refused(LayerError, "'0'", "1.bias"):
        convert(model, {"0": ("out | in", 2)})


def test_layers_whose_weight_is_read_elsewhere_stay() -> None:
    class Own(nn.MultiheadAttention):
        def forward(self, *inputs: Any, **options: Any) -> Any:
            return super().forward(*inputs, **options)

    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    encoder.self_attn = Own(8, 2, batch_first=True).eval()
    model = nn.Sequential(encoder, nn.Linear(8, 8))
    x = torch.randn(2, 3, 8)
    with torch.no_grad():
        before = encoder(x)
    _, report = convert(model, {nn.Linear: ("out | in", 2)}, example=x)
    assert report["0.self_attn.out_proj"].reason.endswith("cannot be taken apart: Own has a forward of its own")
    assert report["0.linear1"].reason == "TransformerEncoderLayer reads its weight without calling it"
    assert report.converted == ("1",)
    with torch.no_grad():
        torch.testing.assert_close(model[0](x), before)
    with refused(LayerError, "Own has a forward of its own"):
        convert(model, {nn.MultiheadAttention: ("out | in", 2)})


class Peeking(nn.Module):
    """Reads a weight after it has called the layer."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.idle = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.first(x) + nn.functional.linear(x, self.second(x).mean() * self.second.weight)


def test_the_example_finds_weights_that_are_read() -> None:
    model = Peeking().train()
    before = state(model)
    _, report = convert(model, {"second": None, "*": ("out | in", 2)}, example=(4, 6), inplace=False)
    assert report.converted == ("first",)
    assert report["idle"].reason.startswith("never called on the example")
    with refused(LayerError, "example", "weight", "at layer", "{'second': None, ...}"):
        convert(model, {"*": ("out | in", 2)}, example=(4, 6))
    assert_same(before, state(model))


# All or nothing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("patterns", "error", "facts"),
    [
        ({"4": "cp"}, LayerError, ["'4'", "ReLU"]),
        ({nn.Conv3d: "cp"}, LayerError, ["Conv3d", "Conv2d, Linear"]),
        ({3: "cp"}, RuleError, ["3"]),
        ({}, RuleError, ["no pattern"]),
        (["*"], RuleError, ["list"]),
        ({"3": "tuker2"}, RuleError, ["'tuker2'", "tucker2"]),
        ({"3": ("parameters 0.5", "cp")}, RuleError, ["'3'", "(rewrite, size)", "('cp', 'parameters 0.5')"]),
        ({"3": "split_fuse"}, RuleError, ["'split_fuse'"]),
        ({"3": "K[out in kh kw] => A[out"}, NotationError, ["A[out"]),
        ({"3": 0.5}, RuleError, ["'3'", 0.5]),
        ({"3": ("cp", 2, 3)}, RuleError, ["'3'", "('cp', 2, 3)"]),
        ({"3": ("cp", 0.5)}, RankError, ["'3'", "'keep 0.5'"]),
        ({"3": ("cp", True)}, RankError, ["True"]),
        ({"3": ("cp", "multiply-adds 0.5")}, RankError, ["'3'", "no meaning", "'parameters 0.3'"]),
        ({"3": ("cp", {"r": 2, "starts": 1})}, RuleError, ["'starts'", "'size'"]),
        ({"3": ("cp", {"size": 2, "strats": 1})}, RuleError, ["'3'", "'strats'", "near", "starts"]),
        ({"3": []}, RuleError, ["'3'", "nothing"]),
        ({"3": ["cp", None]}, RuleError, ["'3'", "None"]),
        ({"3": ([("cp", 2)], 3)}, RuleError, ["'3'", "twice"]),
        ({"3": "cp"}, LayerError, ["'3'", "no size", "'r'"]),
        ({"3": ("cp", {"z": 2})}, LayerError, ["'3'", "'z'"]),
        ({"0": ("out | in kh kw", 2), "3": ("out | in", 2)}, LayerError, ["'3'", "out | in"]),
        ({"*": ("out | in kh kw", {"r": 99})}, LayerError, ["4 layers", "'*'", "0: rank 99", "and 1 more"]),
        ({nn.Conv2d: ("cp", KeepFraction(0.5))}, LayerError, ["3 layers", "<Conv2d>", "'r'", "singular values"]),
        (lambda name, layer: 3.5, RuleError, ["'0'", 3.5]),
    ],
)
def test_what_is_not_a_conversion(patterns: Any, error: type[Exception], facts: list[object]) -> None:
    model = network()
    before = state(model)
    with refused(error, *facts):
        convert(model, patterns)
    assert_same(before, state(model))


def test_near_names_and_what_is_inside() -> None:
    model = nn.ModuleDict({"layer1": nn.ModuleDict({"conv1": nn.Conv2d(3, 4, 3), "conv2": nn.Conv2d(4, 4, 3)})})
    with refused(LayerError, "'layer1.conv3'", "near", "layer1.conv2"):
        convert(model, {"layer1.conv3": "cp"})
    with refused(LayerError, "layer1.conv1", "'layer1.*'"):
        convert(model, {"layer1": "cp"})


def test_models_that_cannot_be_converted() -> None:
    cut: Any = ("out | in kh kw", 2)
    lazy = nn.Sequential(nn.LazyConv2d(8, 3), nn.Conv2d(8, 9, 3))
    cases: tuple[tuple[Any, Any, list[str]], ...] = (
        (nn.Linear(3, 4), None, ["one layer"]),
        (lazy, SHAPE, ["'0.weight'", "run the model once"]),
        (network().to("meta"), None, ["meta device"]),
        (nn.ReLU(), None, ["ReLU"]),
        ("resnet", None, ["str", "torch.nn.Module"]),
        (network(), (4, 5, 9, 8), ["example"]),
    )
    for model, example, facts in cases:
        with refused(LayerError, *facts):
            convert(model, {"*": cut}, example=example)


def test_a_failure_half_way_restores(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    model[3].register_forward_hook(lambda *_: None)
    before = state(model)
    put, done = nn.Sequential.__setattr__, []

    def fail(self: nn.Module, name: str, value: Any) -> None:
        if isinstance(value, layers.KernelLayer):
            done.append(name)
            if len(done) == 2:
                raise MemoryError
        put(self, name, value)

    monkeypatch.setattr(nn.Sequential, "__setattr__", fail)
    with pytest.raises(MemoryError):
        convert(model, {nn.Conv2d: ("out | in kh kw", 2)})
    assert done == ["0", "3"]
    assert_same(before, state(model))


# Layers that a converted model does not call -------------------------------------------------------------------------


class _ByClass(nn.Module):
    """Calls its children of one class."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.a, self.b = nn.Conv2d(6, 6, 3), nn.Conv2d(6, 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        for child in self.children():
            if isinstance(child, nn.Conv2d):
                x = child(x)
        return x


class _InAList(_ByClass):
    """Calls its layers from a list, which knows nothing of an exchange."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = [self.a, self.b]

    def forward(self, x: Tensor) -> Tensor:
        return self.steps[1](self.steps[0](x))


@pytest.mark.parametrize("kind", [_ByClass, _InAList])
@pytest.mark.parametrize("pattern", ["a", "*"])
def test_a_layer_that_the_converted_model_does_not_call_is_named(kind: type[nn.Module], pattern: str) -> None:
    model = kind()
    before = [*model.modules()]
    with refused(LayerError, "does not call the layer 'a'", "isinstance(module, (torch.nn.Conv2d, tn.nn.Conv2d))"):
        convert(model, {pattern: ("tucker2", 2)}, example=(2, 6, 9, 9))
    assert all(one is two for one, two in zip(model.modules(), before, strict=True))
    assert not any(one._forward_hooks for one in model.modules())


def test_a_route_that_depends_on_numbers_may_lead_elsewhere() -> None:
    class Routed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.gate, self.expert = nn.Linear(4, 4, bias=False), nn.Linear(4, 4)
            self.gate.weight.data = torch.tensor([[2.0, 0, 0, 0], [0, -1, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])

        def forward(self, x: Tensor) -> Tensor:
            score = self.gate(x)
            return self.expert(x) if score.sum() < 0 else score

    x = torch.tensor([[1.0, 3.0, 0.0, 0.0]])  # the score of rank 1 is 2, and that of the whole matrix is -1
    model, report = convert(Routed(), {"*": ("out | in", 1)}, example=x)
    assert report.converted == ("gate", "expert")
    assert isinstance(model.expert, layers.Linear)
