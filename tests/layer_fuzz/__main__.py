"""Random layers under everything that people do to modules, against torch's layers and a slow float64 reference.

python -m tests.layer_fuzz --layers 5000 --seed 0
python -m tests.layer_fuzz --case 0-1234            one case again, with the trace of its error

Each case is one random layer with a random rewrite, in a random dtype, mode and device, called on a random input after
a random transform. A run that was stopped continues where it was, tries again what failed, and prints the tables of all
rows of its file.
"""

from __future__ import annotations

import argparse
import json
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from tests.layer_fuzz.cases import draw_case
from tests.layer_fuzz.transforms import TRANSFORMS
from tests.layer_fuzz.verdicts import BOTH_REFUSE, EQUAL, NOT_MADE, ONLY_OURS, REFUSED, run_case

FINE = (EQUAL, ONLY_OURS, BOTH_REFUSE, REFUSED)
ATTEMPTS = 50
"""Draws of one number, until a layer can be made of what was drawn."""


def fuzz(number: str) -> list[dict[str, Any]]:
    """Rows of a number: what could not be made, by refusals of this library or of torch, and the first layer made."""
    rows = []
    for attempt in range(ATTEMPTS):
        row = run_case(draw_case(f"{number}.{attempt}", TRANSFORMS))
        rows.append(row.record())
        if row.verdict != NOT_MADE:
            break
    return rows


def summary(rows: Sequence[dict[str, Any]]) -> str:
    """Tables of verdicts by transform, dtype, device, mode, input and layer, and the reasons of refusals."""
    made = [row for row in rows if row["verdict"] != NOT_MADE]
    verdicts = [*FINE, *sorted({row["verdict"] for row in made} - {*FINE})]
    lines = [f"{len(made)} layers, {len(rows) - len(made)} draws that this library or torch refused to make"]
    for key in ("layer", "transform", "dtype", "device", "mode", "input"):
        lines += ["", f"| {key} | layers | {' | '.join(verdicts)} |", f"|---|{'---|' * (len(verdicts) + 1)}"]
        for value in sorted({row[key] for row in made}):
            counts = Counter(row["verdict"] for row in made if row[key] == value)
            lines.append(f"| {value} | {counts.total()} | {' | '.join(str(counts[one]) for one in verdicts)} |")
    counts = Counter(row["verdict"] for row in made)
    lines += ["", *(f"{one}: {counts[one]}" for one in verdicts), "", "reasons of refusals where torch's layer works:"]
    reasons = Counter(_general(row["reason"]) for row in made if row["verdict"] == REFUSED)
    lines += [f"  {count:4} {reason}" for reason, count in reasons.most_common()]
    worst = max((row for row in made if row["verdict"] == EQUAL), key=lambda row: row["ratio"], default=None)
    if worst:
        lines.append(f"\nlargest error of an equal layer: {worst['ratio']:.2g} of what rounding allows")
    return "\n".join(lines)


def _general(reason: str) -> str:
    return re.sub(r"\b\d+\b", "N", re.sub(r"'[^']*'", "'...'", reason))


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.layer_fuzz", description=__doc__, formatter_class=_Text)
    parser.add_argument("--layers", type=int, default=5000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("runs/layer_fuzz"))
    parser.add_argument("--case", help="the number of one case")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.case:
        row = run_case(draw_case(options.case, TRANSFORMS))
        print(row.case, row.verdict, row.reason, sep="\n")
        return
    path = options.output / f"rows-{options.seed}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = path.read_text(encoding="utf-8").rpartition("\n")[0] if path.exists() else ""
    rows = [row for row in map(json.loads, whole.splitlines()) if row["verdict"] in (*FINE, NOT_MADE)]
    done = {row["number"].partition(".")[0] for row in rows if row["verdict"] != NOT_MADE}
    with path.open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
        numbers = [f"{options.seed}-{number}" for number in range(options.layers)]
        for number in tqdm([one for one in numbers if one not in done], unit="layer", disable=None):
            for row in fuzz(number):
                rows.append(row)
                file.write(json.dumps(row) + "\n")
            file.flush()
    print(summary(rows))
    for row in rows:
        if row["verdict"] not in (*FINE, NOT_MADE):
            print(f"\n{row['verdict']}: {row['case']}\n{row['reason']}")


class _Text(argparse.RawDescriptionHelpFormatter):
    pass


if __name__ == "__main__":
    main()
