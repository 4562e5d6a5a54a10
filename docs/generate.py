"""Pages and pictures of the docs that are made from the library.

python docs/generate.py                        rules.md and the drawings
python docs/generate.py NAME runs/FOLDER       the figures of a study; its table, where study.md has a mark NAME
"""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from textwrap import fill

import tnalgebra as tn
from tnalgebra.decompositions.catalogue import CATALOGUE, Entry
from tnalgebra.errors import RuleError
from tnalgebra.labels import KERNEL_LABELS
from tnalgebra.notation import parse_rule
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

KINDS = {"Linear": 2, "Conv1d": 3, "Conv2d": 4, "Conv3d": 5}
"""What has a kernel -> its number of axes."""


def rules_page() -> str:
    """docs/rules.md: every exact rule with its equation and docstring, every decomposition with equation and source."""
    simplifying = {rule.name for rule in tn.SIMPLIFY}
    lines = [
        "# Rules",
        "",
        "Exact rules keep the value of a network; decompositions approximate a tensor by a network. `rules()` prints",
        "all of them. This page is generated from the library by `python docs/generate.py`.",
        "",
        "## Exact rules",
        "",
        "Those marked *simplify* are what `simplify` applies: they only ever make a network smaller, so any order",
        "ends. `rewrite` takes any list of rules.",
    ]
    for rule in tn.EXACT_RULES:
        mark = " *(simplify)*" if rule.name in simplifying else ""
        lines += ["", f"### {rule.name}{mark}", "", f"    {rule.equation}", "", rule.explanation]
    lines += [
        "",
        "## Decompositions",
        "",
        "Each by its name, with the rule for every kind of kernel that it exists for: a weight as torch stores it, one",
        "label an axis. Labels that stand on the right side only are bonds, whose ranks are chosen, and parts of a",
        "`Fuse`, whose sizes are. A cut is a decomposition by its own text: `out kh | in kw` is",
        "`K[out in kh kw] => L[out kh r] R[r in kw]`.",
    ]
    for entry in CATALOGUE:
        equations, missing = equations_of(entry)
        lines += ["", f"### {entry.name}", "", fill(entry.source, 110), ""]
        lines += [f"    {kind}  {equation}" for kind, equation in equations.items()]
        for reason in dict.fromkeys(missing.values()):
            kinds = ", ".join(kind for kind, other in missing.items() if other == reason)
            lines += ["", f"Not of {kinds}: {reason}."]
        lines += ["", f"![{entry.name}](images/rule-{entry.name}.svg)"]
    return "\n".join(lines) + "\n"


def equations_of(entry: Entry) -> tuple[dict[str, str], dict[str, str]]:
    """Kind of kernel -> the equation of the decomposition, or the reason why there is none."""
    found, missing = {}, {}
    for kind, axes in KINDS.items():
        try:
            found[kind] = entry.make(KERNEL_LABELS[axes]).equation
        except RuleError as error:
            missing[kind] = str(error).splitlines()[0]
    return found, missing


def drawn(entry: Entry) -> tn.Network:
    """What `images/rule-NAME.svg` shows: the right side for a Conv2d, else for a Linear."""
    equations, _ = equations_of(entry)
    return parse_rule(equations.get("Conv2d") or equations["Linear"])[1]


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
    for entry in CATALOGUE:
        tn.draw(drawn(entry), DOCS / "images" / f"rule-{entry.name}.svg")


if __name__ == "__main__":
    main()
