"""`*k` in rules: the same as the rule written out, for every number of labels; and what a star cannot be."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.kernel_cases import check_claim, gaussian
from tests.refusals import refused
from tests.rule_cases import same_bits
from tnalgebra.decompositions import load_trace
from tnalgebra.errors import NotationError, RuleError, TnalgebraError
from tnalgebra.fitting import KeepFraction
from tnalgebra.networks import KERNEL_LABELS, Network, parse
from tnalgebra.rewriting import Rule, rule

TUCKER2 = "K[out in *k] => U[out a] G[a b *k] V[b in]"
SHAPE = (7, 5, 3, 2, 4)

TEXTS = {
    TUCKER2: ("out in", 2),
    "K[o i *k] -> [i *k o] => A[o r] B[*k r i]": ("o i", 2),
    "K[*k] => A[*k]": ("", 0),
    "K[out *rest] => L[out r] R[r *rest]": ("out", 1),
    "K[*first, last] => L[*first r] R[r last]": ("last", 1),
    "K[a *k]=>L[a r] R[r *k k] T[k]": ("a", 1),
}
"""Rules with one star on the left tensor K: its plain labels, and how many they are."""


def written_out(text: str, labels: str) -> str:
    return re.sub(r"\*\w+", labels, text)


@given(st.sampled_from(list(TEXTS)), st.integers(0, 3), st.integers(0, 2**32 - 1))
def test_a_starred_rule_is_the_rule_written_out(text: str, count: int, seed: int) -> None:
    _, beside = TEXTS[text]
    axes = beside + count
    kernel = gaussian(*SHAPE[:axes], seed=seed)
    starred, plain = rule(text), rule(written_out(text, " ".join(f"x{n}" for n in range(count))))
    assert (starred.kind, starred.ranks) == (plain.kind, plain.ranks)
    ranks = dict.fromkeys(plain.ranks, KeepFraction(0.6))
    one, two = (entry.apply({"K": kernel}, ranks, sweeps=2) for entry in (starred, plain))
    check_claim(one)
    assert same_bits(one.values, two.values)
    assert one.dense().shape == two.dense().shape
    assert torch.equal(one.dense(), two.dense())


@pytest.mark.parametrize("axes", KERNEL_LABELS)
@pytest.mark.parametrize(
    ("text", "bonds"), [(TUCKER2, "a b"), ("K[*all] => A[*all]", ""), ("K[*k in out] => A[out r] B[r in *k]", "r")]
)
def test_values_of_a_kernel_get_the_labels_of_a_kernel(text: str, bonds: str, axes: int) -> None:
    fit = rule(text).apply({"K": gaussian(*SHAPE[:axes])}, dict.fromkeys(bonds.split(), KeepFraction(1)))
    assert set(fit.network.output) == set(KERNEL_LABELS[axes])
    assert fit.relative_error < 1e-12  # full rank


@pytest.mark.parametrize(
    ("text", "axes", "output"),
    [
        (TUCKER2, 6, "out in k1 k2 k3 k4"),
        ("K[o i *k] => A[o r] B[r i *k]", 4, "o i k1 k2"),
        ("K[o i *k] => A[o r] B[r i *k]", 3, "o i k"),
        ("K[o i *k] => A[o k] B[k i *k]", 3, "o i k_2"),
        ("K[o i *k] => A[o k2] B[k2 i *k]", 4, "o i k1 k2_2"),
        ("K[out in *k] => A[out kh] B[kh in *k]", 4, "out in k1 k2"),
        ("K[out in *k] => A[out r] B[r in *k]", 2, "out in"),
    ],
)
def test_labels_of_a_star_are_free(text: str, axes: int, output: str) -> None:
    fit = rule(text).apply({"K": gaussian(*(2,) * axes)}, dict.fromkeys(rule(text).ranks, 1), sweeps=0)
    assert " ".join(fit.network.output) == output


@given(st.permutations(["A[x y]", "B[y z w]", "C[w v u t]", "D[t]"]))
def test_every_place_of_a_network_has_its_own_number(nodes: list[str]) -> None:
    network = parse(" ".join(nodes))
    starred = rule("K[a *k] => L[a r] R[r *k]")
    places = starred.places(network)
    assert [place.nodes for place in places] == [(0,), (1,), (2,), (3,)]
    for place in places:
        labels = network.nodes[place.nodes[0]].labels
        assert place.labels == labels
        plain = rule(f"K[{' '.join(labels)}] => L[{labels[0]} r] R[r {' '.join(labels[1:])}]")
        assert plain.places(network, bind={"K": network.nodes[place.nodes[0]].name})
        assert starred.places(network, bind={"K": network.nodes[place.nodes[0]].name}) == [place]


def test_a_place_in_a_network_with_values(tmp_path: Path) -> None:
    network = parse("A[x y] B[y z w v]")
    values = {"A": gaussian(3, 4), "B": gaussian(4, 5, 2, 3)}
    fit = rule(TUCKER2, name="t").apply(network, {"a": 2, "b": 5}, values=values, bind={"K": "B"})
    assert str(fit.network) == "A[x:3 y:4] U[y a:2] G[a b:5 w:2 v:3] V[b z:5] -> [x z w v]"
    explicit = rule("K[o i h w] => U[o a] G[a b h w] V[b i]", name="t").apply(network, {"a": 2, "b": 5}, values=values)
    assert same_bits(fit.values, explicit.values)
    fit.trace.check(values)
    fit.trace.save(tmp_path / "trace.json")
    again = load_trace(tmp_path / "trace.json").replay(values)
    assert same_bits(fit.values, again.values)


def test_several_stars_follow_one_after_another() -> None:
    text = "A[*x b] B[b *y *x] -> [*x b *y] => B[b *y *x] A[*x b]"
    starred = rule(text)
    assert starred.kind == "exact"
    network = parse("P[i j b] Q[b k i j] -> [i j b k]")
    fit = starred.apply(network)
    assert str(fit.network) == "Q[b k i j] P[i j b] -> [i j b k]"


def test_a_flat_factor_can_carry_a_star() -> None:
    starred = rule("M[a *k] => Fill[*k | value=1] M[a *k]")
    assert starred.kind == "exact"
    value = gaussian(3, 2, 4)
    fit = starred.apply({"M": value})
    assert str(fit.network) == "Fill[k1:2 k2:4 | value=1] M[a:3 k1 k2] -> [a k1 k2]"
    assert torch.equal(fit.dense(), value)


def test_what_a_starred_rule_shows() -> None:
    entry = rule(TUCKER2, name="any_window")
    assert str(entry).startswith(f"any_window: {TUCKER2} -> [out in *k]\n")
    assert entry.variables == ("K", "out", "in")
    assert entry.ranks == ("a", "b")
    assert dict(entry.spec) == {"notation": TUCKER2, "name": "any_window"}
    assert rule(TUCKER2).name == TUCKER2


def test_a_tensor_of_too_many_axes_is_no_place() -> None:
    entry = rule("K[*k] => A[r *k] B[r s] C[s]")
    labels = [f"x{n}" for n in range(64)]
    network = Network(parse(f"T[{' '.join(labels)}] S[x0 x1]").nodes, labels)
    assert [place.nodes for place in entry.places(network)] == [(1,)]


@pytest.mark.parametrize(
    ("text", "facts"),
    [
        ("K[out *k] => U[out a] V[a]", "'*k';left"),
        ("K[out] => U[out *k]", "'*k';right"),
        ("K[out *k *k] => A[out *k]", "'*k';K[out *k *k]"),
        ("K[o *k] => A[o r] B[r *k *k]", "'*k';B"),
        ("K[*a *b] => L[*a r] R[r *b]", "'*a';'*b'"),
        ("K[o *k] => A[o r] Copy[r *k]", "'*k';Copy;one size"),
        ("K[o *k] => A[o r] Fuse[r *k]", "'*k';Fuse"),
        ("K[o *k] => A[o r x y] Conv[x y *k] B[r]", "'*k';Conv"),
        ("K[o k] Fill[*k | value=1] => A[o k] Fill[*k | value=1]", "'*k';tensor"),
        ("K[o *k] -> [o] => A[o r] B[r *k] -> [o]", "'*k';summed"),
        ("A[i *b] B[*b j] => B[*b j] A[i *b]", "'*b';summed;open"),
        ("K[*k o] => A[o r] B[r *k] -> [o *k]", "order"),
        ("K[o *k] => A[o *k] A[o]", "axes"),
    ],
)
def test_a_star_that_makes_no_sense(text: str, facts: str) -> None:
    with refused(TnalgebraError, *facts.split(";")):
        rule(text)


@pytest.mark.parametrize(
    ("text", "star", "column"),
    [
        ("K[out *k:3] => A[out r] B[r *k]", "'*k'", 6),
        ("K[out *] => A[out]", "'*'", 6),
        ("*K[out] => A[out]", "'*K'", 0),
        ("K[o *k] => Conv[o x y | stride=*k] A[x y]", "'*k'", 31),
        ("K[o *k] *k => A[o *k]", "'*k'", 8),
    ],
)
def test_an_error_points_at_the_star(text: str, star: str, column: int) -> None:
    with refused(NotationError, star, f"{text}\n         {' ' * column}^"):
        rule(text)


@pytest.mark.parametrize("name", ["K", "L"])
def test_values_that_do_not_determine_the_number(name: str) -> None:
    with refused(RuleError, "'*k'", "'K'"):
        rule(TUCKER2).apply({name: gaussian(3)}, {"a": 1, "b": 1})


def test_too_many_ways_to_read_the_stars() -> None:
    stars = [f"*k{n}" for n in range(6)]
    left = " ".join(f"A{n}[{star}]" for n, star in enumerate(stars))
    entry: Rule = rule(f"{left} => {' '.join(reversed(left.split()))} -> [{' '.join(stars)}]")
    host = parse(" ".join(f"T{n}[{' '.join(f'x{n}_{axis}' for axis in range(n))}]" for n in range(1, 7)))
    with refused(RuleError, "1000"):
        entry.places(host)
