"""A page as data."""

from __future__ import annotations

import json
import re
from typing import Any

PLOTLY = re.compile(r'(<script type="text/plain" id="plotly">).*?(</script>)', re.DOTALL)


def datasets_of(page: str) -> tuple[str, list[dict[str, Any]]]:
    """The page without the library of plots, and its data sets, which must be JSON without NaN and infinity."""

    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    text = PLOTLY.sub(r"\1\2", page)
    matched = re.search(r'id="datasets">(.*?)</script>', text, re.DOTALL)
    assert matched is not None
    return text, json.loads(matched[1], parse_constant=refuse)


def values(dataset: dict[str, Any], name: str) -> list[Any]:
    """The values of a column."""
    return next(column["values"] for column in dataset["columns"] if column["name"] == name)
