"""The results of recipes.a_priori: a table of the contenders, and a figure."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Any

from recipes.experiment import Row, Spread, draw_spreads, name_seeds
from recipes.reporting import aligned, count_text, line_style

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DENSE = "dense"
"""The name of the contender that is not decomposed."""


def finished(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Contender -> its rows of its last epoch, one for each seed; dense first, then in the order of the rows."""
    contenders: dict[str, list[Row]] = {DENSE: []}
    for row in rows:
        if row["epoch"] == row["epochs"]:
            contenders.setdefault(row["contender"], []).append(row)
    return {text: its_rows for text, its_rows in contenders.items() if its_rows}


def summary(rows: Sequence[Row]) -> str:
    """A line for each contender: size, score over the seeds, difference to the dense network, time."""
    contenders, first = finished(rows), rows[0]
    name, times, form, better = _units(rows)
    head = ["contender", "parameters", "kept", "multiply-adds", "kept", name, "range", "less dense's", "seeds"]
    lines = [[*head, "epochs", "s / epoch"]]
    dense = Spread.over(row["score"] for row in contenders[DENSE]).mean if DENSE in contenders else None
    for text, its_rows in contenders.items():
        score = Spread.over(row["score"] for row in its_rows)
        sizes = ("parameters", "parameters_kept", "multiply_adds", "multiply_adds_kept")
        parameters, parameters_kept, adds, adds_kept = (fmean(row[size] for row in its_rows) for size in sizes)
        less = "" if dense is None or text == DENSE else f"{times * (score.mean - dense):+{form}}"
        cells = [f"{parameters:,.0f}", f"{parameters_kept:.3f}", count_text(adds), f"{adds_kept:.3f}"]
        cells += [
            f"{times * score.mean:{form}}",
            score.range_text(form, times=times),
            less,
            str(score.of),
            str(its_rows[0]["epochs"]),
        ]
        lines.append([text, *cells, f"{fmean(row['seconds'] for row in rows if row['contender'] == text):.3g}"])
    title = (
        f"{first['model']}, trained from random weights; "
        f"{name.removesuffix(', %')} on {first['images']:,} test examples ({better})\n"
        "parameters of the whole network, multiply-adds of one example in factored form"
    )
    return f"{title}\n\n{aligned(lines)}"


def _units(rows: Sequence[Row]) -> tuple[str, int, str, str]:
    """The name of the score, the factor and the format in which it is shown, and which values are good."""
    if rows[0]["score_name"] == "accuracy":
        return "top-1, %", 100, ".2f", "higher is better"
    return rows[0]["score_name"].replace("_", " "), 1, ".4f", "lower is better, 1 is as good as zeros"


def figure(rows: Sequence[Row]) -> Figure:
    """The score against parameters and multiply-adds; whiskers reach from the lowest seed to the highest."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullFormatter

    contenders = finished(rows)
    _, times, _, _ = _units(rows)
    scores = {text: Spread.over(times * row["score"] for row in its_rows) for text, its_rows in contenders.items()}
    drawing = Figure(figsize=(9.5, 4.2), layout="constrained")
    panels = drawing.subplots(1, 2, sharey=True)
    rewrites = dict.fromkeys(its_rows[0]["rewrite"] for text, its_rows in contenders.items() if text != DENSE)
    for panel, size in zip(panels, ("parameters", "multiply_adds"), strict=True):
        if DENSE in contenders:
            panel.axhspan(scores[DENSE].low, scores[DENSE].high, color="#7f7f7f", alpha=0.25, linewidth=0)
            panel.axhline(scores[DENSE].mean, color="#4d4d4d", linestyle="--", linewidth=1, label=DENSE)
        for number, rewrite in enumerate(rewrites):
            points = sorted(
                (fmean(row[f"{size}_kept"] for row in its_rows), scores[text])
                for text, its_rows in contenders.items()
                if text != DENSE and its_rows[0]["rewrite"] == rewrite
            )
            style: dict[str, Any] = {**line_style(number), "markersize": 5, "linewidth": 1.2, "label": rewrite}
            draw_spreads(panel, [kept for kept, _ in points], [score for _, score in points], **style)
        panel.set_xscale("log")
        panel.set_xticks([0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1])
        panel.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        panel.xaxis.set_minor_formatter(NullFormatter())
        panel.set_xlabel(f"{size.replace('_', '-')} kept, of the whole network")
        panel.grid(alpha=0.3)
    panels[0].set_yscale("linear" if times == 100 else "log")
    panels[0].set_ylabel("top-1 (%)" if times == 100 else "relative error (1: as good as zeros)")
    handles, labels = panels[0].get_legend_handles_labels()
    drawing.legend(handles, labels, loc="outside lower center", ncols=5, fontsize="small", frameon=False)
    title = f"{rows[0]['model']} trained in decomposed form from the start, {rows[0]['images']:,} test examples"
    drawing.suptitle(f"{title}{name_seeds(map(len, contenders.values()))}", fontsize="medium")
    return drawing
