"""Networks decomposed before they are trained, as a command: smoke, first values, runs stopped, tables, errors."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import tnalgebra as tn
from recipes.a_priori import run as a_priori
from recipes.a_priori.report import summary
from recipes.a_priori.run import PRESETS, Config, main
from recipes.networks import even_ranks
from recipes.training import Regression
from tests.refusals import refused
from tests.training_cases import CountSteps, without_seconds
from tnalgebra.errors import DataError, DivergedError, RankError, RuleError, StudyError, TnalgebraError
from tnalgebra.nn import kernel_layers
from tnalgebra.studies import Layer, Rewrite, read_rows

pytestmark = pytest.mark.slow

SMALL = "tests.training_cases:small_cnn"
QUICK = Config(
    model=SMALL,
    rewrites=("out kh | in kw",),
    parameters=(0.5,),
    seeds=(0, 1),
    epochs=2,
    warmup=0,
    batch_size=20,
    limit=40,
    device="cpu",
)
"""Four trainings of two epochs of two steps."""


def quick(output: Path, **changes: Any) -> Config:
    return dataclasses.replace(QUICK, output=output, **changes)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["a_priori", *arguments])
    a_priori.run()


# the command


def test_the_smoke_run_leaves_rows_and_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    some = ("--seeds", "0", "--limit", "60", "--epochs", "1", "--model", SMALL, "--parameters", "0.5", "0.4")
    run(monkeypatch, "--smoke", "--device", "cpu", *some, "--output", str(tmp_path))
    printed = capsys.readouterr().out
    fields = [field.name for field in dataclasses.fields(Config)]
    assert [line.split()[0] for line in printed.splitlines()[: len(fields)]] == fields
    assert ["warmup", "0.2"] in [line.split() for line in printed.splitlines()], "not all of a short training"
    rows = read_rows(tmp_path)
    assert len(rows) == 5, "dense, two rewrites of two sizes"
    assert summary(rows) in printed
    assert all((tmp_path / f"score{kind}").stat().st_size > 10_000 for kind in (".png", ".svg"))
    for row in rows:
        kept = row["parameters_kept"]
        assert kept == 1 if row["fraction"] is None else kept < row["fraction"] + 0.1
        assert row["accuracy"] == row["score"]


def test_waves_are_learnt_in_decomposed_form_too(tmp_path: Path) -> None:
    config = dataclasses.replace(
        PRESETS["waves"], rewrites=("tucker2",), parameters=(0.25,), seeds=(0,), epochs=3, batch_size=8, limit=40
    )
    rows = main(dataclasses.replace(config, device="cpu", output=tmp_path))
    assert [row["contender"] for row in rows] == ["dense"] * 3 + ["tucker2 @ 0.25"] * 3
    assert {row["score_name"] for row in rows} == {"relative_error"}
    assert {row["images"] for row in rows} == {8}
    assert all(row["accuracy"] is None for row in rows)
    for first, last in ((rows[0], rows[2]), (rows[3], rows[5])):
        assert 0 < last["score"] < first["score"], "it learns"
    text = summary(rows)
    assert "lower is better" in text
    assert (tmp_path / "score.svg").exists()


def test_with_equal_time_quicker_networks_have_more_epochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = {"dense": [0.2, 0.3, 0.25], "out kh | in kw @ 0.5": [0.1, 9.0, 0.1], "tucker2 @ 0.5": [2.0, 2.0, 2.0]}
    now = {"dense": [0.5], "cp @ 0.5": [0.25]}  # on a machine that has become half as fast
    monkeypatch.setattr(a_priori, "time_in_turns", lambda calls, **_: {name: seconds[name] for name in calls})
    config = quick(tmp_path, rewrites=("out kh | in kw", "tucker2"), seeds=(0,), equal="time")
    rows = main(config)
    counts = {"dense": 2, "out kh | in kw @ 0.5": 5, "tucker2 @ 0.5": 1}
    assert {name: [row["epoch"] for row in rows if row["contender"] == name] for name in counts} == {
        name: [*range(1, count + 1)] for name, count in counts.items()
    }
    assert [line.split()[-2] for line in summary(rows).splitlines()[-3:]] == ["2", "5", "1"]
    monkeypatch.setattr(a_priori, "time_in_turns", lambda calls, **_: pytest.fail("measured once for a folder"))
    assert main(config) == rows
    monkeypatch.setattr(a_priori, "time_in_turns", lambda calls, **_: {name: now[name] for name in calls})
    added = main(dataclasses.replace(config, rewrites=("cp",)))
    assert added[: len(rows)] == rows
    assert [(row["contender"], row["epoch"]) for row in added[len(rows) :]] == [("cp @ 0.5", 1 + n) for n in range(4)]
    monkeypatch.setattr(a_priori, "time_in_turns", lambda calls, **_: pytest.fail("all are measured"))
    assert main(config) == added


# what is trained


@pytest.mark.parametrize("rewrite", ["tucker2", "cp", "K[o i h w] => A[o h p] B[p i w]"])
def test_cores_are_new_and_kernels_have_torchs_variance(rewrite: str) -> None:
    config, task = a_priori._load_task(dataclasses.replace(QUICK, model="cnn4"))
    dense, counted = a_priori._make(config, task, ("none", None), seed=0)
    assert counted["parameters_kept"] == counted["multiply_adds_kept"] == 1
    networks = [a_priori._make(config, task, (rewrite, 0.3), seed=seed) for seed in (0, 1)]
    whole = kernel_layers(dense)
    for name in ("conv2", "conv3", "conv4"):
        layers = [model.get_submodule(name) for model, _ in networks]
        assert all(isinstance(layer, tn.nn.KernelLayer) for layer in layers)
        kernels = [layer.dense_weight().detach() for layer in layers]
        own = whole[name].weight.detach()
        fan_in = own[0].numel()
        for kernel in kernels:
            assert float(kernel.square().mean()) == pytest.approx(1 / (3 * fan_in), rel=1e-4)
            assert float(own.square().mean()) == pytest.approx(1 / (3 * fan_in), rel=0.05)
        # with nothing in common: of 18,432 elements and more, or their cores, a correlation is below a tenth
        for one, other in ((kernels[0], kernels[1]), (kernels[0], own)):
            assert abs(float(torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1])) < 0.1
    for _, facts in networks:
        assert facts["parameters_kept"] < 0.32
        assert facts["multiply_adds_kept"] < 0.6


def test_ranks_are_even_parts_of_the_full_ones() -> None:
    layer = Layer("conv", ("out", "in", "kh", "kw"), torch.zeros(64, 32, 3, 3, dtype=torch.float64))
    tucker2 = Rewrite.read("tucker2").form(layer)
    found = even_ranks(tucker2, 0.25 * layer.weight.numel())
    assert found == {"a": 24, "b": 12}, "of 64 and 32; a=25 would be 4,684 parameters"
    assert tucker2.plan(found).parameters == 64 * 24 + 24 * 12 * 9 + 12 * 32 <= 0.25 * 18432
    assert even_ranks(Rewrite.read("cp").form(layer), 1030) == {"r": 10}, "102 parameters a component"
    assert even_ranks(tucker2, 104) is None, "105 at rank 1"
    assert even_ranks(tucker2, 105) == {"a": 1, "b": 1}


def test_waves_for_the_test_are_not_those_that_are_learnt() -> None:
    _, task = a_priori._load_task(dataclasses.replace(PRESETS["waves"], limit=10))
    assert isinstance(task, Regression)
    assert not any(torch.equal(one, other) for one in task.training_inputs for other in task.test_inputs)


# stopped and run again


def test_an_interrupted_run_continues_and_repeats_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = CountSteps(monkeypatch)
    whole = main(quick(tmp_path / "whole"))
    assert steps.count == 4 * 2 * 2, "trainings, epochs, steps"
    stopped = quick(tmp_path / "stopped", checkpoint_every=1)
    steps.reset(8)  # in the second epoch of the second training
    with pytest.raises(KeyboardInterrupt):
        main(stopped)
    assert [row["epoch"] for row in read_rows(stopped.output)] == [1, 2, 1]
    steps.reset()
    done = main(stopped)
    assert steps.count == 16 - 7, "no step is done twice"
    assert without_seconds(done) == without_seconds(whole)
    steps.reset()
    more = main(dataclasses.replace(stopped, rewrites=("out kh | in kw", "tucker2"), seeds=(0,)))
    assert steps.count == 2 * 2
    assert more[: len(done)] == done
    assert {row["contender"] for row in more[len(done) :]} == {"tucker2 @ 0.5"}
    with refused(StudyError, stopped.output, "epochs: 2", 3):
        main(dataclasses.replace(stopped, epochs=3))


def test_rows_of_a_network_that_has_changed_since_are_not_reused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    source = "from models.cnn4 import cnn4\ndef build(classes, channels):\n    return "
    source += "cnn4(classes=classes, channels=channels, widths=WIDTHS)\n"
    config = quick(tmp_path / "out", model="changing_net:build", seeds=(0,), epochs=1)
    (tmp_path / "changing_net.py").write_text(f"WIDTHS = (8, 8, 8, 8)\n{source}")
    main(config)
    (tmp_path / "changing_net.py").write_text(f"WIDTHS = (8, 8, 8, 9)\n{source}")
    monkeypatch.delitem(sys.modules, "changing_net")
    with refused(StudyError, config.output, "network"):
        main(config)


# what rows say


def test_the_summary_of_a_table_made_by_hand() -> None:
    sizes = {"model": "m", "images": 100, "score_name": "accuracy", "seconds": 3.0, "epoch": 2, "epochs": 2}
    dense = {**sizes, "contender": "dense", "rewrite": "none", "fraction": None, "parameters": 4000}
    dense |= {"parameters_kept": 1.0, "multiply_adds": 5e6, "multiply_adds_kept": 1.0}
    small = {**dense, "contender": "cp @ 0.5", "rewrite": "cp", "fraction": 0.5, "parameters": 1000}
    small |= {"parameters_kept": 0.25, "multiply_adds": 1e6, "multiply_adds_kept": 0.2}
    rows = [{**small, "seed": 0, "score": 0.5, "epoch": 1}]  # not the last epoch: of the time alone
    rows += [{**small, "seed": seed, "score": score} for seed, score in enumerate((0.9, 0.92, 0.88))]
    rows += [{**dense, "seed": seed, "score": score} for seed, score in enumerate((0.95, 0.97))]
    lines = [line.split() for line in summary(rows).splitlines()]
    assert ["dense", "4,000", "1.000", "5", "M", "1.000", "96.00", "95.00-97.00", "2", "2", "3"] in lines
    small_line = ["cp", "@", "0.5", "1,000", "0.250", "1", "M", "0.200", "90.00", "88.00-92.00", "-6.00", "3", "2", "3"]
    assert small_line in lines


# errors


WAVES = {"data": "waves", "model": "wave_net"}


@pytest.mark.parametrize(
    ("changes", "kind", "facts"),
    [
        ({"rewrites": ("tucker3",)}, RuleError, ["tucker3"]),
        ({"rewrites": ("out | in kh kz",)}, RuleError, ["kz"]),
        ({"rewrites": ("cp",), "parameters": (0.001,)}, RuleError, ["cp", 0.001]),
        ({"rewrites": ()}, RuleError, ["--rewrites"]),
        ({"parameters": (1.5,)}, RankError, [1.5]),
        ({"parameters": (0.0,)}, RankError, ["parameters is 0"]),
        ({"seeds": ()}, StudyError, ["--seeds"]),
        ({"model": "cnn5"}, DataError, ["cnn5"]),
        ({"data": "waves", "model": "cnn4"}, DataError, ["cnn4", "inputs=3"]),
        ({**WAVES, "limit": 4}, DataError, ["4 waves"]),
        ({**WAVES, "label_smoothing": 0.1}, DataError, ["label_smoothing"]),
    ],
)
def test_wrong_settings_are_refused_by_name(
    changes: dict[str, Any], kind: type[TnalgebraError], facts: list[Any], tmp_path: Path
) -> None:
    with refused(kind, *facts):
        main(quick(tmp_path, **changes))


def test_a_learning_rate_that_diverges_stops_with_epoch_and_loss(tmp_path: Path) -> None:
    with refused(DivergedError, "4 of the trainings", "of 2", "learning rate"):
        main(quick(tmp_path, optimizer="sgd", learning_rate=1e9))
