"""Adapters: W x + scale * (network) x for every kind of layer; by name, merged, copied, compiled, exported."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call

import tnalgebra as tn
from tests.adapted_cases import MixedModel, adapted_layer, change_cores, mixed_model
from tests.refusals import refused
from tnalgebra.errors import LayerError, RankError, RuleError

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
    model, adapters = adapted_layer(copy.deepcopy(dense), rewrite, 0.7)
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
    model, adapters = adapted_layer(copy.deepcopy(dense), "LoHa", 2.0)
    for core in adapters.parameters():
        nn.init.normal_(core)
    cores = adapters.parameters()
    (adapted,) = adapters.layers.values()
    layer = adapted.adapters["default"]
    expected = torch.autograd.grad(
        functional_call(dense, {"weight": dense.weight + 2 * layer.dense_weight()}, (x,)).square().sum(), [*cores, x]
    )
    for formed in (False, True):
        adapted._is_formed = lambda input, formed=formed: formed
        ours = torch.autograd.grad(model(x).square().sum(), [*cores, x])
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-9)


def test_a_whole_model_with_its_attentions() -> None:
    model, x = mixed_model()
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
    change_cores(adapters)
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
    change_cores(adapters)
    x = torch.randn(2, 5, 12)
    assert isinstance(model[0].self_attn, nn.MultiheadAttention)
    with torch.no_grad():
        fused = model(x)
    torch.testing.assert_close(fused, model.train()(x), rtol=1e-5, atol=1e-6)


def test_several_by_name() -> None:
    model, x = mixed_model()
    plain = model(x)
    _, adapters = tn.adapt(model, {"fc": "LoRA", "conv": "LoHa"}, 2, name="one", tune=False)
    change_cores(adapters)
    one = model(x)
    _, adapters = tn.adapt(model, {"fc": "LoKr", "head": "LoRA"}, 2, name="two", scale=3.0, tune=False)
    torch.testing.assert_close(model(x), one)  # the second starts at zero
    assert {*adapters.parameters("two")} == {one for one in model.parameters() if one.requires_grad}
    change_cores(adapters, "two")
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
    model, x = mixed_model()
    _, adapters = tn.adapt(model, {"fc": "LoRA"}, 2, tune=False)
    adapters.merge()
    change_cores(adapters)
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
    model, x = mixed_model()
    _, adapters = tn.adapt(model, {"fc": "LoRA", "attention": NEW.replace(" *k", ""), "tokens": "LoRA"}, 2, tune=False)
    change_cores(adapters)
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
    change_cores(adapters)
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
    change_cores(adapters)
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
    change_cores(adapters)
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
    change_cores(adapters)
    assert [*adapters.layers] == ["tokens", "head"]
    assert len(adapters.parameters()) == 2
    torch.testing.assert_close(model.tokens.weight, model.head.weight)
    x = torch.arange(9)
    expected = model(x)
    adapters.merge()
    torch.testing.assert_close(model(x), expected)


def test_hooks_and_modes_stay() -> None:
    model, x = mixed_model()
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
    model, x = mixed_model()
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
    converted, _ = tn.convert(MixedModel(), {"fc": ("out | in", 2)}, tune=False)
    with refused(LayerError, "'fc' is decomposed already", "to_dense"):
        tn.adapt(converted, {"fc": "LoRA"}, 2)
