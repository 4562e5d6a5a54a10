"""The compression as a recipe: a small network end to end, what it leaves, run again, and its errors."""

from __future__ import annotations

import dataclasses
import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import tnalgebra as tn
from docs.experiment_block import images_text
from recipes import compress, networks
from recipes.compress import Config, main
from recipes.compressions import compression_row, summary
from recipes.kept import keep, read_folder, read_kept
from tests.refusals import refused
from tnalgebra.checkpoint.file import load
from tnalgebra.command import build_model
from tnalgebra.command import compress as work
from tnalgebra.command.compress import MODEL, ONNX, PAGE, RESULT, TEXT
from tnalgebra.errors import DataError
from tnalgebra.model import load_images, mean_divergence
from tnalgebra.studies.accuracy import accuracy

NET = (
    "from torch import nn\n"
    "def build(classes, channels, width=8):\n"
    "    return nn.Sequential(nn.Conv2d(channels, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(),\n"
    "                         nn.Conv2d(6, width, 3), nn.BatchNorm2d(width), nn.ReLU(),\n"
    "                         nn.Flatten(), nn.Linear(16 * width, classes))\n"
)


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    """A network of three layers with weights in a file, of which the middle one and the classifier can get smaller."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "small_compressible_nets.py").write_text(NET)
    torch.manual_seed(5)
    model = build_model("small_compressible_nets:build", classes=10, channels=1)
    torch.save(model.state_dict(), "w.pth")
    return Config(
        model="small_compressible_nets:build",
        weights="w.pth",
        rewrite=("out kh | in kw", "out | in"),
        smoke=True,
        memory_format="contiguous",
        device="cpu",
        output=Path("out"),
    )


def rebuilt(config: Config) -> torch.nn.Module:
    model = build_model(config.model, classes=10, channels=1)
    return load(config.output / MODEL, into=model).eval()


def test_the_files_hold_what_was_found(quick: Config, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    result = main(dataclasses.replace(quick, recalibrate_bn=True, threads=1))
    assert torch.get_num_threads() == threads
    assert {path.name for path in quick.output.iterdir()} == {MODEL, TEXT, PAGE, RESULT, "drawings"}
    assert json.loads((quick.output / RESULT).read_text()) == json.loads(json.dumps(result))
    printed = capsys.readouterr().out
    assert (quick.output / TEXT).read_text() in printed
    assert "points, 60 test images" in printed
    assert result["images"] == 60
    assert [row["name"] for row in result["layers"]] == ["0", "3", "7"]
    assert result["layers"][0]["rule"] is None, "the first is skipped"
    assert 0 < result["parameters"]["after"] <= 0.5 * result["parameters"]["before"]
    assert result["multiply_adds"]["after"] < result["multiply_adds"]["before"]
    timed = {"dense", "dense, channels_last", "compressed", "compressed, frozen"}
    assert set(result["latency"]["seconds"]) == timed
    assert set(result["latency"]["speed_up"]) == timed - {"dense"}
    assert all(seconds > 0 for seconds in result["latency"]["seconds"].values())
    model = rebuilt(quick)
    assert sum(parameter.numel() for parameter in model.parameters()) == result["parameters"]["after"]
    images = load_images("digits", "test").subset(60, seed=0)
    assert accuracy(model, images, batch_size=60) == result["accuracy"]["after"]


@pytest.mark.slow
@pytest.mark.parametrize("change", [{"size": "multiply-adds 0.6"}, {"sequential": True}, {"calibrate": 0}])
def test_other_budgets_and_norms(quick: Config, change: dict[str, Any]) -> None:
    result = main(dataclasses.replace(quick, **change))
    kept, bound = ("multiply_adds", 0.6) if "size" in change else ("parameters", 0.5)
    assert 0 < result[kept]["after"] <= bound * result[kept]["before"]
    errors = [row["output_error"] for row in result["layers"] if row["rule"] is not None]
    assert errors
    assert all((error is None) == (change.get("calibrate") == 0) for error in errors)


def test_channels_last_is_what_is_converted_and_timed(quick: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []
    convert = tn.convert

    def spied(model: torch.nn.Module, *given: Any, **named: Any) -> object:
        seen.extend([model[3].weight, named["example"], *named["calibration"]])
        return convert(model, *given, **named)

    monkeypatch.setattr(work, "convert", spied)
    result = main(dataclasses.replace(quick, memory_format="channels_last"))
    assert len(seen) == 3
    # of one channel, contiguous and channels_last are the same: the images say nothing, the kernel does
    assert all(tensor.is_contiguous(memory_format=torch.channels_last) for tensor in seen)
    assert not seen[0].is_contiguous()
    assert result["latency"]["memory_format"] == "channels_last"
    assert "dense, contiguous" in result["latency"]["seconds"]


def test_a_second_run_shows_what_is_there(
    quick: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = main(quick)
    capsys.readouterr()
    monkeypatch.setattr(work, "convert", None)
    assert main(quick) == json.loads(json.dumps(first))
    assert (quick.output / TEXT).read_text() in capsys.readouterr().out
    with refused(tn.errors.StudyError, str(quick.output), "parameters 0.5", "parameters 0.6", "seed: 0 there, 1 here"):
        main(dataclasses.replace(quick, size="parameters 0.6", seed=1))
    state = torch.load("w.pth")
    torch.save({key: value + 1 for key, value in state.items()}, "w.pth")
    with refused(tn.errors.StudyError, "weights_digest"):
        main(quick)


def test_where_writing_fails_there_is_no_report(quick: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(work, "save", full)
    with refused(tn.errors.StudyError, quick.output, "no space left"):
        main(quick)
    assert list(quick.output.iterdir()) == []


@pytest.mark.slow
def test_cnn4_is_trained_first_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = Config(rewrite=("out kh | in kw",), calibrate=0, smoke=True, device="cpu", output=tmp_path)
    main(config)
    (weights,) = tmp_path.glob("cnn4-*.safetensors")
    assert "training cnn4 on 1437 images of digits" in capsys.readouterr().out
    (tmp_path / RESULT).unlink()
    monkeypatch.setattr(networks, "train", None)
    main(config)
    assert list(tmp_path.glob("cnn4-*.safetensors")) == [weights]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_onnx(quick: Config) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    main(dataclasses.replace(quick, onnx=True))
    session = onnxruntime.InferenceSession(str(quick.output / ONNX), providers=["CPUExecutionProvider"])
    model = rebuilt(quick)
    for count in (1, 5):
        x = torch.randn(count, 1, 8, 8)
        (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        expected = model(x).detach()
        # float32: a few hundred terms, summed in another order
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-4)


OWN = ["--model", "small_compressible_nets:build"]
ERRORS = {
    "model": (["--model", "resnet21"], "'resnet21'"),
    "no weights": (["--model", "resnet20"], "'resnet20' is not trained"),
    "weights missing": ([*OWN, "--weights", "nowhere.pth"], "'nowhere.pth'"),
    "data": ([*OWN, "--data", "nowhere"], "'nowhere'"),
    "size 0": (["--size", "parameters 0"], "ParameterBudget(0.0)"),
    "size": (["--size", "0.5"], "'multiply-adds 0.5'"),
    "too small a budget": ([*OWN, "--untrained", "--smoke", "--size", "parameters 0.001"], "cannot be met"),
    "rewrite": (["--rewrite", "tuker2"], "'tuker2'"),
    "no rewrite": (["--rewrite"], "no rewrite"),
    "sequential": (["--sequential", "--calibrate", "0"], "--calibrate 1024"),
    "skip": ([*OWN, "--untrained", "--smoke", "--skip", "layer9.*"], "'layer9.*'"),
    "rounds": (["--rounds", "0"], "rounds is 0"),
    "output is a file": ([*OWN, "--untrained", "--output", "file"], "file is not a folder"),
    "report": ([*OWN, "--untrained", "--output", "other"], "report.json"),
}


@pytest.mark.parametrize(("given", "fact"), ERRORS.values(), ids=ERRORS)
def test_errors_are_one_message_and_leave_no_output(
    given: list[str],
    fact: str,
    quick: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "file").write_text("not a folder")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / RESULT).write_text("[]")
    monkeypatch.setattr("sys.argv", ["compress", "--device", "cpu", *given])
    with pytest.raises(SystemExit) as caught:
        compress.run()
    assert caught.value.code == 2
    message = capsys.readouterr().err
    assert message.startswith("error: ")
    assert fact in message
    assert not Path("runs").exists()


def test_images_are_held_out_and_the_cores_learn_from_the_others(quick: Config) -> None:
    quick = dataclasses.replace(quick, size="multiply-adds 0.5", held_out=16)
    result = main(dataclasses.replace(quick, distil=2.0))
    before, after = result["divergence"]
    assert 0 < after < before
    fitted = main(dataclasses.replace(quick, output=Path("fitted")))
    assert "fitted" not in fitted["accuracy"]
    assert result["accuracy"]["fitted"] == fitted["accuracy"]["after"]
    text = (quick.output / TEXT).read_text()
    assert "16 training images held out" in text
    assert f"{100 * fitted['accuracy']['after']:.2f} % before the distillation" in text
    with refused(DataError, "64 of 64", "--calibrate"):
        main(dataclasses.replace(quick, held_out=64, output=Path("more")))


def test_the_divergence_is_that_of_the_recalibrated_network(quick: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[dict[str, torch.Tensor]] = []

    def recorded(dense: torch.nn.Module, model: torch.nn.Module, images: list[torch.Tensor]) -> float:
        measured.append({name: buffer.clone() for name, buffer in model.named_buffers()})
        return mean_divergence(dense, model, images)

    monkeypatch.setattr("tnalgebra.command.compress.mean_divergence", recorded)
    main(dataclasses.replace(quick, held_out=16, recalibrate_bn=True))
    saved = dict(rebuilt(quick).named_buffers())
    torch.testing.assert_close(measured[-1], saved, rtol=0, atol=0)
    trained = build_model(quick.model, classes=10, channels=1)
    trained.load_state_dict(torch.load("w.pth"))
    assert not torch.equal(saved["1.running_mean"], trained[1].running_mean)


def test_images_held_out_do_not_recalibrate(quick: Config) -> None:
    training = load_images("digits", "train").subset(120, seed=0)
    settings = dataclasses.replace(quick, held_out=40)
    held_out, others = settings.held_out_images(training), settings.recalibration(training)
    assert (len(held_out), len(others)) == (40, 80)
    assert torch.cdist(held_out.pixels.flatten(1).double(), others.pixels.flatten(1).double()).min() > 0
    with refused(DataError, "40 of 30", "--held-out"):
        settings.check_held_out(training.subset(30, seed=0))


@pytest.mark.parametrize("factor", [1.5, math.nan])
def test_a_distillation_that_makes_it_worse_is_undone(
    factor: float, quick: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoil(model: torch.nn.Module, *_: object, **__: object) -> None:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(factor)

    fitted = main(dataclasses.replace(quick, held_out=16, output=Path("fitted")))
    monkeypatch.setattr("tnalgebra.command.compress.distil", spoil)
    result = main(dataclasses.replace(quick, held_out=16, distil=0.2))
    assert result["undone"]
    assert not fitted["undone"]
    assert not result["divergence"][1] <= result["divergence"][0] == fitted["divergence"][0]
    assert result["accuracy"]["after"] == fitted["accuracy"]["after"]
    text = (quick.output / TEXT).read_text()
    assert f"raised it to {result['divergence'][1]:.4f}, and is undone" in text
    row = compression_row(quick.output)
    assert row is not None
    assert "0.2 passes, undone" in summary([row])
    without_guard = main(dataclasses.replace(quick, distil=0.2, output=Path("no-images-held-out")))
    assert not without_guard["undone"]


def test_a_row_has_as_many_images_as_there_were(quick: Config) -> None:
    settings = dataclasses.replace(quick, smoke=False, calibrate=5000, held_out=16, limit=60, rounds=1)
    main(settings)
    row = compression_row(quick.output)
    assert row is not None
    training = load_images("digits", "train")
    assert row["calibrate"] == len(training) < 5000
    assert f" {len(settings.calibration(training)):,} training images without their labels" in images_text([row])


def test_a_folder_of_compressions_is_kept_as_a_row_each(quick: Config, tmp_path: Path) -> None:
    results = [
        main(dataclasses.replace(quick, size=size, held_out=16, distil=0.5, output=Path("runs") / name))
        for name, size in (("a", "parameters 0.7"), ("b", "multiply-adds 0.5"))
    ]
    keep(Path("runs"), tmp_path / "kept.jsonl")
    rows = read_kept(tmp_path / "kept.jsonl").rows
    approx = partial(pytest.approx, rel=1e-5)  # kept with six digits
    assert [row["size"] for row in rows] == ["parameters 0.7", "multiply-adds 0.5"]
    for row, result in zip(rows, results, strict=True):
        assert row["compression"] == "out kh | in kw or out | in"
        assert row["accuracy_change"] == approx(result["accuracy"]["after"] - result["accuracy"]["before"])
        assert [row["divergence_before"], row["divergence"]] == approx(result["divergence"])
        assert row["parameters_kept"] == approx(result["parameters"]["after"] / result["parameters"]["before"])
        errors = [layer["output_error"] for layer in result["layers"] if layer["rule"] is not None]
        assert row["mean_squared_relative_error"] == approx(sum(error**2 for error in errors) / len(errors))
        lines = summary(rows).splitlines()
        number = next(number for number, line in enumerate(lines) if str(row["size"]) in line)
        fitted, distilled = lines[number : number + 2]
        assert f"{row['parameters']:,}" in fitted
        assert f"{100 * result['accuracy']['fitted']:.2f}" in fitted
        assert f"{row['divergence_before']:.4f}" in fitted
        assert ("0.5 passes, undone" if result["undone"] else "0.5 passes") in distilled
        assert result["undone"] or f"{100 * result['accuracy']['after']:.2f}" in distilled
        assert f"{row['divergence']:.4f}" in distilled
    both = summary([*rows, {**rows[0], "model": "another", "accuracy": 0.5}]).splitlines()
    heads = [line.split("  ")[0] for line in both if "none (dense)" in line]
    assert heads == [rows[0]["model"], "another"]
    assert both[: len(lines)] == lines
    assert read_folder(Path("runs") / "a") == [compression_row(Path("runs") / "a")]
    assert compression_row(tmp_path) is None
