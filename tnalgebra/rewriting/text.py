"""`rule` makes a rule from one line of notation, plain or with stars."""

from __future__ import annotations

from collections.abc import Mapping

from .plain import plain_rule
from .rule import Rule
from .starred import starred_rule


def rule(text: str, *, name: str | None = None, fixed: Mapping[str, str] | None = None) -> Rule:
    """Make a rule, such as a decomposition, from one line of notation.

    The names, labels and attributes of the left side are variables: a tensor of the left side matches any named tensor
    with the same number of labels. Open labels are common to both sides. The other labels of the right side are new
    bonds, whose size the caller of `apply` chooses. A name on both sides keeps its value; the other names on the right
    side are new tensors.

    Args:
        text: the two sides, "K[out in kh kw] => U[out a] G[a b kh kw] V[b in]". A right side without `->` has the
            output of the left side. `*k` stands for any number of open labels, the same on both sides.
        name: the name in messages, traces and rows of studies; by default the text.
        fixed: for tensors of the right side that are not fitted, the name of their basis: "dct", "fourier",
            "haar" or "hadamard", a matrix whose orthonormal rows are numbered by the first label.

    Returns:
        An exact rule if the right side has no new tensors, after both sides were compared on random numbers; or if it
        is one new tensor, which is then the contracted left side. Otherwise an approximate rule, whose new tensors are
        fitted: by singular value decompositions if they form a tree, by a descent from several starts if not.

    Raises:
        NotationError, NetworkError, SizeError: the text is not a rule.
        RuleError: the two sides do not fit together, or an exact rule changes the value.

    Example:
        >>> ring = tn.rule("K[o i h w] => A[z o p] B[p i q] C[q h s] D[s w z]", name="my_ring")
        >>> ring.apply(conv.weight, "parameters 0.3").relative_error
    """
    starred = isinstance(text, str) and "*" in text
    return (starred_rule if starred else plain_rule)(text, name=name, fixed=fixed)
