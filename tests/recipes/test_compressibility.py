"""The study as a command: its numbers on real data, its settings, killed and run again, and its errors."""

from __future__ import annotations

import dataclasses
import json
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import tnalgebra as tn
from recipes import compressibility, networks
from recipes.compressibility import Config, main
from tests.refusals import refused
from tests.study_cases import without_seconds
from tnalgebra.command import build_model
from tnalgebra.studies import Row, read_rows

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
ROWS = "results.jsonl"
QUICK = Config(
    rewrite=("out kh | in kw", "in | out kh kw then kw | out in kh"),
    size=("keep 0.5", "keep 0.25"),
    epochs=2,
    limit=60,
    device="cpu",
)
"""17 rows: untouched; two cuts, two fractions, three layers alone and together."""


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Figures take longer than all the rest."""
    monkeypatch.setattr(import_module("tnalgebra.studies.study"), "draw_kernels", lambda *_, **__: None)
    monkeypatch.setattr(import_module("tnalgebra.studies.runner"), "draw_results", lambda *_, **__: None)


@pytest.fixture
def untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    """No network is trained here."""
    monkeypatch.setattr(networks, "train", None)


def quick(output: Path, **settings: Any) -> Config:
    return dataclasses.replace(QUICK, output=output, **settings)


def arguments(config: Config) -> list[str]:
    """The command line of a config, as far as it differs from the default."""
    found = []
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        if value != field.default:
            found += ["--" + field.name.replace("_", "-")]
            found += map(str, value) if isinstance(value, tuple) else [str(value)]
    return found


# numbers on real data


@pytest.fixture(scope="session")
def resnet20(cifar10_folder: Path, resnet20_weights: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Row]:
    """The rows of the judged cuts, the second added to the folder of the first."""
    config = Config(
        model="resnet20",
        weights=str(resnet20_weights),
        data=str(cifar10_folder),
        rewrite=("out kh | in kw",),
        size=("keep 0.5",),
        scope=("all",),
        device="cpu",
        output=tmp_path_factory.mktemp("resnet20"),
    )
    first = main(config)
    second = main(dataclasses.replace(config, rewrite=("out | in kh kw",), size=("keep 0.75",)))
    assert second.rows[0] == first.rows[0]
    assert read_rows(config.output) == [*first.rows, second.rows[1]]
    return read_rows(config.output)


def test_resnet20_on_all_test_images(resnet20: list[Row]) -> None:
    found = [
        (row["rewrite"], row["keep"], 100 * row["accuracy"], row["mean_squared_relative_error"]) for row in resnet20
    ]
    expected = [
        ("none", None, 91.73, 0),
        ("out kh | in kw", 0.5, 90.68, 0.0335),
        ("out | in kh kw", 0.75, 81.79, 0.0656),
    ]
    for (rewrite, keep, top1, error), wanted in zip(found, expected, strict=True):
        assert (rewrite, keep) == wanted[:2]
        assert top1 == pytest.approx(wanted[2], abs=0.05)
        assert error == pytest.approx(wanted[3], abs=1e-3)
    assert [row["images"] for row in resnet20] == [10_000] * 3
    assert [len(row["layers"]) for row in resnet20] == [0, 18, 18], "every convolution but the first"


def test_resnet20s_parameters_by_hand(resnet20: list[Row]) -> None:
    widths = [16] * 7 + [32] * 6 + [64] * 6
    pairs = list(zip(widths[1:], widths[:-1], strict=True))
    total = sum(parameter.numel() for parameter in build_model("resnet20", classes=10, channels=3).parameters())
    dense = sum(9 * out * into for out, into in pairs)
    kh_kw = sum(round(0.5 * 3 * min(out, into)) * 3 * (out + into) for out, into in pairs)
    out_only = sum(round(0.75 * out) * (out + 9 * into) for out, into in pairs)
    assert [row["parameters_kept"] for row in resnet20] == pytest.approx(
        [1, (total - dense + kh_kw) / total, (total - dense + out_only) / total], rel=1e-12
    )


# the default job, small


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run as a process of its own."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    done = subprocess.run(command(quick(folder)), cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "no progress bar where standard error is no terminal"
    (folder / "stdout").write_text(done.stdout)
    return folder


def command(config: Config) -> list[str]:
    return [sys.executable, "-m", "recipes.compressibility", *arguments(config)]


def test_the_config_is_printed_first_and_the_table_last(uninterrupted: Path) -> None:
    lines = (uninterrupted / "stdout").read_text().splitlines()
    fields = [field.name for field in dataclasses.fields(Config)]
    assert [line.split()[0] for line in lines[: len(fields)]] == fields
    assert {"limit 60", "device cpu"} <= {" ".join(line.split()) for line in lines}
    assert "60 images of 10 classes, 1 x 8 x 8, mean (0.0,), std (1.0,)" in lines
    assert "training cnn4 on 1437 images of digits" in lines
    assert lines[-1] == f"rows and figures: {uninterrupted}/"
    table = lines[lines.index(next(line for line in lines if line.startswith("rewrite") and "top-1" in line)) : -2]
    assert len(table) == 2 + 5, "the untouched network, and two cuts of two fractions"


def test_rows_figures_and_weights_are_in_the_folder(uninterrupted: Path) -> None:
    assert len(read_rows(uninterrupted)) == 17
    names = {file.name for file in uninterrupted.iterdir()}
    figures = {"accuracy_against_norm", "accuracy_against_parameters", "layers", "networks", "spectra"}
    assert {f"{name}{suffix}" for name in figures for suffix in (".png", ".svg")} <= names
    (weights,) = uninterrupted.glob("cnn4-*.safetensors")
    assert names == {*(f"{name}{kind}" for name in figures for kind in (".png", ".svg"))} | {
        weights.name,
        weights.stem,
        ROWS,
        "config.json",
        ".lock",
        "commands.txt",
        "stdout",
    }


def test_it_continues_after_kills_with_the_same_rows(uninterrupted: Path, tmp_path: Path) -> None:
    """Killed in the middle of training, and among rows with a line half written."""
    config = quick(tmp_path)
    rows = tmp_path / ROWS
    _kill(config, lambda: (tmp_path / ".lock").exists())  # taken for the training
    assert not any(tmp_path.glob("cnn4-*.safetensors")), "it was training"
    _kill(config, lambda: rows.exists() and rows.read_bytes().count(b"\n") >= 9)
    lines = rows.read_bytes().splitlines(keepends=True)
    rows.write_bytes(b"".join(lines[:7]) + lines[7][: len(lines[7]) // 2])
    earlier = read_rows(tmp_path)
    found = main(config)
    assert read_rows(tmp_path)[:7] == earlier, "a row that was there is as it was, its seconds too"
    assert len(read_rows(tmp_path)) == 17
    assert without_seconds(read_rows(tmp_path)) == without_seconds(found.rows)
    assert without_seconds(found.rows) == without_seconds(read_rows(uninterrupted))


def _kill(config: Config, moment: Callable[[], bool]) -> None:
    """Run the command and kill it without warning as soon as `moment` comes."""
    with subprocess.Popen(command(config), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
        deadline = time.monotonic() + 100
        while not moment():
            assert process.poll() is None, process.stderr and process.stderr.read().decode()
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.kill()


@pytest.mark.usefixtures("untrained")
def test_a_second_run_repeats_nothing_and_trains_nothing(
    uninterrupted: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(import_module("tnalgebra.studies.row_results"), "accuracy", None)
    before = (uninterrupted / ROWS).stat().st_mtime_ns
    assert sorted(main(quick(uninterrupted)).rows, key=repr) == sorted(read_rows(uninterrupted), key=repr)
    assert (uninterrupted / ROWS).stat().st_mtime_ns == before
    assert "training" not in capsys.readouterr().out


@pytest.mark.usefixtures("untrained")
def test_another_config_is_refused_before_anything_is_trained(uninterrupted: Path) -> None:
    before = sorted((file.name, file.stat().st_mtime_ns) for file in uninterrupted.iterdir())
    settings: dict[str, Any]
    for settings, fact in [
        ({"seed": 1}, '(60 of 360, seed 0)" there, "digits/test (60 of 360, seed 1)" here'),
        ({"epochs": 3}, "epochs: 2 there, 3 here"),
        ({"limit": None}, '(60 of 360, seed 0)" there, "digits/test" here'),
        ({"mean": (0.5,)}, "mean: [0.0] there, [0.5] here"),
    ]:
        with refused(tn.errors.StudyError, uninterrupted, "another config", fact):
            main(quick(uninterrupted, **settings))
    assert sorted((file.name, file.stat().st_mtime_ns) for file in uninterrupted.iterdir()) == before


REWRITES: dict[str, Any] = {
    "rewrite": ("out | in kh kw", "K[o i h w] => A[o r] B[i r h] C[h w r]"),
    "size": ("r=2", "r=4"),
    "scope": ("all",),
}


@pytest.mark.usefixtures("untrained", "undrawn")
def test_rewrites_in_the_folder_of_cuts(uninterrupted: Path) -> None:
    before = read_rows(uninterrupted)
    found = main(quick(uninterrupted, **REWRITES)).rows
    assert [(row["rewrite"], row["ranks"], list(row["layers"])) for row in found[1:]] == [
        (rewrite, ranks, ["conv2", "conv3", "conv4"]) for rewrite in REWRITES["rewrite"] for ranks in ("r=2", "r=4")
    ]
    settings = REWRITES | {"rewrite": REWRITES["rewrite"][:1], "metric": "output", "calibrate": 100}
    fitted = main(quick(uninterrupted, **settings)).rows
    assert [row["calibration"][:10] for row in fitted[1:]] == ["100 images"] * 2
    settings = settings | {"metric": "frobenius", "size": ("parameters 0.6",), "curves": "divergence"}
    budget = main(quick(uninterrupted, **settings)).rows
    assert 0.4 < budget[1]["parameters_kept"] <= 0.6
    rows = read_rows(uninterrupted)
    assert rows == [*before, *found[1:], *fitted[1:], *budget[1:]]
    assert {row["config"] for row in rows} == {before[0]["config"]}


@pytest.mark.usefixtures("untrained", "undrawn")
def test_the_report_of_the_input_metric(uninterrupted: Path) -> None:
    settings: dict[str, Any] = {"scope": ("all",), "report_metric": True, "calibrate": 50}
    rows = main(quick(uninterrupted, **settings)).rows
    assert [(row["reported"], row["calibration"][:10]) for row in rows[1:]] == [("input", "50 images ")] * 4
    plain = main(quick(uninterrupted, scope=("all",))).rows
    for row, other in zip(rows[1:], plain[1:], strict=True):
        assert row["accuracy"] == other["accuracy"]
        assert all(0 < layer["output_error"] < 1 for layer in row["layers"].values())
        assert all("output_error" not in layer for layer in other["layers"].values())


def test_calibration_images_are_chosen_by_the_seed_and_have_no_labels() -> None:
    training = tn.load_images("digits", "train")
    one, other, again = (Config(calibrate=50, seed=seed).calibration(training) for seed in (0, 1, 0))
    assert len(one) == 50
    assert not one.labels.any()
    assert one.fingerprint == again.fingerprint != other.fingerprint
    everything = Config(calibrate=10**6).calibration(training)
    torch.testing.assert_close(everything.pixels, training.pixels, rtol=0, atol=0)


@pytest.mark.usefixtures("undrawn")
def test_it_trains_cnn4_well(tmp_path: Path) -> None:
    rows = main(
        Config(rewrite=QUICK.rewrite[:1], size=("keep 0.5",), scope=("all",), device="cpu", output=tmp_path)
    ).rows
    assert rows[0]["accuracy"] > 0.97
    assert rows[0]["images"] == 360


# settings


def write_images(folder: Path, classes: Sequence[str], splits: Sequence[str] = ("train", "test")) -> Path:
    generator = np.random.default_rng(0)
    for split in splits:
        for name in classes:
            (folder / split / name).mkdir(parents=True)
            for number in range(4):
                pixels = generator.integers(256, size=(8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{number}.png")
    return folder


@pytest.mark.usefixtures("undrawn")
def test_a_folder_of_images_and_a_network_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_nets.py").write_text(
        "from torch import nn\n"
        "def build(classes, width=6):\n"
        "    return nn.Sequential(nn.Conv2d(3, width, 3), nn.BatchNorm2d(width), nn.ReLU(),\n"
        "                         nn.Conv2d(width, classes, 6), nn.Flatten())\n"
    )
    write_images(tmp_path / "data", ["cat", "dog", "eel"])
    config = Config(
        model="own_nets:build",
        untrained=True,
        data="data",
        rewrite=("out | in kh kw",),
        size=("keep 0.4",),
        output=Path("out"),
    )
    row = main(config).rows[1]
    assert (row["model"], row["images"]) == ("own_nets:build", 12)
    assert row["layers"]["3"]["rank"] == 1
    assert "12 images of 3 classes, 3 x 8 x 8, mean (0.485, 0.456, 0.406)" in capsys.readouterr().out
    torch.manual_seed(1)
    again = main(config)
    assert again.rows[1] == row, "the same first weights: of the seed"
    model = build_model("own_nets:build", classes=3, channels=3)
    torch.save({"state_dict": {f"module.{key}": value for key, value in model.state_dict().items()}}, "w.pth")
    other = dataclasses.replace(
        config, weights="w.pth", recalibrate_bn=True, recalibrate_shift=1, output=Path("weights")
    )
    assert main(other).rows[1]["layers"] != row["layers"]
    assert json.loads(Path("weights/config.json").read_text())["recalibration"][1] == 1
    assert json.loads(Path("out/config.json").read_text())["recalibration"] is None


def test_the_help_names_every_setting(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["compressibility", "--help"])
    with pytest.raises(SystemExit) as caught:
        compressibility.run()
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    for field in dataclasses.fields(Config):
        assert "--" + field.name.replace("_", "-") in shown
    assert "python -m recipes.compressibility --model resnet20" in shown
    assert "half a minute" in shown
    assert max(map(len, shown.splitlines())) <= 100, "tyro does not wrap what stands above the options"
    assert "\n\n\n" not in shown


# errors


ERRORS = {
    "--rewrite 'out in | in kh kw'": "'in'",
    "--rewrite": "rewrites: 0",
    "--size 'keep 0'": "KeepFraction(0.0)",
    "--rewrite cp --size r:2": "'r:2'",
    "--rewrite cp": "'keep 0.75'",
    "--rewrite 'out | in kh kw' tuker2": "'tuker2'",
    "--size 's=2'": "'s'",
    "--rewrite cp --size 'parameters 1.5'": "1.5",
    "--rewrite cp --size r=2 --metric input --calibrate 0": "calibrate",
    "--scope layer9.*": "'layer9.*'",
    "--limit 0": "limit is 0",
    "--model nowhere.nets:build": "'nowhere.nets'",
    "--model resnet20 --data cifar": "'cifar'",
    "--model torchvision:resnet19": "resnet18",
    "--weights nowhere.pth": "'nowhere.pth'",
    "--data nowhere": "'nowhere'",
    "--output file/below": "file/below",
    "--mean 0.5 0.5": "mean=(0.5, 0.5)",
    "--image-size 16": "image_size=16",
    "--epochs 0": "epochs",
}


@pytest.mark.parametrize("given", ERRORS)
def test_errors_are_one_message_and_leave_no_output(
    given: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["compressibility", *shlex.split(given)])
    with pytest.raises(SystemExit) as caught:
        compressibility.run()
    assert caught.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert ERRORS[given] in message
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_the_command_fails_without_a_traceback(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "recipes.compressibility", "--size", "keep 0"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_interrupting_says_that_it_can_continue(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> float:
        raise KeyboardInterrupt

    monkeypatch.setattr(import_module("tnalgebra.studies.row_results"), "accuracy", interrupted)
    monkeypatch.setattr("sys.argv", ["compressibility", *arguments(quick(tmp_path))])
    with pytest.raises(SystemExit) as caught:
        compressibility.run()
    assert caught.value.code == 130
    assert capsys.readouterr().err.startswith("\nstopped")
