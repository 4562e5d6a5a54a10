"""Pages and pictures of the docs that are made from the library.

python docs/generate.py                        rules.md and the drawings
python docs/generate.py NAME runs/FOLDER       the figures of a study; its table, where study.md has a mark NAME
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path

import tnalgebra as tn
from tnalgebra.study_store import read_rows, table

DOCS = Path(__file__).parent

PICTURES = {
    "convolution": "X[n in x y] Conv[x u kh | stride=2 padding=1] Conv[y v kw | stride=2 padding=1] K[out in kh kw] "
    "-> [n out u v]",
    "tucker": "G[a b c d] U[out a] V[in b] P[kh c] Q[kw d] -> [out in kh kw]",
    "tensor_train": "A[out p] B[p in q] C[q kh s] D[s kw]",
    "tensor_ring": "A[z out p] B[p in q] C[q kh s] D[s kw z]",
    "cp": "A[out r] B[in r] C[kh r] D[kw r] -> [out in kh kw]",
}
"""Networks that the docs show; `images/NAME.svg`."""


def rules_page() -> str:
    """docs/rules.md: every exact rule with its equation and its docstring."""
    simplifying = {rule.name for rule in tn.SIMPLIFY}
    lines = [
        "# Exact rules",
        "",
        "They keep the value of a network. Those marked *simplify* are what `simplify` applies: they only ever make a",
        "network smaller, so any order ends. `rewrite` takes any list of rules. This page is generated from the",
        "docstrings by `python docs/generate.py`.",
    ]
    for rule in tn.EXACT_RULES:
        mark = " *(simplify)*" if rule.name in simplifying else ""
        lines += ["", f"## {rule.name}{mark}", "", f"    {rule.equation}", "", rule.explanation]
    return "\n".join(lines) + "\n"


def store_study(name: str, folder: Path) -> None:
    """Take over the figures that the pages show; write the table between `<!-- NAME -->` and `<!-- end -->`."""
    rows = read_rows(folder)
    kind = f"{rows[0]['images']} test images, config {rows[0]['config']}, version {rows[0]['version']}"
    block = f"<!-- {name} -->\n\n```text\n{table(rows)}\n```\n\n{kind}.\n\n<!-- end -->"
    page = DOCS / "study.md"
    text, count = re.subn(
        rf"<!-- {name} -->.*?<!-- end -->", lambda _: block, page.read_text(encoding="utf-8"), flags=re.DOTALL
    )
    if count > 1:
        raise SystemExit(f"study.md has {count} places marked <!-- {name} -->")
    page.write_text(text, encoding="utf-8")
    pages = text + (DOCS.parent / "README.md").read_text(encoding="utf-8")
    for figure in folder.glob("*.png"):
        if f"images/{name}_{figure.name}" in pages:
            shutil.copyfile(figure, DOCS / "images" / f"{name}_{figure.name}")


def main() -> None:
    if len(sys.argv) == 3:
        store_study(sys.argv[1], Path(sys.argv[2]))
        return
    (DOCS / "rules.md").write_text(rules_page(), encoding="utf-8")
    for name, text in PICTURES.items():
        network = tn.parse(text)
        tn.draw(network, DOCS / "images" / f"{name}.svg")


if __name__ == "__main__":
    main()
