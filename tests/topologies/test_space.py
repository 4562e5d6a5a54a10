"""Spaces of topologies: how many there are, that isomorphic ones occur once, and what a space refuses."""

from __future__ import annotations

from itertools import combinations
from math import comb

import pytest

import tnalgebra as tn
from tests.refusals import refused
from tnalgebra.errors import RuleError
from tnalgebra.networks import isomorphic


def generated(labels: str, **fields: object) -> list[tn.networks.Network]:
    """The right sides of a space without the catalogue."""
    space = tn.Space(catalogue=False, **fields)  # type: ignore[arg-type]
    return [topology.right for topology in space.topologies(labels)]


@pytest.mark.parametrize(
    ("fields", "count"),
    [
        ({"cores": (4, 4), "bonds": "tree", "groups": "abcd"}, 4**2),  # Cayley
        ({"cores": (5, 5), "bonds": "ring", "groups": "abcde"}, 4 * 3),  # (5 - 1)! / 2
        ({"cores": (4, 4), "bonds": "graph", "groups": "abcd"}, 38),  # connected labelled graphs on four vertices
        ({"cores": (2, 2), "bonds": "tree"}, 7),  # the cuts of four labels
        ({"cores": (3, 3), "bonds": "hyperedge"}, comb(4, 2)),  # which two of the four labels are on one core
        ({"cores": (4, 4), "bonds": "complete", "groups": "abcd"}, 1),
    ],
)
def test_counts(fields: dict[str, object], count: int) -> None:
    labels = "abcde" if count == 12 else "abcd"
    if isinstance(fields.get("groups"), str):
        fields = {**fields, "groups": tuple(labels)}
    assert len(generated(" ".join(labels), **fields)) == count


def test_no_two_topologies_are_isomorphic() -> None:
    bonds = ("tree", "ring", "hyperedge", "block", "graph")
    networks = generated("a b c", cores=(2, 4), bonds=bonds)
    assert any(len(node.labels) == 3 and not {*node.labels} & {*"abc"} for one in networks for node in one.nodes)
    assert not any(isomorphic(one, other, ordered=False) for one, other in combinations(networks, 2))


def test_the_catalogue_comes_first_and_once() -> None:
    names = [topology.name for topology in tn.Space().topologies("out in kh kw")]
    assert {"cp", "tucker2", "tensor_train", "tensor_ring"} <= {*names}
    assert "K[out in kh kw] => A[out r1] B[in r1] C[kh r1] D[kw r1]" not in names


def test_labels_that_are_split() -> None:
    space = tn.Space(cores=(2, 2), bonds="tree", parts={"out": (2, 3)}, catalogue=False)
    texts = [topology.notation for topology in space.topologies("out in")]
    assert texts.count("K[out in] => A[out r1] B[in r1]") == 1
    (split,) = [text for text in texts if "A[out1 r1]" in text]
    assert split == "K[out in] => Fuse[out out1:2 out2:3] A[out1 r1] B[in out2 r1]" or "B[out2 in r1]" in split


def test_sums_have_two_different_terms() -> None:
    networks = generated("a b c", cores=(2, 2), bonds="tree", terms=2)
    assert [len(one.terms) for one in networks].count(2) == comb(3, 2)


def test_a_space_that_has_no_meaning() -> None:
    with refused(RuleError, "cores=(1, 3)"):
        tn.Space(cores=(1, 3))
    with refused(RuleError, "'star'", "hyperedge"):
        tn.Space(bonds="star")  # type: ignore[arg-type]
    with refused(RuleError, "terms=3"):
        tn.Space(terms=3)
    with refused(RuleError, "'out'", "1"):
        tn.Space(parts={"out": 1})


def test_labels_that_the_kernel_lacks() -> None:
    with refused(RuleError, "'depth'", "out in"):
        tn.Space(groups=("out", "depth")).topologies("out in")
    with refused(RuleError, "'depth'"):
        tn.Space(parts={"depth": 2}).topologies("out in")
    with refused(RuleError, "no topology"):
        tn.Space(cores=(3, 3), groups=("out in",), catalogue=False).topologies("out in")
