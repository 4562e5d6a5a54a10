"""The training as a command: what it leaves, gone on with and shown again, decomposed and taught, and its errors."""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import tnalgebra as tn
from models import build_model
from recipes import train as recipe
from recipes.train import Config, main, resolved
from recipes.training.classification import Classification
from recipes.training.history import read_history
from recipes.training.task import evaluate
from tnalgebra.errors import DataError, LayerError, RankError, StudyError, TnalgebraError
from tnalgebra.model.images import load_images
from tnalgebra.nn.base import KernelLayer

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.chdir(tmp_path)
    return Config(smoke=True, device="cpu", output=Path("out"))


def rebuilt(config: Config) -> torch.nn.Module:
    return tn.load(config.output / recipe.MODEL, into=build_model(config.model, classes=10, channels=1))


def decomposed(model: torch.nn.Module) -> list[str]:
    return [name for name, layer in model.named_modules() if isinstance(layer, KernelLayer)]


def same(a: torch.nn.Module, b: torch.nn.Module) -> bool:
    ours, theirs = a.state_dict(), b.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def some_weights(seed: int = 7) -> str:
    torch.manual_seed(seed)
    torch.save(build_model("cnn4", classes=10, channels=1).state_dict(), "w.pth")
    return "w.pth"


def test_the_files_hold_what_was_trained(quick: Config, capsys: pytest.CaptureFixture[str]) -> None:
    threads = torch.get_num_threads()
    report = main(dataclasses.replace(quick, threads=1))
    assert torch.get_num_threads() == threads
    names = {path.name for path in quick.output.iterdir() if not path.name.startswith(".")}
    files = {"model.safetensors", "history.csv", "history.png", "history.svg", "report.json", "training.json"}
    assert names == files | {"checkpoints", "tensorboard"}
    printed = capsys.readouterr().out
    fields = [field.name for field in dataclasses.fields(Config)]
    assert [line.split()[0] for line in printed.splitlines()[: len(fields)]] == fields
    assert recipe.summary(report) in printed
    assert json.loads((quick.output / recipe.REPORT).read_text()) == json.loads(json.dumps(report))
    assert [row._asdict() for row in read_history(quick.output).rows] == report["rows"]
    assert report["rows"][0]["step"] == 4
    assert report["images"] == 64
    test = load_images("digits", "test").subset(64, seed=0)
    task = Classification(test, test, (0.0,), (1.0,))
    assert report["accuracy"] == evaluate(rebuilt(quick), task, batch_size=16)


def test_a_second_run_shows_what_is_there(
    quick: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first = main(dataclasses.replace(quick, weights=some_weights()))
    capsys.readouterr()
    monkeypatch.setattr(recipe, "train", None)
    again = dataclasses.replace(quick, weights="w.pth", workers=1, preset="digits")
    assert main(again) == json.loads(json.dumps(first))
    assert recipe.summary(first) in capsys.readouterr().out
    for change, fact in [
        ({"seed": 1}, "seed: 0 there, 1 here"),
        ({"learning_rate": 1.0}, "learning_rate: 0.005 there"),
    ]:
        settings: dict[str, Any] = change
        with pytest.raises(StudyError, match=f"holds another training\n(.*\n)*.*{fact}"):
            main(dataclasses.replace(again, **settings))
    some_weights(seed=8)
    with pytest.raises(StudyError, match="weights_digest"):
        main(again)
    (quick.output / recipe.MODEL).unlink()
    some_weights()
    with pytest.raises(StudyError, match=r"has report.json, and no model.safetensors"):
        main(again)


def test_stopped_it_goes_on_with_the_same_numbers(quick: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    from recipes.training import train as trainer

    config = dataclasses.replace(quick, weights=some_weights(), rewrite=("out kh | in kw",), checkpoint_every=1)
    there = main(config)
    expected = rebuilt(config)
    assert decomposed(expected)
    stopped = dataclasses.replace(config, output=Path("stopped"))
    plain, calls = trainer.write_checkpoint, 0

    def stopping(*given: Any) -> None:
        nonlocal calls
        plain(*given)
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(trainer, "write_checkpoint", stopping)
    with pytest.raises(KeyboardInterrupt):
        main(stopped)
    assert not (stopped.output / recipe.REPORT).exists()
    # the fit is not done again
    monkeypatch.setattr(tn, "convert", None)
    report = main(stopped)
    assert same(rebuilt(stopped), expected)
    rows = [[row[key] for key in row if key != "seconds"] for row in (*report["rows"], *there["rows"])]
    assert rows[0] == rows[1]


def test_decomposed_from_random_cores(quick: Config, capsys: pytest.CaptureFixture[str]) -> None:
    report = main(dataclasses.replace(quick, rewrite=("tucker2",), parameters=0.3))
    model = rebuilt(quick)
    assert decomposed(model) == ["conv2", "conv3", "conv4"]
    dense = build_model("cnn4", classes=10, channels=1)
    for name in decomposed(model):
        layer = model.get_submodule(name)
        assert isinstance(layer, KernelLayer)
        assert layer.trace is None
        kernel = dense.get_submodule(name).get_parameter("weight")
        assert layer.parameters_count - kernel.shape[0] <= 0.3 * kernel.numel()
    assert report["parameters"] == sum(parameter.numel() for parameter in model.parameters())
    printed = capsys.readouterr().out
    assert "random cores: the errors are those of random kernels" in printed
    assert "overlap" not in printed


def test_a_compressed_network_is_trained_on_with_a_teacher(quick: Config) -> None:
    main(dataclasses.replace(quick, weights=some_weights(), rewrite=("tucker2",), output=Path("small")))
    load = Path("small") / recipe.MODEL
    config = dataclasses.replace(quick, load=load, teacher="w.pth", temperature=2.0)
    report = main(config)
    assert report["config"]["distillation"] == 0.5
    assert decomposed(rebuilt(config)) == decomposed(rebuilt(dataclasses.replace(quick, output=Path("small"))))
    alone = main(dataclasses.replace(config, teacher=None, output=Path("alone")))
    assert alone["rows"][0]["training_loss"] != report["rows"][0]["training_loss"]
    itself = main(dataclasses.replace(config, teacher=str(load), output=Path("itself")))
    assert itself["rows"][0]["training_loss"] < alone["rows"][0]["training_loss"], "most of what it is taught it knows"


def test_presets_and_what_is_set_beside_them() -> None:
    cifar = resolved(Config(data="somewhere"))
    found = recipe.training(cifar)
    assert (found.epochs, found.batch_size, found.optimizer, found.learning_rate) == (200, 128, "sgd", 0.1)
    assert (found.momentum, found.weight_decay, cifar.crop, cifar.flip) == (0.9, 1e-4, 4, True)
    digits = resolved(Config(epochs=2, learning_rate=0.5))
    assert (digits.preset, digits.optimizer, digits.learning_rate, digits.warmup) == ("digits", "adamw", 0.5, 0.4)
    assert resolved(Config(preset="cifar", flip=False)).flip is False
    assert resolved(Config(rewrite=("cp",))).parameters == 0.5
    assert resolved(resolved(Config(teacher="w"))) == resolved(Config(teacher="w"))


@pytest.mark.parametrize(
    ("change", "error", "fact"),
    [
        ({"load": Path("x"), "weights": "y"}, DataError, "--load is a whole network, and --weights another start"),
        ({"load": Path("x"), "rewrite": ("cp",)}, DataError, "--load is a whole network, and --rewrite"),
        ({"parameters": 0.5}, RankError, "a budget of parameters and no --rewrite"),
        ({"parameters": 1.5, "rewrite": ("cp",)}, RankError, "a budget of 1.5 of the parameters"),
        ({"rewrite": ("cp", "tucker2")}, LayerError, "random cores are all alike\n  given: cp, tucker2"),
        ({"rewrite": ("nothing",)}, TnalgebraError, "nothing"),
        ({"teacher_model": "cnn4"}, DataError, "--teacher-model has no weights"),
        ({"teacher": "absent.pth"}, DataError, "no file of weights at 'absent.pth'"),
        ({"distillation": 0.5}, DataError, "--distillation 0.5 has nobody to learn from"),
        ({"weights": "absent.pth"}, DataError, "no file of weights at 'absent.pth'"),
        ({"load": Path("absent.safetensors")}, TnalgebraError, "absent.safetensors"),
        ({"learning_rate": -1.0}, DataError, "learning_rate=-1.0"),
        ({"learning_rate": 1e25, "optimizer": "sgd"}, StudyError, "training failed: (.*\n)*  epoch: +1 of 1\n  step:"),
        ({"limit": 0}, DataError, "limit is 0"),
        ({"data": "absent"}, DataError, "no folder of images at 'absent'"),
        ({"threads": 0}, DataError, "threads is 0"),
    ],
)
def test_errors_say_what_is_wrong(change: dict[str, Any], error: type[Exception], fact: str, quick: Config) -> None:
    with pytest.raises(error, match=fact):
        main(dataclasses.replace(quick, **change))
    assert not (quick.output / recipe.REPORT).exists()


def test_where_writing_fails_there_is_no_report(quick: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(recipe.tn, "save", full)
    with pytest.raises(StudyError, match=r"out/model\.safetensors cannot be written\n  because: no space left"):
        main(quick)
    assert not (quick.output / recipe.REPORT).exists()


def test_the_command_as_accelerate_launches_it(tmp_path: Path) -> None:
    launch = [
        sys.executable,
        "-m",
        "accelerate.commands.launch",
        "--cpu",
        "--num_processes",
        "1",
        "--num_machines",
        "1",
    ]
    command = [*launch, "--mixed_precision", "no", "--dynamo_backend", "no", "-m", "recipes.train"]
    options = ["--smoke", "--precision", "bf16", "--output", str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run([*command, *options], env=environment, capture_output=True, text=True, timeout=240, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "right after 1 epoch(s)" in done.stdout
    assert (tmp_path / "out" / recipe.MODEL).exists()


def test_cifar_on_a_folder(cifar10_folder: Path, quick: Config) -> None:
    config = dataclasses.replace(quick, model="resnet20", data=str(cifar10_folder))
    report = main(config)
    assert (report["config"]["crop"], report["config"]["flip"], report["config"]["optimizer"]) == (4, True, "sgd")
    assert len(report["rows"]) == 1
