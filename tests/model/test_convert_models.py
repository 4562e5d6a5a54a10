"""Well-known models converted: at full rank nothing changes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torchvision.models.convnext import CNBlockConfig

from tests.conversion_cases import EXACT
from tnalgebra.fitting.ranks import ParameterBudget
from tnalgebra.model.convert import convert

# torchvision's -------------------------------------------------------------------------------------------------------


EITHER = (["out | in kh kw", "out | in"], EXACT)


def tiny_convnext() -> nn.Module:
    blocks = [CNBlockConfig(12, 16, 1), CNBlockConfig(16, None, 1)]
    return torchvision.models.ConvNeXt(blocks, num_classes=5)


def tiny_vit() -> nn.Module:
    return torchvision.models.VisionTransformer(32, 8, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=32)


MODELS: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], int]] = {
    "resnet18": (
        lambda: torchvision.models.resnet18(num_classes=5),
        {
            "layer1.*": ("out kh | in kw", EXACT),
            "layer2.0.*": EITHER,
            "conv1": ("tucker2", {"a": EXACT, "b": EXACT}),
            "fc": EITHER,
        },
        9,
    ),
    "mobilenet_v3_small": (
        lambda: torchvision.models.mobilenet_v3_small(num_classes=5),
        {"features.[0-3].*": EITHER, "classifier.*": EITHER},
        12,
    ),
    "convnext": (tiny_convnext, {"*": EITHER}, 8),
    "vit": (tiny_vit, {"conv_proj": EITHER, "*.encoder_layer_0.mlp.*": EITHER, "heads.head": EITHER}, 4),
}


@pytest.mark.parametrize("name", MODELS)
def test_at_full_rank_nothing_changes(name: str) -> None:
    make, patterns, number = MODELS[name]
    torch.manual_seed(0)
    model = make().eval()
    for module in model.modules():
        if isinstance(module, nn.Linear) and not module.weight.any():  # a head that starts at 0 has no decomposition
            nn.init.normal_(module.weight, std=0.1)
    x = torch.randn(1, 3, 32, 32)
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
        {"layer[234].*": None, "*": ["out | in kh kw", "out kh | in kw", "out | in"]},
        size=ParameterBudget(0.99),
        fractions=(0.2, 0.6),
        example=(1, 3, 32, 32),
    )
    assert report.parameters_after <= 0.99 * report.parameters
    assert report.converted
    assert model(torch.randn(2, 3, 32, 32)).shape == (2, 5)


# A language model ----------------------------------------------------------------------------------------------------


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.q_proj, self.o_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.up_proj, self.down_proj = nn.Linear(width, 3 * width), nn.Linear(3 * width, width)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        mixed = nn.functional.scaled_dot_product_attention(self.q_proj(x), x, x, attn_mask=mask)
        x = x + self.o_proj(mixed)
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
    assert len(report.converted) == 8
    model = Language().eval()
    example = {"input_ids": tokens, "attention_mask": torch.ones(5, 5, dtype=torch.bool)}
    _, report = convert(model, {nn.Linear: ("out | in", 2)}, example=example, candidates="factored")
    assert report["lm_head"].kind == "Embedding and Linear"
    assert report["lm_head"].ranks == {"r": 2}
    assert report["layers.1.up_proj"].multiply_adds == 10 * 8 * 24
    assert report["layers.1.up_proj"].multiply_adds_after == 10 * 2 * (8 + 24)
    model(tokens).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
