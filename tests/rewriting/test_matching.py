"""Where a left side stands in a network: bonds, hyperedges, ties, attributes, sizes; and what a rule makes of it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests.refusals import refused
from tests.strategies import networks, random_values
from tnalgebra.errors import RuleError
from tnalgebra.networks import NamedTensor, Network, Node, carriers, parse, parse_rule, relabel, rename, tensor_nodes
from tnalgebra.rewriting import Fit, Place, rule
from tnalgebra.rewriting.matching import Match, matches


def found(pattern: str, host: str) -> list[Match]:
    return list(matches(side(pattern), parse(host)))


def side(pattern: str) -> Network:
    """A left side, in which attributes may be variables."""
    return parse_rule(f"{pattern} => {pattern}")[0]


def apply(text: str, host: str, *, at: int | None = None, bind: dict[str, str] | None = None) -> Fit:
    """A rule on a network with values, and without."""
    network = parse(host)
    fit = rule(text).apply(network, values=random_values(network, 0), at=at, bind=bind)
    assert rule(text).apply(network, at=at, bind=bind).network == fit.network
    assert fit.relative_error < 1e-12
    return fit


# What a match is --------------------------------------------------------------------------------------------


@st.composite
def patterns(draw: st.DrawFn) -> tuple[Network, Network]:
    """A network, and a part of it in other words: what is summed in the part alone is closed there too."""
    host = draw(networks(min_nodes=1, max_nodes=5))
    chosen = draw(st.permutations(range(len(host.nodes))))[: draw(st.integers(1, min(3, len(host.nodes))))]
    nodes: list[Node] = [host.nodes[position] for position in chosen]
    outside = {label for position, node in enumerate(host.nodes) if position not in chosen for label in node.labels}
    labels = list(dict.fromkeys(label for node in nodes for label in node.labels))
    opened = [label for label in labels if label in outside or label in host.output]
    new = {label: f"v{number}" for number, label in enumerate(labels)}
    names = {node.name: f"N{number}" for number, node in enumerate(nodes) if isinstance(node, NamedTensor)}
    part = [rename(relabel(node, new), names) for node in nodes]
    return host, Network(part, [new[label] for label in opened])


@given(patterns())
def test_a_part_of_a_network_is_found_there(example: tuple[Network, Network]) -> None:
    host, pattern = example
    match = next(matches(pattern, host), None)
    assert match is not None
    check_match(match, pattern, host)


@given(networks(max_nodes=3), networks(max_nodes=5))
def test_whatever_is_found_is_a_match(pattern: Network, host: Network) -> None:
    pattern = Network(pattern.nodes, pattern.output)
    for number, match in enumerate(matches(pattern, host)):
        check_match(match, pattern, host)
        if number == 50:
            return


def check_match(match: Match, pattern: Network, host: Network) -> None:
    """The pattern, with its variables replaced, is the part of the host; distinct variables are distinct things."""
    assert len(set(match.nodes)) == len(match.nodes) == len(pattern.nodes)
    assert set(match.labels) == set(carriers(pattern))
    assert set(match.names) == set(tensor_nodes(pattern))
    for bound in (match.labels, match.names):
        assert len(set(bound.values())) == len(bound)
    for node, position in zip(pattern.nodes, match.nodes, strict=True):
        theirs = host.nodes[position]
        ours = rename(relabel(node, match.labels), match.names)
        assert (ours.name, ours.attributes) == (theirs.name, theirs.attributes)
        order = sorted if node.name in ("Copy", "Fill") and not isinstance(node, NamedTensor) else list
        assert order(ours.labels) == order(theirs.labels)
    for label in carriers(pattern).keys() - set(pattern.output):
        thing = match.labels[label]
        assert thing not in host.output
        assert all(thing not in node.labels for at, node in enumerate(host.nodes) if at not in match.nodes)


# By hand ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("pattern", "host", "expected"),
    [
        ("A[i b] B[b j]", "X[n c] Y[c d] Z[d e]", [(0, 1), (1, 2)]),
        ("A[i b] B[b j]", "X[n c] Y[d c]", []),  # axis by axis
        ("A[i b] B[j b]", "X[n c] Y[d c]", [(0, 1), (1, 0)]),
        ("A[i b] B[b j]", "X[n c] Y[c d] -> [n c d]", []),  # the bond is open
        ("A[i b] B[b j] -> [i b j]", "X[n c] Y[c d] -> [n c d]", [(0, 1)]),
        ("A[i b] B[b j] -> [i b j]", "X[n c] Y[c d]", [(0, 1)]),  # an open label stands for a closed one as well
        ("A[i b] B[b j] -> [i j]", "X[n c] Y[c d] Z[c]", []),  # a carrier outside
        ("A[i b] B[b j] C[b]", "X[n c] Y[c d] Z[c]", [(0, 1, 2)]),  # all carriers inside
        ("A[i j]", "X[n n]", []),  # distinct labels
        ("A[i i]", "X[n n] Y[n m]", []),  # the trace would lose Y
        ("A[i i] -> [i]", "X[n n] Y[n m]", [(0,)]),
        ("A[i] B[j]", "X[n] X[m]", []),  # distinct tensors
        ("A[i] A[j]", "X[n] X[m]", [(0, 1), (1, 0)]),
        ("A[]", "X[] Copy[]", [(0,)]),
        ("Copy[a b]", "Copy[n m] Copy[n m l] Fill[n m | value=1]", [(0,), (0,)]),  # either way round
        ("Copy[a b] A[i b]", "X[n m] Copy[m l]", [(1, 0)]),
        ("Copy[a b c] A[i b]", "X[n m] Copy[l k m]", [(1, 0), (1, 0)]),
        ("Copy[x y z] P[z z] Q[x j]", "A[a i] Copy[c b a] B[b] C[c c]", [(1, 3, 0)]),
        ("Copy[a a b] -> [a b]", "Copy[n m n] Copy[n m l]", [(0,)]),
        ("Fuse[a b c]", "Fuse[n m l] Fuse[n m]", [(0,)]),
        ("Fuse[a b c] A[b]", "Fuse[n m l] X[l] Y[m]", [(0, 2)]),  # the parts have an order
        ("Conv[x y k | stride=2]", "Conv[n m l] Conv[n m l | stride=2]", [(1,)]),
        ("Conv[x y k | stride=s]", "Conv[n m l] Conv[n m l | stride=2] Conv[n m l | padding=1]", [(0,), (1,)]),
        ("Conv[x y k | padding=p]", "Conv[n m l | padding=1] Conv[n m l | padding=1:2]", [(0,)]),
        ("Conv[x y k | padding=p:q]", "Conv[n m l | padding=1] Conv[n m l | padding=1:2]", [(0,), (1,)]),
        ("Conv[x y k | stride=s] Conv[y z h | stride=s]", "Conv[n m l | stride=2] Conv[m o k]", []),
        (
            "Conv[x y k | stride=s] Conv[y z h | stride=s]",
            "Conv[n m l | stride=2] Conv[m o k | stride=2]",
            [(0, 1)],
        ),
        ("Conv[x y k | stride=s dilation=d]", "Conv[n m l | stride=2 dilation=2]", [(0,)]),  # numbers may be equal
        (
            "Fill[k | value=v] Fill[l | value=v]",
            "Fill[n | value=1/2] Fill[m | value=0.5] Fill[o | value=mean]",
            [(0, 1), (1, 0)],
        ),
        ("A[i b:1] B[b j]", "X[n c:1] Y[c d] X2[o e:2] Y2[e p] X3[q f] Y3[f r]", [(0, 1)]),  # a size is a condition
    ],
)
def test_places(pattern: str, host: str, expected: list[tuple[int, ...]]) -> None:
    assert [match.nodes for match in found(pattern, host)] == expected


def test_an_attribute_variable_is_bound() -> None:
    (match,) = found("Conv[x y k | stride=s padding=p:q mode=m]", "Conv[a b c | stride=2 padding=1:3 mode=circular]")
    assert match.attributes == {"s": 2, "p": 1, "q": 3, "m": "circular"}
    assert match.labels == {"x": "a", "y": "b", "k": "c"}


# Tied tensors -----------------------------------------------------------------------------------------------


def test_a_tied_tensor_is_matched_everywhere_or_not_at_all() -> None:
    host = parse("K[a b] V[b] K[c d] W[d]")
    assert [place.nodes for place in rule("K[o i] => T[o i]").places(host, bind={"K": "K"})] == [(0, 2)]
    assert rule("K[o i] V[i] -> [o] => T[o]").places(host) == []
    host = parse("K[a b] V[b] K[c d] V[d]")
    assert [place.nodes for place in rule("K[o i] V[i] -> [o] => T[o]").places(host)] == [(0, 1, 2, 3)]


def test_a_tied_tensor_is_rewritten_at_all_its_occurrences() -> None:
    fit = apply("K[o i] => T[o i]", "K[a:4 b:3] X[b d:2] K[c:4 e:3]", bind={"K": "K"})
    assert str(fit.network) == "T[a:4 b:3] T[c:4 e:3] X[b d:2] -> [a d c e]"
    network = parse("K[a:4 b:3] X[b d:2] K[c:4 e:3]")
    values = random_values(network, 0)
    fit = rule("K[o i] => U[o r] V[r i]").apply(network, {"r": 3}, values=values, bind={"K": "K"})
    assert str(fit.network) == "U[a:4 r:3] V[r b:3] U[c:4 r_2:3] V[r_2 e:3] X[b d:2] -> [a d c e]"
    assert set(fit.values) == {"U", "V", "X"}
    assert fit.relative_error < 1e-12
    assert fit.parameters == 4 * 3 + 3 * 3 + 3 * 2


def test_a_tied_tensor_that_cannot_be_rewritten_everywhere_is_refused() -> None:
    with refused(RuleError, "K[o i] V[i] => T[o]", "K[a b] V[b] K[c d]", "tied", "K ("):
        rule("K[o i] V[i] -> [o] => T[o]").apply(parse("K[a b] V[b] K[c d]"))


def test_a_tied_tensor_is_not_rewritten_where_sizes_that_are_summed_differ() -> None:
    """The last window of x:7 is clipped, that of x:8 is not: one new tensor cannot stand for both."""
    text = "K[o k] Conv[x u k | stride=2 padding=1] Fill[x | value=1] => T[o u]"
    first = "K[o:2 k:3] Conv[x:7 u:4 k | stride=2 padding=1] Fill[x | value=1]"
    second = "K[p l:3] Conv[y:{} v:4 l | stride=2 padding=1] Fill[y | value=1]"
    assert rule(text).places(parse(f"{first} {second.format(8)}")) == []
    fit = apply(text, f"{first} {second.format(7)}")
    assert str(fit.network) == "T[o:2 u:4] T[p:2 v:4]"


def test_a_tied_left_side_wants_a_tied_tensor() -> None:
    fit = apply("A[i b] A[b j] => B[i j]", "X[p:3 q:3] X[q r:3] Y[r s:2]")
    assert str(fit.network) == "B[p:3 r:3] Y[r s:2]"
    assert rule("A[i b] A[b j] => B[i j]").places(parse("X[p q] Z[q r]")) == []


# Which place ------------------------------------------------------------------------------------------------


def test_places_that_overlap_are_listed_and_chosen_by_number() -> None:
    text, host = "A[i b] B[b j] => AB[i j]", "X[n:2 c:3] Y[c d:4] Z[d e:5]"
    with refused(RuleError, text, "0: X[n c] Y[c d] at n c d", "1: Y[c d] Z[d e] at c d e", "at=0"):
        rule(text).apply(parse(host))
    assert str(apply(text, host, at=0).network) == "AB[n:2 d:4] Z[d e:5]"
    assert str(apply(text, host, at=1).network) == "X[n:2 c:3] AB[c e:5]"
    for at in (2, -1):
        with refused(RuleError, f"at={at}", "2 places"):
            rule(text).apply(parse(host), at=at)


def test_a_place_of_another_network_is_refused() -> None:
    place = rule("A[i b] B[b j] => AB[i j]").places(parse("X[n c] Y[c d]"))[0]
    with refused(RuleError, "place", "X[n c] Y[d c]"):
        rule("A[i b] B[b j] => AB[i j]").apply(parse("X[n c] Y[d c]"), at=place)
    with refused(RuleError, "place"):
        rule("A[i b] B[b j] => AB[i j]").apply(parse("X[n c] Y[c d]"), at=Place((0,)))


def test_bind_narrows_the_places_down() -> None:
    text, host = "A[i b] B[b j] => AB[i j]", "X[n:2 c:3] Y[c d:4] Z[d e:5]"
    assert str(apply(text, host, bind={"A": "Y"}).network) == "X[n:2 c:3] AB[c e:5]"
    assert str(apply(text, host, bind={"j": "d"}).network) == "AB[n:2 d:4] Z[d e:5]"
    assert len(rule(text).places(parse(host), bind={"A": "Y"})) == 1
    with refused(RuleError, "bind", "{'A': 'Z'}"):
        rule(text).apply(parse(host), bind={"A": "Z"})
    with refused(RuleError, "'C'", "A B i b j"):
        rule(text).apply(parse(host), bind={"C": "Z"})


def test_places_with_equal_results_are_one() -> None:
    assert len(rule("Copy[a b] => Fuse[a b]").places(parse("Copy[n m]"))) == 2  # n, m or m, n: the whole differs
    contraction = rule("A[i b] B[j b] => C[i j]")  # one, whichever way it is read; bind chooses the order of axes
    assert str(contraction.apply(parse("X[n c] Y[d c]")).network) == "C[n d]"
    assert str(contraction.apply(parse("X[n c] Y[d c]"), bind={"i": "d"}).network) == "C[d n] -> [n d]"
    assert len(rule("A[i b] B[j b] => B[j b] A[i b] -> [i j]").places(parse("X[n c] Y[d c]"))) == 1
    assert len(rule("Copy[a b] A[b] => A[a]").places(parse("Copy[n m] X[m]"))) == 1
    assert len(rule("A[b] B[b] => s[]").places(parse("X[n] Y[n]"))) == 1


# What stands afterwards -------------------------------------------------------------------------------------


def test_fresh_names_and_bonds_at_each_place() -> None:
    halves = rule("K[o i] => L[o r] R[r i]", name="halves")
    network = parse("L[r:4 s:3] K[s i:5]")
    fit = halves.apply(network, {"r": 3}, values=random_values(network, 1), at=0)
    assert str(fit.network) == "L_2[r:4 r_2:3] R[r_2 s:3] K[s i:5]"
    fit = fit.then(halves, {"r": 2}, bind={"K": "K"})
    assert str(fit.network) == "L_2[r:4 r_2:3] R[r_2 s:3] L[s r_3:2] R_2[r_3 i:5]"


def test_a_right_side_without_arrow_has_the_output_of_the_left() -> None:
    left, right = parse_rule("A[i b] B[b j] -> [j i] => U[i c] V[c j]")
    assert left.output == right.output == ("j", "i")
    fit = apply("A[i b] B[b j] -> [j i] => T[i j]", "X[p:2 q:3] Y[q r:4] -> [r p]")
    assert fit.network.output == ("r", "p")
    assert fit.dense().shape == (4, 2)
    fit = apply("A[i b] B[b j] -> [j i] => T[j i]", "X[p:2 q:3] Y[q r:4] -> [p r]")
    assert str(fit.network) == "T[r:4 p:2] -> [p r]"


def test_a_kept_tensor_keeps_its_name_value_and_sizes() -> None:
    network = parse("P[i:2 b:3] Q[b j:4]")
    values = random_values(network, 0)
    fit = rule("A[i b] B[b j] => B[b j] A[i b] -> [i j]").apply(network, values=values)
    assert str(fit.network) == "Q[b_2:3 j:4] P[i:2 b_2] -> [i j]"
    assert all(torch.equal(fit.values[name], values[name]) for name in "PQ")
    symbolic = rule("A[i b] B[b j] => B[b j] A[i b] -> [i j]").apply(network)
    assert symbolic.network == fit.network
    assert symbolic.parameters == 18


def test_an_attribute_variable_is_written_on_the_right() -> None:
    text = "Conv[x y k1 | stride=s] Conv[y z k2] => Conv[x z k | stride=s] Conv[k k2 k1 | stride=s]"
    fit = apply(text, "Conv[p:9 q r:2 | stride=2] Conv[q t u:3] A[u v:4]")
    assert str(fit.network) == "Conv[p:9 t:2 k:6 | stride=2] Conv[k u:3 r:2 | stride=2] A[u v:4] -> [p r t v]"


@pytest.mark.parametrize(
    ("left", "host"),
    [
        ("Copy[a b c d e f g h]", "Copy[i j k l m n o p]"),
        ("A[a] B[b] C[c] D[d]", " ".join(f"X{number}[x{number}]" for number in range(9))),
    ],
)
def test_a_left_side_with_too_many_readings_is_refused(left: str, host: str) -> None:
    with refused(RuleError, "1000"):
        list(matches(parse(left), parse(host)))
