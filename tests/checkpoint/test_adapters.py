"""Files of adapters: only their tensors, read into models that they fit and no others; and `peft`'s."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import tnalgebra as tn
from tests.refusals import refused
from tnalgebra.errors import CheckpointError


class _Model(nn.Module):
    def __init__(self, features: int = 16) -> None:
        super().__init__()
        self.tokens = nn.Embedding(20, features)
        self.fc = nn.Linear(features, 12)
        self.conv = nn.Conv1d(12, 12, 3, padding=1)
        self.attention = nn.MultiheadAttention(12, 3, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(self.fc(self.tokens(x)).mT).mT
        return x + self.attention(x, x, x)[0]


def _adapted(tmp_path: Path) -> tuple[nn.Module, nn.Module, Path, Tensor]:
    """A model, the same one adapted, the file of the adapter, and an input."""
    torch.manual_seed(0)
    model = _Model().eval()
    fixed = ("W[o i] => L[o a] P[a i]", {"size": "a=5", "fixed": {"P": "dct"}})
    patterns = {"tokens": "LoRA", "fc": fixed, "conv": "LoHa", "attention": "LoKr"}
    adapted, adapters = tn.adapt(model, patterns, 3, scale=0.5, inplace=False, tune=False)
    for core in adapters.parameters():
        nn.init.normal_(core, std=0.3)
    path = tmp_path / "adapter.safetensors"
    tn.save_adapter(adapted, path)
    return model, adapted, path, torch.randint(0, 20, (4, 10))


def test_a_file_has_the_adapters_alone(tmp_path: Path) -> None:
    model, adapted, path, x = _adapted(tmp_path)
    assert {*load_file(path)} == {*tn.adapter_state(adapted)}
    assert path.stat().st_size < 20_000
    again = tn.load_adapter(path, into=copy.deepcopy(model), tune=False)
    assert torch.equal(again(x), adapted(x))
    assert str(tn.adapters(again)) == str(tn.adapters(adapted))
    assert {*tn.adapters(again).parameters()} == {one for one in again.parameters() if one.requires_grad}


def test_a_second_one_under_another_name_and_the_first_again(tmp_path: Path) -> None:
    _, adapted, path, x = _adapted(tmp_path)
    expected = adapted(x)
    tn.load_adapter(path, into=adapted, name="second", tune=False)
    adapters = tn.adapters(adapted)
    adapters.activate("second")
    assert torch.equal(adapted(x), expected)
    both = tmp_path / "both.safetensors"
    tn.save_adapter(adapted, both)
    for core in adapters.parameters():
        nn.init.zeros_(core)
    adapters.rescale("second", 7.0)
    tn.load_adapter(both, into=adapted)
    assert torch.equal(adapted(x), expected)
    with refused(CheckpointError, "several adapters", "default, second"):
        tn.load_adapter(both, into=adapted, name="third")


class _Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.head = nn.Embedding(9, 6, padding_idx=2), nn.Linear(6, 9, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.tokens(x))


@pytest.mark.parametrize("name", ["default", "other"])
def test_layers_with_one_weight_have_one_adapter_again(tmp_path: Path, name: str) -> None:
    torch.manual_seed(0)
    model = _Tied()
    adapted, adapters = tn.adapt(model, {"tokens": "LoRA"}, 2, inplace=False, tune=False)
    for core in adapters.parameters():
        nn.init.normal_(core)
    path, x = tmp_path / "adapter.safetensors", torch.arange(9)
    tn.save_adapter(adapted, path)
    again = tn.load_adapter(path, into=model, name=name, tune=False)
    assert len(tn.adapters(again).parameters()) == 2
    for _ in range(2):  # as loaded, and trained: one step reaches both layers
        torch.testing.assert_close(again(x), adapted(x))
        torch.testing.assert_close(again.tokens.weight, again.head.weight)
        for one in (again, adapted):
            gradients = torch.autograd.grad(one(x).square().mean(), tn.adapters(one).parameters())
            with torch.no_grad():
                for core, gradient in zip(tn.adapters(one).parameters(), gradients, strict=True):
                    core -= 0.1 * gradient
    tn.load_adapter(path, into=again, name=name, tune=False)
    assert len(tn.adapters(again).parameters()) == 2
    types = _Tied()
    types.head.weight = nn.Parameter(types.head.weight.detach().double())
    with refused(CheckpointError, "'tokens' and 'head' share a tensor", "float64"):
        tn.load_adapter(path, into=types)
    assert not any(isinstance(one, tn.nn.Adapted) for one in types.modules())


def test_a_file_of_an_adapted_model_needs_the_adapters_first(tmp_path: Path) -> None:
    model, adapted, _, _ = _adapted(tmp_path)
    tn.save(adapted, tmp_path / "model.safetensors")
    with refused(CheckpointError, "has no layer", ".adapters.default", "tn.adapt", "tn.load_adapter"):
        tn.load(tmp_path / "model.safetensors", into=model)


def test_a_model_with_adapters_is_saved_as_a_whole_too(tmp_path: Path) -> None:
    model, adapted, path, x = _adapted(tmp_path)
    tn.save(adapted, tmp_path / "model.safetensors")
    other, _ = tn.adapt(_Model().eval(), {"fc": "LoRA"}, 2, tune=False)
    tn.adapters(other).remove()
    again = tn.load(tmp_path / "model.safetensors", into=tn.load_adapter(path, into=other, tune=False))
    torch.testing.assert_close(again(x), adapted(x))
    with refused(CheckpointError, "not", "adapters"):
        tn.load_adapter(tmp_path / "model.safetensors", into=model)


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    model, _, path, _ = _adapted(tmp_path)

    def check(error: str, model: nn.Module, **kwargs: Any) -> None:
        before = {name: (type(module), module) for name, module in model.named_modules()}
        with refused(CheckpointError, error):
            tn.load_adapter(path, into=model, **kwargs)
        assert {name: (type(module), module) for name, module in model.named_modules()} == before

    check("embedding_dim", _Model(features=18))
    check("'tokens'", nn.Sequential(nn.Linear(3, 4)))
    stride = _Model()
    stride.conv.stride = (2,)
    check("stride", stride)
    other, _ = tn.adapt(_Model(), {"fc": "LoRA"}, 2, tune=False)
    check("another adapter 'default'", other)
    check("'a b'", model, name="a b")
    for missing in (tmp_path / "nothing", tmp_path):
        with refused(CheckpointError, str(missing)):
            tn.load_adapter(missing, into=model)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    model, _, path, _ = _adapted(tmp_path)
    whole = path.read_bytes()
    for place in range(0, len(whole), max(1, len(whole) // 60)):
        bytes_ = bytearray(whole)
        bytes_[place] ^= 16
        path.write_bytes(bytes_)
        with pytest.raises(CheckpointError):
            tn.load_adapter(path, into=model)
    assert not any(isinstance(one, tn.nn.Adapted) for one in model.modules())


# Files of peft --------------------------------------------------------------------------------------------------


def _peft(folder: Path, tensors: dict[str, Tensor], **settings: object) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(
        {f"base_model.model.{key}": one.contiguous() for key, one in tensors.items()},
        folder / "adapter_model.safetensors",
    )
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 6, "use_dora": False, "bias": "none", **settings}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder


def _matrices() -> dict[str, Tensor]:
    torch.manual_seed(1)
    return {
        "tokens.lora_embedding_A": torch.randn(4, 20),
        "tokens.lora_embedding_B": torch.randn(16, 4),
        "fc.lora_A.weight": torch.randn(2, 16),
        "fc.lora_B.weight": torch.randn(12, 2),
        "conv.lora_A.weight": torch.randn(4, 12, 3),
        "conv.lora_B.weight": torch.randn(12, 4, 1),
        "attention.lora_A.weight": torch.randn(4, 12),
        "attention.lora_B.weight": torch.randn(36, 4),
        "attention.base_layer.out_proj.lora_A.weight": torch.randn(4, 12),
        "attention.base_layer.out_proj.lora_B.weight": torch.randn(12, 4),
    }


@pytest.mark.parametrize("stable", [False, True])
def test_files_of_peft(tmp_path: Path, stable: bool) -> None:
    model, m = _Model().eval(), _matrices()
    dense = copy.deepcopy(model)
    root = (lambda rank: rank**0.5) if stable else float
    with torch.no_grad():
        dense.tokens.weight += (m["tokens.lora_embedding_B"] @ m["tokens.lora_embedding_A"]).T * (6 / root(4))
        dense.fc.weight += m["fc.lora_B.weight"] @ m["fc.lora_A.weight"] * (10 / root(2))
        dense.conv.weight += torch.einsum("or,rik->oik", m["conv.lora_B.weight"][..., 0], m["conv.lora_A.weight"]) * (
            6 / root(4)
        )
        dense.attention.in_proj_weight += m["attention.lora_B.weight"] @ m["attention.lora_A.weight"] * (6 / root(4))
        a, b = (m[f"attention.base_layer.out_proj.lora_{one}.weight"] for one in "AB")
        dense.attention.out_proj.weight += b @ a * (6 / root(4))
    folder = _peft(tmp_path / "peft", m, alpha_pattern={"fc": 10}, rank_pattern={"fc": 2}, use_rslora=stable)
    x = torch.randint(0, 20, (3, 7))
    tn.load_adapter(folder, into=model, tune=False)
    torch.testing.assert_close(model(x), dense(x), rtol=1e-4, atol=1e-3)


def test_files_of_peft_that_compute_something_else(tmp_path: Path) -> None:
    model, m = _Model(), _matrices()
    folder = tmp_path / "peft"
    for settings in (
        {"use_dora": True},
        {"bias": "all"},
        {"init_lora_weights": "pissa_niter_4"},
        {"modules_to_save": ["fc"]},
        {"peft_type": "LOHA"},
        {"lora_alpha": "6"},
        {"alpha_pattern": {"f.*c|x": 3}},
    ):
        with refused(CheckpointError, next(iter(settings)) if "peft_type" not in settings else "LOHA"):
            tn.load_adapter(_peft(folder, m, **settings), into=model)
    for tensors in (
        {**m, "fc.weight": torch.zeros(2)},
        {key: one for key, one in m.items() if key != "fc.lora_B.weight"},
        {**m, "fc.lora_A.weight": torch.zeros(3, 16)},
        {**m, "fc.lora_A.weight": torch.zeros(2, 17)},
        {**m, "gone.lora_A.weight": torch.zeros(2, 17), "gone.lora_B.weight": torch.zeros(17, 2)},
        {**m, "attention.lora_B.weight": torch.zeros(35, 4)},
        {**m, "fc.lora_A.weight": torch.zeros(0, 16), "fc.lora_B.weight": torch.zeros(12, 0)},
    ):
        odd = next(iter({key.partition(".")[0] for key, one in tensors.items() if one is not m.get(key)} or {"fc"}))
        with refused(CheckpointError, odd):
            tn.load_adapter(_peft(folder, tensors), into=model)
    (folder / "adapter_config.json").write_text("[1")
    with refused(CheckpointError, "adapter_config.json"):
        tn.load_adapter(folder, into=model)
    assert not any(isinstance(one, tn.nn.Adapted) for one in model.modules())
    assert type(model.attention) is nn.MultiheadAttention


class _Convolutions(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.point = nn.Conv2d(8, 12, (3, 5), padding=(1, 2), groups=2), nn.Conv2d(12, 6, 1)
        self.fc, self.last = nn.Linear(6, 8), nn.Conv1d(8, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.point(self.conv(x)).mean(-1).mT
        return self.last(self.fc(x).mT)


@pytest.mark.parametrize("effective", [False, True])
@pytest.mark.parametrize(
    ("method", "settings"),
    [("LoHa", {}), ("LoKr", {}), ("LoKr", {"r": 2, "decompose_both": True, "decompose_factor": 2})],
)
def test_what_peft_computes(tmp_path: Path, method: str, settings: dict[str, Any], *, effective: bool) -> None:
    peft = pytest.importorskip("peft")
    torch.manual_seed(0)
    model = _Convolutions().eval()
    layers = ["conv", "point", "fc", "last"]
    config = getattr(peft, f"{method}Config")(
        **{"r": 3, "alpha": 5, "alpha_pattern": {"fc": 7}, "rank_pattern": {"point": 1}, **settings},
        target_modules=layers,
        use_effective_conv2d=effective,
    )
    theirs = peft.get_peft_model(copy.deepcopy(model), config)
    for name, core in theirs.named_parameters():
        if "lokr" in name or "hada" in name:
            nn.init.normal_(core, std=0.5)
    theirs.save_pretrained(tmp_path)
    x = torch.randn(2, 8, 7, 6)
    expected = theirs.eval()(x)
    assert not torch.allclose(expected, model(x), rtol=0.1)
    tn.load_adapter(tmp_path, into=model, tune=False)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-4)
    assert {*tn.adapters(model).layers} == {*layers}


def test_cores_that_are_not_those_of_loha_and_lokr(tmp_path: Path) -> None:
    folder, model = tmp_path / "peft", _Model()
    loha = {
        **{f"fc.hada_w{one}_a": torch.randn(12, 2) for one in "12"},
        **{f"fc.hada_w{one}_b": torch.randn(2, 16) for one in "12"},
    }
    lokr = {"fc.lokr_w1": torch.randn(3, 4), "fc.lokr_w2": torch.randn(4, 4)}
    for method, tensors, settings in (
        ("LOHA", loha, {"r": 3}),
        ("LOHA", loha, {"r": 0}),
        ("LOHA", loha, {"alpha": None}),
        ("LOHA", loha, {"rank_pattern": {"f|c": 2}}),
        ("LOHA", lokr, {}),
        ("LOHA", {**loha, "fc.hada_w1_b": torch.randn(2, 15)}, {}),
        ("LOHA", {key: one for key, one in loha.items() if key != "fc.hada_w2_a"}, {}),
        ("LOHA", {key.replace("fc", "gone"): one for key, one in loha.items()}, {}),
        ("LOKR", {**lokr, "fc.lokr_w2": torch.randn(4, 5)}, {}),
        ("LOKR", {**lokr, "fc.lokr_w1": torch.randn(3, 4, 1)}, {}),
        ("LOKR", {"fc.lokr_w1": lokr["fc.lokr_w1"]}, {}),
    ):
        with pytest.raises(CheckpointError):
            tn.load_adapter(_peft(folder, tensors, **{"peft_type": method, "r": 2, "alpha": 4, **settings}), into=model)
    tn.load_adapter(_peft(folder, lokr, peft_type="LOKR", r=2, alpha=4), into=model, tune=False)
    kernel = torch.kron(lokr["fc.lokr_w1"], lokr["fc.lokr_w2"]) * 2
    x = torch.randn(5, 16)
    torch.testing.assert_close(
        model.fc(x), x @ (model.fc.base.weight + kernel).T + model.fc.base.bias, rtol=1e-4, atol=1e-4
    )
