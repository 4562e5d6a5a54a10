"""The notation: from text to a network; `str(network)` is the text of a network.

    network   = product [ "+" product ... ] [ "->" "[" labels "]" ]
    product   = node node ...
    node      = NAME "[" labels [ "|" key=value ... ] "]"
    label     = WORD [ ":" SIZE ]
    rule      = network "=>" network

The text is read in one pass over its tokens, and every error points at the character that is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, NamedTuple, NoReturn, TypeAlias

from ..errors import NetworkError, NotationError, SizeError
from .joining import local_labels_apart
from .labels import MAX_DIGITS
from .network import Network, default_output, implied_output, only_network, sum_of_products
from .nodes import MODES, Conv, Copy, Fill, Fuse, NamedTensor, Node, Variable

MAX_CHARACTERS = 100_000
"""Longest text that is read: thousands of nodes fit, and a text from a file cannot take arbitrary time."""

TOKEN = re.compile(
    r"(?P<space>[\s,]+)|(?P<arrow>->)|(?P<rule>=>)|(?P<word>[A-Za-z_][A-Za-z0-9_]*)"
    r"|(?P<number>-?(?:[0-9]+(?:\.[0-9]+)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?(?:/[0-9]+)?)|(?P<mark>[\[\]|:=+])"
)

ATTRIBUTES = {"Copy": (), "Conv": ("stride", "padding", "dilation", "mode"), "Fuse": (), "Fill": ("value",)}


@dataclass(frozen=True, slots=True)
class Token:
    kind: str
    text: str
    start: int


def read_network(network: object) -> Network:
    """A network, or the one that a text in the notation is. Raises NetworkError if it is neither."""
    return parse(network) if isinstance(network, str) else only_network(network)


def parse(text: str) -> Network:
    """Read a network from its text.

        tn.parse("U[out a:16] G[a b:16 kh:3 kw:3] V[b in] -> [out in kh kw]")

    Args:
        text: nodes `NAME[label label ...]` and the output `-> [label ...]`. `label:16` gives a label a size. Without an
            output, the labels that occur once are the output. A plus between nodes makes a `Sum`, whose terms have the
            same output; every other label belongs to one term, and is renamed if another term has the same word.

    Returns:
        The network; `parse(str(network)) == network` for every network.

    Raises:
        NotationError: the text is not in the notation; the message points at the character.
        NetworkError, SizeError: the network cannot exist, for example because its sizes contradict each other.
    """
    reader = _Reader(text, variables=False)
    network = reader.network(None)
    if reader.peek.kind == "rule":
        reader.fail("this is a rule and not a network", fix="tn.rule(...) reads rules")
    reader.expect_end()
    return network


def parse_rule(text: str) -> tuple[Network, Network]:
    """Read the two sides of a rule, "left => right", whose attributes may be variables (`stride=s`).

    Returns:
        The left and the right network. A right side without `->` has the output of the left side.

    Raises:
        NotationError, NetworkError, SizeError: as in `parse`.
    """
    reader = _Reader(text, variables=True)
    left = reader.network(None)
    if reader.peek.kind != "rule":
        reader.fail("a rule needs '=>' between its two sides")
    reader.take()
    right = reader.network(left.output)
    reader.expect_end()
    return left, right


_Sizes: TypeAlias = dict[str, tuple[int, int]]
"""label -> its size, and the character at which the text says so."""


class _Product(NamedTuple):
    """The nodes of a term, the characters at which they start, and the sizes that are written in it."""

    nodes: list[Node]
    starts: list[int]
    sizes: _Sizes


class _Reader:
    def __init__(self, text: str, *, variables: bool) -> None:
        if not isinstance(text, str):
            raise NotationError(f"a network is read from text, not from {type(text).__name__}")
        if len(text) > MAX_CHARACTERS:
            raise NotationError(f"the text has {len(text)} characters; at most {MAX_CHARACTERS} are read")
        self.text = text
        self.variables = variables
        self.tokens = list(self._tokens())
        self.position = 0

    def _tokens(self) -> Iterator[Token]:
        start = 0
        while start < len(self.text):
            match = TOKEN.match(self.text, start)
            if match is None:
                self.fail(f"character {self.text[start]!r} has no meaning here", at=start)
            kind = match.lastgroup or ""
            if kind != "space":
                yield Token(match.group() if kind == "mark" else kind, match.group(), start)
            start = match.end()
        yield Token("end", "", len(self.text.rstrip()))

    @property
    def peek(self) -> Token:
        return self.tokens[self.position]

    def take(self) -> Token:
        token = self.peek
        self.position += token.kind != "end"
        return token

    def fail(self, fact: str, *, at: int | None = None, **context: Any) -> NoReturn:
        raise NotationError(fact, where=_pointed(self.text, self.peek.start if at is None else at), **context)

    def expect(self, kind: str, fact: str, *, fix: str | None = None) -> Token:
        if self.peek.kind != kind:
            self.fail(fact, fix=fix)
        return self.take()

    def expect_end(self) -> None:
        match self.peek.kind:
            case "end":
                return
            case "]":
                self.fail("this ']' has no '[' before it")
            case _:
                self.fail(f"{self.peek.text!r} is not a node", fix="NAME[label label ...]")

    def network(self, output: tuple[str, ...] | None) -> Network:
        """Read a network.

        Args:
            output: of a text without one; None for the labels that occur once.
        """
        terms = [self._product()]
        while self.peek.kind == "+":
            self.take()
            terms.append(self._product())
        outputs: dict[str, int] = {}
        if self.peek.kind == "arrow":
            output = self._output(terms[0].sizes, outputs)
        elif output is None:
            output = self._implied(terms)
        else:
            self._check_right(terms, output)
        sized = [(term.nodes, {label: size for label, (size, _) in term.sizes.items()}) for term in terms]
        try:
            return sum_of_products(sized, output)
        except (NetworkError, SizeError) as error:
            raise self._located(error, terms, output, outputs) from None

    def _product(self) -> _Product:
        """Read the nodes of one term."""
        term = _Product([], [], {})
        while self.peek.kind == "word":
            term.starts.append(self.peek.start)
            term.nodes.append(self._node(term.sizes))
        if not term.nodes:
            self.fail("a node is missing here", fix="NAME[label label ...], for example K[out in kh kw]")
        return term

    def _output(self, sizes: _Sizes, starts: dict[str, int]) -> tuple[str, ...]:
        """Read an arrow and the output labels behind it."""
        self.take()
        fix = "'=>' between the two sides of a rule, or -> [label label ...]" if self.variables else None
        fact = "'->' needs the output labels in brackets"
        opening = self.expect("[", fact, fix=fix or "-> [label label ...]")
        output = tuple(self._labels(sizes, opening, starts))
        if self.peek.kind == "|":
            self.fail("the output cannot have attributes", fix="-> [label label ...]")
        self._close(opening)
        if self.peek.kind in ("word", "arrow"):
            self.fail(f"{self.peek.text!r} comes after the output", fix="nodes first, then -> [label label ...]")
        if self.peek.kind == "+":
            self.fail("a term comes after the output", fix="A[i j] + B[i j] -> [i j]: one output, after all terms")
        return output

    def _implied(self, terms: Sequence[_Product]) -> tuple[str, ...]:
        """The labels that occur once. Every term of a sum must have the same ones."""
        output = implied_output([term.nodes for term in terms])
        if output is not None:
            return output
        first = default_output(terms[0].nodes)
        for number, term in enumerate(terms[1:], 2):
            other = default_output(term.nodes)
            if {*other} != {*first}:
                label = next(label for label in (*first, *other) if (label in first) != (label in other))
                which, without = (1, number) if label in first else (number, 1)
                self.fail(
                    f"the label {label!r} is open in term {which} of the sum, and not in term {without}",
                    at=term.starts[0],
                    fix=f"Fill[{label} | value=1] in a term that lacks it, or '-> [labels of the output]' at the end",
                )
        return first

    def _check_right(self, terms: Sequence[_Product], output: Sequence[str]) -> None:
        """Refuse a right side that lacks a label of the left side's output."""
        for number, term in enumerate(terms, 1):
            lacking = [label for label in output if all(label not in node.labels for node in term.nodes)]
            if lacking:
                side = "the right side of the rule" if len(terms) == 1 else f"term {number} of the rule's right side"
                fact = f"{side} lacks the label {lacking[0]!r}, which is open on the left side"
                raise NetworkError(fact, rule=self.text, fix=f"{lacking[0]!r} on a node of the right side")

    def _located(
        self,
        error: NetworkError | SizeError,
        terms: Sequence[_Product],
        output: Collection[str],
        outputs: Mapping[str, int],
    ) -> NetworkError | SizeError:
        """The error with the line of the text, and a mark below the node or the size that it is about."""
        starts = [start for term in terms for start in term.starts]
        apart = [
            node for nodes in local_labels_apart([(term.nodes, {}) for term in terms], output)[0] for node in nodes
        ]
        starting = [(("->", label), start) for label, start in outputs.items()]
        wrong = [start for thing, start in (*zip(apart, starts, strict=True), *starting) if thing == error.at]
        sizes = {label: place for term in terms for label, (_, place) in term.sizes.items()}
        places = {
            "here": _pointed(self.text, wrong[-1]) if wrong else None,
            "written": _pointed(self.text, sizes[error.label]) if error.label in sizes else None,
        }
        return type(error)(error.fact, **error.context, **places)

    def _node(self, sizes: _Sizes) -> Node:
        name = self.take()
        opening = self.expect("[", f"{name.text!r} has no brackets", fix=f"{name.text}[label label ...]")
        labels = tuple(self._labels(sizes, opening))
        attributes: dict[str, Any] = {}
        if self.peek.kind == "|":
            self.take()
            if name.text not in ATTRIBUTES:
                self._unknown_node(name)
            while self.peek.kind == "word":
                self._attribute(name, attributes)
        self._close(opening)
        try:
            return _build(name.text, labels, attributes)
        except NetworkError as error:
            self.fail(str(error), at=name.start)

    def _unknown_node(self, name: Token) -> NoReturn:
        if "max" in name.text.lower():
            self.fail(
                f"{name.text!r} is not a node: a maximum is not a sum of products",
                at=name.start,
                fix="average pooling, or keep max-pooling outside the network",
            )
        self.fail(
            f"{name.text!r} cannot have attributes: only {', '.join(ATTRIBUTES)} can",
            at=name.start,
            fix="one of these nodes, or a tensor without '|'",
        )

    def _labels(self, sizes: _Sizes, opening: Token, starts: dict[str, int] | None = None) -> Iterator[str]:
        while self.peek.kind not in ("|", "]"):
            if self.peek.kind in ("end", "arrow", "rule"):
                self._close(opening)
            if self.peek.kind == "[":
                self.fail("this '[' is inside another bracket", fix="close the first one: NAME[labels] NAME[labels]")
            label = self.expect("word", f"{self.peek.text!r} is not a label", fix="a word: letters, digits, '_'")
            if self.peek.kind == ":":
                self.take()
                token = self.expect("number", f"label {label.text!r} has no size after ':'")
                size = self._integer(token, f"the size of {label.text!r}")
                if size < 1:
                    self.fail(f"the size of {label.text!r} is {size}", at=token.start, fix="a size of at least 1")
                first, place = sizes.setdefault(label.text, (size, token.start))
                if first != size:
                    self.fail(
                        f"label {label.text!r} has two sizes, {first} and {size}",
                        at=token.start,
                        first=_pointed(self.text, place),
                    )
            if starts is not None:
                starts[label.text] = label.start
            yield label.text

    def _close(self, opening: Token) -> None:
        if self.peek.kind == "]":
            self.take()
        elif self.peek.kind in ("end", "arrow", "rule"):
            self.fail("this '[' is unclosed", at=opening.start, fix="a ']' behind its labels")
        else:
            self.fail(f"{self.peek.text!r} is inside a bracket", fix="']' before it")

    def _integer(self, token: Token, what: str) -> int:
        if not re.fullmatch(r"-?[0-9]{1,15}", token.text):
            self.fail(f"{what} is {_short(token.text)}", at=token.start, fix="an integer of at most 15 digits")
        return int(token.text)

    def _attribute(self, node: Token, attributes: dict[str, Any]) -> None:
        key = self.take()
        known = ATTRIBUTES[node.text]
        if key.text not in known:
            fix = f"{node.text} takes {', '.join(known)}" if known else f"{node.text} takes no attributes"
            self.fail(f"{node.text!r} has no attribute {key.text!r}", at=key.start, fix=fix)
        if key.text in attributes:
            self.fail(f"the attribute {key.text!r} occurs twice", at=key.start)
        self.expect("=", f"the attribute {key.text!r} has no value", fix=f"{key.text}=...")
        match key.text:
            case "padding":
                low = self._value(key, self._integer)
                high = low
                if self.peek.kind == ":":
                    self.take()
                    high = self._value(key, self._integer)
                    if self.peek.kind == ":":
                        self.fail("padding has more than two numbers", fix="padding=lo:hi")
                attributes[key.text] = (low, high)
            case "mode":
                attributes[key.text] = self._value(key, None, words=MODES)
            case "value":
                attributes[key.text] = self._value(key, self._fraction, words=("mean",))
            case _:
                attributes[key.text] = self._value(key, self._integer)

    def _fraction(self, token: Token, key: str) -> Fraction:
        exponent = re.search(r"[eE][+-]?([0-9]+)", token.text)
        if len(token.text) > MAX_DIGITS or (exponent and int(exponent[1]) > 300):
            self.fail(
                f"{key} is {_short(token.text)}", at=token.start, fix=f"at most {MAX_DIGITS} characters and 1e300"
            )
        number, _, denominator = token.text.partition("/")
        if denominator and int(denominator) == 0:
            self.fail(f"{key} divides by zero", at=token.start)
        return Fraction(number) / int(denominator or 1)

    def _value(
        self, key: Token, number: Callable[[Token, str], int | Fraction] | None, words: tuple[str, ...] = ()
    ) -> int | Fraction | str | Variable:
        token = self.take()
        if token.kind == "word" and token.text in words:
            return token.text
        if token.kind == "word" and self.variables:
            return Variable(token.text)
        if token.kind == "number" and number is not None:
            return number(token, key.text)
        allowed = [*(["a number"] if number else []), *words]
        self.fail(f"{key.text} is {_short(token.text)!r}", at=token.start, fix=f"{key.text}=" + ", ".join(allowed))


def _build(name: str, labels: tuple[str, ...], attributes: dict[str, Any]) -> Node:
    match name:
        case "Copy":
            return Copy(labels)
        case "Fuse":
            if len(labels) < 2:
                raise NetworkError("Fuse needs a whole and at least one part: Fuse[whole part part ...]")
            return Fuse(labels[0], labels[1:])
        case "Fill":
            if "value" not in attributes:
                raise NetworkError("Fill has no value: Fill[k | value=1/3] or Fill[k | value=mean]")
            return Fill(labels, attributes["value"])
        case "Conv":
            if len(labels) != 3:
                raise NetworkError(f"Conv has {len(labels)} labels, it needs 3: Conv[input output window]")
            low, high = attributes.pop("padding", (0, 0))
            return Conv(*labels, low=low, high=high, **attributes)
        case _:
            return NamedTensor(name, labels)


def _short(text: str) -> str:
    return text if len(text) <= 24 else f"{text[:20]}... ({len(text)} characters)"


def _pointed(text: str, at: int) -> str:
    """The line of `text` with the character `at`, shortened, and a caret below that character."""
    start = text.rfind("\n", 0, at) + 1
    end = text.find("\n", at)
    line = text[start : len(text) if end < 0 else end]
    column = at - start
    left, right = max(0, column - 60), min(len(line), column + 40)
    prefix = "..." if left else ""
    suffix = "..." if right < len(line) else ""
    shown = prefix + line[left:right] + suffix
    return f"{shown}\n{' ' * (len(prefix) + column - left)}^"
