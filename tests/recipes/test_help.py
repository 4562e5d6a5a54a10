"""The help of recipes names every setting, in lines that fit."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from recipes import compress, spectra
from recipes.benchmarks import fits
from recipes.benchmarks.layers import run as layers
from recipes.benchmarks.models import run as models
from recipes.claims import run as claims

COMMANDS = {compress: "run", spectra: "run", claims: "run", fits: "command", layers: "command", models: "command"}


@pytest.mark.parametrize("recipe", COMMANDS, ids=lambda recipe: recipe.__name__)
def test_the_help_names_every_setting(
    recipe: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["recipe", "--help"])
    with pytest.raises(SystemExit) as caught:
        getattr(recipe, COMMANDS[recipe])()
    assert caught.value.code == 0
    shown = capsys.readouterr().out
    for field in dataclasses.fields(recipe.Config):
        assert "--" + field.name.replace("_", "-") in shown
    assert max(map(len, shown.splitlines())) <= 120
