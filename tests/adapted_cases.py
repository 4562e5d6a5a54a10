"""Adapted layers and models that several tests share."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import tnalgebra as tn


def adapted_layer(layer: nn.Module, rewrite: str, scale: float) -> tuple[nn.Module, tn.model.Adapters]:
    model, adapters = tn.adapt(nn.Sequential(layer), {"0": rewrite}, 3, scale=scale, tune=False)
    return model, adapters


class MixedModel(nn.Module):
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


def mixed_model() -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    return MixedModel().eval(), torch.randint(0, 20, (4, 10))


def change_cores(adapters: tn.model.Adapters, *names: str) -> None:
    for core in adapters.parameters(*names):
        nn.init.normal_(core, std=0.3)
