"""Topologies of a large space, suggested one by one from the scores of those before, by optuna."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from typing import Any

from ..errors import MissingPackageError
from .space import PATTERNS, Space, Structure, is_connected, is_reduced, parts_of, ring_of_order, tree_of_code
from .topology import Topology

_BARREN = 20
"""After this many suggestions in a row for each one that is wanted, no new topology is expected any more."""


class Suggestions:
    """Those of the catalogue, then those of a tree-structured Parzen estimator (Bergstra et al. 2011), each once up to
    the words for its bonds.

    Args:
        trials: how many topologies are suggested at most.

    Raises:
        MissingPackageError: optuna is not installed.
    """

    def __init__(self, space: Space, labels: Sequence[str], *, trials: int, seed: int) -> None:
        try:
            import optuna
        except ModuleNotFoundError as error:
            fact = "a space of this size needs optuna, which is not installed"
            raise MissingPackageError(fact, fix='pip install "tnalgebra[search]", or a smaller space') from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True)
        self._study = optuna.create_study(sampler=sampler)
        self._pruned = optuna.trial.TrialState.PRUNED
        self._space, self._labels, self._trials = space, labels, trials
        self._suggested: dict[str, Any] = {}

    def __iter__(self) -> Iterator[Topology]:
        yield from self._space.listed(self._labels)
        barren = 0
        while len(self._suggested) < self._trials and barren < _BARREN * self._trials:
            trial = self._study.ask()
            terms = [_term(trial, self._space, self._labels, number) for number in range(_count(trial, self._space))]
            complete = [term for term in terms if term is not None]
            topology = self._space.topology(self._labels, complete) if len(complete) == len(terms) else None
            if topology is None or topology.name in self._suggested:
                barren += 1
                self._study.tell(trial, state=self._pruned)
            else:
                barren = 0
                self._suggested[topology.name] = trial
                yield topology

    def tell(self, topology: Topology, score: float | None) -> None:
        """Say how good a topology is, the less the better; None where it was not fitted."""
        trial = self._suggested.get(topology.name)
        if trial is None:  # of the catalogue
            return
        if score is None:
            self._study.tell(trial, state=self._pruned)
        else:
            self._study.tell(trial, score)


def _count(trial: Any, space: Space) -> int:
    return int(trial.suggest_int("terms", 1, space.terms)) if space.terms > 1 else 1


def _term(trial: Any, space: Space, labels: Sequence[str], number: int) -> Structure | None:
    """A term; None if what is suggested is not one of the space."""
    split = parts_of(space, labels)
    carried = [part for label in labels for part in split.get(label, (label,))]
    count = trial.suggest_int(f"cores {number}", *space.cores)
    pattern = trial.suggest_categorical(f"bonds {number}", list(space.bonds))
    places = [trial.suggest_int(f"{count} cores {number}: {label}", 0, count - 1) for label in carried]
    groups = [
        tuple(label for label, place in zip(carried, places, strict=True) if place == core) for core in range(count)
    ]
    # cores are numbered by their first labels, so that each topology is suggested in one way
    cores = tuple(sorted(filter(None, groups), key=lambda group: carried.index(group[0])))
    cores += ((),) * (count - len(cores))
    prefix = f"{count} cores {pattern} {number}"
    if pattern in ("tree", "block"):
        code = [trial.suggest_int(f"{prefix}: {place}", 0, count - 1) for place in range(count - 2)]
        bonds = tree_of_code(code, count) + (next(PATTERNS["hyperedge"](count), ()) if pattern == "block" else ())
    elif pattern == "ring":
        rest = list(range(1, count))
        order = [0]
        while rest:
            order.append(rest.pop(trial.suggest_int(f"{prefix}: {len(rest)}", 0, len(rest) - 1)))
        bonds = ring_of_order(order) if count > 2 else ()
    elif pattern == "graph":
        (pairs,) = PATTERNS["complete"](count)
        bonds = tuple(pair for pair in pairs if trial.suggest_categorical(f"{prefix}: {pair}", [False, True]))
    else:
        bonds = next(PATTERNS[pattern](count), ())
    is_term = bonds and space.allows(filter(None, cores)) and is_reduced(cores, bonds) and is_connected(bonds, count)
    return (cores, bonds) if is_term else None
