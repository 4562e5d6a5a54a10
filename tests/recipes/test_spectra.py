"""Entropies of kernels as a command: numbers by hand, what it prints, writes and draws, and its errors."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from safetensors.torch import load_file

from recipes import spectra
from recipes.spectra import MEASURES, Config, Result, main
from tests.refusals import refused
from tnalgebra.command import build_model
from tnalgebra.errors import DataError, RuleError, StudyError
from tnalgebra.studies import Correlation, Draws, rank_correlation

NETWORK = """
import torch
from torch import nn


def build(classes=10, channels=3):
    return nn.Sequential(
        nn.Conv2d(channels, 7, 3),
        nn.Conv2d(7, 5, (2, 3)),
        nn.ConvTranspose2d(5, 4, (3, 2)),
        nn.Conv2d(4, 6, 1, groups=2),
        nn.Conv2d(6, 8, (3, 2)),
        nn.Conv2d(8, 9, 2),
        nn.Linear(9, classes),
    )


def same():
    torch.manual_seed(5)
    return build()


def one():
    return nn.Linear(3, 4)
"""
"""Every axis of a kernel has another size, and one kernel has windows of one element."""
QUICK = Config(model="spectra_nets:build", resamples=40)


@pytest.fixture(autouse=True)
def _own_networks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of networks in the current directory; the tests' output is beside it."""
    (tmp_path / "spectra_nets.py").write_text(NETWORK)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "spectra_nets", raising=False)


@pytest.fixture
def unwritten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers alone, which are quicker without their figures."""
    monkeypatch.setattr(spectra, "_write", lambda *_: None)


def found_with(**settings: Any) -> Result:
    return main(dataclasses.replace(QUICK, **settings))


def trained_weights(path: Path, seed: int = 3) -> str:
    """Weights whose kernels are far from even, one of them of rank one across out | in kh kw."""
    model = build_model("spectra_nets:build", classes=10, channels=3, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.data *= torch.rand(parameter.shape, generator=generator) ** 3
    weight = model.get_submodule("5").weight
    weight.data = torch.rand(9, 1, 1, 1, generator=generator) * weight.data[:1]
    torch.save(model.state_dict(), path)
    return str(path)


def by_hand(weight: torch.Tensor, labels: Sequence[str], left: Sequence[str], norm: float) -> dict[str, float]:
    """Of the matrix with `left` in its rows."""
    right = [label for label in labels if label not in left]
    turned = weight.detach().double().permute([labels.index(label) for label in (*left, *right)])
    values = torch.linalg.svdvals(turned.reshape(math.prod(turned.shape[: len(left)]), -1)).tolist()
    shares = [value**2 / sum(value**2 for value in values) for value in values]
    entropy = -sum(share * math.log(share) for share in shares if share > 1e-20)
    needed = next(k for k in range(1, len(values) + 1) if sum(shares[:k]) >= norm)
    return {
        "values": len(values),
        "entropy": entropy,
        "normalised_entropy": entropy / math.log(len(values)) if len(values) > 1 else math.nan,
        "effective_rank": math.exp(entropy),
        "effective_rank_part": math.exp(entropy) / len(values),
        "participation_ratio": 1 / sum(share**2 for share in shares),
        "needed": needed,
        "needed_part": needed / len(values),
    }


@pytest.mark.usefixtures("unwritten")
def test_numbers_by_hand(tmp_path: Path) -> None:
    weights = trained_weights(tmp_path / "w.pth")
    found = found_with(weights=weights, norm=0.9, seed=4)
    model, fresh = (build_model("spectra_nets:build", classes=10, channels=3, seed=seed) for seed in (3, 4))
    model.load_state_dict(torch.load(weights))
    assert [*found.rows["layer"]] == [name for name in "12345" for _ in range(7)] + ["6"]
    assert [*found.rows["depth"]] == [depth for depth in range(1, 6) for _ in range(7)] + [6]
    for row in found.rows.itertuples():
        labels = {"2": ["in", "out", "kh", "kw"], "6": ["out", "in"]}.get(row.layer, ["out", "in", "kh", "kw"])
        left = row.cut.split(" | ")[0].split()
        expected = by_hand(model.get_submodule(row.layer).weight, labels, left, 0.9)
        # values below 1e-6 of the largest are rounding of a Gram matrix, and so is 1e-12 of the entropy
        for name, value in expected.items():
            assert getattr(row, name) == pytest.approx(value, rel=1e-9, abs=1e-9, nan_ok=True), (row, name)
        random = by_hand(fresh.get_submodule(row.layer).weight, labels, left, 0.9)
        for name, ours in (("difference", "entropy"), ("normalised_difference", "normalised_entropy")):
            assert getattr(row, name) == pytest.approx(expected[ours] - random[ours], abs=1e-9, nan_ok=True)
        assert row.fresh_entropy == pytest.approx(random["entropy"], abs=1e-9)
    rows = {(row.layer, row.cut): row for row in found.rows.itertuples()}
    flat = rows["5", "out | in kh kw"]
    assert (flat.entropy, flat.needed) == (pytest.approx(0, abs=1e-9), 1), "all of it is one value"
    assert math.isnan(rows["3", "kh | out in kw"].normalised_entropy), "one value has no ln r to be compared with"


@pytest.mark.usefixtures("unwritten")
def test_values_needed_of_equal_values(tmp_path: Path) -> None:
    """Of eight equal values k hold k / 8, of which 1, 3, 4 and 6 fall short by rounding."""
    model = build_model("spectra_nets:build", classes=8, channels=3)
    model.get_submodule("6").weight.data = torch.eye(8, 9)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    for norm, needed in ((0.45, 4), *((k / 8, k) for k in range(1, 9))):
        (row,) = found_with(weights=str(tmp_path / "w.pth"), classes=8, layers=("6",), norm=norm).rows.itertuples()
        assert (row.needed, row.needed_part) == (needed, needed / 8)
        assert row.normalised_entropy == pytest.approx(1, abs=1e-12)


@pytest.mark.usefixtures("unwritten")
def test_correlations_are_those_of_the_rows(tmp_path: Path) -> None:
    found = found_with(weights=trained_weights(tmp_path / "w.pth"), seed=2)
    lines = [row for row in found.rows.to_dict("records") if row["values"] > 1]
    windows = {row["layer"] for row in lines if row["cut"] == "kh | out in kw"}
    even = [row for row in lines if row["layer"] in windows]
    for layer in dict.fromkeys(row["layer"] for row in lines if row["layer"] not in windows):
        even.append({**next(row for row in lines if row["layer"] == layer), "cut": "out | in"})
    for measure, depths in found.correlations.items():
        assert {*depths.cuts} == {row["cut"] for row in even}
        for cut, correlation in depths.cuts.items():
            some = pd.DataFrame([row for row in even if row["cut"] == cut])
            again = rank_correlation(some["depth"], some[measure], units=[*some["depth"]], draws=Draws(2, 40))
            assert correlation == again
        rhos = [each.rho for each in depths.cuts.values() if each.why is None]
        assert len(rhos) == 7, "all but that of the two layers without a window"
        assert depths.mean.rho == pytest.approx(sum(rhos) / 7)
        assert depths.mean.units == 4, "a layer is drawn with all its cuts"
    four = found.correlations["normalised_entropy"].cuts["kh | out in kw"]
    assert four.units == 4, "the layer whose window has one element is not among them"


@pytest.mark.slow
@pytest.mark.usefixtures("unwritten")
def test_a_network_that_has_only_its_builders_weights() -> None:
    """Then the same builder makes no other ones: torch draws them."""
    for name in ("build", "same"):
        rows = found_with(model=f"spectra_nets:{name}").rows
        assert (rows["difference"] != 0)[rows["values"] > 1].all()
        pd.testing.assert_frame_equal(rows, found_with(model=f"spectra_nets:{name}", skip=("0",)).rows)
        assert (found_with(model=f"spectra_nets:{name}", skip=()).rows["difference"][:14] != 0).all()
    other = found_with(model="spectra_nets:same", seed=1).rows
    assert (other["entropy"] == rows["entropy"]).all(), "its builder has a seed of its own"
    assert (other["fresh_entropy"] != rows["fresh_entropy"])[rows["values"] > 1].all()


@pytest.mark.slow
def test_the_smoke_run_trains_prints_writes_and_draws(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    drawn: list[Figure] = []
    own = spectra.figure_of
    monkeypatch.setattr(spectra, "figure_of", lambda *given: drawn.append(own(*given)) or drawn[0])
    run(monkeypatch, "--smoke", "--output", str(tmp_path / "out"))
    lines = capsys.readouterr().out.splitlines()
    assert "1437 training images of 10 classes, 1 channels" in lines
    assert lines[-1] == f"entropies.csv, spectra.csv, report.json and figures: {tmp_path}/out/"
    head = next(number for number, line in enumerate(lines) if line.split()[:2] == ["layer", "out"])
    names = [line.split("  ")[0] for line in lines[head + 2 : head + 9]]
    assert names == ["conv1", "conv2", "conv3", "conv4", "linear", "mean", "mean, fresh weights"]
    written = {file.name for file in (tmp_path / "out").iterdir()}
    (weights,) = (tmp_path / "out").glob("cnn4-*.safetensors")
    figures = {f"{name}{suffix}" for name in ("entropies", "spectra") for suffix in (".png", ".svg")}
    assert written == figures | {"entropies.csv", "spectra.csv", "report.json", weights.name, weights.stem}

    entropies = pd.read_csv(tmp_path / "out" / "entropies.csv")
    ours = ("layer", "depth", "cut", "values", "entropy", "normalised_entropy", "effective_rank", "effective_rank_part")
    rest = ("participation_ratio", "needed", "needed_part", "fresh_entropy", "difference", "normalised_difference")
    assert list(entropies.columns) == [*ours, *rest]
    assert len(entropies) == 4 * 7 + 1
    table = {name: line.split()[1:] for name, line in zip(names, lines[head + 2 :], strict=False)}
    values = entropies[entropies["layer"] == "conv4"]["normalised_entropy"]
    assert table["conv4"] == [f"{value:.3f}" for value in values]
    assert table["linear"][1:] == ["-"] * 6
    out = entropies[entropies["cut"].str.startswith("out |")]
    mean = out["normalised_entropy"].mean()
    assert table["mean"][0] == f"{mean:.3f}"
    assert table["mean, fresh weights"][2] == f"{mean - out['normalised_difference'].mean():.3f}"
    values = pd.read_csv(tmp_path / "out" / "spectra.csv")
    assert len(values) == entropies["values"].sum()
    first = values[(values["layer"] == "conv2") & (values["cut"] == "out | in kh kw")]
    state = load_file(weights)
    expected = torch.linalg.svdvals(state["conv2.weight"].double().flatten(1))
    assert first["singular_value"].tolist() == pytest.approx(expected.tolist(), rel=1e-8)

    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert (report["config"]["epochs"], report["config"]["channels"], report["layers"]) == (1, 1, names[:5])
    assert list(report["correlations"]) == list(MEASURES)
    cuts = report["correlations"]["normalised_difference"]["cuts"]
    assert cuts["out | in"]["rho"] is None
    correlation = Correlation(**cuts["kh | out in kw"])
    line = f"    kh | out in kw  {correlation.interval}  4 points, 4 drawn"
    assert any(each.startswith(line) for each in lines)

    (panel,) = drawn[0].axes
    assert [label.get_text() for label in panel.get_xticklabels()] == names[:5]
    solid, dashed = ([line for line in panel.get_lines() if line.get_linestyle() == style] for style in ("-", "--"))
    for cut, line, other in zip(dict.fromkeys(entropies["cut"]), solid, dashed, strict=True):
        there = entropies[(entropies["cut"] == cut) & (entropies["values"] > 1)]
        assert line.get_label().split("\n")[0] == cut
        assert line.get_color() == other.get_color()
        assert list(line.get_xdata()) == list(other.get_xdata()) == (there["depth"] - 1).tolist()
        assert list(line.get_ydata()) == pytest.approx(there["normalised_entropy"].tolist())
        difference = [a - b for a, b in zip(line.get_ydata(), other.get_ydata(), strict=True)]
        assert difference == pytest.approx(there["normalised_difference"].tolist())


@pytest.mark.slow
def test_a_second_run_is_the_same(tmp_path: Path) -> None:
    weights = trained_weights(tmp_path / "w.pth")
    contents = []
    for number in range(2):
        torch.manual_seed(number)
        found_with(weights=weights, layers=("[4-6]",), cuts=("out | in kh kw", "out | in"), output=tmp_path / "out")
        files = sorted((tmp_path / "out").iterdir())
        contents.append([file.read_bytes() for file in files if file.suffix in (".csv", ".json", ".png")])
    assert len(contents[0]) == 5
    assert contents[0] == contents[1]


@pytest.mark.usefixtures("unwritten")
def test_layers_and_cuts_are_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    rows = found_with(layers=("[0-2]", "6"), cuts=("kw in | kh out", "in kw | out kh", "kw | in out kh")).rows
    assert [*zip(rows["layer"], rows["cut"], strict=True)] == [
        (name, cut) for name in "12" for cut in ("kw | out in kh", "out kh | in kw")
    ]
    assert capsys.readouterr().out.splitlines().count("      none: fewer than 4 layers or rows: 2") == 2
    (row,) = found_with(model="spectra_nets:one", skip=()).rows.itertuples()
    assert (row.layer, row.cut, row.values) == ("weight", "out | in", 3)
    assert len(found_with(skip=()).rows) == len(found_with().rows) + 7


def test_bad_settings_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    other = trained_weights(tmp_path / "w.pth")
    for settings, kind, *facts in [
        ({"model": "resnet2"}, DataError, "'resnet2'"),
        ({"model": "resnet20", "weights": other}, DataError, "do not fit the network"),
        ({"model": "cnn4", "epochs": 0}, DataError, "epochs is 0"),
        ({"channels": 0}, DataError, "channels is 0"),
        ({"layers": ("6", "conv*")}, StudyError, "'conv*'", "0, 1, 2"),
        ({"layers": ("0",)}, StudyError, "no layer is left", "first"),
        ({"skip": ("conv",)}, StudyError, "'conv'"),
        ({"cuts": ("out | in",), "layers": ("1",)}, StudyError, "'out | in'", "out | in kh kw,"),
        ({"cuts": ("out in",)}, RuleError, "'|'"),
        *(({"norm": norm}, StudyError, f"norm is {norm:g}") for norm in (0.0, 1.01, math.nan)),
        ({"output": tmp_path / "file"}, StudyError, "entropies.csv cannot be written"),
    ]:
        with refused(kind, *facts):
            found_with(**{"output": tmp_path / "out"} | settings)
    assert not (tmp_path / "out").exists()
    with pytest.raises(SystemExit) as caught:
        run(monkeypatch, "--model", "resnet57")
    assert caught.value.code == 2


@pytest.mark.usefixtures("unwritten")
def test_a_resnet20_is_less_even_than_chance(resnet20_weights: Path) -> None:
    rows = found_with(model="resnet20", weights=str(resnet20_weights)).rows
    assert len(rows) == 18 * 7 + 1
    assert (rows["difference"] < 0).all()
    least = rows.loc[rows["normalised_entropy"].idxmin()]
    assert (least["layer"], least["cut"]) == ("layer3.2.conv2", "kw | out in kh")
    assert least["normalised_entropy"] == pytest.approx(0.372, abs=5e-4)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["spectra", *arguments])
    spectra.run()
