"""Left sides of every exact rule, drawn into random networks: what a rule supplies to receive every law as a test.

Near misses, where a rule must not fire, are among them. In the network around a left side some of its labels also stand
on other tensors, copies, windows; some are open, some summed; tensors are tied.
"""

from __future__ import annotations

import re
from math import prod
from typing import TypeAlias

from hypothesis import assume
from hypothesis import strategies as st
from torch import Tensor

from tests.strategies import SIZES, networks, random_values
from tnalgebra.errors import SizeError
from tnalgebra.networks import MODES, NamedTensor, Network, Node, parse, relabel, rename, tensor_nodes

Valued: TypeAlias = tuple[Network, dict[str, Tensor]]

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
    "drop_zero_term": (
        "A[i:{p}] + B[i] Fill[| value=0]",
        "A[i:{p}] Fill[i | value=0] + B[i] Fill[| value=0] -> [i]",
        "A[i:{p}] Fill[j:{q} | value=0] + A[i] + A[i] -> [i]",
        "A[i:{p}] Fill[| value={v}] + B[i]",
    ),
    "add_cores": (
        "A[i:{p} b:{q}] B[b j:{r}] + A[i c] C[c j]",
        "A[i:{p}] + B[i] + C[i]",
        "A[i:{p} j:{p}] + A[j i]",
        "A[i:{p} b:{q}] B[b] + A[i b] A[i b] -> [i]",
        "X[n:{p} x:9] Conv[x y k:3] A[k] + X[n x] Conv[x y k] B[k]",
        "A[i:{p} b:{q}] B[b j:{r}] + A[i c] C[c j] + B[b j] D[b i]",
        "A[i:{p}] Fill[j:{q} | value={v}] + A[i] B[j]",
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
    "merge_circular_windows": (
        "Conv[x:{n} y k:3 | padding=1 mode=circular] Conv[y z h:{h} | padding={pad} mode=circular] ; y",
        "Conv[x:{n} y k:2 | padding=0:2 dilation=2 mode=circular] Conv[y z h:{h} | stride={d} mode=circular] ; y",
        "Conv[x:{n} y k:2 | padding=1:0 mode=circular] Conv[y z h:2 | padding=2:{d} mode=circular] ; y",
        "Conv[x:{n} y k:3 | padding=1 mode=circular] Conv[y z h:{h} | padding={pad} mode={m}] ; y",
        "Conv[x:{n} y k:2 | padding=1 mode=circular] Conv[y z h:{h} | padding={pad} mode=circular] ; y",
        "Conv[x:{n} y k:3 | padding=1 mode=circular] Conv[y z h:2 | padding=1:0 mode=circular]",
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
    "collect_terms": (
        "A[i:{p} b:{q}] B[b j:{r}] + A[i b] C[b d:2] D[d j]",
        "A[i:{p} b:{q}] B[b] + A[i b] Copy[b c] C[c] -> [i]",
        "A[i:{p} b:{q}] B[b] + A[i b] -> [i]",
        "A[i:{p} b:{q}] A[i b] + A[i b] C[i] -> [i]",
        "A[i:{p}] + B[i]",
    ),
    "join_terms": (
        "U[o:{p} a:2] V[a i:{q}] + P[o b:3] Q[b i]",
        "A[o:{p} r:2] B[i:{q} r] C[k:3 r] + D[o s:4] E[i s] F[k s]",
        "A[z:2 o:{p} y:3] B[y i:{q} z] + C[w:4 o v:2] D[v i w]",
        "Fuse[o:6 o1:2 o2:3] A[o1 a:2] B[a o2] + Fuse[o o3:2 o4:3] C[o3 b:4] D[b o4]",
        "U[o:{p} a:2] U[i:{p} a] + P[o b:3] P[i b]",
        "U[o:{p} a:2] V[a i:{q}] + U[o b] Q[b i]",
        "U[o:{p}] V[i:{q}] + P[o] Q[i]",
        "U[o:{p} a:2] V[a i:{q}] + P[o b:3] Q[b i] + U[o a] R[a i]",
        "U[o:{p} x:5] Conv[x y:4 k:2] V[y k] + P[o x:5] Conv[x y k:2] Q[y k] -> [o]",
    ),
    "share_window": (
        "X[x:{n}] Conv[x y k:{k} | padding=1 dilation={d}] A[k] + X[x] Conv[x y l:1 | padding=-1] B[l] -> [y]",
        "X[x:9] Conv[x y k:3 | padding=1] A[k] + X[x] Conv[x y l:5 | padding=2] B[l]",
        "X[x:9] Conv[x y k:3 | padding=2 dilation=2] A[k] + X[x] Conv[x y l:5 | padding=4 dilation=2] B[l]",
        "X[x:9] Conv[x y k:3 | padding=1 stride=2] A[k] + X[x] Conv[x y l:5 | padding=2 stride=2] B[l]",
        "X[x:9] Conv[x y k:3 | padding=1] A[k] + X[y] B[]",
        "X[x:9] Conv[x y:9 k:3 | padding=1 mode=circular] A[k] + X[x] Conv[x y l:1] B[l]",
        "X[x:9] Conv[x y k:3 | padding=1 mode={m}] A[k] + X[x] Conv[x y l:5 | padding=3:1 mode={m}] B[l]",
    ),
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
        left = parse(text.strip().format(p=p, q=q, r=r, pq=p * q, **found))
    except SizeError:
        assume(False)  # a window that is wider than its input
    return left, set() if draw(st.integers(0, 9)) == 9 else set(inside.split())


@st.composite
def surrounded(draw: st.DrawFn, name: str) -> Valued:
    """A left side of the rule in a random network."""
    left, inside = draw(left_sides(name))
    if len(left.terms) > 1:
        return left, random_values(left, draw(st.integers(0, 2**32 - 1)))
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
