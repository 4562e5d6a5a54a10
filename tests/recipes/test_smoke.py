"""Every recipe runs in seconds with `--smoke`, as a new user would try it."""

from __future__ import annotations

import dataclasses
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from recipes import compress, paper
from recipes.a_priori import run as a_priori
from recipes.retrain import run as retrain
from tests.refusals import refused
from tnalgebra.errors import DataError

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
RUNNABLE = sorted(
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")
    for path in (ROOT / "recipes").rglob("*.py")
    if '__name__ == "__main__"' in path.read_text("utf-8")
)
ELSEWHERE = {
    "recipes.a_priori": "a_priori/test_run.py",
    "recipes.benchmarks.fits": "benchmarks/test_fits.py",
    "recipes.benchmarks.layers": "benchmarks/test_layers.py",
    "recipes.benchmarks.models": "benchmarks/test_models.py",
    "recipes.benchmarks.spectra": "benchmarks/test_spectra.py",
    "recipes.benchmarks.studies": "benchmarks/test_studies.py",
    "recipes.claims": "claims/test_run.py",
    "recipes.compress": "test_compress.py",
    "recipes.gallery": "test_gallery.py",
    "recipes.retrain": "retrain/test_run.py",
    "recipes.spectra": "test_spectra.py",
}
"""Recipes whose own tests have a smoke run."""

EXPERIMENTS = [
    *((recipe, None) for recipe in RUNNABLE if recipe not in ELSEWHERE),
    *(("recipes.compressibility", preset) for preset in ("several-cuts", "cp")),
]
"""Recipes, and those of their presets that need no data."""


@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
@pytest.mark.parametrize(("recipe", "preset"), EXPERIMENTS)
def test_smoke(recipe: str, preset: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "out"
    chosen = [] if preset is None else ["--preset", preset]
    monkeypatch.setattr(sys, "argv", [recipe, *chosen, "--smoke", "--output", str(output)])
    runpy.run_module(recipe, run_name="__main__", alter_sys=True)
    assert any(path.stat().st_size for path in output.iterdir())


def test_all_others_have_a_smoke_run_in_their_own_tests() -> None:
    assert {*ELSEWHERE} <= {*RUNNABLE}
    for recipe, tests in ELSEWHERE.items():
        assert "smoke" in (ROOT / "tests" / "recipes" / tests).read_text("utf-8"), recipe


@pytest.mark.parametrize(
    ("recipe", "config", "settings"),
    [
        (compress, compress.Config(), ("epochs", "limit", "rounds", "batch_size")),
        (paper, paper.Config(), ("images", "layer_images")),
        (a_priori, a_priori.Config(), ("epochs", "limit", "batch_size")),
        (retrain, retrain.Config(), ("epochs", "limit", "batch_size")),
    ],
)
def test_a_zero_is_refused_as_in_a_run_in_full(
    recipe: Any, config: Any, settings: tuple[str, ...], tmp_path: Path
) -> None:
    for name in settings:
        for smoke in (False, True):
            with refused(DataError, "0"):
                recipe.main(dataclasses.replace(config, **{name: 0}, smoke=smoke, output=tmp_path))
