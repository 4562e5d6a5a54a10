"""The benchmark of searches for topologies: rows are kept, and what they need is loaded where a row is missing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

import tnalgebra as tn
from recipes.benchmarks import topologies
from recipes.benchmarks.topologies import SEARCHED, Config, layers_table, main, planted_table
from recipes.kept import keep, read_kept

LAYER = "layer1.0.conv1"


class SmallNetwork:
    """A stand-in for the network with the images, whose layer is small and has a metric in kh."""

    made = 0

    def __init__(self, _: Config) -> None:
        type(self).made = 0
        self.model = nn.Module()
        self.model.register_module("layer1", nn.ModuleList([nn.Module()]))
        torch.manual_seed(0)
        self.model.get_submodule("layer1.0").register_module("conv1", nn.Conv2d(4, 5, 3))

    def metric(self, layer: str) -> tn.Metric:
        """A metric that couples one label."""
        assert layer == LAYER
        type(self).made += 1
        return tn.Metric(("kh",), torch.diag(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)))


def test_layers_are_kept_contender_by_contender(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(topologies, "Network", SmallNetwork)
    space = tn.Space(cores=(3, 3), bonds="hyperedge", groups=("out", "in", "kh kw"), catalogue=False)
    monkeypatch.setattr(topologies, "SPACE", space)
    config = Config(part="resnet20", size="parameters 0.6", layers=(LAYER,), output=tmp_path)
    main(config)
    folder = tmp_path / "resnet20"
    rows = tn.studies.read_rows(folder, fields=topologies.FIELDS["resnet20"])
    assert [row["contender"] for row in rows] == [*topologies.PEERS, SEARCHED]
    assert SmallNetwork.made == 1
    main(config)
    assert SmallNetwork.made == 0  # nothing is missing
    lines = (folder / "results.jsonl").read_text("utf-8").splitlines(keepends=True)
    (folder / "results.jsonl").write_text("".join(lines[:3]), "utf-8")
    main(config)
    assert SmallNetwork.made == 1
    again = tn.studies.read_rows(folder, fields=topologies.FIELDS["resnet20"])
    assert [(row["contender"], row["error"]) for row in again] == [(row["contender"], row["error"]) for row in rows]
    keep(folder, tmp_path / "kept.jsonl")
    heading, lines_of_table = layers_table(read_kept(tmp_path / "kept.jsonl").rows)
    ((name, *errors, topology),) = lines_of_table
    assert len(heading) == len(lines_of_table[0])
    assert (name, topology) == (LAYER, "`A[out r1] B[in r1] C[kh kw r1]`")
    assert errors == [f"{row['error']:.4f}" for row in rows]


def test_layers_without_all_rows_are_left_out() -> None:
    row = {"layer": LAYER, "contender": "cp", "topology": "cp", "ranks": {}, "parameters": 5, "error": 0.5}
    assert layers_table([row])[1] == []


def test_planted_tensors_are_kept(tmp_path: Path) -> None:
    config = Config(part="planted", smoke=True, output=tmp_path)
    main(config)
    path = tmp_path / "planted" / "results.jsonl"
    (row,) = map(json.loads, path.read_text("utf-8").splitlines())
    assert row["parameters"] <= row["planted_parameters"]
    main(config)
    assert len(path.read_text("utf-8").splitlines()) == 1
    ((name, order, listed, met, evaluations, least, _),) = planted_table([row])[1]
    assert (name, order, listed, met) == ("ring", "4", "3", "1 of 1")
    assert float(evaluations) < int(least) == 28
