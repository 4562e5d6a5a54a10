"""Networks decomposed before they are trained, as a command: smoke, first values, runs stopped, tables, errors."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import tnalgebra as tn
from recipes.a_priori import run as a_priori
from recipes.a_priori.report import summary
from recipes.a_priori.run import PRESETS, Config, Contender, main
from recipes.experiment import Row
from recipes.networks import even_ranks
from recipes.training.classification import Classification
from recipes.training.regression import Regression
from tnalgebra.errors import DataError, DivergedError, RankError, RuleError, StudyError, TnalgebraError
from tnalgebra.nn.torch_layers import kernel_layers
from tnalgebra.studies.kernels import Layer
from tnalgebra.studies.rewrites import rewrite_of
from tnalgebra.studies.store import ROWS, read_rows

QUICK = Config(
    rewrites=("out kh | in kw",), parameters=(0.3,), seeds=(0, 1), epochs=2, warmup=0, limit=120, device="cpu"
)
"""Four trainings of two epochs of two steps."""


def quick(output: Path, **changes: Any) -> Config:
    return dataclasses.replace(QUICK, output=output, **changes)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["a_priori", *arguments])
    a_priori.run()


def without_seconds(rows: Sequence[Row]) -> list[str]:
    return sorted(json.dumps({key: value for key, value in row.items() if key != "seconds"}) for row in rows)


# the command


def test_the_smoke_run_leaves_rows_and_figures(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run(monkeypatch, "--smoke", "--device", "cpu", "--seeds", "0", "--output", str(tmp_path))
    printed = capsys.readouterr().out
    fields = [field.name for field in dataclasses.fields(Config)]
    assert [line.split()[0] for line in printed.splitlines()[: len(fields)]] == fields
    rows = read_rows(tmp_path)
    assert len(rows) == 5 * 4, "dense, two rewrites of two sizes; four epochs"
    assert summary(rows) in printed
    assert all((tmp_path / f"score{kind}").stat().st_size > 10_000 for kind in (".png", ".svg"))
    for row in rows:
        assert (
            row["parameters_kept"] == 1 if row["fraction"] is None else row["parameters_kept"] < row["fraction"] + 0.02
        )
        assert row["accuracy"] == row["score"]


def test_waves_are_learnt_in_decomposed_form_too(tmp_path: Path) -> None:
    config = dataclasses.replace(
        PRESETS["waves"], rewrites=("tucker2",), parameters=(0.25,), seeds=(0,), epochs=3, batch_size=8, limit=60
    )
    rows = main(dataclasses.replace(config, device="cpu", output=tmp_path))
    assert [row["contender"] for row in rows] == ["dense"] * 3 + ["tucker2 @ 0.25"] * 3
    assert {row["score_name"] for row in rows} == {"relative_error"}
    assert {row["images"] for row in rows} == {12}
    assert all(row["accuracy"] is None for row in rows)
    for first, last in ((rows[0], rows[2]), (rows[3], rows[5])):
        assert 0 < last["score"] < first["score"], "it learns"
    text = summary(rows)
    assert "lower is better" in text
    assert (tmp_path / "score.svg").exists()


# what is trained


@pytest.mark.parametrize("rewrite", ["tucker2", "cp", "K[o i h w] => A[o h p] B[p i w]"])
def test_cores_are_new_and_kernels_have_torchs_variance(rewrite: str) -> None:
    config, task = a_priori._task(dataclasses.replace(QUICK, limit=20))
    dense, counted = a_priori._made(config, task, Contender(), 0)
    assert counted["parameters_kept"] == counted["multiply_adds_kept"] == 1
    networks = [a_priori._made(config, task, Contender(rewrite, 0.3), seed) for seed in (0, 1)]
    whole = kernel_layers(dense)
    for name in ("conv2", "conv3", "conv4"):
        layers = [model.get_submodule(name) for model, _ in networks]
        assert all(isinstance(layer, tn.nn.KernelLayer) for layer in layers)
        kernels = [layer.dense_weight().detach() for layer in layers]  # type: ignore[operator]
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
    tucker2 = rewrite_of("tucker2", "frobenius").form(layer)
    found = even_ranks(tucker2, 0.25 * layer.weight.numel())
    assert found == {"a": 24, "b": 12}, "of 64 and 32; a=25 would be 4,684 parameters"
    assert tucker2.planned(found).parameters == 64 * 24 + 24 * 12 * 9 + 12 * 32 <= 0.25 * 18432
    assert even_ranks(rewrite_of("cp", "frobenius").form(layer), 1030) == {"r": 10}, "102 parameters a component"
    assert even_ranks(tucker2, 104) is None, "105 at rank 1"
    assert even_ranks(tucker2, 105) == {"a": 1, "b": 1}


# stopped and run again


def test_an_interrupted_run_goes_on_and_repeats_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    count, stop_at = 0, -1
    own: Callable[..., Tensor] = Classification.loss

    def loss(task: Classification, *arguments: Any) -> Tensor:
        nonlocal count
        count += 1
        if count == stop_at:
            raise KeyboardInterrupt
        return own(task, *arguments)

    monkeypatch.setattr(Classification, "loss", loss)
    whole = main(quick(tmp_path / "whole"))
    assert count == 4 * 2 * 2, "trainings, epochs, steps"
    stopped = quick(tmp_path / "stopped", checkpoint_every=1)
    count, stop_at = 0, 8  # in the second epoch of the second training
    with pytest.raises(KeyboardInterrupt):
        main(stopped)
    assert [row["epoch"] for row in read_rows(stopped.output)] == [1, 2, 1]
    count, stop_at = 0, -1
    done = main(stopped)
    assert count == 16 - 7, "no step is done twice"
    assert without_seconds(done) == without_seconds(whole)
    count, content = 0, (stopped.output / ROWS).read_bytes()
    assert main(stopped) == done
    assert count == 0
    assert (stopped.output / ROWS).read_bytes() == content
    more = main(dataclasses.replace(stopped, rewrites=("out kh | in kw", "tucker2"), seeds=(0,)))
    assert more[: len(done)] == done
    assert {row["contender"] for row in more[len(done) :]} == {"tucker2 @ 0.3"}


def test_a_folder_of_other_settings_is_refused_with_the_differences(tmp_path: Path) -> None:
    main(quick(tmp_path, epochs=1, seeds=(0,)))
    with pytest.raises(StudyError, match=r"of another config\n  differences: epochs: 1 there, 2 here"):
        main(quick(tmp_path, epochs=2, seeds=(0,)))


# what rows say


def test_the_summary_of_a_table_made_by_hand() -> None:
    sizes = {"model": "m", "images": 100, "score_name": "accuracy", "seconds": 3.0, "epoch": 2}
    dense = {**sizes, "contender": "dense", "rewrite": "none", "fraction": None, "parameters": 4000}
    dense |= {"parameters_kept": 1.0, "multiply_adds": 5e6, "multiply_adds_kept": 1.0}
    small = {**dense, "contender": "cp @ 0.5", "rewrite": "cp", "fraction": 0.5, "parameters": 1000}
    small |= {"parameters_kept": 0.25, "multiply_adds": 1e6, "multiply_adds_kept": 0.2}
    rows = [{**small, "seed": 0, "score": 0.5, "epoch": 1}]  # not the last epoch: of the time alone
    rows += [{**small, "seed": seed, "score": score} for seed, score in enumerate((0.9, 0.92, 0.88))]
    rows += [{**dense, "seed": seed, "score": score} for seed, score in enumerate((0.95, 0.97))]
    lines = [line.split() for line in summary(rows).splitlines()]
    assert ["dense", "4,000", "1.000", "5", "M", "1.000", "96.00", "95.00-97.00", "2", "3"] in lines
    small_line = ["cp", "@", "0.5", "1,000", "0.250", "1", "M", "0.200", "90.00", "88.00-92.00", "-6.00", "3", "3"]
    assert small_line in lines


# errors


@pytest.mark.parametrize(
    ("changes", "kind", "message"),
    [
        ({"rewrites": ("tucker3",)}, RuleError, "no rule 'tucker3'"),
        ({"rewrites": ("out | in kh kz",)}, RuleError, "kz"),
        (
            {"rewrites": ("cp",), "parameters": (0.001,)},
            RuleError,
            "'cp' at 0.001 of the parameters leaves every layer",
        ),
        ({"rewrites": ()}, RuleError, "nothing to compare with"),
        ({"parameters": (1.5,)}, RankError, "a part of 1.5 of the parameters"),
        ({"parameters": (0.0,)}, RankError, "a part of 0 of the parameters"),
        ({"seeds": ()}, StudyError, "no seed is given"),
        ({"model": "cnn5"}, DataError, "no model is called 'cnn5'"),
        ({"data": "waves", "model": "cnn4"}, DataError, "no model is called 'cnn4'"),
        ({"data": "waves", "model": "wave_net", "limit": 4}, DataError, "4 waves are too few"),
        ({"data": "waves", "model": "wave_net", "limit": 0}, DataError, "0 waves are too few"),
        ({"data": "waves", "model": "wave_net", "label_smoothing": 0.1}, DataError, "label_smoothing is of classes"),
        ({"warmup": 2.0}, DataError, "the warm-up of 2 epochs is all"),
    ],
)
def test_wrong_settings_are_refused_by_name(
    changes: dict[str, Any], kind: type[TnalgebraError], message: str, tmp_path: Path
) -> None:
    with pytest.raises(kind, match=f"(?s){message}"):
        main(quick(tmp_path, **changes))


def test_an_unknown_preset_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit, match=r"no preset is called 'wave'\n  known: cnn4-digits, .*, waves"):
        run(monkeypatch, "--preset=wave")


def test_a_learning_rate_that_diverges_stops_with_epoch_and_loss(tmp_path: Path) -> None:
    expected = r"(?s)4 of the trainings diverged.*the loss is.*epoch: .* of 2.*fix: .*learning rate"
    with pytest.raises(DivergedError, match=expected):
        main(quick(tmp_path, optimizer="sgd", learning_rate=1e9))


def test_a_usual_warm_up_is_not_all_of_a_short_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    short = ["--epochs", "1", "--limit", "60", "--seeds", "0", "--rewrites", "cp", "--parameters", "0.3"]
    run(monkeypatch, *short, "--device", "cpu", "--output", str(tmp_path))
    assert "warmup              0.2\n" in capsys.readouterr().out


def test_rows_of_a_network_that_has_changed_since_are_not_reused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    source = "from models import build_model\ndef build(classes, channels):\n    return "
    source += "__import__('models.cnn4').cnn4.cnn4(classes=classes, channels=channels, widths=WIDTHS)\n"
    config = quick(tmp_path / "out", model="changing_net:build", seeds=(0,), epochs=1)
    (tmp_path / "changing_net.py").write_text(f"WIDTHS = (8, 8, 8, 8)\n{source}")
    main(config)
    (tmp_path / "changing_net.py").write_text(f"WIDTHS = (8, 8, 8, 9)\n{source}")
    monkeypatch.delitem(sys.modules, "changing_net")
    with pytest.raises(StudyError, match=r"(?s)another config.*network"):
        main(config)


def test_waves_for_the_test_are_not_those_that_are_learnt() -> None:
    _, task = a_priori._task(dataclasses.replace(PRESETS["waves"], limit=10))
    assert isinstance(task, Regression)
    assert not any(torch.equal(one, other) for one in task.training_inputs for other in task.test_inputs)
