"""Rows of studies made by hand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tnalgebra as tn


def row(
    layers: str | Sequence[str],
    error: float | Sequence[float],
    loss: float,
    *,
    rewrite: str = "out | in kh kw",
    keep: float | None = None,
    output: float | Sequence[float] | None = None,
    **fields: Any,
) -> tn.studies.Row:
    """A row of one layer, or of scope all; errors are of each layer. Rows of other errors are of another keep."""
    names = [layers] if isinstance(layers, str) else list(layers)
    errors = [error] if isinstance(error, int | float) else error
    outputs = [output] * len(names) if output is None or isinstance(output, int | float) else output
    keep = 1 - sum(errors) / 10 if keep is None and fields.get("ranks") is None else keep
    return {
        **tn.studies.BASELINE.fields,
        **{"model": "net", "accuracy": 0.9 - loss, "images": 1000, "config": "0123456789ab", "version": "0"},
        **{"mean_squared_relative_error": 0.0, "parameters_kept": 1.0, "seconds": 1.0},
        **{"rewrite": rewrite, "scope": layers if isinstance(layers, str) else "all", "keep": keep},
        "accuracy_change": -loss,
        "layers": {
            name: {"relative_error": one, "rank": round(1000 * (keep or 0)), "values": 1000}
            | ({} if other is None else {"output_error": other})
            for name, one, other in zip(names, errors, outputs, strict=True)
        },
        **fields,
    }


BASELINE = row([], [], 0.0, rewrite="none")
