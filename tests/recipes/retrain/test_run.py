"""Truncation and retraining as a command: smoke, both ways from one start, stopped and run again, the claim, errors."""

from __future__ import annotations

import dataclasses
import math
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

import tnalgebra as tn
from recipes.experiment import Row, folder_name
from recipes.networks import with_weights
from recipes.retrain import run as retrain
from recipes.retrain.report import claims, summary
from recipes.retrain.run import PRESETS, Config, main
from recipes.retrain.truncations import read_truncation, truncate
from recipes.training import Classification
from tests.refusals import refused
from tests.training_cases import CountSteps, without_seconds
from tnalgebra.command import build_model
from tnalgebra.errors import DataError, DivergedError, RankError, RuleError, StudyError, TnalgebraError
from tnalgebra.model import load_images
from tnalgebra.nn import kernel_layers
from tnalgebra.studies import read_rows

pytestmark = pytest.mark.slow

CUT = "out kh | in kw @ keep 0.125"
SMALL = "tests.training_cases:small_cnn"


@pytest.fixture
def quick(tmp_path: Path) -> Config:
    """Three trainings of two epochs of two steps, of a network as it comes."""
    small: dict[str, Any] = {"model": SMALL, "first_epochs": 0, "limit": 40, "batch_size": 20, "epochs": 2}
    return Config(**small, truncations=(CUT,), device="cpu", output=tmp_path / "quick")


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["retrain", *arguments])
    retrain.run()


# the command


def test_weights_may_be_safetensors_of_any_origin(tmp_path: Path) -> None:
    model = build_model(SMALL, classes=10, channels=1)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    save_file(state, tmp_path / "plain.safetensors")
    tn.save(model, tmp_path / "ours.safetensors")
    smaller, _ = tn.convert(model, {"conv4": ("tucker2", {"a": 3, "b": 3}), "*": None})
    tn.save(smaller, tmp_path / "decomposed.safetensors")
    for name, decomposed in (("plain", False), ("ours", False), ("decomposed", True)):
        found = with_weights(build_model(SMALL, classes=10, channels=1), str(tmp_path / f"{name}.safetensors"))
        assert ("conv4.U" in dict(found.named_parameters())) == decomposed
        assert torch.equal(found.conv2.weight, state["conv2.weight"])


def test_the_smoke_run_trains_first_and_leaves_rows_and_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ("--model", SMALL, "--limit", "60", "--first-epochs", "2", "--epochs", "1")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path, str(Path(__file__).parents[3])])
    run(monkeypatch, "--smoke", "--device", "cpu", *small)
    printed = capsys.readouterr().out
    lines = printed.splitlines()
    fields = [field.name for field in dataclasses.fields(Config)]
    assert [line.split()[0] for line in lines[: len(fields)]] == fields
    assert "first, for 2 epochs of 60 images" in printed
    assert lines[-1] == "rows, figures and trained networks: runs/retrain-smoke/", "not the usual folder"
    output = Path("runs/retrain-smoke")
    rows = read_rows(output)
    assert len(rows) == 1 + 2 * (1 + 2 * 2), "as it is; two epochs of the control, of two truncations in two ways"
    assert (output / "first.safetensors").exists()
    assert all((output / f"accuracy{kind}").stat().st_size > 10_000 for kind in (".png", ".svg"))
    text = summary(rows)
    assert text in printed
    assert "Sizes in factored form" in text
    assert "Recovered: within 0.5 points" in text


def test_a_smoke_run_uses_random_weights_where_these_are_requested(quick: Config) -> None:
    assert main(dataclasses.replace(quick, smoke=True, epochs=1))
    assert not (quick.output / "first.safetensors").exists()


def test_presets_are_defaults_that_options_differ_from(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[Config] = []
    monkeypatch.setattr(retrain, "main", seen.append)
    run(monkeypatch, "--epochs", "3", "--preset", "resnet20-cifar10", "--smoke")
    run(monkeypatch, "--preset=cnn4-cifar100")
    run(monkeypatch)
    assert seen == [
        dataclasses.replace(PRESETS["resnet20-cifar10"], epochs=3, smoke=True),
        *(PRESETS["cnn4-cifar100"], PRESETS["cnn4-digits"]),
    ]
    for arguments, fact in ((["--preset", "resnet"], "cnn4-cifar100"), (["--help"], "--truncations")):
        with pytest.raises(SystemExit):
            run(monkeypatch, *arguments)
        printed = capsys.readouterr()
        assert fact in printed.out + printed.err


def noise(folder: Path, *, classes: int) -> Path:
    """A folder of noise, 8 x 8, an image of each class."""
    generator = np.random.default_rng(0)
    for split in ("train", "test"):
        for label in range(classes):
            place = folder / split / f"{label:02d}"
            place.mkdir(parents=True)
            Image.fromarray(generator.integers(256, size=(8, 8, 3), dtype=np.uint8)).save(place / "0.png")
    return folder


def test_the_presets_of_resnet50_run_to_their_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of few small images, after a first training, in bfloat16, which is much faster where there is AMX."""
    preset, other = PRESETS["resnet50-cifar100"], PRESETS["resnet50-cifar10"]
    assert dataclasses.replace(other, data=preset.data, output=preset.output) == preset
    with refused(DataError, "resnet50_cifar", "--weights", "--first-epochs 200"):
        main(dataclasses.replace(preset, output=tmp_path / "none"))
    assert not (tmp_path / "none").exists()
    folder = noise(tmp_path / "images", classes=100)
    short = ["--epochs", "1", "--first-epochs", "1", "--precision", "bf16", "--device", "cpu"]
    large = next(truncation for truncation in preset.truncations if truncation.endswith("0.25"))
    chosen = ["--truncations", large, "--output", str(tmp_path / "out")]
    run(monkeypatch, "--preset", "resnet50-cifar100", "--data", str(folder), *short, *chosen)
    rows = read_rows(tmp_path / "out")
    assert (tmp_path / "out" / "accuracy.png").exists()
    shutil.rmtree(tmp_path / "out")  # large checkpoints
    assert len(rows) == 1 + 2 * (1 + 2), "as it is; two epochs of the control and of a truncation in two ways"
    truncated = [row for row in rows if row["epoch"] == 0 and row["truncation"] != "none"]
    assert all(len(row["layers"]) == 52 for row in truncated), "all convolutions but the first"
    assert all(row["parameters_kept"] < 0.8 for row in truncated)
    assert 1.2e9 / 16 < rows[0]["multiply_adds"] < 1.4e9 / 16
    assert all(math.isfinite(row["training_loss"]) for row in rows if row["epoch"] == 1)


def test_with_distillation_the_untouched_network_teaches(quick: Config) -> None:
    """Its own answers alone leave the control where it is; the labels would move it."""
    plain = {"optimizer": "sgd", "learning_rate": 0.01, "weight_decay": 0.0, "shift": 0}
    rows = main(dataclasses.replace(quick, distillation=1.0, epochs=1, ways=("control", "dense"), **plain))
    losses = {row["way"]: row["training_loss"] for row in rows if row["epoch"] == 1}
    assert losses["control"] < 1e-7 < 1e-5 < losses["dense"]
    assert {row["accuracy"] for row in rows if row["way"] != "dense"} == {rows[0]["accuracy"]}


# both ways start from the same kernels


@pytest.mark.parametrize(
    "text",
    [
        "out kh | in kw @ keep 0.25",
        "in | out kh kw then out kh | in kw @ keep 0.5",
        "tucker2 @ a=4 b=3",
        "tucker2 @ parameters 0.5",
        "cp @ r=4",
        "tucker2 or out kh | in kw @ multiply-adds 0.6",
    ],
)
def test_dense_and_factored_have_the_same_kernels(text: str) -> None:
    model = build_model(SMALL, classes=10, channels=1, seed=0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    truncation = read_truncation(text)
    assert truncation.text == text
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


def test_epoch_0_is_that_of_the_study_in_both_ways(quick: Config, tmp_path: Path) -> None:
    truncations = (CUT, "tucker2 @ parameters 0.5")
    rows = main(dataclasses.replace(quick, epochs=1, truncations=truncations, ways=("dense", "factored")))
    model = build_model(SMALL, classes=10, channels=1, seed=0)
    images = load_images("digits", "test").subset(40, seed=0)
    options = tn.StudyOptions(progress=False, untrained=True)
    studied = tn.study(
        model,
        images,
        tmp_path / "study",
        rewrites=["out kh | in kw", "tucker2"],
        sizes=[tn.KeepFraction(0.125), tn.ParameterBudget(0.5)],
        options=options,
    ).rows
    for text in truncations:
        size = {"keep": 0.125} if text == CUT else {"budget": 0.5}
        rewrite = text.rpartition(" @ ")[0]
        (expected,) = [r for r in studied if r["rewrite"] == rewrite and {n: r[n] for n in size} == size]
        for way in ("dense", "factored"):
            (row,) = [row for row in rows if (row["truncation"], row["way"], row["epoch"]) == (text, way, 0)]
            assert row["accuracy"] == pytest.approx(expected["accuracy"], abs=5e-4)
            assert row["mean_squared_relative_error"] == pytest.approx(expected["mean_squared_relative_error"])
            assert row["parameters_kept"] == pytest.approx(expected["parameters_kept"])
            assert row["parameters_kept"] < 0.6
            assert 0 < row["multiply_adds_kept"] < 0.8
            assert row["images"] == 40


# stopped and run again


def test_an_interrupted_run_continues_and_repeats_nothing(
    quick: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = CountSteps(monkeypatch)
    whole = main(quick)
    assert steps.count == 3 * 2 * 2, "trainings, epochs, steps"
    stopped = dataclasses.replace(quick, output=tmp_path / "stopped", checkpoint_every=1)
    for stop_at in (4, 7):  # in the second epoch of the control; among the first steps of the next training
        steps.reset(stop_at)
        with pytest.raises(KeyboardInterrupt):
            main(stopped)
    assert [(row["way"], row["epoch"]) for row in read_rows(stopped.output)] == [
        *[(None, 0), ("control", 0), ("control", 1), ("control", 2), ("dense", 0), ("dense", 1), ("dense", 2)],
        ("factored", 0),
    ]
    steps.reset()
    done = main(stopped)
    assert steps.count == 12 - 3 - 6, "no step is done twice"
    assert without_seconds(done) == without_seconds(whole)
    # truncations, ways and seeds can be added; what is there is not done again
    steps.reset()
    more = dataclasses.replace(stopped, seeds=(0, 1), truncations=(CUT, "tucker2 @ a=4 b=3"), ways=("control", "dense"))
    rows = main(more)
    assert rows[: len(done)] == done
    assert steps.count == 4 * (1 + 1 + 2), "the seed of two trainings, and two seeds of another truncation"
    keys = [(row["truncation"], row["way"], row["seed"], row["epoch"]) for row in rows]
    assert len(set(keys)) == len(keys) == 1 + 3 * 3 + 3 * 4
    assert rows[0]["parameters_kept"] == 1
    assert not any(row["layers"] for row in rows if row["epoch"]), "layers are told once"
    with refused(StudyError, stopped.output, "learning_rate: 0.002", 0.01):
        main(dataclasses.replace(more, learning_rate=0.01))


# errors


@pytest.mark.parametrize(
    ("changes", "kind", "facts"),
    [
        ({"truncations": ("out | in kh kz @ keep 0.5",)}, RuleError, ["out | in kh kz"]),
        ({"truncations": ("out in @ keep 0.5",)}, RuleError, ["out in @ keep 0.5"]),
        ({"truncations": ("out | in kh kw @ keep 1.5",)}, RankError, ["1.5"]),
        ({"truncations": ("out | in kh kw @ keep half",)}, RankError, ["half"]),
        ({"truncations": ("out | in kh kw",)}, RuleError, ["out | in kh kw", "@"]),
        ({"truncations": ("tucker2 @ parameters 0",)}, RankError, ["tucker2 @ parameters 0"]),
        ({"truncations": ("tucker3 @ parameters 0.5",)}, RuleError, ["tucker3"]),
        ({"truncations": ("tucker2 @ a=4",)}, RankError, ["'b'"]),
        ({"truncations": ("cp @ r=4,8",)}, RankError, ["r=4,8"]),
        ({"truncations": ("cp @ keep 0.5",)}, RankError, ["keep 0.5", "singular values"]),
        ({"seeds": ()}, StudyError, ["--seeds"]),
        ({"ways": ()}, StudyError, ["--ways"]),
        ({"truncations": ("tucker2 @ z=8",)}, RankError, ["z"]),
        ({"truncations": ("tucker2 @ time 0.5",)}, TnalgebraError, ["time 0.5"]),
        ({"model": "resnet20"}, DataError, ["resnet20", "--weights"]),
        ({"model": "resnet19"}, DataError, ["resnet19"]),
        ({"limit": 0}, DataError, ["0 images"]),
        ({"epochs": 0}, DataError, ["epochs", 0]),
        ({"shift": -1}, DataError, [-1]),
        ({"skip": ("conv9",)}, StudyError, ["conv9"]),
    ],
)
def test_wrong_settings_are_refused_by_name(
    changes: dict[str, Any], kind: type[TnalgebraError], facts: list[Any], quick: Config
) -> None:
    with refused(kind, *facts):
        main(dataclasses.replace(quick, **changes))
    assert not (quick.output / "results.jsonl").exists(), "refused before anything is trained"


def test_trainings_that_diverge_stop_with_epoch_and_loss_and_the_others_continue(
    quick: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    own, starting, way = Classification.loss, retrain._Retraining.start, [""]

    def loss(task: Classification, outputs: Tensor, *others: Any) -> Tensor:
        return own(task, outputs, *others) * (math.nan if way[0] == "dense" else 1.0)

    def start(self: Any, **fields: Any) -> Any:
        way[0] = fields["way"]
        return starting(self, **fields)

    monkeypatch.setattr(Classification, "loss", loss)
    monkeypatch.setattr(retrain._Retraining, "start", start)
    with refused(DivergedError, "out kh | in kw @ keep 0.125, dense, seed 0", "nan", "1 of 2"):
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
    finished = hand_made({("a", "dense", 0): (50, 89.5)}, before=90)
    (claim,) = claims(finished)
    assert (claim.epoch, claim.to_control, claim.reaches_control) == (1, None, None), "without a control"
    assert "control" not in summary(finished).splitlines()[-1]


def test_folders_tell_trainings_apart() -> None:
    texts = ["out | in kh kw @ keep 0.5", "out in | kh kw @ keep 0.5", "out | in kh kw @ keep 0.25"]
    names = [folder_name(text, way, "seed 0") for text in texts for way in ("dense", "factored")]
    assert len(set(names)) == len(names)
    assert names[0] == "out--in_kh_kw@keep_0.5,dense,seed_0"
