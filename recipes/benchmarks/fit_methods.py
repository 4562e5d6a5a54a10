"""The libraries that the benchmark of fits compares, with their settings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

import tnalgebra as tn

LABELS = tn.networks.KERNEL_LABELS[4]

RULES = {
    "cp": "K[out in kh kw] => A[out r] B[in r] C[kh r] D[kw r]",
    "tensor ring": "K[out in kh kw] => A[z out p] B[p in q] C[q kh s] D[s kw z]",
    "Tucker-2": "K[out in kh kw] => G[a b kh kw] U[out a] V[in b]",
    "Tucker": "K[out in kh kw] => G[a b c d] U[out a] V[in b] P[kh c] Q[kw d]",
    "train": "K[out in kh kw] => A[out p] B[p in q] C[q kh s] D[s kw]",
    "hierarchical": "K[out in kh kw] => U[out a] V[in b] S[a b e] P[kh c] Q[kw d] T[c d e]",
}

TREES = ("Tucker-2", "Tucker", "train", "hierarchical")
"""Rules whose right side is a tree. They are fitted from SVDs, without random starts."""


def ranks_of(rule: str, kernel: Tensor) -> Mapping[str, int]:
    """Bond -> rank: half the channels, and all positions; for a ring the root of half the channels, which gives about
    as many parameters as CP."""
    half, (height, width) = min(kernel.shape[:2]) // 2, kernel.shape[2:]
    if rule == "train":
        return {"p": half, "q": min(half, height * width), "s": width}
    if rule in ("Tucker", "hierarchical"):
        return {"a": half, "b": half, "c": height, "d": width} | ({"e": height * width} if rule != "Tucker" else {})
    if rule == "tensor ring":
        return dict.fromkeys("zpqs", max(2, round(half**0.5)))
    return dict.fromkeys("r" if rule == "cp" else "ab", half)


CALLS = (
    1,
    2,
    3,
    4,
    5,
    6,
    8,
    10,
    12,
    14,
    16,
    18,
    20,
    23,
    26,
    30,
    35,
    40,
    45,
    50,
    60,
    70,
    80,
    90,
    100,
    120,
    140,
    160,
    180,
)
"""The sweeps of the calls of this library among which the shortest is found that reaches an error."""


def relative_error(kernel: Tensor, dense: Tensor) -> float:
    """||kernel - dense|| / ||kernel||."""
    return float(torch.linalg.vector_norm(kernel - dense) / torch.linalg.vector_norm(kernel))


class Method(ABC):
    """A library with its settings. The kernels of one call have one shape."""

    def __init__(self, name: str, **choices: Any) -> None:
        self.name = name
        self.choices = choices

    def suits(self, rule: str) -> bool:
        return True

    @abstractmethod
    def fit(self, rule: str, kernels: Sequence[Tensor], seed: int, sweeps: Sequence[int]) -> Any:
        """The call that is timed; `sweeps` has the number for each kernel."""

    @abstractmethod
    def dense(self, result: Any) -> list[Tensor]:
        """The kernels that a fit has found."""

    @abstractmethod
    def trace(self, rule: str, kernels: Sequence[Tensor], seed: int, most: int) -> list[list[float]]:
        """For each kernel the relative error after each sweep; fewer than `most` if it stops changing before."""


class Tnalgebra(Method):
    def suits(self, rule: str) -> bool:
        return rule not in TREES or not self.choices  # a tree has one start, from SVDs

    def fit(self, rule: str, kernels: Sequence[Tensor], seed: int, sweeps: Sequence[int]) -> Any:
        choices = {**self.choices, "size": ranks_of(rule, kernels[0]), "seed": seed, "sweeps": max(sweeps)}
        choices["stability"] = 0  # the others, too, ask for the least error alone
        if len(kernels) == 1:
            return [_rule(rule).apply({"K": kernels[0]}, **choices)]
        return _rule(rule).apply_many([{"K": kernel} for kernel in kernels], **choices)

    def dense(self, result: Any) -> list[Tensor]:
        return [fit.dense() for fit in result]

    def trace(self, rule: str, kernels: Sequence[Tensor], seed: int, most: int) -> list[list[float]]:
        """The errors of calls with more and more sweeps: a shorter call is not the beginning of a longer one, because
        its last sweeps are those that see the whole kernel. Between two calls the error is that of the shorter one."""
        traces: list[list[float]] = [[] for _ in kernels]
        for sweeps in [sweeps for sweeps in CALLS if sweeps < most] + [most]:
            for errors, fit in zip(traces, self.fit(rule, kernels, seed, [sweeps]), strict=True):
                errors += [errors[-1] if errors else float("inf")] * (sweeps - 1 - len(errors))
                errors.append(fit.relative_error)
        return traces


@cache
def _rule(name: str) -> Any:
    return tn.rule(RULES[name])


class Tensorly(Method):
    def __init__(self, name: str, **choices: Any) -> None:
        super().__init__(name, **choices)
        import_module("tensorly").set_backend("pytorch")
        self.decomposition = import_module("tensorly.decomposition")

    def suits(self, rule: str) -> bool:
        if rule == "tensor ring" and not hasattr(self.decomposition, "tensor_ring_als"):
            return False
        return rule == "cp" or not self.choices

    def fit(self, rule: str, kernels: Sequence[Tensor], seed: int, sweeps: Sequence[int]) -> Any:
        return [self._fit(rule, kernel, seed, count) for kernel, count in zip(kernels, sweeps, strict=True)]

    def _fit(self, rule: str, kernel: Tensor, seed: int, sweeps: int, **more: Any) -> Any:
        ranks = ranks_of(rule, kernel)
        choices = {"n_iter_max": sweeps, "random_state": seed, "tol": 0, **more}
        if rule == "cp":
            choices |= {"tol": 1e-300, **self.choices} if self.choices else {}  # its line search needs the errors
            return self.decomposition.parafac(kernel, ranks["r"], init="random", **choices)
        if rule == "tensor ring":
            around = [ranks[bond] for bond in "zpqsz"]
            return self.decomposition.tensor_ring_als(kernel, around, ls_solve="normal_eq", **choices)
        if rule == "train":
            return self.decomposition.tensor_train(kernel, [1, *(ranks[bond] for bond in "pqs"), 1])
        if rule in ("Tucker", "hierarchical"):  # it has no hierarchical one; Tucker's has the same leading subspaces
            return self.decomposition.tucker(kernel, [ranks[bond] for bond in "abcd"], return_errors=True, **choices)
        return self.decomposition.partial_tucker(kernel, [ranks["a"], ranks["b"]], modes=[0, 1], **choices)

    def dense(self, result: Any) -> list[Tensor]:
        return [self._dense(decomposition) for decomposition in result]

    def _dense(self, decomposition: Any) -> Tensor:
        if hasattr(decomposition, "to_tensor"):
            whole: Tensor = decomposition.to_tensor()
            return whole
        (core, factors), _ = decomposition
        if len(factors) == 4:
            return torch.einsum("abcd,oa,ib,hc,wd->oihw", core, *factors)
        U, V = factors
        return torch.einsum("abhw,oa,ib->oihw", core, U, V)

    def trace(self, rule: str, kernels: Sequence[Tensor], seed: int, most: int) -> list[list[float]]:
        if rule == "train":
            return [[relative_error(kernel, self._dense(self._fit(rule, kernel, seed, most)))] for kernel in kernels]
        if rule in TREES:
            return [[float(error) for error in self._fit(rule, kernel, seed, most)[1]] for kernel in kernels]
        traces: list[list[float]] = []
        for kernel in kernels:
            errors: list[float] = []

            def note(decomposition: Any, _: object, kernel: Tensor = kernel, errors: list[float] = errors) -> None:
                errors.append(relative_error(kernel, self._dense(decomposition)))

            # the callback needs errors, which are computed only for a test of convergence; this one never passes
            self._fit(rule, kernel, seed, most, callback=note, tol=1e-300)
            traces.append(errors[1:])  # the first error is that of the start
        return traces


class Quimb(Method):
    def __init__(self, name: str, **choices: Any) -> None:
        super().__init__(name, **choices)
        self.library = import_module("quimb.tensor")

    def suits(self, rule: str) -> bool:
        return rule not in TREES  # it has sweeps over single cores only, which take seconds for large trees

    def fit(self, rule: str, kernels: Sequence[Tensor], seed: int, sweeps: Sequence[int]) -> Any:
        each = zip(kernels, sweeps, strict=True)
        return [self._fit(self._start(rule, kernel, seed), kernel, count) for kernel, count in each]

    def _start(self, rule: str, kernel: Tensor, seed: int) -> Any:
        generator = np.random.default_rng(seed)
        sizes = {**dict(zip(LABELS, kernel.shape, strict=True)), **ranks_of(rule, kernel)}
        nodes = tn.networks.parse_rule(RULES[rule])[1].nodes
        labels = [node.labels for node in nodes if isinstance(node, tn.networks.NamedTensor)]
        return self.library.TensorNetwork(
            [self.library.Tensor(generator.standard_normal([sizes[label] for label in each]), each) for each in labels]
        )

    def _fit(self, start: Any, kernel: Tensor, sweeps: int) -> Any:
        target = self.library.TensorNetwork([self.library.Tensor(kernel.numpy(), LABELS)])
        fixed: dict[str, Any] = {"tol": 0.0, "output_inds": LABELS, "contract_optimize": "greedy"}
        return start.fit(target, method="als", steps=sweeps, **fixed, **self.choices)

    def dense(self, result: Any) -> list[Tensor]:
        return [torch.from_numpy(network.contract(output_inds=LABELS).data) for network in result]

    def trace(self, rule: str, kernels: Sequence[Tensor], seed: int, most: int) -> list[list[float]]:
        traces = []
        for kernel in kernels:
            network = self._start(rule, kernel, seed)
            errors: list[float] = []
            for _ in range(most):  # a sweep depends on those before it only by their cores
                network = self._fit(network, kernel, 1)
                errors.append(relative_error(kernel, self.dense([network])[0]))
            traces.append(errors)
        return traces


def all_methods() -> tuple[list[Method], list[str]]:
    """The methods of all libraries that are installed, and a line about the one that is not, if any."""
    methods: list[Method] = [Tnalgebra("tnalgebra"), Tnalgebra("tnalgebra, 1 start", starts=1)]
    notes = []
    try:
        methods += [Tensorly("tensorly"), Tensorly("tensorly, line search", linesearch=True)]
    except ModuleNotFoundError as error:
        notes.append(f"without tensorly ({error}), which comes with an extra: pip install 'tnalgebra[bench]'")
    return [*methods, Quimb("quimb, dense_solve", dense_solve=True), Quimb("quimb")], notes
