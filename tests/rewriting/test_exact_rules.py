"""One battery for every exact rule, which also catches rules that are broken on purpose."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from itertools import product
from math import gcd
from random import Random

import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.rule_examples import EXAMPLES, TOLERANCE, Valued, surrounded
from tests.strategies import random_values, valued_networks, valued_sums
from tnalgebra.errors import NetworkError, SizeError
from tnalgebra.networks import (
    MAX_AXES,
    MODES,
    Conv,
    Copy,
    Edit,
    Fill,
    Fuse,
    NamedTensor,
    Network,
    Node,
    aligned,
    all_nodes,
    collected,
    edited,
    parse,
    resized,
    shapes,
    sum_of_products,
    tensors_of,
    window,
)
from tnalgebra.rewriting import (
    EXACT_RULES,
    SIMPLIFY,
    Change,
    Fit,
    Place,
    Rule,
    Trace,
    contract_back,
    merge_windows,
    rewrite,
    simplify,
)
from tnalgebra.rewriting.exact import contract_bond, drop_copy_of_two, fuse_copies, merge_fuses
from tnalgebra.rewriting.exact.shared import dead_outside, exact, exact_of_sums, of_type
from tnalgebra.tensors import bind_values, evaluate, magnitude

RULES = {rule.name: rule for rule in EXACT_RULES}

# The battery ------------------------------------------------------------------------------------------------


def check(rules: Iterable[Rule], network: Network, values: dict[str, Tensor]) -> Counter[str]:
    """Every law of an exact rule, of every rule at every place; how often each fired."""
    network, values = bind_values(network, values)
    start = Fit(network, values, Trace(network, ()))
    old, scale = evaluate(network, values), magnitude(network, values)
    fired: Counter[str] = Counter()
    for rule in rules:
        places = rule.places(network)
        assert len(set(places)) == len(places)
        for place in places:
            fit = start.then(rule, at=place)
            check_words(network, fit, place)
            assert ((evaluate(fit.network, fit.values) - old).abs() <= TOLERANCE * scale).all()
            assert all(fit.values[name] is values[name] for name in values.keys() & fit.values.keys())
            assert rule.apply(network, at=place).network == fit.network  # values decide nothing
            again = fit.trace.replay(values)
            assert again.network == fit.network
            assert again.values.keys() == fit.values.keys()
            assert all(torch.equal(again.values[name], value) for name, value in fit.values.items())
        fired[rule.name] = len(places)
    return fired


def check_words(before: Network, fit: Fit, place: Place) -> None:
    """What holds of labels, sizes and names, whatever the numbers are."""
    after = fit.network
    assert after.output == before.output
    assert parse(str(after)) == after
    assert {
        label for node in all_nodes(after) for label in node.labels
    } == after.sizes.keys()  # all were known, all are
    assert all(before.sizes[label] == size for label, size in after.sizes.items() if label in before.sizes)
    assert shapes(after) == {name: tuple(value.shape) for name, value in fit.values.items()}
    outside = [node for position, node in enumerate(all_nodes(before)) if position not in place.nodes]
    assert not bare(outside) - bare(all_nodes(after))
    old_names, new_names = (Counter(node.name for node in all_nodes(one)) for one in (before, after))
    if len(before.terms) == len(after.terms):
        tensors = tensors_of(before).keys() & tensors_of(after).keys()
        assert all(new_names[name] == old_names[name] for name in tensors)


def bare(nodes: Iterable[Node]) -> Counter[tuple[object, ...]]:
    """The nodes without their labels."""
    return Counter((type(node), node.name, tuple(node.attributes.items())) for node in nodes)


def test_every_rule_has_examples_a_reason_and_a_name_of_its_own() -> None:
    assert list(EXAMPLES) == [rule.name for rule in EXACT_RULES]
    for rule in EXACT_RULES:
        assert rule.kind == "exact"
        assert "Ends" in rule.explanation
        assert str(rule).startswith(f"{rule.name}: {rule.equation}\n")


@pytest.mark.slow
@pytest.mark.parametrize("name", RULES)
def test_rules_keep_the_value_of_the_examples_of_one(name: str) -> None:
    """The rule fires often enough on its own examples, and on each of them another rule is tried too."""
    fired: Counter[str] = Counter()

    @given(surrounded(name), st.sampled_from(EXACT_RULES))
    def battery(example: Valued, other: Rule) -> None:
        fired.update(check({RULES[name], other}, *example))

    battery()
    assert fired[name] >= 50


@given(valued_networks() | valued_sums(max_nodes=3), st.integers(0, 2**16))
def test_rules_keep_the_value_of_random_networks(example: Valued, number: int) -> None:
    """Every rule at every place of a network made for none of them, and of what one of them leaves of it."""
    check(EXACT_RULES, *example)
    places = [(rule, place) for rule in EXACT_RULES for place in rule.places(example[0])]
    if places:
        rule, place = places[number % len(places)]
        fit = rule.apply(example[0], values=example[1], at=place)
        check(EXACT_RULES, fit.network, fit.values)


@given(valued_networks() | valued_sums(max_nodes=3))
def test_rules_that_fire_without_sizes_are_right_for_every_size(example: Valued) -> None:
    network, values = example
    start, tensors = bind_values(resized(network, {}), values)
    if any(network.sizes[label] != size for label, size in start.sizes.items()):
        return  # the input of a window that nothing determines has the smallest size that fits, and not this one
    old, scale = evaluate(network, values), magnitude(network, values)
    for rule in EXACT_RULES:
        for place in rule.places(start):
            fit = rule.apply(start, values=tensors, at=place)
            labels = {label for node in all_nodes(fit.network) for label in node.labels}
            sizes = {label: network.sizes[label] for label in labels if label in network.sizes}
            after = resized(fit.network, sizes)
            assert ((evaluate(after, fit.values) - old).abs() <= TOLERANCE * scale).all()


# Rules broken on purpose ------------------------------------------------------------------------------------


def merged_with_padding(network: Network, i: int, j: int) -> Edit:
    """`merged_windows` for any padding of the second window: the first one's, and its own s1 times."""
    first, second = network.nodes[i], network.nodes[j]
    assert isinstance(first, Conv)
    assert isinstance(second, Conv)
    a, b = window(first), window(second)
    step = a["stride"] * b["dilation"]
    common = gcd(a["dilation"], step)
    low, high = (a[side] + a["stride"] * b[side] for side in ("low", "high"))
    wide = Conv(first.x, second.y, "wide", a["stride"] * b["stride"], low, high, common, first.mode)
    inner = Conv("wide", second.k, first.k, step // common, dilation=a["dilation"] // common)
    return Edit(remove=(i, j), add=[wide, inner])


@exact("without the guard on the second window's padding")
def unguarded_windows(network: Network) -> Iterator[tuple[Place, Edit]]:
    windows = of_type(network, Conv)
    for (i, first), (j, second) in product(windows.items(), repeat=2):
        distinct = len({*first.labels, *second.labels}) == 5
        if i != j and first.y == second.x and distinct and first.y in dead_outside(network, (i, j)):
            yield Place((i, j)), merged_with_padding(network, i, j)


@exact("also where both labels are open")
def drop_open_copy(network: Network) -> Iterator[tuple[Place, Edit]]:
    for position, node in of_type(network, Copy).items():
        if len(network.nodes) > 1 and len(node.labels) == len(set(node.labels) & set(network.output)) == 2:
            yield Place((position,)), Edit(remove=(position,), labels={node.labels[0]: node.labels[1]})


@exact("one occurrence of a tied tensor alone")
def sum_tied_label(network: Network) -> Iterator[tuple[Place, Edit]]:
    for position, node in of_type(network, NamedTensor).items():
        rest = tuple(label for label in node.labels if label not in dead_outside(network, (position,)))
        if rest != node.labels and len(rest) == len(set(rest)):
            new = NamedTensor("new", rest)
            edit = Edit(remove=(position,), add=[new], definitions={"new": Network([node], rest)})
            yield Place((position,)), edit


@exact_of_sums("a factor of any number")
def drop_term_with_fill(network: Network) -> Iterator[tuple[Place, Change]]:
    for number, term in enumerate(network.terms):
        if any(isinstance(node, Fill) for node in term.nodes):
            rest = [one for place, one in enumerate(network.terms) if place != number]
            after = sum_of_products([(one.nodes, one.sizes) for one in rest], network.output)
            yield Place((number,)), Change(after)


@exact_of_sums("only what is left of the first term")
def collect_one_term(network: Network) -> Iterator[tuple[Place, Change]]:
    pair = collected(aligned(network.terms), "new")
    if pair is not None and len(pair[0].nodes) > 1:
        yield Place((0,)), Change(pair[0], {"new": pair[1].terms[0]})


BROKEN: list[tuple[Rule, str, type[Exception]]] = [
    (unguarded_windows, "merge_windows", AssertionError),
    (drop_open_copy, "drop_copy_of_two", NetworkError),
    (sum_tied_label, "sum_label", AssertionError),
    (drop_term_with_fill, "drop_zero_term", AssertionError),
    (collect_one_term, "collect_terms", AssertionError),
]


@pytest.mark.slow
@pytest.mark.parametrize(("rule", "name", "error"), BROKEN, ids=[rule.name for rule, _, _ in BROKEN])
def test_the_battery_catches_a_broken_rule(rule: Rule, name: str, error: type[Exception]) -> None:
    @settings(phases=[Phase.generate], report_multiple_bugs=False)
    @given(surrounded(name))
    def battery(example: Valued) -> None:
        check([rule], *example)

    with pytest.raises(error):
        battery()


# Simplifying ------------------------------------------------------------------------------------------------


def measure(network: Network) -> tuple[int, ...]:
    """Terms, windows, fuses, labels on copies, labels in all."""
    nodes = [*all_nodes(network)]
    counts = (sum(isinstance(node, kind) for node in nodes) for kind in (Conv, Fuse))
    copies = sum(len(node.labels) for node in nodes if isinstance(node, Copy))
    return len(network.terms), *counts, copies, sum(len(node.labels) for node in nodes)


def check_simplified(network: Network, values: dict[str, Tensor], fit: Fit) -> None:
    assert not any(rule.places(fit.network) for rule in SIMPLIFY)
    assert all(measure(step.after) < measure(step.before) for step in fit.trace.steps)
    assert fit.network.output == network.output
    change = (evaluate(fit.network, fit.values) - evaluate(network, values)).abs()
    assert (change <= TOLERANCE * magnitude(network, values)).all()


@given(
    st.one_of(
        valued_networks(),
        valued_sums(max_nodes=3),
        valued_networks(kinds=("Copy", "Fuse", "Conv")),
        *(surrounded(r.name) for r in SIMPLIFY),
    ),
    st.randoms(use_true_random=False),
)
def test_simplifying_ends_in_any_order(example: Valued, random: Random) -> None:
    check_simplified(*example, rewrite(*example[:1], SIMPLIFY, example[1], order=random))
    check_simplified(*example, simplify(*example))


def test_simplifying_what_says_little_in_many_nodes() -> None:
    kernel = "K[o:5 p:2 q:3] Fuse[i p q] Fuse[i r:2 s:3] Conv[x r k:1]"
    network = parse(f"{kernel} Copy[o t u] Fill[u | value=mean] -> [t x s]")
    fit = simplify(network, random_values(network, 0))
    assert str(fit.network) == "K[t:5 x:2 s:3] Fill[t | value=mean]" + " -> [t x s]"
    assert fit.relative_error == 0


@pytest.mark.parametrize(
    ("rule", "text"), [(fuse_copies, "Copy[{a} s] Copy[s {b}]"), (merge_fuses, "Fuse[{a} s] Fuse[s {b}]")]
)
def test_no_rule_makes_a_node_of_more_than_64_axes(rule: Rule, text: str) -> None:
    def places(count: int) -> int:
        a, b = (" ".join(f"{word}{i}" for i in range(count)) for word in "ab")
        network = parse(f"A[{a}] B[{b}] {text.format(a=a, b=b)} -> []")
        simplify(network)
        return len(rule.places(network))

    assert (places(MAX_AXES // 2), places(MAX_AXES // 2 + 1)) == (1, 0)


# Windows ----------------------------------------------------------------------------------------------------


def two_windows() -> Iterator[Network]:
    """All pairs of small windows that fit their input, all labels but the one between them open."""
    for s1, d1, p1, s2, d2, k1, k2, x in product(
        (1, 2, 3), (1, 2, 3), ("0", "1", "2:0"), (1, 2), (1, 2), (2, 3), (1, 2), (7, 8)
    ):
        first = f"Conv[x:{x} y k1:{k1} | stride={s1} dilation={d1} padding={p1}]"
        second = f"Conv[y z k2:{k2} | stride={s2} dilation={d2}]"
        with suppress(SizeError):  # the window is wider than its input
            yield parse(f"{first} {second} -> [x z k1 k2]")


def test_merged_windows_are_right_for_every_stride_dilation_and_size() -> None:
    cases = list(two_windows())
    assert len(cases) > 600
    for network in cases:
        assert len(merge_windows.places(network)) == 1
        after = edited(network, merged_with_padding(network, 0, 1))
        assert torch.equal(evaluate(merge_windows.apply(network).network), evaluate(network))  # sums of 0 and 1
        assert torch.equal(evaluate(after), evaluate(network))


@pytest.mark.parametrize("mode", MODES)
def test_the_first_of_two_merged_windows_may_be_padded_in_any_mode(mode: str) -> None:
    network = parse(f"Conv[x:7 y k:3 | padding=2:1 dilation=2 mode={mode}] Conv[y z h:2 | stride=2] -> [z x h k]")
    fit = merge_windows.apply(network)
    assert f"mode={mode}" in str(fit.network) or mode == "zeros"
    assert torch.equal(evaluate(fit.network), evaluate(network))


def test_merged_windows_are_written_with_the_steps_of_both() -> None:
    network = parse("Conv[x:20 y k1:3 | stride=2 padding=1 dilation=3] Conv[y z k2:2 | stride=3 dilation=3]")
    after = merge_windows.apply(network).network
    assert str(after) == (
        "Conv[x:20 z:2 k:5 | stride=6 padding=1 dilation=3] Conv[k k2:2 k1:3 | stride=2] -> [x k1 z k2]"
    )


# Contracting ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "U[out:5 a:2] G[a b:3 kh:4 kw:2] V[b in:6] -> [out in kh kw]",
        "A[out:5 r:3] B[in:4 r] C[kh:2 r] D[kw:3 r] -> [out in kh kw]",
        "A[z:2 out:5 p:3] B[p in:4 q:2] C[q kh:3 s:2] D[s kw:2 z] -> [out in kh kw]",
        "s[] A[i:3 b:2] t[] B[b j:4]",
        "A[i:3 b:4] A[j b]",
    ],
)
def test_contracting_back_leaves_one_tensor(text: str) -> None:
    network = parse(text)
    values = random_values(network, 0)
    fit = contract_back(network, values)
    assert len(fit.network.nodes) == 1
    torch.testing.assert_close(fit.dense(), evaluate(network, values), rtol=1e-12, atol=1e-12)


def test_a_tied_tensor_is_contracted_where_all_of_it_is() -> None:
    assert contract_bond.places(parse("A[i b] A[b j]")) == [Place((0, 1))]
    assert contract_bond.places(parse("A[i b] A[b j] A[j k]")) == []
    assert contract_bond.places(parse("A[i b] B[b j] A[k l]")) == []


def test_a_copy_of_two_open_labels_stays() -> None:
    assert drop_copy_of_two.places(parse("Copy[a b] T[b c] -> [a b c]")) == []
    assert drop_copy_of_two.places(parse("Copy[a b] -> [a]")) == []
    assert str(drop_copy_of_two.apply(parse("Copy[a b] T[b c]")).network) == "T[a c]"
