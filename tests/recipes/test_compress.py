"""The compression as a command: a small network end to end, what it leaves behind, run again, and its errors."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import tnalgebra as tn
from models import build_model
from recipes import compress
from recipes import networks as cnn4_training
from recipes.compress import Config, main
from tnalgebra.checkpoint.file import load
from tnalgebra.model.images import load_images
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
        device="cpu",
        output=Path("out"),
    )


def rebuilt(config: Config) -> torch.nn.Module:
    model = build_model(config.model, classes=10, channels=1)
    return load(config.output / compress.MODEL, into=model).eval()


def test_the_files_hold_what_was_found(quick: Config, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    result = main(dataclasses.replace(quick, recalibrate=True, threads=1))
    assert torch.get_num_threads() == threads
    assert {path.name for path in quick.output.iterdir()} == {compress.MODEL, compress.TEXT, compress.RESULT}
    assert json.loads((quick.output / compress.RESULT).read_text()) == json.loads(json.dumps(result))
    printed = capsys.readouterr().out
    fields = [field.name for field in dataclasses.fields(Config)]
    assert [line.split()[0] for line in printed.splitlines()[: len(fields)]] == fields
    assert (quick.output / compress.TEXT).read_text() in printed
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
    found = accuracy(model, images, batch_size=60, mean=(0.0,), std=(1.0,))
    assert found == result["accuracy"]["after"]


@pytest.mark.parametrize("change", [{"multiply_adds": 0.6}, {"sequential": True}, {"calibration_images": 0}])
def test_other_budgets_and_norms(quick: Config, change: dict[str, Any]) -> None:
    result = main(dataclasses.replace(quick, **change))
    kept = "multiply_adds" if "multiply_adds" in change else "parameters"
    bound = change.get(kept, 0.5)
    assert 0 < result[kept]["after"] <= bound * result[kept]["before"]
    errors = [row["output_error"] for row in result["layers"] if row["rule"] is not None]
    assert errors
    assert all((error is None) == (change.get("calibration_images") == 0) for error in errors)


def test_channels_last_is_what_is_converted_and_timed(quick: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[torch.Tensor] = []
    convert = tn.convert

    def spied(model: torch.nn.Module, *given: Any, **named: Any) -> object:
        seen.extend([model[3].weight, named["example"], *named["calibration"]])
        return convert(model, *given, **named)

    monkeypatch.setattr(tn, "convert", spied)
    result = main(dataclasses.replace(quick, channels_last=True))
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
    monkeypatch.setattr(tn, "convert", None)
    assert main(quick) == json.loads(json.dumps(first))
    assert (quick.output / compress.TEXT).read_text() in capsys.readouterr().out
    for change, fact in [({"parameters": 0.6}, "parameters: 0.5 there, 0.6 here"), ({"seed": 1}, "seed: 0 there")]:
        settings: dict[str, Any] = change
        with pytest.raises(tn.errors.StudyError, match=f"holds another compression\n(.*\n)*.*{fact}"):
            main(dataclasses.replace(quick, **settings))
    state = torch.load("w.pth")
    torch.save({key: value + 1 for key, value in state.items()}, "w.pth")
    with pytest.raises(tn.errors.StudyError, match="weights_digest"):
        main(quick)


def test_where_writing_fails_there_is_no_report(quick: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("tnalgebra.save", full)
    with pytest.raises(tn.errors.StudyError, match=r"model\.safetensors cannot be written\n  because: no space left"):
        main(quick)
    assert list(quick.output.iterdir()) == []


def test_cnn4_is_trained_first_and_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    config = Config(rewrite=("out kh | in kw",), calibration_images=0, smoke=True, device="cpu", output=tmp_path)
    main(config)
    (weights,) = tmp_path.glob("cnn4-*.pth")
    assert "training cnn4 on 1437 images of digits" in capsys.readouterr().out
    (tmp_path / compress.RESULT).unlink()
    monkeypatch.setattr(cnn4_training, "train_classifier", None)
    main(config)
    assert list(tmp_path.glob("cnn4-*.pth")) == [weights]


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning", "ignore::UserWarning")
def test_onnx(quick: Config) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    main(dataclasses.replace(quick, onnx=True))
    session = onnxruntime.InferenceSession(str(quick.output / compress.ONNX), providers=["CPUExecutionProvider"])
    model = rebuilt(quick)
    for count in (1, 5):
        x = torch.randn(count, 1, 8, 8)
        (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        expected = model(x).detach()
        # float32: a few hundred terms, summed in another order
        torch.testing.assert_close(torch.from_numpy(found), expected, rtol=1e-4, atol=1e-4)


def nothing(_: Path) -> None:
    pass


def a_file(folder: Path) -> None:
    (folder / "out").write_text("not a folder")


def no_report(folder: Path) -> None:
    (folder / "out").mkdir()
    (folder / "out" / compress.RESULT).write_text("[]")


OWN = ["--model", "small_compressible_nets:build"]
ERRORS: list[tuple[str, Callable[[Path], None], list[str], str]] = [
    ("model", nothing, ["--model", "resnet21"], "no model is called 'resnet21'"),
    ("no weights", nothing, ["--model", "resnet20"], "resnet20 needs weights"),
    ("weights missing", nothing, [*OWN, "--weights", "nowhere.pth"], "no file of weights at 'nowhere.pth'"),
    ("data", nothing, [*OWN, "--data", "nowhere"], "no folder of images at 'nowhere'"),
    ("budget 0", nothing, ["--parameters", "0"], "a budget of 0 of the parameters"),
    ("budget above 1", nothing, ["--multiply-adds", "1.5"], "a budget of 1.5 of the multiply-adds"),
    ("two budgets", nothing, ["--parameters", "0.5", "--multiply-adds", "0.5"], "two budgets are given"),
    ("too small a budget", nothing, [*OWN, "--smoke", "--parameters", "0.001"], "cannot be met"),
    ("rewrite", nothing, ["--rewrite", "tuker2"], "there is no rule 'tuker2'"),
    ("no rewrite", nothing, ["--rewrite"], "no rewrite is given"),
    ("sequential", nothing, ["--sequential", "--calibration-images", "0"], "need inputs"),
    ("skip", nothing, [*OWN, "--smoke", "--skip", "layer9.*"], "no kernel layer is called 'layer9.*'"),
    ("rounds", nothing, ["--rounds", "0"], "rounds is 0"),
    ("batch size", nothing, [*OWN, "--batch-size", "0"], "a batch of 0 images is no batch"),
    ("output is a file", a_file, [*OWN, "--output", "out"], "out is no folder"),
    ("report", no_report, [*OWN, "--output", "out"], "report.json is no report"),
]


@pytest.mark.parametrize(("prepare", "given", "fact"), [case[1:] for case in ERRORS], ids=[case[0] for case in ERRORS])
def test_errors_are_one_message_and_leave_no_output(
    prepare: Callable[[Path], None],
    given: list[str],
    fact: str,
    quick: Config,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    prepare(tmp_path)
    monkeypatch.setattr("sys.argv", ["compress", "--device", "cpu", *given])
    with pytest.raises(SystemExit) as caught:
        compress.run()
    assert isinstance(caught.value.code, str)
    assert caught.value.code.startswith("error: ")
    assert fact in caught.value.code
    assert not Path("runs").exists()


def test_the_help_names_every_setting(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["compress", "--help"])
    with pytest.raises(SystemExit) as caught:
        compress.run()
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    for field in dataclasses.fields(Config):
        assert "--" + field.name.replace("_", "-") in shown
    assert max(map(len, shown.splitlines())) <= 90
