"""The training as a command: what it leaves, continued and shown again, decomposed and taught, and its errors."""

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
from recipes import train as recipe
from recipes.train import PRESETS, Config, main
from recipes.training import Classification, evaluate, loop
from tests.refusals import refused
from tests.training_cases import same, table
from tnalgebra.command import build_model
from tnalgebra.errors import DataError, DivergedError, LayerError, RankError, RuleError, StudyError, TnalgebraError
from tnalgebra.model import load_images
from tnalgebra.nn import KernelLayer

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture
def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    monkeypatch.chdir(tmp_path)
    return Config(smoke=True, device="cpu", output=Path("out"))


def rebuilt(config: Config) -> torch.nn.Module:
    return tn.load(config.output / recipe.MODEL, into=build_model(config.model, classes=10, channels=1))


def decomposed(model: torch.nn.Module) -> list[str]:
    return [name for name, layer in model.named_modules() if isinstance(layer, KernelLayer)]


def some_weights(seed: int = 7) -> str:
    torch.save(build_model("cnn4", classes=10, channels=1, seed=seed).state_dict(), "w.pth")
    return "w.pth"


def test_the_files_hold_what_was_trained(
    quick: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    threads = torch.get_num_threads()
    config = dataclasses.replace(quick, weights=some_weights(), threads=1)
    report = main(config)
    assert torch.get_num_threads() == threads
    names = {path.name for path in quick.output.iterdir() if not path.name.startswith(".")}
    files = {"model.safetensors", "history.csv", "history.png", "history.svg", "report.json", "training.json"}
    assert names == files | {"checkpoints", "tensorboard"}
    printed = capsys.readouterr().out
    fields = [field.name for field in dataclasses.fields(Config)]
    assert [line.split()[0] for line in printed.splitlines()[: len(fields)]] == fields
    assert recipe.summary(report) in printed
    assert json.loads((quick.output / recipe.REPORT).read_text()) == report
    assert table(quick.output)[1:] == [[str(value) for value in row.values()][:-1] for row in report["rows"]]
    assert report["rows"][0]["step"] == 4
    test = load_images("digits", "test").subset(64, seed=0)
    assert report["accuracy"] == evaluate(rebuilt(quick), Classification(test, test), batch_size=16)
    # the same command again shows what the folder holds; another one is refused
    monkeypatch.setattr(loop, "step_batches", None)
    assert main(dataclasses.replace(config, workers=1)) == {**report, "config": {**report["config"], "workers": 1}}
    with refused(StudyError, quick.output, "settings.seed: 0", "settings.learning_rate: 0.005", "1.0"):
        main(dataclasses.replace(config, seed=1, learning_rate=1.0))
    some_weights(seed=8)
    with refused(StudyError, "network.values_at_the_start"):
        main(config)


def test_validation_images_are_kept_out_of_the_training(
    quick: Config, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, tasks = recipe.classification, []

    def seen(*given: Any, **named: Any) -> Classification:
        tasks.append(plain(*given, **named))
        return tasks[-1]

    monkeypatch.setattr(recipe, "classification", seen)
    config = dataclasses.replace(quick, smoke=False, epochs=1, validation=1300, seed=3)
    report = main(config)
    kept_out, others = load_images("digits", "train").split(1300, seed=3)
    assert tasks[0].test.fingerprint == kept_out.fingerprint
    assert tasks[0].training.fingerprint == others.fingerprint
    assert report["accuracy"] == evaluate(rebuilt(quick), Classification(others, kept_out), batch_size=16)
    assert (report["images"], report["validation"]) == (1300, True)
    assert "% of 1300 training images kept out right" in capsys.readouterr().out
    with refused(DataError, "training images are for the validation", "--validation 1"):
        main(dataclasses.replace(config, validation=1500))


def test_stopped_it_continues_with_the_same_numbers(quick: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    config = dataclasses.replace(quick, weights=some_weights(), rewrite=("out kh | in kw",), checkpoint_every=1)
    main(config)
    expected = rebuilt(config)
    assert decomposed(expected)
    stopped = dataclasses.replace(config, output=Path("stopped"))
    plain, calls = loop.write_checkpoint, 0

    def stopping(*given: Any, **named: Any) -> None:
        nonlocal calls
        plain(*given, **named)
        calls += 1
        if calls == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop, "write_checkpoint", stopping)
    with pytest.raises(KeyboardInterrupt):
        main(stopped)
    assert not (stopped.output / recipe.REPORT).exists()
    monkeypatch.setattr(tn, "convert", None)  # the fit is not done again
    main(stopped)
    assert same(rebuilt(stopped), expected)
    assert table(stopped.output) == table(config.output)


def test_decomposed_from_random_cores(quick: Config, capsys: pytest.CaptureFixture[str]) -> None:
    report = main(dataclasses.replace(quick, rewrite=("tucker2",), size="parameters 0.3"))
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


def test_presets_follow_the_data(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Config] = []
    monkeypatch.setattr(recipe, "main", seen.append)
    cifar = PRESETS["cifar"]
    for arguments in (
        *("", "--data digits", "--data=DIR --epochs 3", "--data cifar100", "--preset cifar --no-flip"),
        "--preset=digits --data DIR --crop 2",
    ):
        monkeypatch.setattr(sys, "argv", ["train", *arguments.split()])
        recipe.run()
    assert seen == [
        *(Config(), Config(), dataclasses.replace(cifar, data="DIR", epochs=3)),
        *(dataclasses.replace(cifar, data="cifar100"), dataclasses.replace(cifar, flip=False)),
        Config(data="DIR", shift=2),
    ]
    settings = cifar.training()
    assert (settings.epochs, settings.batch_size, settings.optimizer, settings.learning_rate) == (200, 128, "sgd", 0.1)
    assert (settings.momentum, settings.weight_decay, cifar.shift, cifar.flip) == (0.9, 1e-4, 4, True)


@pytest.mark.parametrize(
    ("change", "error", "facts"),
    [
        ({"load": Path("x"), "weights": "y"}, DataError, ["--load", "--weights"]),
        ({"load": Path("x"), "rewrite": ("cp",)}, DataError, ["--load", "--rewrite"]),
        ({"size": "parameters 0.5"}, RankError, ["parameters", "--rewrite"]),
        ({"size": "keep 0.5", "rewrite": ("cp",)}, RankError, ["keep 0.5", "--weights"]),
        ({"size": "parameters 1.5", "rewrite": ("cp",)}, RankError, [1.5]),
        ({"rewrite": ("cp", "tucker2")}, LayerError, ["cp, tucker2", "--weights"]),
        ({"rewrite": ("nothing",)}, RuleError, ["nothing"]),
        ({"teacher_model": "cnn4"}, DataError, ["cnn4", "--teacher"]),
        ({"distillation": 0.5}, DataError, [0.5, "--teacher"]),
        ({"teacher": "absent.pth"}, DataError, ["absent.pth"]),
        ({"weights": "absent.pth"}, DataError, ["absent.pth"]),
        ({"load": Path("absent.safetensors")}, TnalgebraError, ["absent.safetensors"]),
        ({"learning_rate": -1.0}, DataError, ["learning_rate", -1.0]),
        ({"learning_rate": 1e25, "optimizer": "sgd"}, DivergedError, ["1 of 1", "learning rate"]),
        ({"limit": -1}, DataError, [-1]),
        ({"threads": 0}, DataError, ["threads", 0]),
        ({"validation": -1}, DataError, ["validation", -1]),
    ],
)
def test_errors_say_what_is_wrong(
    change: dict[str, Any], error: type[Exception], facts: list[Any], quick: Config
) -> None:
    with refused(error, *facts):
        main(dataclasses.replace(quick, **change))
    assert not (quick.output / recipe.REPORT).exists()


def test_where_writing_fails_no_report_is_left(quick: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(tn, "save", full)
    with refused(StudyError, "out/model.safetensors", "no space left"):
        main(quick)
    assert not (quick.output / recipe.REPORT).exists()


def test_the_command_as_accelerate_launches_it(tmp_path: Path) -> None:
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_processes", "1"]
    how = ["--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "-m", "recipes.train"]
    options = ["--smoke", "--precision", "bf16", "--output", str(tmp_path / "out")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [*launch, *how, *options], env=environment, capture_output=True, text=True, timeout=240, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "right after 1 epoch(s)" in done.stdout
    assert (tmp_path / "out" / recipe.MODEL).exists()
