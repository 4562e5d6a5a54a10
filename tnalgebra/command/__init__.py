"""The command `tnalgebra`, and what recipes share with it: settings, networks by name, and the work itself."""

from typing import TYPE_CHECKING

from .._lazy import lazy
from .build import build_model
from .process import main, run
from .settings import (
    CompressSettings,
    ImageSettings,
    StudySettings,
    TestSettings,
    WeightSettings,
    describe_images,
)

if TYPE_CHECKING:
    from .compress import CompressResult, compress_model
    from .study import run_study
    from .weights import load_weights

__all__ = [
    "CompressResult",
    "CompressSettings",
    "ImageSettings",
    "StudySettings",
    "TestSettings",
    "WeightSettings",
    "build_model",
    "compress_model",
    "describe_images",
    "load_weights",
    "main",
    "run",
    "run_study",
]

if not TYPE_CHECKING:
    __getattr__ = lazy(__name__, ("weights", "compress", "study"), __all__)
