"""Whole models converted: which layers, how, and what goes over to the new ones; the report."""

from __future__ import annotations

import pickle
import threading
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune
from torch.utils.flop_counter import FlopCounterMode

from tests.conversion_cases import EXACT, SHAPE, assert_same, count, inputs, network, state
from tests.refusals import refused
from tnalgebra import nn as layers
from tnalgebra.decompositions import cut, truncate
from tnalgebra.errors import LayerError, RuleError
from tnalgebra.fitting import KeepFraction, ParameterBudget
from tnalgebra.model import convert, optional

HALVES = (["out | in kh kw", "out | in"], 2)


# What is converted ---------------------------------------------------------------------------------------------------


def test_each_layer_follows_the_first_pattern_that_fits() -> None:
    model = network()
    whole = count(model)
    found, report = convert(
        model,
        {"5": None, "3": ("cp", {"size": {"r": 3}, "starts": 1, "sweeps": 3}), nn.Conv2d: "out | in kh kw", "8": "cp"}
        | {nn.Conv2d: (cut("out | in kh kw"), 2), "8": ("out | in", {"r": 2})},
    )
    assert found is model
    assert report.converted == ("0", "3", "8")
    assert [report[name].rule for name in ("0", "3", "8")] == ["out | in kh kw", "cp", "out | in"]
    assert report["3"].ranks == {"r": 3}
    assert report["5"].rule is None
    assert report["5"].reason == "as asked"
    assert report["3"].also == ()
    assert (report.parameters, report.parameters_after) == (whole, count(model))
    assert report["0"].parameters_after == 2 * (8 + 27) + 8
    assert report["0"].multiply_adds is None
    for name in report.converted:
        layer = model.get_submodule(name)
        assert isinstance(layer, layers.KernelLayer)
        assert report[name].relative_error == pytest.approx(layer.relative_error)
    assert model(inputs()[0]).shape == (4, 7)
    _, report = convert(network(), lambda name, module: ("out | in", 2) if isinstance(module, nn.Linear) else None)
    assert report.converted == ("8",)


def test_of_several_rewrites_the_best_is_taken() -> None:
    cuts = ["out | in kh kw", "in | out kh kw", "out kh | in kw"]
    errors = {}
    for one in cuts:
        _, report = convert(network(), {"3": (one, ParameterBudget(0.5))})
        errors[one] = report["3"].relative_error
    for request in ((cuts, ParameterBudget(0.5)), [(one, ParameterBudget(0.5)) for one in cuts]):
        _, report = convert(network(), {"3": request})
        assert report["3"].rule == min(errors, key=lambda one: errors[one] or 0)


def test_a_size_of_each_layer_that_has_none() -> None:
    for size in (2, "r=2", "keep 0.2", {"r": KeepFraction(0.2)}):
        _, report = convert(network(), {"3": ("out | in kh kw", 4), nn.Conv2d: "out | in kh kw"}, size=size)
        assert (report["3"].ranks, report["5"].ranks) == ({"r": 4}, {"r": 2})
    _, report = convert(network(), {"3": "depthwise_separable"}, size=3)  # which has no bonds
    assert report["3"].ranks == {}


def test_a_fit_is_taken_as_it_is() -> None:
    model = network()
    fit = cut("out | in kh kw").apply(model[3].weight, 3)
    rounded = fit.then(truncate("r"), 2)
    _, report = convert(model, {"3": rounded, "5": (fit, 4)})
    assert report["3"].rule == "out | in kh kw then truncate r"
    assert report["3"].ranks == {"r": 2}
    assert report["3"].relative_error == rounded.relative_error
    assert torch.equal(model[3].dense_weight(), rounded.dense())
    assert report["5"].ranks == {"r": 4}
    _, report = convert(network(), {"3": fit, nn.Conv2d: "out | in kh kw"}, size="parameters 0.6", fractions=(0.3,))
    assert report["3"].ranks == {"r": 3}
    with refused(LayerError, "'5'", "(10, 8, 3, 3)", "(12, 10, 3, 3)"):
        convert(network(), {"5": fit})
    other = network()
    nn.init.constant_(other[3].weight, 1.0)
    with refused(LayerError, "'3'", "another weight"):
        convert(other, {"3": fit})


def test_optional_patterns_need_not_fit(caplog: pytest.LogCaptureFixture) -> None:
    request: dict[Any, Any] = {optional("head.*"): "cp", optional(nn.Conv3d): None, nn.Conv2d: ("out | in kh kw", 2)}
    with caplog.at_level("INFO", "tnalgebra"):
        _, report = convert(network(), request)
    assert report.converted == ("0", "3", "5")
    assert "'head.*'" in caplog.text
    _, report = convert(network(), {"3": ("out | in kh kw", 2), optional("8"): ("out kh | in kw", 2)})
    assert report["8"].pattern == "8"
    assert report["8"].reason.startswith("the cut 'out kh | in kw' does not fit")
    with refused(RuleError, "optional", "3"):
        convert(network(), {optional(3): "cp"})


def test_a_copy_is_converted_and_the_model_stays() -> None:
    model = network()
    before = state(model)
    found, report = convert(model, {"*": ("out | in kh kw", 2)}, inplace=False)
    assert found is not model
    assert_same(before, state(model))
    assert report.converted == ("0", "3", "5")
    assert report["8"].reason.startswith("the cut 'out | in kh kw' does not fit")


@pytest.mark.parametrize("computed", ["weight norm", "pruning"])
def test_a_copy_of_a_model_with_computed_weights_computes_its_own(computed: str) -> None:
    model, x = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)), torch.rand(2, 3, 9, 8)
    if computed == "weight norm":
        with pytest.warns(FutureWarning):
            nn.utils.weight_norm(model[0])
    else:
        prune.l1_unstructured(model[0], "weight", 0.5)
    output, names = model(x), [name for name, _ in model.named_parameters()]
    found, report = convert(model, {"*": ("out kh | in kw", 2)}, inplace=False, example=x, tune=False)
    assert report.converted == ("1",)
    assert torch.equal(found[0](x), model[0](x))
    found(x).sum().backward()
    assert all(one.grad is not None for one in found.parameters())
    assert all(one.grad is None for one in model.parameters())
    assert [name for name, _ in model.named_parameters()] == names
    assert torch.equal(model(x), output)


class Locked(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()
        self.layer = nn.Linear(4, 4)


def test_a_model_that_cannot_be_copied_is_refused() -> None:
    with refused(LayerError, "Locked", "inplace=True"):
        convert(Locked(), {"*": ("out | in", 1)}, inplace=False)


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
    model, x = network().to(dtype), inputs()[0].to(dtype)
    before = model(x)
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


def test_a_converted_model_is_converted_further() -> None:
    model = network()
    convert(model, {"3": ("out | in kh kw", 2)})
    _, report = convert(model, {"*": ("out | in kh kw", 2)})
    assert report.converted == ("0", "5")
    for pattern, fact in (("3", "is called '3'"), (nn.Conv2d, "is a Conv2d")):
        with refused(LayerError, fact, "decomposed already", "layer.to_dense()"):
            convert(model, {pattern: ("out | in kh kw", 2)})
    model.set_submodule("3", model[3].to_dense())
    assert convert(model, {"3": ("out | in kh kw", 2)})[1].converted == ("3",)


# The report ----------------------------------------------------------------------------------------------------------


def test_a_report_prints() -> None:
    _, report = convert(network(), {"3": ("cp", {"size": 3, "starts": 1}), "0": None}, example=SHAPE)
    text = str(report)
    assert "cp r=3" in text
    assert "dense: as asked" in text
    assert "1 of 4 decomposed" in text
    _, overlapping = convert(network(), {"[03]": ("out | in kh kw", 2), "[35]": ("out | in kh kw", 3)})
    assert str(overlapping).endswith("overlap: 1 layer follows '[03]', and not '[35]', which fits too and comes later")
    assert "&gt;" in report._repr_html_()
    assert report._repr_html_().count("<tr>") == 1 + 4 + 1
    frame = report.to_pandas()
    assert list(frame["name"]) == ["0", "3", "5", "8"]
    assert frame["parameters_after"].sum() + 16 == report.parameters_after  # 16 of the batch normalisation
    with pytest.raises(KeyError):
        report["4"]
    again = pickle.loads(pickle.dumps(report))
    assert str(again) == text


def test_a_count_that_grows_is_in_the_row() -> None:
    model = nn.Sequential(nn.Conv2d(6, 8, 3), nn.Conv2d(8, 8, 1))
    wide = "K[out in *k] => Fuse[out o1:4 o2] Fuse[in i1:3 i2] A[o1 i1 p] B[p o2 i2 *k]"
    request = {"0": (wide, 4), "1": ("out | in kh kw", 6)}
    _, report = convert(model, request, example=(1, 6, 9, 9), candidates="factored", allow_larger=True)
    assert report["0"].multiply_adds_after > report["0"].multiply_adds
    assert report["0"].parameters_after < report["0"].parameters
    grown = report["0"].multiply_adds_after / report["0"].multiply_adds
    assert report["0"].done.endswith(f"p=4 (of the dense layer: {grown:.2f} times the multiply-adds)")
    assert "times the parameters, 1.50 times the multiply-adds)" in report["1"].done
    assert report["0"].done in str(report)


@pytest.mark.parametrize(
    ("patterns", "overlaps"),
    [
        ({"3": None, "*": HALVES}, []),
        (
            {"3": None, "5": None, "[35]": HALVES, "*": HALVES},
            ["1 layer follows '3', and not '[35]'", "1 layer follows '5', and not '[35]'"],
        ),
        ({"*": HALVES, "3": None}, ["1 layer follows '*', and not '3', which fits too and comes later"]),
        ({"*": None, "3": HALVES}, ["1 layer follows '*', and not '3', which fits too and comes later"]),
        (
            {"[35]": HALVES, "3": HALVES, "*": None},
            ["1 layer follows '[35]', and not '3'"],
        ),
        ({"3": HALVES, "[35]": HALVES, "*": HALVES}, []),
        ({"[03]": HALVES, "[35]": HALVES}, ["1 layer follows '[03]', and not '[35]'"]),
    ],
)
def test_overlaps_that_may_be_mistakes_are_noted(patterns: Any, overlaps: list[str]) -> None:
    """`None` before a wider pattern is how a layer is left out; a pattern that no layer follows is an oversight."""
    _, report = convert(network(), patterns)
    found = [note.removeprefix("overlap: ") for note in report.notes if note.startswith("overlap")]
    assert len(found) == len(overlaps)
    assert all(note.startswith(start) for note, start in zip(found, overlaps, strict=True))
