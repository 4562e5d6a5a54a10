"""The list of docs/command.md: every command of `tnalgebra` with what it does and its example, from its help."""

from __future__ import annotations

import inspect
import textwrap

from tnalgebra.command.line import COMMANDS


def commands_section() -> str:
    """The commands in markdown: what each does, and the example of its help."""
    sections = []
    for name, kind in COMMANDS.items():
        text, _, example = (inspect.getdoc(kind) or "").partition("Example: ")
        paragraphs = [textwrap.fill(" ".join(part.split()), 120) for part in text.strip().split("\n\n")]
        sections += [f"## {name}", *paragraphs, f"```sh\n{' '.join(example.split())}\n```"]
    return "\n\n".join(sections)
