"""Whole models converted: what changes, what stays, what is refused; optimizers and batch normalisation after it."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn.utils import parametrizations, spectral_norm, weight_norm
from torch.utils.flop_counter import FlopCounterMode

from tnalgebra import nn as layers
from tnalgebra.calibration import input_metrics
from tnalgebra.compression import plan_budget
from tnalgebra.conversion import convert
from tnalgebra.conversion_report import Report
from tnalgebra.decompositions import cut, tucker2
from tnalgebra.errors import DataError, LayerError, NotationError, RankError, RuleError
from tnalgebra.layers import kernel_layers
from tnalgebra.optimizers import update_optimizer
from tnalgebra.ranks import KeepFraction, MultiplyAddsBudget, ParameterBudget, RelativeError
from tnalgebra.running_statistics import recalibrate_batch_norm

EXACT = KeepFraction(1.0)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 10, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(10, 12, 3),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(12, 7),
    ).eval()


SHAPE = (4, 3, 9, 8)


def inputs(count: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(SHAPE, generator=generator) for _ in range(count)]


def count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def state(model: nn.Module) -> dict[str, Any]:
    """Everything that a failed conversion must leave: objects, values, modes, hooks."""
    return {
        "modules": [(name, id(module), module.training) for name, module in model.named_modules()],
        "hooks": [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.modules()],
        "parameters": [(name, id(p), p.requires_grad) for name, p in model.named_parameters()],
        "values": {name: value.clone() for name, value in model.state_dict().items()},
    }


def assert_same(before: dict[str, Any], after: dict[str, Any]) -> None:
    assert {k: v for k, v in before.items() if k != "values"} == {k: v for k, v in after.items() if k != "values"}
    assert before["values"].keys() == after["values"].keys()
    assert all(torch.equal(value, after["values"][name]) for name, value in before["values"].items())


# What is converted ------------------------------------------------------------------------------------------


def test_each_layer_follows_the_first_pattern_that_fits() -> None:
    model = network()
    whole = count(model)
    found, report = convert(
        model,
        {"5": None, "3": ("cp", {"ranks": {"r": 3}, "starts": 1, "sweeps": 3}), nn.Conv2d: "out | in kh kw", "8": "cp"}
        | {nn.Conv2d: (cut("out | in kh kw"), 2), "8": ("out | in", {"r": 2})},
    )
    assert found is model
    assert report.converted == ("0", "3", "8")
    assert [report[name].rule for name in ("0", "3", "8")] == ["out | in kh kw", "cp", "out | in"]
    assert report["3"].ranks == {"r": 3}
    assert report["5"].rule is None
    assert report["5"].reason == "as wished"
    assert report["3"].also == ("<Conv2d>",)
    assert (report.parameters, report.parameters_after) == (whole, count(model))
    assert report["0"].parameters_after == 2 * (8 + 27) + 8
    assert report["0"].multiply_adds is None
    for name in report.converted:
        layer = model.get_submodule(name)
        assert isinstance(layer, layers.KernelLayer)
        assert report[name].relative_error == pytest.approx(layer.relative_error)
    assert model(inputs()[0]).shape == (4, 7)


def test_a_function_chooses() -> None:
    model = network()
    _, report = convert(model, lambda name, module: ("out | in", 2) if isinstance(module, nn.Linear) else None)
    assert report.converted == ("8",)
    assert report["0"].reason == "no pattern"


def test_of_several_rewrites_the_best_is_taken() -> None:
    cuts = ["out | in kh kw", "in | out kh kw", "out kh | in kw"]
    errors = {}
    for one in cuts:
        _, report = convert(network(), {"3": (one, ParameterBudget(0.5))})
        errors[one] = report["3"].relative_error
    for wish in ((cuts, ParameterBudget(0.5)), [(one, ParameterBudget(0.5)) for one in cuts]):
        _, report = convert(network(), {"3": wish})
        assert report["3"].rule == min(errors, key=lambda one: errors[one] or 0)


def test_a_copy_is_converted_and_the_model_stays() -> None:
    model = network()
    before = state(model)
    found, report = convert(
        model,
        {
            "*": ("out | in kh kw", 2),
        },
        inplace=False,
    )
    assert found is not model
    assert_same(before, state(model))
    assert report.converted == ("0", "3", "5")
    assert report["8"].reason.startswith("the cut 'out | in kh kw' does not fit")


def test_modes_types_hooks_and_frozen_weights_go_over() -> None:
    model = network().double()
    model[0].train()
    model[3].requires_grad_(False)
    model[5].bias.requires_grad_(False)
    bias = model[5].bias
    seen: list[str] = []
    handle = model[3].register_forward_hook(lambda module, args, output: seen.append("after"))
    model[3].register_forward_pre_hook(lambda module, args, kwargs: seen.append("before"), with_kwargs=True)
    _, report = convert(model, {nn.Conv2d: ("out | in kh kw", 2)})
    assert report.converted == ("0", "3", "5")
    assert [model[n].training for n in (0, 3, 5)] == [True, False, False]
    assert {p.dtype for p in model.parameters()} == {torch.float64}
    assert not any(p.requires_grad for p in model[3].parameters())
    assert {name: p.requires_grad for name, p in model[5].named_parameters()}.pop("bias") is False
    assert sum(p.requires_grad for p in model[5].parameters()) == 2
    assert model[5].bias is bias
    x = inputs()[0].double()
    model(x)
    assert seen == ["before", "after"]
    handle.remove()
    model(x)
    assert seen == ["before", "after", "before"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_model_of_another_type(dtype: torch.dtype) -> None:
    model = network().to(dtype)
    x = inputs()[0].to(dtype)
    before = model(x)
    convert(model, {"*": None} | {nn.Conv2d: None}, example=x)
    _, report = convert(model, {"?": (["out | in kh kw", "out | in"], EXACT)}, allow_larger=True, example=x)
    assert len(report.converted) == 4
    assert model(x).dtype == dtype
    error = float((torch.dist(model(x), before) / before.norm()).detach())
    assert error < (1e-12 if dtype == torch.float64 else 0.05)  # rounding of float64; of bfloat16, layer by layer


def test_multiply_adds_are_counted_at_the_example() -> None:
    model = network()
    _, report = convert(model, {"*": (["out | in kh kw", "out | in"], 2)}, example=SHAPE, candidates="factored")
    assert report["0"].multiply_adds == 4 * 7 * 6 * 8 * 27
    assert report["0"].multiply_adds_after == 4 * 7 * 6 * 2 * (8 + 27)
    assert report["8"].multiply_adds == 4 * 12 * 7
    assert report["8"].multiply_adds_after == 4 * 2 * (12 + 7)
    assert report.multiply_adds == sum(row.multiply_adds or 0 for row in report.rows)
    assert "multiply-adds kept" in str(report)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv1d(6, 8, 3, stride=2, groups=2), (2, 6, 11)),
        (nn.Conv2d(4, 6, (3, 2), dilation=2, padding_mode="circular", padding=1), (2, 4, 9, 8)),
        (nn.Conv3d(2, 3, 2), (1, 2, 5, 4, 3)),
        (nn.ConvTranspose2d(4, 6, 3, stride=2, groups=2, output_padding=1), (2, 4, 5, 6)),
        (nn.Linear(6, 8), (2, 3, 6)),
        (nn.Conv2d(4, 6, 3), (4, 9, 8)),
    ],
)
def test_dense_counts_are_those_of_torch(layer: nn.Module, shape: tuple[int, ...]) -> None:
    model = nn.Sequential(layer)
    with FlopCounterMode(display=False) as counter:
        model(torch.randn(shape))
    _, report = convert(model, {"0": None}, example=shape)
    assert report["0"].multiply_adds == counter.get_total_flops() // 2


def test_calls_of_several_shapes_are_counted_in_proportion() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x).mean() + self.layer(x[:1])

    _, report = convert(Twice(), {"*": ("out | in", 1)}, example=(3, 6), candidates="factored")
    assert report["layer"].multiply_adds == 4 * 48
    assert report["layer"].multiply_adds_after == 4 * 14


def test_calibrated_fits_serve_the_output_better() -> None:
    reference = network()
    wanted = torch.cat([reference(x) for x in inputs(6)])
    found = {}
    for name, settings in {
        "frobenius": {},
        "input": {"calibration": inputs(6)},
        "sequential": {"calibration": inputs(6), "sequential": True},
    }.items():
        model, report = convert(network(), {"*": (["out | in kh kw", "out | in"], ParameterBudget(0.5))}, **settings)
        assert (report["3"].output_error is None) == (name == "frobenius")
        with torch.no_grad():
            found[name] = float(torch.dist(torch.cat([model(x) for x in inputs(6)]), wanted))
    assert found["input"] < found["frobenius"]
    assert found["sequential"] < found["input"]


# Budgets ----------------------------------------------------------------------------------------------------


def test_a_budget_of_parameters_is_shared_as_plan_budget_shares_it() -> None:
    model, rewrite = network(), tucker2("out in kh kw")
    (wanted,) = plan_budget(model, {name: [rewrite] for name in ("0", "3", "5")}, [0.5])
    _, report = convert(model, {nn.Conv2d: rewrite}, budget=ParameterBudget(0.5))
    assert {name: report[name].ranks for name in report.converted} == {name: one.ranks for name, one in wanted.items()}
    assert report.parameters_after <= 0.5 * report.parameters
    assert count(model) == report.parameters_after


def test_a_budget_of_multiply_adds() -> None:
    losses = []
    for fraction in (0.3, 0.6, 1.0):
        _, report = convert(
            network(),
            {nn.Conv2d: ["tucker2", "out kh | in kw"], "8": "out | in"},
            budget=MultiplyAddsBudget(fraction),
            example=SHAPE,
            candidates="factored",
            fractions=(0.1, 0.2, 0.3, 0.5, 0.7),
        )
        assert report.multiply_adds is not None
        assert report.multiply_adds_after is not None
        assert report.multiply_adds_after <= fraction * report.multiply_adds
        losses.append(sum((row.relative_error or 0) ** 2 for row in report.rows))
    assert losses == sorted(losses, reverse=True)
    assert losses[-1] == 0


def test_given_ranks_stand_beside_a_budget() -> None:
    model = network()
    _, report = convert(
        model,
        {"0": ("out | in kh kw", 1), "*": ["out | in kh kw", "out | in"]},
        budget=ParameterBudget(0.6),
        calibration=((x, None) for x in inputs()),
        sequential=True,
    )
    assert report["0"].ranks == {"r": 1}
    assert report.parameters_after <= 0.6 * report.parameters
    assert all(report[name].output_error is not None for name in report.converted)


def test_under_a_budget_too_every_layer_has_its_reason() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 40), nn.Linear(40, 30))
    _, report = convert(model, {"[02]": "out | in", "1": None}, budget=ParameterBudget(0.9))
    assert report["0"].reason == "break-even: nothing that is offered is smaller than the dense layer"
    assert report.converted == ("2",)


def test_budgets_that_cannot_be() -> None:
    model = network()
    before = state(model)
    with pytest.raises(RankError, match=r"a budget of 0.05 of \d+ parameters cannot be met\n  least: 0\.\d+: \d+ are"):
        convert(model, {"*": ["out | in kh kw", "out | in"]}, budget=ParameterBudget(0.05))
    with pytest.raises(RankError, match=r"(?s)a budget of 0.001 of \d+ multiply-adds cannot be met.*least"):
        convert(model, {nn.Conv2d: "out | in kh kw"}, budget=MultiplyAddsBudget(0.001), example=SHAPE)
    with pytest.raises(RankError, match="a budget is given for the model and for a layer"):
        convert(model, {"3": ("tucker2", ParameterBudget(0.5))}, budget=ParameterBudget(0.5))
    with pytest.raises(RankError, match=r"budget=0\.5"):
        convert(model, {"3": "tucker2"}, budget=0.5)
    with pytest.raises(DataError, match="multiply-adds are counted at an example input"):
        convert(model, {"3": "tucker2"}, budget=MultiplyAddsBudget(0.5))
    with pytest.raises(DataError, match="fits to the original outputs need inputs"):
        convert(model, {"3": "tucker2"}, sequential=True)
    with pytest.raises(DataError, match="no calibration batches"):
        convert(model, {"3": "tucker2"}, calibration=[])
    assert_same(before, state(model))


# Layers that stay dense -------------------------------------------------------------------------------------


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


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.q_proj, self.k_proj, self.v_proj, self.o_proj = (nn.Linear(width, width) for _ in range(4))

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for layer in (self.q_proj, self.k_proj, self.v_proj)
        )
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.self_attn = Attention(width, 2)
        self.up_proj, self.down_proj = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        x = x + self.self_attn(self.norm(x), mask=mask)
        return x + self.down_proj(self.up_proj(x).relu())


class Language(nn.Module):
    """Plain Linears in a tree, an embedding tied to the head."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed_tokens = nn.Embedding(11, 8)
        self.layers = nn.ModuleList(Block(8) for _ in range(2))
        self.lm_head = nn.Linear(8, 11, bias=False)
        self.lm_head.weight = self.embed_tokens.weight

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        x = self.embed_tokens(input_ids)
        for layer in self.layers:
            x = layer(x, mask=attention_mask)
        return self.lm_head(x)


def test_a_language_model() -> None:
    model = Language().eval()
    tokens = torch.arange(10).reshape(2, 5)
    before = model(tokens)
    _, report = convert(model, {"*_proj": ("out | in", EXACT), "lm_head": None}, allow_larger=True)
    torch.testing.assert_close(model(tokens), before, atol=1e-4, rtol=0)
    assert len(report.converted) == 12
    model = Language().eval()
    example = {"input_ids": tokens, "attention_mask": torch.ones(5, 5, dtype=torch.bool)}
    _, report = convert(model, {nn.Linear: ("out | in", 2)}, example=example, candidates="factored")
    assert report["lm_head"].reason == "its weight is shared with embed_tokens.weight"
    assert report["layers.1.up_proj"].multiply_adds == 10 * 8 * 24
    assert report["layers.1.up_proj"].multiply_adds_after == 10 * 2 * (8 + 24)
    model(tokens).sum().backward()
    assert all(p.grad is not None for p in model.parameters())


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


# All or nothing ---------------------------------------------------------------------------------------------


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
        ({"3": 0.5}, RuleError, r"3 is to be rewritten by 0\.5"),
        ({"3": ("cp", 2, 3)}, RuleError, "3 is to be rewritten by"),
        ({"3": ("cp", 0.5)}, RankError, r"(?s)the ranks are 0\.5.*KeepFraction\(0\.5\) or ParameterBudget"),
        ({"3": ("cp", True)}, RankError, "the ranks are True"),
        ({"3": ("cp", {"r": 2, "starts": 1})}, RuleError, "ranks stand beside the choice 'starts'"),
        ({"3": []}, RuleError, "a list of rewrites holds nothing"),
        ({"3": ["cp", None]}, RuleError, "a list of rewrites holds None"),
        ({"3": ([("cp", 2)], 3)}, RuleError, "choices are given twice"),
        ({"3": "cp"}, LayerError, "(?s)layer '3' cannot be decomposed.*rank"),
        ({"3": ("cp", {"z": 2})}, LayerError, "(?s)layer '3' cannot be decomposed.*no bond 'z'"),
        ({"0": ("out | in kh kw", 2), "3": ("out | in", 2)}, LayerError, "(?s)'3' cannot.*does not fit"),
        ({"*": ("out | in kh kw", 99)}, LayerError, r"(?s)all 4 layers of '\*' are refused.*rank 99"),
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


# The report -------------------------------------------------------------------------------------------------


def test_a_report_prints() -> None:
    _, report = convert(network(), {"3": ("cp", {"ranks": 3, "starts": 1}), "0": None}, example=SHAPE)
    text = str(report)
    assert "cp r=3" in text
    assert "dense: as wished" in text
    assert "1 of 4 decomposed" in text
    _, overlapping = convert(network(), {"3": ("out | in kh kw", 2), "[35]": ("out | in kh kw", 3)})
    assert str(overlapping).endswith("overlap: 1 layer follows '3', and not '[35]', which fits too and comes later")
    assert "&gt;" in report._repr_html_()
    frame = report.to_pandas()
    assert list(frame["name"]) == ["0", "3", "5", "8"]
    assert frame["parameters_after"].sum() + 16 == report.parameters_after  # 16 of the batch normalisation
    with pytest.raises(KeyError):
        report["4"]
    again = pickle.loads(pickle.dumps(report))
    assert str(again) == text


def test_a_converted_model_is_converted_further() -> None:
    model = network()
    convert(model, {"3": ("out | in kh kw", 2)})
    _, report = convert(model, {"*": ("out | in kh kw", 2)})
    assert report.converted == ("0", "5")
    with pytest.raises(LayerError, match="no kernel layer is called '3'"):
        convert(model, {"3": ("out | in kh kw", 2)})


# Whole models -----------------------------------------------------------------------------------------------

EITHER = (["out | in kh kw", "out | in"], EXACT)

MODELS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], dict[str, Any], int]] = {
    "resnet18": (
        lambda: torchvision.models.resnet18(num_classes=5),
        (1, 3, 32, 32),
        {
            "layer[12].*": ("out kh | in kw", EXACT),
            "layer3.0.*": EITHER,
            "conv1": ("tucker2", {"a": EXACT, "b": EXACT}),
            "fc": EITHER,
        },
        14,
    ),
    "vgg11": (
        lambda: torchvision.models.vgg11(num_classes=5, init_weights=False),
        (1, 3, 32, 32),
        {"features.[03]": ("tensor_train", dict.fromkeys("pqs", EXACT)), "features.6": ("out kh | in kw", EXACT)}
        | {"classifier.6": EITHER},
        4,
    ),
    "mobilenet_v3_small": (
        lambda: torchvision.models.mobilenet_v3_small(num_classes=5),
        (1, 3, 32, 32),
        {"*": EITHER},
        54,
    ),
    "efficientnet_b0": (
        lambda: torchvision.models.efficientnet_b0(num_classes=5),
        (1, 3, 32, 32),
        {"features.[0-5].*": EITHER},
        50,
    ),
    "convnext_tiny": (
        lambda: torchvision.models.convnext_tiny(num_classes=5),
        (1, 3, 32, 32),
        {"features.[0-3].*": EITHER},
        20,
    ),
    "vit_b_16": (
        lambda: torchvision.models.vit_b_16(num_classes=5),
        (1, 3, 224, 224),
        {"conv_proj": EITHER, "*.encoder_layer_0.mlp.*": EITHER, "heads.head": EITHER},
        4,
    ),
}


@pytest.mark.parametrize("name", MODELS)
def test_at_full_rank_nothing_changes(name: str) -> None:
    make, shape, patterns, number = MODELS[name]
    torch.manual_seed(0)
    model = make().eval()
    for module in model.modules():
        if isinstance(module, nn.Linear) and not module.weight.any():  # a head that starts at 0 has no decomposition
            nn.init.normal_(module.weight, std=0.1)
    x = torch.randn(shape)
    with torch.no_grad():
        before = model(x)
        _, report = convert(model, patterns, example=x, allow_larger=True)
        after = model(x)
    assert len(report.converted) >= number, report
    assert float(torch.dist(after, before)) <= 1e-4 * max(1.0, float(before.norm()))


def test_resnet18_under_a_budget() -> None:
    torch.manual_seed(0)
    model = torchvision.models.resnet18(num_classes=5)
    _, report = convert(
        model,
        {"layer[34].*": None, "*": ["out | in kh kw", "out kh | in kw", "out | in"]},
        budget=ParameterBudget(0.98),
        fractions=(0.2, 0.4, 0.6),
        example=(1, 3, 32, 32),
    )
    assert report.parameters_after <= 0.98 * report.parameters
    assert report.converted
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 5)


# Optimizers -------------------------------------------------------------------------------------------------


def train(model: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> None:
    model.train()
    generator = torch.Generator().manual_seed(5)
    for _ in range(steps):
        optimizer.zero_grad()
        x = torch.randn(SHAPE, generator=generator)
        nn.functional.cross_entropy(model(x), torch.arange(4)).backward()
        optimizer.step()


def grouped(model: nn.Module) -> list[dict[str, Any]]:
    return [
        {"params": [p for p in model.parameters() if p.ndim > 1], "lr": 0.02, "weight_decay": 0.01},
        {"params": [p for p in model.parameters() if p.ndim == 1], "lr": 0.01},
    ]


@pytest.mark.parametrize(
    "make",
    [
        lambda groups: torch.optim.SGD(groups, lr=0.1, momentum=0.9),
        lambda groups: torch.optim.AdamW(groups, lr=0.1),
    ],
)
def test_an_optimizer_goes_on_as_after_surgery_by_hand(make: Callable[[Any], torch.optim.Optimizer]) -> None:
    model = network().double()
    torch.set_default_dtype(torch.float64)
    try:
        optimizer = make(grouped(model))
        train(model, optimizer, 5)
        _, report = convert(model, {"[35]": ("out | in kh kw", 3)})
        by_hand = copy.deepcopy(model)
        other = make(
            [
                {"params": [p for n, p in by_hand.named_parameters() if p.ndim > 1], "lr": 0.02, "weight_decay": 0.01},
                {"params": [p for n, p in by_hand.named_parameters() if p.ndim == 1], "lr": 0.01},
            ]
        )
        twins = dict(zip(model.parameters(), by_hand.parameters(), strict=True))
        for parameter, twin in twins.items():
            if parameter in optimizer.state:
                other.state[twin] = copy.deepcopy(optimizer.state[parameter])
        update_optimizer(optimizer, report)
        held = [{id(p) for p in group["params"]} for group in optimizer.param_groups]
        assert held[0] == {id(p) for p in model.parameters() if p.ndim > 1}
        assert held[1] == {id(p) for p in model.parameters() if p.ndim == 1}
        assert {id(p) for p in optimizer.state} <= held[0] | held[1]
        update_optimizer(optimizer, report)
        assert [{id(p) for p in group["params"]} for group in optimizer.param_groups] == held
        start = [p.detach().clone() for p in model.parameters()]
        train(model, optimizer, 10)
        train(by_hand, other, 10)
        for before, parameter, twin in zip(start, model.parameters(), by_hand.parameters(), strict=True):
            assert parameter.ndim == 1 or not torch.equal(before, parameter)
            torch.testing.assert_close(parameter, twin, atol=1e-11, rtol=1e-9)
        optimizer.load_state_dict(optimizer.state_dict())
    finally:
        torch.set_default_dtype(torch.float32)


def test_names_and_frozen_weights_in_an_optimizer() -> None:
    model = network()
    model[5].requires_grad_(False)
    optimizer = torch.optim.SGD([(n, p) for n, p in model.named_parameters() if p.requires_grad], lr=0.1)
    _, report = convert(model, {"[35]": ("out | in kh kw", 2)})
    update_optimizer(optimizer, report)
    (group,) = optimizer.param_groups
    named = dict(model.named_parameters())
    assert len(group["params"]) == len(group["param_names"]) == len({*group["param_names"]})
    assert all(named[n] is p for n, p in zip(group["param_names"], group["params"], strict=True))
    assert not any(n.startswith("5") for n in group["param_names"])


def test_optimizers_that_do_not_belong() -> None:
    model = network()
    lbfgs = torch.optim.LBFGS(model.parameters())
    stranger = torch.optim.SGD(network().parameters(), lr=0.1)
    _, report = convert(model, {"3": ("out | in kh kw", 2)})
    with pytest.raises(LayerError, match="LBFGS has one state"):
        update_optimizer(lbfgs, report)
    with pytest.raises(LayerError, match="holds no parameter of the 1 converted layers"):
        update_optimizer(stranger, report)
    update_optimizer(stranger, Report((), 0, 0))


# Batch normalisation ----------------------------------------------------------------------------------------


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
    with pytest.raises(DataError, match="there are no batches"):
        recalibrate_batch_norm(model, [])
    with pytest.raises(DataError, match="a tensor is given"):
        recalibrate_batch_norm(model, inputs()[0])
    with pytest.raises(DataError, match="batches=0"):
        recalibrate_batch_norm(model, inputs(), batches=0)
    with pytest.raises(RuntimeError):
        recalibrate_batch_norm(model, [inputs()[0], torch.zeros(1, 2, 9, 9)])
    assert_same(before, state(model))
    assert model[1].momentum == 0.1
    with pytest.raises(LayerError, match="no batch normalisation with running statistics"):
        recalibrate_batch_norm(nn.Sequential(nn.BatchNorm2d(3, track_running_stats=False)), inputs())


def test_the_metrics_are_those_of_the_layers() -> None:
    """A fit in a metric that is given among the choices is the calibrated fit."""
    model = network()
    metric = input_metrics(model, inputs(), layers=["3"])["3"]
    _, given = convert(network(), {"3": ("out | in kh kw", {"ranks": 3, "metric": metric})})
    _, calibrated = convert(model, {"3": ("out | in kh kw", 3)}, calibration=inputs())
    assert given["3"].output_error == pytest.approx(calibrated["3"].output_error)
    assert "3" not in kernel_layers(model)


def test_errors_as_ranks() -> None:
    _, report = convert(network(), {"*": (["out | in kh kw", "out | in"], RelativeError(0.6))})
    assert all((report[name].relative_error or 1) <= 0.6 for name in report.converted)
    assert report.converted
