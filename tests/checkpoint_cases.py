"""What the tests of checkpoints share: networks, what it means to be the same, files taken apart."""

from __future__ import annotations

import json
import struct
from typing import Any

import torch
from torch import nn

import tnalgebra.nn as layers
from tnalgebra.checkpoint.format import CHECK, KEY, check_of
from tnalgebra.decompositions.catalogue import rules
from tnalgebra.model.convert import convert
from tnalgebra.rewriting.rule import Rule
from tnalgebra.rewriting.text import rule

TIED = rule("K[o i h w] => A[o r] A[i r] B[h r] B[w r]", name="tied")
HYPEREDGE = rule("K[o i h w] => A[o i r] B[h r] C[w r]", name="hyperedge")
RESHAPED = rule("K[o i h w] => Fuse[o o1 o2] Fuse[i i1 i2] A[o1 i1 p] B[p o2 i2 h w]", name="reshaped")
BASIS = rule("K[o i h w] => D[c h] T[o i c w]", fixed={"D": "dct"}, name="basis")
RING = rule("K[o i h w] => A[z o p] B[p i q] C[q h s] D[s w z]", name="ring")
TRAIN = rule("K[o i h w] => A[o p] B[p i q] C[q h s] D[s w]", name="my train")
OWN = (TIED, HYPEREDGE, RESHAPED, BASIS, RING, TRAIN)
FEW: Any = {"starts": 1, "sweeps": 2}
X = torch.randn(2, 4, 9, 8, generator=torch.Generator().manual_seed(1))


# The same sums of a few hundred products, around 1, in another order, in float64.
ROUNDING: Any = {"rtol": 1e-11, "atol": 1e-11}


def network(**arguments: Any) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(4, 4, 3, **{"padding": 1, **arguments}),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.Conv2d(4, 6, (3, 2), groups=2),
    ).eval()


def converted(chosen: str | Rule = "tucker2", *, rank: int = 2, model: nn.Module | None = None) -> Any:
    """The network with its first layer decomposed."""
    made = rules("out in kh kw")[chosen] if isinstance(chosen, str) else chosen
    ranks = dict.fromkeys(made.ranks, rank)
    model, _ = convert(
        model or network(), {"0": (made, {"size": ranks, **FEW})}, allow_larger=True, example=tuple(X.shape)
    )
    return model


def same_state(one: nn.Module, two: nn.Module) -> None:
    first, second = one.state_dict(), two.state_dict()
    assert [*first] == [*second]
    for name, tensor in first.items():
        assert tensor.dtype == second[name].dtype, name
        assert torch.equal(tensor, second[name]), name


def layers_of(model: nn.Module) -> list[nn.Module]:
    """All modules but the code of decomposed layers, which is emitted again when a layer is frozen."""
    return [module for module in model.modules() if not isinstance(module, torch.fx.GraphModule)]


def same_layer(one: Any, two: Any) -> None:
    assert type(one) is type(two)
    assert (one.kernel, one.network, str(one.trace)) == (two.kernel, two.network, str(two.trace))
    assert one.code == two.code
    assert (one.relative_error, one.output_error) == (two.relative_error, two.output_error)
    assert [name for name, _ in one.named_parameters()] == [name for name, _ in two.named_parameters()]
    assert repr(one) == repr(two)


# Files ---------------------------------------------------------------------------------------------------------------


def tiny() -> nn.Module:
    torch.manual_seed(0)
    layer = layers.Linear.from_linear(nn.Linear(4, 3), "out | in", size=2)
    return nn.Sequential(layer, nn.Linear(3, 2))


def dense_tiny() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))


def taken_apart(content: bytes) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """Header, description, bytes of the tensors."""
    (length,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + length])
    return header, json.loads(header["__metadata__"][KEY]), content[8 + length :]


def put_together(header: dict[str, Any], description: str, data: bytes) -> bytes:
    """A file whose check sum of the description is right."""
    metadata = {**header["__metadata__"], KEY: description, CHECK: check_of(description)}
    text = json.dumps({**header, "__metadata__": metadata}).encode()
    return struct.pack("<Q", len(text)) + text + data
