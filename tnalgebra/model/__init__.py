"""Whole torch models: look into them, share a budget among their layers, convert them, repair what depends on them."""

from .adapt import adapt, adaptable_sites, freeze_but, put_adapters
from .adapters import Adapters, adapter_state, adapters
from .attention import unfolding_attentions
from .batch_norm import batch_norms, recalibrate_batch_norm
from .budget import error_of
from .compare import compare
from .comparison import Comparison
from .convert import convert
from .distil import distil
from .divergence import mean_divergence
from .example import read_example
from .folding import Folding, fold_batch_norm
from .graphs import trace_forward
from .hosvd import hosvd
from .image_files import load_images
from .images import Images, batch_rows, check_classes
from .input_metrics import fit_in_order, input_metrics
from .measure_curves import FRACTIONS
from .merge_branches import MergingReport, merge_branches
from .modes import evaluating, modes_kept
from .modules import names_of_modules
from .new_layers import LayerMaker
from .obstacles import find_obstacles
from .optimizers import update_optimizer
from .patterns import optional
from .plans import Curves, MetricName, Planned, fit_planned, plan_budget
from .progress import track
from .report import ConversionReport
from .spectra import cut_singular_values, spectra
from .spectrum import DISTINCT_COLOURS, Spectra, Spectrum
from .steps import ForwardSteps, Progress, trace
from .surgery import (
    Site,
    exchange_layers,
    find_sites,
    record_calls,
    restore_layers,
    tie_layers,
    without_hooks,
)
from .timing import time_models

__all__ = [
    "DISTINCT_COLOURS",
    "FRACTIONS",
    "Adapters",
    "Comparison",
    "ConversionReport",
    "Curves",
    "Folding",
    "ForwardSteps",
    "Images",
    "LayerMaker",
    "MergingReport",
    "MetricName",
    "Planned",
    "Progress",
    "Site",
    "Spectra",
    "Spectrum",
    "adapt",
    "adaptable_sites",
    "adapter_state",
    "adapters",
    "batch_norms",
    "batch_rows",
    "check_classes",
    "compare",
    "convert",
    "cut_singular_values",
    "distil",
    "error_of",
    "evaluating",
    "exchange_layers",
    "find_obstacles",
    "find_sites",
    "fit_in_order",
    "fit_planned",
    "fold_batch_norm",
    "freeze_but",
    "hosvd",
    "input_metrics",
    "load_images",
    "mean_divergence",
    "merge_branches",
    "modes_kept",
    "names_of_modules",
    "optional",
    "plan_budget",
    "put_adapters",
    "read_example",
    "recalibrate_batch_norm",
    "record_calls",
    "restore_layers",
    "spectra",
    "tie_layers",
    "time_models",
    "trace",
    "trace_forward",
    "track",
    "unfolding_attentions",
    "update_optimizer",
    "without_hooks",
]
