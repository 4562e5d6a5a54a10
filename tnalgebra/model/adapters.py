"""The adapters of a model: listed, chosen, scaled, merged, removed, and their tensors."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from .._tables import Table, Tabular, plural, tabulate
from ..errors import LayerError
from ..nn import Adapted, KernelLayer
from .attention import fold_attentions
from .modules import carry_hooks, check_initialised, holders_of_modules, put_module


class Adapters(Tabular):
    """The adapters of a model: prints as a table with a row for each layer and adapter.

    It looks at the model whenever it is asked, and is made again at any time by `tn.adapters(model)`.

    Attributes:
        model: with adapted layers.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model

    @property
    def layers(self) -> dict[str, Adapted]:
        """Name -> each adapted layer, in the order of the modules."""
        return {name: module for name, module in self.model.named_modules() if isinstance(module, Adapted)}

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the adapters."""
        return tuple(dict.fromkeys(name for layer in self.layers.values() for name in layer.adapters))

    @property
    def active(self) -> tuple[str, ...]:
        """Names of the adapters that are active in any layer."""
        return tuple(dict.fromkeys(name for layer in self.layers.values() for name in layer.active))

    def parameters(self, *names: str) -> list[nn.Parameter]:
        """The trained tensors of these adapters, or of all, each once: what an optimizer gets."""
        cores = [core for _, _, layer in self._each(names) for core in layer.cores().values()]
        return list(dict.fromkeys(cores))

    def activate(self, *names: str) -> None:
        """Choose the adapters that count: one, several, whose sum counts, or none.

        Raises:
            LayerError: no layer has an adapter of that name.
        """
        self._check(names)
        for layer in self.layers.values():
            layer.activate(*(name for name in names if name in layer.adapters))

    def rescale(self, name: str, scale: float) -> None:
        """Give an adapter another scale in all its layers. Raises LayerError: no layer has it; it is not finite."""
        self._check((name,))
        for layer in self.layers.values():
            if name in layer.adapters:
                layer.rescale(name, scale)

    def merge(self) -> None:
        """Compute with the sums of weights and active networks where no gradients are needed; see `tn.nn.Adapted`.

        The state of the model does not change. `unmerge()` and `model.train()` end it.

        Raises:
            LayerError: a layer beside adapters has no weight as a tensor, as one that is quantised.
        """
        for layer in self.layers.values():
            layer.merge()

    def unmerge(self) -> None:
        """Compute with weights and networks apart; the weights have the bits that they had before."""
        for layer in self.layers.values():
            layer.unmerge()

    def remove(self, *names: str) -> None:
        """Remove adapters, by default all; a layer without any is torch's own again, and so is an attention.

        Raises:
            LayerError: no layer has an adapter of that name.
        """
        self._check(names)
        for layer in self.layers.values():
            for name in names or tuple(layer.adapters):
                if name in layer.adapters:
                    layer.remove(name)
        self._exchange({layer: layer.base for layer in self.layers.values() if not layer.adapters})

    def to_dense(self) -> nn.Module:
        """Exchange each adapted layer for torch's own with the weight W + scale * network; returns the model."""
        dense: dict[nn.Module, nn.Module] = {layer: layer.to_dense() for layer in self.layers.values()}
        self._exchange(dense)
        return self.model

    def records(self) -> list[dict[str, Any]]:
        """A dictionary for each layer and adapter: names, the network, the scale, parameters, and whether it counts."""
        return [
            {
                "layer": key,
                "adapter": name,
                "network": str(layer.kernel),
                "scale": adapted.scales[name],
                "active": name in adapted.active,
                "merged": adapted.is_merged,
                "parameters": sum(core.numel() for core in layer.cores().values()),
                "parameters_dense": adapted.base.weight.numel(),
            }
            for key, adapted, name, layer in self._rows(())
        ]

    def _exchange(self, new: Mapping[nn.Module, nn.Module]) -> None:
        holders = holders_of_modules(self.model)
        for old, module in new.items():
            carry_hooks(old, module)
            put_module(holders[old], module)
        fold_attentions(self.model, {*new.values()})

    def _check(self, names: tuple[str, ...]) -> None:
        for name in names:
            if name not in self.names:
                fact = f"the model has no adapter {name!r}"
                raise LayerError(fact, adapters=", ".join(self.names) or None)

    def _rows(self, names: tuple[str, ...]) -> Iterator[tuple[str, Adapted, str, KernelLayer]]:
        for key, adapted in self.layers.items():
            for name, layer in adapted.adapters.items():
                if isinstance(layer, KernelLayer) and (not names or name in names):
                    yield key, adapted, name, layer

    def _each(self, names: tuple[str, ...]) -> list[tuple[str, str, KernelLayer]]:
        self._check(names)
        return [(key, name, layer) for key, _, name, layer in self._rows(names)]

    def _summary(self) -> str:
        count = sum(core.numel() for core in self.parameters())
        whole = sum(one.numel() for one in self.model.parameters())
        names, layers = ", ".join(self.names) or "none", plural(len(self.layers), "layer")
        return f"{names} in {layers}: {count:,} of {whole:,} parameters"

    def _table(self) -> Table:
        columns: dict[str, Callable[[dict[str, Any]], str]] = {
            "layer": lambda row: row["layer"],
            "adapter": lambda row: row["adapter"] + ("" if row["active"] else " (not active)"),
            "network": lambda row: row["network"],
            "scale": lambda row: f"{row['scale']:g}",
            "parameters": lambda row: f"{row['parameters']:,} : {row['parameters_dense']:,}",
        }
        merged = any(layer.is_merged for layer in self.layers.values())
        below = [self._summary()] + (["merged"] if merged else [])
        return tabulate(self.records(), columns, left=("adapter", "network"), below=below)


def adapters(model: nn.Module) -> Adapters:
    """The adapters of a model. Raises LayerError: it has no adapted layer."""
    check_initialised(model)
    result = Adapters(model)
    if not result.layers:
        raise LayerError(f"{type(model).__name__} has no adapted layer", fix="tn.adapt(model, {'*': 'LoRA'}, 8)")
    return result


def adapter_state(model: nn.Module, *names: str) -> dict[str, Tensor]:
    """The tensors of a model's adapters alone, as they stand in `model.state_dict()`.

    Args:
        names: of adapters; by default all.

    Returns:
        Such as {"fc.adapters.default.A": ..., "fc.adapters.default.B": ...}; they share the model's memory.

    Raises:
        LayerError: the model has no adapted layer, or no adapter of a name.

    Example:
        >>> sorted(tn.adapter_state(model))
    """
    return {
        f"{key}.adapters.{name}.{core}": tensor.detach()
        for key, name, layer in adapters(model)._each(names)
        for core, tensor in layer.kernel_tensors().items()
    }
