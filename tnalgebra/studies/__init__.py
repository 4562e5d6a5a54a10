"""Studies: compress the kernels of a model in many ways, test its accuracy, and keep rows and figures."""

from .._files import write_text, write_whole
from .accuracy import accuracy, shuffled_batches
from .claims import (
    Band,
    Claims,
    DepthClaim,
    Gain,
    LargestCut,
    NormClaim,
    RowScope,
    claims_of,
    curve_of,
    depth_correlation,
    largest_cuts,
    norm_correlation,
    points_of,
)
from .compress import check_compressible, compress_kernels
from .correlation import Correlation, Draws, bootstrap, mean_of, rank_correlation
from .figures import MARKERS, SUFFIXES, draw_results
from .folder import (
    COMMANDS_FILE,
    compare_configs,
    config_hash,
    digest_state,
    digest_tensors,
    locked,
    made_with,
    note_command,
    read_config,
    this_program,
    writing,
)
from .kernel_figures import drawn_networks
from .kernels import Layer, globs_of, layers_of, no_match
from .options import StudyOptions
from .rewrites import NO_FORM, Form, Rewrite, read_ranks
from .rows import BASELINE, FIELDS, Key, Row, of_one_layer, table, touched, variant
from .store import Store, read_lines, read_rows
from .study import Study, study

__all__ = [
    "BASELINE",
    "COMMANDS_FILE",
    "FIELDS",
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
    "LargestCut",
    "Layer",
    "NormClaim",
    "Rewrite",
    "Row",
    "RowScope",
    "Store",
    "Study",
    "StudyOptions",
    "accuracy",
    "bootstrap",
    "check_compressible",
    "claims_of",
    "compare_configs",
    "compress_kernels",
    "config_hash",
    "curve_of",
    "depth_correlation",
    "digest_state",
    "digest_tensors",
    "draw_results",
    "drawn_networks",
    "globs_of",
    "largest_cuts",
    "layers_of",
    "locked",
    "made_with",
    "mean_of",
    "no_match",
    "norm_correlation",
    "note_command",
    "of_one_layer",
    "points_of",
    "rank_correlation",
    "read_config",
    "read_lines",
    "read_ranks",
    "read_rows",
    "shuffled_batches",
    "study",
    "table",
    "this_program",
    "touched",
    "variant",
    "write_text",
    "write_whole",
    "writing",
]
