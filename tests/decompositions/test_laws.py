"""What every decomposition owes: one battery for each rule of the catalogue and for rules that a user might write."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.fit_cases import CP, PLANTED
from tests.kernel_cases import check_claim, gaussian, tail, unfolding
from tests.rule_cases import same_bits
from tnalgebra.decompositions import load_trace, rules
from tnalgebra.errors import RankError
from tnalgebra.fitting import KeepFraction, NoTreeError, ParameterBudget, Rank, RelativeError, tree_of
from tnalgebra.networks import KERNEL_LABELS, parse_rule
from tnalgebra.rewriting import Fit, Rule, rule

SIZES = {"out": 6, "in": 4, "k": 3, "kd": 2, "kh": 3, "kw": 5}
QUICK: dict[str, Any] = {"starts": 2, "sweeps": 5}
"""The laws hold wherever a search stops."""


@dataclass(frozen=True, eq=False)
class Example:
    """A rule, values of its left side, and ranks at which it approximates."""

    rule: Rule
    values: Mapping[str, Tensor]
    ranks: Mapping[str, int]
    sizes: Mapping[str, int] = field(default_factory=dict)
    bridges: str = ""
    """Bonds that have singular values though the whole is no tree: without one of them it falls apart."""

    def apply(self, ranks: Mapping[str, Rank] | Rank | None = None, **choices: Any) -> Fit:
        return self.rule.apply(
            self.values, self.ranks if ranks is None else ranks, sizes=self.sizes, **{**QUICK, **choices}
        )

    @property
    def is_tree(self) -> bool:
        try:
            return "*" in self.rule.equation or (
                not self.rule.fixed and bool(tree_of(parse_rule(self.rule.equation)[1]))
            )
        except NoTreeError:
            return False

    @property
    def others(self) -> dict[str, Tensor]:
        """Other values of the same shapes."""
        return {name: value.flip(0) * 0.7 for name, value in self.values.items()}


def _catalogue() -> dict[str, Example]:
    found = {}
    for axes in (2, 4, 3):
        labels = KERNEL_LABELS[axes]
        kernel = gaussian(*(SIZES[label] for label in labels), seed=axes)
        for entry in rules(labels).decompositions:
            if axes == 3 and entry.name not in ("tensor_ring", "hierarchical_tucker", "reshaped_train", "dct"):
                continue
            bridges = " ".join(entry.ranks) if entry.fixed else ""
            ranks = dict.fromkeys(entry.ranks, 2)
            found[f"{entry.name} of {len(labels)} axes"] = Example(entry, {"K": kernel}, ranks, bridges=bridges)
    return found


def _by_users() -> dict[str, Example]:
    found = {}
    for name, bridges in (
        ("tied factors", ""),
        ("cp of parts", ""),
        ("two tensors", ""),
        ("hyperedge", "s"),
        ("disconnected", "s"),
        ("loop with a tail", "u"),
    ):
        case = PLANTED[name]
        ranks = dict.fromkeys(case.rule.ranks, 2)
        found[name] = Example(case.rule, case.random(seed=5), ranks, case.choices["sizes"], bridges)
    tree = rule("K[*k out in] => A[*k out p] B[p in]", name="starred")
    found["starred"] = Example(tree, {"K": gaussian(2, 3, 6, 4)}, {"p": 2})
    return found


def _with_phases(examples: Mapping[str, Example]) -> dict[str, Example]:
    """The same rules for complex values."""
    return {
        f"{name}, complex": replace(
            example,
            values={
                key: torch.complex(value, gaussian(*value.shape, seed=17)) for key, value in example.values.items()
            },
        )
        for name, example in examples.items()
        if not name.endswith(("2 axes", "3 axes"))
    }


EXAMPLES = {**_catalogue(), **_by_users()}
EXAMPLES |= _with_phases(EXAMPLES)


@pytest.fixture(params=EXAMPLES)
def example(request: pytest.FixtureRequest) -> Example:
    return EXAMPLES[request.param]


def test_the_reported_error_is_the_measured_one(example: Example) -> None:
    fit = example.apply()
    check_claim(fit)
    fit.trace.check(example.values)
    assert fit.relative_error < 1
    assert fit.dense().shape == tuple(fit.network.sizes[label] for label in fit.network.output)


def test_a_trace_gives_the_same_bits_again_also_from_a_file(example: Example, tmp_path: Path) -> None:
    fit = example.apply(seed=11)
    again = fit.trace.replay(example.values)
    assert same_bits(again.values, fit.values)
    fit.trace.save(tmp_path / "trace.json")
    loaded = load_trace(tmp_path / "trace.json")
    assert str(loaded) == str(fit.trace)
    assert same_bits(loaded.replay(example.values).values, fit.values)
    loaded.check(example.values)


def test_many_are_as_good_as_one_at_a_time(example: Example) -> None:
    targets = [example.values, example.others]
    together = example.rule.apply_many(targets, example.ranks, sizes=example.sizes, **QUICK)
    for values, fit in zip(targets, together, strict=True):
        alone = example.rule.apply(values, example.ranks, sizes=example.sizes, **QUICK)
        assert fit.network == alone.network
        check_claim(fit)
        # starts that are side by side are swept until all of them stand still
        assert fit.relative_error == pytest.approx(alone.relative_error, rel=1e-3, abs=1e-9)


@pytest.mark.parametrize("fraction", [0.3, 0.7])
def test_a_budget_is_kept(example: Example, fraction: float) -> None:
    before = sum(value.numel() for value in example.values.values())
    if not example.rule.ranks:
        assert example.apply({}).parameters > 0
        return
    try:
        fit = example.apply(ParameterBudget(fraction), sweeps=2)
    except RankError as error:
        least = re.search(r"the right side has (\d+)", str(error))
        assert least is not None
        assert int(least[1]) > fraction * before
        return
    check_claim(fit)
    assert fit.parameters <= fraction * before


def test_a_budget_cuts_a_basis_down() -> None:
    kernel = gaussian(6, 4, 3, 5, seed=3)
    entry = rules("out in kh kw")["dct"]
    for fraction in (0.2, 0.5, 0.9):
        fit = entry.apply({"K": kernel}, ParameterBudget(fraction))
        check_claim(fit)
        assert 0.6 * fraction * 360 < fit.parameters <= fraction * 360


def test_a_kernel_of_zeros_is_fitted_by_zeros(example: Example) -> None:
    zeros = {name: torch.zeros_like(value) for name, value in example.values.items()}
    fit = example.rule.apply(zeros, example.ranks, sizes=example.sizes, **QUICK)
    assert fit.relative_error == 0
    assert not fit.dense().any()
    assert all(bool(core.isfinite().all()) for core in fit.values.values())


def test_a_larger_rank_started_from_a_smaller_is_no_worse(example: Example) -> None:
    fit = example.apply(stability=0.0)
    for bond in example.rule.ranks:
        larger = {**fit.trace.steps[0].change.ranks, bond: fit.trace.steps[0].change.ranks[bond] + 1}
        try:
            grown = example.apply(larger, start=fit.values, stability=0.0)
        except RankError as error:
            if "is outside 1 to" not in str(error):
                raise
            continue
        check_claim(grown)
        assert grown.relative_error <= fit.relative_error * (1 + 1e-9) + 1e-12


def test_the_error_of_a_tree_falls_as_its_ranks_grow(example: Example) -> None:
    """By its SVDs alone, down to nothing."""
    if not example.is_tree:
        assert example.apply().report is not None
        return
    fractions = (1e-9, 0.2, 0.4, 0.6, 0.8, 1)
    errors = [example.apply(_everywhere(example, part), sweeps=0).relative_error for part in fractions]
    assert all(after <= before * (1 + 1e-12) + 1e-15 for before, after in pairwise(errors))
    assert not example.rule.ranks or errors[-1] <= 1e-10 < errors[0]


def _everywhere(example: Example, fraction: float) -> Mapping[str, Rank]:
    return dict.fromkeys(example.rule.ranks, KeepFraction(fraction))


def test_a_fraction_needs_singular_values(example: Example) -> None:
    """Each bond has them, or is refused with the reason, all bonds of a tree alike."""
    for bond in example.rule.ranks:
        for rank in (KeepFraction(0.5), RelativeError(0.1)):
            ranks = {**example.ranks, bond: rank}
            if example.is_tree or bond in example.bridges.split():
                check_claim(example.apply(ranks, sweeps=1))
                continue
            with pytest.raises(RankError, match=f"'{bond}'.* singular values"):
                example.apply(ranks, sweeps=1)


def test_a_fit_is_no_worse_than_zeros_and_has_a_report(example: Example) -> None:
    fit = example.apply(stability=0.0)
    report = fit.report
    assert report is not None
    assert report.errors[-1] == pytest.approx(min(report.errors), rel=1e-9)
    assert report.starts == tuple(sorted(report.starts))
    assert report.starts[0] == pytest.approx(fit.relative_error, rel=1e-6, abs=1e-9)
    assert math.isfinite(report.degeneracy)
    assert str(report).startswith(report.method)


# What theory promises ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("sweeps", [0, 20])
@pytest.mark.parametrize("axes", [3, 4, 5])
def test_tucker_and_train_are_near_the_best(axes: int, sweeps: int) -> None:
    """De Lathauwer 2000: within sqrt(N) of what the worst of its unfoldings allows; Oseledets 2011: sqrt(N - 1)."""
    labels = KERNEL_LABELS[axes]
    kernel = gaussian(*(SIZES[label] for label in labels), seed=7)
    for name, factor, sides in (
        ("tucker", math.sqrt(axes), [(label,) for label in labels]),
        ("tensor_train", math.sqrt(axes - 1), [labels[:count] for count in range(1, axes)]),
    ):
        entry = rules(labels)[name]
        fit = entry.apply({"K": kernel}, dict.fromkeys(entry.ranks, 2), sweeps=sweeps)
        best = max(tail(unfolding(kernel, " ".join(labels), " ".join(side)), 2) for side in sides)
        assert best * (1 - 1e-12) <= fit.relative_error <= factor * best


def test_sweeps_only_take_from_the_error_of_the_svds() -> None:
    kernel = gaussian(6, 4, 3, 5, seed=3)
    for name in ("tucker", "tucker2", "tensor_train", "hierarchical_tucker"):
        entry = rules("out in kh kw")[name]
        errors = [
            entry.apply({"K": kernel}, dict.fromkeys(entry.ranks, 2), sweeps=sweeps).relative_error
            for sweeps in (0, 1, 5, 20)
        ]
        assert errors == sorted(errors, reverse=True)
        assert errors[-1] < errors[0]


def test_a_cp_of_growing_rank_reaches_the_kernel() -> None:
    """Rank 1 at a time, each started from the last: the error only falls, and ends at 0 with the rank of the kernel."""
    values = PLANTED["cp"].planted(3)
    fit = rule(CP).apply(values, 1)
    errors = [fit.relative_error]
    for rank in range(2, 7):
        fit = rule(CP).apply(values, rank, start=fit.values)
        errors.append(fit.relative_error)
    assert all(after < before or after < 1e-10 for before, after in pairwise(errors))
    assert errors[0] > 0.3
    assert errors[5] < 1e-7
