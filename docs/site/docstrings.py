"""Docstrings for mkdocstrings: examples become code, with or without a heading, and fields of a class become a list."""

from __future__ import annotations

import re
from typing import Any

import griffe

EXAMPLE = re.compile(r"^Example:$", re.MULTILINE)
SESSION = re.compile(r"^>>> (?:.+\n?)+", re.MULTILINE)
FIELD = re.compile(r"[a-z]\w*(, \w+)*: .")


class Readable(griffe.Extension):
    """Changes what markdown would read as running text."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring of an object that was read."""
        if obj.docstring is not None:
            text = EXAMPLE.sub("Examples:", obj.docstring.value)
            text = SESSION.sub(lambda session: f"```pycon\n{session[0].rstrip()}\n```\n", text)
            obj.docstring.value = "\n\n".join(map(_as_list, text.split("\n\n")))


def _as_list(paragraph: str) -> str:
    """A paragraph of lines such as `name: text`, each with its indented continuation, as a list in markdown."""
    items: list[str] = []
    for line in paragraph.splitlines():
        if FIELD.match(line):
            name, _, text = line.partition(": ")
            items.append(f"- **{name}**: {text}")
        elif items and line.startswith(" "):
            items[-1] += " " + line.strip()
        else:
            return paragraph
    return "\n".join(items) if len(items) > 1 else paragraph
