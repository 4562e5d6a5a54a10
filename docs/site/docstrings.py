"""Docstrings as mkdocstrings reads them: their examples are code in the reference, with or without a heading."""

from __future__ import annotations

import re
from typing import Any

import griffe

EXAMPLE = re.compile(r"^Example:$", re.MULTILINE)
SESSION = re.compile(r"^>>> (?:.+\n?)+", re.MULTILINE)


class Examples(griffe.Extension):
    """Names the section of examples as mkdocstrings does, and marks examples in the running text as code."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Change the docstring of an object that was read."""
        if obj.docstring is not None:
            text = EXAMPLE.sub("Examples:", obj.docstring.value)
            obj.docstring.value = SESSION.sub(lambda session: f"```pycon\n{session[0].rstrip()}\n```\n", text)
