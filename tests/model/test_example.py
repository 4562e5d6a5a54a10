"""Examples of a model's inputs, in every form."""

from __future__ import annotations

from collections import namedtuple
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tests.refusals import refused
from tnalgebra.errors import LayerError
from tnalgebra.model.convert import convert
from tnalgebra.model.example import read_example, tensors_in

MODEL = nn.Sequential(nn.Linear(3, 4)).double()
X = torch.arange(6.0).reshape(2, 3)


def shapes(value: Any) -> Any:
    """The same nesting with (shape, dtype) for each tensor."""
    if isinstance(value, Tensor):
        return tuple(value.shape), value.dtype
    if isinstance(value, dict):
        return {key: shapes(one) for key, one in value.items()}
    return [shapes(one) for one in value] if isinstance(value, tuple | list) else value


F, D, I, B = torch.float32, torch.float64, torch.int64, torch.bool  # noqa: E741


@pytest.mark.parametrize(
    ("example", "args", "kwargs"),
    [
        (X, [((2, 3), F)], {}),
        ((2, 3), [((2, 3), D)], {}),
        ([2, 3], [((2, 3), D)], {}),
        (torch.Size([2, 3]), [((2, 3), D)], {}),
        ((5,), [((5,), D)], {}),
        (((2, 3), F), [((2, 3), F)], {}),
        ((X, (4, 5)), [((2, 3), F), ((4, 5), D)], {}),
        (((2, 3), (4, 5)), [((2, 3), D), ((4, 5), D)], {}),
        ((((2, 7), I), None, True), [((2, 7), I), None, True], {}),
        ({"x": (2, 3), "mask": ((2, 2), B)}, [], {"x": ((2, 3), D), "mask": ((2, 2), B)}),
        (((2, 3), {"mask": X}), [((2, 3), D)], {"mask": ((2, 3), F)}),
        (({"image": (2, 3)}, {}), [{"image": ((2, 3), D)}], {}),
        ({"pair": [(2, 3), {"deep": (4,)}]}, [], {"pair": [((2, 3), D), {"deep": ((4,), D)}]}),
        ((), [], {}),
        (((2, 3), "words"), [((2, 3), D), "words"], {}),
    ],
)
def test_every_form(example: Any, args: Any, kwargs: Any) -> None:
    read = read_example(example, MODEL)
    assert shapes(read[0]) == args
    assert shapes(read[1]) == kwargs


def test_values_are_normal_or_one_and_the_same_each_time() -> None:
    (first, second), _ = read_example(((200, 300), ((3, 2), torch.int32)), MODEL)
    assert abs(float(first.std()) - 1) < 0.02  # of 60,000 numbers
    assert (second == 1).all()
    assert torch.equal(first, read_example((200, 300), MODEL)[0][0])
    assert read_example(X, MODEL)[0][0] is X
    pair = namedtuple("pair", "x y")
    (kept,), _ = read_example([pair((2, 3), 1.5)], MODEL)
    assert type(kept) is pair
    assert kept.x.shape == (2, 3)


def test_what_is_no_example() -> None:
    for example, facts in ((3, ["int", "(1, 3, 224, 224)"]), ("x", ["str"]), ((2, -1), ["(2, -1)", "negative"])):
        with refused(LayerError, *facts):
            read_example(example, MODEL)
    with refused(LayerError, "meta device"):
        read_example((2, 3), nn.Linear(3, 4).to("meta"))


def test_tensors_of_an_output_in_any_nesting() -> None:
    one, two, three = torch.eye(1), torch.eye(2), torch.eye(3)
    assert [len(x) for x in tensors_in({"a": one, "b": (two, [three], "c")})] == [1, 2, 3]
    assert not [*tensors_in(None)]


class Masked(nn.Module):
    """Two inputs, one of them of tokens, one by name."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.layer = nn.Embedding(11, 6), nn.Linear(6, 8)

    def forward(self, tokens: Tensor, options: dict[str, Tensor]) -> Tensor:
        return self.layer(self.table(tokens)) * options["mask"][..., None]


def test_a_model_of_tokens_and_nested_arguments_is_converted_by_shapes() -> None:
    example = {"tokens": ((2, 5), torch.long), "options": {"mask": (2, 5)}}
    _, report = convert(Masked(), {"layer": ("out | in", 1)}, example=example, candidates="factored")
    assert report["layer"].multiply_adds == 10 * 48
    assert report["layer"].multiply_adds_after == 10 * 14
