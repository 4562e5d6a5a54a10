"""README.md and docs/*.md as programs: every python block runs, every text block after one is what it printed.

`python tests/documents.py` writes the outputs anew; the test compares.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])

BLOCK = re.compile(r"```python\n(?P<code>.*?)```\n(?:\n```text\n(?P<output>.*?)```\n)?", re.DOTALL)


def produced(document: Path) -> str:
    """The document with each python block executed, in order, in one namespace, and each output made anew."""
    namespace: dict[str, object] = {"__name__": "document"}

    def run(block: re.Match[str]) -> str:
        line = document.read_text(encoding="utf-8")[: block.start()].count("\n") + 2
        code = compile("\n" * (line - 1) + block["code"], str(document), "exec")
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(code, namespace)
        text = f"```python\n{block['code']}```\n"
        return text + f"\n```text\n{printed.getvalue().rstrip()}\n```\n" if printed.getvalue() else text

    here = os.getcwd()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        try:
            return BLOCK.sub(run, document.read_text(encoding="utf-8"))
        finally:
            os.chdir(here)


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))  # of the networks in models/, before tests/models
    for document in DOCUMENTS:
        text = produced(document)
        if text != document.read_text(encoding="utf-8"):
            document.write_text(text, encoding="utf-8")
            print(f"wrote {document.relative_to(ROOT)}")
