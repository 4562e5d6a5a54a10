"""`rule`: a rule of one line of notation, plain or with stars."""

from __future__ import annotations

from collections.abc import Mapping

from .plain import plain_rule
from .rule import Rule
from .starred import starred_rule


def rule(text: str, *, name: str | None = None, fixed: Mapping[str, str] | None = None) -> Rule:
    """Make a rule of one line of notation.

    The names, labels and attributes of the left side are variables: a left tensor matches any named tensor with as
    many labels. Open labels are common to both sides; other labels of the right side are new bonds, whose ranks
    `apply(ranks=...)` chooses. A name on both sides keeps its value; other names on the right are new tensors.

    Args:
        text: "K[out in kh kw] => U[out a] G[a b kh kw] V[b in]". A right side without `->` has the left side's
            output. `*k` stands for any number of open labels, the same on both sides.
        name: for messages, traces and rows of studies; by default the text.
        fixed: tensor of the right side -> name of the basis it is ("dct"), a matrix whose rows are numbered by its
            first label. It is not fitted.

    Returns:
        An exact rule where the right side has no new tensors (its two sides are compared on random numbers first; if
        some sizes fit only one of them, the rule wants to know the sizes where it applies), or is one new tensor,
        which is then the left side contracted; else an approximate one, whose new tensors are fitted: by SVDs if they
        are a tree (see `fitting.trees`), by descent from several starts if not.

    Raises:
        NotationError, NetworkError, SizeError: the text is not a rule.
        RuleError: the two sides do not fit together, or are said to be equal and are not.
    """
    starred = isinstance(text, str) and "*" in text
    return (starred_rule if starred else plain_rule)(text, name=name, fixed=fixed)
