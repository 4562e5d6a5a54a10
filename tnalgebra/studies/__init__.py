"""Studies: compress the kernels of a model in many ways, test its accuracy, and keep rows and figures."""

from .._files import write_text, write_whole
from .accuracy import accuracy, shuffled_batches
from .claims import Band, Claims, DepthClaim, Gain, NormClaim, claims_of, curve_of
from .compress import compress_kernels
from .correlation import Correlation, Draws, rank_correlation
from .figures import MARKERS, SUFFIXES
from .kernels import Layer, globs_of, layers_of, no_match
from .options import StudyOptions
from .rewrites import NO_FORM, Form, Rewrite, free_bonds, read_ranks
from .store import (
    BASELINE,
    Key,
    Row,
    Store,
    compare_configs,
    config_hash,
    digest_state,
    digest_tensors,
    locked,
    of_one_layer,
    read_config,
    read_rows,
    table,
    touched,
    variant,
    writing,
)
from .study import Study, study

__all__ = [
    "BASELINE",
    "MARKERS",
    "NO_FORM",
    "SUFFIXES",
    "Band",
    "Claims",
    "Correlation",
    "DepthClaim",
    "Draws",
    "Form",
    "Gain",
    "Key",
    "Layer",
    "NormClaim",
    "Rewrite",
    "Row",
    "Store",
    "Study",
    "StudyOptions",
    "accuracy",
    "claims_of",
    "compare_configs",
    "compress_kernels",
    "config_hash",
    "curve_of",
    "digest_state",
    "digest_tensors",
    "free_bonds",
    "globs_of",
    "layers_of",
    "locked",
    "no_match",
    "of_one_layer",
    "rank_correlation",
    "read_config",
    "read_ranks",
    "read_rows",
    "shuffled_batches",
    "study",
    "table",
    "touched",
    "variant",
    "write_text",
    "write_whole",
    "writing",
]
