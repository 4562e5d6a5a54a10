"""What is done to a layer's tensors: flattened, written, moved, copied, computed from others."""

from __future__ import annotations

import copy
import io
import pickle
import tempfile
import warnings
from pathlib import Path

import accelerate
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

import tnalgebra as tn
from tests.use_cases import (
    ATTENTION,
    COMPUTED,
    COPIED,
    META,
    PARAMETERS,
    Doubled,
    Trial,
    layer_arguments,
    new_layer,
    same,
    use,
)

# Parameters -------------------------------------------------------------------------------------------------------


def contiguous(one: Trial) -> None:
    assert all(tensor.is_contiguous() for tensor in one.layer.state_dict().values())
    nn.utils.parameters_to_vector(one.layer.parameters())
    with tempfile.TemporaryDirectory() as folder:
        save_file(one.layer.state_dict(), Path(folder) / "layer.safetensors")
    one.check()


@use(PARAMETERS, "`parameters_to_vector`, `safetensors.torch.save_file`")
def _(one: Trial) -> None:
    contiguous(one)
    contiguous(one.of(copy.deepcopy(one.layer)))
    one.layer.load_state_dict({k: v.clone() for k, v in one.layer.state_dict().items()}, assign=True)
    contiguous(one)
    contiguous(one.freeze())


@use(PARAMETERS, "the same after `.to(memory_format=torch.channels_last)` and another plan")
def _(one: Trial) -> None:
    one.layer.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    contiguous(one)
    tn.nn.in_memory_format(one.layer, torch.channels_last)
    contiguous(one)


@use(PARAMETERS, "`named_buffers` and `modules` have nothing that torch's layer does not have")
def _(one: Trial) -> None:
    for layer in (one.layer, one.freeze().layer):
        assert {name for name, _ in layer.named_buffers()} <= {*layer.state_dict()}
        assert all(isinstance(part, tn.nn.KernelLayer | tn.nn.MultiheadAttention) for part in layer.modules())


# Meta -------------------------------------------------------------------------------------------------------------


def loaded(one: Trial, layer: nn.Module) -> None:
    assert all(parameter.is_meta for parameter in layer.parameters())
    layer.load_state_dict(one.layer.state_dict(), assign=True)
    one.of(layer).check()


@use(META, "made in `with torch.device('meta')`, or with `device='meta'`, then loaded", without=ATTENTION)
def _(one: Trial) -> None:
    with torch.device("meta"):
        layer = new_layer(one.name)
    loaded(one, layer)
    loaded(one, new_layer(one.name, device="meta"))


@use(META, "`accelerate.init_empty_weights`, `torch.nn.utils.skip_init`", without=ATTENTION)
def _(one: Trial) -> None:
    for buffers in (False, True):
        with accelerate.init_empty_weights(include_buffers=buffers):
            layer = new_layer(one.name)
        loaded(one, layer)
    kind, arguments = layer_arguments(one.name)
    layer = nn.utils.skip_init(kind, **arguments)
    layer.load_state_dict(one.layer.state_dict())
    one.of(layer).check()


@use(META, "`layer.to('meta')`, called")
def _(one: Trial) -> None:
    x = one.x.to("meta")
    for layer in (one.layer, one.freeze().layer):
        value, expected = one(copy.deepcopy(layer).to("meta"), x), one(one.dense().to("meta"), x)
        assert (value.shape, value.dtype, value.device) == (expected.shape, expected.dtype, expected.device)


@use(META, "`to_empty`, then loaded")
def _(one: Trial) -> None:
    state = copy.deepcopy(one.layer.state_dict())
    one.layer.to("meta").to_empty(device="cpu").load_state_dict(state)
    one.check()


@use(META, "`accelerate.cpu_offload` and `disk_offload`, which `dispatch_model` uses")
def _(one: Trial) -> None:
    expected, other = one(one.dense()), copy.deepcopy(one.layer)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        same(one(accelerate.disk_offload(one.layer, folder, execution_device=torch.device("cpu"))), expected)
        same(one(accelerate.cpu_offload(other, execution_device=torch.device("cpu"))), expected)


# Copied -----------------------------------------------------------------------------------------------------------


@use(COPIED, "`copy.copy`, `copy.deepcopy`, pickle, `torch.save`")
def _(one: Trial) -> None:
    file = io.BytesIO()
    torch.save(one.layer, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=False)
    for other in (copy.copy(one.layer), copy.deepcopy(one.layer), pickle.loads(pickle.dumps(one.layer)), loaded):
        same(one(other), one(one.dense()))


@use(COPIED, "`share_memory`")
def _(one: Trial) -> None:
    one.freeze().layer.share_memory()
    one.check()
    for parameter in one.layer.parameters():
        parameter.data.mul_(2)
    one.check()


# Cores that are computed ------------------------------------------------------------------------------------------


@use(COMPUTED, "`parametrize`, `parametrizations.weight_norm` and `spectral_norm` of a core")
def _(one: Trial) -> None:
    for register in (
        lambda layer, name: parametrize.register_parametrization(layer, name, Doubled()),
        parametrizations.weight_norm,
        parametrizations.spectral_norm,
    ):
        layer, name = one.core
        register(layer, name)
        one.layer.eval()
        one.check()
        same(one(copy.deepcopy(one.layer)), one())
        parametrize.remove_parametrizations(layer, name)
        one.check()


@use(COMPUTED, "`prune`, and the older `weight_norm` and `spectral_norm` of a core")
def _(one: Trial) -> None:
    layer, name = one.core
    prune.l1_unstructured(layer, name, 0.5)
    one.check()
    prune.remove(layer, name)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        nn.utils.weight_norm(layer, name)
        one.check()
        nn.utils.remove_weight_norm(layer, name)
        nn.utils.spectral_norm(layer, name)
    one.layer.eval()
    one()
    one.check()


@use(
    COMPUTED,
    "`freeze` of a layer with a core that is computed",
    refused="a tensor of the layer is computed from others at each call",
)
def _(one: Trial) -> None:
    parametrize.register_parametrization(*one.core, Doubled())
    one.freeze()
