"""Decomposed layers against torch's layer of that name with the rebuilt weight, in float64."""

from __future__ import annotations

import copy
import io
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch import nn as torch_nn

import tnalgebra
import tnalgebra.nn as tensor_nn
from tests import nn_cases
from tests.nn_cases import CASES, EQUAL, LAYERS, NAMES, REFUSED, axes_of, input_for, usual
from tests.refusals import refused
from tnalgebra.decompositions.catalogue import rules
from tnalgebra.decompositions.reshaped import per_group
from tnalgebra.errors import CompileError, LayerError, RankError
from tnalgebra.fitting.metric import Metric
from tnalgebra.networks.network import tensor_nodes
from tnalgebra.nn.base import KernelLayer
from tnalgebra.nn.torch_layers import kernel_labels_of
from tnalgebra.rewriting.rule import Rule
from tnalgebra.rewriting.text import rule

# Sums of at most a few hundred products of normal numbers, in another order, in float64.
ROUNDING = {"rtol": 1e-11, "atol": 1e-11}

RING = "K[o i h w] => A[o p] B[p i q] C[q h s] D[s w]"
TIED = "K[o i h w] => A[o r] A[i r] B[h r] B[w r]"
HYPEREDGE = "K[o i h w] => A[o i r] B[h r] C[w r]"
RESHAPED = "K[o i h w] => Fuse[o o1 o2] Fuse[i i1 i2] A[o1 i1 p] B[p o2 i2 h w]"


def same(one: Tensor, two: Tensor) -> None:
    torch.testing.assert_close(one, two, **ROUNDING)


def dense(name: str, **arguments: Any) -> Any:
    """One of torch's layers, seeded."""
    torch.manual_seed(0)
    return getattr(torch_nn, name)(**{**usual(name), **arguments})


def conv(**arguments: Any) -> torch_nn.Conv2d:
    return dense("Conv2d", **{"padding": 1, **arguments})


def tucker(module: torch_nn.Module | None = None, **options: Any) -> tensor_nn.Conv2d:
    return tensor_nn.Conv2d.from_conv(module or conv(), "tucker2", **{"size": {"a": 3, "b": 2}, **options})


def ranks_of(chosen: Rule, rank: int = 2) -> dict[str, int]:
    return dict.fromkeys(chosen.ranks, rank)


X = input_for("Conv2d", usual("Conv2d"))

# Arguments ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel lengths")
@pytest.mark.parametrize("layer", LAYERS)
def test_every_argument_of_torch_is_honoured_or_refused(layer: str) -> None:
    wrong = []
    for case in CASES:
        if case.layer == layer and not (found := nn_cases.outcome(case)).startswith(case.outcome):
            wrong.append(f"{case}: {found}")
    assert not wrong, "\n".join(wrong)


def test_the_table_has_every_argument() -> None:
    for layer in LAYERS:
        in_table = {case.argument for case in CASES if case.layer == layer}
        assert {*getattr(tensor_nn, layer).argument_names} <= in_table
    assert all(case.outcome == EQUAL or case.outcome.removeprefix(REFUSED) for case in CASES)


@settings(max_examples=20)
@given(st.data())
def test_arguments_together(data: st.DataObject) -> None:
    draw = data.draw
    name = draw(st.sampled_from(NAMES[:-1]))
    axes = axes_of(name)

    def each(least: int, most: int) -> tuple[int, ...]:
        return tuple(draw(st.integers(least, most)) for _ in range(axes))

    arguments: dict[str, Any] = {
        "kernel_size": each(1, 3),
        "stride": each(1, 3),
        "padding": each(0, 2),
        "dilation": each(1, 2),
        "groups": draw(st.sampled_from((1, 2))),
        "bias": draw(st.booleans()),
    }
    if "Transpose" in name:
        arguments["output_padding"] = tuple(s - 1 for s in arguments["stride"])
    else:
        arguments["padding_mode"] = draw(st.sampled_from(("zeros", "reflect", "replicate", "circular")))
    module = dense(name, **arguments)
    layer = tensor_nn.decomposed(
        module, "cp", size={"r": 2}, starts=1, sweeps=1, input_size=draw(st.sampled_from((9, 11)))
    )
    x = input_for(name, usual(name), batch=draw(st.sampled_from(((1,), (3,), ()))))
    same(layer(x), layer.to_dense()(x))


@pytest.mark.parametrize("name", NAMES)
def test_inputs_are_those_of_torch(name: str) -> None:
    layer = tensor_nn.decomposed(dense(name), "cp", size={"r": 2}, starts=1)
    reference = layer.to_dense()
    batches: list[tuple[int, ...]] = [(), (1,), (3,), (0,)]
    for batch in [*batches, (2, 3), (2, 0, 3)] if name == "Linear" else batches:
        x = input_for(name, usual(name), batch=batch).requires_grad_()
        y = x.detach().clone().requires_grad_()
        value, expected = layer(x), reference(y)
        assert value.shape == expected.shape
        same(value, expected)
        value.square().sum().backward()
        expected.square().sum().backward()
        same(x.grad, y.grad)
    if name == "Conv2d":  # and of other sizes than those it was planned for
        for size in ((3, 3), (33, 5)):
            x = torch.randn(2, 4, *size, dtype=torch.float64)
            same(layer(x), reference(x))
    wrong = input_for(name, {**usual(name), "in_channels": 3, "in_features": 3})
    with refused(CompileError, 3, 4, f"nn.{name}"):
        layer(wrong)
    if name != "Linear":
        with refused(CompileError, "'X'", "7 axes"):
            layer(torch.randn((4,) * 7, dtype=torch.float64))


def test_groups_are_told_from_channels() -> None:
    """Nothing in the kernel has the size of all channels."""
    layer = tucker(conv(groups=2), size={"a": 3, "b": 2})
    with refused(CompileError, "2 channels", 4):
        layer(X[:, :2])
    grouped = tensor_nn.Conv2d.from_conv(
        conv(groups=2), per_group(rules("out in kh kw")["tucker2"]), size={"a": 2, "b": 2}, sizes={"g": 2}
    )
    same(grouped(X), grouped.to_dense()(X))


# What is taken over ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("rank", [2, None], ids=["rank 2", "full rank"])
def test_a_layer_computes_with_the_rebuilt_weight(name: str, rank: int | None) -> None:
    module = dense(name)
    first = kernel_labels_of(module)[0]
    cut = f"{first} | {' '.join(kernel_labels_of(module)[1:])}"
    layer = tensor_nn.decomposed(module, cut, size=tnalgebra.KeepFraction(1.0) if rank is None else rank)
    x = input_for(name, usual(name))
    back = layer.to_dense()
    assert type(back) is type(module)
    assert str(back) == str(module)
    same(back.weight, layer.dense_weight())
    same(layer(x), back(x))
    error = float(((module.weight - back.weight).norm() / module.weight.norm()).detach())
    assert layer.relative_error == pytest.approx(error, abs=1e-12)
    if rank is None:
        same(layer(x), module(x))


@pytest.mark.parametrize(
    "chosen", [*rules("out in kh kw").decompositions, rule(TIED), rule(HYPEREDGE)], ids=lambda r: r.name
)
def test_every_decomposition_is_a_layer(chosen: Rule) -> None:
    module = torch_nn.Conv2d(4, 4, 3, stride=2, padding=1, dtype=torch.float64)
    layer = tensor_nn.Conv2d.from_conv(module, chosen, size=ranks_of(chosen), starts=1, sweeps=2)
    assert {*layer.state_dict()} == {*tensor_nodes(layer.kernel), "bias"}
    constants = {name for name, _ in layer.named_buffers()} & {*layer.state_dict()}
    assert constants == {*chosen.fixed}
    assert layer.parameters_count == sum(p.numel() for p in layer.parameters())
    assert layer.parameters_count == layer.kernel.parameters + 4 - sum(layer.state_dict()[c].numel() for c in constants)
    same(layer(X), layer.to_dense()(X))
    other = tensor_nn.Conv2d(4, 4, 3, stride=2, padding=1, dtype=torch.float64, rewrite=chosen, size=ranks_of(chosen))
    assert other.kernel == layer.kernel
    other.load_state_dict(layer.state_dict())
    same(other(X), layer(X))


@pytest.mark.parametrize("chosen", rules("out in").decompositions, ids=lambda r: r.name)
def test_every_decomposition_of_a_matrix_is_a_layer(chosen: Rule) -> None:
    layer = tensor_nn.Linear.from_linear(dense("Linear"), chosen, size=ranks_of(chosen), starts=1)
    x = input_for("Linear", usual("Linear"))
    same(layer(x), layer.to_dense()(x))


def test_sizes_of_parts() -> None:
    mpo = rule("W[out in] => Fuse[out o1 o2] Fuse[in i1 i2] A[o1 i1 p] B[p o2 i2]", name="mpo2")
    linear = torch_nn.Linear(12, 6)
    layer = tensor_nn.Linear.from_linear(linear, mpo, sizes={"o1": 3, "i1": 2}, size={"p": 4})
    assert layer.A.shape == (3, 2, 4)
    torch.testing.assert_close(layer(torch.ones(2, 12)), layer.to_dense()(torch.ones(2, 12)))


@pytest.mark.parametrize("trained", [True, False])
def test_parameters_are_like_the_weight(trained: bool) -> None:
    module = conv(dtype=torch.float32).requires_grad_(trained).train(trained)
    layer = tucker(module)
    assert layer.training == trained
    assert all(p.requires_grad == trained and p.dtype == torch.float32 for p in layer.parameters())
    assert layer.to_dense().weight.requires_grad == trained
    assert layer.bias is not module.bias
    same(layer.bias, module.bias)
    layer(X.float()).sum()
    assert torch.equal(module.weight, conv(dtype=torch.float32).weight)


def test_the_memory_format_is_the_weights() -> None:
    layer = tucker(conv().to(memory_format=torch.channels_last))
    assert layer.plan.request.channels_last
    assert not tucker().plan.request.channels_last
    assert layer.to_dense().weight.is_contiguous(memory_format=torch.channels_last)
    x = X.contiguous(memory_format=torch.channels_last)
    same(layer(x), layer.to_dense()(x))


def test_gradients_are_those_of_the_rebuilt_weight() -> None:
    layer = tucker()
    layer(X).square().sum().backward()
    dense = torch.conv2d(X, layer.dense_weight(), layer.bias, padding=1)
    for parameter, expected in zip(
        layer.parameters(), torch.autograd.grad(dense.square().sum(), [*layer.parameters()]), strict=True
    ):
        torch.testing.assert_close(parameter.grad, expected, rtol=1e-10, atol=1e-10)


def test_a_choice_that_does_not_exist_is_refused_with_all_that_do() -> None:
    with refused(TypeError, "'input_sizes'", "'input_size'", "batch_size", "starts"):
        tensor_nn.Conv2d.from_conv(conv(), "tucker2", 2, input_sizes=8)


def test_a_fit_is_used_as_it_is() -> None:
    module = conv()
    fit = rule(RING).apply({"K": module.weight}, {"p": 3, "q": 2, "s": 2})
    for layer in (tensor_nn.Conv2d.from_conv(module, fit), tensor_nn.decomposed(module, fit)):
        same(layer.dense_weight(), fit.dense())
        assert layer.A.data_ptr() != fit.values["A"].data_ptr()
    with refused(LayerError, "(6, 4, 3, 2)", "(5, 4, 3, 2)"):
        tensor_nn.Conv2d.from_conv(conv(out_channels=5), fit)
    halved = tensor_nn.Conv2d.from_conv(copy.deepcopy(module).bfloat16(), fit)
    assert halved.relative_error == pytest.approx(fit.relative_error, abs=0.01)
    other = copy.deepcopy(module)
    torch_nn.init.constant_(other.weight, 1.0)
    with refused(LayerError, "another weight"):
        tensor_nn.Conv2d.from_conv(other, fit)
    with refused(LayerError, "seed="):
        tensor_nn.Conv2d.from_conv(module, fit, seed=1)
    with refused(LayerError, "size="):
        tensor_nn.Conv2d.from_conv(module, fit, 3)
    with refused(LayerError, "nn.Conv2d"):
        tensor_nn.Conv2d(4, 6, 3, rewrite=fit)


def test_a_fit_of_several_steps() -> None:
    module = conv()
    fit = (
        tnalgebra.cut("out | in kh kw")
        .apply({"K": module.weight}, {"r": 4})
        .then(rule("R[r i h w] => B[r i s] C[s h w]"), {"s": 5}, bind={"R": "R"})
    )
    layer = tensor_nn.Conv2d.from_conv(module, fit)
    assert layer.relative_error == pytest.approx(fit.relative_error)
    assert layer.trace is not None
    assert len(layer.trace.steps) == 2
    same(layer(X), layer.to_dense()(X))


def test_the_trace_is_light_and_can_be_replayed() -> None:
    module = conv()
    metric = Metric(
        ("in", "kh", "kw"), torch.diag(torch.arange(1.0, 25.0, dtype=torch.float64)).reshape(4, 3, 2, 4, 3, 2)
    )
    layer = tucker(module, metric=metric)
    assert layer.output_error is not None
    assert layer.trace is not None
    step = layer.trace.steps[0]
    assert (step.options.metric, step.options.lost, dict(step.change.values)) == (None, ("metric",), {})
    plain = tucker(module)
    assert plain.output_error is None
    assert plain.trace is not None
    same(plain.trace.replay({"K": module.weight}).dense(), plain.dense_weight().detach())


# Random layers --------------------------------------------------------------------------------------------------

SCRATCH = ("tucker2", "tensor_ring", "dct", TIED, RESHAPED)


@pytest.mark.parametrize("name", ["Conv2d", "ConvTranspose2d"])
@pytest.mark.parametrize("rewrite", SCRATCH)
def test_a_random_layer_has_the_variance_of_torchs(rewrite: str, name: str) -> None:
    torch.manual_seed(0)
    chosen = rewrite if "=>" not in rewrite else rule(rewrite)
    bonds = (rules("out in kh kw")[chosen] if isinstance(chosen, str) else chosen).ranks
    layer = getattr(tensor_nn, name)(24, 24, 3, rewrite=chosen, size=dict.fromkeys(bonds, 3))
    assert layer.trace is None
    assert layer.relative_error is None
    module = getattr(torch_nn, name)(24, 24, 3)
    fan_in = 24 * 9
    assert float(layer.dense_weight().detach().square().mean()) == pytest.approx(1 / (3 * fan_in), rel=1e-5)
    assert layer.bias is not None
    assert float(layer.bias.detach().abs().max()) <= 1 / math.sqrt(fan_in)
    # of white noise, where the windows are whole, up to the sample
    x = torch.randn(64, 24, 14, 14)
    inner = (..., slice(2, 12), slice(2, 12))
    with torch.no_grad():
        ours, reference = (float((m(x) - m.bias[:, None, None])[inner].var()) for m in (layer, module))
    assert ours == pytest.approx(reference, rel=0.06)


def test_a_random_layer_is_repeated_by_its_seed() -> None:
    made = []
    for _ in range(2):
        torch.manual_seed(3)
        made.append(tensor_nn.Linear(12, 8, rewrite="monarch"))
    assert all(torch.equal(one, two) for one, two in zip(*(m.state_dict().values() for m in made), strict=True))
    made[0].freeze().reset_parameters()
    assert not made[0].frozen
    assert not torch.equal(made[0].R, made[1].R)


def test_constants_stay_when_a_layer_is_drawn_anew() -> None:
    layer = tensor_nn.Conv2d(4, 6, 3, rewrite="dct", size={"c": 2, "d": 2}, dtype=torch.float64)
    same(layer.P @ layer.P.T, torch.eye(2, dtype=torch.float64))
    assert [name for name, _ in layer.named_parameters()] == ["G", "bias"]


# As a module ----------------------------------------------------------------------------------------------------


def saved_and_loaded(module: KernelLayer) -> KernelLayer:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("copied", [copy.deepcopy, saved_and_loaded], ids=["deepcopy", "saved"])
def test_a_copy_is_whole(copied: Callable[[KernelLayer], KernelLayer]) -> None:
    layer = tucker()
    other = copied(layer)
    assert torch.equal(other(X), layer(X))
    assert (repr(other), other.relative_error, str(other.trace)) == (
        repr(layer),
        layer.relative_error,
        str(layer.trace),
    )
    assert other.U is not layer.U
    assert str(other.to_dense()) == str(layer.to_dense())


def test_state_dict_goes_round() -> None:
    layer, other = tucker(), tucker(conv(bias=True).requires_grad_(False))
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    assert [*layer.state_dict()] == ["U", "G", "V", "bias"]
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(X), layer(X))
    assert "bias" not in tucker(conv(bias=False)).state_dict()
    assert tucker(conv(bias=False)).bias is None


@pytest.mark.parametrize("name", ["Conv2d", "ConvTranspose1d", "Linear"])
def test_it_compiles_and_exports(name: str) -> None:
    layer = tensor_nn.decomposed(dense(name), "cp", size={"r": 2}, starts=1)
    x, more = (input_for(name, usual(name), batch=(n,)) for n in (3, 5))
    code: Any = torch.compile(layer, fullgraph=True, backend="eager")
    same(code(x), layer(x))
    program = torch.export.export(layer, (x,), dynamic_shapes=({0: torch.export.Dim("n")},))
    same(program.module()(more), layer(more))


def test_freezing_and_replanning() -> None:
    layer = tucker()
    before = layer(X)
    same(layer.freeze()(X), before)
    assert "frozen" in repr(layer)
    same(layer.dense_weight(), layer.to_dense().weight)
    assert layer.replan((1, 4, 5, 6)) is layer
    assert layer.frozen
    assert "1 x 4 x 5 x 6" in repr(layer)
    same(layer(X), before)
    layer.thaw().replan((4, 9, 8), backward=True, tune=False)
    assert layer.plan.request.backward
    assert "1 x 4 x 9 x 8" in repr(layer)
    same(layer(X), before)
    linear = tensor_nn.Linear(4, 6, rewrite="cp", size=2)
    assert "6 x 4" in repr(linear.replan((2, 3, 4)))
    with pytest.raises(CompileError):
        layer.replan((2, 2))


def test_a_layer_is_readable_and_drawn(tmp_path: Any) -> None:
    assert repr(tucker(input_size=(9, 8), batch_size=2)) == (
        "Conv2d(\n"
        "  4, 6, kernel_size=(3, 2), stride=(1, 1), padding=(1, 1)\n"
        "  U[out:6 a:3] G[a b:2 kh:3 kw:2] V[b in:4] -> [out in kh kw]\n"
        "  ranks a=3 b=2, 68 parameters, 9,900 multiply-adds at 2 x 4 x 9 x 8\n"
        ")"
    )
    tucker().draw(tmp_path / "layer.svg")
    assert (tmp_path / "layer.svg").stat().st_size > 1000


# Refused --------------------------------------------------------------------------------------------------------


def test_an_attribute_that_does_not_exist() -> None:
    with refused(AttributeError, "'nothing'"):
        _ = tucker().nothing


@pytest.mark.parametrize("name", ["stride", "forward", "plan", "X"])
def test_a_tensor_named_like_an_attribute(name: str) -> None:
    with refused(LayerError, f"'{name}'"):
        tensor_nn.Conv2d.from_conv(conv(), f"K[o i h w] => {name}[o r] B[r i h w]", size=2)


def hooked() -> torch_nn.Conv2d:
    module = conv()
    module.register_forward_hook(lambda *_: None)
    return module


CP: dict[str, Any] = {"rewrite": "cp", "size": 1}
REFUSED_LAYERS: dict[str, tuple[Callable[[], object], type[Exception], list[str]]] = {
    "another class": (
        lambda: tensor_nn.Conv2d.from_conv(torch_nn.Linear(2, 3), **CP),
        LayerError,
        ["Linear", "nn.Conv2d"],
    ),
    "no kernel": (lambda: tensor_nn.decomposed(torch_nn.AvgPool2d(2), **CP), LayerError, ["AvgPool2d", "Conv1d"]),
    "computed weight": (
        lambda: tucker(torch_nn.utils.parametrizations.weight_norm(conv())),
        LayerError,
        ["remove_parametrizations"],
    ),
    "hooks": (lambda: tucker(hooked()), LayerError, ["forward hooks"]),
    "no weight yet": (lambda: tucker(torch_nn.LazyConv2d(4, 3)), LayerError, ["LazyConv2d", "run the model once"]),
    "positions": (lambda: tensor_nn.decomposed(dense("Linear"), **CP, input_size=4), LayerError, ["input_size"]),
    "ranks": (lambda: tucker(size={"a": 99, "b": 1}), RankError, ["'a'", "99"]),
    "seed": (lambda: tensor_nn.Conv2d(**usual("Conv2d"), **CP, seed=1), LayerError, ["seed=", "nn.Conv2d"]),
    "batch": (lambda: tucker(batch_size=0), LayerError, ["batch_size is 0"]),
    "memory format": (
        lambda: tucker(memory_format=torch.channels_last_3d),
        LayerError,
        ["torch.channels_last_3d", "5 axes"],
    ),
    "features": (lambda: tensor_nn.Linear(6, 6, **CP)(torch.zeros(2, 5)), CompileError, ["5 features", "6"]),
}


@pytest.mark.parametrize("case", REFUSED_LAYERS)
def test_what_is_refused(case: str) -> None:
    make, error, facts = REFUSED_LAYERS[case]
    with refused(error, *facts):
        make()


@pytest.mark.parametrize("candidates", ["all", "factored"])
def test_a_depthwise_layer_is_separated(candidates: Any) -> None:
    layer = tensor_nn.decomposed(torch_nn.Conv2d(4, 8, 3, groups=4), "depthwise_separable", candidates=candidates)
    x = torch.randn(2, 4, 7, 6)
    torch.testing.assert_close(layer(x), layer.to_dense()(x))


def test_a_plan_is_for_as_many_channels_as_the_layer_has() -> None:
    layer = tensor_nn.decomposed(torch_nn.Conv2d(10, 8, 3, groups=2), "cp", 2, starts=1)
    for shape in [(8, 64, 28, 28), (64, 28, 28), {"X": (8, 64, 28, 28)}]:
        with refused(CompileError, "64 channels", "10"):
            layer.replan(shape)
    assert layer.replan((10, 28, 28)).planned_for == (1, 10, 28, 28)


def test_a_decomposed_layer_is_not_decomposed_again() -> None:
    layer = tensor_nn.decomposed(torch_nn.Conv2d(4, 8, 3), "cp", 2, starts=1)
    with refused(LayerError, "nn.Conv2d", "decomposed already", "to_dense()"):
        tensor_nn.decomposed(layer, "cp", 2)
    with refused(LayerError, "nn.Conv2d", "decomposed already", "to_dense()"):
        tensor_nn.Conv2d.from_conv(layer, "cp", 2)
    with refused(LayerError, "nn.Conv2d", "decomposed already", "to_dense()"):
        tnalgebra.compare(layer, "cp", 2)
    with refused(LayerError, "Sequential", "decomposed already", "to_dense()"):
        tnalgebra.convert(torch_nn.Sequential(layer), {"*": "cp"}, size=2)
    assert isinstance(tensor_nn.decomposed(layer.to_dense(), "cp", 2, starts=1), tensor_nn.Conv2d)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_grouped_window_of_one_element_along_an_axis(dtype: torch.dtype) -> None:
    """In channels_last torch computes wrong numbers where that axis of the kernel has an unusual stride."""
    torch.manual_seed(0)
    module = torch_nn.ConvTranspose2d(6, 6, (2, 1), stride=(1, 3), padding=(0, 1), groups=2, dtype=dtype)
    rewrite = "K[in out kh kw] => A[p kw] B[in p kh out] -> [in out kh kw]"
    layer = tensor_nn.decomposed(module, rewrite, 1, batch_size=2, input_size=6)
    x = torch.randn(2, 6, 7, 6, dtype=dtype).transpose(-1, -2)
    expected = layer.to_dense().double()(x.double())
    for one in (layer, layer.eval().freeze()):
        assert (one(x).double() - expected).norm() < 8 * torch.finfo(dtype).eps * expected.norm()
