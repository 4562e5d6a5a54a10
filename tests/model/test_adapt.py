"""Adapters: W x + scale * (network) x for every kind of layer; by name, merged, copied, compiled, exported."""

from __future__ import annotations

import copy
import io
import math
import pickle
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint

import tnalgebra as tn
from tests.refusals import refused
from tnalgebra.errors import LayerError, RankError, RuleError
from tnalgebra.nn import timed

NEW = "W[out in *k] => U[out p z] V[p in q] R[q *k z]"
"""A ring over the two channels and the window, which nobody has a name for; a linear layer's window has no label."""

SUM = "W[out in *k] => U[out a] V[a in] E[*k] + U[out b] G[b in *k]"
"""Low rank with one window, and a term that has a tensor of the first."""

LAYERS = {
    "linear": (lambda: nn.Linear(12, 10), (7, 12)),
    "rows": (lambda: nn.Linear(12, 10, bias=False), (2, 3, 4, 12)),
    "conv1d": (
        lambda: nn.Conv1d(4, 6, 3, padding=2, stride=2, dilation=2, groups=2, padding_mode="circular"),
        (2, 4, 11),
    ),
    "conv2d": (lambda: nn.Conv2d(4, 6, (3, 2), padding=(1, 0), stride=(2, 1), padding_mode="reflect"), (2, 4, 9, 8)),
    "same": (lambda: nn.Conv2d(4, 6, (5, 3), padding="same", dilation=(1, 2), bias=False), (2, 4, 9, 8)),
    "conv3d": (lambda: nn.Conv3d(4, 6, (2, 3, 2), padding=1, groups=2), (2, 4, 5, 6, 7)),
    "transposed": (lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1, groups=2), (2, 4, 5, 6)),
    "embedding": (lambda: nn.Embedding(12, 10, padding_idx=5), (3, 4)),
}


def _input(name: str, shape: tuple[int, ...]) -> Tensor:
    if name == "embedding":
        return torch.arange(12).reshape(shape)  # row 5, of the padding, among them
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


def _adapted(layer: nn.Module, rewrite: str, scale: float) -> tuple[nn.Module, tn.model.Adapters]:
    model, adapters = tn.adapt(nn.Sequential(layer), {"0": rewrite}, 3, scale=scale, tune=False)
    return model, adapters


@pytest.mark.parametrize("rewrite", ["LoRA", "LoHa", "LoKr", NEW, "out in | k", "W[a *b] => D[a *b]", SUM])
@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_computes_with_the_sum(name: str, rewrite: str) -> None:
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    dense = make().double()
    if dense.weight.ndim == 2 and rewrite == NEW:
        rewrite = "W[out in] => U[out p z] V[p in q] R[q z]"
    if rewrite == "out in | k":
        labels = {2: "out | in", 3: "out in | k", 4: "out in | kh kw", 5: "out in kd | kh kw"}[dense.weight.ndim]
        rewrite = {"transposed": "in | out kh kw", "embedding": "rows | dim"}.get(name, labels)
    x = _input(name, shape)
    expected = dense(x)
    model, adapters = _adapted(copy.deepcopy(dense), rewrite, 0.7)
    assert torch.equal(model(x), expected)  # zero is added
    (adapted,) = adapters.layers.values()
    (layer,) = adapted.adapters.values()
    gradient = torch.autograd.grad(model(x).square().sum(), [*layer.cores().values()])
    assert any(float(one.abs().max()) > 0 for one in gradient)  # it can leave zero
    assert {one for one in model.parameters() if one.requires_grad} == {*adapters.parameters()}
    for core in adapters.parameters():
        nn.init.normal_(core)
    weight = dense.weight + 0.7 * tn.evaluate(layer.kernel, layer.cores())
    if name == "embedding":  # torch's padding row is not trained
        weight = torch.cat([weight[:5], dense.weight[5:6], weight[6:]])
    target = functional_call(dense, {"weight": weight}, (x,))
    torch.testing.assert_close(model(x), target, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(adapted.weight, weight.detach(), rtol=1e-10, atol=1e-10)
    before = copy.deepcopy(model.state_dict())
    adapters.merge()
    torch.testing.assert_close(model(x), target, rtol=1e-10, atol=1e-10)
    assert model.state_dict().keys() == before.keys()
    adapters.unmerge()
    assert all(torch.equal(one, before[key]) for key, one in model.state_dict().items())
    plain = adapters.to_dense()
    assert type(plain[0]) is type(dense)
    torch.testing.assert_close(plain(x), target, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("name", ["linear", "conv2d", "conv1d"])
def test_both_ways_have_the_gradients_of_the_sum(name: str) -> None:
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    dense, x = make().double(), _input(name, shape)
    model, adapters = _adapted(copy.deepcopy(dense), "LoHa", 2.0)
    for core in adapters.parameters():
        nn.init.normal_(core)
    cores = adapters.parameters()
    (adapted,) = adapters.layers.values()
    layer = adapted.adapters["default"]
    expected = torch.autograd.grad(
        functional_call(dense, {"weight": dense.weight + 2 * layer.dense_weight()}, (x,)).square().sum(), [*cores, x]
    )
    for formed in (False, True):
        adapted._is_formed = lambda input, formed=formed: formed  # type: ignore[method-assign]
        ours = torch.autograd.grad(model(x).square().sum(), [*cores, x])
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


class _Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(20, 16)
        self.fc = nn.Linear(16, 12)
        self.conv = nn.Conv1d(12, 12, 3, padding=1)
        self.attention = nn.MultiheadAttention(12, 3, batch_first=True)
        self.block = nn.TransformerEncoderLayer(12, 3, 20, batch_first=True, dropout=0.0)
        self.head = nn.Linear(12, 20, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.fc(self.tokens(x)).relu()
        x = self.conv(x.mT).mT
        x = x + self.attention(x, x, x)[0]
        return self.head(self.block(x))


def _model() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return _Model().eval(), torch.randint(0, 20, (4, 10))


def _changed(adapters: tn.model.Adapters, *names: str) -> None:
    for core in adapters.parameters(*names):
        nn.init.normal_(core, std=0.3)


def test_a_whole_model_with_its_attentions() -> None:
    model, x = _model()
    expected = model(x)
    patterns = {"attention": "LoRA", "block.*": NEW, "tokens": "LoRA", "fc": "LoKr", "*": None}
    patterns["block.*"] = "W[out in] => U[out p z] V[p in q] R[q z]"
    adapted, adapters = tn.adapt(model, patterns, 3, inplace=False, example=x, tune=False)
    torch.testing.assert_close(adapted(x), expected)
    assert {*adapters.layers} == {
        *("tokens", "fc", "block.linear1", "block.linear2"),
        *(f"{one}.{key}_proj" for one in ("attention", "block.self_attn") for key in ("q", "k", "v", "out")),
    }
    assert "U[out:12 p:3 z:3]" in str(adapters)
    assert isinstance(adapted.head, nn.Linear)
    assert not any(isinstance(one, tn.nn.Adapted) for one in model.modules())
    with torch.no_grad():  # torch's encoder layer reads the weights of its two linear layers itself
        assert torch.isfinite(adapted(x)).all()
    state = tn.adapter_state(adapted)
    assert {*state} == {key for key in adapted.state_dict() if ".adapters." in key}
    assert sum(one.numel() for one in state.values()) == sum(one.numel() for one in adapters.parameters())


@pytest.mark.parametrize("dense", [False, True])
@pytest.mark.parametrize(
    "choices", [{}, {"bias": False}, {"add_bias_kv": True}, {"kdim": 8, "vdim": 6, "add_zero_attn": True}], ids=str
)
def test_attentions_without_adapters_are_torchs_own_again(choices: dict[str, Any], dense: bool) -> None:
    torch.manual_seed(0)
    model = nn.ModuleList([nn.MultiheadAttention(12, 3, **choices)]).eval()
    state = copy.deepcopy(model.state_dict())
    x = [torch.randn(5, 2, model[0].embed_dim), torch.randn(5, 2, model[0].kdim), torch.randn(5, 2, model[0].vdim)]
    called = []
    model[0].register_forward_hook(lambda *_: called.append(1))
    expected = model[0](*x)
    _, adapters = tn.adapt(model, {"0": "LoRA"}, 2, tune=False)
    _changed(adapters)
    if dense:
        expected = model[0](*x)
        adapters.to_dense()
    else:
        adapters.remove()
    assert type(model[0]) is nn.MultiheadAttention
    assert not model[0].training
    torch.testing.assert_close(model[0](*x), expected)
    assert len(called) == 2 + dense
    assert [*model.state_dict()] == [*state]
    if not dense:
        assert all(torch.equal(one, state[key]) for key, one in model.state_dict().items())


def test_attentions_that_cannot_be_torchs_own_again() -> None:
    """Of one that is still adapted or decomposed, beside a decomposed layer, or with a hook on a projection."""
    torch.manual_seed(0)
    model = nn.ModuleDict({name: nn.TransformerEncoderLayer(12, 3, 20) for name in ("all", "some", "cut", "hook")})
    tn.convert(model, {"cut.linear1": ("out | in", 2)}, tune=False)
    _, adapters = tn.adapt(model, {"*.self_attn": "LoRA"}, 2, tune=False)
    tn.adapt(model, {"some.self_attn.q_proj": "LoRA"}, 2, name="further", tune=False)
    model["hook"].self_attn.v_proj.register_forward_hook(lambda *_: None)
    adapters.remove("default")
    own = {name: isinstance(layer.self_attn, nn.MultiheadAttention) for name, layer in model.items()}
    assert own == {"all": True, "some": False, "cut": False, "hook": False}


def test_encoders_have_nested_tensors_again() -> None:
    torch.manual_seed(0)
    model = nn.TransformerEncoder(nn.TransformerEncoderLayer(12, 2, 20, batch_first=True), 2)
    _, adapters = tn.adapt(model, {"layers.1.self_attn": "LoRA"}, 2, tune=False)
    assert not model.use_nested_tensor
    adapters.remove()
    assert model.use_nested_tensor


def test_the_fused_path_of_an_encoder_layer_has_the_adapted_weights() -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(12, 3, 20, batch_first=True, dropout=0.0).eval()
    model, adapters = tn.adapt(nn.Sequential(layer), {"0.linear?": "LoRA"}, 2, tune=False)
    _changed(adapters)
    x = torch.randn(2, 5, 12)
    assert isinstance(model[0].self_attn, nn.MultiheadAttention)
    with torch.no_grad():
        fused = model(x)
    torch.testing.assert_close(fused, model.train()(x), rtol=1e-5, atol=1e-6)


def test_several_by_name() -> None:
    model, x = _model()
    plain = model(x)
    _, adapters = tn.adapt(model, {"fc": "LoRA", "conv": "LoHa"}, 2, name="one", tune=False)
    _changed(adapters)
    one = model(x)
    _, adapters = tn.adapt(model, {"fc": "LoKr", "head": "LoRA"}, 2, name="two", scale=3.0, tune=False)
    torch.testing.assert_close(model(x), one)  # the second starts at zero
    assert {*adapters.parameters("two")} == {one for one in model.parameters() if one.requires_grad}
    _changed(adapters, "two")
    both = model(x)
    assert (adapters.names, adapters.active) == (("one", "two"), ("one", "two"))
    adapters.activate("two")
    two = model(x)
    adapters.activate()
    assert torch.equal(model(x), plain)
    adapters.activate("one")
    assert torch.equal(model(x), one)
    weights = {}
    for names in (("one",), ("two",), ("one", "two")):
        adapters.activate(*names)
        weights[names] = model.fc.weight.detach()
    w = model.fc.base.weight
    torch.testing.assert_close(weights["one", "two"] - w, weights["one",] - w + weights["two",] - w)
    adapters.merge()
    torch.testing.assert_close(model(x), both, rtol=1e-4, atol=1e-5)
    adapters.activate("two")  # the merged weights follow
    torch.testing.assert_close(model(x), two, rtol=1e-4, atol=1e-5)
    adapters.rescale("two", 0.0)
    torch.testing.assert_close(model(x), plain)
    adapters.remove("two")
    assert isinstance(model.head, nn.Linear)
    adapters.activate("one")
    torch.testing.assert_close(model(x), one, rtol=1e-4, atol=1e-5)
    adapters.remove()
    assert type(model.fc) is nn.Linear
    assert torch.equal(model(x), plain)


def test_merged_weights_follow_their_tensors() -> None:
    model, x = _model()
    _, adapters = tn.adapt(model, {"fc": "LoRA"}, 2, tune=False)
    adapters.merge()
    _changed(adapters)
    expected = copy.deepcopy(model)
    tn.adapters(expected).unmerge()
    torch.testing.assert_close(model(x), expected(x))
    state = {key: torch.randn_like(one) for key, one in tn.adapter_state(model).items()}
    for one in (model, expected):
        one.load_state_dict(state, strict=False)
    torch.testing.assert_close(model(x), expected(x), rtol=1e-4, atol=1e-5)
    others = {key: torch.randn_like(one) for key, one in state.items()}
    torch.testing.assert_close(functional_call(model, others, (x,)), functional_call(expected, others, (x,)))
    assert model.fc.merged is not None
    assert model.train().fc.merged is None


def test_copies_and_types() -> None:
    model, x = _model()
    _, adapters = tn.adapt(model, {"fc": "LoRA", "attention": NEW.replace(" *k", ""), "tokens": "LoRA"}, 2, tune=False)
    _changed(adapters)
    expected = model(x)
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    for again in (copy.deepcopy(model), torch.load(file, weights_only=False)):
        torch.testing.assert_close(again(x), expected)
        tn.adapters(again).merge()
        torch.testing.assert_close(copy.deepcopy(again)(x), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(again.double()(x).float(), expected, rtol=1e-4, atol=1e-5)
    assert torch.isfinite(model.bfloat16()(x)).all()


def test_gradients_that_are_recomputed_and_transformed() -> None:
    torch.manual_seed(0)
    model, adapters = tn.adapt(nn.Sequential(nn.Linear(6, 5)), {"0": "LoRA"}, 2, tune=False)
    _changed(adapters)
    x = torch.randn(4, 6)
    parameters = {key: one.detach() for key, one in model.named_parameters()}
    each = torch.func.vmap(lambda row: functional_call(model, parameters, (row,)))(x)
    torch.testing.assert_close(each, model(x))
    stacked = {key: torch.stack([one, 2 * one]) for key, one in tn.adapter_state(model).items()}
    ensemble = torch.func.vmap(lambda state: functional_call(model, state, (x,)))(stacked)
    torch.testing.assert_close(ensemble[0], model(x))


def test_torch_compiles_and_traces_it() -> None:
    torch.manual_seed(0)
    model, adapters = tn.adapt(nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU()), {"0": "LoHa"}, 2, tune=False)
    _changed(adapters)
    x = torch.randn(2, 3, 6, 6)
    expected = model(x)
    torch.testing.assert_close(torch.compile(model, backend="aot_eager", fullgraph=True)(x), expected)
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(x), expected)
    adapters.merge()
    program = torch.export.export(model.eval(), (x,))
    torch.testing.assert_close(program.module()(x), expected, rtol=1e-4, atol=1e-5)
    called = [str(node.target) for node in program.graph.nodes if node.op == "call_function"]
    assert [one for one in called if "conv" in one] == ["aten.conv2d.default"]  # a merged layer is one convolution


def test_an_onnx_file(tmp_path: object) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    torch.manual_seed(0)
    model, adapters = tn.adapt(nn.Sequential(nn.Linear(6, 5), nn.ReLU()).eval(), {"0": "LoKr"}, 2, tune=False)
    _changed(adapters)
    x = torch.randn(4, 6)
    for merged in (False, True):
        if merged:
            adapters.merge()
        path = f"{tmp_path}/model-{merged}.onnx"
        torch.onnx.export(model, (x,), path, dynamo=True, verbose=False)
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        (output,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(output), model(x).detach(), rtol=1e-4, atol=1e-5)


def test_tied_layers_get_one_adapter() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens = nn.Embedding(9, 6)
            self.head = nn.Linear(6, 9, bias=False)
            self.head.weight = self.tokens.weight

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.tokens(x))

    torch.manual_seed(0)
    model, adapters = tn.adapt(Tied(), {"tokens": "LoRA"}, 2, tune=False)
    _changed(adapters)
    assert [*adapters.layers] == ["tokens", "head"]
    assert len(adapters.parameters()) == 2
    torch.testing.assert_close(model.tokens.weight, model.head.weight)
    x = torch.arange(9)
    expected = model(x)
    adapters.merge()
    torch.testing.assert_close(model(x), expected)


def test_hooks_and_modes_stay() -> None:
    model, x = _model()
    seen: list[str] = []
    handle = model.fc.register_forward_hook(lambda *_: seen.append("fc"))
    tn.adapt(model, {"fc": "LoRA"}, 2, tune=False)
    model(x)
    assert seen == ["fc"]
    handle.remove()
    model(x)
    assert seen == ["fc"]
    assert not model.fc.training


def test_what_is_refused() -> None:
    model, x = _model()
    before = [*model.modules()]
    with refused(LayerError, "'nothing'", "layers"):
        tn.adapt(model, {"nothing": "LoRA"}, 2)
    with refused(RuleError, "'Lora'", "LoRA"):
        tn.adapt(model, {"fc": "Lora"}, 2)
    with refused(RankError, "'error 0.1'"):
        tn.adapt(model, {"fc": "LoRA"}, "error 0.1")
    with refused(RuleError, "2 rewrites"):
        tn.adapt(model, {"fc": ["LoRA", "LoHa"]}, 2)
    with refused(RuleError, "a fit"):
        tn.adapt(model, {"fc": tn.cut("out | in").apply(model.fc.weight, 2)})
    with refused(RuleError, "more than once"):
        tn.adapt(nn.Sequential(nn.Linear(5, 5)), {"0": "W[o i] => A[o r] A[i r]"}, 2)
    with refused(RuleError, "'W'", "not new"):
        tn.adapt(model, {"fc": "W[o i] => W[o j] R[j i]"}, None)
    with refused(LayerError, "one Linear itself"):
        tn.adapt(nn.Linear(5, 5), {"*": "LoRA"}, 2)
    with refused(LayerError, "scale", "nan"):
        tn.adapt(model, {"fc": "LoRA"}, 2, scale=float("nan"))
    with refused(LayerError, "no adapted layer"):
        tn.adapters(model)
    with refused(LayerError, "'two words'"):
        tn.adapt(model, {"fc": "LoRA"}, 2, name="two words")
    with refused(LayerError, "max_norm"):
        tn.adapt(nn.Sequential(nn.Embedding(5, 4, max_norm=1.0)), {"0": "LoRA"}, 2)
    assert [*model.modules()] == before
    assert all(one.requires_grad for one in model.parameters())
    model, adapters = tn.adapt(model, {"fc": "LoRA"}, 2, tune=False)
    expected = model(x)
    with refused(LayerError, "'default' already"):
        tn.adapt(model, {"head": "LoRA", "fc": "LoRA"}, 2, tune=False)
    assert isinstance(model.head, nn.Linear)
    assert torch.equal(model(x), expected)
    with refused(LayerError, "'three'", "default"):
        adapters.activate("three")
    converted, _ = tn.convert(_Model(), {"fc": ("out | in", 2)}, tune=False)
    with refused(LayerError, "'fc' is decomposed already", "to_dense"):
        tn.adapt(converted, {"fc": "LoRA"}, 2)


# Merged, whatever is done to the tensors ------------------------------------------------------------------------


def _pair(size: int = 12) -> tuple[nn.Module, tn.model.Adapters, Tensor]:
    """Two adapted linear layers in evaluation mode, whose networks are not zero, and an input."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(size, size), nn.Tanh(), nn.Linear(size, 8))
    model, adapters = tn.adapt(layers, {"*": "LoRA"}, 3, tune=False)
    _changed(adapters)
    return model.eval(), adapters, torch.randn(16, size)


def _oracle(model: nn.Sequential, x: Tensor) -> Tensor:
    """The output by the elements that the tensors have now, without any code of `Adapted`."""
    with torch.no_grad():
        for layer in model:
            if isinstance(layer, tn.nn.Adapted):
                adapter = layer.adapters["default"]
                weight = layer.base.weight + adapter.B @ adapter.A
                x = nn.functional.linear(x, weight, layer.base.bias)
            else:
                x = layer(x)
    return x


def _all_times_two(model: nn.Module) -> None:
    with torch.no_grad():
        for one in model.parameters():
            one.mul_(2)


def _vector(model: nn.Module) -> None:
    parameters = [*model.parameters()]
    nn.utils.vector_to_parameters(2 * nn.utils.parameters_to_vector(parameters), parameters)


CHANGES = {
    "in place": _all_times_two,
    "data": lambda model: [one.data.mul_(2) for one in model.parameters()],
    "numpy": lambda model: [np.multiply(one, 2, out=one) for one in (p.detach().numpy() for p in model.parameters())],
    "one element": lambda model: model[0].base.weight.detach()[3, 5].zero_(),
    "a core": lambda model: model[2].adapters["default"].B.data.zero_(),
    "vector_to_parameters": _vector,
    "assigned": lambda model: model.load_state_dict({k: 2 * v for k, v in model.state_dict().items()}, assign=True),
    "another type and back": lambda model: model.double().float().requires_grad_(False),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("copied", [None, copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_merged_model_computes_with_the_elements_that_it_has(change: str, copied: object) -> None:
    model, adapters, x = _pair()
    adapters.merge()
    model = model if copied is None else copied(model)
    for _ in range(2):
        CHANGES[change](model)
        expected = _oracle(model, x)
        with torch.no_grad():
            torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model[0].merged, model[0].weight.detach())
        torch.testing.assert_close(model[2].to_dense().weight, model[2].weight)
        assert all(layer.is_merged for layer in tn.adapters(model).layers.values())


def test_the_average_of_merged_models() -> None:
    model, adapters, x = _pair()
    adapters.merge()
    average = torch.optim.swa_utils.AveragedModel(model, use_buffers=True).eval()
    assert not [*model.buffers()]
    _all_times_two(model)
    average.update_parameters(model)
    with torch.no_grad():
        torch.testing.assert_close(average(x), _oracle(average.module, x), rtol=1e-4, atol=1e-5)


def test_a_merged_model_without_elements_merges_once_it_has_some() -> None:
    model, adapters, x = _pair()
    state = copy.deepcopy(model.state_dict())
    adapters.merge()
    expected = _oracle(model, x)
    model.to("meta")
    assert model(x.to("meta")).shape == (16, 8)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for one in model.parameters():
            one.fill_(torch.nan)  # as unused memory may be
    str(adapters)
    model.load_state_dict(state)
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


def test_a_merged_model_that_torch_records_follows_its_tensors() -> None:
    model, adapters, x = _pair()
    adapters.merge()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    call = torch.compile(lambda tensors, x: functional_call(model, tensors, (x,)), backend="eager")
    twice = {key: 2 * one.detach() for key, one in model.named_parameters()}
    graph = make_fx(lambda tensors, x: functional_call(model, tensors, (x,)))(twice, x)
    with pytest.warns(FutureWarning):
        traced = torch.jit.trace(model, (x,))
    with torch.no_grad():
        for one in (compiled(x), traced(x), torch.func.vmap(model)(x)):
            torch.testing.assert_close(one, _oracle(model, x), rtol=1e-4, atol=1e-5)
        _all_times_two(model)
        expected = _oracle(model, x)
        for one in (compiled(x), call(twice, x), graph(twice, x), functional_call(model, twice, (x,))):
            torch.testing.assert_close(one, expected, rtol=1e-4, atol=1e-5)
    for one in adapters.parameters():
        one.data.mul_(2)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), _oracle(model, x), rtol=1e-4, atol=1e-5)


def test_a_merged_model_has_gradients() -> None:
    model, adapters, x = _pair()
    expected = torch.autograd.grad(model(x).square().sum(), adapters.parameters())
    adapters.merge()
    actual = torch.autograd.grad(model(x).square().sum(), adapters.parameters())
    torch.testing.assert_close(actual, expected)
    teacher = copy.deepcopy(model)
    before = [core.detach().clone() for core in adapters.parameters()]
    _changed(tn.adapters(teacher))
    tn.distil(model, teacher, [x, x], learning_rate=1e-2, progress=False)
    assert not any(torch.equal(*both) for both in zip(before, adapters.parameters(), strict=True))


# Hooks and the sum of weight and network ------------------------------------------------------------------------


@pytest.fixture
def formed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every adapted layer that may measure finds that the sum of weight and network is faster."""
    monkeypatch.setenv("TNALGEBRA_TUNE", "1")
    monkeypatch.setattr(timed, "_CLEARLY", math.inf)


def _measuring(**kwargs: object) -> tuple[nn.Module, tn.model.Adapters, Tensor]:
    model, adapters, x = _pair(**kwargs)
    for layer in adapters.layers.values():
        layer._tune = True
    return model, adapters, x


def _calls_of_base(model: nn.Module, x: Tensor) -> int:
    """How many times a call of the model calls the layer that its first adapter is beside."""
    calls: list[int] = []
    handle = model[0].base.register_forward_hook(lambda *_: calls.append(1))
    model(x)
    handle.remove()
    return len(calls)


@pytest.mark.usefixtures("formed")
def test_the_sum_is_formed_where_it_is_faster() -> None:
    model, _, x = _measuring()
    expected = _oracle(model, x)
    model(x)
    assert model[0]._is_formed(x)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("formed")
def test_hooks_of_all_modules_are_called_once() -> None:
    model, _, x = _measuring()
    calls: list[nn.Module] = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: calls.append(module))
    try:
        model(x)
        model(x)
    finally:
        handle.remove()
    assert calls.count(model[0].base) == calls.count(model[0].adapters["default"]) == calls.count(model[0]) == 2


@pytest.mark.usefixtures("formed")
@pytest.mark.parametrize("measured", [False, True])
def test_hooks_inside_an_adapted_layer_are_called_once(measured: bool) -> None:
    model, adapters, x = _measuring()
    if measured:
        model(x)
    assert _calls_of_base(model, x) == 1
    handle = model[0].adapters["default"].register_forward_hook(lambda *both: 0 * both[-1])
    plain = nn.functional.linear(x, model[0].base.weight, model[0].base.bias)
    torch.testing.assert_close(model[0](x), plain)  # as if the network were zero
    adapters.merge()
    with torch.no_grad():
        torch.testing.assert_close(model[0](x), plain)
        handle.remove()
        torch.testing.assert_close(model(x), _oracle(model, x), rtol=1e-4, atol=1e-5)
    gradients: list[int] = []
    model[0].adapters["default"].register_full_backward_hook(lambda *_: gradients.append(1))
    model(x.requires_grad_()).sum().backward()
    assert gradients == [1]


def _recomputed(what: str, base: nn.Module) -> Tensor:
    """The weight of a linear layer by the tensors that it is computed from."""
    match what:
        case "pruned weight":
            return base.weight_orig * base.weight_mask
        case "weight norm":
            return base.weight_g * base.weight_v / base.weight_v.norm(dim=1, keepdim=True)
        case "spectral norm":
            return base.weight_orig / torch.dot(base.weight_u, base.weight_orig @ base.weight_v)
        case "parametrised":
            scale, direction = base.parametrizations.weight.original0, base.parametrizations.weight.original1
            return scale * direction / direction.norm(dim=1, keepdim=True)
    return base.weight


@pytest.mark.usefixtures("formed")
@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("what", ["pruned core", "pruned weight", "weight norm", "spectral norm", "parametrised"])
def test_tensors_that_are_computed_at_each_call(what: str, merged: bool) -> None:
    model, adapters, x = _measuring()
    adapter, base = model[0].adapters["default"], model[0].base
    model(x)
    match what:
        case "pruned core":
            prune.l1_unstructured(adapter, "A", 0.5)
        case "pruned weight":
            prune.l1_unstructured(base, "weight", 0.5)
        case "weight norm":
            with pytest.warns(FutureWarning):
                nn.utils.weight_norm(base)
        case "spectral norm":
            nn.utils.spectral_norm(base)
        case "parametrised":
            nn.utils.parametrizations.weight_norm(base)
    model.train()
    for _ in range(2):  # a graph of the first call would be freed in the second
        model(x).sum().backward()
    model.eval()
    if merged:
        adapters.merge()
    with torch.no_grad():
        for one in model.parameters():
            one.mul_(1.5)
        weight = model[0].weight  # which is not that of the last call
        actual = model(x)
        torch.testing.assert_close(weight, base.weight + adapter.B @ adapter.A)
        expected = _oracle(model, x)
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
        for one in model.parameters():
            one.mul_(1.5)
        dense = model[0].to_dense()
        torch.testing.assert_close(dense(x), model[0](x), rtol=1e-4, atol=1e-4)
        assert [name for name, _ in dense.named_parameters()] in (["weight", "bias"], ["bias", "weight"])
        adapters.remove()
        for one in model.parameters():
            one.mul_(1.5)
        product = model[0](x) - model[0].bias
        torch.testing.assert_close(product, x @ model[0].weight.T, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(product, nn.functional.linear(x, _recomputed(what, base)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("what", ["weight norm", "spectral norm", "pruning", "pruned bias", "parametrised"])
def test_a_layer_whose_tensors_are_computed_is_refused(what: str) -> None:
    model, x = _model()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        match what:
            case "weight norm":
                nn.utils.weight_norm(model.fc)
            case "spectral norm":
                nn.utils.spectral_norm(model.fc)
            case "pruning":
                prune.l1_unstructured(model.fc, "weight", 0.5)
            case "pruned bias":
                prune.l1_unstructured(model.fc, "bias", 0.5)
            case "parametrised":
                nn.utils.parametrizations.weight_norm(model.fc)
    expected, before = model(x), [*model.modules()]
    trained = [one.requires_grad for one in model.parameters()]
    with refused(LayerError, "'fc' cannot be adapted", "parametrised" if what == "parametrised" else "computed from"):
        tn.adapt(model, {"fc": "LoRA", "head": "LoRA"}, 2, tune=False)
    assert [*model.modules()] == before
    assert [one.requires_grad for one in model.parameters()] == trained
    torch.testing.assert_close(model(x), expected)


@pytest.mark.usefixtures("formed")
def test_checkpointed_layers_measure_outside_of_the_checkpoint() -> None:
    model, adapters, x = _measuring()
    output = checkpoint(model, x.requires_grad_(), use_reentrant=False)
    actual = torch.autograd.grad(output.square().sum(), adapters.parameters())
    assert model[0]._is_formed(x)
    other, others, _ = _pair()
    expected = torch.autograd.grad(other(x).square().sum(), others.parameters())
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("formed")
def test_frozen_adapters_get_no_gradients() -> None:
    model, adapters, x = _measuring()
    for layer in model.modules():
        if isinstance(layer, tn.nn.KernelLayer):
            layer.freeze()
    x.requires_grad_()
    output = model(x)
    torch.testing.assert_close(output.detach(), _oracle(model, x), rtol=1e-4, atol=1e-5)
    output.sum().backward()
    assert x.grad is not None
    assert all(core.grad is None for core in adapters.parameters())


@pytest.mark.usefixtures("formed")
def test_accelerate_may_keep_the_weights_elsewhere() -> None:
    accelerate = pytest.importorskip("accelerate")
    model, _, x = _measuring()
    expected = _oracle(model, x)
    model(x)
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("formed")
def test_a_model_on_the_meta_device_has_shapes() -> None:
    model, _, x = _measuring()
    assert model.to("meta")(x.to("meta")).shape == (16, 8)


@pytest.mark.usefixtures("formed")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:torch.quantize_per_tensor")
def test_a_quantised_layer_beside_adapters() -> None:
    model, _, x = _measuring()
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    layer = quantised[0]
    adapter = layer.adapters["default"]
    with torch.no_grad():
        torch.testing.assert_close(layer(x), layer.base(x) + x @ (adapter.B @ adapter.A).T)
    for refusing in (layer.merge, layer.to_dense):
        with refused(LayerError, "weight is not a tensor", "before the layer is quantised"):
            refusing()


@pytest.mark.parametrize("merged", [False, True])
def test_a_transposed_convolution_takes_the_size_of_its_output(merged: bool) -> None:
    torch.manual_seed(0)
    dense = nn.ConvTranspose2d(4, 6, 3, stride=2)
    model, adapters = _adapted(copy.deepcopy(dense), "LoRA", 1.0)
    _changed(adapters)
    layer, x = model.eval()[0], torch.randn(2, 4, 5, 5)
    expected = functional_call(dense, {"weight": layer.weight}, (x, (12, 11)))
    if merged:
        adapters.merge()
    with torch.no_grad():
        torch.testing.assert_close(layer(x, (12, 11)), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(layer(x, output_size=(12, 11)), expected, rtol=1e-4, atol=1e-5)
    fc, _ = _adapted(nn.Linear(3, 4), "LoRA", 1.0)
    with pytest.raises(TypeError):
        fc[0](torch.randn(2, 3), 4)


@pytest.mark.parametrize("merged", [False, True])
def test_adapters_of_a_longer_type_than_the_weights(merged: bool) -> None:
    model, adapters, x = _pair()
    model.bfloat16()
    for layer in adapters.layers.values():
        layer.adapters.float()
    exact = copy.deepcopy(model).float()
    if merged:
        adapters.merge()
    with torch.no_grad():
        output = model(x.bfloat16())
        assert output.dtype == torch.bfloat16
        torch.testing.assert_close(output.float(), _oracle(exact, x.bfloat16().float()), rtol=0.05, atol=0.05)
    model(x.bfloat16()).float().square().sum().backward()
    assert all(core.grad is not None and core.dtype == torch.float32 for core in adapters.parameters())


def test_adapters_that_are_reset_start_at_zero() -> None:
    model, adapters, x = _pair()
    model.apply(lambda module: module.reset_parameters() if hasattr(module, "reset_parameters") else None)
    for layer in adapters.layers.values():
        assert torch.equal(layer(x), nn.functional.linear(x, layer.base.weight, layer.base.bias))
        assert (layer.adapters["default"].A != 0).all()
