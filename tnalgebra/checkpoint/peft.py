"""Files of LoRA, LoHa and LoKr as the package `peft` writes them: a configuration in JSON, cores in safetensors."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import safetensors
from torch import Tensor

from ..errors import CheckpointError, TnalgebraError
from ..networks import KERNEL_LABELS, Fuse, NamedTensor, Network, Node

_CONFIG, _TENSORS = "adapter_config.json", "adapter_model.safetensors"

_MAX_CONFIG = 2**20
"""Bytes of the longest configuration that is read."""

_KEY = re.compile(r"(?P<layer>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(\.weight)?")

_CORE = re.compile(r"(?P<layer>.+)\.(?P<method>hada|lokr)_(?P<core>w[12](_[ab])?|t[12])")

_PREFIXES = {"LOHA": "hada", "LOKR": "lokr"}

_BONDS = ("r1", "s1", "r2", "s2")
"""Labels of networks of LoHa and LoKr whose size is the rank."""

_Core: TypeAlias = tuple[str, tuple[str, ...], Tensor]
"""A name, labels, and the tensor."""

_UNSUPPORTED = (
    *("use_dora", "lora_bias", "fan_in_fan_out", "use_qalora", "use_bdlora", "alora_invocation_tokens", "kasa_config"),
    *("layer_replication", "trainable_token_indices", "target_parameters", "velora_config", "modules_to_save"),
    *("arrow_config", "monteclora_config"),
)
"""Settings that change what is computed from the matrices, or which tensors the file has."""

_CHANGED_WEIGHTS = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Starts of LoRA after which the weights of the model are not those that it had."""


@dataclass(frozen=True, eq=False)
class PeftAdapter:
    """The network beside one layer, such as B[out r] A[r in ...] of LoRA, its tensors, and its scale."""

    layer: str
    kernel: Network
    values: Mapping[str, Tensor]
    scale: float


def read_peft(folder: Path, weights: Mapping[str, tuple[int, ...]]) -> list[PeftAdapter]:
    """Read a folder that `peft` wrote for LoRA, LoHa or LoKr.

    Args:
        weights: the shape of the weight of each layer that can be adapted; LoHa and LoKr may store cores of a
            convolution as matrices.

    Raises:
        CheckpointError: a file is missing, not what it should be, or of another method; a setting that changes what is
            computed, as DoRA does; the file has tensors that are not those of the method.
    """
    config = _read_config(folder / _CONFIG)
    path = folder / _TENSORS
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, safetensors.SafetensorError) as error:
        raise CheckpointError(f"{path} cannot be read", because=error) from error
    if not tensors:
        raise CheckpointError(f"{path} holds no matrices")
    if config["peft_type"] == "LORA":
        return _read_lora(path, tensors, config)
    method, prefix = config["peft_type"], _PREFIXES[config["peft_type"]]
    cores: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        match = _CORE.fullmatch(key.removeprefix("base_model.model."))
        if match is None or match["method"] != prefix or not tensor.is_floating_point():
            raise CheckpointError(f"{path} holds {key[:200]!r}, which is not a core of {method}")
        cores.setdefault(match["layer"].replace(".base_layer", ""), {})[match["core"]] = tensor
    read = []
    for layer, of_layer in cores.items():
        if layer not in weights:
            raise CheckpointError(f"the model has no layer {layer[:200]!r} that can be adapted")
        rank = _setting(config, layer, "r", "rank_pattern")
        try:
            kernel, values = (_loha if method == "LOHA" else _lokr)(of_layer, weights[layer])
        except (KeyError, ValueError, RuntimeError, TnalgebraError) as error:
            fact = f"the cores of layer {layer[:200]!r} do not belong together"
            raise CheckpointError(fact, cores=", ".join(sorted(of_layer)), because=error) from error
        if rank < 1 or any(size != rank for label, size in kernel.sizes.items() if label in _BONDS):
            raise CheckpointError(f"the cores of layer {layer[:200]!r} do not have the rank {rank} of {_CONFIG}")
        alpha = _setting(config, layer, "alpha", "alpha_pattern")
        read.append(PeftAdapter(layer, kernel, values, alpha / rank))
    return read


def _read_lora(path: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> list[PeftAdapter]:
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
        kernel, rank = _kernel(layer, pair, embedding=embedding), len(pair["A"])
        alpha = _setting(config, layer, "lora_alpha", "alpha_pattern")
        # alpha / sqrt(r) is rank-stabilised LoRA
        read.append(PeftAdapter(layer, kernel, pair, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)))
    return read


def _loha(cores: dict[str, Tensor], weight: tuple[int, ...]) -> tuple[Network, dict[str, Tensor]]:
    """The elementwise product of two matrices of low rank, or of two Tucker-2 decompositions of a convolution."""
    out, into, *_ = KERNEL_LABELS[len(weight)]
    return _joined([*_pair("1", (out, into), cores, weight), *_pair("2", (out, into), cores, weight)], weight)


def _lokr(cores: dict[str, Tensor], weight: tuple[int, ...]) -> tuple[Network, dict[str, Tensor]]:
    """The Kronecker product of two matrices, each as it is or of low rank; the second one has the window."""
    out, into, *window = KERNEL_LABELS[len(weight)]
    first = [("C1", ("o1", "i1"), cores["w1"])] if "w1" in cores else _pair("1", ("o1", "i1"), cores, weight[:2])
    parts = [("o1", "o2"), ("i1", "i2")]
    if "w2" not in cores:
        second = _pair("2", ("o2", "i2"), cores, weight)
    else:
        second = [("C2", ("o2", "i2", *window), cores["w2"].reshape(len(cores["w2"]), -1, *weight[2:]))]
        if cores["w2"].ndim == 3:  # torch.kron gives the matrix a first axis of one element, and each part moves by one
            parts = [("o2", "o1"), ("i2", "i1")]
    fuses = [Fuse(whole, each) for whole, each in zip((out, into), parts, strict=True)]
    return _joined([*first, *second], weight, fuses)


def _pair(number: str, ends: tuple[str, str], cores: dict[str, Tensor], weight: tuple[int, ...]) -> list[_Core]:
    """Cores B[out r] A[r in *k]; with a core T[r s *k] in the middle, B[r out] and A[s in]. A and T may be flat."""
    out, into = ends
    window = KERNEL_LABELS[len(weight)][2:]
    r, s = f"r{number}", f"s{number}"
    a, b, t = cores[f"w{number}_a"], cores[f"w{number}_b"], cores.get(f"t{number}")
    if t is None:
        return [(f"B{number}", (out, r), a), (f"A{number}", (r, into, *window), b.reshape(len(b), -1, *weight[2:]))]
    middle = t.reshape(*t.shape[:2], *weight[2:])
    return [(f"T{number}", (r, s, *window), middle), (f"B{number}", (r, out), a), (f"A{number}", (s, into), b)]


def _joined(
    cores: list[_Core], weight: tuple[int, ...], fuses: Sequence[Fuse] = ()
) -> tuple[Network, dict[str, Tensor]]:
    """The network of cores, and their tensors. Raises ValueError or SizeError if the sizes of a label differ."""
    output = KERNEL_LABELS[len(weight)]
    nodes: list[Node] = [*fuses, *(NamedTensor(name, labels) for name, labels, _ in cores)]
    sizes = dict(zip(output, weight, strict=True))
    for name, labels, tensor in cores:
        for label, size in zip(labels, tensor.shape, strict=True):
            if sizes.setdefault(label, size) != size:
                raise ValueError(f"{label} of {name} has size {size}, and not {sizes[label]}")
    return Network(nodes, output, sizes), {name: tensor for name, _, tensor in cores}


def _kernel(layer: str, pair: dict[str, Tensor], *, embedding: bool) -> Network:
    """The network of a pair; B of a convolution, shape (out, r, 1, ...), becomes a matrix in the pair."""
    a, b = pair["A"], pair["B"]
    if b.shape[2:].numel() == 1:
        b = pair["B"] = b.flatten(1)
    ranks = a.shape[0], b.shape[1] if b.ndim == 2 else None
    fit = a.ndim in KERNEL_LABELS and b.ndim == 2 and ranks[0] == ranks[1] and a.numel() and b.numel()
    if not fit or (embedding and a.ndim != 2):
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
    if not isinstance(config, dict) or config.get("peft_type") not in ("LORA", *_PREFIXES):
        kind = config.get("peft_type") if isinstance(config, dict) else None
        raise CheckpointError(
            f"{path} is the configuration of {str(kind)[:50]!r}", fix="LORA, LOHA or LOKR; or tn.save_adapter"
        )
    used = [name for name in _UNSUPPORTED if config.get(name)]
    if config.get("bias", "none") != "none":
        used.append("bias")
    if str(config.get("init_lora_weights")).lower().startswith(_CHANGED_WEIGHTS):
        used.append("init_lora_weights")
    if used:
        shown = ", ".join(f"{name}={str(config[name])[:50]}" for name in used)
        fact = (
            f"{path} has {shown}, with which a layer computes something else than an adapter beside the model's weights"
        )
        raise CheckpointError(fact, fix="convert it to a plain adapter with peft first, or merge it there")
    return config


def _setting(config: Mapping[str, Any], layer: str, name: str, patterns_name: str) -> float:
    """A number of the configuration for a layer, for which a pattern may give another one."""
    value, patterns = config.get(name), config.get(patterns_name) or {}
    if isinstance(patterns, dict):
        # as peft reads them: a name, or a regular expression, for the end of the layer's name
        ends = [value for key, value in patterns.items() if f".{layer}".endswith(f".{key}") or key == f"^{layer}"]
        value = ends[0] if ends else value
        if not all(re.fullmatch(r"\^?[\w.]+", str(key)) for key in patterns):
            raise CheckpointError(f"{patterns_name} has a regular expression", fix="names of layers")
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise CheckpointError(f"{name} is {str(value)[:50]!r}", fix="a number")
    return value
