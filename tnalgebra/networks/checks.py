"""What is not a network: nodes, and outputs of networks, that would not mean anything."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from fractions import Fraction

from ..errors import NetworkError
from .labels import MAX_AXES, MAX_DIGITS, MAX_OUTPUT, MAX_SIZE, check_words
from .nodes import MODES, RESERVED, Conv, Fill, Fuse, NamedTensor, Node, Variable, node_text

MAX_FILL = 10**300
"""The largest value of a Fill, which still fits a float64."""


def _check_node(node: Node) -> None:
    """Check a node by itself, except for its words."""
    if len(node.labels) > MAX_AXES:
        fix = f"at most {MAX_AXES} axes, which is torch's limit: fuse some labels"
        raise NetworkError(f"node {node.name!r} has {len(node.labels)} axes", fix=fix, at=node)
    match node:
        case NamedTensor() if node.name in RESERVED:
            fact = f"{node.name!r} is the name of a reserved node, and a tensor cannot have it"
            raise NetworkError(fact, fix="another name", at=node)
        case Fuse() if not node.parts:
            raise _wrong(node, "Fuse has no parts", fix="Fuse[whole part part ...]")
        case Conv():
            for attribute in ("stride", "low", "high", "dilation"):
                number: object = getattr(node, attribute)
                if isinstance(number, Variable):
                    continue
                if not isinstance(number, int) or abs(number) > MAX_SIZE:
                    raise _wrong(node, f"{attribute} is {number!r}", fix=f"an integer of at most {MAX_SIZE}")
                if attribute in ("stride", "dilation") and number < 1:
                    raise _wrong(node, f"{attribute} is {number}", fix=f"a {attribute} of at least 1")
            if not isinstance(node.mode, Variable) and node.mode not in MODES:
                raise _wrong(node, f"mode is {node.mode!r}", fix="one of " + ", ".join(MODES))
        case Fill():
            _check_value(node)


def only_nodes(nodes: object) -> tuple[Node, ...]:
    """The nodes as a tuple. Raises NetworkError for anything else."""
    several = tuple(nodes) if isinstance(nodes, Iterable) else (nodes,)
    wrong = [one for one in several if not isinstance(one, Node)]
    if wrong:
        fact = f"a {type(wrong[0]).__name__} is given where a node is needed"
        raise NetworkError(fact, fix="tn.parse('A[i j] B[j k]')")
    return several


def check_nodes(nodes: Sequence[Node]) -> None:
    """Check the nodes of a network, each by itself and all together. Raises NetworkError."""
    if not nodes:
        raise NetworkError("a network has no nodes", fix="at least one, for example K[out in kh kw]")
    check_words([label for node in nodes for label in node.labels], what="label")
    check_words([node.name for node in nodes if isinstance(node, NamedTensor)], what="tensor name")
    first: dict[str, Node] = {}
    for node in nodes:
        _check_node(node)
        other = first.setdefault(node.name, node)
        if isinstance(node, NamedTensor) and len(other.labels) != len(node.labels):
            raise NetworkError(
                f"the tensor {node.name!r} occurs with {len(other.labels)} and with {len(node.labels)} axes",
                first=node_text(other),
                second=node_text(node),
                fix="rename one of them: nodes with the same name are the same tensor",
                at=node,
            )


def check_output(nodes: Sequence[Node], output: Sequence[str]) -> None:
    """Check the output labels of a network with these nodes. Raises NetworkError."""
    if len(output) > MAX_OUTPUT:
        raise NetworkError(f"the output has {len(output)} axes", fix=f"at most {MAX_OUTPUT}")
    labels = {label for node in nodes for label in node.labels}
    for label in output:
        if label not in labels:
            raise NetworkError(
                f"no node carries the output label {label!r}",
                labels=" ".join(sorted(labels)),
                at=("->", label),
            )
        if output.count(label) > 1:
            raise NetworkError(
                f"the output names {label!r} twice",
                where=f"-> [{' '.join(output)}]",
                fix=f"a second label joined to it by Copy[{label} {label}_2]",
                at=("->", label),
            )


def _check_value(node: Fill) -> None:
    value: object = node.value
    if value == "mean" or isinstance(value, Variable):
        return
    if not isinstance(value, int | Fraction):
        raise _wrong(node, f"Fill has value {value!r}", fix="a Fraction, an integer or 'mean'")
    if abs(Fraction(value)) > MAX_FILL or len(str(value)) > MAX_DIGITS:
        raise NetworkError(
            f"Fill has a value of {len(str(value))} digits",
            where=f"Fill[{' '.join(node.labels)}]",
            fix=f"at most {MAX_DIGITS}, and at most 1e300",
            at=node,
        )


def _wrong(node: Node, fact: str, *, fix: str) -> NetworkError:
    return NetworkError(fact, where=node_text(node), fix=fix, at=node)
