"""Rewrites in a study: by any rule, at given ranks or under a budget, in any metric; rows agree with fits by hand."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import tnalgebra as tn
from tests.study_cases import (
    CUTS,
    LABELS,
    Kinds,
    close,
    network,
    row_by_hand,
    some_images,
    study,
    top1,
    truncated,
    without_seconds,
)
from tnalgebra.decompositions import read_rewrite
from tnalgebra.model.images import Images
from tnalgebra.model.input_metrics import fit_in_order, input_metrics
from tnalgebra.model.plans import fit_planned, plan_budget
from tnalgebra.studies.compress import compress_kernels
from tnalgebra.studies.rewrites import full_ranks
from tnalgebra.studies.store import ROWS, Store, read_rows

pytestmark = pytest.mark.usefixtures("undrawn")

RING = "K[o i h w] => A[o p q] B[i q r] C[h r s] D[w s p]"
CALIBRATION = some_images(30, seed=5)
SKIP: dict[str, Any] = {"skip": ("stem", "linear")}


def by_hand(
    model: nn.Module, images: Images, weights: Mapping[str, np.ndarray], parameters: Mapping[str, int]
) -> dict[str, Any]:
    """The part of a row that follows from the new weights and the parameters of their cores."""
    total = kept = sum(parameter.numel() for parameter in model.parameters())
    errors = {}
    for name, weight in weights.items():
        dense = model.get_submodule(name).weight.detach().double().numpy()
        kept += parameters[name] - dense.size
        errors[name] = np.linalg.norm(weight - dense) / np.linalg.norm(dense)
    accuracy = top1(model, images, weights, torch.float64)
    return {
        "accuracy": accuracy,
        "accuracy_change": accuracy - top1(model, images, {}, torch.float64),
        "mean_squared_relative_error": float(np.mean([error**2 for error in errors.values()])),
        "parameters_kept": kept / total,
        "errors": errors,
    }


def agrees(row: Mapping[str, Any], expected: dict[str, Any]) -> None:
    # fits side by side and one by one round differently, and stop where little is to be gained: 1e-6
    errors = {name: layer["relative_error"] for name, layer in row["layers"].items()}
    assert errors == pytest.approx(expected.pop("errors"), rel=1e-6)
    assert {key: row[key] for key in expected} == pytest.approx(expected, rel=1e-6)


def kernel(model: nn.Module, name: str) -> Tensor:
    return model.get_submodule(name).weight.detach().double()


# at given ranks


def test_a_cut_at_a_rank_is_numpys(model: nn.Module, images: Images, tmp_path: Path) -> None:
    found = study(model, images, tmp_path, CUTS, [{"r": 2}, 7], scope=("all", "each"), **SKIP)
    asked = [(c, r, s) for c in CUTS for r in ("r=2", "r=7") for s in ("all", "wide", "grouped")]
    assert [(row["rewrite"], row["ranks"], row["scope"]) for row in found.rows[1:]] == asked
    full = {"out | in kh kw": {"wide": 12, "grouped": 8}, "out kh | in kw": {"wide": 10, "grouped": 9}}
    for row in found.rows[1:]:
        layers = ["wide", "grouped"] if row["scope"] == "all" else [row["scope"]]
        rank = int(row["ranks"].removeprefix("r="))
        weights, parameters = {}, {}
        for name in layers:
            keep = rank / full[row["rewrite"]][name]
            weights[name], there, parameters[name] = truncated(
                model.get_submodule(name).weight, LABELS[nn.Conv2d], row["rewrite"], keep
            )
            assert row["layers"][name]["ranks"] == {"r": rank} == {"r": there}
            assert row["layers"][name]["parameters"] == parameters[name]
        agrees(row, by_hand(model, images, weights, parameters))
        assert (row["keep"], row["budget"], row["metric"], row["components"]) == (None, None, "frobenius", "refit")
    assert len({row["accuracy"] for row in found.rows}) > 6, "or comparing accuracies says little"


@pytest.mark.parametrize(
    ("rewrite", "ranks", "text"),
    [
        ("cp", {"r": 3}, "r=3"),
        ("tucker2", {"b": 2, "a": 4}, "a=4 b=2"),
        (RING, {"p": 2, "q": 2, "r": 1, "s": 1}, "p=2 q=2 r=1 s=1"),
        ("W[o i *k] => A[o i] B[i *k]", {}, None),
        ("K[o i h w] => A[o r:2] B[r i h w]", {}, None),
    ],
)
def test_a_rewrite_is_what_its_rule_gives(
    rewrite: str, ranks: dict[str, int], text: str | None, model: nn.Module, images: Images, tmp_path: Path
) -> None:
    row = study(model, images, tmp_path, [rewrite], [ranks] if ranks else [], seed=3, **SKIP).rows[1]
    rule = read_rewrite(rewrite, LABELS[nn.Conv2d])
    left = rewrite[0] if "=>" in rewrite else "K"
    fits = {name: rule.apply({left: kernel(model, name)}, ranks, seed=3) for name in ("wide", "grouped")}
    agrees(
        row,
        by_hand(
            model,
            images,
            {name: fit.dense().numpy() for name, fit in fits.items()},
            {name: fit.parameters for name, fit in fits.items()},
        ),
    )
    assert (row["rewrite"], row["ranks"]) == (rewrite, text)
    for name, fit in fits.items():
        layer = row["layers"][name]
        assert layer["ranks"] == fit.trace.steps[-1].change.ranks
        assert layer["norm_kept"] == pytest.approx(float(fit.dense().norm() / kernel(model, name).norm()), rel=1e-6)
        assert layer["output_error"] is None
    assert len(row["equations"]) == 1
    assert tn.networks.isomorphic(tn.rule(row["equations"][0]).start({}), tn.parse("K[out in kh kw]"))


def test_a_rank_that_a_layer_cannot_use_becomes_what_is_full(model: nn.Module, images: Images, tmp_path: Path) -> None:
    row = study(model, images, tmp_path, ["tucker2"], [{"a": 9, "b": 50}], **SKIP).rows[1]
    assert row["ranks"] == "a=9 b=50"
    assert {name: layer["ranks"] for name, layer in row["layers"].items()} == {
        "wide": {"a": 9, "b": 5},
        "grouped": {"a": 8, "b": 3},
    }
    assert row["layers"]["grouped"]["relative_error"] < 1e-12


def test_full_ranks() -> None:
    for text, full in {
        "U[out a] G[a b kh kw] V[b in]": {"a": 12, "b": 5},
        "A[out p] B[p in q] C[q kh s] D[s kw]": {"p": 12, "q": 6, "s": 2},
        "Fuse[out o1 o2] A[o1 r] B[r o2 in kh kw]": {"r": 3},
        "A[out in r] B[in kh kw r]": {"r": 6},
        "A[out in r s] B[r s kh kw]": {"r": 360, "s": 360},
        "A[out r] B[in r] C[kh r] D[kw r]": {"r": 360},
    }.items():
        sizes = {"out": 12, "in": 5, "kh": 3, "kw": 2} | ({"o1": 3, "o2": 4} if "o1" in text else {})
        right = tn.parse(f"{text} -> [out in kh kw]")
        assert full_ranks(tn.Network(right.nodes, right.output, sizes)) == full, text


def test_a_rewrite_is_for_the_layers_that_have_it(tmp_path: Path) -> None:
    model, images = network(Kinds), some_images(20)
    rewrites = ["mpo", "out kh | in kw", "tensor_train", "K[a b c] => A[a r] B[r b c]"]
    sizes = [{"r": rank, "p": 2, "q": 1, "s": 2, "t": 1} for rank in (2, 1)]
    found = study(model, images, tmp_path, rewrites, sizes, skip=(), seed=1)
    assert [(row["rewrite"], row["ranks"], list(row["layers"])) for row in found.rows[1:]] == [
        ("mpo", "p=2", ["linear"]),
        ("out kh | in kw", "r=2", ["conv2", "up"]),
        ("out kh | in kw", "r=1", ["conv2", "up"]),
        ("tensor_train", "p=2 q=1 s=2 t=1", ["conv2", "up", "conv1", "conv3", "linear"]),
        ("K[a b c] => A[a r] B[r b c]", "r=2", ["conv1"]),
        ("K[a b c] => A[a r] B[r b c]", "r=1", ["conv1"]),
    ]


@pytest.mark.slow
def test_the_same_rewrite_as_text_and_as_rule(model: nn.Module, images: Images, tmp_path: Path) -> None:
    texts = study(model, images, tmp_path / "texts", ["cp", CUTS[0]], [1, 2], **SKIP)
    rules = [tn.rule("K[out in kh kw] => A[out r] B[in r] C[kh r] D[kw r]", name="cp"), tn.cut(CUTS[0])]
    values = study(model, images, tmp_path / "rules", rules, [{"r": 1}, {"r": 2}], **SKIP)
    assert without_seconds(texts.rows) == without_seconds(values.rows)
    again = study(model, images, tmp_path / "texts", ["cp", "cp"], [{"r": 2}], **SKIP)
    assert again.rows == [texts.rows[0], texts.rows[2]]
    other = tn.rule("K[out in kh kw] => A[out in r] B[kh kw r]", name="cp")
    more = study(model, images, tmp_path / "texts", [other], [2], **SKIP)
    assert more.rows[1]["equations"] != texts.rows[2]["equations"], "a name is not what makes a rule"


def test_each_rewrite_takes_the_sizes_that_suit_it(model: nn.Module, images: Images, tmp_path: Path) -> None:
    rewrites = [CUTS[0], f"{CUTS[0]} then {CUTS[1]}", "tucker2", "dct", "depthwise_separable"]
    sizes = [tn.ParameterBudget(0.8), {"r": 2}, 0.5, {"c": 1, "d": 1, "a": 2, "b": 3}, 1]
    found = study(model, images, tmp_path, rewrites, sizes, **SKIP)
    assert [(row["rewrite"], row["ranks"] or row["budget"] or row["keep"]) for row in found.rows[1:]] == [
        *[(CUTS[0], size) for size in (0.8, "r=2", 0.5, "r=1")],
        (rewrites[1], 0.5),
        *[("tucker2", size) for size in (0.8, "a=keep 0.5 b=keep 0.5", "a=2 b=3", "a=1 b=1")],
        *[("dct", size) for size in (0.8, "c=keep 0.5 d=keep 0.5", "c=1 d=1")],
        ("depthwise_separable", 0.8),
    ]


def test_sizes_and_rewrites_in_every_form(model: nn.Module, images: Images, tmp_path: Path) -> None:
    """Texts and objects make equal rows; what a size keeps is what the rule keeps by itself."""
    fit = tn.cut(CUTS[0]).apply(kernel(model, "wide"), 2)
    texts = study(model, images, tmp_path / "texts", ["tucker2", CUTS[0]], ["error 0.4", "a=3 b=keep 0.5 r=2"], **SKIP)
    sizes = [tn.RelativeError(0.4), {"a": 3, "b": tn.KeepFraction(0.5), "r": 2}]
    found = study(model, images, tmp_path / "objects", ["tucker2", fit], sizes, **SKIP)
    assert without_seconds(found.rows) == without_seconds(texts.rows)
    assert [(row["ranks"], row["keep"]) for row in found.rows[1:]] == [
        *(("a=error 0.4 b=error 0.4", None), ("a=3 b=keep 0.5", None), ("r=error 0.4", None), ("r=2", None)),
    ]
    for row, size in zip(found.rows[1:], (sizes[0], {"a": 3, "b": tn.KeepFraction(0.5)}, sizes[0], 2), strict=True):
        rule = read_rewrite(row["rewrite"], LABELS[nn.Conv2d])
        for name, layer in row["layers"].items():
            expected = rule.apply(kernel(model, name), size)
            assert layer["ranks"] == expected.trace.steps[0].change.ranks
            assert layer["relative_error"] == pytest.approx(expected.relative_error, rel=1e-9)


def test_kernels_compressed_alone_are_those_of_the_row(model: nn.Module, images: Images, tmp_path: Path) -> None:
    rewrites = [f"{CUTS[0]} then {CUTS[1]}", CUTS[0], "tucker2"]
    sizes = [tn.KeepFraction(0.5), tn.ParameterBudget(0.8), 3]
    rows = study(model, images, tmp_path, rewrites, sizes, **SKIP).rows
    for row, rewrite, size in (
        *((rows[1], rewrites[0], "keep 0.5"), (rows[4], CUTS[0], 3)),
        *((rows[5], "tucker2", tn.KeepFraction(0.5)), (rows[6], "tucker2", "parameters 0.8")),
    ):
        kernels = compress_kernels(model, rewrite, size, **SKIP)
        assert {name: one.details for name, one in kernels.items()} == row["layers"]
        for name, one in kernels.items():
            error = float((one.weight - kernel(model, name)).norm() / kernel(model, name).norm())
            assert row["layers"][name]["relative_error"] == pytest.approx(error, rel=1e-9)
            torch.testing.assert_close(one.fit.dense(), one.weight)


# metrics


def inputs(images: Images) -> list[Tensor]:
    return [images.normalise(images.pixels)]


def test_a_cut_in_the_input_metric_has_a_closed_form(model: nn.Module, images: Images, tmp_path: Path) -> None:
    row = study(model, images, tmp_path, CUTS[:1], [3], metric="input", calibration=CALIBRATION, **SKIP).rows[1]
    metrics = input_metrics(model, inputs(CALIBRATION), layers=["wide"])
    covariance = metrics["wide"].covariance.double().reshape(30, 30).numpy()
    root = np.linalg.cholesky(covariance)
    matrix = kernel(model, "wide").numpy().reshape(12, 30)
    u, s, v = np.linalg.svd(matrix @ root, full_matrices=False)
    best = np.linalg.solve(root.T, ((u[:, :3] * s[:3]) @ v[:3]).T).T
    layer = row["layers"]["wide"]
    # the covariance is of float32 activations
    assert layer["output_error"] == pytest.approx(np.linalg.norm(s[3:]) / np.linalg.norm(s), rel=1e-5)
    assert layer["relative_error"] == pytest.approx(np.linalg.norm(best - matrix) / np.linalg.norm(matrix), rel=1e-4)
    assert (row["metric"], row["calibration"][:10]) == ("input", "30 images ")


def test_to_the_output_layers_are_fitted_in_order(model: nn.Module, images: Images, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"rewrites": ["tucker2"], "sizes": [{"a": 3, "b": 2}], "calibration": CALIBRATION}
    row = study(model, images, tmp_path, metric="output", **settings, **SKIP).rows[1]
    rule, errors = read_rewrite("tucker2", LABELS[nn.Conv2d]), {}

    def fit(name: str, weight: Tensor, metric: Any) -> Tensor:
        found = rule.apply({"K": weight}, {"a": 3, "b": 2}, metric=metric)
        errors[name] = found.output_error
        return found.dense()

    weights = fit_in_order(copy.deepcopy(model).eval(), inputs(CALIBRATION), fit, layers=["wide", "grouped"])
    expected = {name: weight.double().numpy() for name, weight in weights.items()}
    agrees(row, by_hand(model, images, expected, {"wide": 3 * 12 + 6 * 6 + 2 * 5, "grouped": 3 * 8 + 6 * 6 + 2 * 3}))
    assert {name: layer["output_error"] for name, layer in row["layers"].items()} == pytest.approx(errors, rel=1e-6)
    kept = study(model, images, tmp_path, metric="input", **settings, **SKIP).rows
    assert [each["metric"] for each in read_rows(tmp_path)] == ["frobenius", "output", "input"]
    assert kept[1]["layers"]["grouped"]["relative_error"] != row["layers"]["grouped"]["relative_error"]


def test_other_calibration_images_make_other_rows(model: nn.Module, images: Images, tmp_path: Path) -> None:
    settings = SKIP | {"rewrites": CUTS[:1], "sizes": [3], "metric": "input"}
    one = study(model, images, tmp_path, calibration=CALIBRATION, **settings)
    other = study(model, images, tmp_path, calibration=some_images(30, seed=6), **settings)
    assert one.rows[1]["calibration"] != other.rows[1]["calibration"]
    assert len(read_rows(tmp_path)) == 3


# errors reported in the input metric, of what is fitted in the Frobenius norm


def output_error_by_hand(model: nn.Module, name: str, weight: np.ndarray) -> float:
    """sqrt(sum ||(K - K~) x||^2 / sum ||K x||^2) over the layer's inputs, run through torch's own convolution."""
    layer = copy.deepcopy(model.get_submodule(name)).double()
    given: list[Tensor] = []
    handle = model.get_submodule(name).register_forward_pre_hook(lambda _, args: given.append(args[0].double()))
    try:
        with torch.no_grad():
            copied = model.eval()
            for batch in inputs(CALIBRATION):
                copied(batch)
            layer.bias = None
            whole = sum(float(layer(x).square().sum()) for x in given)
            layer.weight.copy_(layer.weight - torch.from_numpy(weight))
            return float(np.sqrt(sum(float(layer(x).square().sum()) for x in given) / whole))
    finally:
        handle.remove()


REPORTED: dict[str, Any] = {"report_metric": True, "calibration": CALIBRATION}


def test_cuts_report_their_error_in_the_input_metric(model: nn.Module, images: Images, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"scope": ("all", "each"), "sizes": (0.5, 0.25), **SKIP}
    plain = study(model, images, tmp_path, **settings).rows
    lines = (tmp_path / ROWS).read_text().splitlines()
    found = study(model, images, tmp_path, **settings, **REPORTED).rows
    assert (tmp_path / ROWS).read_text().splitlines()[: len(lines)] == lines, "rows that were there stay as they are"
    assert len(read_rows(tmp_path)) == 1 + 2 * 12
    assert study(model, images, tmp_path, **settings, **REPORTED).rows == found
    assert study(model, images, tmp_path, **settings).rows == plain
    assert len(read_rows(tmp_path)) == 1 + 2 * 12, "neither is computed twice"
    assert found[0] == plain[0]
    for row, other in zip(found[1:], plain[1:], strict=True):
        assert (row["reported"], row["calibration"][:10]) == ("input", "30 images ")
        assert (other["reported"], other["calibration"]) == (None, None)
        assert row["layers"].keys() == other["layers"].keys()
        for name, details in row["layers"].items():
            error = details["output_error"]
            assert {**details, "output_error": None} == {**other["layers"][name], "output_error": None}
            assert "output_error" not in other["layers"][name]
            weight = truncated(model.get_submodule(name).weight, LABELS[nn.Conv2d], row["rewrite"], row["keep"])[0]
            # the metric has a ridge, noise of 1e-4 of the inputs' mean square
            assert error == pytest.approx(output_error_by_hand(model, name, weight), rel=5e-3)
            assert abs(error / details["relative_error"] - 1) > 1e-3, "or it could be the other error"
        same = ("accuracy", "accuracy_change", "mean_squared_relative_error", "parameters_kept", "scope", "keep")
        assert {key: row[key] for key in same} == {key: other[key] for key in same}


def test_metrics_are_measured_once_for_all_layers(
    model: nn.Module, images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kernels = import_module("tnalgebra.studies.kernels")
    right, calls = kernels.input_metrics, []

    def counted(*arguments: Any, layers: list[str], **named: Any) -> Any:
        calls.append(sorted(layers))
        return right(*arguments, layers=layers, **named)

    monkeypatch.setattr(kernels, "input_metrics", counted)
    rewrites, sizes = [*CUTS, "tucker2"], (0.5, 0.25, {"a": 2, "b": 2}, 2)
    study(model, images, tmp_path / "reported", rewrites, sizes, scope=("all", "each"), **SKIP, **REPORTED)
    study(model, images, tmp_path / "plain", rewrites, sizes, **SKIP)
    assert calls == [["grouped", "wide"]]


def test_fits_report_it_too_unless_they_have_it(model: nn.Module, images: Images, tmp_path: Path) -> None:
    settings = SKIP | {"rewrites": ["tucker2"], "sizes": [2, 1, tn.ParameterBudget(0.7)]}
    plain = study(model, images, tmp_path, **settings).rows
    found = study(model, images, tmp_path, **settings, **REPORTED).rows
    assert len(read_rows(tmp_path)) == 1 + 2 * 3
    rule = read_rewrite("tucker2", LABELS[nn.Conv2d])
    for row, other in zip(found[1:], plain[1:], strict=True):
        assert (row["reported"], row["accuracy"]) == ("input", other["accuracy"])
        for name, details in row["layers"].items():
            assert other["layers"][name]["output_error"] is None
            assert details["relative_error"] == other["layers"][name]["relative_error"]
            if row["ranks"]:
                weight = rule.apply({"K": kernel(model, name)}, details["ranks"]).dense().numpy()
                assert details["output_error"] == pytest.approx(output_error_by_hand(model, name, weight), rel=5e-3)
    dropped = study(model, images, tmp_path, CUTS[:1], [2, 1], components="drop", **SKIP, **REPORTED).rows
    assert all(layer["output_error"] > 0 for row in dropped[1:] for layer in row["layers"].values())
    settings = SKIP | {"rewrites": ["tucker2"], "sizes": [2], "metric": "input", "calibration": CALIBRATION}
    fitted = study(model, images, tmp_path, **settings).rows
    assert fitted[1]["reported"] is None
    both = settings | {"rewrites": [CUTS[0], "tucker2"], "sizes": [0.5, 2]}
    mixed = study(model, images, tmp_path, **both, report_metric=True).rows
    assert [row["reported"] for row in mixed] == [None, "input", None, None, None]
    assert study(model, images, tmp_path, **settings).rows == fitted


# components


@pytest.mark.slow
def test_components_dropped_from_the_fit_at_the_largest_rank(model: nn.Module, images: Images, tmp_path: Path) -> None:
    settings = SKIP | {"rewrites": ["cp"], "components": "drop"}
    found = study(model, images, tmp_path, sizes=[2, 1], **settings)
    rule = read_rewrite("cp", LABELS[nn.Conv2d])
    for row, rank in zip(found.rows[1:], (2, 1), strict=True):
        weights = {}
        for name in ("wide", "grouped"):
            cores = [core.numpy() for core in rule.apply({"K": kernel(model, name)}, {"r": 2}).values.values()]
            norms = np.prod([np.linalg.norm(core, axis=0) for core in cores], axis=0)
            largest = np.argsort(-norms)[:rank]
            weights[name] = np.einsum("or,ir,hr,wr->oihw", *(core[:, largest] for core in cores))
        agrees(row, by_hand(model, images, weights, {"wide": rank * 22, "grouped": rank * 16}))
        assert row["components"] == "drop from r=2"
        assert row["layers"]["wide"]["ranks"] == {"r": rank}
    assert study(model, images, tmp_path, sizes=[1], **settings).rows[1]["components"] == "drop from r=1"
    assert str(found).splitlines()[0].split()[:3] == ["rewrite", "ranks", "components"]


# budgets


@pytest.mark.parametrize("metric", ["frobenius", "output"])
def test_a_budget_is_of_the_whole_network(metric: Any, model: nn.Module, images: Images, tmp_path: Path) -> None:
    sizes = [tn.ParameterBudget(0.8), tn.ParameterBudget(0.7)]
    settings = SKIP | {"rewrites": CUTS[:1], "sizes": sizes, "metric": metric, "calibration": CALIBRATION}
    found = study(model, images, tmp_path, scope=("all", "each"), **settings)
    rule = read_rewrite(CUTS[0], LABELS[nn.Conv2d])
    dense = copy.deepcopy(model).eval()
    batches = inputs(CALIBRATION)
    metrics = None if metric == "frobenius" else input_metrics(dense, batches, layers=["wide", "grouped"])
    plans = plan_budget(dense, {"wide": [rule], "grouped": [rule]}, sizes, metrics=metrics)
    assert [(row["budget"], row["scope"], row["curves"]) for row in found.rows[1:]] == [
        (0.8, "all", "error"),
        (0.7, "all", "error"),
    ]
    for row, plan in zip(found.rows[1:], plans, strict=True):
        fits = fit_planned(dense, plan, metric=metric, inputs=batches)
        weights = {name: fit.dense().double().numpy() for name, fit in fits.items()}
        agrees(row, by_hand(model, images, weights, {name: fit.parameters for name, fit in fits.items()}))
        assert row["parameters_kept"] <= row["budget"]
    rows = without_seconds(read_rows(tmp_path))
    study(model, images, tmp_path, **settings)
    assert without_seconds(read_rows(tmp_path)) == rows


def test_a_budget_that_needs_nothing_leaves_all_as_it_is(model: nn.Module, images: Images, tmp_path: Path) -> None:
    found = study(model, images, tmp_path, CUTS[:1], [2, tn.ParameterBudget(1.0)], **SKIP)
    assert [(row["ranks"], row["budget"], len(row["layers"])) for row in found.rows] == [
        (None, None, 0),
        ("r=2", None, 2),
        (None, 1.0, 0),
    ]
    assert (found.rows[2]["accuracy_change"], found.rows[2]["parameters_kept"]) == (0.0, 1.0)
    assert len(str(found).splitlines()) == 5


def test_curves_may_be_of_the_divergence(model: nn.Module, images: Images, tmp_path: Path) -> None:
    settings = SKIP | {"rewrites": CUTS[:1], "sizes": [tn.ParameterBudget(0.75)]}
    error = study(model, images, tmp_path, **settings)
    other = study(model, images, tmp_path, curves="divergence", calibration=CALIBRATION, **settings)
    assert [row["curves"] for row in read_rows(tmp_path)] == [None, "error", "divergence"]
    assert (error.rows[1]["calibration"], other.rows[1]["calibration"][:3]) == (None, "30 ")
    assert other.rows[1]["parameters_kept"] <= 0.75


def test_a_budget_of_multiply_adds(model: nn.Module, images: Images, tmp_path: Path) -> None:
    """Counted for one image, in factored form; a budget of parameters says what it does to them."""
    sizes = ["multiply-adds 0.9", tn.MultiplyAddsBudget(0.8), "parameters 0.9"]
    found = study(model, images, tmp_path, ["tucker2", CUTS[1]], sizes, **SKIP)
    assert [row["budget"] for row in found.rows[1:4]] == ["multiply-adds 0.9", "multiply-adds 0.8", 0.9]
    for row in found.rows[1:]:
        plan = {name: (row["rewrite"], {"size": layer["ranks"]}) for name, layer in row["layers"].items()}
        settings: dict[str, Any] = {"inplace": False, "allow_larger": True, "candidates": "factored"}
        _, report = tn.convert(model, {**plan, "*": None}, example=(1, 3, 6, 5), **settings)
        assert row["multiply_adds_kept"] == pytest.approx(report.multiply_adds_after / report.multiply_adds)
        if isinstance(row["budget"], str):
            assert row["multiply_adds_kept"] <= tn.fitting.read_size(row["budget"]).fraction
    assert "multiply-adds kept" in str(found)
    assert without_seconds(study(model, images, tmp_path, [CUTS[1]], sizes[:1], **SKIP).rows) == without_seconds(
        [found.rows[0], found.rows[4]]
    )


# the folder


def test_rewrites_and_cuts_share_a_folder_and_continue(
    model: nn.Module, images: Images, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = [0.5, {"r": 1, "a": 2, "b": 2}, {"r": 2, "a": 2, "b": 2}, tn.ParameterBudget(0.8)]
    settings: dict[str, Any] = {"rewrites": [CUTS[1], "tucker2"], "sizes": sizes, "scope": ("all", "wide"), **SKIP}
    whole = study(model, images, tmp_path / "whole", **settings)
    close(whole.rows[1], row_by_hand(model, images, CUTS[1], 0.5, ["wide", "grouped"], torch.float64))
    append, calls = Store.append, iter(range(1000))

    def interrupted(store: Store, row: dict[str, Any]) -> None:
        if next(calls) % 4 == 3:
            raise KeyboardInterrupt
        append(store, row)

    monkeypatch.setattr(Store, "append", interrupted)
    for count in (3, 6, 9, 12):
        with pytest.raises(KeyboardInterrupt):
            study(model, images, tmp_path / "parts", **settings)
        assert len(read_rows(tmp_path / "parts")) == count
        with (tmp_path / "parts" / ROWS).open("a") as file:
            file.write('{"model": "ne')  # as if it had been killed while it wrote
    monkeypatch.setattr(Store, "append", append)
    found = study(model, images, tmp_path / "parts", **settings)
    assert len(found.rows) == len(whole.rows) == 13
    for row, expected in zip(found.rows, whole.rows, strict=True):
        for key in ("rewrite", "keep", "ranks", "budget", "scope", "equations", "parameters_kept"):
            assert row[key] == expected[key]
        # kernels that are fitted side by side or alone round differently
        assert row["mean_squared_relative_error"] == pytest.approx(expected["mean_squared_relative_error"], rel=1e-6)
