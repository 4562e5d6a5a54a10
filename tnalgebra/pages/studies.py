"""A study on a page: the rows of each of its networks, and the networks side by side."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from .._tables import plural
from ..errors import StudyError
from ..studies import Row, largest_cuts, of_one_layer, touched
from .parts import Answer, CellFormat, Column, Dataset, Panel, Section, known, times
from .runs import Run
from .study_answers import (
    best_within_half,
    depth_answer,
    half_answer,
    harmless_loss,
    means_of_layers,
    norm_answer,
    of_all_layers,
)
from .study_tables import (
    CHANGE,
    ERROR,
    PARAMETERS_KEPT,
    is_sound,
    layer_names,
    rewrite_drawings,
    row_columns,
    row_name,
    several_layers,
    single_layers,
    size_text,
)

QUESTION_NETWORKS = "Which network bears compression best?"


def study_section(run: Run) -> Section:
    """The section of a study's folder. Of several networks each has a part."""
    rows_of: dict[str, list[Row]] = {}
    for row in run.rows:
        rows_of.setdefault(str(row["model"]), []).append(row)
    parts = {name: _network(rows, run.notes if len(rows_of) == 1 else ()) for name, rows in rows_of.items()}
    of_run = {
        "data": str(run.config.get("data", "")),
        "test images": " and ".join(dict.fromkeys(f"{row['images']:,}" for row in run.rows)),
        "rows": f"{len(run.rows):,}",
        "version": " and ".join(dict.fromkeys(f"tnalgebra {row['version']}" for row in run.rows)),
    }
    shared: dict[str, Any] = {"title": run.title, "kind": "study", "details": run.details}
    if len(parts) == 1:
        (part,) = parts.values()
        return replace(part, facts=known({"network": next(iter(parts)), **part.facts, **of_run}), **shared)
    whole = of_all_layers([row for row in run.rows if is_sound(row)])
    return Section(
        facts=known({"networks": ", ".join(parts), **of_run}),
        notes=run.notes,
        answers=[_compare(rows_of)],
        datasets=[_side_by_side(whole)] if whole else [],
        parts=parts,
        **shared,
    )


def _network(run_rows: Sequence[Row], notes: Sequence[str]) -> Section:
    """The section of the rows of one network."""
    rows = [row for row in run_rows if touched(row)]
    sound = [row for row in run_rows if is_sound(row)]
    notes = list(notes)
    if len(sound) < len(run_rows):
        missing = plural(len(run_rows) - len(sound), "row")
        notes.append(f"{missing} with numbers that are not finite: in the tables, but in none of the answers.")
    single, several = [row for row in rows if of_one_layer(row)], [row for row in rows if not of_one_layer(row)]
    datasets = [several_layers(several)] if several else []
    datasets += [single_layers(single, layer_names(rows))] if single else []
    return Section(
        title="",
        kind="network",
        facts=known(_facts(run_rows, layer_names(rows))),
        notes=notes,
        answers=[
            answer for answer in (depth_answer(sound), half_answer(sound), norm_answer(sound)) if answer is not None
        ],
        datasets=datasets,
        drawings=rewrite_drawings(rows),
    )


def _facts(rows: Sequence[Row], layers: Sequence[str]) -> dict[str, str]:
    """What is known of a network."""
    top1 = next((row["accuracy"] for row in rows if not touched(row)), None)
    return {
        "top-1 as it is": f"{times(top1, 100):.2f} %" if top1 is not None else "",
        "layers": ", ".join(layers) if len(layers) < 4 else str(len(layers)),
        "config": " and ".join(dict.fromkeys(str(row["config"]) for row in rows)),
    }


# Several networks -------------------------------------------------------------------------------------------------


def _compare(rows_of: Mapping[str, Sequence[Row]]) -> Answer:
    """The networks of a study, a line for each."""
    halves: dict[str, Row] = {}
    columns: dict[str, list[Any]] = {}
    for name, rows in rows_of.items():
        sound = [row for row in rows if is_sound(row)]
        top1 = next((row["accuracy"] for row in sound if not touched(row)), None)
        line: dict[str, Any] = {"network": name, "top-1 %": times(top1, 100), "bears least": _weakest(sound)}
        line |= dict.fromkeys(("best at half of the parameters", "top-1 % at half", CHANGE))
        for half in best_within_half(of_all_layers(sound))[:1]:
            halves[name] = half
            line["best at half of the parameters"] = f"{row_name(half)} at {size_text(half)}"
            line |= {"top-1 % at half": 100 * half["accuracy"], CHANGE: 100 * half["accuracy_change"]}
        for column, value in line.items():
            columns.setdefault(column, []).append(value)
    forms: dict[str, CellFormat] = {"top-1 %": "percent", "top-1 % at half": "percent", CHANGE: "change"}
    table = Dataset("The networks", [Column(name, cells, forms.get(name, "short")) for name, cells in columns.items()])
    losses = sorted(((100 * row["accuracy_change"], name) for name, row in halves.items()), reverse=True)
    if not losses:
        return Answer(QUESTION_NETWORKS, "No row keeps at most half of the parameters.", "", table)
    each = ", ".join(f"{name} {_points(change)}" for change, name in losses)
    text = (
        f"At half of its parameters, {each}. All layers are rewritten, nothing is trained again, and the best row of "
        "each network counts that keeps at most half. The menu below chooses the network that the rest of this section "
        "is about."
    )
    change, name = losses[0]
    short = f"{name}, which {_points(change)} of accuracy at half of its parameters."
    return Answer(QUESTION_NETWORKS, short if len(losses) > 1 else f"Known of one only: {short}", text, table)


def _points(change: float) -> str:
    """A change of accuracy in points, in words."""
    return f"{'loses' if change < 0 else 'gains'} {abs(change):.2f} points"


def _weakest(rows: Sequence[Row]) -> str | None:
    """The layer that bears least, as `depth_answer` finds it; None without rows of single layers."""
    if not rows:
        return None
    try:
        cuts = largest_cuts(rows, at_most=harmless_loss(rows), size="relative_error")
    except StudyError:
        return None
    means = means_of_layers(cuts)
    return min(means, key=lambda name: means[name])


def _side_by_side(rows: Sequence[Row]) -> Dataset:
    """The rows of all networks in which all layers are rewritten, a curve for each network."""
    columns = row_columns(rows, several=True)
    networks = Column("network", [row["model"] for row in rows])
    first = row_name(rows[0])
    columns = [replace(column, choose=first) if column.name == "rewrite" else column for column in columns]
    panels = [
        Panel("Change of accuracy", PARAMETERS_KEPT, CHANGE, "lines"),
        Panel("Change of accuracy against the norm that is lost", ERROR, CHANGE, "lines"),
    ]
    text = "A curve is a network, a point is a row. The menu chooses the rewrite."
    return Dataset("The networks side by side", [networks, *columns], panels, "network", text, folded=True)
