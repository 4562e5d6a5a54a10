"""What people do to modules, done to decomposed layers: they equal torch's, or refuse it by an error of ours."""

from __future__ import annotations

import pytest

import tests.uses  # noqa: F401  lists the uses
from tests.use_cases import USES, Use


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")  # of what torch itself uses
@pytest.mark.parametrize("use", [pytest.param(one, marks=[pytest.mark.slow] * one.slow, id=str(one)) for one in USES])
def test_a_layer_is_used_as_torchs_is(use: Use) -> None:
    assert {name: use.outcome(name) for name in use.layers} == dict.fromkeys(use.layers, use.expected)
