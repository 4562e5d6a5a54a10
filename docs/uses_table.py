"""The table of docs/layers.md of what people do to modules, and what comes of it with decomposed layers."""

from __future__ import annotations

import tests.uses  # noqa: F401  lists the uses
from tests.use_cases import NETWORKS, USES


def uses_table() -> str:
    """The table in markdown, of the outcomes that the tests find."""
    lines = ["| | what is done | layers | outcome |", "|---|---|---|---|"]
    before = ""
    for use in USES:
        without = ", ".join(name for name in NETWORKS if name not in use.layers and not name.startswith("Conv"))
        layers = f"all but {without}" if without else "all"
        lines.append(f"| {use.group if use.group != before else ''} | {use.text} | {layers} | {use.expected} |")
        before = use.group
    return "\n".join(lines)
