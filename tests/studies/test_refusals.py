"""What a study refuses, before anything is written."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from tests.study_cases import CLASSES, CUTS, Net, labelled, network, some_images, study
from tnalgebra.errors import (
    DataError,
    LayerError,
    NotationError,
    RankError,
    RuleError,
    StudyError,
    TnalgebraError,
    ValuesError,
)
from tnalgebra.studies.store import read_rows


def with_weight(change: Callable[[nn.Module], object]) -> nn.Module:
    model = network()
    change(model)
    return model


def put(value: float) -> Callable[[nn.Module], object]:
    return lambda model: model.wide.weight.data[3, 1].fill_(value)


class Raises(Net):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images[:, :, 100:])


class Nothing(Net):
    def forward(self, images: Tensor) -> Any:
        return {"logits": super().forward(images)}  # as some libraries' networks do


class Flat(Net):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images)[..., 0]


class Picky(Net):
    def forward(self, images: Tensor) -> Tensor:
        raise KeyError("missing")


class Old(nn.Module):
    """Weight norm as it was before parametrisations: the weight is a plain tensor, which cannot be copied."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, CLASSES, (6, 5))
        weight = self.conv.weight
        del self.conv.weight
        self.conv.gain = nn.Parameter(torch.ones(()))
        self.conv.weight = weight * self.conv.gain

    def forward(self, images: Tensor) -> Tensor:
        return self.conv(images).flatten(1)


BAD: list[tuple[str, dict[str, Any], type[TnalgebraError], str]] = [
    ("twice", {"cuts": ["out kh | in kw kh"]}, RuleError, "label 'kh' stands twice in a cut"),
    ("missing", {"cuts": ["out kh | in"]}, RuleError, r"'out kh \| in' fits no layer.*\n +missing: kw\n"),
    ("unknown", {"cuts": ["out kh | in kw kx"]}, RuleError, r"fits no layer.*\n +unknown: kx\n +kernels: out in kh kw"),
    ("left", {"cuts": ["| out in kh kw"]}, RuleError, "left side of a cut is empty"),
    ("right", {"cuts": ["out in kh kw |"]}, RuleError, "right side of a cut is empty"),
    ("no bar", {"cuts": ["out in kh kw"]}, RuleError, r"a cut has one '\|', here are 0"),
    ("two bars", {"cuts": ["out | in | kh kw"]}, RuleError, r"a cut has one '\|', here are 2"),
    ("no word", {"cuts": ["out | in kh k-w"]}, RuleError, "'k-w' in a cut is not a label"),
    ("second", {"cuts": ["out | in kh kw then in"]}, RuleError, r"a cut has one '\|', here are 0"),
    ("others", {"cuts": ["out | in kh kw then out | in"]}, RuleError, "cuts that follow one another hold different"),
    ("none", {"cuts": []}, StudyError, "there is nothing to do\n  cuts:  0"),
    *(
        (f"keep {keep}", {"keep": [0.5, keep]}, RankError, rf"keep holds {keep}, outside \(0, 1\]")
        for keep in (0, 1.5, -0.5, math.nan, math.inf)
    ),
    ("keep text", {"keep": "0.5"}, RankError, r"keep holds '0\.5'\n  fix: numbers in \(0, 1\]"),
    ("keep texts", {"keep": ["0.5"]}, RankError, r"keep holds '0\.5'\n  fix: numbers in \(0, 1\]"),
    ("keep true", {"keep": True}, RankError, "keep holds True"),
    ("keep none", {"keep": None}, RankError, "keep holds None"),
    ("cut of no text", {"cuts": [3]}, RuleError, "cuts holds 3\n  fix: a text such as 'out | in kh kw'"),
    ("then nothing", {"cuts": "out | in kh kw then"}, RuleError, "after 'then' is empty\n  where: out .* kw then\n"),
    ("nothing then", {"cuts": "then out | in kh kw"}, RuleError, "the cut before 'then' is empty\n  where: then out"),
    ("dtype text", {"dtype": "float32"}, StudyError, "dtype is 'float32'\n  fix: .* such as torch.float32"),
    ("integers", {"dtype": torch.int64}, StudyError, "dtype is torch.int64"),
    ("shift", {"recalibrate_shift": 4}, StudyError, "recalibrate_shift=4 moves nothing without recalibrate_bn"),
    ("negative shift", {"recalibrate_shift": -1}, StudyError, "recalibrate_shift=-1 is no number of pixels"),
    ("ranks alone", {"ranks": "r=3"}, StudyError, "ranks is given, and no rewrites\n"),
    ("budget alone", {"budget": 0.5}, StudyError, "budget is given, and no rewrites\n"),
    ("metric alone", {"metric": "input"}, StudyError, "metric='input' is given, and no rewrites\n"),
    ("keep alone", {"cuts": (), "rewrites": "cp", "ranks": "r=2"}, StudyError, "keep is given, and no cuts\n"),
    ("no rank", {"rewrites": "cp"}, RankError, r"'cp' has no rank for 'r'\n  bonds: r\n  fix:   ranks such as r=8,16"),
    ("some rank", {"rewrites": "tucker2", "ranks": "b=3"}, RankError, "'tucker2' has no rank for 'a'\n  bonds: a b\n"),
    (
        "another bond",
        {"rewrites": ["cp", "dct"], "ranks": "r=2 c=2 d=2 x=3"},
        RankError,
        "ranks holds 'x', a bond of none of the rewrites\n  bonds: cp: r\n         dct: c d",
    ),
    (
        "uneven ranks",
        {"rewrites": "tucker2", "ranks": ["a=2,3", "b=2,3,4"]},
        RankError,
        "ranks of 'tucker2' are swept together, and are not equally many\n  ranks: a=2,3 b=2,3,4\n",
    ),
    *(
        (f"ranks {ranks}", {"rewrites": "cp", "ranks": ranks}, RankError, fact)
        for ranks, fact in (
            ("r", "ranks holds 'r'\n  fix: a bond and its ranks, such as r=16,32"),
            ("r=", "ranks holds 'r='"),
            ("3=r", "ranks holds '3=r'"),
            (3, "ranks holds 3\n"),
            ("r=2 r=3", "ranks holds the bond 'r' twice"),
            ("r=0", "the rank of bond 'r' is 0\n  fix: an integer of at least 1"),
            ("r=2,-1", "the rank of bond 'r' is '-1'"),
            ("r=2,x", "the rank of bond 'r' is 'x'"),
            ({"r": 0.5}, r"the rank of bond 'r' is 0\.5"),
            ({"r": True}, "the rank of bond 'r' is True"),
            ({"r": []}, "ranks holds no rank for the bond 'r'"),
        )
    ),
    ("unknown", {"rewrites": "tuker2"}, RuleError, "'tuker2' fits no layer\n(.*\n)*.*there is no rule 'tuker2'"),
    (
        "no kernel of it",
        {"rewrites": "mpo", "skip": ["linear"]},
        RuleError,
        "'mpo' fits no layer\n(.*\n)*.*no mpo of K",
    ),
    (
        "other axes",
        {"rewrites": "K[a b c] => A[a r] B[r b c]"},
        RuleError,
        r"fits no layer\n  because: K\[out in kh kw\] of 'wide': the value of 'K' has 4 axes, its node has 3",
    ),
    ("exact", {"rewrites": "K[o i h w] => G[w h i o]"}, RuleError, "decomposes nothing"),
    ("broken", {"rewrites": "K[o i h w] => A[o r"}, NotationError, "A"),
    (
        "two cuts",
        {"rewrites": f"{CUTS[0]} then {CUTS[1]}", "ranks": "r=2"},
        RuleError,
        "follow one another are several",
    ),
    ("rewrite of no text", {"rewrites": [3]}, RuleError, "rewrites holds 3\n  fix: a name of the catalogue, a cut"),
    ("untouched", {"rewrites": "none"}, RuleError, "rewrites holds 'none'"),
    *(
        (f"budget {budget}", {"rewrites": "cp", "budget": budget}, RankError, rf"budget holds {budget}\n")
        for budget in (0, 1.5, -0.5, math.nan, True)
    ),
    (
        "budget of each",
        {"rewrites": "cp", "budget": 0.5, "scope": "each"},
        StudyError,
        "a budget is for all layers together\n  scope: each\n",
    ),
    ("metric", {"rewrites": "cp", "metric": "inputs"}, StudyError, "metric is 'inputs'\n  fix: 'frobenius' or 'input'"),
    ("curves", {"curves": "entropy"}, StudyError, "curves is 'entropy'\n  fix: 'error' or 'divergence'"),
    ("components", {"components": "keep"}, StudyError, "components is 'keep'\n  fix: 'refit' or 'drop'"),
    (
        "no calibration",
        {"rewrites": "cp", "ranks": "r=2", "metric": "output"},
        StudyError,
        "metric='output' needs calibration images\n",
    ),
    (
        "no images for the divergence",
        {"rewrites": "cp", "budget": 0.5, "curves": "divergence"},
        StudyError,
        "curves='divergence' needs calibration images\n",
    ),
    ("no images for the report", {"report_metric": True}, StudyError, "report_metric needs calibration images\n"),
    (
        "report for nothing",
        {"rewrites": "cp", "ranks": "r=2", "metric": "input", "report_metric": True, "cuts": (), "keep": ()},
        StudyError,
        "report_metric adds nothing: rows of other metrics have their error already\n  metric: input\n",
    ),
    (
        "divergence for nothing",
        {"rewrites": "cp", "ranks": "r=2", "curves": "divergence"},
        StudyError,
        "curves='divergence' is given, and no budget\n",
    ),
    (
        "drop for nothing",
        {"rewrites": "cp", "budget": 0.5, "components": "drop"},
        StudyError,
        "components='drop' is given, and no ranks\n",
    ),
    ("no keep", {"keep": []}, StudyError, "there is nothing to do"),
    ("no scope", {"scope": []}, StudyError, "there is nothing to do"),
    ("scope", {"scope": ["wied"]}, StudyError, "scope 'wied' matches no layer that is cut\n  near:   wide, grouped\n"),
    ("scope of skipped", {"scope": ["stem"]}, StudyError, "scope 'stem' matches no layer that is cut"),
    ("skip", {"skip": ["stam"]}, StudyError, "skip 'stam' matches no layer\n  near:   stem"),
    (
        "all skipped",
        {"skip": ["*"]},
        StudyError,
        r"no layer is left to cut\n  skipped: \*\n  fix: +fewer layers in skip",
    ),
    (
        "nan",
        {"model": with_weight(put(math.nan))},
        ValuesError,
        "parameter 'wide.weight' of Net holds NaN or infinity\n.* 6 of",
    ),
    ("inf", {"model": with_weight(put(math.inf))}, ValuesError, "'wide.weight' of Net holds NaN or infinity"),
    ("skipped nan", {"model": with_weight(put(math.nan)), "skip": ["wide"]}, ValuesError, "'wide.weight' of Net holds"),
    (
        "nan in a bias",
        {"model": with_weight(lambda net: net.stem.bias.data[2:4].fill_(math.nan))},
        ValuesError,
        "the parameter 'stem.bias' of Net holds NaN or infinity\n  where: 2 of 5 elements",
    ),
    (
        "inf in a buffer",
        {"model": with_weight(lambda net: net.norm.running_var[5].fill_(math.inf))},
        ValuesError,
        "the buffer 'norm.running_var' of Net holds NaN or infinity\n  where: 1 of 12 elements",
    ),
    ("lazy", {"model": nn.Sequential(nn.LazyConv2d(3, 3))}, LayerError, "layer '0' has no weight yet"),
    ("old weight norm", {"model": Old()}, LayerError, "weight of layer 'conv' is computed from other parameters"),
    ("parametrised", {"parametrised": True}, LayerError, "weight of layer 'wide' is computed from other parameters"),
    (
        "no layers",
        {"model": nn.Flatten()},
        StudyError,
        "Flatten has no kernel to cut\n  needed: a convolution or linear",
    ),
    ("classes", {"images": some_images(9, classes=4)}, DataError, "network has 5 outputs, the images have 4 classes"),
    ("no images", {"images": some_images(0)}, DataError, "there are no images|cannot choose 1 images"),
    ("limit", {"limit": 0}, DataError, "cannot choose 0 images"),
    ("forward", {"model": network(Raises)}, DataError, "does not take these images\n  network: Raises\n.*3, 6, 5"),
    ("key", {"model": network(Picky)}, DataError, "does not take these images\n(.*\n)*  because: KeyError: 'missing'"),
    ("dict", {"model": network(Nothing)}, DataError, "no logits of shape .*\n.*\n  gives:   a dict"),
    ("flat", {"model": network(Flat)}, DataError, r"no logits of shape .*\n.*\n  gives:   shape \(1,\)"),
    ("channels", {"model": nn.Conv2d(1, 5, 3)}, StudyError, "no layer is left to cut"),
    ("mean", {"mean": (0.5,)}, DataError, "mean and std do not fit the images"),
    ("std", {"std": (0.5, 0.0, 1.0)}, DataError, "mean and std do not fit the images"),
    ("batch", {"batch_size": 0}, DataError, "a batch of 0 images is no batch"),
    ("device", {"device": "nowhere"}, StudyError, "there is no device 'nowhere' here"),
    ("folder", {"images": "/nowhere/at/all"}, DataError, "no folder of images at '/nowhere/at/all'"),
]


@pytest.mark.parametrize(("settings", "error", "fact"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_bad_input_is_refused_before_anything_is_written(
    settings: dict[str, Any], error: type[TnalgebraError], fact: str, tmp_path: Path
) -> None:
    settings = dict(settings)
    model, images = settings.pop("model", network()), settings.pop("images", some_images(20))
    if settings.pop("parametrised", False):
        parametrize.register_parametrization(model.wide, "weight", nn.Tanh())
    with pytest.raises(error, match=fact):
        study(model, images, tmp_path / "output", **settings)
    assert list(tmp_path.iterdir()) == []


def test_a_budget_that_cannot_be_met_says_the_least(tmp_path: Path) -> None:
    with pytest.raises(RankError, match=r"the rewrite 'out .*' cannot be made\n  layers: +wide, .*\n(.*\n)*.*least: "):
        study(network(), some_images(20), tmp_path, cuts=(), keep=(), rewrites=CUTS[0], budget=0.05)


@pytest.mark.parametrize("device", ["cuda", "cuda:99"])
def test_a_device_that_is_not_there(device: str, tmp_path: Path) -> None:
    if device == "cuda" and torch.cuda.is_available():
        pytest.skip("it is there")
    with pytest.raises(StudyError, match=f"there is no device '{device}' here\n  because: .*\n  fix:     cpu"):
        study(network(), some_images(9), tmp_path / "output", device=device)
    assert list(tmp_path.iterdir()) == []


def test_outputs_that_are_not_finite_are_an_error_and_no_row(tmp_path: Path) -> None:
    model = with_weight(lambda net: net.linear.weight.data.mul_(1e6))
    with pytest.raises(StudyError, match="outputs are not finite\n  network: Net in float16"):
        study(model, some_images(20), tmp_path, dtype=torch.float16)
    assert read_rows(tmp_path) == []


def test_numbers_that_a_preparation_makes_not_finite_leave_no_config(tmp_path: Path) -> None:
    def spoil(model: nn.Module) -> None:
        model.norm.bias.data[3] = math.nan

    with pytest.raises(ValuesError, match=r"the parameter 'norm\.bias' of Net holds NaN or infinity"):
        study(network(), some_images(20), tmp_path, prepare=spoil)
    assert [file.name for file in tmp_path.iterdir() if file.name != ".lock"] == []


def test_kernels_of_zeros_and_of_huge_numbers(tmp_path: Path) -> None:
    images = labelled(some_images(), network())
    model = with_weight(lambda net: net.wide.weight.data.zero_())
    row = study(model, images, tmp_path / "zeros", cuts=CUTS[:1], scope=["wide"]).rows[1]
    expected = {"rank": 6, "values": 12, "relative_error": 0.0, "norm_kept": 1.0, "parameters": 6 * (12 + 30)}
    assert row["layers"]["wide"] == expected
    model = network().double()
    for factor in (1e200, 1e-200):
        other = copy.deepcopy(model)
        other.wide.weight.data *= factor
        rows = [
            study(each, images, tmp_path / f"{factor}{number}", cuts=CUTS[1:], scope=["wide"]).rows[1]["layers"]["wide"]
            for number, each in enumerate((model, other))
        ]
        assert rows[0] == pytest.approx(rows[1], rel=1e-9)


# the progress bar
