"""Branches of one input become one convolution: the same outputs, in blocks of every style, and what is left."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.ao.nn.qat import Conv2d as QuantisedConv2d
from torch.ao.quantization import get_default_qat_qconfig

import tnalgebra as tn
from tests.refusals import refused
from tnalgebra.errors import LayerError

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
POOLINGS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)


class Added(nn.Module):
    """The sum of some branches, and of the input where it is requested, in one of the ways in which one writes it."""

    def __init__(self, branches: Sequence[nn.Module], *, way: str = "plus", shortcut: bool = False) -> None:
        super().__init__()
        self.parts = nn.ModuleList(branches)
        self.way, self.shortcut = way, shortcut

    def forward(self, x: Tensor) -> Tensor:
        values = [branch(x) for branch in self.parts] + [x] * self.shortcut
        if self.way == "sum":
            return sum(values)
        total = values[0]
        for value in values[1:]:
            if self.way == "in place":
                total += value
            elif self.way == "method":
                total = value.add(total)
            else:
                total = total + value if self.way == "plus" else torch.add(total, value)
        return total


def settled(model: nn.Module) -> nn.Module:
    """In float64 and evaluation mode, with statistics and affine parts that are not those of the start."""
    torch.manual_seed(1)
    for module in model.modules():
        if isinstance(module, NORMS):
            module.running_mean.normal_()
            module.running_var.uniform_(0.3, 3.0)
            if module.affine:
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)
    return model.double().eval()


def assert_merged(model: nn.Module, x: Tensor, count: int | None = None) -> tuple[nn.Module, tn.model.MergingReport]:
    """Merge the branches of a model, and compare; `count` groups are merged."""
    before = {name: one.clone() for name, one in model.state_dict().items()}
    expected = model(x.clone()).detach()
    merged, report = tn.merge_branches(model, x)
    torch.testing.assert_close(merged(x.clone()), expected, rtol=1e-12, atol=1e-12 * float(expected.abs().max()))
    assert all(torch.equal(one, before[name]) for name, one in model.state_dict().items())
    assert count is None or len(report.merged) == count, report
    return merged, report


@st.composite
def _sums(draw: st.DrawFn) -> tuple[nn.Module, Tensor]:
    """Branches whose outputs have one size: each window reaches as far as its padding."""
    axes = draw(st.integers(1, 3))
    groups, stride = draw(st.sampled_from([1, 1, 2, 4])), draw(st.sampled_from([1, 1, 2]))
    out = draw(st.sampled_from([4, 8]))
    excess = draw(st.integers(0, 1)) * 2
    branches: list[nn.Module] = []
    torch.manual_seed(draw(st.integers(0, 100)))
    for _ in range(draw(st.integers(2, 4))):
        size = [draw(st.sampled_from([1, 3, 3, 5])) for _ in range(axes)]
        dilation = [draw(st.integers(1, 3)) for _ in range(axes)]
        padding = [(d * (k - 1) + excess) // 2 for k, d in zip(size, dilation, strict=True)]
        kind = CONVOLUTIONS[axes - 1]
        inside = draw(st.sampled_from([1, groups]))
        branch: list[nn.Module] = [
            kind(4, out, tuple(size), stride, tuple(padding), tuple(dilation), inside, bias=draw(st.booleans()))
        ]
        if draw(st.booleans()):
            branch.append(NORMS[axes - 1](out, affine=draw(st.booleans())))
        if draw(st.integers(0, 3)) == 0:
            branch.append(kind(out, out, 1, groups=draw(st.sampled_from([1, 2]))))
        branches.append(nn.Sequential(*branch))
    if out == 4 and excess == 0 and draw(st.booleans()):
        branches.append(nn.Sequential(POOLINGS[axes - 1](3, stride, 1), NORMS[axes - 1](4)))
    shortcut = out == 4 and excess == 0 and stride == 1 and draw(st.booleans())
    way = draw(st.sampled_from(["plus", "sum", "method", "function", "in place"]))
    model = settled(Added(branches, way=way, shortcut=shortcut))
    return model, torch.randn(2, 4, *[[11], [9, 10], [6, 7, 5]][axes - 1], dtype=torch.float64)


@settings(max_examples=40, deadline=None)
@given(_sums())
def test_the_sum_of_any_branches(case: tuple[nn.Module, Tensor]) -> None:
    assert_merged(*case)


def test_always_where_a_branch_has_the_window() -> None:
    """What one kernel holds already is merged without a measurement."""
    big = nn.Conv2d(4, 6, 5, padding=2)
    small = [
        nn.Conv2d(4, 6, 3, padding=2, dilation=2),
        nn.Conv2d(4, 6, (1, 5), padding=(0, 2), groups=2),
        nn.Conv2d(4, 6, 1),
    ]
    merged, report = assert_merged(settled(Added([big, *small])), torch.randn(2, 4, 9, 8).double(), 1)
    (conv,) = [one for one in merged.modules() if isinstance(one, nn.Conv2d)]
    assert (conv.kernel_size, conv.padding, conv.groups) == ((5, 5), (2, 2), 1)
    (group,) = report.merged
    assert group.branches == ("parts.0", "parts.1", "parts.2", "parts.3")
    network = tn.parse(group.network)
    values = {f"K{n}": layer.weight.detach() for n, layer in enumerate([big, *small])}
    values["K2"] = torch.zeros(6, 4, 1, 5).double()
    values["K2"][:3, :2], values["K2"][3:, 2:] = small[1].weight.detach()[:3], small[1].weight.detach()[3:]
    torch.testing.assert_close(tn.evaluate(network, values), conv.weight.detach(), rtol=1e-12, atol=1e-12)


class RepVGG(nn.Module):
    def __init__(self, channels: int, stride: int = 1) -> None:
        super().__init__()
        dense, point = (nn.Conv2d(channels, channels, k, stride, k // 2, bias=False) for k in (3, 1))
        self.rbr_dense = nn.Sequential(dense, nn.BatchNorm2d(channels))
        self.rbr_1x1 = nn.Sequential(point, nn.BatchNorm2d(channels))
        self.rbr_identity = nn.BatchNorm2d(channels) if stride == 1 else None

    def forward(self, x: Tensor) -> Tensor:
        shortcut = 0 if self.rbr_identity is None else self.rbr_identity(x)
        return torch.relu(self.rbr_dense(x) + self.rbr_1x1(x) + shortcut)


class UniRepLKNet(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.large = nn.Conv2d(channels, channels, 13, padding=6, groups=channels, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        for k, d in ((5, 1), (7, 2), (3, 3), (3, 4), (3, 5)):
            conv = nn.Conv2d(channels, channels, k, padding=d * (k // 2), dilation=d, groups=channels, bias=False)
            setattr(self, f"conv_{k}_{d}", conv)
            setattr(self, f"norm_{k}_{d}", nn.BatchNorm2d(channels))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.large(x))
        for k, d in ((5, 1), (7, 2), (3, 3), (3, 4), (3, 5)):
            y = y + getattr(self, f"norm_{k}_{d}")(getattr(self, f"conv_{k}_{d}")(x))
        return y


def test_a_model_of_such_blocks() -> None:
    model = settled(nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), RepVGG(6), nn.Sequential(RepVGG(6, 2), UniRepLKNet(6))))
    x = torch.randn(2, 3, 34, 30).double()
    merged, report = assert_merged(model, x, 3)
    kernels = [one.kernel_size for one in merged.modules() if isinstance(one, nn.Conv2d)]
    assert kernels == [(3, 3), (3, 3), (3, 3), (13, 13)]
    assert not any(isinstance(one, nn.BatchNorm2d) for one in merged.modules())
    assert {group.module for group in report.groups} == {"1", "2.0", "2.1"}
    assert "rbr_identity" in str(report)
    for again in (copy.deepcopy(merged), pickle.loads(pickle.dumps(merged))):
        assert torch.equal(again(x), merged(x))
    torch.testing.assert_close(torch.compile(merged, backend="aot_eager")(x), merged(x))
    program = torch.export.export(merged, (x,))
    torch.testing.assert_close(program.module()(x), merged(x))
    halves, _ = tn.merge_branches(copy.deepcopy(model).half(), None)
    assert {one.dtype for one in halves.parameters()} == {torch.float16}


@pytest.mark.parametrize("name", ["repvgg_a0", "mobileone_s0", "repvit_m0_9"])
def test_models_of_timm(name: str) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = settled(timm.create_model(name, num_classes=3))
    merged, report = assert_merged(model, torch.randn(1, 3, 64, 64).double())
    assert len(report.merged) > 10
    convolutions = [sum(isinstance(one, nn.Conv2d) for one in each.modules()) for each in (model, merged)]
    assert convolutions[1] < convolutions[0]


def _twice(x: Tensor, a: nn.Module, b: nn.Module) -> Tensor:
    y = a(x)
    return y + b(x) + y.relu().mean()


class _Apart(nn.Module):
    def __init__(self, a: nn.Module, b: nn.Module, add: Callable[..., Tensor]) -> None:
        super().__init__()
        self.a, self.b, self.add = a, b, add

    def forward(self, x: Tensor) -> Tensor:
        return self.add(x, self.a, self.b)


def _plus(x: Tensor, a: nn.Module, b: nn.Module) -> Tensor:
    return a(x) + b(x)


def _conv(*args: object, **kwargs: object) -> nn.Conv2d:
    return nn.Conv2d(4, 4, *args, **kwargs)  # type: ignore[arg-type]


def _hooked(module: nn.Module) -> nn.Module:
    module.register_forward_hook(lambda *_: None)
    return module


LEFT = {
    "training mode": (lambda: nn.Sequential(_conv(3, padding=1), nn.BatchNorm2d(4).train()), lambda: _conv(1), _plus),
    "no running statistics": (
        lambda: nn.Sequential(_conv(3, padding=1), nn.BatchNorm2d(4, track_running_stats=False).eval()),
        lambda: _conv(1),
        _plus,
    ),
    "do not line up": (lambda: _conv(3, padding=1, stride=2), lambda: _conv(2, stride=2), _plus),
    "strides differ": (lambda: _conv(3, stride=2, padding=1), lambda: _conv(4, padding=0), _plus),
    "used elsewhere": (lambda: _conv(3, padding=1), lambda: _conv(1), _twice),
    "by reflect": (lambda: _conv(3, padding=1, padding_mode="reflect"), lambda: _conv(3, padding=1), _plus),
    "rounds the number of positions up": (lambda: _conv(3, padding=1), lambda: nn.AvgPool2d(3, 1, 1, True), _plus),
    "other numbers at the border": (
        lambda: _conv(3, padding=1),
        lambda: nn.AvgPool2d(3, 1, 1, count_include_pad=False),
        _plus,
    ),
    "follows another one": (lambda: nn.Sequential(_conv(1), _conv(3, padding=1)), lambda: _conv(3, padding=1), _plus),
    "hooks": (lambda: _hooked(_conv(3, padding=1)), lambda: _conv(1), _plus),
}


@pytest.mark.parametrize("reason", LEFT)
def test_what_is_left(reason: str) -> None:
    a, b, add = LEFT[reason]
    torch.manual_seed(0)
    model = nn.Sequential(nn.ReLU(), _Apart(a().double(), b().double(), add))
    sizes = {"strides differ": 6, "do not line up": 8}
    x = torch.randn(2, 4, *[sizes.get(reason, 7)] * 2, dtype=torch.float64)
    merged, report = assert_merged(model, x, 0) if reason != "training mode" else tn.merge_branches(model, x)
    assert any(reason in group.reason for group in report.groups), report
    assert reason in str(report)
    assert not report.merged
    assert type(merged[1]) is _Apart


def test_layers_whose_kernel_is_not_a_real_one() -> None:
    """Complex numbers, and a layer of torch's that quantises its weight, which a merged one would not do."""
    quantised = QuantisedConv2d(4, 4, 3, padding=1, qconfig=get_default_qat_qconfig())
    for a, dtype, reason in (
        (_conv(3, padding=1, dtype=torch.complex64), torch.complex64, "complex"),
        (quantised, torch.float32, "weight_fake_quant"),
    ):
        model = _Apart(a, _conv(1, dtype=dtype), _plus)
        merged, report = tn.merge_branches(model)
        assert type(merged) is _Apart
        assert any(reason in group.reason for group in report.groups), report


def test_only_what_belongs_together() -> None:
    """Two of three branches, and the rest of a sum stays beside them."""

    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = _conv(3, padding=1), _conv(1), nn.MaxPool2d(3, 1, 1)
            self.norm = nn.BatchNorm2d(4).train()

        def forward(self, x: Tensor) -> Tensor:
            return self.c(x) + self.a(x) + x + self.norm(self.b(x)) + self.b(x.relu())

    model = Sum().double()
    x = torch.randn(2, 4, 7, 7).double()
    merged, report = tn.merge_branches(model)
    torch.testing.assert_close(merged(x), model(x), rtol=1e-12, atol=1e-12)
    assert [group.branches for group in report.merged] == [("a", "identity")]
    assert [group.branches for group in report.groups if not group.layer] == [("b, norm",)]


def test_padding_of_one_kind_is_kept() -> None:
    circular = [_conv(5, padding=2, padding_mode="circular"), _conv(3, padding=1, padding_mode="circular"), _conv(1)]
    merged, _ = assert_merged(settled(Added(circular, shortcut=True)), torch.randn(2, 4, 7, 6).double(), 1)
    assert next(one for one in merged.modules() if isinstance(one, nn.Conv2d)).padding_mode == "circular"


def test_a_model_that_cannot_be_traced() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.inside = _conv(3, padding=1), _conv(1), Added([_conv(3, padding=1), _conv(1)])

        def forward(self, x: Tensor) -> Tensor:
            return self.a(x) + self.b(x) if x.sum() > 0 else self.inside(x)

    model = Branching().double()
    for x in (torch.ones(1, 4, 5, 5).double(), -torch.ones(1, 4, 5, 5).double()):
        _, report = assert_merged(model, x, 1)
        assert report.merged[0].module == "inside"
        assert "control flow" in report.untraced[""]
    with refused(LayerError, "does not run on the example"):
        tn.merge_branches(model, (1, 3, 5, 5))


def _result_changed(x: Tensor, a: nn.Module, b: nn.Module) -> Tensor:
    y = a(x)
    z = y.exp()
    y += b(x)
    return y * z


def _input_changed(x: Tensor, a: nn.Module, b: nn.Module) -> Tensor:
    y = a(x)
    z = x.add_(1.0)
    return y + b(x) + z.mean()


def _changed_unseen(x: Tensor, a: nn.Module, b: nn.Module) -> Tensor:
    y = a(x)
    x.add_(1.0)
    return y + b(x)


def _scaled(x: Tensor, a: nn.Module, b: nn.Module) -> Tensor:
    y = a(x)
    z = x
    z *= 2.0
    return y + b(x)


def _view_changed(x: Tensor, a: nn.Module, b: nn.Module) -> Tensor:
    y = a(x)
    z = x.flatten(1).mul_(2.0)
    return y + b(x) + z.mean()


def _written(x: Tensor, a: nn.Module, b: nn.Module) -> Tensor:
    y = a(x)
    z = torch.mul(x, 2.0, out=x)
    return y + b(x) + z.mean()


def _summand_changed(x: Tensor, a: nn.Module, b: nn.Module) -> Tensor:
    z = x.exp()
    total = z + a(x)
    changed = z.mul_(2.0)
    return total + b(x) + changed.mean()


def _view_added_to(x: Tensor, a: nn.Module, b: nn.Module) -> Tensor:
    y = x.view_as(x)
    y += a(x)
    return (y + b(x)) * x


@pytest.mark.parametrize(
    "add",
    [
        *(_result_changed, _input_changed, _changed_unseen, _scaled),
        *(_view_changed, _written, _summand_changed, _view_added_to),
    ],
)
def test_values_that_are_changed_in_place(add: Callable[..., Tensor]) -> None:
    """Without an example, by which an error would be noticed."""
    model = nn.Sequential(nn.ReLU(), _Apart(_conv(3, padding=1), _conv(1), add)).double()
    merged, report = tn.merge_branches(model)
    x = torch.randn(2, 4, 7, 7).double()
    torch.testing.assert_close(merged(x.clone()), model(x.clone()), rtol=1e-12, atol=1e-12)
    assert not report.merged
    assert "in place" in report.untraced["1"]


def test_an_argument_that_is_added_to_is_still_changed() -> None:
    class Accumulating(_Apart):
        def forward(self, total: Tensor, x: Tensor) -> Tensor:  # type: ignore[override]
            total += self.a(x) + self.b(x)
            return total

    class Around(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inside, self.point = Accumulating(_conv(3, padding=1), _conv(1), _plus), _conv(1)

        def forward(self, x: Tensor) -> Tensor:
            h = self.point(x)
            return self.inside(h, x) * h

    _, report = assert_merged(Around().double(), torch.randn(2, 4, 6, 7).double(), 1)
    assert report.merged[0].module == "inside"


def test_sums_that_are_added_to_themselves_and_branches_that_begin_with_a_pooling() -> None:
    def twice(x: Tensor, a: nn.Module, b: nn.Module) -> Tensor:
        y = a(x) + b(x)
        return y + y

    assert_merged(_Apart(_conv(3, padding=1), _conv(1), twice).double(), torch.randn(2, 4, 6, 7).double(), 1)
    pooled = nn.Sequential(nn.AvgPool2d(2, 2), _conv(1))
    assert_merged(Added([pooled, _conv(4, 2, 1)]).double(), torch.randn(2, 4, 4, 4).double(), 1)


def test_arguments_with_defaults() -> None:
    """A default that changes nothing about the code is kept; where the code depends on it the module is left."""

    class Masked(_Apart):
        def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
            return _plus(x if mask is None else x * mask, self.a, self.b)

    class Scaled(_Apart):
        def forward(self, x: Tensor, scale: float = 2.0) -> Tensor:
            return _plus(x, self.a, self.b) * scale

    x = torch.randn(2, 4, 6, 7).double()
    for kind, argument, count in ((Masked, x, 0), (Scaled, 3.0, 1)):
        model = kind(_conv(3, padding=1), _conv(1), _plus).double()
        merged, report = tn.merge_branches(model)
        for args in ((x,), (x, argument)):
            torch.testing.assert_close(merged(*args), model(*args), rtol=1e-12, atol=1e-12)
        assert len(report.merged) == count
        assert count or "mask" in report.untraced[""]


def test_a_model_without_branches() -> None:
    model = settled(nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()))
    merged, report = tn.merge_branches(model)
    assert type(merged) is nn.Sequential
    assert str(report).endswith("0 groups of branches, 0 of them merged")
    with refused(LayerError, "int"):
        tn.merge_branches(3)  # type: ignore[arg-type]
