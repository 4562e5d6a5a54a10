"""Networks that differ in a few weights, tested in passes that share their beginning: the same answers, fewer steps."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import tnalgebra as tn
from tests.refusals import refused
from tests.study_cases import CLASSES, CUTS, Kinds, Net, labelled, network, some_images
from tnalgebra.errors import StudyError
from tnalgebra.model import Images
from tnalgebra.model.steps import trace
from tnalgebra.nn import kernel_layers
from tnalgebra.studies import accuracy
from tnalgebra.studies.shared_tests import SharedTests


class Body(nn.Module):
    """Three convolutions and a linear layer, which the networks below call in their own ways."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3, padding=1)
        self.second = nn.Conv2d(6, 6, 3, padding=1)
        self.third = nn.Conv2d(6, 6, (3, 1))
        self.linear = nn.Linear(120, CLASSES)

    def end(self, hidden: Tensor) -> Tensor:
        return self.linear(self.third(hidden).flatten(1))

    def forward(self, images: Tensor) -> Tensor:
        return self.end(self.second(self.first(images).relu()).relu())


class InPlace(Body):
    """Later steps overwrite what earlier ones gave, also through a view."""

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.first(images)
        view = hidden.transpose(2, 3)
        after = self.second(hidden)
        view.relu_()
        hidden.add_(after)
        images.mul_(0.5)
        return self.end(hidden) + self.end(view.transpose(2, 3)) + images.mean((1, 2, 3))[:, None]


class Adding(Body):
    """A view is read after `+=`, which torch.fx takes for `+`."""

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.first(images)
        view = hidden[:, :2]
        hidden += self.second(hidden)
        return self.end(hidden) + view.mean((1, 2, 3))[:, None]


class Repeated(Body):
    """One layer is called twice, with another one between."""

    def forward(self, images: Tensor) -> Tensor:
        return self.end(self.second(self.third(functional.pad(self.second(self.first(images)).relu(), (0, 0, 1, 1)))))


class Tied(Body):
    """The weight of the second layer is read by a function before, and a third name has the same parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.other = nn.Conv2d(6, 6, 3, padding=1)
        self.other.weight = self.second.weight

    def forward(self, images: Tensor) -> Tensor:
        hidden = functional.conv2d(self.first(images), self.second.weight.abs().mean((2, 3), keepdim=True))
        return self.end(self.other(self.second(hidden)))


class Sometimes(nn.Module):
    """Numbers decide what is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 3, padding=1)

    def forward(self, hidden: Tensor) -> Tensor:
        return self.conv(hidden) if hidden.mean() > 0 and isinstance(hidden, Tensor) else hidden


class Deciding(Body):
    """A block decides by its numbers; the whole can be traced."""

    def __init__(self) -> None:
        super().__init__()
        self.sometimes = nn.Sequential(Sometimes(), nn.ReLU(), Sometimes())

    def forward(self, images: Tensor, *, scale: float | None = None) -> Tensor:
        hidden = self.sometimes(self.second(self.first(images)))
        return self.end(hidden if scale is None else scale * hidden)


class Undecided(Body):
    """The forward pass of the network itself depends on numbers."""

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.first(images)
        return self.end(self.second(hidden) if hidden.sum() > 0 else hidden)


class Hidden(Body):
    """Layers are called that are not found by the names of modules, and constants are made."""

    def forward(self, images: Tensor) -> Tensor:
        kept = [self.first, self.second]
        hidden = kept[1](kept[0](images)) * torch.tensor([1.0, 0.5, 2.0, 1.0, -1.0, 1.0])[:, None, None].to(images)
        one, two, three = hidden.split(2, dim=1)
        return self.end(torch.cat([three, two, one], 1))


class Counting(Body):
    """Every call changes the answers of the next one."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(images) * torch.where(self.calls % 2 == 0, 1.0, -1.0).to(images)


class Remembering(Body):
    """An attribute, which is not a tensor, changes the answers."""

    calls = 0

    def forward(self, images: Tensor) -> Tensor:
        self.calls += 1
        return super().forward(images) * (-1) ** self.calls


class Normalising(Body):
    """Dropout, which does nothing in evaluation, and statistics of the batch, which depend on all its images."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.5)

    def norm(self, hidden: Tensor) -> Tensor:
        return functional.batch_norm(hidden, None, None, training=True)

    def forward(self, images: Tensor) -> Tensor:
        hidden = functional.dropout(self.norm(self.first(images)), training=self.training)
        return self.end(self.dropout(self.norm(self.second(hidden)).relu()))


SPLIT = [Net, Kinds, Body, InPlace, Repeated, Tied, Deciding, Hidden, Normalising]


def changed(model: nn.Module, seed: int = 0) -> list[dict[nn.Parameter, Tensor]]:
    """For each kernel of the network, and for some together, another value."""
    generator = torch.Generator().manual_seed(seed)
    weights = [layer.weight for layer in kernel_layers(model).values()]
    single = [
        {weight: weight.detach() * torch.rand(weight.shape, generator=generator).to(weight)} for weight in weights
    ]
    return [*single, single[-1] | single[1], {}, single[1]]


def expected(model: nn.Module, images: Images, change: dict[nn.Parameter, Tensor], batch_size: int) -> float:
    """The accuracy by definition: the changed network by itself."""
    names = {parameter: name for name, parameter in model.named_parameters()}
    other = copy.deepcopy(model)
    with torch.no_grad():
        for parameter, value in change.items():
            other.get_parameter(names[parameter]).copy_(value)
    return accuracy(other, images, batch_size=batch_size)


def sharing(model: nn.Module, images: Images, *, batch_size: int = 50, memory: int = 2**30) -> SharedTests:
    return SharedTests(model, images, batch_size=batch_size, dtype=torch.float32, device="cpu", memory=memory)


@pytest.mark.parametrize("kind", [*SPLIT, Adding, Undecided])
@pytest.mark.parametrize(("batch_size", "memory"), [(37, 2**30), (64, 100_000), (200, 0)])
def test_accuracies_are_those_of_the_changed_networks(kind: type[nn.Module], batch_size: int, memory: int) -> None:
    model = network(kind).eval()
    images = labelled(some_images(200), model)
    before = copy.deepcopy(model.state_dict())
    changes = changed(model)
    wanted = [expected(model, images, change, batch_size) for change in changes]
    tests = sharing(model, images, batch_size=batch_size, memory=memory)
    assert [tests.accuracies([change])[0] for change in changes] == wanted
    order = torch.randperm(len(changes), generator=torch.Generator().manual_seed(batch_size)).tolist()
    assert tests.accuracies([changes[number] for number in order]) == [wanted[number] for number in order]
    assert tests.accuracies(changes[::-1]) == wanted[::-1]
    assert all(torch.equal(model.state_dict()[name], value) for name, value in before.items())


@pytest.mark.parametrize("kind", SPLIT)
def test_logits_are_equal_to_the_last_bit(kind: type[nn.Module]) -> None:
    model = network(kind).eval()
    pixels = some_images(23).normalise(some_images(23).pixels, dtype=torch.float32)
    steps = trace(model)
    assert steps is not None
    for change in changed(model):
        with torch.no_grad():
            values = [(parameter, parameter.detach().clone()) for parameter in change]
            progress = steps.start(pixels.clone())
            steps.advance(progress, steps.first_reader(change))
            for parameter, value in change.items():
                parameter.copy_(value)
            logits, whole = steps.finish(progress), model(pixels.clone())
            for parameter, value in values:
                parameter.copy_(value)
        assert torch.equal(logits, whole)


def images_through(layer: nn.Module, work: Callable[[], object]) -> int:
    """How many images a layer saw during the work."""
    seen = 0

    def count(_: nn.Module, inputs: tuple[Tensor, ...], __: Tensor) -> None:
        nonlocal seen
        seen += len(inputs[0])

    handle = layer.register_forward_hook(count)
    try:
        work()
    finally:
        handle.remove()
    return seen


@pytest.mark.parametrize("kind", [Adding, Undecided, Counting, Remembering])
def test_a_network_that_changes_itself_or_cannot_be_traced_is_tested_as_a_whole(kind: type[nn.Module]) -> None:
    model = network(kind).eval()
    images = labelled(some_images(300), model)
    tests = sharing(model, images)
    changes = changed(model)[1:]
    seen = images_through(model.get_submodule("first"), lambda: tests.accuracies(changes))
    assert seen >= sum(map(bool, changes)) * len(images)


@pytest.mark.parametrize(("memory", "together", "passes"), [(2**30, 1, 1), (0, 8, 1), (0, 1, 3)])
def test_what_is_before_the_change_is_computed_once(memory: int, together: int, passes: int) -> None:
    model = network(Net).eval()
    images = labelled(some_images(2000), model)
    tests = sharing(model, images, batch_size=100, memory=memory)
    changes = changed(model)[1:4]

    def work() -> None:
        assert tests.together([layer.weight for layer in kernel_layers(model).values()]) == (1 if memory else 8)
        for start in range(0, len(changes), together):
            tests.accuracies(changes[start : start + together])

    seen = images_through(model.get_submodule("stem"), work)
    assert passes * len(images) <= seen < passes * len(images) + 50  # a few images are tried


def test_no_more_is_kept_than_the_memory_allows() -> None:
    model = network(Body).eval()
    images = labelled(some_images(400), model)
    pixels_of_a_batch, memory = 100 * 3 * 6 * 5 * 4, 2 * 100 * 6 * 6 * 5 * 4  # two batches of six channels, no more
    tests = sharing(model, images, batch_size=100, memory=memory)
    second = changed(model)[1]
    assert memory > pixels_of_a_batch

    def seen(changes: Sequence[dict[nn.Parameter, Tensor]]) -> int:
        return images_through(model.get_submodule("first"), lambda: tests.accuracies(changes))

    first = seen([second])
    assert first - seen([second]) == 200 + 4  # the batches that are kept, and the images with which tracing is tried


@pytest.mark.usefixtures("undrawn")
def test_a_study_has_the_same_rows_whatever_is_kept(model: nn.Module, images: Images, tmp_path: Path) -> None:
    rows: dict[int, list[dict[str, object]]] = {}
    for memory in (0, 2**30):
        options = tn.StudyOptions(scope=("each", "all"), skip=(), memory=memory, untrained=True, progress=False)
        arguments = {"rewrites": CUTS, "sizes": ["keep 0.5", "keep 0.25"], "options": options}
        rows[memory] = tn.study(model, images, tmp_path / str(memory), **arguments).rows
        for row in rows[memory]:
            assert row.pop("seconds") >= 0
    assert rows[0] == rows[2**30]
    assert len(rows[0]) == 1 + 2 * 2 * (3 + 1)


def test_memory_is_not_negative() -> None:
    with refused(StudyError, "memory is -1 bytes"):
        tn.StudyOptions(memory=-1)
