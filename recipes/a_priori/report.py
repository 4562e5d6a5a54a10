"""What rows of recipes.a_priori say: a table of the contenders, a figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import tnalgebra as tn
from recipes.experiment import Row, Spread, last_epoch
from recipes.reporting import aligned, count_text

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DENSE = "dense"
"""The contender that is not decomposed."""


def finished(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Contender -> the rows of the last epoch, of one seed each; dense first, then as they came."""
    last = last_epoch(rows)
    found: dict[str, list[Row]] = {DENSE: []}
    for row in rows:
        if row["epoch"] == last:
            found.setdefault(row["contender"], []).append(row)
    return {text: there for text, there in found.items() if there}


def name_of(score: str) -> str:
    return "top-1" if score == "accuracy" else score.replace("_", " ")


def shown(value: float, score: str) -> str:
    return f"{100 * value:.2f} %" if score == "accuracy" else f"{value:.4f}"


def summary(rows: Sequence[Row]) -> str:
    """Each contender: its size, its score over the seeds, how far that is from the dense network's, its time."""
    contenders = finished(rows)
    score = rows[0]["score_name"]
    times, form = (100, ".2f") if score == "accuracy" else (1, ".4f")
    unit = ", %" if score == "accuracy" else ""
    head = ["contender", "parameters", "kept", "multiply-adds", "kept", name_of(score) + unit, "range", "less dense's"]
    lines = [[*head, "seeds", "s / epoch"]]
    dense = Spread.over(row["score"] for row in contenders[DENSE]).mean if DENSE in contenders else None
    for text, there in contenders.items():
        found = Spread.over(row["score"] for row in there)
        mean = {name: sum(row[name] for row in there) / len(there) for name in ("parameters", "parameters_kept")}
        adds = {name: sum(row[name] for row in there) / len(there) for name in ("multiply_adds", "multiply_adds_kept")}
        timed = [row["seconds"] for row in rows if row["contender"] == text]
        less = "" if dense is None or text == DENSE else f"{times * (found.mean - dense):+{form}}"
        cells = [f"{mean['parameters']:,.0f}", f"{mean['parameters_kept']:.3f}"]
        cells += [
            count_text(adds["multiply_adds"]),
            f"{adds['multiply_adds_kept']:.3f}",
            f"{times * found.mean:{form}}",
        ]
        cells += [found.range_text(form, times=times), less, str(found.of), f"{sum(timed) / len(timed):.3g}"]
        lines.append([text, *cells])
    first = rows[0]
    better = "higher is better" if score == "accuracy" else "lower is better, 1 is as good as zeros"
    title = (
        f"{first['model']}, trained from random weights for {last_epoch(rows)} epochs; "
        f"{name_of(score)} on {first['images']:,} test examples ({better})\n"
        "parameters of the whole network, multiply-adds of one example in factored form"
    )
    return f"{title}\n\n{aligned(lines)}"


def figure(rows: Sequence[Row]) -> Figure:
    """The score against parameters and against multiply-adds; whiskers reach from the least seed to the largest."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullFormatter

    contenders = finished(rows)
    score = rows[0]["score_name"]
    times = 100 if score == "accuracy" else 1
    drawing = Figure(figsize=(9.5, 4.2), layout="constrained")
    panels = drawing.subplots(1, 2, sharey=True)
    rewrites = list(dict.fromkeys(there[0]["rewrite"] for there in contenders.values() if there[0]["fraction"]))
    for panel, size in zip(panels, ("parameters", "multiply_adds"), strict=True):
        if DENSE in contenders:
            found = Spread.over(times * row["score"] for row in contenders[DENSE])
            panel.axhspan(found.low, found.high, color="#7f7f7f", alpha=0.25, linewidth=0)
            panel.axhline(found.mean, color="#4d4d4d", linestyle="--", linewidth=1, label=DENSE)
        for number, rewrite in enumerate(rewrites):
            points = []
            for there in contenders.values():
                if there[0]["rewrite"] == rewrite:
                    kept = sum(row[f"{size}_kept"] for row in there) / len(there)
                    points.append((kept, Spread.over(times * row["score"] for row in there)))
            points.sort(key=lambda point: point[0])
            means = [found.mean for _, found in points]
            reach = [[found.mean - found.low for _, found in points], [found.high - found.mean for _, found in points]]
            panel.errorbar(
                [kept for kept, _ in points],
                means,
                yerr=reach,
                color=tn.model.DISTINCT_COLOURS[number % len(tn.model.DISTINCT_COLOURS)],
                marker=tn.studies.MARKERS[number % len(tn.studies.MARKERS)],
                markersize=5,
                capsize=2,
                linewidth=1.2,
                label=rewrite,
            )
        panel.set_xscale("log")
        panel.set_xticks([0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1])
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.set_xlabel(f"{size.replace('_', '-')} kept, of the whole network")
        panel.grid(alpha=0.3)
    if score != "accuracy":
        panels[0].set_yscale("log")
    panels[0].set_ylabel("top-1 (%)" if score == "accuracy" else "relative error (1: as good as zeros)")
    handles, labels = panels[0].get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside lower center", ncols=5, fontsize="small", frameon=False)
    counts = sorted(map(len, contenders.values()))
    several = " to ".join(map(str, dict.fromkeys((counts[0], counts[-1]))))
    of = f"; means and ranges of {several} seeds" if counts[-1] > 1 else ""
    drawing.suptitle(
        f"{rows[0]['model']} trained in decomposed form from the start, {rows[0]['images']:,} test examples{of}",
        fontsize="medium",
    )
    return drawing
