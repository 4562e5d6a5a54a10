"""Studies: the kernels of a model are compressed, its accuracy is tested, and rows and figures are kept."""

from .._files import write_text, write_whole
from .accuracy import accuracy, recalibrate_batch_norm, train_classifier
from .cuts import fractions_of, treatment_of
from .figures import MARKERS, SUFFIXES
from .kernels import Layer, Workbench, globs_of, layers_of, no_match
from .plan import Wishes, planned
from .rewrites import NO_FORM, Form, budgets_of, fitted, free_bonds, rewrite_of, sweep_of
from .store import (
    BASELINE,
    Key,
    Row,
    Store,
    compare_configs,
    config_hash,
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
    "Form",
    "Key",
    "Layer",
    "Row",
    "Store",
    "Study",
    "Wishes",
    "Workbench",
    "accuracy",
    "budgets_of",
    "compare_configs",
    "config_hash",
    "fitted",
    "fractions_of",
    "free_bonds",
    "globs_of",
    "layers_of",
    "locked",
    "no_match",
    "of_one_layer",
    "planned",
    "read_config",
    "read_rows",
    "recalibrate_batch_norm",
    "rewrite_of",
    "study",
    "sweep_of",
    "table",
    "touched",
    "train_classifier",
    "treatment_of",
    "variant",
    "write_text",
    "write_whole",
    "writing",
]
