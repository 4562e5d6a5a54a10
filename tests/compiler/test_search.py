"""The search for an order against all orders, and what plans come out as calls of torch."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from itertools import combinations
from math import inf, prod
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from opt_einsum import contract_path, get_symbol
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import tnalgebra as tn
from tests.compiler_cases import calls, candidate_value, check, compiled
from tests.strategies import networks, random_values
from tests.stuck import not_stuck
from tnalgebra.compiler.computation import Computation, sort_nodes, variants
from tnalgebra.compiler.cost import CostModel, Workload
from tnalgebra.compiler.greedy import greedy_search
from tnalgebra.compiler.search import EXACT, cheapest_trees, exact_search, improved
from tnalgebra.compiler.steps import Steps
from tnalgebra.compiler.trees import ContractionTree
from tnalgebra.networks.network import Network
from tnalgebra.networks.nodes import Conv, Fuse
from tnalgebra.networks.notation import parse
from tnalgebra.nn.torch_layers import layer_network


class Counts(CostModel):
    """Prices without a machine: the multiply-adds of contractions, the elements that every other step writes."""

    def __init__(self) -> None:
        pass

    def seconds(self, work: Workload, *, weights: bool) -> float:
        return work.multiply_adds or work.written


def steps_of(computation: Computation) -> Steps:
    return Steps(computation, Counts(), dense=True, unfold=True, most=10**12)


def exact(steps: Steps, *, patterns: bool = False) -> list[ContractionTree]:
    return exact_search(steps, steps.leaves(patterns=patterns), steps.everything, keep=1)


# All orders, slowly ---------------------------------------------------------------------------------------------

Group = frozenset[int]


class AllOrders:
    """The cheapest of all orders of a computation, by trying them. Nodes have numbers: tensors first, then views."""

    def __init__(self, computation: Computation) -> None:
        self.computation = computation
        self.nodes = [*computation.leaves, *computation.views]
        self.labels = [frozenset(node.labels) for node in self.nodes]
        self.everything = frozenset(range(len(self.nodes)))
        tensors = frozenset(frozenset([n]) for n in range(len(computation.leaves)))
        self.known: dict[tuple[frozenset[Group], Group], float] = {}
        self.best = self.cheapest(tensors, self.everything - frozenset(range(len(computation.leaves))))

    def size(self, labels: frozenset[str]) -> int:
        return prod(self.computation.sizes[label] for label in labels)

    def on(self, group: Group) -> frozenset[str]:
        return frozenset(label for node in group for label in self.labels[node])

    def live(self, group: Group) -> frozenset[str]:
        return self.on(group) & (self.on(self.everything - group) | {*self.computation.output})

    def cheapest(self, items: frozenset[Group], free: Group) -> float:
        """The price from here on, with these intermediates and the views that no step has absorbed."""
        if len(items) == 1 and not free:
            return 0.0
        if (items, free) not in self.known:
            self.known[items, free] = min(
                (
                    price + self.cheapest(items - taken | {made}, free - made)
                    for price, taken, made in self.steps(items, free)
                ),
                default=inf,
            )
        return self.known[items, free]

    def steps(self, items: frozenset[Group], free: Group) -> Iterator[tuple[float, frozenset[Group], Group]]:
        """Price, the intermediates a step takes, the one it makes."""
        for one in items:
            for count in (1, 2, 3):
                for views in combinations(sorted(free), count):
                    price = self.view(one, views)
                    if price is not None:
                        yield price, frozenset([one]), one | {*views}
            for other in items - {one}:
                for count in range(4):
                    for windows in combinations(sorted(free), count):
                        for transposed in (False, True)[: 1 + bool(windows)]:
                            price = self.join(one, other, windows, transposed)
                            if price is not None:
                                yield price, frozenset([one, other]), one | other | {*windows}

    def view(self, one: Group, views: tuple[int, ...]) -> float | None:
        """One window or reshape; or two or three sums over windows at once."""
        before, after, alone = self.live(one), self.live(one | {*views}), len(views) == 1
        for number in views:
            node = self.nodes[number]
            whole, parts = node.labels[0], {*node.labels[1:]}
            leaves = whole in before and whole not in after and not parts & before
            if isinstance(node, Conv):
                kernel = node.k in before and node.k not in after and not {node.x, node.y} & before
                toeplitz = alone and kernel and {node.x, node.y} <= after and (node.mode == "zeros" or not folds(node))
                fits = toeplitz or (
                    leaves and (alone or node.k not in self.on(self.everything - {number}) | {*self.computation.output})
                )
            else:
                fits = alone and (leaves or (parts <= before and not parts & after and whole not in before))
            if not fits:
                return None
        if not self.are_apart(views):
            return None
        return 0.0 if isinstance(self.nodes[views[0]], Fuse) else float(self.size(after))

    def are_apart(self, numbers: tuple[int, ...]) -> bool:
        return not any(self.labels[a] & self.labels[b] for a, b in combinations(numbers, 2))

    def join(self, one: Group, other: Group, windows: tuple[int, ...], transposed: bool) -> float | None:
        left, right = self.live(one), self.live(other)
        whole = one | other | {*windows}
        after = self.live(whole)
        sources, results = set(), set()
        for number in windows:
            node = self.nodes[number]
            if not isinstance(node, Conv):
                return None
            x, y, k = (node.y, node.x, node.k) if transposed else (node.x, node.y, node.k)
            carried = any(y in self.labels[n] for n in whole - {number})
            if x not in left or x in right or x in after or k not in right or k in left or k in after or carried:
                return None
            if transposed and node.mode != "zeros":
                return None
            sources, results = sources | {x}, results | {y}
        if not self.are_apart(windows):
            return None
        shared = left & right
        if windows:
            positions = sources if transposed else results
            return float(self.size((left | right) - sources | positions))
        if not shared and not self.may_multiply(one, other):
            return None
        return float(self.size(left | right)) if shared - after else float(self.size(after))

    def may_multiply(self, one: Group, other: Group) -> bool:
        """Tensors without a common label: one is alone in the network, or a reshape will join their labels."""
        alone = any(self.on(group).isdisjoint(self.on(self.everything - group)) for group in (one, other))
        joined = any(
            isinstance(self.nodes[n], Fuse) and self.labels[n] & self.live(one) and self.labels[n] & self.live(other)
            for n in self.everything - one - other
        )
        return alone or joined


def folds(node: Conv) -> bool:
    return any(isinstance(end, int) and end > 0 for end in (node.low, node.high))


@settings(max_examples=settings().max_examples // 2)
@given(networks(max_nodes=5))
def test_the_exact_search_finds_the_cheapest_of_all_orders(network: Network) -> None:
    for computation in (sort_nodes(one, []) for one in variants(network)):
        if computation.leaves:
            trees = exact(steps_of(computation))
            assert (trees[0].seconds if trees else inf) == AllOrders(computation).best


@pytest.mark.parametrize(
    "text",
    [
        "A[a:2 b:7] B[b c:3] C[c d:5] D[d e:2] E[e f:11] F[f g:3]",
        "X[n:2 i:3 x:9] Conv[x y k] Conv[y z l] K[o:4 i k:3] L[p:5 o l:2] -> [n p z]",
        "X[n:2 i:5 x:7 z:6] Conv[x u k] Conv[z v l] A[o:4 r:2] B[i r] C[k:3 r] D[l:2 r] -> [n o u v]",
        "X[n:2 f:6] Fuse[f a:2 b:3] A[a p:2 c:4] B[b p d:5] Fuse[g c d] -> [n g]",
    ],
)
def test_the_exact_search_finds_the_cheapest_order_of(text: str) -> None:
    computation = sort_nodes(parse(text), [])
    assert exact(steps_of(computation))[0].seconds == AllOrders(computation).best


@settings(max_examples=settings().max_examples // 2)
@given(networks(min_nodes=3, max_nodes=7))
def test_orders_beyond_the_exact_search_are_never_better_than_it(network: Network) -> None:
    steps = steps_of(sort_nodes(network, []))
    greedy = greedy_search(steps, steps.leaves(patterns=True))
    if greedy is not None:
        better = improved(steps, greedy)
        check_prices(steps, better)
        assert exact(steps, patterns=True)[0].seconds <= better.seconds <= greedy.seconds


def check_prices(steps: Steps, tree: ContractionTree) -> None:
    """The price of a tree is that of its steps, and its parts are what it is made of."""
    if not tree.parts:
        return
    views = sum(1 << number for number in tree.views)
    assert tree.mask == sum(part.mask for part in tree.parts) + views
    if tree.step == "join":
        one, other = (part.mask for part in tree.parts)
        sets = [windows for windows in steps.absorbable(tree.mask, views) if windows.mask == views]
        (windows,) = (one for one in sets if one.transposed == tree.transposed)
        price = steps.join_price(one, other, windows)
    else:
        price = steps.view_price(tree.parts[0].mask, tree.views)
    assert price is not None
    assert tree.seconds == pytest.approx(price + sum(part.seconds for part in tree.parts))
    for part in tree.parts:
        check_prices(steps, part)


def test_a_train_of_27_cores() -> None:
    """More labels than letters; an input of half as many axes as the train has cores, on the first of them."""
    bonds = ["", *(f"b{number}:3" for number in range(1, 27)), ""]
    cores = " ".join(f"A{n}[{bonds[n]} x{n}:{1 + n % 2} {bonds[n + 1]}]" for n in range(27))
    axes = [f"x{number}" for number in range(27)]
    module = check(f"X[n:3 {' '.join(axes[:13])}] {cores} -> [n {' '.join(axes[13:])}]", "X")
    # the cheapest way multiplies the input by one core after the other: at most 3*128*2*3*3 each
    assert module.plan.multiply_adds <= 27 * 3 * 128 * 2 * 9


@pytest.mark.parametrize("nodes", [16, 30])
@pytest.mark.parametrize("bonds", [0, 4])
def test_orders_of_many_nodes_are_near_those_of_opt_einsum(nodes: int, bonds: int) -> None:
    """Trees, and trees with more bonds; the exact search of opt_einsum finds the fewest multiply-adds."""
    generator = random.Random(nodes + bonds)
    ends: list[list[str]] = [[] for _ in range(nodes)]
    pairs = [(node, generator.randrange(node)) for node in range(1, nodes)]
    pairs += [tuple(generator.sample(range(nodes), 2)) for _ in range(bonds)]
    for number, pair in enumerate(pairs):
        for node in pair:
            ends[node].append(f"e{number}:{2 + number % 3}")
    network = parse(" ".join(f"T{node}[{' '.join(labels)}]" for node, labels in enumerate(ends)))
    labels = [[get_symbol(list(network.sizes).index(label)) for label in node.labels] for node in network.nodes]
    shapes = [tuple(network.sizes[label] for label in node.labels) for node in network.nodes]
    path, _ = contract_path(",".join(map("".join, labels)) + "->", *shapes, shapes=True, optimize="dp")
    rest, fewest = [set(node.labels) for node in network.nodes], 0
    for one, other in map(sorted, path):
        joined = rest.pop(other) | rest.pop(one)
        fewest += prod(network.sizes[label] for label in joined)
        rest.append(joined & set().union(*rest))
    (tree,) = cheapest_trees(steps_of(sort_nodes(network, [])), keep=1)
    assert tree.seconds <= 1.5 * fewest


def test_a_chain_of_300_matrices() -> None:
    chain = parse("X[n:3 b0] " + " ".join(f"A{n}[b{n}:{2 + n % 3} b{n + 1}]" for n in range(300)) + " Y[b300:2] -> [n]")
    steps = steps_of(sort_nodes(chain, ["X"]))
    with not_stuck():
        (tree,) = cheapest_trees(steps, keep=1)
    check_prices(steps, tree)
    vectors_first = sum((2 + n % 3) * (2 + (n + 1) % 3 if n < 299 else 2) for n in range(300))
    assert tree.seconds <= 2 * 3 * vectors_first


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_twenty_nodes_at_random(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    ends: list[list[str]] = [[] for _ in range(20)]
    sizes: dict[str, int] = {}
    for number in range(1, 20):  # a tree, and five more bonds
        ends[int(torch.randint(number, (), generator=generator))].append(f"t{number}")
        ends[number].append(f"t{number}")
        sizes[f"t{number}"] = 2 + number % 2
    for number in range(5):
        for node in torch.randperm(20, generator=generator)[:2].tolist():
            ends[node].append(f"l{number}")
        sizes[f"l{number}"] = 2
    ends[0].append("n")
    text = " ".join(f"T{number}[{' '.join(labels)}]" for number, labels in enumerate(ends))
    network = parse(f"{text} -> [n]")
    check(Network(network.nodes, network.output, {**sizes, "n": 3}), "T0")


def test_the_exact_search_has_a_bounded_number_of_states() -> None:
    cores = " ".join(f"A{i}[b{i}:2 x{i}:2 b{i + 1}:2]" for i in range(EXACT))
    steps = steps_of(sort_nodes(parse(cores), []))
    assert cheapest_trees(steps, keep=4)
    assert len(steps._live) <= 2**EXACT
    beyond = steps_of(sort_nodes(parse(f"{cores} B[b{EXACT} y:3]"), []))
    assert len(steps.node_labels) == EXACT < len(beyond.node_labels)
    assert len(cheapest_trees(beyond, keep=4)) == 1


# Calls ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("layer", "shape", "expected"),
    [
        (nn.Conv1d(64, 64, 3, padding=1, bias=False), (16, 64, 32), "conv1d"),
        (nn.Conv2d(32, 64, 3, padding=1, stride=(2, 1), bias=False), (16, 32, 32, 32), "conv2d"),
        (nn.Conv2d(64, 64, 3, padding="same", dilation=2, bias=False), (16, 64, 32, 32), "conv2d"),
        (nn.Conv3d(16, 16, 3, padding=1, bias=False), (4, 16, 8, 16, 16), "conv3d"),
        (nn.Conv2d(64, 64, 3, padding=1, groups=4, bias=False), (16, 64, 32, 32), "conv2d"),
        (nn.Conv2d(64, 64, 3, padding=1, groups=64, bias=False), (16, 64, 32, 32), "conv2d"),
        (nn.Conv2d(64, 64, 3, padding=1, padding_mode="reflect", bias=False), (16, 64, 32, 32), "pad conv2d"),
        *(
            (
                nn.ConvTranspose2d(64, 32, 3, stride=2, padding=1, bias=False, **more),
                (16, 64, 16, 16),
                "conv_transpose2d",
            )
            for more in ({"output_padding": 1}, {"groups": 4})
        ),
        (nn.Linear(512, 256, bias=False), (128, 512), "linear"),
        (nn.AvgPool1d(3, stride=2, padding=1), (16, 64, 64), "avg_pool1d"),
        (nn.AvgPool2d((2, 3)), (16, 64, 32, 32), "avg_pool2d"),
        (nn.AvgPool3d(2), (16, 8, 8, 8, 8), "avg_pool3d"),
    ],
    ids=str,
)
def test_a_layer_as_it_is_compiles_to_one_call(layer: nn.Module, shape: tuple[int, ...], expected: str) -> None:
    """Apart from padding by reflection, which convolutions of torch cannot do."""
    network, values, _ = layer_network(layer)
    module = tn.compile(network, inputs={"X": shape}, values=values)
    x = torch.randn(shape)
    torch.testing.assert_close(module(x), layer(x), rtol=1e-3, atol=1e-4)  # float32
    assert {name: count for name, count in calls(module).items() if name != "reshape"} == dict.fromkeys(
        expected.split(), 1
    )


PATCHES = "X[n:16 in:64 x:32 y:32] Conv[x u kh|padding=1] Conv[y v kw|padding=1] "


@pytest.mark.parametrize(
    ("kernel", "convolutions", "products"),
    [
        ("U[out:64 a:16] G[a b:16 kh:3 kw:3] V[b in]", 1, 2),
        ("A[out:64 r:32] B[in r] C[kh:3 r] D[kw:3 r]", 1, 2),
        ("D[in kh:3 kw:3] P[out:64 in]", 1, 1),
    ],
    ids=["tucker2", "cp", "depthwise separable"],
)
def test_a_decomposed_kernel_compiles_to_its_steps(kernel: str, convolutions: int, products: int) -> None:
    """Convolutions with windows, and contractions of channels, which are products or convolutions of one element."""
    network = parse(f"{PATCHES}{kernel} -> [n out u v]")
    values = {name: value.float() for name, value in random_values(network, 0).items() if name != "X"}
    module = tn.compile(network, inputs={"X": (16, 64, 32, 32)}, values=values, candidates="factored")
    steps = [step.text for step in module.plan.steps if step.multiply_adds and not step.weights]
    windows = [text for text in steps if "convolution of" in text and "1x1" not in text]
    assert (len(windows), len(steps) - len(windows)) in ((convolutions, products), (convolutions + 1, products))


@pytest.mark.parametrize(
    "text",
    [
        "X[n:4 i:6 x:9 y:8] Conv[x u k|stride=2 padding=1] Conv[y v l|padding=1] K[o:5 i k:3 l:3] -> [n o u v]",
        f"{PATCHES.replace('16', '2').replace('32', '8')}U[out:64 a:16] G[a b:16 kh:3 kw:3] V[b in] -> [n out u v]",
        "X[n:4 i:6 x:9] Conv[x u k] A[o:5 r:3] B[i r] C[k:3 r] -> [n o u]",
        "X[n:4 i:6 y:5 z:4] Conv[x y k|stride=2] Conv[w z l|stride=3] K[i o:5 k:3 l:2] -> [n o x w]",
        "X[n:4 g:2 i:3 x:9] Conv[x u k] K[g o:5 i k:3] -> [n g o u]",
        "X[n:4 i:6] A[i j:7] B[j k:3] C[k l:5] -> [n l]",
        "Q[n:2 h:3 s:4 d:5] K[n h t:6 d] V[n h t e:2] -> [n h s e]",
    ],
)
def test_counts_are_those_of_torch(text: str) -> None:
    network = parse(text)
    values = random_values(network, 0)
    inputs = [name for name in values if name in ("X", "Q")]
    module = compiled(network, values, inputs)

    def flops(function: Callable[..., object], *arguments: Any) -> int:
        with FlopCounterMode(display=False) as counter:
            function(*arguments)
        return counter.get_total_flops()

    for change in (module.thaw, module.freeze):
        assert flops(change(), *(values[name] for name in inputs)) == 2 * module.plan.multiply_adds
    for candidate in module.thaw().plan.candidates:
        assert flops(candidate_value, candidate, values) == 2 * candidate.multiply_adds
