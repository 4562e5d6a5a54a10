"""One case: a decomposed layer, torch's layer and the reference go through the same, and are compared."""

from __future__ import annotations

import random
import time
import traceback
import warnings
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from math import inf
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import tnalgebra as tn
from tests.layer_fuzz.cases import DTYPES, Case, SelfAttention, make_dense, make_input, make_layer
from tests.layer_fuzz.reference import exact, reference_of
from tests.layer_fuzz.transforms import COSTLY, FUNCTIONAL, TRANSFORMS, Aid, Outcome, mode_of, pattern, with_values

EQUAL = "equal"
REFUSED = "refused"
BOTH_REFUSE = "both refuse"
ONLY_OURS = "torch refuses"
WRONG_NUMBER, FOREIGN = "WRONG NUMBER", "FOREIGN EXCEPTION"
WRONG_SHAPE, WRONG_DTYPE, WRONG_LAYOUT = "WRONG SHAPE", "WRONG DTYPE", "WRONG LAYOUT"
NOT_MADE = "not made"

DERIVATIVES = (
    "grad",
    "per-sample grad",
    "jacrev",
    "jacfwd",
    "hessian product",
    "backward",
    "double backward",
    "checkpoint",
)

ROUNDINGS = 16
"""Roundings that an element may have, in units of the dtype's, relative to the sum of the absolute terms."""


@dataclass(frozen=True)
class Row:
    """What came of a case: the verdict; why; and the largest error in units of what rounding allows."""

    number: str
    layer: str
    transform: str
    dtype: str
    device: str
    mode: str
    input: str
    verdict: str
    reason: str
    ratio: float
    seconds: float
    case: str

    def record(self) -> dict[str, Any]:
        return asdict(self)


class Raised:
    """What a layer raised: its text, its traceback, and the error of this library's that led to it, if one did."""

    def __init__(self, error: Exception) -> None:
        self.text = f"{type(error).__name__}: {error}"
        chain: list[BaseException] = []
        one: BaseException | None = error
        while one is not None and one not in chain:
            chain.append(one)
            one = one.__cause__ or one.__context__
        self.ours = next((each for each in chain if isinstance(each, tn.errors.TnalgebraError)), None)
        if isinstance(error, torch._dynamo.exc.Unsupported) and "/tnalgebra/errors.py" in self.text:
            self.ours = error  # an error of ours that fullgraph=True reports in its own words, with the line it is from
        self.trace = "".join(traceback.format_exception(error))


def run_case(case: Case) -> Row:
    """Try a case."""
    started = time.perf_counter()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        verdict, reason, ratio = _verdict(case)
    shown = {name: getattr(case, name) for name in ("number", "layer", "transform", "dtype", "device", "mode", "input")}
    return Row(
        **shown, verdict=verdict, reason=reason, ratio=ratio, seconds=time.perf_counter() - started, case=str(case)
    )


def _verdict(case: Case) -> tuple[str, str, float]:
    try:
        make_dense(case)
    except (ValueError, RuntimeError) as error:  # arguments that torch refuses
        return NOT_MADE, f"torch: {error}", 0.0
    try:
        layer = make_layer(case)
    except tn.errors.TnalgebraError as error:
        return NOT_MADE, str(error).splitlines()[0], 0.0
    except Exception as error:
        return FOREIGN, Raised(error).trace, 0.0
    x, stack = make_input(case), ExitStack()
    with stack:
        if case.mode == "inference":  # math alone has the layout and the dtypes of every device
            stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        return _compared(case, layer, x)


def _compared(case: Case, layer: nn.Module, x: Tensor) -> tuple[str, str, float]:
    ours, aid = _go(case, layer, case.transform, x)
    # torch's layer has other values: of it only errors, dtypes, shapes and strides are compared
    simple = case.transform in COSTLY and isinstance(ours, Outcome)
    theirs, _ = _go(case, _dense(case), "none" if simple else case.transform, x)
    if isinstance(ours, Raised):
        if isinstance(theirs, Raised):
            return BOTH_REFUSE, f"{ours.text.splitlines()[0]} / {theirs.text.splitlines()[0]}", 0.0
        if ours.ours is not None:
            return REFUSED, f"{type(ours.ours).__name__}: {str(ours.ours).splitlines()[0]}", 0.0
        return FOREIGN, ours.trace, 0.0
    if isinstance(theirs, Outcome) and (wrong := _unlike(case, ours, theirs)):
        return (*wrong, 0.0)
    ratio = 0.0
    if not ours.outputs[0].is_meta:
        assert aid is not None
        try:
            ratio = _ratio(case, layer, ours, aid, x)
        except RuntimeError as error:  # torch cannot compute it in float64 either
            return (FOREIGN if isinstance(theirs, Outcome) else ONLY_OURS), f"the reference: {Raised(error).trace}", 0.0
        if not ratio <= 1:
            return WRONG_NUMBER, f"{ratio:.3g} times the rounding", ratio
    return (EQUAL, "", ratio) if isinstance(theirs, Outcome) else (ONLY_OURS, theirs.text.splitlines()[0], ratio)


def _dense(case: Case) -> nn.Module:
    dense = make_dense(case)
    return SelfAttention(dense) if isinstance(dense, nn.MultiheadAttention) else dense


def _go(case: Case, module: nn.Module, transform: str, x: Tensor) -> tuple[Outcome | Raised, Aid | None]:
    """Put a module to its place and mode, and through a transform."""
    x = x.to(case.device)
    if case.input == "requires grad" and x.is_floating_point():
        x = x.detach().requires_grad_()
    aid = None
    try:
        module = _placed(case, module)
        aid = _aid(case, module)
        with mode_of(module, case.mode):
            return TRANSFORMS[transform](module, x, aid), aid
    except Exception as error:
        return Raised(error), aid


def _placed(case: Case, module: nn.Module) -> nn.Module:
    return module.to(DTYPES[case.dtype]).to(case.device)


def _aid(case: Case, module: nn.Module) -> Aid:
    rng = random.Random(f"{case.number} aid")
    others = ("float64", "float32", "bfloat16", "float16") if case.dtype != "complex64" else ("complex128", "complex64")
    other = rng.choice(others)
    kernels = [
        (name, one)
        for name, one in module.named_modules()
        if isinstance(one, tn.nn.KernelLayer | nn.Linear) or (name == "" and not isinstance(module, SelfAttention))
    ]
    path, kernel = rng.choice(kernels)
    cores = [name for name, _ in kernel.named_parameters(recurse=False) if name != "bias"]
    values = {name: value.detach() * 0.5 + pattern(value) * 0.25 for name, value in module.named_parameters()}
    ours = isinstance(kernel, tn.nn.KernelLayer)

    def fresh() -> nn.Module:
        again = _placed(case, make_layer(case) if ours else _dense(case))
        with torch.no_grad():
            for tensor in again.state_dict().values():
                tensor.fill_(1)
        return again

    core = rng.choice(cores) if cores else "bias"
    return Aid(values, path, core, DTYPES.get(other, torch.complex128), fresh)


def _unlike(case: Case, ours: Outcome, theirs: Outcome) -> tuple[str, str] | None:
    """How the first output differs from that of torch's layer, in anything but its numbers."""
    y, z = ours.outputs[0], theirs.outputs[0]
    if y.shape != z.shape and case.transform not in DERIVATIVES:
        return WRONG_SHAPE, f"{tuple(y.shape)} is {tuple(z.shape)} in torch"
    if y.dtype != z.dtype:
        return WRONG_DTYPE, f"{y.dtype} is {z.dtype} in torch"
    if y.device != z.device:
        return WRONG_DTYPE, f"{y.device} is {z.device} in torch"
    if case.transform in FUNCTIONAL and case.transform != "functional_call":
        return None
    if y.requires_grad != z.requires_grad and not ("frozen" in case.mode and z.requires_grad and not _leaf(theirs)):
        return WRONG_DTYPE, f"requires_grad is {y.requires_grad}, {z.requires_grad} in torch"
    layout = case.choices.get("memory_format", torch.contiguous_format)
    x = theirs.input
    replanned = case.transform in (*COSTLY, "in_memory_format")  # in_memory_format, or by torch for graphs of its own
    plain = x is not None and x.ndim == case.axes + 2 and x.is_contiguous(memory_format=layout) and not replanned
    if plain and z.is_contiguous(memory_format=layout) > y.is_contiguous(memory_format=layout):
        return WRONG_LAYOUT, f"strides {y.stride()} are {z.stride()} in torch, planned for {layout}"
    return None


def _leaf(outcome: Outcome) -> bool:
    """Whether the input needs a gradient; the parameters of a frozen layer get none."""
    return outcome.input is not None and outcome.input.requires_grad


def _ratio(case: Case, layer: nn.Module, ours: Outcome, aid: Aid, x: Tensor) -> float:
    """The largest error in units of what rounding allows."""
    held, dense = ours.module or layer, _dense(case)
    x = x if ours.input is None else ours.input
    with torch.no_grad():
        reference = reference_of(held, dense)
    plain = _expected(case, reference, ours, aid, x, absolute=False)
    eps = torch.finfo(torch.bfloat16 if case.transform == "autocast" else ours.outputs[0].dtype).eps
    if isinstance(layer, SelfAttention):
        scale = max([1.0, *(float(one.abs().max()) for one in plain if one.numel())])
        bounds = [torch.full_like(one, scale, dtype=torch.float64) for one in plain]
        eps *= 8
    else:
        with torch.no_grad():
            reference = reference_of(held, dense, absolute=True)
        bounds = _expected(case, reference, ours, aid, x, absolute=True)
    worst, compared = 0.0, _compared_outputs(case, x, len(plain))
    if len(ours.outputs) < compared:
        return inf
    for value, expected, bound in list(zip(ours.outputs, plain, bounds, strict=False))[:compared]:
        if value.shape != expected.shape:
            return inf
        if value.numel():
            smallest = 4 * torch.finfo(value.dtype).smallest_normal
            error = (exact(value) - expected).abs() / (ROUNDINGS * eps * (bound.abs() + smallest))
            error = error.masked_fill(value.isnan() & expected.isnan(), 0.0)  # as of a core without a norm
            worst = max(worst, float(error.nan_to_num(inf, inf, inf).max()))
    return worst


def _compared_outputs(case: Case, x: Tensor, count: int) -> int:
    """How many outputs there must be: parameters of a frozen layer get no gradients of their own."""
    smooth = int(x.is_floating_point() or x.is_complex())
    if case.transform == "double backward":  # without second derivatives where the first ones are constant
        return smooth if case.mode.startswith("frozen") else count // 2
    if case.transform in ("backward", "checkpoint") and case.mode.startswith("frozen"):
        return 1 + smooth
    return count


def _expected(
    case: Case, reference: nn.Module, ours: Outcome, aid: Aid, x: Tensor, *, absolute: bool
) -> tuple[Tensor, ...]:
    """What the reference gives for the same transform, or for a call with the cores that the module has now."""
    with torch.inference_mode(False), torch.set_grad_enabled(case.mode not in ("inference", "no_grad")):
        x = exact(x, absolute=absolute)
        if ours.module is not None:
            return (reference(x).detach(),)
        values = {name: exact(value, absolute=absolute) for name, value in aid.values.items()}
        return TRANSFORMS[case.transform](reference, x, with_values(aid, values)).outputs
