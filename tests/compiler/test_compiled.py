"""A compiled network as a module: its parameters, its state, freezing, choosing by measurement, what it refuses."""

from __future__ import annotations

import copy
import io
import itertools
import json
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import tnalgebra
from tests.compiler_cases import random
from tests.emitted_cases import CASES, DEVICES, same
from tests.refusals import refused
from tnalgebra.compiler import keeper, tune
from tnalgebra.compiler.choose import Candidate, PlanRequest, predicted_seconds
from tnalgebra.compiler.compiled import Compiled
from tnalgebra.compiler.tune import digest, request_key
from tnalgebra.errors import CompileError
from tnalgebra.networks import Network
from tnalgebra.tensors.evaluation import evaluate

CASE = CASES["tucker-2"]
TEXT = "X[n i] A[a i] B[o a] -> [n o]"


def linear(**options: object) -> Compiled:
    usual = {"inputs": {"X": (2, 4)}, "values": {"A": random(3, 4), "B": random(5, 3, seed=1)}}
    return tnalgebra.compile(TEXT, **{**usual, **options})


# Parameters and state -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_state_holds_the_tensors_of_the_network_and_nothing_else(name: str) -> None:
    case = CASES[name]
    module = case.compiled()
    assert set(module.state_dict()) == set(case.values())
    for key, value in case.values().items():
        assert torch.equal(module.state_dict()[key], value), key
    module.freeze()
    assert set(module.state_dict()) == set(case.values())


def test_parameters_are_used_as_they_are() -> None:
    parameters = nn.Parameter(random(3, 4)), nn.Parameter(random(5, 3), requires_grad=False)
    module = linear(values=dict(zip("AB", parameters, strict=True)))
    assert parameters == (module.A, module.B)
    module(random(2, 4)).sum().backward()
    assert [parameter.grad is not None for parameter in parameters] == [True, False]
    module.freeze().thaw()
    assert [parameter.requires_grad for parameter in (module.A, module.B)] == [True, False]


def test_values_are_copied() -> None:
    values = {"A": random(3, 4), "B": random(5, 3)}
    module = linear(values=values)
    before = {name: value.clone() for name, value in values.items()}
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(1)
    for name, value in values.items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("kind", [torch.clone, nn.Parameter], ids=["tensor", "parameter"])
def test_constants_are_buffers(kind: Callable[[Tensor], Tensor]) -> None:
    module = linear(constants={"B"}, values={"A": random(3, 4), "B": kind(random(5, 3))})
    assert [name for name, _ in module.named_parameters()] == ["A"]
    assert [name for name, _ in module.named_buffers()] == ["B"]
    assert set(module.state_dict()) == {"A", "B"}
    x = random(2, 4)
    module(x).sum().backward()
    assert module.B.grad is None
    same(module(x), x @ module.A.T @ module.B.T)


def test_loading_and_training_thaw() -> None:
    """The state comes from a module with another plan."""
    network, values = Network(CASE.network.nodes, CASE.network.output), CASE.values()
    parent = nn.Sequential(tnalgebra.compile(network, inputs={"X": (1, 3, 30, 40)}, values=values).freeze())
    assert not parent[0].training
    assert parent.eval()[0].frozen
    state = {f"0.{name}": 2 * value for name, value in CASE.values().items()}
    parent.load_state_dict(state, assign=True)
    assert not parent[0].frozen
    values = {name: 2 * value for name, value in CASE.values().items()}
    same(parent(CASE.input()), evaluate(CASE.network, {"X": CASE.input(), **values}))
    parent[0].freeze()
    parent.train()
    assert not parent[0].frozen
    assert parent[0].training


def saved_and_loaded(module: Compiled) -> Compiled:
    file = io.BytesIO()
    torch.save(module, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("frozen", [False, True], ids=["thawed", "frozen"])
@pytest.mark.parametrize("copied", [copy.deepcopy, saved_and_loaded], ids=["deepcopy", "saved"])
@pytest.mark.parametrize("name", ["locally connected", "Monarch"])
def test_a_copy_is_whole_and_its_own(name: str, copied: Callable[[Compiled], Compiled], frozen: bool) -> None:
    case = CASES[name]
    module, x = case.compiled(frozen=frozen), case.input()
    before = module(x)
    other = copied(module)
    assert torch.equal(other(x), before)
    assert (other.frozen, other.code) == (module.frozen, module.code)
    assert {part.training for part in other.modules()} == {module.training} == {not frozen}
    assert str(other.plan) == str(module.plan)
    other.thaw()
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.mul_(2)
    same(other(x), before * 2 ** len(list(other.parameters())))
    assert torch.equal(module(x), before)


def test_names_of_two_cases_stay_apart() -> None:
    x, y = random(2, 3), random(3, 3, seed=1)
    module = tnalgebra.compile("X[n i] x[i o] -> [n o]", inputs={"X": (2, 3), "x": (3, 3)})
    same(module(x, y), x @ y)
    same(saved_and_loaded(module)(x, y), x @ y)
    same(module(x=y, X=x), x @ y)


@pytest.mark.parametrize("word", ["class", "None", "torch", "conv2d", "size", "T", "X_1", "frozen_0", "_"])
def test_words_of_python_and_of_the_code_are_names(word: str) -> None:
    x, a, b = random(2, 3, 4, 5), random(4, 3), random(6, 4, seed=1)
    expected = torch.einsum("nixy,ai,oa->noxy", x, a, b)
    weight = tnalgebra.compile(
        f"X[n i x y] {word}[a i] B[o a] -> [n o x y]", inputs={"X": (2, 3, 4, 5)}, values={word: a, "B": b}
    )
    named = tnalgebra.compile(
        f"{word}[n i x y] A[a i] B[o a] -> [n o x y]", inputs={word: (2, 3, 4, 5)}, values={"A": a, "B": b}
    )
    for module, inputs in ((weight, {"X": x}), (named, {word: x})):
        same(module(**inputs), expected)
        same(module.freeze()(**inputs), expected)
        same(saved_and_loaded(module)(**inputs), expected)
        same(module.thaw()(x), expected)


# Freezing -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_a_frozen_module_computes_the_same_and_of_weights_alone_only_views(name: str) -> None:
    case = CASES[name]
    module = case.compiled()
    x = case.input()
    before = module(x)
    assert module.freeze() is module
    assert module.frozen
    same(module(x), before)
    other = case.input(**case.other_sizes())
    same(module(other), module.thaw()(other))
    module.freeze()
    reached = {node for node in module._code.graph.nodes if node.op == "placeholder" and node.name == "X"}
    for node in module._code.graph.nodes:
        if set(node.all_input_nodes) & reached:
            reached.add(node)
        views = ("permute", "getitem", "flatten", "unflatten", "reshape", "expand", "size", "diagonal", "contiguous")
        assert node.op == "placeholder" or node in reached or node.name.split("_")[0] in views, node.format_node()
    assert not module(x).requires_grad


def test_freezing_and_thawing_twice_is_doing_it_once() -> None:
    module = CASE.compiled()
    code, plan, before = module.code, module.plan, dict(module.named_parameters())
    with torch.no_grad():
        module.freeze()
    assert module.code != code
    frozen = module.plan
    module.freeze()
    assert module.plan is frozen
    module.thaw().thaw()
    assert not module.frozen
    assert (module.code, module.plan) == (code, plan)
    after = dict(module.named_parameters())
    assert all(after[name] is parameter and parameter.requires_grad for name, parameter in before.items())
    module(CASE.input()).sum().backward()
    assert all(parameter.grad is not None for parameter in after.values())


@pytest.mark.parametrize(
    "mode", [nullcontext, torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu", torch.bfloat16)]
)
def test_where_it_is_frozen_does_not_matter(mode: Callable[[], AbstractContextManager[object]]) -> None:
    module, x = CASE.compiled(dtype=torch.float32), CASE.input(dtype=torch.float32).requires_grad_()
    expected = module(x)
    (gradient,) = torch.autograd.grad(expected.pow(2).sum(), [x])
    with mode():
        module.freeze()
    value = module(x)
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-4)  # float32, in another order
    value.pow(2).sum().backward()
    torch.testing.assert_close(x.grad, gradient, rtol=1e-3, atol=1e-2)  # of squares
    assert all(parameter.grad is None for parameter in module.parameters())


@pytest.mark.parametrize("name", ["tucker-2", "1x1", "locally connected"])
def test_a_frozen_module_follows_its_parameters(name: str) -> None:
    case = CASES[name]
    module, x = case.compiled().freeze(), case.input()
    before = module(x)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(3)
    same(module(x), before * 3 ** len(list(module.parameters())))
    assert module.frozen
    same(module.thaw()(x), before * 3 ** len(list(module.parameters())))


@pytest.mark.parametrize("name", CASES)
def test_a_frozen_module_changes_its_dtype(name: str) -> None:
    case = CASES[name]
    module = case.compiled(dtype=torch.float32).freeze().double()
    x = case.input()
    expected = evaluate(case.network, {"X": x, **case.values(dtype=torch.float32)})
    torch.testing.assert_close(module(x), expected, rtol=1e-4, atol=1e-4)  # contracted in float32
    same(module.thaw()(x), expected)
    same(module.freeze()(x), expected)
    assert module.plan.request.dtype == torch.float64


@pytest.mark.parametrize("name", ["A", "pattern_0", "pattern_of_view_0", "pattern_of_view_1"])
def test_dense_patterns_of_a_plan_are_its_own(name: str) -> None:
    """A hyperedge of two windows has no view; whichever plan is frozen, its patterns are those of its nodes."""
    text = f"X[n x] Conv[x u h | padding=1] Conv[x v w] {name}[h a] B[w b] Copy[b c d] -> [n u v a c d]"
    values, x = {name: random(3, 2), "B": random(2, 4, seed=1)}, random(2, 6)
    module = tnalgebra.compile(text, inputs={"X": (2, 6)}, values=values)
    expected = evaluate(tnalgebra.parse(text), {"X": x, **values})
    same(module(x), expected)
    assert set(module.state_dict()) == set(values)
    same(module.freeze()(x), expected)
    same(saved_and_loaded(module)(x), expected)
    same(module.thaw()(x), expected)


# Measuring ------------------------------------------------------------------------------------------------------


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """An empty cache and a clock of the tests' own: the later a candidate is tried, the faster it is. Its runs."""
    runs: list[str] = []
    monkeypatch.setenv("TNALGEBRA_CACHE", str(tmp_path))
    monkeypatch.setenv("TNALGEBRA_TUNE", "1")

    def timer(candidate: Candidate, _request: PlanRequest) -> Callable[[], float]:
        seconds = 1e-3 / (1 + len({*runs}))
        name = digest(candidate)
        runs.append(name)

        def run() -> float:
            runs.append(name)
            return seconds

        return run

    monkeypatch.setattr(tune, "make_timer", timer)
    return runs


def near(candidates: Sequence[Candidate]) -> list[Candidate]:
    """Those that are worth a measurement: near the best prediction, or the best of a family and not far."""
    least = min(one.seconds for one in candidates)
    firsts = {one.family: one for one in sorted(candidates, key=lambda one: -one.seconds)}.values()
    limits = [(one, tune.FAMILIES_NEAR if one in firsts else tune.NEAR) for one in candidates]
    return [one for one, limit in limits if one.seconds <= limit * least]


def test_the_fastest_measured_candidate_is_chosen(counted: list[str], tmp_path: Path) -> None:
    listed = CASE.compiled(tune=False).plan.candidates
    assert not counted
    module = CASE.compiled(tune=True)
    tried = [one for one in listed if digest(one) in counted]
    assert 1 < len(tried) == min(tune.MOST, len(near(listed)))
    assert {*counted} <= {*map(digest, near(listed))}
    assert module.plan.chosen.measured == min(one.measured for one in module.plan.candidates if one.measured)
    assert module.plan.chosen.measured == pytest.approx(1e-3 / len(tried))
    assert "measured" in str(module.plan)
    same(module(CASE.input()), CASE.compiled()(CASE.input()))
    (file,) = (tmp_path / "plans").iterdir()
    assert len(json.loads(file.read_text())) == len(tried)


@pytest.mark.parametrize(("size", "expected"), [(7, True), (31, False)])
def test_one_call_of_torch_comes_first_unless_it_is_predicted_to_take_far_longer(size: int, *, expected: bool) -> None:
    """A long depthwise window takes a hundred times as long for each multiply-add in a contiguous format."""
    windows = f"Conv[x u k | padding={size // 2}] Conv[y v l | padding={size // 2}]"
    values = {"W": torch.ones(8, size, size)}
    module = tnalgebra.compile(
        f"X[n c x y] {windows} W[c k l] -> [n c u v]", inputs={"X": (2, 8, 28, 28)}, values=values, tune=False
    )
    first, *others = module.plan.candidates
    least = min(one.seconds for one in (first, *others))
    (call,) = (one for one in (first, *others) if one.is_single_call)
    assert first.is_single_call == (call is first) == (call.seconds <= tune.FAMILIES_NEAR * least) == expected


def test_where_a_run_takes_long_every_family_is_tried_with_few_images(
    counted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def layer(*, tune: bool) -> tnalgebra.nn.Conv2d:
        dense = nn.Conv2d(8, 8, 3, padding=1)
        size = {"a": 4, "b": 4}
        return tnalgebra.nn.Conv2d.from_conv(dense, "tucker2", size, input_size=8, batch_size=16, tune=tune)

    listed = layer(tune=False).plan.candidates
    firsts = [digest(family[0]) for family in tune._families(listed)][: tune.MOST]
    fastest = firsts[-1]
    assert len(firsts) > 2 * tune.FEWEST
    tried: dict[int, set[str]] = {}

    def timer(candidate: Candidate, _request: PlanRequest) -> Callable[[], float]:
        images = candidate.program.sizes["n"]
        tried.setdefault(images, set()).add(digest(candidate))
        return lambda: images * (0.01 if digest(candidate) == fastest else 0.021)

    monkeypatch.setattr(tune, "make_timer", timer)
    assert digest(layer(tune=True).plan.chosen) == fastest
    assert tried == {16: {firsts[0], fastest}, 2: {*firsts}}


def test_equal_requests_are_measured_once_in_a_process_and_once_on_a_disk(counted: list[str]) -> None:
    module = CASE.compiled(tune=True)
    for remembered in (True, False):
        counted.clear()
        if not remembered:
            tune._remembered.clear()
        again = CASE.compiled(tune=True)
        assert not counted
        assert again.plan == module.plan
    with torch.no_grad():
        again.U.add_(1)
    assert not torch.equal(again(CASE.input()), module(CASE.input()))


def test_the_environment_turns_measuring_off(counted: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TNALGEBRA_TUNE", "0")
    module = CASE.compiled(tune=True)
    assert not counted
    assert module.plan == CASE.compiled(tune=False).plan


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "null", "[[1]]", '[["a", "b"]]', '[["0123456789abcdef", 1.0]]', '[["a", NaN]]', "\udcff"]
)
def test_a_broken_file_is_measured_again(counted: list[str], tmp_path: Path, text: str) -> None:
    module = CASE.compiled(tune=True)
    (file,) = (tmp_path / "plans").iterdir()
    whole = file.read_text()
    file.write_text(text, errors="surrogateescape")
    tune._remembered.clear()
    counted.clear()
    again = CASE.compiled(tune=True)
    assert counted
    assert digest(again.plan.chosen) == digest(module.plan.chosen)
    assert json.loads(file.read_text()) == json.loads(whole)


def test_a_folder_that_cannot_be_written_to_is_no_error(counted: list[str], tmp_path: Path) -> None:
    (tmp_path / "plans").write_text("a file in the place of the folder")
    assert CASE.compiled(tune=True).plan.chosen.measured is not None


def test_of_two_as_fast_the_one_with_fewer_calls_wins() -> None:
    listed = CASES["cp, stride 2"].compiled().plan.candidates
    calls = min(one.calls for one in listed)
    timers = [lambda fewest=one.calls == calls: 1.0 + 0.001 * fewest for one in listed[::-1]]
    results, agreed = tune.measure_candidates(listed[::-1], timers)
    assert agreed
    assert results[0][0].calls == calls < max(one.calls for one in listed)


@given(st.data())
def test_other_programs_do_not_change_the_winner(data: st.DataObject) -> None:
    listed = CASES["cp, stride 2"].compiled().plan.candidates[:6]
    seconds = data.draw(st.permutations([1e-4 * 1.25**n for n in range(len(listed))]))
    busy = data.draw(st.floats(0, 0.4))
    chance = data.draw(st.randoms(use_true_random=False))

    def timer(time: float) -> Callable[[], float]:
        return lambda: time * (1 if chance.random() >= busy else 1 + 50 * chance.random())

    results, agreed = tune.measure_candidates(listed, [timer(time) for time in seconds])
    if agreed:
        assert seconds[listed.index(results[0][0])] < 1.6 * min(seconds)
    if busy == 0:
        assert agreed
        assert [one for one, _ in results] == [listed[n] for n in sorted(range(len(listed)), key=seconds.__getitem__)]


def test_without_agreement_nothing_is_stored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TNALGEBRA_CACHE", str(tmp_path))
    monkeypatch.setenv("TNALGEBRA_TUNE", "1")
    numbers = itertools.count()

    def timer(*_: object) -> Callable[[], float]:  # every other candidate is slow, and the next turn the others are
        turns = itertools.count(next(numbers))
        return lambda: 1 + 0.14 * (next(turns) % 2)

    monkeypatch.setattr(tune, "make_timer", timer)
    plan = CASE.compiled(tune=True).plan
    assert plan.chosen.measured == 1
    assert not (tmp_path / "plans").exists()


def test_what_a_measurement_depends_on_is_in_its_key(monkeypatch: pytest.MonkeyPatch) -> None:
    request = CASE.compiled().plan.request
    others = [
        replace(request, dtype=torch.float32),
        replace(request, backward=True),
        replace(request, frozen=True),
        replace(request, candidates="factored"),
        replace(request, channels_last=True),
        replace(request, dynamic={"n": (1, 8)}),
        replace(request, max_elements=10_000),
        replace(request, network=tnalgebra.parse(str(request.network).replace("x:6", "x:8").replace("u:6", "u:8"))),
    ]
    keys = [request_key(one) for one in (request, *others)]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 99)
    keys.append(request_key(request))
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("tucker-2", {}),
        ("locally connected", {"backward": True}),
        ("grouped", {"memory_format": torch.channels_last}),
        ("global pooling", {}),
    ],
)
def test_measuring_runs(
    name: str, options: dict[str, object], device: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TNALGEBRA_CACHE", str(tmp_path))
    monkeypatch.setenv("TNALGEBRA_TUNE", "1")
    case, x = CASES[name], CASES[name].input(device)
    module = case.compiled(device, tune=True, **options)
    expected = case.value(case.input()).to(device)
    same(module(x), expected)
    same(module.freeze()(x), expected)
    module.thaw().float().freeze()  # measured again, in float32
    torch.testing.assert_close(module(x.float()), expected.float(), rtol=1e-4, atol=1e-4)


# Ranges ---------------------------------------------------------------------------------------------------------


def test_over_a_range_the_least_worst_ratio_wins() -> None:
    wide = linear(inputs={"X": (1, 40)}, values={"A": random(20, 40), "B": random(50, 20)}, dynamic={"n": (1, 64)})
    plan = wide.plan
    sizes = [1, 2, 4, 8, 16, 32, 64]
    prices = [[predicted_seconds(c.program, plan.request, {"n": n}) for n in sizes] for c in plan.candidates]
    best = [min(column) for column in zip(*prices, strict=True)]
    worst = [max(seconds / least for seconds, least in zip(row, best, strict=True)) for row in prices]
    assert worst[0] == pytest.approx(min(worst))
    assert "at worst, for n from 1 to 64" in str(plan)
    for count in (1, 3, 64):
        x = random(count, 40)
        same(wide(x), x @ wide.A.T @ wide.B.T)
    values = {"A": random(20, 40), "B": random(50, 20)}
    eight = linear(inputs={"X": (8, 40)}, values=values, dynamic={"n": (1, 64)}).plan
    assert eight.steps[-1].shape == (8, 50), "costs are those of the nominal sizes"
    assert eight.seconds == pytest.approx(predicted_seconds(eight.chosen.program, eight.request, {"n": 8}))


def test_crossovers_are_printed_and_right() -> None:
    module = linear(inputs={"X": (1, 200)}, values={"A": random(150, 200), "B": random(200, 150)})
    changes = module.plan.crossovers()
    assert changes[0][0] == 1
    for (low, before), (at, after) in pairwise(changes):
        assert low < at

        def cost(candidate: Candidate, count: int) -> float:
            return predicted_seconds(candidate.program, module.plan.request, {"n": count})

        assert cost(before, at - 1) <= cost(after, at - 1)
        assert cost(after, at) <= cost(before, at)
        if after is not module.plan.chosen:
            assert f"from n={at} on" in str(module.plan)


# Failures and text -------------------------------------------------------------------------------------------------


def test_a_failed_freeze_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    module, x = CASE.compiled(), CASE.input()
    before, code = module(x), module.code

    def fails(*_arguments: object, **_named: object) -> list[Tensor]:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(keeper, "compute_values", fails)
    with pytest.raises(torch.OutOfMemoryError):
        module.freeze()
    assert not module.frozen
    assert module.code == code
    assert torch.equal(module(x), before)


def test_text_of_the_module() -> None:
    module = linear()
    assert repr(module) == "Compiled(X[n:2 i:4] A[a:3 i] B[o:5 a])"
    assert repr(module.freeze()) == "Compiled(X[n:2 i:4] A[a:3 i] B[o:5 a], frozen)"
    assert repr(nn.Sequential(module)).count("Compiled(X[") == 1


def test_complex_values_are_not_loaded_into_real_ones() -> None:
    """torch would drop the imaginary parts with a warning."""
    values = {"W": torch.ones(4, 3)}
    module = tnalgebra.compile("X[n i] W[o i] -> [n o]", inputs={"X": (2, 3)}, values=values, tune=False)
    with refused(CompileError, "'W' is torch.complex64", "torch.float32"):
        module.load_state_dict({"W": torch.ones(4, 3, dtype=torch.complex64)})
    assert bool((module.W == 1).all())
