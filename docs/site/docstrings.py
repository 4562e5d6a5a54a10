"""Docstrings for mkdocstrings: examples become code, with or without a heading, and fields of a class become a list."""

from __future__ import annotations

import re
from typing import Any

import griffe

EXAMPLE = re.compile(r"^Example:$", re.MULTILINE)
SESSION = re.compile(r"^>>> (?:.+\n?)+", re.MULTILINE)
SECTION = re.compile(r"[A-Z]\w+:$")
LINE_START = re.compile(r" *\**")
FIELD = re.compile(r"[a-z]\w*(, \w+)*: .")


class Readable(griffe.Extension):
    """Changes what markdown would read as running text."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring of an object that was read."""
        if obj.docstring is not None:
            text = EXAMPLE.sub("Examples:", with_asterisks(obj.docstring.value))
            text = SESSION.sub(lambda session: f"```pycon\n{session[0].rstrip()}\n```\n", text)
            obj.docstring.value = "\n\n".join(map(_as_list, text.split("\n\n")))


def with_asterisks(docstring: str) -> str:
    """An asterisk outside of code is an asterisk, and never emphasis."""
    lines: list[str] = []
    section = session = quoted = False
    for line in docstring.splitlines():
        section = (section and line[:1] in ("", " ")) or bool(SECTION.match(line))
        session = bool(line.strip()) and (session or line.lstrip().startswith(">>>"))
        quoted = quoted and bool(line.strip())
        if session or (line.startswith("    ") and not section):
            lines.append(line)
            continue
        start = LINE_START.match(line)[0]  # of a parameter, `**values: ...`
        parts = line.removeprefix(start).split("`")
        escaped = (part if quoted ^ bool(n % 2) else part.replace("*", r"\*") for n, part in enumerate(parts))
        lines.append(start + "`".join(escaped))
        quoted ^= len(parts) % 2 == 0
    return "\n".join(lines)


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
