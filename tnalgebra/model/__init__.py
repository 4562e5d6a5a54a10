"""Whole torch models: look into them, share a budget among their layers, convert them, repair what depends on them."""

from .batch_norm import batch_norms, fold_batch_norm, recalibrate_batch_norm
from .budget import FRACTIONS, Curves, MetricName, Planned, fit_planned, plan_budget
from .compare import compare
from .convert import convert
from .images import Images, batch_rows, check_classes, default_normalisation, load_images, normalised
from .input_metrics import fit_in_order, input_metrics
from .modes import evaluating, modes_kept
from .optimizers import update_optimizer
from .report import Report
from .spectra import DISTINCT_COLOURS, Spectra, Spectrum, cut_singular_values, hosvd, spectra

__all__ = [
    "DISTINCT_COLOURS",
    "FRACTIONS",
    "Curves",
    "Images",
    "MetricName",
    "Planned",
    "Report",
    "Spectra",
    "Spectrum",
    "batch_norms",
    "batch_rows",
    "check_classes",
    "compare",
    "convert",
    "cut_singular_values",
    "default_normalisation",
    "evaluating",
    "fit_in_order",
    "fit_planned",
    "fold_batch_norm",
    "hosvd",
    "input_metrics",
    "load_images",
    "modes_kept",
    "normalised",
    "plan_budget",
    "recalibrate_batch_norm",
    "spectra",
    "update_optimizer",
]
