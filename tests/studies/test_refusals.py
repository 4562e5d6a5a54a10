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

from tests.refusals import refused
from tests.study_cases import CLASSES, CUTS, Net, network, some_images, study
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
from tnalgebra.fitting import ParameterBudget
from tnalgebra.model.images import Images
from tnalgebra.studies.rewrites import read_ranks
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


def cut(text: Any) -> dict[str, Any]:
    return {"rewrites": [text]}


def fit(text: str, *sizes: Any, **options: Any) -> dict[str, Any]:
    return {"rewrites": [text], "sizes": sizes, **options}


TWO_CUTS = f"{CUTS[0]} then {CUTS[1]}"
BAD: list[tuple[str, dict[str, Any], type[TnalgebraError], tuple[str, ...]]] = [
    ("missing", cut("out kh | in"), RuleError, ("'out kh | in'", "missing: kw", "'wide'")),
    ("unknown", cut("out kh | in kw kx"), RuleError, ("unknown: kx", "out in kh kw")),
    ("second", cut("out | in kh kw then in"), RuleError, ("'|'", "0")),
    ("others", cut("out | in kh kw then out | in"), RuleError, ("different labels",)),
    ("then nothing", cut("out | in kh kw then"), RuleError, ("after 'then'",)),
    ("no text", cut(3), RuleError, ("3", "a cut")),
    ("untouched", cut("none"), RuleError, ("'none'",)),
    ("no rewrites", {"rewrites": []}, StudyError, ("rewrites: 0",)),
    ("no scope", {"scope": []}, StudyError, ("scopes:   0",)),
    ("no sizes", {"sizes": []}, RankError, (CUTS[0], "'keep 0.5'")),
    ("fractions of no cut", fit("cp", 0.5), RankError, ("'keep 0.5'", "a cut")),
    ("ranks of two cuts", fit(TWO_CUTS, 3), RankError, (TWO_CUTS, "'keep 0.5'")),
    ("no size", fit("cp"), RankError, ("'cp'", "bonds: r", "{'r': 8}")),
    ("some rank", fit("tucker2", {"b": 3}), RankError, ("'tucker2'", "'a'", "bonds: a b")),
    (
        "another bond",
        {"rewrites": ["cp", "dct"], "sizes": [{"r": 2, "c": 2, "d": 2, "x": 3}]},
        RankError,
        ("'x'", "dct: c d"),
    ),
    *((f"size {size}", fit("cp", size), RankError, (repr(size),)) for size in ("0.5", True, None, 0)),
    *((f"rank {rank}", fit("cp", {"r": rank}), RankError, (repr(rank),)) for rank in (0, 0.5, True, "3.5")),
    ("empty size", fit("cp", {}), RankError, ("'cp'", "bonds: r")),
    ("error of cp", fit("cp", "error 0.1"), RankError, ("error 0.1", "singular values")),
    ("no rule", fit("tuker2", 3), RuleError, ("'tuker2'", "tucker2")),
    ("no kernel of it", fit("mpo", 2, skip=["linear"]), RuleError, ("'mpo'", "K[out in kh kw]")),
    ("other axes", fit("K[a b c] => A[a r] B[r b c]", 2), RuleError, ("'wide'", "4 axes", "3")),
    ("exact", fit("K[o i h w] => G[w h i o]", 2), RuleError, ("is exact",)),
    ("broken", fit("K[o i h w] => A[o r", 2), NotationError, ("A[o r",)),
    ("budget of each", fit("cp", ParameterBudget(0.5), scope=["each"]), StudyError, ("scope: each", "ranks")),
    ("metric", {"metric": "inputs"}, StudyError, ("'inputs'", "'frobenius'")),
    ("curves", {"curves": "entropy"}, StudyError, ("'entropy'", "'divergence'")),
    ("components", {"components": "keep"}, StudyError, ("'keep'", "'drop'")),
    ("metric of fractions", {"metric": "input"}, StudyError, ("metric='input'", "leave it out")),
    ("divergence for nothing", fit("cp", 2, curves="divergence"), StudyError, ("curves='divergence'",)),
    ("drop for nothing", fit("cp", ParameterBudget(0.5), components="drop"), StudyError, ("components='drop'",)),
    (
        "report for nothing",
        fit("cp", 2, metric="input", report_metric=True, calibration=some_images(9)),
        StudyError,
        ("report_metric=True", "leave it out"),
    ),
    *(
        (f"no images for {settings}", settings, StudyError, ("calibration",))
        for settings in (
            fit("cp", 2, metric="output"),
            fit("cp", ParameterBudget(0.5), curves="divergence"),
            {"report_metric": True},
        )
    ),
    ("dtype text", {"dtype": "float32"}, StudyError, ("'float32'", "torch.float32")),
    ("integers", {"dtype": torch.int64}, StudyError, ("torch.int64",)),
    ("shift", {"recalibration_shift": 4}, StudyError, ("recalibration_shift=4",)),
    ("negative", {"recalibration_shift": -1, "recalibration": some_images(9)}, StudyError, ("recalibration_shift=-1",)),
    ("scope", {"scope": ["wied"]}, StudyError, ("'wied'", "near:   wide")),
    ("scope of skipped", {"scope": ["stem"]}, StudyError, ("'stem'",)),
    ("skip", {"skip": ["stam"]}, StudyError, ("'stam'", "near:   stem")),
    ("all skipped", {"skip": ["*"]}, StudyError, ("no layer is left", "*")),
    ("nan", {"model": with_weight(put(math.nan)), "skip": ["wide"]}, ValuesError, ("'wide.weight'", "6 of")),
    ("inf", {"model": with_weight(put(math.inf))}, ValuesError, ("'wide.weight' of Net",)),
    (
        "nan in a bias",
        {"model": with_weight(lambda net: net.stem.bias.data[2:4].fill_(math.nan))},
        ValuesError,
        ("the parameter 'stem.bias' of Net", "2 of 5"),
    ),
    (
        "inf in a buffer",
        {"model": with_weight(lambda net: net.norm.running_var[5].fill_(math.inf))},
        ValuesError,
        ("the buffer 'norm.running_var' of Net", "1 of 12"),
    ),
    ("lazy", {"model": nn.Sequential(nn.LazyConv2d(3, 3))}, LayerError, ("'0'", "no weight yet")),
    ("old weight norm", {"model": Old()}, LayerError, ("'conv'", "other parameters")),
    ("parametrised", {"parametrised": True}, LayerError, ("'wide'", "remove_parametrizations")),
    ("no layers", {"model": nn.Flatten()}, StudyError, ("Flatten", "a convolution")),
    ("classes", {"images": some_images(9, classes=4)}, DataError, ("5 outputs", "4 classes")),
    ("no images", {"images": some_images(0)}, DataError, ("some",)),
    ("forward", {"model": network(Raises)}, DataError, ("network: Raises", "(3, 6, 5)")),
    ("key", {"model": network(Picky)}, DataError, ("network: Picky", "KeyError: 'missing'")),
    ("dict", {"model": network(Nothing)}, DataError, ("logits", "a dict")),
    ("flat", {"model": network(Flat)}, DataError, ("logits", "shape (1,)")),
    ("batch", {"batch_size": 0}, DataError, ("a batch of 0",)),
    ("device", {"device": "nowhere"}, StudyError, ("'nowhere'", "cpu")),
    ("absent device", {"device": "cuda:99"}, StudyError, ("'cuda:99'", "cpu")),
    ("tensors", {"images": (torch.zeros(2, 3, 6, 5), torch.zeros(2))}, DataError, ("a tuple", "tn.model.Images")),
    ("folder", {"images": "/nowhere/at/all"}, DataError, ("'/nowhere/at/all'",)),
]


@pytest.mark.parametrize(("settings", "error", "facts"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_bad_input_is_refused_before_anything_is_written(
    settings: dict[str, Any], error: type[TnalgebraError], facts: tuple[str, ...], tmp_path: Path
) -> None:
    settings = dict(settings)
    model, images = settings.pop("model", network()), settings.pop("images", some_images(20))
    if settings.pop("parametrised", False):
        parametrize.register_parametrization(model.wide, "weight", nn.Tanh())
    with refused(error, *facts):
        study(model, images, tmp_path / "output", **settings)
    assert list(tmp_path.iterdir()) == []


def test_ranks_as_text() -> None:
    assert read_ranks([]) == []
    assert read_ranks(["a=4,8 b=2", "long_1=3,5,7"]) == [
        {"a": 4, "b": 2, "long_1": 3},
        {"a": 8, "b": 2, "long_1": 5},
        {"b": 2, "long_1": 7},
    ]
    for text in ("r", "r=", "3=r", "r=0", "r=2,-1", "r=2,x", "r:2", "r=2,", "=2", "r=2 r=3"):
        with refused(RankError, text.split()[-1], "r=16,32"):
            read_ranks([text])


def test_a_budget_that_cannot_be_met_says_the_least(tmp_path: Path) -> None:
    with refused(RankError, repr(CUTS[0]), "layers:", "wide", "at least"):
        study(network(), some_images(20), tmp_path, CUTS[:1], [ParameterBudget(0.05)])


def test_outputs_that_are_not_finite_are_an_error_and_no_row(tmp_path: Path) -> None:
    model = with_weight(lambda net: net.linear.weight.data.mul_(1e6))
    with refused(StudyError, "not finite", "Net in float16"):
        study(model, some_images(20), tmp_path, dtype=torch.float16)
    assert read_rows(tmp_path) == []


def test_numbers_that_a_preparation_makes_not_finite_leave_no_config(tmp_path: Path) -> None:
    def spoil(_: str, model: nn.Module) -> None:
        model.norm.bias.data[3] = math.nan

    with refused(ValuesError, "'norm.bias' of Net"):
        study(network(), some_images(20), tmp_path, prepare=spoil)
    assert [file.name for file in tmp_path.iterdir() if file.name != ".lock"] == []


@pytest.mark.usefixtures("undrawn")
def test_kernels_of_zeros_and_of_huge_numbers(images: Images, tmp_path: Path) -> None:
    model = with_weight(lambda net: net.wide.weight.data.zero_())
    row = study(model, images, tmp_path / "zeros", CUTS[:1], scope=["wide"]).rows[1]
    expected = {"rank": 6, "values": 12, "relative_error": 0.0, "norm_kept": 1.0, "parameters": 6 * (12 + 30)}
    assert row["layers"]["wide"] == expected
    model = network().double()
    plain = study(model, images, tmp_path / "plain", CUTS[1:], scope=["wide"]).rows[1]["layers"]["wide"]
    for factor in (1e200, 1e-200):
        other = copy.deepcopy(model)
        other.wide.weight.data *= factor
        scaled = study(other, images, tmp_path / f"{factor}", CUTS[1:], scope=["wide"]).rows[1]["layers"]["wide"]
        assert scaled == pytest.approx(plain, rel=1e-9)
