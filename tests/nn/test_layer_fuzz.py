"""A slice of the fuzz of layers: random layers under random transforms, in random types, modes and devices."""

from __future__ import annotations

import pytest

from tests.layer_fuzz.__main__ import FINE, fuzz


@pytest.mark.slow
@pytest.mark.parametrize("part", range(3))
def test_random_layers_do_what_torchs_do(part: int) -> None:
    rows = [fuzz(f"slice-{number}")[-1] for number in range(8 * part, 8 * part + 8)]
    wrong = [f"{row['verdict']}: {row['case']}\n{row['reason']}" for row in rows if row["verdict"] not in FINE]
    assert not wrong, "\n\n".join(wrong)
