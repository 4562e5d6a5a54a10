"""`*k` in a rule: any number of open labels, the same on both sides. The place determines how many they are."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, NoReturn

import numpy as np

from ..errors import NetworkError, NotationError, RuleError
from ..networks import (
    KERNEL_LABELS,
    WORD,
    Fill,
    NamedTensor,
    Network,
    all_nodes,
    fresh,
    node_text,
    open_variables,
    parse_rule,
    tensor_nodes,
)
from .options import Options, Place
from .plain import plain_rule
from .rule import Rule

STAR = re.compile(rf"\*(?P<name>{WORD.pattern})?(?P<size>\s*:)?")

MAX_CANDIDATES = 1000
"""The most ways in which the stars of one rule can be read in one network."""


@dataclass(frozen=True)
class Pattern:
    """The text of a rule with stars, read with one label in the place of each star.

    Attributes:
        left, right: the two sides.
        stars: for each star, the label in its place, which does not occur in the text.
        order: pairs (position of a left tensor, star). One after the other, the number of axes of the tensor determines
            how many labels the star is.
    """

    text: str
    left: Network
    right: Network
    stars: Mapping[str, str]
    order: tuple[tuple[int, str], ...]

    def width(self, position: int, counts: Mapping[str, int]) -> int:
        """The number of axes of a left node where each star is as many labels as `counts` says, or 0."""
        labels, names = self.left.nodes[position].labels, {label: star for star, label in self.stars.items()}
        return sum(counts.get(names[label], 0) if label in names else 1 for label in labels)

    @property
    def tensors(self) -> list[int]:
        """The positions of the tensors of the left side."""
        return [position for places in tensor_nodes(self.left).values() for position in places]

    def plain(self, words: Iterable[str]) -> tuple[str, ...]:
        """The words that are not in the place of a star."""
        return tuple(word for word in words if word not in self.stars.values())

    def starred(self, text: str) -> str:
        """A text that was printed from the sides, with the stars in it again."""
        return _restore_stars(text, self.stars)


def starred_rule(text: str, *, name: str | None = None, fixed: Mapping[str, str] | None = None) -> Rule:
    """Make a rule of a text with stars: one rule for kernels of any number of axes.

    "K[out in *k] => U[out a] G[a b *k] V[b in]" is Tucker-2 of kernels with any window. `*k` stands for any number of
    open labels, also for none, and for the same labels in the same order wherever it occurs. Where the rule is applied,
    the numbers of axes of the left tensors determine how many they are. If the rule is applied to values, these labels
    are those of torch's kernels where the labels beside them are (`kh kw` beside `out in` on four axes), and otherwise
    `k1 k2 ...`. No word of the text is renamed, so sizes and `bind` are as without stars.

    Args:
        text: a star occurs on named tensors, in `->`, and on a `Fill` of the right side, once on each.
        name, fixed: as of `rule`.

    Raises:
        NotationError: a star has no name, or a size, or is where no label can be.
        RuleError: a star occurs on one side only, twice on a node, on a `Copy`, `Conv` or `Fuse`, or is summed; the
            number of axes of the left tensors does not determine how many labels each star is; or what `rule` refuses.
    """
    pattern = read_pattern(text)
    name = name or text

    @cache
    def expanded(counts: tuple[int, ...]) -> Rule:
        labels = _labels(pattern, dict(zip(pattern.stars, counts, strict=True)))
        return plain_rule(_replace_stars(text, labels), name=name, fixed=fixed)

    one_each = {star: (label,) for star, label in pattern.stars.items()}
    one = plain_rule(_replace_stars(text, one_each), name=name, fixed=fixed)

    def start(values: Mapping[str, Any]) -> Network:
        plain = expanded(_counts(pattern, values))
        assert plain.start is not None
        return plain.start(values)

    def find(network: Network, options: Options) -> Iterator[Place]:
        places: list[Place] = []
        for counts in _candidates(pattern, network):
            try:
                candidate = expanded(counts)
            except NetworkError:
                continue  # more axes than a tensor can have
            places += candidate.find(network, options)
        return iter(sorted(places, key=lambda place: place.nodes))

    return replace(
        one,
        name=name,
        equation=pattern.starred(one.equation),
        find=find,
        start=None if open_variables(pattern.left) else start,
        ranks=pattern.plain(one.ranks),
        variables=pattern.plain(one.variables),
        labels=pattern.plain(one.labels),
        spec={**one.spec, "notation": text, "name": name},
    )


# Reading -----------------------------------------------------------------------------------------------------


def read_pattern(text: str) -> Pattern:
    """Read a rule whose text may have stars. Raises what `starred_rule` raises, except for what `rule` checks."""
    words = set(WORD.findall(STAR.sub(" ", text)))
    stars: dict[str, str] = {}
    for match in STAR.finditer(text):
        star, at = match["name"], match.start()
        if star is None:
            _fail(text, at, "'*' has no name", fix="*k, which is any number of labels")
        if match["size"] is not None:
            _fail(text, at, f"'*{star}' has a size", fix="a star without a size, because it is any number of labels")
        opening, closing, bar = (text.rfind(mark, 0, at) for mark in "[]|")
        if opening <= max(closing, bar):
            _fail(text, at, f"'*{star}' is not a label here", fix="a star inside brackets, such as K[out in *k]")
        if star not in stars:
            stars[star] = fresh(star, words)
            words.add(stars[star])
    for star in stars:
        sides = [any(match["name"] == star for match in STAR.finditer(side)) for side in text.split("=>")]
        if sides in ([True, False], [False, True]):
            side, fix = "left" if sides[0] else "right", f"*{star} on both sides of '=>'"
            raise RuleError(f"'*{star}' occurs only on the {side} side", rule=text, fix=fix)
    left, right = parse_rule(_replace_stars(text, {star: (label,) for star, label in stars.items()}))
    for star, label in stars.items():
        _check_star(f"*{star}", label, {"left": left, "right": right}, text)
    return Pattern(text, left, right, stars, _order(left, stars, text))


def _replace_stars(text: str, words: Mapping[str, Collection[str]]) -> str:
    """The text with words in the place of each star."""
    replaced = STAR.sub(lambda match: f" {' '.join(words[match['name']])} ", text)
    return re.sub(r" (?=\])|(?<=\[) ", "", re.sub(r" +", " ", replaced))


def _fail(text: str, at: int, fact: str, *, fix: str) -> NoReturn:
    shown = re.sub(r"\s", " ", text)
    raise NotationError(fact, where=f"{shown}\n{' ' * at}^", fix=fix)


def _check_star(star: str, label: str, sides: Mapping[str, Network], text: str) -> None:
    for name, side in sides.items():
        for node in all_nodes(side):
            fact = because = None
            if node.labels.count(label) > 1:
                fact = f"{star!r} occurs twice on a node"
            elif label in node.labels and not isinstance(node, NamedTensor):
                if name == "left":
                    fact = f"{star!r} occurs on a node that is not a tensor"
                elif not isinstance(node, Fill):
                    fact, because = f"{star!r} occurs on a {node.name}", f"each label of a {node.name} has a meaning"
                    because = "its labels have one size" if node.name == "Copy" else because
            if fact is not None:
                where = _restore_stars(node_text(node), {star[1:]: label})
                raise RuleError(fact, where=where, because=because, rule=text)
        if label not in side.output:
            fix = f"a star in the output, because it stands for open labels: -> [... {star}]"
            raise RuleError(f"{star!r} is summed on the {name} side", rule=text, fix=fix)


def _order(left: Network, stars: Mapping[str, str], text: str) -> tuple[tuple[int, str], ...]:
    """Which left tensor determines which star: one whose other stars are known at that point."""
    order: list[tuple[int, str]] = []
    unknown = dict(stars)
    tensors = [position for places in tensor_nodes(left).values() for position in places]
    while unknown:
        for position in tensors:
            here = [star for star, label in unknown.items() if label in left.nodes[position].labels]
            if len(here) == 1:
                order.append((position, here[0]))
                del unknown[here[0]]
                break
        else:
            listed = " and ".join(repr(f"*{star}") for star in unknown)
            fact = f"the numbers of axes do not determine how many labels {listed} are"
            raise RuleError(fact, rule=text, fix="a left tensor that has only one star")
    return tuple(order)


def _restore_stars(text: str, stars: Mapping[str, str]) -> str:
    names = {label: f"*{star}" for star, label in stars.items()}
    return WORD.sub(lambda match: names.get(match[0], match[0]), text)


# How many labels a star is -----------------------------------------------------------------------------------


def _candidates(pattern: Pattern, network: Network) -> list[tuple[int, ...]]:
    """Numbers of labels of the stars with which every left tensor has as many axes as a tensor of the network."""
    axes = sorted({len(network.nodes[places[0]].labels) for places in tensor_nodes(network).values()})
    candidates: list[dict[str, int]] = [{}]
    for position, star in pattern.order:
        candidates = [
            {**known, star: total - pattern.width(position, known)}
            for known in candidates
            for total in axes
            if total >= pattern.width(position, known)
        ]
        if len(candidates) > MAX_CANDIDATES:
            fact = f"the stars can be read in more than {MAX_CANDIDATES} ways"
            raise RuleError(fact, rule=pattern.text, fix="fewer stars")
    return [
        tuple(counts[star] for star in pattern.stars)
        for counts in candidates
        if all(pattern.width(position, counts) in axes for position in pattern.tensors)
    ]


def _counts(pattern: Pattern, values: Mapping[str, Any]) -> tuple[int, ...]:
    """How many labels each star is for values of the left tensors.

    Raises:
        RuleError: a value has too few axes, or a value that determines a star is missing.
    """
    counts: dict[str, int] = {}
    for position, star in pattern.order:
        name = pattern.left.nodes[position].name
        if name not in values:
            fact = f"the value of {name!r} is missing, whose axes determine how many labels '*{star}' is"
            raise RuleError(fact, rule=pattern.text, fix=f"apply({{{name!r}: ...}})")
        axes = int(np.ndim(values[name]))
        counts[star] = axes - pattern.width(position, counts)
        if counts[star] < 0:
            fact = f"the value of {name!r} has {axes} axes, which are fewer than its labels without '*{star}'"
            raise RuleError(fact, rule=pattern.text)
    return tuple(counts[star] for star in pattern.stars)


def _labels(pattern: Pattern, counts: Mapping[str, int]) -> dict[str, list[str]]:
    """Labels for each star: those of torch's kernels if they fit, otherwise the name of the star with numbers."""
    taken = {
        *pattern.plain(label for side in (pattern.left, pattern.right) for n in all_nodes(side) for label in n.labels)
    }
    labels: dict[str, list[str]] = {}
    for position, star in pattern.order:
        node, count = pattern.left.nodes[position], counts[star]
        beside = [label for label in node.labels if label != pattern.stars[star]]
        alone = not any(label in pattern.stars.values() for label in beside)
        order = KERNEL_LABELS.get(count + len(beside), ()) if alone else ()
        rest = [label for label in order if label not in beside]
        if len(rest) != count or taken & set(rest):
            rest = []
            for number in range(1, count + 1):
                rest.append(fresh(star if count == 1 else f"{star}{number}", taken | set(rest)))
        labels[star] = rest
        taken |= set(rest)
    return labels
