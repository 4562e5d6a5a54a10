"""Attentions, torch's transformers, and language models with tied heads: converted, equal, saved, trained."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tnalgebra as tn
from tests.refusals import refused
from tnalgebra.errors import LayerError
from tnalgebra.model.convert import convert
from tnalgebra.model.optimizers import update_optimizer

# A few layers of sums of dozens of products, in another order, in float64.
ROUNDING = {"rtol": 1e-9, "atol": 1e-9}
CUT = ("out | in", 5)
PADDED = torch.arange(7) >= torch.tensor([[7], [5], [4]])


@pytest.fixture(autouse=True)
def in_float64() -> Any:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


def encoder(**arguments: Any) -> nn.TransformerEncoder:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(16, 4, 32, **{"batch_first": True, **arguments})
    model = nn.TransformerEncoder(layer, 2)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3)
    return model


X = torch.randn(3, 7, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def rebuilt(converted: nn.Module, dense: nn.Module) -> nn.Module:
    """A copy of the dense model with the weights of the converted one, contracted."""
    twin = copy.deepcopy(dense)
    for name, module in converted.named_modules():
        old = dict(twin.named_modules()).get(name)
        with torch.no_grad():
            if isinstance(module, tn.nn.MultiheadAttention):
                weights = [_weight(module.get_submodule(f"{one}_proj")) for one in "qkv"]
                old.in_proj_weight.copy_(torch.cat(weights))  # type: ignore[union-attr, operator]
                old.out_proj.weight.copy_(_weight(module.out_proj))  # type: ignore[union-attr, operator]
            elif isinstance(module, tn.nn.KernelLayer) and old is not None:
                old.weight.copy_(module.dense_weight())  # type: ignore[operator]
    return twin


def _weight(layer: nn.Module) -> Tensor:
    return layer.dense_weight() if isinstance(layer, tn.nn.KernelLayer) else layer.get_parameter("weight")


PATTERNS: dict[str, tuple[dict[Any, Any], int]] = {
    "names of attentions": ({"layers.*.self_attn": CUT}, 8),
    "class of attentions": ({nn.MultiheadAttention: CUT}, 8),
    "class of layers": ({nn.Linear: CUT}, 12),
    "beside attentions": ({"*.linear1": CUT}, 2),
    "one projection": ({"layers.1.self_attn.q_proj": CUT}, 1),
}


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("name", PATTERNS)
def test_an_encoder_is_converted(name: str) -> None:
    dense = encoder(dropout=0.2)
    patterns, count = PATTERNS[name]
    model, report = convert(dense, patterns, example=X, inplace=False)
    assert len(report.converted) == count
    assert len(report.rows) == 12
    assert all(row.rule is not None or row.reason for row in report.rows)
    assert dense.use_nested_tensor
    twin = rebuilt(model, dense)
    for train in (True, False):
        for gradients in (True, False):
            for options in ({}, {"src_key_padding_mask": PADDED}):
                values = []
                for one in (model.train(train), twin.train(train)):
                    torch.manual_seed(3)
                    with torch.set_grad_enabled(gradients):
                        values.append(one(X, **options))
                seen = ~PADDED if options else slice(None)  # torch fills the rest with zeros, in some of the cases
                torch.testing.assert_close(values[0][seen], values[1][seen], **ROUNDING)


def test_what_is_not_converted_is_torchs_own() -> None:
    model = encoder()
    first = model.layers[0].self_attn
    _, report = convert(model, {"layers.1.self_attn.k_proj": CUT})
    assert model.layers[0].self_attn is first
    assert isinstance(model.layers[1].self_attn, tn.nn.MultiheadAttention)
    assert report.parameters - report.parameters_after == 256 - 160
    model = encoder()
    before = [*model.modules()]
    with refused(LayerError, "nothing"):
        convert(model, {"nothing": CUT})
    assert [*model.modules()] == before
    assert model.use_nested_tensor
    _, report = convert(model, {nn.Linear: ("out | in", "keep 1.0")})  # nothing gets smaller
    assert not report.converted
    assert [*model.modules()] == before
    assert model.use_nested_tensor


@pytest.mark.filterwarnings("ignore:enable_nested_tensor is True")
def test_a_whole_transformer() -> None:
    torch.manual_seed(0)
    dense = nn.Transformer(16, 4, 1, 1, 24, batch_first=False, dropout=0.0)
    source, target = torch.randn(5, 2, 16), torch.randn(4, 2, 16)
    mask = nn.Transformer.generate_square_subsequent_mask(4)
    model, report = convert(dense, {nn.Linear: CUT}, example=(source, target), inplace=False)
    assert len(report.converted) == 3 * 4 + 2 * 2
    twin = rebuilt(model, dense)
    for train in (True, False):
        values = [one.train(train)(source, target, tgt_mask=mask) for one in (model, twin)]
        torch.testing.assert_close(*values, **ROUNDING)


def test_a_converted_encoder_is_saved_and_loaded(tmp_path: Path) -> None:
    model, _ = convert(encoder(), {"*.self_attn": CUT, "layers.0.linear1": CUT}, example=X)
    tn.save(model, tmp_path / "model.safetensors")
    fresh = encoder()
    loaded = tn.load(tmp_path / "model.safetensors", into=fresh)
    with torch.no_grad():
        assert torch.equal(loaded.eval()(X), model.eval()(X))
        assert torch.equal(loaded(X, src_key_padding_mask=PADDED), model(X, src_key_padding_mask=PADDED))


def test_optimizers_of_attentions() -> None:
    model = encoder()
    decayed = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in model.parameters() if parameter.ndim == 1]
    optimizer = torch.optim.AdamW([{"params": decayed}, {"params": others, "weight_decay": 0.0}])
    model(X).sum().backward()
    optimizer.step()
    _, report = convert(model, {"*.self_attn": CUT})
    update_optimizer(optimizer, report)
    first, second = ({*group["params"]} for group in optimizer.param_groups)
    assert first == {parameter for parameter in model.parameters() if parameter.ndim > 1}
    assert second == {parameter for parameter in model.parameters() if parameter.ndim == 1}
    optimizer.zero_grad()
    model(X).sum().backward()
    optimizer.step()


# Tied heads -----------------------------------------------------------------------------------------------------


class Language(nn.Module):
    """A language model whose head has the weight of its embedding."""

    def __init__(self, padding_idx: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.tokens = nn.Embedding(40, 12, padding_idx=padding_idx)
        self.middle = nn.Linear(12, 12)
        self.head = nn.Linear(12, 40)
        self.head.weight = self.tokens.weight

    def forward(self, numbers: Tensor) -> Tensor:
        value: Tensor = self.head(self.middle(self.tokens(numbers)).tanh())
        return value


TOKENS = torch.randint(40, (3, 6), generator=torch.Generator().manual_seed(1))
TRAIN = "W[rows dim] => Fuse[rows r1 r2] Fuse[dim d1 d2] A[r1 d1 p] B[p r2 d2]"
TIES: dict[str, dict[Any, Any]] = {
    "cut": {"tokens": ("cp", 3)},
    "by the head": {"head": ("cp", 3)},
    "by the class": {nn.Embedding: (TRAIN, {"size": 4, "sizes": {"r1": 8, "d1": 3}})},
}


@pytest.mark.parametrize("padding_idx", [None, 2])
@pytest.mark.parametrize("name", TIES)
def test_a_tied_head_stays_tied(name: str, padding_idx: int | None, tmp_path: Path) -> None:
    dense = Language(padding_idx)
    model, report = convert(dense, TIES[name], example=TOKENS, inplace=False)
    row = report["head"]
    assert row is report["tokens"]
    assert (row.kind, row.aliases, row.rule is not None) == ("Embedding and Linear", ("head",), True)
    cores = model.tokens.cores()
    assert all(model.head.get_parameter(key) is core for key, core in cores.items())
    assert row.parameters_after == sum(core.numel() for core in cores.values()) + 40
    assert report.parameters_after == sum(parameter.numel() for parameter in model.parameters())
    # the value and all gradients are those of torch's tied layers with the rebuilt weight
    twin = Language(padding_idx)
    twin.load_state_dict(dense.state_dict())
    with torch.no_grad():
        twin.tokens.weight.copy_(model.head.dense_weight())
    for one in (model, twin):
        one(TOKENS).square().sum().backward()
    torch.testing.assert_close(model(TOKENS), twin(TOKENS), **ROUNDING)
    assert twin.tokens.weight.grad is not None
    wanted = torch.autograd.grad(model.head.dense_weight(), [*cores.values()], twin.tokens.weight.grad)
    for core, gradient in zip(cores.values(), wanted, strict=True):
        torch.testing.assert_close(core.grad, gradient, **ROUNDING)
    # and a copy, a state and a file keep the tie
    assert copy.deepcopy(model).tokens.A is not model.tokens.A
    twice = copy.deepcopy(model)
    assert twice.head.A is twice.tokens.A
    tn.save(model, tmp_path / "model.safetensors")
    for into in (Language(padding_idx), twice):
        loaded = tn.load(tmp_path / "model.safetensors", into=into)
        assert loaded.head.A is loaded.tokens.A
        assert torch.equal(loaded(TOKENS), model(TOKENS))


def test_optimizers_of_tied_heads() -> None:
    model = Language()
    optimizer = torch.optim.Adam(model.parameters())
    model(TOKENS).sum().backward()
    optimizer.step()
    moment = optimizer.state[model.head.bias]["exp_avg"].clone()
    _, report = convert(model, TIES["cut"])
    update_optimizer(optimizer, report)
    assert [*optimizer.param_groups[0]["params"]] == [*model.parameters()]
    assert torch.equal(optimizer.state[model.head.bias]["exp_avg"], moment)
    before = model.head.A.clone()
    model(TOKENS).sum().backward()
    optimizer.step()
    assert not torch.equal(model.head.A, before)
    assert model.head.A is model.tokens.A


def test_a_tie_that_cannot_be_kept_stays_dense() -> None:
    model = Language()
    model.head.register_buffer("scale", torch.ones(1))
    _, report = convert(model, {"*": ("cp", 3)})
    assert report["head"].reason == "tied to head: it holds scale, which the new layer would not have"
    assert model.head.weight is model.tokens.weight
    model = Language()
    model.register_parameter("copy", model.head.weight)
    _, report = convert(model, {"*": ("cp", 3)})
    assert report["tokens"].reason == "its weight is shared with copy"


@pytest.mark.parametrize("size", ["parameters 0.6", "multiply-adds 0.7", None])
def test_budgets_and_calibration_with_embeddings(size: str | None) -> None:
    class Untied(Language):
        def __init__(self) -> None:
            super().__init__()
            self.head.weight = nn.Parameter(torch.randn(40, 12))

    for model in (Language(), Untied()):
        patterns: Any = {"*": "cp"} if size else {"*": ("cp", 3)}
        _, report = convert(model, patterns, size=size, example=TOKENS, calibration=[TOKENS], inplace=False)
        assert report.converted
        if size == "parameters 0.6":
            assert report.parameters_after <= 0.6 * report.parameters
        elif size:
            assert report.multiply_adds_after is not None
            assert report.multiply_adds is not None
            assert report.multiply_adds_after <= 0.7 * report.multiply_adds
