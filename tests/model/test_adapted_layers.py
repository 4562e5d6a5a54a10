"""Adapted layers: merged whatever is done to their tensors, with hooks inside, and beside other tools of torch."""

from __future__ import annotations

import copy
import math
import pickle
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.fx.experimental.proxy_tensor import make_fx
from torch.nn.utils import prune
from torch.utils.checkpoint import checkpoint

import tnalgebra as tn
from tests.adapted_cases import adapted_layer, change_cores, mixed_model
from tests.refusals import refused
from tnalgebra.errors import LayerError
from tnalgebra.nn import timed

# Merged, whatever is done to the tensors ------------------------------------------------------------------------


def _pair(size: int = 12) -> tuple[nn.Module, tn.model.Adapters, Tensor]:
    """Two adapted linear layers in evaluation mode, whose networks are not zero, and an input."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(size, size), nn.Tanh(), nn.Linear(size, 8))
    model, adapters = tn.adapt(layers, {"*": "LoRA"}, 3, tune=False)
    change_cores(adapters)
    return model.eval(), adapters, torch.randn(16, size)


def _oracle(model: nn.Sequential, x: Tensor) -> Tensor:
    """The output by the elements that the tensors have now, without any code of `Adapted`."""
    with torch.no_grad():
        for layer in model:
            if isinstance(layer, tn.nn.Adapted):
                adapter = layer.adapters["default"]
                weight = layer.base.weight + adapter.B @ adapter.A
                x = nn.functional.linear(x, weight, layer.base.bias)
            else:
                x = layer(x)
    return x


def _all_times_two(model: nn.Module) -> None:
    with torch.no_grad():
        for one in model.parameters():
            one.mul_(2)


def _vector(model: nn.Module) -> None:
    parameters = [*model.parameters()]
    nn.utils.vector_to_parameters(2 * nn.utils.parameters_to_vector(parameters), parameters)


CHANGES = {
    "in place": _all_times_two,
    "data": lambda model: [one.data.mul_(2) for one in model.parameters()],
    "numpy": lambda model: [np.multiply(one, 2, out=one) for one in (p.detach().numpy() for p in model.parameters())],
    "one element": lambda model: model[0].base.weight.detach()[3, 5].zero_(),
    "a core": lambda model: model[2].adapters["default"].B.data.zero_(),
    "vector_to_parameters": _vector,
    "assigned": lambda model: model.load_state_dict({k: 2 * v for k, v in model.state_dict().items()}, assign=True),
    "another type and back": lambda model: model.double().float().requires_grad_(False),
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("copied", [None, copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_merged_model_computes_with_the_elements_that_it_has(change: str, copied: object) -> None:
    model, adapters, x = _pair()
    adapters.merge()
    model = model if copied is None else copied(model)
    for _ in range(2):
        CHANGES[change](model)
        expected = _oracle(model, x)
        with torch.no_grad():
            torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model[0].merged, model[0].weight.detach())
        torch.testing.assert_close(model[2].to_dense().weight, model[2].weight)
        assert all(layer.is_merged for layer in tn.adapters(model).layers.values())


def test_the_average_of_merged_models() -> None:
    model, adapters, x = _pair()
    adapters.merge()
    average = torch.optim.swa_utils.AveragedModel(model, use_buffers=True).eval()
    assert not [*model.buffers()]
    _all_times_two(model)
    average.update_parameters(model)
    with torch.no_grad():
        torch.testing.assert_close(average(x), _oracle(average.module, x), rtol=1e-4, atol=1e-5)


def test_a_merged_model_without_elements_merges_once_it_has_some() -> None:
    model, adapters, x = _pair()
    state = copy.deepcopy(model.state_dict())
    adapters.merge()
    expected = _oracle(model, x)
    model.to("meta")
    assert model(x.to("meta")).shape == (16, 8)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for one in model.parameters():
            one.fill_(torch.nan)  # as unused memory may be
    str(adapters)
    model.load_state_dict(state)
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


def test_a_merged_model_that_torch_records_follows_its_tensors() -> None:
    model, adapters, x = _pair()
    adapters.merge()
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    call = torch.compile(lambda tensors, x: functional_call(model, tensors, (x,)), backend="eager")
    twice = {key: 2 * one.detach() for key, one in model.named_parameters()}
    graph = make_fx(lambda tensors, x: functional_call(model, tensors, (x,)))(twice, x)
    with pytest.warns(FutureWarning):
        traced = torch.jit.trace(model, (x,))
    with torch.no_grad():
        for one in (compiled(x), traced(x), torch.func.vmap(model)(x)):
            torch.testing.assert_close(one, _oracle(model, x), rtol=1e-4, atol=1e-5)
        _all_times_two(model)
        expected = _oracle(model, x)
        for one in (compiled(x), call(twice, x), graph(twice, x), functional_call(model, twice, (x,))):
            torch.testing.assert_close(one, expected, rtol=1e-4, atol=1e-5)
    for one in adapters.parameters():
        one.data.mul_(2)
    torch.testing.assert_close(torch.export.export(model, (x,)).module()(x), _oracle(model, x), rtol=1e-4, atol=1e-5)


def test_a_merged_model_has_gradients() -> None:
    model, adapters, x = _pair()
    expected = torch.autograd.grad(model(x).square().sum(), adapters.parameters())
    adapters.merge()
    actual = torch.autograd.grad(model(x).square().sum(), adapters.parameters())
    torch.testing.assert_close(actual, expected)
    teacher = copy.deepcopy(model)
    before = [core.detach().clone() for core in adapters.parameters()]
    change_cores(tn.adapters(teacher))
    tn.distil(model, teacher, [x, x], learning_rate=1e-2, progress=False)
    assert not any(torch.equal(*both) for both in zip(before, adapters.parameters(), strict=True))


# Hooks and the sum of weight and network ------------------------------------------------------------------------


@pytest.fixture
def formed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every adapted layer that may measure finds that the sum of weight and network is faster."""
    monkeypatch.setenv("TNALGEBRA_TUNE", "1")
    monkeypatch.setattr(timed, "_CLEARLY", math.inf)


def _measuring(**kwargs: object) -> tuple[nn.Module, tn.model.Adapters, Tensor]:
    model, adapters, x = _pair(**kwargs)
    for layer in adapters.layers.values():
        layer._tune = True
    return model, adapters, x


def _calls_of_base(model: nn.Module, x: Tensor) -> int:
    """How many times a call of the model calls the layer that its first adapter is beside."""
    calls: list[int] = []
    handle = model[0].base.register_forward_hook(lambda *_: calls.append(1))
    model(x)
    handle.remove()
    return len(calls)


@pytest.mark.usefixtures("formed")
def test_the_sum_is_formed_where_it_is_faster() -> None:
    model, _, x = _measuring()
    expected = _oracle(model, x)
    model(x)
    assert model[0]._is_formed(x)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("formed")
def test_hooks_of_all_modules_are_called_once() -> None:
    model, _, x = _measuring()
    calls: list[nn.Module] = []
    handle = nn.modules.module.register_module_forward_hook(lambda module, *_: calls.append(module))
    try:
        model(x)
        model(x)
    finally:
        handle.remove()
    assert calls.count(model[0].base) == calls.count(model[0].adapters["default"]) == calls.count(model[0]) == 2


@pytest.mark.usefixtures("formed")
@pytest.mark.parametrize("measured", [False, True])
def test_hooks_inside_an_adapted_layer_are_called_once(measured: bool) -> None:
    model, adapters, x = _measuring()
    if measured:
        model(x)
    assert _calls_of_base(model, x) == 1
    handle = model[0].adapters["default"].register_forward_hook(lambda *both: 0 * both[-1])
    plain = nn.functional.linear(x, model[0].base.weight, model[0].base.bias)
    torch.testing.assert_close(model[0](x), plain)  # as if the network were zero
    adapters.merge()
    with torch.no_grad():
        torch.testing.assert_close(model[0](x), plain)
        handle.remove()
        torch.testing.assert_close(model(x), _oracle(model, x), rtol=1e-4, atol=1e-5)
    gradients: list[int] = []
    model[0].adapters["default"].register_full_backward_hook(lambda *_: gradients.append(1))
    model(x.requires_grad_()).sum().backward()
    assert gradients == [1]


def _recomputed(what: str, base: nn.Module) -> Tensor:
    """The weight of a linear layer by the tensors that it is computed from."""
    match what:
        case "pruned weight":
            return base.weight_orig * base.weight_mask
        case "weight norm":
            return base.weight_g * base.weight_v / base.weight_v.norm(dim=1, keepdim=True)
        case "spectral norm":
            return base.weight_orig / torch.dot(base.weight_u, base.weight_orig @ base.weight_v)
        case "parametrised":
            scale, direction = base.parametrizations.weight.original0, base.parametrizations.weight.original1
            return scale * direction / direction.norm(dim=1, keepdim=True)
    return base.weight


@pytest.mark.usefixtures("formed")
@pytest.mark.parametrize("merged", [False, True])
@pytest.mark.parametrize("what", ["pruned core", "pruned weight", "weight norm", "spectral norm", "parametrised"])
def test_tensors_that_are_computed_at_each_call(what: str, merged: bool) -> None:
    model, adapters, x = _measuring()
    adapter, base = model[0].adapters["default"], model[0].base
    model(x)
    match what:
        case "pruned core":
            prune.l1_unstructured(adapter, "A", 0.5)
        case "pruned weight":
            prune.l1_unstructured(base, "weight", 0.5)
        case "weight norm":
            with pytest.warns(FutureWarning):
                nn.utils.weight_norm(base)
        case "spectral norm":
            nn.utils.spectral_norm(base)
        case "parametrised":
            nn.utils.parametrizations.weight_norm(base)
    model.train()
    for _ in range(2):  # a graph of the first call would be freed in the second
        model(x).sum().backward()
    model.eval()
    if merged:
        adapters.merge()
    with torch.no_grad():
        for one in model.parameters():
            one.mul_(1.5)
        weight = model[0].weight  # which is not that of the last call
        actual = model(x)
        torch.testing.assert_close(weight, base.weight + adapter.B @ adapter.A)
        expected = _oracle(model, x)
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-5)
        for one in model.parameters():
            one.mul_(1.5)
        dense = model[0].to_dense()
        torch.testing.assert_close(dense(x), model[0](x), rtol=1e-4, atol=1e-4)
        assert [name for name, _ in dense.named_parameters()] in (["weight", "bias"], ["bias", "weight"])
        adapters.remove()
        for one in model.parameters():
            one.mul_(1.5)
        product = model[0](x) - model[0].bias
        torch.testing.assert_close(product, x @ model[0].weight.T, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(product, nn.functional.linear(x, _recomputed(what, base)), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("what", ["weight norm", "spectral norm", "pruning", "pruned bias", "parametrised"])
def test_a_layer_whose_tensors_are_computed_is_refused(what: str) -> None:
    model, x = mixed_model()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        match what:
            case "weight norm":
                nn.utils.weight_norm(model.fc)
            case "spectral norm":
                nn.utils.spectral_norm(model.fc)
            case "pruning":
                prune.l1_unstructured(model.fc, "weight", 0.5)
            case "pruned bias":
                prune.l1_unstructured(model.fc, "bias", 0.5)
            case "parametrised":
                nn.utils.parametrizations.weight_norm(model.fc)
    expected, before = model(x), [*model.modules()]
    trained = [one.requires_grad for one in model.parameters()]
    with refused(LayerError, "'fc' cannot be adapted", "parametrised" if what == "parametrised" else "computed from"):
        tn.adapt(model, {"fc": "LoRA", "head": "LoRA"}, 2, tune=False)
    assert [*model.modules()] == before
    assert [one.requires_grad for one in model.parameters()] == trained
    torch.testing.assert_close(model(x), expected)


@pytest.mark.usefixtures("formed")
def test_checkpointed_layers_measure_outside_of_the_checkpoint() -> None:
    model, adapters, x = _measuring()
    output = checkpoint(model, x.requires_grad_(), use_reentrant=False)
    actual = torch.autograd.grad(output.square().sum(), adapters.parameters())
    assert model[0]._is_formed(x)
    other, others, _ = _pair()
    expected = torch.autograd.grad(other(x).square().sum(), others.parameters())
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("formed")
def test_frozen_adapters_get_no_gradients() -> None:
    model, adapters, x = _measuring()
    for layer in model.modules():
        if isinstance(layer, tn.nn.KernelLayer):
            layer.freeze()
    x.requires_grad_()
    output = model(x)
    torch.testing.assert_close(output.detach(), _oracle(model, x), rtol=1e-4, atol=1e-5)
    output.sum().backward()
    assert x.grad is not None
    assert all(core.grad is None for core in adapters.parameters())


@pytest.mark.usefixtures("formed")
def test_accelerate_may_keep_the_weights_elsewhere() -> None:
    accelerate = pytest.importorskip("accelerate")
    model, _, x = _measuring()
    expected = _oracle(model, x)
    model(x)
    accelerate.cpu_offload(model, execution_device=torch.device("cpu"))
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.usefixtures("formed")
def test_a_model_on_the_meta_device_has_shapes() -> None:
    model, _, x = _measuring()
    assert model.to("meta")(x.to("meta")).shape == (16, 8)


@pytest.mark.usefixtures("formed")
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:torch.quantize_per_tensor")
def test_a_quantised_layer_beside_adapters() -> None:
    model, _, x = _measuring()
    quantised = torch.ao.quantization.quantize_dynamic(model, {nn.Linear})
    layer = quantised[0]
    adapter = layer.adapters["default"]
    with torch.no_grad():
        torch.testing.assert_close(layer(x), layer.base(x) + x @ (adapter.B @ adapter.A).T)
    for refusing in (layer.merge, layer.to_dense):
        with refused(LayerError, "weight is not a tensor", "before the layer is quantised"):
            refusing()


@pytest.mark.parametrize("merged", [False, True])
def test_a_transposed_convolution_takes_the_size_of_its_output(merged: bool) -> None:
    torch.manual_seed(0)
    dense = nn.ConvTranspose2d(4, 6, 3, stride=2)
    model, adapters = adapted_layer(copy.deepcopy(dense), "LoRA", 1.0)
    change_cores(adapters)
    layer, x = model.eval()[0], torch.randn(2, 4, 5, 5)
    expected = functional_call(dense, {"weight": layer.weight}, (x, (12, 11)))
    if merged:
        adapters.merge()
    with torch.no_grad():
        torch.testing.assert_close(layer(x, (12, 11)), expected, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(layer(x, output_size=(12, 11)), expected, rtol=1e-4, atol=1e-5)
    fc, _ = adapted_layer(nn.Linear(3, 4), "LoRA", 1.0)
    with pytest.raises(TypeError):
        fc[0](torch.randn(2, 3), 4)


@pytest.mark.parametrize("merged", [False, True])
def test_adapters_of_a_longer_type_than_the_weights(merged: bool) -> None:
    model, adapters, x = _pair()
    model.bfloat16()
    for layer in adapters.layers.values():
        layer.adapters.float()
    exact = copy.deepcopy(model).float()
    if merged:
        adapters.merge()
    with torch.no_grad():
        output = model(x.bfloat16())
        assert output.dtype == torch.bfloat16
        torch.testing.assert_close(output.float(), _oracle(exact, x.bfloat16().float()), rtol=0.05, atol=0.05)
    model(x.bfloat16()).float().square().sum().backward()
    assert all(core.grad is not None and core.dtype == torch.float32 for core in adapters.parameters())


def test_adapters_that_are_reset_start_at_zero() -> None:
    model, adapters, x = _pair()
    model.apply(lambda module: module.reset_parameters() if hasattr(module, "reset_parameters") else None)
    for layer in adapters.layers.values():
        assert torch.equal(layer(x), nn.functional.linear(x, layer.base.weight, layer.base.bias))
        assert (layer.adapters["default"].A != 0).all()
