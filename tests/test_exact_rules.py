"""One battery of laws for every exact rule, and rules broken on purpose that it must catch.

A rule brings its left sides, `EXAMPLES`; near misses, where it must not fire, are among them. Each left side is drawn
into a random network: some of its labels also stand on other tensors, copies, windows; some are open, some summed;
tensors are tied.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import product
from math import gcd, prod
from random import Random
from typing import TypeAlias

import pytest
import torch
from hypothesis import Phase, assume, given, settings
from hypothesis import strategies as st
from strategies import SIZES, networks, random_values, valued_networks
from torch import Tensor

from tnalgebra.decompositions.traces import by_name
from tnalgebra.driver import contract_back, rewrite, simplify
from tnalgebra.editing import Edit, edited
from tnalgebra.errors import NetworkError, RuleError, SizeError
from tnalgebra.evaluation import evaluate, magnitude
from tnalgebra.exact_rules import (
    EXACT_RULES,
    SIMPLIFY,
    contract_bond,
    drop_copy_of_two,
    fuse_copies,
    merge_fuses,
    merge_windows,
    split_fuse,
)
from tnalgebra.exact_rules.shared import dead_outside, exact, of_type
from tnalgebra.exact_rules.windows import merged_windows
from tnalgebra.labels import MAX_AXES
from tnalgebra.network import Network, carriers, shapes, tensor_nodes
from tnalgebra.nodes import MODES, Conv, Copy, Fuse, NamedTensor, Node, relabel, rename
from tnalgebra.notation import parse
from tnalgebra.rewriting import Fit, Place, Rule, Trace
from tnalgebra.sizes import window
from tnalgebra.valuation import bind_values

Valued: TypeAlias = tuple[Network, dict[str, Tensor]]

RULES = by_name(EXACT_RULES)

TOLERANCE = 1e-12  # of `magnitude`: the law; float64 sums of up to 10^6 terms stay below it
MOST_OPEN = 2000  # elements of an example's value
MOST_ELEMENTS = 10**6  # product of all sizes of an example

# Left sides -------------------------------------------------------------------------------------------------

EXAMPLES: dict[str, tuple[str, ...]] = {
    "trim_copy": (
        "Copy[a:{p} a b]",
        "Copy[a:{p} b c] ; b c",
        "Copy[a:{p} b a] ; a b",
        "Copy[a:{p} a a] ; a",
        "Copy[a:{p} b]",
    ),
    "fuse_copies": (
        "Copy[a:{p} b] Copy[b c] ; b",
        "Copy[a:{p} b c] Copy[b c d] ; b c",
        "Copy[a:{p} b] Copy[b a] ; a b",
        "Copy[a:{p} a b] Copy[c b b]",
        "Copy[a:{p} b] Copy[b] ; a b",
    ),
    "drop_copy_of_two": (
        "Copy[a:{p} b] T[b c:{q}]",
        "Copy[a:{p} b] T[a b c:{q}]",
        "Copy[a:{p} b] T[c:{q} a] ; a",
        "Copy[a:{p} b] T[c:{q} b] ; a b",
        "Copy[a:{p} b]",
        "Copy[a:{p} b] T[c:{q}] ; a b",
        "Copy[a:{p} b] Fill[a b | value={v}]",
        "Copy[x:{n} b] Conv[x y k:{k} | {window}] ; b",
    ),
    "fill_through_copy": (
        "Fill[a | value={v}] Copy[a:{p} b c] ; a",
        "Copy[a:{p} b a] Fill[a | value={v}] ; a",
        "Fill[a | value={v}] Copy[b a:{p} b] ; a b",
        "Fill[a | value={v}] Copy[a:{p} b]",
        "Fill[a | value={v}] Copy[a:{p}] ; a",
        "Fill[a c:{q} | value={v}] Copy[a:{p} b] ; a",
    ),
    "copy_of_one": ("Copy[a:{p}]", "Copy[a:{p}] T[a b:{q}] ; a", "Copy[a:{p}] ; a"),
    "drop_size_one": (
        "A[i:{p} b:1] B[b j:{q}] ; b",
        "A[b:1 i:{p} b] B[j:{q}] ; b",
        "A[i:{p} b:1] A[j c] ; b c",
        "A[i:{p} b:1] A[j c] ; b",
        "A[b:1 c] A[c d] B[d i:{p}] ; b c d",
        "Fill[b:1 k:{p} | value={v}] Copy[b c] A[c i:{q}] ; b c",
        "Copy[b:1] A[i:{p}] ; b",
        "Copy[b:1] Fill[b | value={v}] A[i:{p}] ; b",
        "Fuse[w b:1 i:{p} c:1] A[w c] ; b c",
        "Fuse[w:{p} b:1 i] A[b j:{q}] ; b",
        "Fuse[w b:1 c:1] A[w i:{p} c b] ; w b c",
        "Conv[x:{p} y b:1] A[b i:{q}] ; b",
        "Fuse[b c:1 d:1] A[b i:{p}] ; b c d",
    ),
    "window_to_fuse": (
        "Conv[x:{pq} y:{q} k:{p} | stride={p} mode={m}]",
        "Conv[x:{p} y:{p} k:1 | mode={m}]",
        "Conv[x:{p} y:1 k:{p} | stride={p} mode={m}] ; x",
        "Conv[x:{pq_more} y k:{p} | stride={p} mode={m}]",
        "Conv[x:{pq} y k:{p} | stride={p} padding={pad} mode={m}]",
        "Conv[x:{pq_more} y k:{p} | stride={p} dilation={d} mode={m}]",
        "Conv[x:{pq} y k:2 | stride={d}]",
    ),
    "unit_window": (
        "Conv[x:{p} y k:1 | dilation={d} mode={m}]",
        "Conv[x:{p} y k:1 | dilation={d} mode={m}] ; y",
        "Conv[x:{p} y k:1] A[k i:{q}] ; k",
        "Conv[x:1 y x | mode={m}]",
        "Conv[x:{p} x k:1]",
        "Conv[x:{p} y k:1 | stride={d} padding={pad} mode={m}]",
        "Conv[x:{p} y k:2]",
    ),
    "merge_fuses": (
        "Fuse[a b c:{p}] Fuse[b d:{q} e:{r}] ; b",
        "Fuse[a c:{p} b] Fuse[b d:{q} d] ; b",
        "Fuse[a b c:{p}] Fuse[b d:{q}] ; b",
        "Fuse[a b b] Fuse[b d:2 e:3] ; b",
        "Fuse[a b c:{p}] Fuse[b d:{q} e:{r}]",
        "Fuse[a:{q} b c:1] Fuse[b a d:1] A[a i:{p}] ; b",
    ),
    "cancel_fuses": (
        "Fuse[a b:{p} c:{q}] Fuse[a d:{p} e:{q}] ; a",
        "Fuse[a b:{p} b] Fuse[a d:{p} e] ; a",
        "Fuse[a b:{p} c:{q}] Fuse[a b c] ; a",
        "Fuse[a b:{p} c:{q}] Fuse[a d:{q} e:{p}] ; a",
        "Fuse[a b:{p} c:{q}] Fuse[a d] ; a",
        "Fuse[a b:{p} c:{q}] T[a] Fuse[a d:{p} e:{q}] ; a",
        "Fuse[a a b:1] Fuse[a d:{p} e:1] ; a",
    ),
    "unit_fuse": ("Fuse[a:{p} b]", "Fuse[a:{p} b] T[a c:{q}] ; a", "Fuse[a:{p} a]", "Fuse[a:{p} b] ; a b"),
    "fill_through_fuse": (
        "Fill[a | value={v}] Fuse[a b:{p} c:{q}] ; a",
        "Fill[a | value={v}] Fuse[a b:{p}] ; a",
        "Fuse[a b:{p} c:1 d:{q}] Fill[a | value={v}] ; a b",
        "Fill[a | value={v}] Fuse[a b:{p} b] ; a",
        "Fill[a | value={v}] Fuse[a a b:1] A[a:{p}] ; a",
        "Fill[a d:{r} | value={v}] Fuse[a b:{p} c:{q}] ; a",
    ),
    "split_fuse": (
        "Fuse[a b:{p} c:{q} d:{r}]",
        "Fuse[a b:{p} f:2 d:1 e:{q}]",
        "Fuse[a b:{p} b b]",
        "Fuse[a b:{p} c:{q}]",
    ),
    "merge_windows": (
        "Conv[x:{n} y k:{k} | {window}] Conv[y z h:{h} | stride={d} dilation={e}] ; y",
        "Conv[x:{n} y k:{k} | {window}] Conv[y z h:{h} | stride={d} dilation={e} padding={pad} mode={m}] ; y",
        "Conv[x:{n} y k:{k} | {window}] Conv[y z k | stride={d}] ; y",
        "Conv[x:{n} y k:{k} | {window}] Conv[y z h:{h}]",
    ),
    "contract_bond": (
        "A[i:{p} b:{q}] B[b j:{r}] ; b",
        "A[i:{p} b:{q}] A[j b] ; b",
        "A[i:{p} b:{q} b] B[b j:{r}] ; b",
        "A[i:{p} b:{q}] B[b j:{r}] C[b] ; b",
        "A[i:{p} b:{q} i] B[b i] ; b i",
        "A[b:{p} i:{q}] B[b] A[c j] ; b c",
    ),
    "absorb_fill": (
        "T[i:{p} k:{q}] Fill[k | value={v}] ; k",
        "T[i:{p} k:{q}] Fill[k i k | value={v}]",
        "T[i:{p} i] Fill[| value={v}]",
        "T[i:{p} k:{q}] T[j k] Fill[k | value={v}] ; k",
        "T[i:{p} k:{q}] Fill[k l:{r} | value={v}]",
    ),
    "fold_scalar": ("s[] T[i:{p} j:{q}]", "s[] t[]", "s[] T[i:{p} j:{q}] ; j", "s[] s[] T[i:{p}]", "s[] T[i:{p}] T[j]"),
    "sum_label": ("T[i:{p} j:{q}] ; j", "T[i:{p} j:{q} j] ; j", "T[i:{p}] ; i", "T[i:{p} j:{q}] T[k l] ; j"),
    "take_diagonal": ("T[i:{p} i j:{q}]", "T[i:{p} i i]", "T[i:{p} i j:{q}] ; i", "T[i:{p} i] T[j k]"),
}
"""Rule -> left sides, most of which it matches. Labels after ';' are closed and, as a rule, stand nowhere else."""


@st.composite
def left_sides(draw: st.DrawFn, name: str) -> tuple[Network, set[str]]:
    """A left side with random sizes and attributes, and the labels that are to stay inside."""
    text, _, inside = draw(st.sampled_from(EXAMPLES[name])).partition(";")
    words = {word for word in re.findall(r"{(\w+)}", text) if word != "window"}
    p, q, r = draw(st.permutations(SIZES))[:3]
    modes, paddings = st.sampled_from(MODES), st.sampled_from(("0", "1", "1:0", "-1:2", "0:1"))
    small = st.integers(1, 3)
    drawn = {
        "v": st.sampled_from(("1", "-2/3", "0.7", "mean")),
        "m": modes,
        "pad": paddings,
        "n": st.integers(6, 9),
        "pq_more": st.integers(p * q, p * q + p),
        **dict.fromkeys(("k", "h", "d", "e"), small),
    }
    found = {word: draw(drawn[word]) for word in sorted(words & drawn.keys())}
    if "{window}" in text:
        attributes = f"stride={draw(small)} padding={draw(paddings)} dilation={draw(small)} mode={draw(modes)}"
        found["window"] = attributes
    try:
        left = parse(text.format(p=p, q=q, r=r, pq=p * q, **found))
    except SizeError:
        assume(False)  # a window that is wider than its input
    return left, set() if draw(st.integers(0, 9)) == 9 else set(inside.split())


@st.composite
def surrounded(draw: st.DrawFn, name: str) -> Valued:
    """A left side of the rule in a random network."""
    left, inside = draw(left_sides(name))
    other = draw(networks(max_nodes=2))
    labels: dict[str, str] = {}
    for label, size in other.sizes.items():
        same = [own for own, its in left.sizes.items() if its == size and own not in inside]
        labels[label] = draw(st.sampled_from(same)) if same and draw(st.booleans()) else f"{label}_"
    nodes: list[Node] = [relabel(node, labels) for node in other.nodes]
    sizes = {labels[label]: size for label, size in other.sizes.items()} | dict(left.sizes)
    axes = {name: [left.sizes[label] for label in left.nodes[at[0]].labels] for name, at in tensor_nodes(left).items()}
    for position, node in enumerate(nodes):
        tied = [name for name, own in axes.items() if own == [sizes[label] for label in node.labels]]
        if isinstance(node, NamedTensor) and tied and draw(st.integers(0, 3)) == 3:
            nodes[position] = rename(node, {node.name: draw(st.sampled_from(tied))})
    if prod(sizes.values()) > MOST_ELEMENTS:
        nodes, sizes = [], dict(left.sizes)
    opened: list[str] = []
    for label in draw(st.permutations(sorted(sizes.keys() - inside)))[: draw(st.integers(0, len(sizes)))]:
        if prod(sizes[other] for other in (*opened, label)) <= MOST_OPEN:
            opened.append(label)
    network = Network(draw(st.permutations([*left.nodes, *nodes])), opened, sizes)
    return network, random_values(network, draw(st.integers(0, 2**32 - 1)))


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
    assert carriers(after).keys() == after.sizes.keys()  # all sizes were known, all are
    assert all(before.sizes[label] == size for label, size in after.sizes.items() if label in before.sizes)
    assert shapes(after) == {name: tuple(value.shape) for name, value in fit.values.items()}
    outside = [node for position, node in enumerate(before.nodes) if position not in place.nodes]
    assert not bare(outside) - bare(after.nodes)
    old_names, new_names = tensor_nodes(before), tensor_nodes(after)
    assert all(len(new_names[name]) == len(old_names[name]) for name in new_names.keys() & old_names.keys())


def bare(nodes: Iterable[Node]) -> Counter[tuple[object, ...]]:
    """The nodes without their labels."""
    return Counter((type(node), node.name, tuple(node.attributes.items())) for node in nodes)


def test_every_rule_has_examples_a_reason_and_a_name_of_its_own() -> None:
    assert list(EXAMPLES) == list(RULES)
    for rule in EXACT_RULES:
        assert rule.kind == "exact"
        assert "Ends" in rule.explanation
        assert str(rule) == f"{rule.name}: {rule.equation}"
    with pytest.raises(RuleError, match="two rules are called 'split_fuse'"):
        by_name([*EXACT_RULES, split_fuse])


@pytest.mark.parametrize("name", RULES)
def test_rules_keep_the_value_of_the_examples_of_one(name: str) -> None:
    """The rule fires often enough on its own examples, and every other rule is let loose on them too."""
    fired: Counter[str] = Counter()

    @given(surrounded(name))
    def battery(example: Valued) -> None:
        fired.update(check(EXACT_RULES, *example))

    battery()
    assert fired[name] >= 50


@given(valued_networks(), st.randoms(use_true_random=False))
def test_rules_keep_the_value_of_random_networks(example: Valued, random: Random) -> None:
    """Every rule at every place of a network made for none of them, and of what one of them leaves of it."""
    check(EXACT_RULES, *example)
    places = [(rule, place) for rule in EXACT_RULES for place in rule.places(example[0])]
    if places:
        rule, place = random.choice(places)
        fit = rule.apply(*example, at=place)
        check(EXACT_RULES, fit.network, fit.values)


@given(valued_networks())
def test_rules_that_fire_without_sizes_are_right_for_every_size(example: Valued) -> None:
    network, values = example
    start, tensors = bind_values(Network(network.nodes, network.output), values)
    old, scale = evaluate(network, values), magnitude(network, values)
    for rule in EXACT_RULES:
        for place in rule.places(start):
            fit = rule.apply(start, tensors, at=place)
            sizes = {label: network.sizes[label] for label in carriers(fit.network) if label in network.sizes}
            after = Network(fit.network.nodes, fit.network.output, sizes)
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


def as_fuse(network: Network, position: int, node: Conv) -> tuple[Place, Edit]:
    return Place((position,)), Edit(remove=(position,), add=[Fuse(node.x, (node.y, node.k))])


@exact("without a look at the padding")
def padded_window_to_fuse(network: Network) -> Iterator[tuple[Place, Edit]]:
    for position, node in of_type(network, Conv).items():
        x, y, k = (network.sizes[label] for label in node.labels)
        if node.stride == k and x == k * y:
            yield as_fuse(network, position, node)


@exact("with a remainder of x")
def inexact_window_to_fuse(network: Network) -> Iterator[tuple[Place, Edit]]:
    for position, node in of_type(network, Conv).items():
        if (node.low, node.high, node.dilation, node.stride) == (0, 0, 1, network.sizes[node.k]):
            yield as_fuse(network, position, node)


def copies_of_two(network: Network) -> Iterator[tuple[int, tuple[str, ...], bool]]:
    """Position, labels and whether both are open, of each copy of two labels beside which another node stands."""
    for position, node in of_type(network, Copy).items():
        if len(node.labels) == len(set(node.labels)) == 2 and len(network.nodes) > 1:
            yield position, node.labels, set(node.labels) <= set(network.output)


@exact("also where nothing else carries the labels")
def drop_lone_copy(network: Network) -> Iterator[tuple[Place, Edit]]:
    for position, (a, b), both_open in copies_of_two(network):
        others = (node for place, node in enumerate(network.nodes) if place != position)
        carried = any({a, b} & set(node.labels) for node in others)
        if not both_open and a not in network.output and (carried or b not in network.output):
            yield Place((position,)), Edit(remove=(position,), labels={a: b})


@exact("also where both labels are open")
def drop_open_copy(network: Network) -> Iterator[tuple[Place, Edit]]:
    for position, (a, b), both_open in copies_of_two(network):
        if both_open:
            yield Place((position,)), Edit(remove=(position,), labels={a: b})


@exact("of any size")
def drop_any_size(network: Network) -> Iterator[tuple[Place, Edit]]:
    """The product of the sums over a bond stands for the sum of the products."""
    for label, standing in carriers(network).items():
        nodes = [network.nodes[position] for position, _ in standing]
        if label in network.output or len(nodes) != 2 or not all(isinstance(node, NamedTensor) for node in nodes):
            continue
        if nodes[0].name != nodes[1].name:
            shorter: dict[int, Node] = {}
            definitions = {}
            for number, (position, axis) in enumerate(standing):
                rest = (*nodes[number].labels[:axis], *nodes[number].labels[axis + 1 :])
                shorter[position] = NamedTensor(f"new{number}", rest)
                axes = tuple(f"axis{place}" for place in range(len(rest) + 1))
                whole = NamedTensor(nodes[number].name, axes)
                definitions[f"new{number}"] = Network([whole], [word for word in axes if word != f"axis{axis}"])
            yield Place(tuple(shorter)), Edit(remove=(), replace=shorter, definitions=definitions)


def cancelled(network: Network, i: int, j: int) -> tuple[Place, Edit]:
    pairs = zip(network.nodes[i].labels[1:], network.nodes[j].labels[1:], strict=True)
    return Place((i, j)), Edit(remove=(i, j), add=[Copy(pair) for pair in pairs])


@exact("whatever else the whole stands on")
def cancel_shared_fuses(network: Network) -> Iterator[tuple[Place, Edit]]:
    for (i, a), (j, b) in product(of_type(network, Fuse).items(), repeat=2):
        sizes = [[network.sizes[part] for part in node.parts] for node in (a, b)]
        if i < j and a.whole == b.whole and a.whole not in network.output and sizes[0] == sizes[1]:
            yield cancelled(network, i, j)


@exact("of parts of any sizes")
def cancel_unequal_fuses(network: Network) -> Iterator[tuple[Place, Edit]]:
    for (i, a), (j, b) in product(of_type(network, Fuse).items(), repeat=2):
        inside = a.whole in dead_outside(network, (i, j)) and a.whole not in a.parts + b.parts
        if i < j and a.whole == b.whole and len(a.parts) == len(b.parts) and inside:
            yield cancelled(network, i, j)


@exact("one occurrence of a tied tensor alone")
def sum_tied_label(network: Network) -> Iterator[tuple[Place, Edit]]:
    for position, node in of_type(network, NamedTensor).items():
        rest = tuple(label for label in node.labels if label not in dead_outside(network, (position,)))
        if rest != node.labels and len(rest) == len(set(rest)):
            new = NamedTensor("new", rest)
            edit = Edit(remove=(position,), add=[new], definitions={"new": Network([node], rest)})
            yield Place((position,)), edit


BROKEN: list[tuple[Rule, str, type[Exception]]] = [
    (unguarded_windows, "merge_windows", AssertionError),
    (padded_window_to_fuse, "window_to_fuse", AssertionError),
    (inexact_window_to_fuse, "window_to_fuse", SizeError),
    (drop_lone_copy, "drop_copy_of_two", AssertionError),
    (drop_open_copy, "drop_copy_of_two", NetworkError),
    (drop_any_size, "contract_bond", AssertionError),
    (cancel_shared_fuses, "cancel_fuses", AssertionError),
    (cancel_unequal_fuses, "cancel_fuses", SizeError),
    (sum_tied_label, "sum_label", AssertionError),
]


@pytest.mark.parametrize(("rule", "name", "error"), BROKEN, ids=[rule.name for rule, _, _ in BROKEN])
def test_the_battery_catches_a_broken_rule(rule: Rule, name: str, error: type[Exception]) -> None:
    @settings(phases=[Phase.generate], report_multiple_bugs=False)
    @given(surrounded(name))
    def battery(example: Valued) -> None:
        check([rule], *example)

    with pytest.raises(error):
        battery()


# Simplifying ------------------------------------------------------------------------------------------------


def measure(network: Network) -> tuple[int, int, int, int]:
    """Windows, fuses, labels on copies, labels in all."""
    copies = sum(len(node.labels) for node in of_type(network, Copy).values())
    labels = sum(len(node.labels) for node in network.nodes)
    return len(of_type(network, Conv)), len(of_type(network, Fuse)), copies, labels


def check_simplified(network: Network, values: dict[str, Tensor], fit: Fit) -> None:
    assert not any(rule.places(fit.network) for rule in SIMPLIFY)
    assert all(measure(step.after) < measure(step.before) for step in fit.trace.steps)
    assert fit.network.output == network.output
    change = (evaluate(fit.network, fit.values) - evaluate(network, values)).abs()
    assert (change <= TOLERANCE * magnitude(network, values)).all()


@given(
    st.one_of(
        valued_networks(), valued_networks(kinds=("Copy", "Fuse", "Conv")), *(surrounded(r.name) for r in SIMPLIFY)
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


def two_windows(p2: str) -> Iterator[Network]:
    """All pairs of small windows that fit their input, all labels but the one between them open."""
    for s1, d1, p1, s2, d2, k1, k2, x in product(
        (1, 2, 3), (1, 2, 3), ("0", "1", "2:0"), (1, 2), (1, 2), (2, 3), (1, 2), (7, 8)
    ):
        first = f"Conv[x:{x} y k1:{k1} | stride={s1} dilation={d1} padding={p1}]"
        second = f"Conv[y z k2:{k2} | stride={s2} dilation={d2} padding={p2}]"
        with suppress(SizeError):  # the window is wider than its input
            yield parse(f"{first} {second} -> [x z k1 k2]")


def is_exact(network: Network, after: Network) -> bool:
    """Every element is a sum of products of 0 and 1: no rounding."""
    return after.sizes["z"] == network.sizes["z"] and torch.equal(evaluate(after), evaluate(network))


def test_merged_windows_are_right_for_every_stride_dilation_and_size() -> None:
    cases = list(two_windows("0"))
    assert len(cases) > 600
    for network in cases:
        assert len(merge_windows.places(network)) == 1
        edit = merged_windows(network, 0, 1)
        assert is_exact(network, edited(network, edit))
        assert edit.add[0] == replace(merged_with_padding(network, 0, 1).add[0], k="k")


@pytest.mark.parametrize("padding", ["1", "1:0", "0:1"])
def test_merged_windows_are_wrong_where_the_second_is_padded(padding: str) -> None:
    cases = list(two_windows(padding))[::3]
    wrong = 0
    for network in cases:
        assert not merge_windows.places(network)
        wrong += not is_exact(network, edited(network, merged_with_padding(network, 0, 1)))
    assert wrong > len(cases) / 3


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
