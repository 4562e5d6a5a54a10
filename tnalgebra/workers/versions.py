"""What must be the same in all processes that share tasks, so that each of them computes the same results."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Mapping
from functools import cache
from importlib.metadata import version
from pathlib import Path


@cache
def versions() -> dict[str, str]:
    """The versions of Python and torch, without what does not change results, and that of this package with a hash of
    its code, which also distinguishes two checkouts."""
    package = Path(__file__).resolve().parent.parent
    code = hashlib.sha256()
    for path in sorted(package.rglob("*.py")):
        code.update(str(path.relative_to(package)).encode() + path.read_bytes())
    return {
        "python": ".".join(map(str, sys.version_info[:2])),
        "torch": version("torch").partition("+")[0],  # the rest says for which devices it was built
        "tnalgebra": f"{version('tnalgebra')} (code {code.hexdigest()[:8]})",
    }


def differences(theirs: Mapping[str, str]) -> str:
    """How the versions of another process differ from those of this one; empty if they do not."""
    ours = versions()
    return ", ".join(
        f"{name} {theirs.get(name)} instead of {ours[name]}" for name in ours if theirs.get(name) != ours[name]
    )
