"""The command `tnalgebra`, and what recipes share with it: settings, networks by name, and the work itself."""

from .build import build_model, check_trained
from .compress import CompressResult, CompressSettings, compress_model
from .process import main, run
from .settings import ImageSettings, ModelSettings, TestSettings, WeightSettings, describe_images, describe_images
from .study import StudySettings, run_study
from .weights import load_weights

__all__ = [
    "CompressResult",
    "CompressSettings",
    "ImageSettings",
    "ModelSettings",
    "StudySettings",
    "TestSettings",
    "WeightSettings",
    "build_model",
    "check_trained",
    "compress_model",
    "describe_images",
    "describe_images",
    "load_weights",
    "main",
    "run",
    "run_study",
]
