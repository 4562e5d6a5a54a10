"""Files of LoRA as the package `peft` writes them: a configuration in JSON, and the matrices in safetensors."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors
from torch import Tensor

from ..errors import CheckpointError
from ..networks import KERNEL_LABELS, NamedTensor, Network

_CONFIG, _TENSORS = "adapter_config.json", "adapter_model.safetensors"

_MAX_CONFIG = 2**20
"""Bytes of the longest configuration that is read."""

_KEY = re.compile(r"(?P<layer>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(\.weight)?")

_UNSUPPORTED = (
    *("use_dora", "lora_bias", "fan_in_fan_out", "use_qalora", "use_bdlora", "alora_invocation_tokens", "kasa_config"),
    *("layer_replication", "trainable_token_indices", "target_parameters", "velora_config", "modules_to_save"),
    *("arrow_config", "monteclora_config"),
)
"""Settings that change what is computed from the matrices, or which tensors the file has."""

_CHANGED_WEIGHTS = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Starts of LoRA after which the weights of the model are not those that it had."""


@dataclass(frozen=True, eq=False)
class LoRA:
    """The two matrices beside one layer: B[out r] A[r in ...], of an embedding A[r rows] B[dim r], and their scale."""

    layer: str
    kernel: Network
    values: Mapping[str, Tensor]
    scale: float


def read_peft(folder: Path) -> list[LoRA]:
    """Read a folder that `peft` wrote for LoRA.

    Raises:
        CheckpointError: a file is missing, not what it should be, or of another method; a setting that changes what is
            computed, as DoRA does; the file has tensors that are not those of LoRA.
    """
    config = _read_config(folder / _CONFIG)
    path = folder / _TENSORS
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read", because=error) from error
    pairs: dict[tuple[str, bool], dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = _KEY.fullmatch(key.removeprefix("base_model.model."))
        if match is None or not tensor.is_floating_point():
            raise CheckpointError(f"{path} holds {key[:200]!r}, which is not a matrix of LoRA")
        layer = match["layer"].replace(".base_layer", "")
        pairs.setdefault((layer, match["embedding"] is not None), {})[match["side"]] = tensor
    read = []
    for (layer, embedding), pair in pairs.items():
        if pair.keys() != {"A", "B"}:
            raise CheckpointError(f"{path} holds only one of the two matrices of layer {layer[:200]!r}")
        read.append(LoRA(layer, _kernel(layer, pair, embedding=embedding), pair, _scale(config, layer, len(pair["A"]))))
    if not read:
        raise CheckpointError(f"{path} holds no matrices")
    return read


def _kernel(layer: str, pair: dict[str, Tensor], *, embedding: bool) -> Network:
    """The network of a pair; B of a convolution, shape (out, r, 1, ...), becomes a matrix in the pair."""
    a, b = pair["A"], pair["B"]
    if b.shape[2:].numel() == 1:
        b = pair["B"] = b.flatten(1)
    ranks = a.shape[0], b.shape[1] if b.ndim == 2 else None
    if a.ndim not in KERNEL_LABELS or b.ndim != 2 or ranks[0] != ranks[1] or (embedding and a.ndim != 2):
        fact = f"the matrices of layer {layer[:200]!r} do not belong together"
        raise CheckpointError(fact, shapes=f"A {tuple(a.shape)}, B {tuple(b.shape)}")
    if embedding:
        nodes = [NamedTensor("A", ("r", "rows")), NamedTensor("B", ("dim", "r"))]
        sizes = {"r": a.shape[0], "rows": a.shape[1], "dim": b.shape[0]}
        return Network(nodes, ("rows", "dim"), sizes)
    out, *others = KERNEL_LABELS[a.ndim]
    nodes = [NamedTensor("B", (out, "r")), NamedTensor("A", ("r", *others))]
    return Network(
        nodes, (out, *others), {out: b.shape[0], "r": a.shape[0], **dict(zip(others, a.shape[1:], strict=True))}
    )


def _read_config(path: Path) -> Mapping[str, Any]:
    try:
        if path.stat().st_size > _MAX_CONFIG:
            raise CheckpointError(f"{path} has more than {_MAX_CONFIG} bytes")
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read", because=error, fix="a folder that peft wrote") from error
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else None
        raise CheckpointError(f"{path} is the configuration of {str(kind)[:50]!r}", fix="LORA; or tn.save_adapter")
    used = [name for name in _UNSUPPORTED if config.get(name)]
    if config.get("bias", "none") != "none":
        used.append("bias")
    if str(config.get("init_lora_weights")).lower().startswith(_CHANGED_WEIGHTS):
        used.append("init_lora_weights")
    if used:
        shown = ", ".join(f"{name}={str(config[name])[:50]}" for name in used)
        fact = f"{path} has {shown}, with which a layer computes something else than LoRA beside the model's weights"
        raise CheckpointError(fact, fix="convert it to plain LoRA with peft first, or merge it there")
    return config


def _scale(config: Mapping[str, Any], layer: str, rank: int) -> float:
    """alpha / r, or alpha / sqrt(r) with rank-stabilised LoRA; a pattern may say alpha for some layers."""
    alpha, patterns = config.get("lora_alpha"), config.get("alpha_pattern") or {}
    if isinstance(patterns, dict):
        # as peft reads them: a name, or a regular expression, for the end of the layer's name
        ends = [value for key, value in patterns.items() if f".{layer}".endswith(f".{key}") or key == f"^{layer}"]
        alpha = ends[0] if ends else alpha
        if not all(re.fullmatch(r"\^?[\w.]+", str(key)) for key in patterns):
            raise CheckpointError("alpha_pattern has a regular expression", fix="names of layers")
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise CheckpointError(f"lora_alpha is {str(alpha)[:50]!r}", fix="a number")
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
