"""`compile`: its arguments are checked here, and become a `PlanRequest` and the values of all weights."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any, get_args

import torch

from ..errors import CompileError
from ..networks import MAX_AXES, NamedTensor, Network, integer, read_network, size_of, tensors_of, with_sizes
from ..tensors import bases_among, bind, check_mapping, with_bases
from .choose import MAX_PLAN_ELEMENTS, Candidates, PlanRequest, is_channels_last, is_free
from .compiled import Compiled
from .computation import check_inputs


def compile(  # it hides the builtin here, and is used as tnalgebra.compile
    network: Network | str,
    *,
    inputs: Mapping[str, Sequence[int]],
    values: Mapping[str, Any] | None = None,
    constants: Collection[str] = (),
    bias: str | None = None,
    candidates: Candidates = "all",
    backward: bool = False,
    tune: bool = True,
    dynamic: Mapping[str, tuple[int, int]] | None = None,
    memory_format: torch.memory_format = torch.contiguous_format,
    max_elements: int = MAX_PLAN_ELEMENTS,
) -> Compiled:
    """Compile a network into a torch module that computes it by the plan with the lowest predicted time.

        layer = tn.compile("X[n i] A[r i] B[o r] -> [n o]", inputs={"X": (16, 64)}, values={"A": a, "B": b})
        layer(x)                                         # shape (16, size of o); print(layer.plan) shows the plan

    Args:
        network: a network or its text.
        inputs: the nominal shape of every tensor that is passed at the call, by name. The plan is chosen for these
            shapes; the module computes for all other sizes that agree with the weights.
        values: the elements of every other tensor, by name. They become parameters of that name, with their dtype and
            device; complex ones need complex inputs. A `torch.nn.Parameter` is used itself, though the order of its
            elements in memory may change. A basis by name, "dct", "fourier", "haar" or "hadamard", is a constant
            matrix, whose rows have the first label of the tensor; a plan may apply it by a fast transform.
        constants: names of values that are not trained: they become buffers.
        bias: an output label along which a vector is added; `values` has it under the name "bias".
        candidates: "all"; "factored" for plans that never contract all weights into one tensor before an input, unless
            no other plan takes inputs of every size; or "spectral" for plans that apply every window by Fourier
            transforms.
        backward: whether the plan is chosen for the time of the forward and backward pass together.
        tune: whether to measure the candidates whose predicted times are close, on tensors of the nominal shapes; the
            result is stored on disk. With $TNALGEBRA_TUNE=0 nothing is measured.
        dynamic: (least, most) sizes of a batch label, by label: minimise the largest slowdown over the range (minimax
            regret).
        memory_format: of inputs with 4 or 5 axes: `torch.contiguous_format` or `torch.channels_last`.
        max_elements: the largest number of elements of any tensor that the plan makes.

    Raises:
        CompileError: a name that torch modules use, a wrong input or range, or no plan within `max_elements`.
        SizeError: sizes contradict each other, or are not known.
        ValuesError: the values of a tensor do not fit the network.
    """
    request, tensors = make_request(
        read_network(network),
        inputs=inputs,
        values={} if values is None else values,
        constants=constants,
        bias=bias,
        candidates=candidates,
        backward=backward,
        dynamic={} if dynamic is None else dynamic,
        memory_format=memory_format,
        max_elements=max_elements,
    )
    return Compiled(request, tensors, frozenset(constants), tune)


def make_request(
    network: Network,
    *,
    inputs: Mapping[str, Sequence[int]],
    values: Mapping[str, Any],
    constants: Collection[str],
    bias: str | None,
    candidates: Candidates,
    backward: bool,
    dynamic: Mapping[str, tuple[int, int]],
    memory_format: torch.memory_format,
    max_elements: int,
    format_kept: bool = False,
) -> tuple[PlanRequest, dict[str, torch.Tensor]]:
    """Check the arguments of `compile`, and return the request for a plan and the values of all tensors but inputs.

    Args:
        format_kept: whether the output has the memory format of the inputs; the others are those of `compile`.
    """
    if candidates not in get_args(Candidates):
        raise CompileError(f"candidates is {candidates!r}", fix=" or ".join(map(repr, get_args(Candidates))))
    most = integer(max_elements)
    if most is None or most < 1:
        raise CompileError(f"max_elements is {max_elements!r}", fix="an integer of at least 1")
    last = is_channels_last(memory_format)
    check_mapping(values)
    _check_kinds(inputs=inputs, dynamic=dynamic, constants=constants)
    if not inputs:
        raise CompileError("the network has no input", tensors=" ".join(tensors_of(network)), fix="inputs={'X': shape}")
    if bias is not None:
        _check_bias(network, values, bias)
    if len(network.output) > MAX_AXES:
        raise CompileError(f"the output has {len(network.output)} axes", fix=f"at most {MAX_AXES}")
    sizes = check_inputs(network, inputs)
    values = dict(values)
    bases = bases_among(values)
    arrays = {n: value for n, value in values.items() if n not in bases and (bias is None or n != "bias")}
    bound, tensors = bind(with_sizes(network, sizes), arrays)
    _check_given(bound, inputs, {**tensors, **bases}, constants)
    network = with_bases(bound, bases)
    if bias is not None:
        vector = Network([NamedTensor("bias", (bias,))], sizes={bias: size_of(network, bias)})
        tensors |= bind(vector, {"bias": values["bias"]})[1]
    tensors, dtype = _in_one_type(tensors, is_spectral=candidates == "spectral")
    request = PlanRequest(
        network=network,
        inputs=tuple(inputs),
        device=next((tensor.device for tensor in tensors.values()), torch.device("cpu")),
        dtype=dtype,
        candidates=candidates,
        backward=backward,
        channels_last=last,
        dynamic=dict(dynamic),
        max_elements=most,
        bias=bias,
        format_kept=format_kept,
        bases=bases,
    )
    _check_ranges(request)
    return request, tensors


def _check_kinds(*, inputs: object, dynamic: object, constants: object) -> None:
    for name, value in (("inputs", inputs), ("dynamic", dynamic)):
        if not isinstance(value, Mapping):
            raise CompileError(f"{name} is a {type(value).__name__}", fix=f"{name}={{name: ...}}, a mapping")
    check_names("constants", constants)


def check_names(what: str, names: object) -> None:
    """Raise CompileError if names of tensors are not a collection of texts."""
    if isinstance(names, str) or not isinstance(names, Collection) or not all(isinstance(one, str) for one in names):
        raise CompileError(f"{what}={names!r} are not names of tensors", fix=f"{what}=['K']")


def _check_bias(network: Network, values: Mapping[str, Any], bias: str) -> None:
    if "bias" in tensors_of(network):
        raise CompileError("a tensor is called 'bias', like the vector that is added", fix="another name")
    if bias not in network.output:
        raise CompileError(f"bias is {bias!r}, which is not an output label", output=" ".join(network.output))
    if "bias" not in values:
        raise CompileError("the bias has no value", fix=f"values={{'bias': ...}}, a vector along {bias!r}")


def _check_given(
    network: Network, inputs: Collection[str], tensors: Collection[str], constants: Collection[str]
) -> None:
    twice = [name for name in inputs if name in tensors]
    if twice:
        raise CompileError(f"{twice[0]!r} is an input and has a value", fix="list it in `inputs` or `values`")
    missing = [name for name in tensors_of(network) if name not in tensors and name not in inputs]
    if missing:
        raise CompileError(
            f"no value for {', '.join(map(repr, missing))}",
            network=network,
            fix="values={name: elements}",
        )
    unknown = [name for name in constants if name not in tensors]
    if unknown:
        raise CompileError(f"the constant {unknown[0]!r} has no value", values=" ".join(tensors) or "none")


def _in_one_type(
    tensors: Mapping[str, torch.Tensor], *, is_spectral: bool
) -> tuple[dict[str, torch.Tensor], torch.dtype]:
    """The values, with whole numbers in the type of the others, and that type. They lie on one device."""
    inexact = {name: tensor.is_floating_point() or tensor.is_complex() for name, tensor in tensors.items()}
    dtype = next((tensors[name].dtype for name in tensors if inexact[name]), torch.get_default_dtype())
    tensors = {name: tensor if inexact[name] else tensor.to(dtype) for name, tensor in tensors.items()}
    if is_spectral and (dtype.is_complex or not all(inexact.values())):
        name = next((name for name in tensors if not tensors[name].is_floating_point() or not inexact[name]), "X")
        fact = f"a spectral plan computes with real numbers that are rounded, and {name!r} has others"
        raise CompileError(fact, fix="floating point numbers, or candidates='all', which keeps whole numbers exact")
    if len({(tensor.device, tensor.dtype) for tensor in tensors.values()}) > 1:
        listed = ", ".join(f"{name} {tensor.dtype} on {tensor.device}" for name, tensor in tensors.items())
        raise CompileError("the values differ in dtype or device", values=listed, fix="one dtype and device")
    return tensors, dtype


def _check_ranges(request: PlanRequest) -> None:
    network = request.network
    for label, ends in request.dynamic.items():
        if not isinstance(ends, Sequence) or len(ends) != 2 or not 1 <= ends[0] <= ends[1]:
            raise CompileError(f"the range of {label!r} is {ends!r}", fix="(least, most), two integers of at least 1")
        if label not in network.sizes:
            fact = f"a range is given for {label!r}, which is not a label of the network"
            raise CompileError(fact, labels=" ".join(network.sizes))
        if not is_free(request, label):
            fact = f"the size of {label!r} cannot change on its own: a weight, window or reshape has this label"
            fix = "a label that occurs on inputs only, such as the batch"
            raise CompileError(fact, network=network, fix=fix)
