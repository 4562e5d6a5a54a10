"""Truncation and retraining as a command: smoke, both ways from one start, stopped and run again, the claim, errors."""

from __future__ import annotations

import dataclasses
import json
import math
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

import tnalgebra as tn
from models import build_model
from recipes.experiment import Row, folder_name
from recipes.networks import with_weights
from recipes.retrain import run as retrain
from recipes.retrain.report import claims, summary
from recipes.retrain.run import PRESETS, Config, main
from recipes.retrain.truncations import read_truncation, truncate
from recipes.training.classification import Classification
from tnalgebra.errors import DataError, DivergedError, RankError, RuleError, StudyError, TnalgebraError
from tnalgebra.model.images import load_images
from tnalgebra.nn.torch_layers import kernel_layers
from tnalgebra.studies.accuracy import train_classifier
from tnalgebra.studies.store import ROWS, read_rows

CUT = "out kh | in kw @ 0.125"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a cnn4 that tells most digits."""
    torch.manual_seed(0)
    model = build_model("cnn4", classes=10, channels=1)
    images = load_images("digits", "train").subset(600, seed=0)
    settings: dict[str, Any] = {"epochs": 6, "batch_size": 32, "learning_rate": 5e-3, "weight_decay": 1e-2}
    train_classifier(model, images, **settings, seed=0, mean=(0.0,), std=(1.0,), progress=False)
    path = tmp_path_factory.mktemp("weights") / "cnn4.pth"
    torch.save(model.state_dict(), path)
    return path


@pytest.fixture
def quick(weights: Path, tmp_path: Path) -> Config:
    """Three trainings of two epochs of two steps."""
    return Config(
        weights=str(weights), limit=120, epochs=2, truncations=(CUT,), device="cpu", output=tmp_path / "quick"
    )


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["retrain", *arguments])
    retrain.run()


def without_seconds(rows: Sequence[Row]) -> list[str]:
    return sorted(json.dumps({key: value for key, value in row.items() if key != "seconds"}) for row in rows)


class Losses:
    """Counts the steps of all trainings; the process is interrupted at the one that is wished."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.count, self.stop_at = 0, -1
        own: Callable[..., Tensor] = Classification.loss

        def loss(task: Classification, *arguments: Any) -> Tensor:
            self.count += 1
            if self.count == self.stop_at:
                raise KeyboardInterrupt
            return own(task, *arguments)

        monkeypatch.setattr(Classification, "loss", loss)


# the command


def test_a_smoke_run_leaves_the_usual_folder_alone(quick: Config) -> None:
    assert retrain._smaller(Config(smoke=True)).output == Path("runs/retrain-smoke")
    assert retrain._smaller(dataclasses.replace(quick, smoke=True)).output == quick.output


def test_weights_may_be_safetensors_of_any_origin(quick: Config, weights: Path, tmp_path: Path) -> None:
    state = torch.load(weights)
    save_file(state, tmp_path / "plain.safetensors")
    model = build_model("cnn4", classes=10, channels=1)
    model.load_state_dict(state)
    tn.save(model, tmp_path / "ours.safetensors")
    smaller, _ = tn.convert(model, {"conv4": ("tucker2", {"a": 9, "b": 9}), "*": None})
    tn.save(smaller, tmp_path / "decomposed.safetensors")
    for name, decomposed in (("plain", False), ("ours", False), ("decomposed", True)):
        found = with_weights(build_model("cnn4", classes=10, channels=1), str(tmp_path / f"{name}.safetensors"))
        assert ("conv4.U" in dict(found.named_parameters())) == decomposed
        assert torch.equal(found.conv2.weight, state["conv2.weight"])


def test_the_smoke_run_trains_first_and_leaves_rows_and_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "--smoke", "--device", "cpu", "--epochs", "1", "--output", str(tmp_path))
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    fields = [field.name for field in dataclasses.fields(Config)]
    assert [line.split()[0] for line in lines[: len(fields)]] == fields
    assert "training cnn4 first, for 6 epochs of 600 images" in printed
    assert lines[-1] == f"rows, figures and trained networks: {tmp_path}/"
    rows = read_rows(tmp_path)
    assert len(rows) == 1 + 2 * (1 + 2 * 2), "as it is; two epochs of the control, of two truncations in two ways"
    assert rows[0]["accuracy"] > 0.4, "the first training has learnt something"
    assert all((tmp_path / f"accuracy{kind}").stat().st_size > 10_000 for kind in (".png", ".svg"))
    text = summary(rows)
    assert text in printed
    assert "Sizes in factored form" in text
    assert "Recovered: within 0.5 points" in text


def test_presets_are_defaults_that_options_differ_from(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Config] = []
    monkeypatch.setattr(retrain, "main", seen.append)
    run(monkeypatch, "--preset", "resnet20-cifar10", "--epochs", "3")
    run(monkeypatch)
    assert seen == [dataclasses.replace(PRESETS["resnet20-cifar10"], epochs=3), PRESETS["cnn4-digits"]]


def test_an_unknown_preset_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match=r"no preset is called 'resnet'\n  known: cnn4-digits, cnn4-cifar10"):
        run(monkeypatch, "--preset", "resnet")


@pytest.mark.parametrize("name", ["resnet50-cifar10", "resnet50-cifar100"])
def test_presets_of_resnet50_ask_for_weights(name: str, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="resnet50_cifar needs weights\n  fix: --weights FILE, or --first-epochs 200"):
        main(dataclasses.replace(PRESETS[name], output=tmp_path / "none"))
    assert not (tmp_path / "none").exists()


def hundred_classes(folder: Path, *, train: int, test: int) -> Path:
    """A folder of noise, 32 x 32, so many images of each of 100 classes."""
    generator = np.random.default_rng(0)
    for split, count in (("train", train), ("test", test)):
        for label in range(100):
            place = folder / split / f"{label:02d}"
            place.mkdir(parents=True)
            for number in range(count):
                pixels = generator.integers(256, size=(32, 32, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(place / f"{number}.png")
    return folder


@pytest.mark.parametrize(("name", "truncations"), [("cifar10", 3), ("cifar100", 1)])
def test_the_presets_of_resnet50_run_to_their_end(
    name: str, truncations: int, cifar10_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of few images, after a first training, in bfloat16, which is much faster where there is AMX."""
    folder = cifar10_folder if name == "cifar10" else hundred_classes(tmp_path / "images", train=6, test=6)
    texts = PRESETS[f"resnet50-{name}"].truncations
    assert len(texts) == 3
    short = ["--limit", "512", "--epochs", "1", "--first-epochs", "1", "--precision", "bf16", "--device", "cpu"]
    chosen = ["--truncations", *texts[:truncations], "--output", str(tmp_path / "out")]
    run(monkeypatch, "--preset", f"resnet50-{name}", "--data", str(folder), *short, *chosen)
    rows = read_rows(tmp_path / "out")
    assert (tmp_path / "out" / "accuracy.png").exists()
    assert (tmp_path / "out" / "first.safetensors").exists()
    shutil.rmtree(tmp_path / "out")  # checkpoints of gigabytes
    assert len(rows) == 1 + 2 * (1 + 2 * truncations), "as it is; two epochs of the control and of each in two ways"
    assert {row["images"] for row in rows} == {512}
    truncated = [row for row in rows if row["epoch"] == 0 and row["truncation"] != "none"]
    assert all(len(row["layers"]) == 52 for row in truncated), "all convolutions but the first"
    assert all(row["parameters_kept"] < 0.8 for row in truncated)
    assert 1.2e9 < rows[0]["multiply_adds"] < 1.4e9
    assert all(math.isfinite(row["training_loss"]) for row in rows if row["epoch"] == 1)


def test_with_distillation_the_untouched_network_teaches(quick: Config) -> None:
    """Its own answers alone leave the control where it is; the labels would move it."""
    plain = {"optimizer": "sgd", "learning_rate": 0.01, "weight_decay": 0.0, "shift": 0}
    rows = main(dataclasses.replace(quick, distillation=1.0, epochs=1, ways=("control", "dense"), **plain))
    losses = {row["way"]: row["training_loss"] for row in rows if row["epoch"] == 1}
    assert losses["control"] < 1e-5 < 1e-3 < losses["dense"]
    assert {row["accuracy"] for row in rows if row["way"] != "dense"} == {rows[0]["accuracy"]}


# both ways start from the same kernels


@pytest.mark.parametrize(
    "text",
    [
        "out kh | in kw @ 0.25",
        "in | out kh kw then out kh | in kw @ 0.5",
        "tucker2 @ a=8 b=6",
        "tucker2 @ parameters 0.2",
        "cp @ r=6",
        "tucker2 or out kh | in kw @ multiply-adds 0.5",
    ],
)
def test_dense_and_factored_have_the_same_kernels(text: str, weights: Path) -> None:
    model = build_model("cnn4", classes=10, channels=1)
    model.load_state_dict(torch.load(weights))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    truncation = read_truncation(text)
    found = truncate(model, truncation, skip=("first",), seed=0, example=(8, 1, 8, 8))
    factored, report = found.factored(model, (8, 1, 8, 8), candidates="all", backward=True)
    assert "conv1" not in found.kernels
    assert set(report.converted) == set(found.kernels) != set()
    dense = kernel_layers(found.dense(model))
    for name, kernel in found.kernels.items():
        torch.testing.assert_close(dense[name].weight, kernel, rtol=0, atol=0)
        layer = factored.get_submodule(name)
        assert isinstance(layer, tn.nn.KernelLayer)
        # float32 cores, multiplied once
        torch.testing.assert_close(layer.dense_weight(), kernel, rtol=0, atol=2e-6 * float(kernel.norm()))
        own = before[f"{name}.weight"]
        error = float((kernel - own).norm() / own.norm())
        assert found.layers[name]["relative_error"] == pytest.approx(error, rel=1e-4)
        assert error > 1e-3
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items()), "it stays as it was"


def test_epoch_0_is_that_of_the_study_in_both_ways(quick: Config, weights: Path, tmp_path: Path) -> None:
    truncations = (CUT, "tucker2 @ parameters 0.15")
    rows = main(dataclasses.replace(quick, epochs=1, truncations=truncations, ways=("dense", "factored")))
    model = build_model("cnn4", classes=10, channels=1)
    model.load_state_dict(torch.load(weights))
    images = load_images("digits", "test").subset(120, seed=0)
    common: dict[str, Any] = {"output": tmp_path / "study", "progress": False}
    studied = [
        tn.study(model, images, cuts="out kh | in kw", keep=0.125, **common),
        tn.study(model, images, rewrites="tucker2", budget=0.15, **common),
    ]
    for text, study in zip(truncations, studied, strict=True):
        expected = study.rows[1]
        for way in ("dense", "factored"):
            (row,) = [row for row in rows if (row["truncation"], row["way"], row["epoch"]) == (text, way, 0)]
            assert row["accuracy"] == pytest.approx(expected["accuracy"], abs=5e-4)
            assert row["mean_squared_relative_error"] == pytest.approx(expected["mean_squared_relative_error"])
            assert row["parameters_kept"] == pytest.approx(expected["parameters_kept"])
            assert row["parameters_kept"] < 0.5
            assert 0 < row["multiply_adds_kept"] < 0.7
            assert row["images"] == 120


# stopped and run again


def test_an_interrupted_run_goes_on_and_repeats_nothing(
    quick: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = Losses(monkeypatch)
    whole = main(quick)
    steps = losses.count
    assert steps == 3 * 2 * 2, "trainings, epochs, steps"
    stopped = dataclasses.replace(quick, output=tmp_path / "stopped", checkpoint_every=1)
    for stop_at in (4, 7):  # in the second epoch of the control; among the first steps of the next training
        losses.count, losses.stop_at = 0, stop_at
        with pytest.raises(KeyboardInterrupt):
            main(stopped)
    there = read_rows(stopped.output)
    assert [(row["way"], row["epoch"]) for row in there] == [
        *[(None, 0), ("control", 0), ("control", 1), ("control", 2), ("dense", 0), ("dense", 1), ("dense", 2)],
        ("factored", 0),
    ]
    losses.count, losses.stop_at = 0, -1
    done = main(stopped)
    assert losses.count == steps - 3 - 6, "no step is done twice"
    assert without_seconds(done) == without_seconds(whole)
    losses.count = 0
    content = (stopped.output / ROWS).read_bytes()
    assert main(stopped) == done
    assert losses.count == 0
    assert (stopped.output / ROWS).read_bytes() == content


def test_truncations_ways_and_seeds_can_be_added(quick: Config) -> None:
    first = main(dataclasses.replace(quick, epochs=1, ways=("control", "dense")))
    more = dataclasses.replace(quick, epochs=1, seeds=(0, 1), truncations=(CUT, "tucker2 @ a=8 b=8"))
    rows = main(more)
    assert rows[: len(first)] == first
    keys = [(row["truncation"], row["way"], row["seed"], row["epoch"]) for row in rows]
    assert len(set(keys)) == len(keys) == 1 + 2 * 2 * (1 + 2 * 2)
    assert rows[0]["parameters_kept"] == 1
    assert sum(bool(row["layers"]) for row in rows if row["epoch"]) == 0, "layers are told once"


def test_a_folder_of_other_settings_is_refused_with_the_differences(quick: Config) -> None:
    main(dataclasses.replace(quick, epochs=1, ways=("control",)))
    with pytest.raises(StudyError, match=r"of another config\n  differences: learning_rate: 0.002 there, 0.01 here"):
        main(dataclasses.replace(quick, epochs=1, ways=("control",), learning_rate=0.01))


# errors


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"truncations": ("out | in kh kz @ 0.5",)}, RuleError, "the cut 'out | in kh kz' fits no layer"),
        ({"truncations": ("out in @ 0.5",)}, RuleError, "'out in @ 0.5' cannot be read.*a cut has one"),
        ({"truncations": ("out | in kh kw @ 1.5",)}, RankError, "keep holds 1.5, outside"),
        ({"truncations": ("out | in kh kw @ half",)}, RankError, "the size 'half' is no number"),
        ({"truncations": ("out | in kh kw",)}, RuleError, "is no rewrite @ size"),
        ({"truncations": ("tucker2 @ parameters 0",)}, RankError, "budget holds 0"),
        ({"truncations": ("tucker3 @ parameters 0.5",)}, RuleError, "no rule 'tucker3'"),
        ({"truncations": ("tucker2 @ a=4",)}, RankError, "no rank for 'b'"),
        ({"truncations": ("cp @ r=4,8",)}, RankError, "one rank for each bond"),
        ({"truncations": ()}, StudyError, "no truncation is given"),
        ({"ways": ("sparse",)}, StudyError, "'sparse' is no way to train"),
        ({"seeds": ()}, StudyError, "no seed is given"),
        ({"weights": None, "model": "resnet20"}, DataError, "resnet20"),
        ({"weights": None, "first_epochs": 0}, DataError, "cnn4 needs weights"),
        ({"model": "resnet19"}, DataError, "no model is called 'resnet19'"),
        ({"data": "digit"}, DataError, "digit"),
        ({"limit": 0}, DataError, "cannot choose 0 images"),
        ({"epochs": 0}, DataError, "epochs=0"),
        ({"shift": -1}, DataError, "shift is -1"),
        ({"skip": ("conv9",)}, StudyError, "skip 'conv9' matches no layer"),
    ],
)
def test_wrong_settings_are_refused_by_name(
    changes: dict[str, Any], kind: type[TnalgebraError], message: str, quick: Config
) -> None:
    if changes.get("model") == "resnet20":
        changes = {**changes, "first_epochs": 0}
    with pytest.raises(kind, match=f"(?s){message}"):
        main(dataclasses.replace(quick, **changes))


def test_data_with_fewer_classes_than_the_network_are_refused(
    quick: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "nets_of_twelve.py").write_text(
        "from models import build_model\ndef build():\n    return build_model('cnn4', classes=12, channels=1)\n"
    )
    with pytest.raises(DataError, match="12 outputs, the images have 10 classes"):
        main(dataclasses.replace(quick, model="nets_of_twelve:build", weights=None, first_epochs=0))
    assert not quick.output.exists()


def test_weights_of_another_number_of_classes_are_refused(quick: Config, tmp_path: Path) -> None:
    torch.save(build_model("cnn4", classes=12, channels=1).state_dict(), tmp_path / "w.pth")
    with pytest.raises(DataError, match=r"(?s)linear\.weight.*12"):
        main(dataclasses.replace(quick, weights=str(tmp_path / "w.pth")))


def test_trainings_that_diverge_stop_with_epoch_and_loss_and_the_others_go_on(
    quick: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = Classification.loss

    def loss(task: Classification, outputs: Tensor, *others: Any) -> Tensor:
        return own(task, outputs, *others) * (math.nan if task_of[0] == "dense" else 1.0)

    task_of = [""]
    train = retrain.train_and_note

    def noted(model: Any, task: Any, settings: Any, folder: Path, *others: Any) -> Any:
        task_of[0] = folder.name.split(",")[1]
        return train(model, task, settings, folder, *others)

    monkeypatch.setattr(Classification, "loss", loss)
    monkeypatch.setattr(retrain, "train_and_note", noted)
    expected = (
        r"(?s)1 of the trainings diverged.*: out kh \| in kw @ 0.125, dense, seed 0.*the loss is nan.*epoch: .*1 of 2"
    )
    with pytest.raises(DivergedError, match=expected):
        main(quick)
    found = {(row["way"], row["epoch"]) for row in read_rows(quick.output)}
    assert found == {(None, 0), ("dense", 0), *((way, n) for way in ("control", "factored") for n in (0, 1, 2))}
    assert (quick.output / "accuracy.png").exists()


# what rows say


def hand_made(
    curves: dict[tuple[str, str, int], Sequence[float]], before: float, fields: dict[str, Any] | None = None
) -> list[Row]:
    """Rows of accuracies in percent: epoch 0 first."""
    other = {"model": "m", "images": 1000, "seconds": 2.0, "mean_squared_relative_error": 0.25, "parameters": 500}
    other |= {"parameters_kept": 0.5, "multiply_adds": 2e6, "multiply_adds_kept": 0.5, **(fields or {})}
    found: list[Row] = [
        {"truncation": "none", "way": None, "seed": None, "epoch": 0, "accuracy": before / 100, **other}
    ]
    for (text, way, seed), accuracies in curves.items():
        found += [
            {"truncation": text, "way": way, "seed": seed, "epoch": epoch, "accuracy": accuracy / 100, **other}
            for epoch, accuracy in enumerate(accuracies)
        ]
    return found


TABLE = hand_made(
    {
        ("none", "control", 0): (90, 90, 90, 91, 91, 91.0, 95.0),
        ("none", "control", 1): (90, 90, 91, 91, 91, 91.4, 95.0),
        ("a", "dense", 0): (50, 80, 89.4, 89.8, 90, 90.8, 91.0),
        ("a", "dense", 1): (50, 80, 89.3, 89.2, 90, 90.6, 91.0),
        ("a", "factored", 0): (50, 70, 80.0, 85.0, 89, 89.4, 95.0),
        ("a", "factored", 1): (50, 70, 80.0, 85.0, 89, 89.4, 95.0),
        ("b", "dense", 0): (50, 70, 80.0, 85.0, 89, 89.9, 90.0),
        ("b", "dense", 1): (50, 70, 80.0, 85.0, 89, 88.9, 90.0),
        ("b", "factored", 0): (50, 70, 80.0),
    },
    before=90.0,
)
"""b, factored, is not finished."""


def test_claims_of_a_table_made_by_hand() -> None:
    found = claims(TABLE)
    assert [(claim.truncation, claim.way) for claim in found] == [("a", "dense"), ("a", "factored"), ("b", "dense")]
    dense, factored, other = found
    # the mean after epoch 3 is 89.5, on the bound; by itself each seed is there by epoch 4
    assert (dense.epoch, dense.seeds, dense.of, dense.recovered) == (3, 2, 2, True)
    assert dense.change == pytest.approx(0.007)
    assert dense.to_control == pytest.approx(-0.005), "90.7 less 91.2"
    assert dense.reaches_control
    # 95 % after six epochs are too late
    assert (factored.epoch, factored.seeds, factored.recovered, factored.reaches_control) == (None, 0, False, False)
    assert factored.change == pytest.approx(-0.006)
    assert (other.epoch, other.seeds, other.recovered) == (None, 1, False), "one of two seeds, and not their mean"


def test_the_summary_has_means_ranges_and_the_claim() -> None:
    text = summary(TABLE)
    assert "m: 90.00 % of 1,000 test images right before truncation" in text
    lines = [line.split() for line in text.splitlines()]
    assert ["a", "dense", "2", "50.00", "80.00", "89.35", "89.50", "90.00", "90.70", "91.00", "2"] in lines
    assert "50.0-50.0  80.0-80.0  89.3-89.4  89.2-89.8  90.0-90.0  90.6-90.8  91.0-91.0" in text
    assert ["a", "0.2500", "500", "0.500", "2", "M", "0.500"] in lines
    assert ["a", "dense", "after", "epoch", "3", "2", "of", "2", "+0.70", "-0.50"] in lines
    assert ["b", "dense", "no", "1", "of", "2", "-0.60", "-1.80"] in lines
    assert text.endswith("1 of 3 have recovered; 1 of 3 end within 0.5 points of the control.")


def test_seeds_are_compared_with_the_controls_own() -> None:
    rows = hand_made(
        {
            ("none", "control", 0): (90, 90),
            ("none", "control", 2): (90, 94),
            ("a", "dense", 0): (50, 89),
            ("a", "dense", 1): (50, 70),
        },
        before=90,
    )
    (claim,) = claims(rows)
    assert claim.to_control == pytest.approx(-0.01), "of the seed that both have"
    lines = [line.split() for line in summary(rows).splitlines()]
    assert ["a", "dense", "2", "50.00", "79.50", "2"] in lines


def test_a_training_that_was_stopped_is_no_result() -> None:
    rows = hand_made({("a", "dense", 0): (50, 80, 85)}, before=90, fields={"epochs": 5})
    assert claims(rows) == []
    assert "85" not in summary(rows)


def test_without_a_control_nothing_is_compared_with_it() -> None:
    (claim,) = claims(hand_made({("a", "dense", 0): (50, 89.5)}, before=90))
    assert (claim.epoch, claim.to_control, claim.reaches_control) == (1, None, None)
    assert "control" not in summary(hand_made({("a", "dense", 0): (50, 89.5)}, before=90)).splitlines()[-1]


def test_folders_tell_trainings_apart() -> None:
    texts = [
        "out | in kh kw @ 0.5",
        "out in | kh kw @ 0.5",
        "out | in kh kw @ 0.25",
        "out | in kh kw then out in | kh kw @ 0.5",
    ]
    names = [folder_name(text, way, "seed 0") for text in texts for way in ("dense", "factored")]
    assert len(set(names)) == len(names)
    assert names[0] == "out--in_kh_kw@0.5,dense,seed_0"
