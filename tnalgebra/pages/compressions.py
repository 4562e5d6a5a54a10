"""A compression on a page: the network before and after, layer by layer, with the drawings of its layers."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from ..networks import resized
from ..nn import KernelLayer
from .parts import Answer, Column, Dataset, Drawing, Panel, Section, as_number, ranks_text
from .runs import Run

MOST_LAYERS = 8
"""The most layers that are drawn: one for each network, which many layers share."""

TOTALS = {
    "accuracy": ("top-1", "{:.2f} %", 100),
    "parameters": ("parameters", "{:,.0f}", 1),
    "multiply_adds": ("multiply-adds", "{:,.0f}", 1),
    "forward_seconds": ("forward pass", "{:.3g} ms", 1000),
}
"""Entry of the result -> its name, how it is written, and in which unit."""


def compression_section(run: Run) -> Section:
    """The section of a compression, from its result."""
    result = run.result
    facts = {"network": str(result.get("model", ""))}
    for name, (what, form, factor) in TOTALS.items():
        before, after = (as_number(_of(result.get(name), when)) for when in ("before", "after"))
        if before is not None and after is not None:
            kept = "" if name == "accuracy" or not before else f" ({100 * after / before:.1f} % kept)"
            facts[what] = f"{form.format(factor * before)} -> {form.format(factor * after)}{kept}"
    facts |= _distillation(result)
    facts |= {
        "test images": f"{result.get('images', '')}",
        "batch": str(_of(result.get("multiply_adds"), "batch") or ""),
        "memory format": str(_of(result.get("forward_seconds"), "memory_format") or ""),
        "versions": f"tnalgebra {result.get('version')}, torch {result.get('torch')}",
    }
    layers = [layer for layer in result["layers"] if isinstance(layer, Mapping)]
    return Section(
        title=run.title,
        kind="compression",
        facts={name: text for name, text in facts.items() if text},
        details=run.details,
        notes=run.notes,
        answers=_answers(layers),
        datasets=[_layers(layers)],
        drawings=[Drawing(title, svg) for title, svg in run.drawings.items()],
    )


def _distillation(result: Mapping[str, Any]) -> dict[str, str]:
    """The divergence from the dense network's outputs, and what a distillation did to it and to the accuracy."""
    fitted, divergences = as_number(_of(result.get("accuracy"), "fitted")), result.get("divergence")
    numbers = [as_number(number) for number in divergences] if isinstance(divergences, list) else []
    texts = ["not finite" if number is None else f"{number:.4f} nats" for number in numbers]
    if len(texts) > 1:
        texts[1] += f" after the distillation{', which is undone' if result.get('undone') else ''}"
    return {
        "top-1 before the distillation": "" if fitted is None else f"{100 * fitted:.2f} %",
        "divergence": ", ".join(texts),
    }


def _of(entry: object, name: str) -> Any:
    return entry.get(name) if isinstance(entry, Mapping) else None


def _answers(layers: list[Mapping[str, Any]]) -> list[Answer]:
    changed = [layer for layer in layers if as_number(layer.get("relative_error")) is not None]
    if not changed:
        return []
    worst = max(changed, key=lambda layer: layer["relative_error"])
    saved = max(layers, key=_saved)
    short = f"{saved['name']} saves most parameters, and {worst['name']} has the largest error."
    text = (
        f"{len(changed)} of {len(layers)} layers were decomposed. {saved['name']} saves {_saved(saved):,.0f} "
        f"parameters. The kernel of {worst['name']} has a relative error of {worst['relative_error']:.3f}, "
        f"as {worst.get('rule')}."
    )
    return [Answer("Where is the size, and where the error?", short, text)]


def _saved(layer: Mapping[str, Any]) -> float:
    return (as_number(layer.get("parameters")) or 0) - (as_number(layer.get("parameters_after")) or 0)


def _kept(layer: Mapping[str, Any], name: str) -> float | None:
    before, after = as_number(layer.get(name)), as_number(layer.get(f"{name}_after"))
    return after / before if before and after is not None else None


def _layers(layers: list[Mapping[str, Any]]) -> Dataset:
    columns = [
        Column("layer", [layer.get("name") for layer in layers]),
        Column("kind", [layer.get("kind") for layer in layers], choose=True),
        Column("done", [layer.get("rule") or "dense" for layer in layers], choose=True),
        Column("ranks", [ranks_text(layer.get("ranks")) for layer in layers]),
        Column("reason", [layer.get("reason") or None for layer in layers]),
        Column("relative error", [layer.get("relative_error") for layer in layers], "short"),
        Column("relative error of the output", [layer.get("output_error") for layer in layers], "short"),
        Column("parameters", [layer.get("parameters") for layer in layers], "count"),
        Column("parameters after", [layer.get("parameters_after") for layer in layers], "count"),
        Column("parameters kept", [_kept(layer, "parameters") for layer in layers], "short"),
        Column("multiply-adds after", [layer.get("multiply_adds_after") for layer in layers], "count"),
        Column("multiply-adds kept", [_kept(layer, "multiply_adds") for layer in layers], "short"),
    ]
    panels = [
        Panel("Relative error of the kernel", "layer", "relative error"),
        Panel("Parameters", "layer", "parameters kept"),
        Panel("Multiply-adds", "layer", "multiply-adds kept"),
    ]
    text = "In the order of the network; a dense layer has no error."
    return Dataset("Layer by layer", columns, panels, "done", text)


def draw_layers(model: nn.Module, folder: Path) -> None:
    """Draw the network and the plan of the layers of a model into a folder, each network once, as SVG."""
    drawn: set[str] = set()
    folder.mkdir(parents=True, exist_ok=True)
    for name, layer in model.named_modules():
        if not isinstance(layer, KernelLayer) or len(drawn) == MOST_LAYERS:
            continue
        text = str(resized(layer.network, {}))
        if text not in drawn:
            drawn.add(text)
            layer.draw(folder / f"{name}, network.svg")
            layer.plan.draw(folder / f"{name}, plan.svg")
