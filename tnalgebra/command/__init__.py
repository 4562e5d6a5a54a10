"""The command `tnalgebra`, and what recipes share with it: settings, networks by name, and the work itself."""

from .build import build_model
from .compress import CompressResult, CompressSettings, compress_model
from .process import main, run
from .settings import ImageSettings, TestSettings, WeightSettings, describe_images
from .study import StudySettings, run_study
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
