"""Layers that stay dense, and why; conversions that are refused: the model is as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm, weight_norm

from tests.conversion_cases import EXACT, SHAPE, assert_same, network, state
from tnalgebra import nn as layers
from tnalgebra.errors import LayerError, NotationError, RankError, RuleError
from tnalgebra.fitting.ranks import KeepFraction
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


def test_what_a_layer_holds_besides_is_no_reason_to_lose_it() -> None:
    model = nn.Sequential(*(nn.Linear(6, 6) for _ in range(4)))
    model[0].register_buffer("scale", torch.ones(6))
    model[1].register_parameter("gain", nn.Parameter(torch.ones(6)))
    model[2].add_module("adapter", nn.ReLU())
    _, report = convert(model, {"*": ("out | in", 1)})
    assert report.converted == ("3",)
    for name, held in zip("012", ("scale", "gain", "adapter"), strict=True):
        assert report[name].reason == f"it holds {held}, which the new layer would not have"


def test_types_of_one_byte_stay() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    model[0].weight = nn.Parameter(model[0].weight.detach().to(torch.float8_e4m3fn), requires_grad=False)
    _, report = convert(model, {"*": ("out | in", 1)})
    assert report.converted == ("1",)
    assert report["0"].reason == "its weight is torch.float8_e4m3fn"


def test_an_example_of_a_model_without_elements() -> None:
    model = nn.Sequential(nn.Linear(6, 6)).to("meta")
    with pytest.raises(LayerError, match="the model is on the meta device"):
        convert(model, {"*": ("out | in", 1)}, example=(2, 6))


def test_hooks_of_the_state_are_refused_by_name() -> None:
    def rename(module: nn.Module, state: dict[str, Any], *rest: Any) -> None: ...

    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6))
    model[0]._register_state_dict_hook(rename)
    _, report = convert(model, {"*": ("out | in", 1)})
    assert report["0"].reason == ("it has state dict hooks (rename), which know its parameters: remove them first")


def test_shared_parameters_stay_and_shared_modules_stay_shared() -> None:
    model = nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6))
    model[1].weight = model[0].weight
    model.append(model[2])
    x = torch.randn(5, 6)
    _, report = convert(model, {"*": ("out | in", 2)}, example=x, candidates="factored")
    assert report["0"].reason == "its weight is shared with 1.weight"
    assert model[2] is model[3]
    assert report.converted == ("2",)
    assert report["3"].aliases == ("3",)
    assert report["2"].multiply_adds == 2 * 5 * 36
    assert report["2"].multiply_adds_after == 2 * 5 * 24
    with pytest.raises(LayerError, match=r"layer '0' cannot be decomposed\n  because: its weight is shared with 1"):
        convert(model, {"0": ("out | in", 2)})


def test_layers_whose_weight_is_read_elsewhere_stay() -> None:
    encoder = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True).eval()
    model = nn.Sequential(encoder, nn.Linear(8, 8))
    x = torch.randn(2, 3, 8)
    with torch.no_grad():
        before = encoder(x)
    _, report = convert(model, {nn.Linear: ("out | in", 2)}, example=x)
    assert report["0.self_attn.out_proj"].reason == "MultiheadAttention reads its weight without calling it"
    assert report["0.linear1"].reason == "TransformerEncoderLayer reads its weight without calling it"
    assert report.converted == ("1",)
    with torch.no_grad():
        torch.testing.assert_close(model[0](x), before)


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
    with pytest.raises(LayerError, match=r"(?s)the converted model does not run on the example.*weight"):
        convert(model, {"*": ("out | in", 2)}, example=(4, 6))
    assert_same(before, state(model))


# All or nothing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("patterns", "error", "text"),
    [
        ({"4": "cp"}, LayerError, r"no kernel layer is called '4'\n  modules of that name: ReLU"),
        ({"conv": "cp"}, LayerError, "no kernel layer is called 'conv'"),
        ({nn.Conv3d: "cp"}, LayerError, r"no kernel layer is a Conv3d\n  kinds: Conv2d, Linear"),
        ({3: "cp"}, RuleError, "3 is no pattern"),
        ({}, RuleError, "there is no pattern"),
        (["*"], RuleError, "layers are chosen by a list"),
        ({"3": "tuker2"}, RuleError, r"there is no rule 'tuker2'\n  similar: tucker2"),
        ({"3": "split_fuse"}, RuleError, "'split_fuse' is an exact rule"),
        ({"3": "K[out in kh kw] => A[out"}, NotationError, r"A\[out"),
        ({"3": 0.5}, RuleError, r"the pattern '3' is to be rewritten by 0\.5"),
        ({"3": ("cp", 2, 3)}, RuleError, "the pattern '3' is to be rewritten by"),
        ({"3": ("cp", 0.5)}, RankError, r"(?s)the ranks are 0\.5.*KeepFraction\(0\.5\) or ParameterBudget"),
        ({"3": ("cp", True)}, RankError, "the ranks are True"),
        ({"3": ("cp", {"r": 2, "starts": 1})}, RuleError, "ranks stand beside the choice 'starts'"),
        ({"3": ("cp", {"ranks": 2, "strats": 1})}, RuleError, r"'3': there is no choice 'strats'\n  near: +starts"),
        ({"3": []}, RuleError, "a list of rewrites holds nothing"),
        ({"3": ["cp", None]}, RuleError, "a list of rewrites holds None"),
        ({"3": ([("cp", 2)], 3)}, RuleError, "choices are given twice"),
        ({"3": "cp"}, LayerError, "(?s)layer '3' cannot be decomposed.*rank"),
        ({"3": ("cp", {"z": 2})}, LayerError, "(?s)layer '3' cannot be decomposed.*no bond 'z'"),
        ({"0": ("out | in kh kw", 2), "3": ("out | in", 2)}, LayerError, "(?s)'3' cannot.*does not fit"),
        ({"*": ("out | in kh kw", 99)}, LayerError, r"(?s)none of the 4 layers of '\*'.*0: rank 99.*and 1 more$"),
        (
            {"*": ("tucker2", KeepFraction(0.5))},
            LayerError,
            r"(?s)none of the 4 layers of '\*' can be.*one rank.*bonds a b\n +fix: ranks={'a': \.\.\., 'b': \.\.\.}$",
        ),
        (lambda name, layer: 3.5, RuleError, "layer '0' is to be rewritten by 3.5"),
    ],
)
def test_what_is_no_conversion(patterns: Any, error: type[Exception], text: str) -> None:
    model = network()
    before = state(model)
    with pytest.raises(error, match=text):
        convert(model, patterns)
    assert_same(before, state(model))


def test_near_names_and_what_is_inside() -> None:
    model = torchvision.models.resnet18(num_classes=3)
    with pytest.raises(LayerError, match=r"(?s)'layer1.0.conv3'\n  near: +layer1.0.conv"):
        convert(model, {"layer1.0.conv3": "cp"})
    with pytest.raises(LayerError, match=r"(?s)inside it: layer3.0.conv1.*fix: +'layer3.\*'"):
        convert(model, {"layer3": "cp"})


def test_what_is_no_model() -> None:
    with pytest.raises(LayerError, match="the model is one layer itself"):
        convert(nn.Linear(3, 4), {"*": "cp"})
    with pytest.raises(LayerError, match=r"'0\.weight' has no value yet\n  fix: run the model once"):
        convert(nn.Sequential(nn.LazyConv2d(8, 3), nn.Conv2d(8, 9, 3)), {"1": ("out | in kh kw", 2)}, example=SHAPE)
    with pytest.raises(
        LayerError, match=r"because: its weight is on the meta device\n  fix: +None for what stays dense"
    ):
        convert(network().to("meta"), {"*": ("out | in kh kw", 2)})
    with pytest.raises(LayerError, match="ReLU has no kernel"):
        convert(nn.ReLU(), {"*": "cp"})
    with pytest.raises(LayerError, match="does not run on the example"):
        convert(network(), {"3": ("cp", 2)}, example=(4, 5, 9, 8))


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
