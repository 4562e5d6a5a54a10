"""When a fit is computed in fewer digits than it is measured in."""

from __future__ import annotations

import torch

FEW_DIGITS = torch.float32
"""The type of a descent whose cores are held in a type without more digits."""

SMALL_LOSS_IN_FEW = torch.finfo(FEW_DIGITS).eps ** (1 / 3)
"""The smallest loss, as a part of ||target||^2, that few digits show well enough: they change it by about 1e-7."""


def few_digits_suffice(kept: torch.dtype, computed: torch.dtype) -> bool:
    """Whether a descent to cores of type `kept` may have fewer digits than the type `computed`."""
    return torch.finfo(kept).eps >= torch.finfo(FEW_DIGITS).eps > torch.finfo(computed).eps
