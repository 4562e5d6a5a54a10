"""Checkpoints of modules whose state is more than tensors: versions, extra states."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import nn

from tests.checkpoint_cases import put_together, taken_apart
from tests.refusals import refused
from tnalgebra.checkpoint import load, save
from tnalgebra.errors import CheckpointError
from tnalgebra.model.convert import convert


class Scaled(nn.Module):
    """Its second version has a scale ten times that of the first."""

    _version = 2

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def _load_from_state_dict(self, state: Any, prefix: str, metadata: Any, *others: Any) -> None:
        if metadata.get("version") is None or metadata["version"] < 2:
            state[f"{prefix}scale"] = state[f"{prefix}scale"] * 10
        super()._load_from_state_dict(state, prefix, metadata, *others)


class FirstScaled(Scaled):
    _version = 1


def test_modules_know_the_version_of_their_state(tmp_path: Path) -> None:
    """As by `load_state_dict` of the model's own state; a file that says no versions is taken to be of the model's."""
    path = tmp_path / "model.safetensors"

    def scaled(kind: type[Scaled]) -> nn.Sequential:
        return nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Sequential(kind()))

    for kind, scale in ((Scaled, 1), (FirstScaled, 10)):
        model, _ = convert(scaled(kind), {"0": "out | in"}, size=1, progress=False)
        save(model, path)
        expected = scaled(Scaled)[2]
        expected.load_state_dict(model[2].state_dict())
        assert expected[0].scale.item() == scale
        assert load(path, into=scaled(Scaled))[2][0].scale.item() == scale
    header, description, data = taken_apart(path.read_bytes())
    assert description["versions"] == {"1": 2}
    del description["versions"]
    path.write_bytes(put_together(header, json.dumps(description), data))
    assert load(path, into=scaled(Scaled))[2][0].scale.item() == 1
    description["versions"] = {"1": "two"}
    path.write_bytes(put_together(header, json.dumps(description), data))
    with refused(CheckpointError, "'two'"):
        load(path, into=scaled(Scaled))


class Extra(nn.Module):
    def get_extra_state(self) -> object:
        return {"calls": 3}

    def set_extra_state(self, state: object) -> None: ...


class Unnumbered(nn.Module):
    _version: Any = "two"


def test_states_that_no_file_holds_name_the_module(tmp_path: Path) -> None:
    with refused(CheckpointError, "'0._extra_state'", "register_buffer"):
        save(nn.Sequential(Extra()), tmp_path / "model.safetensors")
    with refused(CheckpointError, "'0'", "'two'", "_version = 2"):
        save(nn.Sequential(Unnumbered()), tmp_path / "model.safetensors")
