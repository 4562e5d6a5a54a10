"""To quimb and back: the same value there, the same network back, and a refusal wherever that cannot be."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import quimb.tensor as qtn
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from tests.refusals import refused
from tests.strategies import random_values, valued_networks
from tnalgebra.errors import NetworkError, SizeError, ValuesError
from tnalgebra.networks import RESERVED, Network, parse, tensor_nodes, tensors_of
from tnalgebra.tensors import evaluate, from_quimb, magnitude, to_quimb

Operation = Callable[[Any], object]

TREE = "A[out:6 p:9] B[p in:4 q:7] C[q kh:3 s:5] D[s kw:2] -> [kw in out kh]"
PARALLEL = "A[out:6 p:3 q:4] B[p q i:5] C[i kw:2 z:1] D[z kh:3]"
CP = "A[out:6 r:4] B[in:5 r] C[kh:3 r s:9] D[s kw:2] -> [out in kh kw]"
OPEN_HYPEREDGE = "D[in:4 kh:3 s:8] E[s kw:2] P[out:5 in] -> [out in kh kw]"
WINDOW = "X[x:9 c:4] Conv[x y k:3|stride=2] K[k out:2 r:8] V[r c] Fill[f:3|value=mean] W[f g:5] -> [g y out]"
TIED = "A[a:3 b:3] A[b c:3] B[c d:9] C[d e:2]"


def there(text: str) -> tuple[Network, dict[str, Tensor], Any]:
    network = parse(text)
    values = random_values(network, 0)
    return network, values, to_quimb(network, values)


def quimb_value(tn: Any, output: tuple[str, ...]) -> Tensor:
    value = tn.contract(output_inds=output)
    return torch.as_tensor(value.data if isinstance(value, qtn.Tensor) else value)


def assert_close(one: Tensor, two: Tensor, scale: Tensor) -> None:
    """To 1e-12 of the largest magnitude: canonizing mixes all elements of a tensor."""
    assert one.shape == two.shape
    assert ((one - two).abs() <= 1e-12 * scale.max()).all()


# Laws -------------------------------------------------------------------------------------------------------


@given(valued_networks())
def test_round_trip(example: tuple[Network, dict[str, Tensor]]) -> None:
    network, values = example
    tn = to_quimb(network, values)
    assert all(len(tids) <= 2 for tids in tn.ind_map.values())
    assert tn.outer_inds() == network.output
    assert all(isinstance(tensor.data, Tensor) and tensor.data.dtype == torch.float64 for tensor in tn.tensors)

    back, back_values = from_quimb(tn, like=network)
    assert back == network
    assert list(back_values) == list(tensor_nodes(network))
    assert all(torch.equal(back_values[name], values[name]) for name in values)


@given(valued_networks())
def test_quimb_contracts_to_the_same_value(example: tuple[Network, dict[str, Tensor]]) -> None:
    network, values = example
    tn = to_quimb(network, values)
    expected, scale = evaluate(network, values), magnitude(network, values)
    value = quimb_value(tn, network.output)
    assert value.shape == expected.shape
    assert ((value - expected).abs() <= 1e-12 * scale).all()

    foreign, foreign_values = from_quimb(tn)
    assert foreign.output == network.output
    assert ((evaluate(foreign, foreign_values) - expected).abs() <= 1e-12 * scale).all()


@given(valued_networks(), st.data())
def test_compressing_any_bond_comes_back_with_the_value_or_is_refused(
    example: tuple[Network, dict[str, Tensor]], data: st.DataObject
) -> None:
    network, values = example
    tn = to_quimb(network, values)
    bonds = [tids for ind, tids in tn.ind_map.items() if len(tids) == 2]
    if bonds:
        one, two = data.draw(st.sampled_from(bonds))
        operation = data.draw(st.sampled_from(["compress", "canonize"]))
        if operation == "compress":
            tn._compress_between_tids(one, two, cutoff=1e-14)
        else:
            tn._canonize_between_tids(one, two)
    try:
        back, back_values = from_quimb(tn, like=network)
    except NetworkError:
        touched = {tag for tid in (one, two) for tag in tn.tensor_map[tid].tags}
        ties = {name for name, places in tensor_nodes(network).items() if len(places) > 1}
        assert touched & {*RESERVED, *ties} or "hyperedge" in str(touched)
    else:
        assert (back.nodes, back.output) == (network.nodes, network.output)
        assert_close(evaluate(back, back_values), evaluate(network, values), magnitude(network, values))


# Operations of quimb ----------------------------------------------------------------------------------------

KEPT: list[tuple[str, str, Operation]] = [
    ("canonize_around", TREE, lambda tn: tn.canonize_around_("B")),
    ("compress_all", TREE, lambda tn: tn.compress_all_(cutoff=1e-14)),
    ("compress_all_tree", TREE, lambda tn: tn.compress_all_tree(cutoff=1e-14, inplace=True)),
    ("gauge_all_simple", TREE, lambda tn: tn.gauge_all_simple_(max_iterations=5)),
    ("equalize_norms", TREE, lambda tn: tn.equalize_norms_()),
    ("equalize_norms to one, with an exponent", TREE, lambda tn: tn.equalize_norms_(1.0)),
    ("balance_bonds", TREE, lambda tn: tn.balance_bonds_()),
    ("transposed arrays", TREE, lambda tn: [tensor.transpose_(*tensor.inds[::-1]) for tensor in tn.tensors]),
    ("renamed bonds", TREE, lambda tn: tn.reindex_({"p": "other", "s": "p"})),
    ("parallel bonds fused", PARALLEL, lambda tn: tn.compress_all_(cutoff=1e-14)),
    ("parallel bonds fused, others squeezed", PARALLEL, lambda tn: (tn.fuse_multibonds_(), tn.squeeze_())),
    ("compress_between beside a hyperedge", CP, lambda tn: tn.compress_between("C", "D", cutoff=1e-14)),
    ("canonize_between beside a hyperedge", CP, lambda tn: tn.canonize_between("D", "C")),
    ("compress_between beside an open hyperedge", OPEN_HYPEREDGE, lambda tn: tn.compress_between("D", "E")),
    ("compress_between beside patterns", WINDOW, lambda tn: tn.compress_between("K", "V", cutoff=1e-14)),
    ("compress_between beside a tie", TIED, lambda tn: tn.compress_between("B", "C", cutoff=1e-14)),
]


@pytest.mark.parametrize(("text", "operation"), [pytest.param(*case[1:], id=case[0]) for case in KEPT])
def test_operations_that_come_back(text: str, operation: Operation) -> None:
    network, values, tn = there(text)
    operation(tn)
    back, back_values = from_quimb(tn, like=network)
    assert (back.nodes, back.output) == (network.nodes, network.output)
    expected, scale = evaluate(network, values), magnitude(network, values)
    assert_close(evaluate(back, back_values), expected, scale)
    assert_close(quimb_value(tn, network.output), expected, scale)


def test_bonds_come_back_with_the_size_that_compression_left_them() -> None:
    network, _, tn = there(TREE)
    tn.compress_all_(cutoff=1e-14)
    back, _ = from_quimb(tn, like=network)
    assert str(back) == "A[out:6 p:6] B[p in:4 q:6] C[q kh:3 s:2] D[s kw:2] -> [kw in out kh]"


def test_parallel_bonds_come_back_as_the_first_of_them() -> None:
    network, _, tn = there(PARALLEL)
    tn.compress_all_(cutoff=1e-14)
    back, _ = from_quimb(tn, like=network)
    assert str(back) == "A[out:6 p:2 q:1] B[p q i:2] C[i kw:2 z:1] D[z kh:3]"


EVERYWHERE: dict[str, Operation] = {
    "canonize_around": lambda tn: tn.canonize_around_("A", max_distance=9),
    "compress_all": lambda tn: tn.compress_all_(cutoff=1e-14),
    "compress_all_simple": lambda tn: tn.compress_all_simple_(cutoff=1e-14),
}


@pytest.mark.parametrize("text", [CP, OPEN_HYPEREDGE.replace("D[", "A["), TIED, WINDOW.replace("X[", "A[")])
@pytest.mark.parametrize("operation", EVERYWHERE.values(), ids=EVERYWHERE)
def test_operations_on_every_bond_keep_the_value_of_any_network(text: str, operation: Operation) -> None:
    """What the network over there is good for, even where it cannot come back as the network it was."""
    network, values, tn = there(text)
    operation(tn)
    expected, scale = evaluate(network, values), magnitude(network, values)
    assert_close(quimb_value(tn, network.output), expected, scale)
    assert set(tn.outer_inds()) == set(network.output)
    foreign, foreign_values = from_quimb(tn)
    assert foreign.output == network.output
    assert_close(evaluate(foreign, foreign_values), expected, scale)
    with refused(NetworkError):
        from_quimb(tn, like=network)


# What no longer holds ---------------------------------------------------------------------------------------


def replace(tag: str, change: Callable[[Tensor], Tensor]) -> Operation:
    return lambda tn: tn[tag].modify(apply=change)


REFUSED: list[tuple[str, Operation, list[str]]] = [
    (CP, lambda tn: tn.compress_all_(cutoff=1e-14), ["'r' has other elements", "hyperedge:r#0"]),
    (CP, lambda tn: tn.contract_tags_(("A", "hyperedge:r#0"), which="any"), ["A[out r]", "'r'", "one tensor"]),
    (OPEN_HYPEREDGE, replace("hyperedge:in", lambda array: array * (1 + 1e-9)), ["'in' has other elements"]),
    (WINDOW, replace("Conv", lambda array: array.flip(0)), ["Conv[x y k | stride=2]", "Conv#1"]),
    (WINDOW, replace("Fill", lambda array: 2 * array), ["Fill[f | value=mean]"]),
    (WINDOW, lambda tn: tn.canonize_between("Conv", "X"), ["Conv[x y k | stride=2]", "canonizes"]),
    ("T[t:2] Copy[f:7 f]", lambda tn: tn.compress_between("Copy", "hyperedge:f"), ["'f' had size 7 and has 1"]),
    (CP, lambda tn: tn.isel_({"r#0": slice(0, 3)}), ["'r' has sizes 3 and 4", "B[in r]"]),
    (WINDOW, lambda tn: tn.isel_({"x": slice(0, 8)}), ["'x' had size 9 and has 8"]),
    (TIED, replace("A#1", lambda array: array + 1e-9), ["tied tensor 'A'", "A#0", "A[b c], tag A#1"]),
    (TIED, lambda tn: tn.isel_({"c": slice(0, 2)}), ["tied tensor 'A'"]),
    (TREE, lambda tn: tn.contract_tags_(("A", "B"), which="any"), ["A[out p]", "B[p in q]"]),
    (TREE, lambda tn: tn.split_tensor("B", ["p"]), ["B[p in q] is several", "B#1"]),
    (TREE, lambda tn: tn.delete("D"), ["D[s kw] is not in", "D#3"]),
    (TREE, lambda tn: tn.drop_tags("C#2"), ["tags: C"]),
    (TREE, lambda tn: tn.add_tensor(qtn.Tensor(torch.ones(6, 2), ("out", "new"), tags="N")), ["tags: N", "'new'"]),
    (TREE, lambda tn: tn.sum_reduce_("kw"), ["open label 'kw'", "D[s kw]"]),
    (TREE, lambda tn: tn.isel_({"in": 0}), ["open label 'in'", "B[p in q]"]),
    (OPEN_HYPEREDGE, lambda tn: tn.isel_({"in": 1}), ["open label 'in'"]),
    (TREE, lambda tn: tn.reindex_({"kw": "w"}), ["open label 'kw'"]),
    (TREE, lambda tn: tn.reindex_({"kw": "kh"}), ["open label 'kh'"]),
    (TREE, lambda tn: tn.isel_({"in": slice(1, 4)}), ["'in' had size 4 and has 3"]),
    (TREE, lambda tn: tn.new_bond("A", "D"), ["A[out p]", "D[s kw]"]),
    (TREE, lambda tn: tn["A"].new_ind("z", size=2), ["'z'", "A[out p]"]),
    ("Fill[a:3|value=2]", lambda tn: setattr(tn, "exponent", 2.0), ["10^2.0"]),
]


@pytest.mark.parametrize(("text", "operation", "facts"), REFUSED)
def test_refusals(text: str, operation: Operation, facts: list[str]) -> None:
    network, _, tn = there(text)
    operation(tn)
    with refused(NetworkError, *facts, "fix:"):
        from_quimb(tn, like=network)


def test_another_network_is_refused() -> None:
    _, _, tn = there(TREE)
    with refused(NetworkError, "A#0"):
        from_quimb(tn, like=parse(CP.replace("A[", "Z[")))
    swapped = "A[out:6 p:9] B[p in:4 q:7] D[s:5 kw:2] C[q kh:3 s] -> [kw in out kh]"
    with refused(NetworkError, "C#2"):
        from_quimb(tn, like=parse(swapped))


def test_sizes_may_be_unknown_to_the_network_that_went_over() -> None:
    network = parse("A[a r] B[b r] C[c r] -> [c b a]")
    values = {"A": torch.ones(2, 5), "B": torch.ones(3, 5), "C": torch.ones(4, 5)}
    back, _ = from_quimb(to_quimb(network, values), like=network)
    assert str(back) == "A[a:2 r:5] B[b:3 r] C[c:4 r] -> [c b a]"


def test_sizes_that_contradict_patterns_of_unknown_size_are_refused() -> None:
    network = parse("X[x] Fuse[x a b] A[a] B[b] -> []")
    tn = to_quimb(network, {"X": torch.ones(6), "A": torch.ones(2), "B": torch.ones(3)})
    tn.isel_({"x": slice(0, 4)})
    with refused(NetworkError, "contradict", "'x' has two sizes"):
        from_quimb(tn, like=network)


def test_values_that_do_not_fit_do_not_go_over() -> None:
    with refused(ValuesError, "'B'", "A[a:2] B[b]"):
        to_quimb(parse("A[a] B[b]"), {"A": [1, 2]})
    with refused(ValuesError, "'A'", "NaN"):
        to_quimb(parse("A[a]"), {"A": [1, float("nan")]})
    with refused(SizeError, "'b'"):
        to_quimb(parse("A[a] Fill[b|value=1]"), {"A": [1, 2]})
    with refused(SizeError, 10**9, "Copy[r:1000 r r]"):
        to_quimb(parse("A[a r] B[b r] C[c r]"), {name: torch.ones(1, 1000) for name in "ABC"})


# Arrays -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_the_dtype_of_the_values_is_kept(dtype: torch.dtype) -> None:
    network = parse(CP)
    values = {name: value.to(dtype) for name, value in random_values(network, 0).items()}
    tn = to_quimb(network, values)
    assert {tensor.data.dtype for tensor in tn.tensors} == {dtype}
    _, back = from_quimb(tn, like=network)
    assert all(torch.equal(back[name], values[name]) for name in values)


def test_mixed_dtypes_are_promoted_and_integers_become_float64() -> None:
    network = parse("A[a:2] B[b:2]")
    mixed = to_quimb(network, {"A": torch.ones(2), "B": torch.ones(2, dtype=torch.float64)})
    assert {tensor.data.dtype for tensor in mixed.tensors} == {torch.float64}
    integers = to_quimb(network, {"A": [1, 2], "B": [3, 4]})
    assert {tensor.data.dtype for tensor in integers.tensors} == {torch.float64}


def test_gradients_pass_through() -> None:
    network = parse("A[a:2 r:3] B[b:2 r] C[c:2 r] -> []")
    values = {name: value.requires_grad_() for name, value in random_values(network, 0).items()}
    quimb_value(to_quimb(network, values), ()).backward()
    grads = [value.grad for value in values.values()]
    for value in values.values():
        value.grad = None
    evaluate(network, values).backward()
    for value, grad in zip(values.values(), grads, strict=True):
        torch.testing.assert_close(grad, value.grad, rtol=1e-12, atol=1e-12)


def test_a_wide_hyperedge_is_a_chain_of_small_copy_tensors() -> None:
    text = " ".join(f"T{i}[a{i}:2 r:16]" for i in range(9))
    network, values, tn = there(f"{text} -> [r {' '.join(f'a{i}' for i in range(9))}]")
    assert max(tensor.size for tensor in tn.select_tensors("hyperedge:r")) == 16**3
    assert_close(quimb_value(tn, network.output), evaluate(network, values), magnitude(network, values))
    assert from_quimb(tn, like=network)[0] == network


def test_tags_tell_what_a_tensor_is() -> None:
    _, _, tn = there("K[a:2 b:3] K[c:2 d:3] Copy[a c e] Conv[b y k:2] -> [e d]")
    assert {tag: len(tn.tag_map[tag]) for tag in ("K", "K#1", "Copy", "Conv#3", "hyperedge:y")} == {
        "K": 2,
        "K#1": 1,
        "Copy": 1,
        "Conv#3": 1,
        "hyperedge:y": 1,
    }


@pytest.mark.slow
def test_quimb_is_not_imported_until_it_is_needed() -> None:
    code = "import sys, tnalgebra.tensors; sys.exit('quimb' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


# Networks from elsewhere ------------------------------------------------------------------------------------


def test_a_matrix_product_state() -> None:
    state = qtn.MPS_rand_state(5, bond_dim=4, phys_dim=3, seed=1)
    network, values = from_quimb(state)
    assert str(network) == "I0[b1:4 k0:3] I1[b1 b2:4 k1:3] I2[b2 b3:4 k2:3] I3[b3 b4:4 k3:3] I4[b4 k4:3]"
    dense = torch.from_numpy(np.array(state.contract(output_inds=network.output).data))
    assert_close(evaluate(network, values), dense, magnitude(network, values))
    assert_close(evaluate(network, values).square().sum(), torch.ones(()).double(), torch.ones(()))


@pytest.mark.parametrize(
    "build",
    [
        lambda: qtn.MPS_rand_state(4, 3, cyclic=True, seed=2),
        lambda: qtn.PEPS.rand(2, 3, bond_dim=2, seed=3),
        lambda: qtn.TN_rand_reg(8, 3, D=2, phys_dim=2, seed=4),
        lambda: qtn.HTN2D_classical_ising_partition_function(3, 3, beta=0.4),
        lambda: qtn.MPS_rand_state(4, 3, seed=5).norm() * qtn.MPS_rand_state(3, 2, seed=6),
    ],
    ids=["ring", "peps", "regular graph", "hyperedges", "scaled"],
)
def test_networks_of_quimb_arrive_with_the_same_value(build: Callable[[], Any]) -> None:
    tn = build()
    network, values = from_quimb(tn)
    outer = [ind for ind in tn.outer_inds() if sum(ind in tensor.inds for tensor in tn.tensors) == 1]
    value = quimb_value(tn, tuple(outer))
    assert_close(evaluate(network, values), value.double(), magnitude(network, values))


def test_a_tensor_of_quimb_is_a_network_of_one() -> None:
    tensor = qtn.rand_tensor((2, 3), ("a", "b"), "T", seed=0)
    network, values = from_quimb(tensor)
    assert str(network) == "T[a:2 b:3]"
    assert torch.equal(values["T"], torch.from_numpy(tensor.data))


def test_an_exponent_arrives_in_the_values() -> None:
    state = qtn.MPS_rand_state(4, 3, seed=0)
    dense = torch.from_numpy(np.array(state.to_dense())).flatten()
    state.equalize_norms_(1.0)
    network, values = from_quimb(state)
    torch.testing.assert_close(evaluate(network, values).flatten(), dense, rtol=1e-12, atol=1e-12)


def test_words_that_are_none_are_made_words() -> None:
    tensors = [
        qtn.Tensor(np.ones((2, 3, 4)), ("k0,1", "1", "b1"), tags=("A B", "Copy")),
        qtn.Tensor(np.ones((3, 4, 5, 2)), ("1", "b1", "k0.1", "_9f")),
        qtn.Tensor(np.ones(2), ("_9f",), tags=("T1",)),
    ]
    network, _ = from_quimb(qtn.TensorNetwork(tensors))
    assert str(network) == "T2[k0_1:2 i1:3 b1:4] T3[i1 b1 k0_2:5 b2:2] T1[b2]"


def test_infinite_arrays_are_refused() -> None:
    with refused(ValuesError, "'T1'", "infinity"):
        from_quimb(qtn.TensorNetwork([qtn.Tensor([1.0, np.inf], ("a",))]))
    with refused(ValuesError, "'T1'", "NaN"):
        from_quimb(qtn.TensorNetwork([qtn.Tensor([1.0, complex(0, np.nan)], ("a",))]))


def test_an_empty_network_is_refused() -> None:
    with refused(NetworkError, "no nodes"):
        from_quimb(qtn.TensorNetwork([]))


def test_a_sum_goes_over_term_by_term() -> None:
    network = parse("A[i:3 r:2] B[r j:4] + D[i s:5] E[j s]")
    values = random_values(network, 0)
    with refused(NetworkError, "has no sums", "2 terms", "network.terms"):
        to_quimb(network, values)
    terms = [to_quimb(term, {name: values[name] for name in tensors_of(term)}) for term in network.terms]
    total = sum(quimb_value(term, network.output) for term in terms)
    assert_close(torch.as_tensor(total), evaluate(network, values), magnitude(network, values))
