"""Every recipe runs in seconds with `--smoke`, as a new user would try it."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RECIPES = sorted(
    path.stem for path in (ROOT / "recipes").glob("*.py") if 'if __name__ == "__main__":' in path.read_text("utf-8")
)
WITHOUT_FOLDER = ("benchmark_spectra",)
"""They print, and write nothing."""

EXPERIMENTS = [
    *((recipe, None) for recipe in RECIPES),
    *(("compressibility", preset) for preset in ("several-cuts", "cp", "claims")),
    ("a_priori", "waves"),
]
"""Recipes, and those of their presets that need no data."""


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize(
    ("recipe", "preset"), EXPERIMENTS, ids=["-".join(filter(None, experiment)) for experiment in EXPERIMENTS]
)
def test_smoke(recipe: str, preset: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "out"
    where = [] if recipe in WITHOUT_FOLDER else ["--output", str(output)]
    chosen = [] if preset is None else ["--preset", preset]
    monkeypatch.setattr(sys, "argv", [f"recipes/{recipe}.py", *chosen, "--smoke", *where])
    runpy.run_module(f"recipes.{recipe}", run_name="__main__", alter_sys=True)
    assert not where or any(path.stat().st_size for path in output.iterdir())
