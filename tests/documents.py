"""README.md and the pages of docs/ as programs: every python block runs, and a text block after one is what it printed.

`python -m tests.documents` writes those outputs again that do not agree with what is printed now; the test compares.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import tempfile
import warnings
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md"), *(ROOT / "docs" / "gallery").glob("*.md")])

BLOCK = re.compile(r"```python\n(?P<code>.*?)```\n(?:\n```text\n(?P<output>.*?)```\n)?", re.DOTALL)

TOLERANCE = 0.01
"""By how much of itself a printed number may differ; one with a decimal point also by one in its last place."""

TIME = re.compile(r"\b\d+(?:[.,]\d+)*\s*(?:s|ms|us|µs|seconds)\b")
NUMBER = re.compile(r"(?<![\w.])[-+]?\d+(?:,\d{3})*(?:\.\d+)?(?:e[-+]?\d+)?(?!\w)")


def agree(one: str, other: str) -> bool:
    """Whether two printed texts differ in times, in white space, and in numbers within the tolerance only."""
    texts = [TIME.sub("<time>", text) for text in (one, other)]
    words = [" ".join(re.sub(r"-{3,}", "---", NUMBER.sub("<number>", text)).split()) for text in texts]
    numbers = [NUMBER.findall(text) for text in texts]
    return words[0] == words[1] and all(map(_near, *numbers))


def _near(one: str, other: str) -> bool:
    a, b = (float(text.replace(",", "")) for text in (one, other))
    last_place = max(10.0 ** -len(re.sub(r".*\.|e.*", "", text)) for text in (one, other)) if "." in one + other else 0
    return abs(a - b) <= max(TOLERANCE * max(abs(a), abs(b)), 1.001 * last_place)


def run(document: Path) -> str:
    """The document, with each output that does not agree with what its python blocks print, in one namespace."""
    text = document.read_text(encoding="utf-8")
    namespace: dict[str, object] = {"__name__": "document"}

    def run_block(block: re.Match[str]) -> str:
        line = text[: block.start()].count("\n") + 1
        code = compile("\n" * line + block["code"], str(document), "exec")
        with contextlib.redirect_stdout(io.StringIO()) as printed:
            exec(code, namespace)
        if agree(block["output"] or "", printed.getvalue()):
            return block[0]
        output = f"\n```text\n{printed.getvalue().rstrip()}\n```\n" if printed.getvalue() else ""
        return f"```python\n{block['code']}```\n{output}"

    os.environ["TNALGEBRA_TUNE"] = "0"  # the pages show the plans that are predicted, which every machine has
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        return BLOCK.sub(run_block, text)


SIDE_BY_SIDE = re.compile(
    r"```python\n(?P<ours>.*?)```\n|```py\n(?P<theirs>.*?)```\n|^\|(?P<row>[^\n]*`[^\n]*)\|$", re.DOTALL | re.MULTILINE
)
CELL = re.compile(r"(?<!\\)\|")


def run_side_by_side(document: Path) -> int:
    """Run the last two columns of the tables: lines of another library, and ours; the number of rows that were run.

    Lines of a library that is not installed are left out. What both lines call `y` must be equal.
    """
    ours: dict[str, Any] = {}
    theirs: dict[str, Any] | None = None
    rows = 0
    for match in SIDE_BY_SIDE.finditer(document.read_text(encoding="utf-8")):
        if match["ours"]:
            exec(match["ours"], ours)
            if theirs is not None:
                theirs |= ours
        elif match["theirs"]:
            theirs = _imported(match["theirs"], ours)
        elif theirs is not None or ours:
            their_line, our_line = (
                cell.strip().strip("`").replace("\\|", "|") for cell in CELL.split(match["row"])[-2:]
            )
            exec(our_line, ours)
            rows += 1
            if theirs is not None:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of the other library
                    exec(their_line, theirs)
                if "y" in theirs and their_line.startswith("y ="):
                    torch.testing.assert_close(torch.as_tensor(theirs["y"]).double(), ours["y"], rtol=1e-5, atol=1e-5)
    return rows


def _imported(imports: str, namespace: dict[str, Any]) -> dict[str, Any] | None:
    """A copy of the namespace with another library's names in it; None where the library is not installed."""
    copy = dict(namespace)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            exec(imports, copy)
    except ImportError:
        return None
    return copy


if __name__ == "__main__":
    for document in DOCUMENTS:
        text = run(document)
        if text != document.read_text(encoding="utf-8"):
            document.write_text(text, encoding="utf-8")
            print(f"wrote {document.relative_to(ROOT)}")
