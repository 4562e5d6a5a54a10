"""Topologies of a large space, suggested one by one from the scores of those before, by optuna."""

from __future__ import annotations

import warnings
from collections.abc import Generator, Sequence
from typing import Any

from ..errors import MissingPackageError
from .space import PATTERNS, Space, Structure, is_connected, is_reduced, parts_of, ring_of_order, tree_of_code
from .topology import Topology

_BARREN = 20
"""After this many suggestions in a row for each one that is wanted, no new topology is expected any more."""


def suggest(space: Space, labels: Sequence[str], *, trials: int, seed: int) -> Generator[Topology, float | None, None]:
    """Suggest topologies by a tree-structured Parzen estimator (Bergstra et al. 2011).

    Each is suggested once, up to the words for its bonds. The generator is sent the score of the one before, the less
    the better, or None where it was not fitted.

    Args:
        trials: how many topologies are suggested at most.

    Raises:
        MissingPackageError: optuna is not installed.
    """
    try:
        import optuna
    except ModuleNotFoundError as error:
        fact = "a space of this size needs optuna, which is not installed"
        raise MissingPackageError(fact, fix='pip install "tnalgebra[search]", or a smaller space') from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, group=True)
    study = optuna.create_study(sampler=sampler)
    scores: dict[str, float | None] = {}
    barren = 0
    while len(scores) < trials and barren < _BARREN * trials:
        trial = study.ask()
        terms = [_term(trial, space, labels, number) for number in range(_count(trial, space))]
        complete = [term for term in terms if term is not None]
        topology = space.topology(labels, complete) if len(complete) == len(terms) else None
        if topology is None or topology.name in scores:
            barren += 1
            score = None if topology is None else scores[topology.name]
        else:
            barren = 0
            score = scores[topology.name] = yield topology
        if score is None:
            study.tell(trial, state=optuna.trial.TrialState.PRUNED)
        else:
            study.tell(trial, score)


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
