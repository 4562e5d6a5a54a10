"""Wrappers of a layer, and hooks."""

from __future__ import annotations

import copy
import os
import tempfile
import warnings

import torch
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.nn.parallel import DistributedDataParallel

from tests.use_cases import WRAPPED, Trial, same, use


def one_process() -> None:
    if not torch.distributed.is_initialized():
        store = torch.distributed.FileStore(os.path.join(tempfile.mkdtemp(), "store"), 1)
        torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)


@use(WRAPPED, "`DataParallel` and `DistributedDataParallel` in one process")
def _(one: Trial) -> None:
    one_process()
    for wrapper in (nn.DataParallel, DistributedDataParallel):
        value = one(wrapper(one.layer))
        same(value, one(one.dense()))
        value.sum().backward()


@use(WRAPPED, "`FullyShardedDataParallel` in one process")
def _(one: Trial) -> None:
    one_process()
    expected = one(one.dense())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layer = FullyShardedDataParallel(one.layer, device_id=torch.device("cpu"), use_orig_params=True)
        value = one(layer)
    same(value, expected)
    value.sum().backward()


@use(WRAPPED, "`fully_shard` in one process, frozen or not")
def _(one: Trial) -> None:
    one_process()
    mesh, expected = torch.distributed.init_device_mesh("cpu", (1,)), one(one.dense())
    for layer in (copy.deepcopy(one.layer), one.freeze().layer):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            fully_shard(layer, mesh=mesh)
            same(one(layer), expected)


@use(WRAPPED, "hooks")
def _(one: Trial) -> None:
    seen: list[str] = []
    one.layer.register_forward_hook(lambda *_: seen.append("forward"))
    one.layer.register_full_backward_hook(lambda *_: seen.append("backward"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one().sum().backward()
    assert seen == ["forward", "backward"]
