"""A study says what numpy says, continues where it was, and leaves everything else alone."""

from __future__ import annotations

import copy
import dataclasses
import io
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import tnalgebra as tn
from tests.refusals import refused
from tests.study_cases import (
    CLASSES,
    CUTS,
    LABELS,
    NO_FIT,
    Kinds,
    close,
    labelled,
    network,
    row_by_hand,
    some_images,
    study,
    top1,
    truncated,
    without_seconds,
)
from tnalgebra.errors import RuleError, StudyError
from tnalgebra.model.batch_norm import recalibrate_batch_norm
from tnalgebra.model.images import Images
from tnalgebra.studies.accuracy import shuffled_batches
from tnalgebra.studies.store import read_rows

pytestmark = pytest.mark.usefixtures("undrawn")


@pytest.fixture(scope="module")
def found(model: nn.Module, images: Images, tmp_path_factory: pytest.TempPathFactory) -> tn.studies.Study:
    return study(
        {"net": model},
        images,
        tmp_path_factory.mktemp("study"),
        [*CUTS, " kw out|kh,in  then in | out kh kw"],
        (1.0, 0.5, 0.2),
        scope=("all", "each", "w*"),
        skip=(),
    )


@pytest.mark.slow
def test_rows_are_those_asked_for_and_agree_with_numpy(
    found: tn.studies.Study, model: nn.Module, images: Images
) -> None:
    convolutions = ["stem", "wide", "grouped"]
    layers_of = {"all": convolutions, **{name: [name] for name in convolutions}, "w*": ["wide"]}
    rows = {(row["rewrite"], row["keep"], row["scope"]): row for row in found.rows}
    cuts = [*CUTS, "kw out | kh in then in | out kh kw"]
    asked = [(cut, keep, scope) for cut in cuts for keep in (1, 0.5, 0.2) for scope in layers_of]
    assert list(rows) == [("none", None, "all"), *asked]
    assert len(found.rows) == len(rows)
    close(rows["none", None, "all"], row_by_hand(model, images, "none", None, [], torch.float64))
    for cut, keep, scope in asked:
        close(rows[cut, keep, scope], row_by_hand(model, images, cut, keep, layers_of[scope], torch.float64))
    assert len({row["accuracy"] for row in found.rows}) > 10, "or comparing accuracies says little"


def test_rows_have_these_fields_of_these_types(found: tn.studies.Study) -> None:
    fields = {
        "model": str,
        "rewrite": str,
        "keep": float,
        "scope": str,
        **{field: type(value) for field, value in NO_FIT.items()},
        "accuracy": float,
        "accuracy_change": float,
        "images": int,
        "mean_squared_relative_error": float,
        "parameters_kept": float,
        "layers": dict,
        "config": str,
        "version": str,
        "torch": str,
        "machine": str,
        "seconds": float,
    }
    details = {"rank": int, "values": int, "relative_error": float, "norm_kept": float, "parameters": int}
    stored = read_rows(found.folder)
    assert sorted(stored, key=repr) == sorted(found.rows, key=repr), "in the file in the order in which they were made"
    for row in stored:
        kinds = fields | ({"keep": type(None)} if row["rewrite"] == "none" else {})
        assert {field: type(value) for field, value in row.items()} == kinds
        assert all({key: type(value) for key, value in each.items()} == details for each in row["layers"].values())
        assert (row["model"], row["version"], row["images"]) == ("net", tn.__version__, 400)
        assert 0 <= row["accuracy"] <= 1
        assert row["seconds"] >= 0
    assert len({row["config"] for row in stored}) == 1
    assert len(stored[0]["config"]) == 12


def test_the_study_is_a_table_and_a_data_frame(found: tn.studies.Study) -> None:
    lines = str(found).splitlines()
    several = [row for row in found.rows if row["scope"] in ("all", "w*")]
    assert [line.split("  ")[0].strip() for line in lines[2:]] == [row["rewrite"] for row in several]
    assert f"{100 * several[1]['accuracy']:.2f}" in lines[3]
    frame = found.to_pandas()
    assert list(frame.columns) == list(found.rows[0])
    assert frame["accuracy"].tolist() == [row["accuracy"] for row in found.rows]


def test_a_cut_is_for_the_layers_with_its_labels(tmp_path: Path) -> None:
    model = network(Kinds)
    images = labelled(some_images(), model)
    layers_of = {
        "out | in": {"linear": ["linear"]},
        "in k | out": {"conv1": ["conv1"], "conv*": ["conv1"]},
        "out kh | in kw": {"conv2": ["conv2"], "up": ["up"], "conv*": ["conv2"]},
        "kd out | kh kw in": {"conv3": ["conv3"], "conv*": ["conv3"]},
        "out | in kh kw then in out | kh kw": {"conv2": ["conv2"], "up": ["up"], "conv*": ["conv2"]},
    }
    found = study(model, images, tmp_path, list(layers_of), scope=("all", "each", "conv*"), skip=())
    rows = iter(found.rows[1:])
    for cut, scopes in layers_of.items():
        whole = [name for name, layers in scopes.items() if layers == [name]]
        for scope, layers in {"all": whole, **scopes}.items():
            row = next(rows)
            assert (row["rewrite"], row["scope"]) == (cut, scope)
            close(row, row_by_hand(model, images, cut, 0.5, layers, torch.float64))
    assert next(rows, None) is None


def test_the_first_convolution_is_skipped_unless_asked(model: nn.Module, images: Images, tmp_path: Path) -> None:
    for number, (skip, layers) in enumerate(
        [
            (("first",), ["wide", "grouped"]),
            ((), ["stem", "wide", "grouped"]),
            (("first", "gr*"), ["wide"]),
            (("linear",), ["stem", "wide", "grouped"]),
        ]
    ):
        found = study(model, images, tmp_path / str(number), CUTS[:1], skip=skip)
        assert list(found.rows[1]["layers"]) == layers
    assert list(study(model, images, tmp_path / "default", CUTS[:1]).rows[1]["layers"]) == ["wide", "grouped"]
    found = study(network(Kinds), some_images(9), tmp_path / "linear", ["out | in"])
    assert list(found.rows[1]["layers"]) == ["linear"], "a linear layer is not a convolution"


def shared(skip: str = "first") -> nn.Module:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Flatten()
    )
    model.append(nn.Linear(48, CLASSES))
    model[3].weight = model[1].weight
    return model


def test_a_weight_that_two_layers_share_is_cut_and_counted_once(tmp_path: Path) -> None:
    model = shared()
    images = labelled(some_images(), model)
    found = study(model, images, tmp_path / "1", CUTS[1:], scope=("all", "each"))
    expected = row_by_hand(model, images, CUTS[1], 0.5, ["1"], torch.float64)
    assert expected["accuracy_change"] != 0
    for row in found.rows[1:]:
        close(row, expected)
    assert [row["scope"] for row in found.rows] == ["all", "all", "1"]
    with refused(StudyError, "no layer is left", "3, first, 5"):
        study(model, images, tmp_path / "2", CUTS[1:], skip=("3", "first", "5"))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_network_is_tested_in_the_dtype_and_cut_in_float64(
    dtype: torch.dtype, model: nn.Module, images: Images, tmp_path: Path
) -> None:
    found = study(model, images, tmp_path, dtype=dtype)
    for row, cut in zip(found.rows[1:], CUTS, strict=True):
        expected = row_by_hand(model, images, cut, 0.5, ["wide", "grouped"], dtype)
        # other batches may round otherwise: a few images in 400 near a boundary
        tolerance = 0.002 if dtype == torch.float32 else 0.02
        assert row["accuracy"] == pytest.approx(expected["accuracy"], abs=tolerance)
        close(row, expected | {"accuracy": row["accuracy"], "accuracy_change": row["accuracy_change"]})


def _spoil(_: str, model: nn.Module) -> None:
    with torch.no_grad():
        model.wide.weight.mul_(torch.linspace(1, 3, 12)[:, None, None, None])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_model_and_torch_are_left_as_they_were(dtype: torch.dtype, images: Images, tmp_path: Path) -> None:
    model = network()
    model.train()
    model.norm.eval()
    before, modes, random = (
        copy.deepcopy(model.state_dict()),
        [m.training for m in model.modules()],
        torch.get_rng_state(),
    )
    options: dict[str, Any] = {"recalibration": some_images(50), "calibration": some_images(30), "prepare": _spoil}
    sizes = [0.5, tn.ParameterBudget(0.8), 3]
    study(model, images, tmp_path, sizes=sizes, dtype=dtype, metric="output", report_metric=True, **options)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert torch.equal(torch.get_rng_state(), random)


def test_prepare_makes_the_network_that_is_studied(images: Images, tmp_path: Path) -> None:
    model, other = network(), network()
    _spoil("", other)
    prepared = study(model, images, tmp_path / "prepared", prepare=_spoil)
    direct = study(other, images, tmp_path / "direct")
    assert without_seconds(prepared.rows) == without_seconds(direct.rows)
    assert prepared.rows[1]["layers"] != study(model, images, tmp_path / "plain").rows[1]["layers"]


@pytest.mark.parametrize("shift", [0, 2])
def test_batch_norm_is_recalibrated_only_if_asked(shift: int, model: nn.Module, images: Images, tmp_path: Path) -> None:
    training = some_images(150, seed=3)
    plain = study(model, images, tmp_path / "plain")
    options: dict[str, Any] = {"recalibration": training, "batch_size": 50}
    again = study(model, images, tmp_path / "again", recalibration_shift=shift, **options)
    close(plain.rows[1], row_by_hand(model, images, CUTS[0], 0.5, ["wide", "grouped"], torch.float64))
    for row, cut in zip(again.rows, (None, *CUTS), strict=True):
        other = copy.deepcopy(model).double()
        with torch.no_grad():
            for name in ("wide", "grouped") if cut else ():
                layer = other.get_submodule(name)
                layer.weight.copy_(torch.from_numpy(truncated(layer.weight, LABELS[nn.Conv2d], cut, 0.5)[0]))
        batches = shuffled_batches(training, max_shift=shift, batch_size=50, dtype=torch.float64)
        recalibrate_batch_norm(other, batches)
        assert row["accuracy"] == top1(other, images, {}, torch.float64)
        assert row["accuracy_change"] == row["accuracy"] - again.rows[0]["accuracy"]
    assert again.rows[0]["accuracy"] != plain.rows[0]["accuracy"], "the untouched network is recalibrated too"
    with refused(StudyError, "recalibration: ", "there", "here"):
        study(model, images, tmp_path / "again", recalibration_shift=shift + 1, **options)
    assert any(a["accuracy"] != b["accuracy"] for a, b in zip(plain.rows[1:], again.rows[1:], strict=True))


def test_one_of_each_needs_no_list(model: nn.Module, images: Images, tmp_path: Path) -> None:
    one = study(model, images, tmp_path / "one", CUTS[:1], scope="each", skip="w*")
    several = study(model, images, tmp_path / "list", CUTS[:1], scope=["each"], skip=["w*"])
    assert without_seconds(one.rows) == without_seconds(several.rows)
    assert [row["scope"] for row in one.rows] == ["all", "stem", "grouped"]


def test_one_rewrite_and_one_size_need_no_list(model: nn.Module, images: Images, tmp_path: Path) -> None:
    options = tn.StudyOptions(progress=False, untrained=True)
    for size in ("r=2", {"r": 3}, 4):
        rows = tn.study(model, images, tmp_path, rewrites="cp", sizes=size, options=options).rows
        assert [row["rewrite"] for row in rows] == ["none", "cp"]
    rows = tn.study(model, images, tmp_path, rewrites=tn.rules()["cp"], sizes="r=2", options=options).rows
    assert [row["rewrite"] for row in rows] == ["none", "cp"]


def test_images_may_be_given_by_name(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.Conv2d(3, 10, 6), nn.Flatten())
    found = study(model, "digits", tmp_path, CUTS[:1])
    assert [row["images"] for row in found.rows] == [360, 360]
    assert found.rows[0]["model"] == "Sequential"


# the folder


def test_what_is_there_is_not_computed_again(model: nn.Module, images: Images, tmp_path: Path) -> None:
    whole = study(model, images, tmp_path / "whole", sizes=(0.5, 0.25), scope=("all", "each"))
    folder = tmp_path / "parts"
    study(model, images, folder, CUTS[:1], (0.25,))
    study(model, images, folder, CUTS[1:], (0.5,), scope=("each",))
    earlier = read_rows(folder)
    found = study(model, images, folder, sizes=(0.5, 0.25), scope=("all", "each"))
    assert read_rows(folder)[: len(earlier)] == earlier
    assert without_seconds(found.rows) == without_seconds(read_rows(folder)) == without_seconds(whole.rows)
    assert [row["rewrite"] for row in found.rows] == [row["rewrite"] for row in whole.rows], "in the order asked for"
    before = (folder / "results.jsonl").stat().st_mtime_ns
    again = study(model, images, folder, sizes=(0.5, 0.25), scope=("all", "each"))
    assert again.rows == found.rows
    assert (folder / "results.jsonl").stat().st_mtime_ns == before


def test_what_is_asked_for_twice_is_done_once(model: nn.Module, images: Images, tmp_path: Path) -> None:
    scope = ("each", "wide", "all", "all")
    found = study(model, images, tmp_path, ["out | in kh kw", "out|in  kh kw"], (0.5, 0.5), scope=scope)
    assert [row["scope"] for row in found.rows] == ["all", "wide", "grouped", "all"]
    assert sorted(read_rows(tmp_path), key=repr) == sorted(found.rows, key=repr)


def test_a_cut_in_other_words_is_the_same_cut(model: nn.Module, images: Images, tmp_path: Path) -> None:
    sequence, turned = "out | in kh kw then in kw | out kh", "kw in kh | out then kh out | in kw"
    found = study(model, images, tmp_path, ["in kh kw | out", "out | kw in kh", sequence, turned])
    assert [row["rewrite"] for row in found.rows] == ["none", "in kh kw | out", sequence]
    again = study(model, images, tmp_path, [turned, "out | in kh kw", "out kh | in kw"])
    assert again.rows[:3] == [found.rows[place] for place in (0, 2, 1)], "the folder's wording"
    assert read_rows(tmp_path) == [*found.rows, again.rows[3]]
    other = study(model, images, tmp_path, ["in kw | out kh then out | in kh kw"])
    assert other.rows[1]["rewrite"] == "in kw | out kh then out | in kh kw", "another order of cuts is another rewrite"


def test_a_layer_asked_for_by_name_is_in_the_table(model: nn.Module, images: Images, tmp_path: Path) -> None:
    found = study(model, images, tmp_path, CUTS[:1], scope=("all", "grouped"))
    assert [line[len(CUTS[0]) :].split()[1] for line in str(found).splitlines()[3:]] == ["all", "grouped"]
    each = study(model, images, tmp_path, CUTS[:1], scope=("each", "all", "wide"))
    assert [line[len(CUTS[0]) :].split()[1] for line in str(each).splitlines()[3:]] == ["wide", "all"]


class Overflows(nn.Module):
    """The answers of two kernels cancel; where one is cut they do not, and overflow in float16."""

    def __init__(self) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, CLASSES, (6, 5))
        self.two = nn.Conv2d(3, CLASSES, (6, 5))
        self.two.weight.data = -self.one.weight.data

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        total = self.one(pixels) + self.two(pixels)
        return (total * 60000 * 60000).flatten(1)


def test_a_truncation_that_overflows_is_a_row(tmp_path: Path) -> None:
    model = network(Overflows)
    model.one.bias.data.zero_()
    model.two.bias.data.zero_()
    options: dict[str, Any] = {"scope": ("two", "all"), "dtype": torch.float16, "skip": ()}
    found = study(model, some_images(20), tmp_path, CUTS[:1], (0.2,), **options)
    assert found.rows[1]["accuracy"] == 0.0
    assert [row["scope"] for row in found.rows] == ["all", "two", "all"], "the study continued"


def test_a_folder_of_another_config_is_refused(model: nn.Module, images: Images, tmp_path: Path) -> None:
    def never(*_: object) -> None:
        raise AssertionError

    study(model, images, tmp_path)
    rows = (tmp_path / "results.jsonl").read_bytes()
    cases: list[tuple[nn.Module, Images, dict[str, Any], str]] = [
        (network(seed=2), images, {}, "models.Net: "),
        (model, some_images(30), {"prepare": never}, "images: "),
        (model, dataclasses.replace(images, std=(0.3, 0.3, 0.2)), {}, "std: [0.25, 0.3, 0.2] there"),
        (model, images, {"skip": ()}, 'skip: ["first"] there, [] here'),
        (model, images, {"dtype": torch.float32}, 'dtype: "float64" there, "float32" here'),
        (model, images, {"facts": {"epochs": 3}}, "epochs: none there, 3 here"),
    ]
    for network_, data, options, fact in cases:
        with refused(StudyError, "another config", fact):
            study(network_, data, tmp_path, **options)
        assert (tmp_path / "results.jsonl").read_bytes() == rows
    with refused(RuleError, "out | in"):
        study(model, images, tmp_path, ["out | in"], skip=("linear",), prepare=never)


def test_a_network_that_looks_untrained_is_refused_unless_asked_for(images: Images, tmp_path: Path) -> None:
    """One that answers no better than by guessing; statistics of a training speak for it, and so does the accuracy."""
    guesses = dataclasses.replace(images, labels=some_images(len(images), seed=3).labels)
    fresh = network(Kinds)
    with refused(StudyError, "Kinds looks untrained", "accuracy", "--untrained"):
        study(fresh, guesses, tmp_path, ["out | in"], untrained=False)
    assert read_rows(tmp_path) == []
    rows = study(fresh, guesses, tmp_path, ["out | in"], untrained=True).rows
    assert study(fresh, guesses, tmp_path, ["out | in"], untrained=False).rows == rows, "it was asked for before"
    study(network(), guesses, tmp_path / "statistics", untrained=False)
    study(fresh, labelled(images, fresh), tmp_path / "accuracy", ["out | in"], untrained=False)


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_progress_bar_with_the_time_left_on_a_terminal_alone(
    model: nn.Module,
    images: Images,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    study(model, images, tmp_path / "none", progress=True)
    assert capsys.readouterr() == ("", "")
    for folder, progress, facts in (
        ("shown", True, ("5/5", "out kh | in kw", "<00:00", "row")),
        ("quiet", False, ()),
    ):
        terminal = Terminal()
        monkeypatch.setattr("sys.stderr", terminal)
        study(model, images, tmp_path / folder, sizes=(0.5, 0.25), progress=progress)
        assert all(fact in terminal.getvalue() for fact in facts)
        assert bool(terminal.getvalue()) == progress
