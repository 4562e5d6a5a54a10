"""A traced model as a graph of frames, with its windows along time in their places."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any, NoReturn

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_leaves, tree_map

from ..errors import StreamError, TnalgebraError
from .flow import GraphBuilder, timed
from .links import Link, Windowed
from .timing import Timing
from .traced import Traced
from .windows import links_of_function, links_of_module

_TRIED = 3
"""Frames of the random clips on which it is tried whether a step takes single frames."""


@dataclass
class ModelFlow:
    """Builds the graph of frames of a traced model.

    tune: whether the plans of products are measured.
    nodes: node of the model -> its node in the graph of frames, or the default of an argument.
    moving: the nodes of the model that depend on the clip.
    """

    traced: Traced
    builder: GraphBuilder
    tune: bool
    nodes: dict[fx.Node, Any] = field(default_factory=dict)
    moving: set[fx.Node] = field(default_factory=set)

    def build(self) -> fx.GraphModule:
        """The graph of frames.

        Raises:
            StreamError: a step mixes frames in another way than by windows, or cannot be a stream.
        """
        for number, node in enumerate(self.traced.graph.nodes):
            if node.op == "output":
                break
            if node.op == "placeholder" and not number:
                self.nodes[node] = self.builder.start(self.traced.axis)
            elif self.moving.isdisjoint(node.all_input_nodes):
                self.nodes[node] = self._constant(node)
                continue
            else:
                self._add(node)
            self.moving.add(node)
        (result,) = node.args
        if not isinstance(result, fx.Node) or "axis" not in self.nodes[result].meta:
            raise StreamError(
                f"{type(self.traced.model).__name__} does not return one tensor with an axis of time",
                fix="a model that returns the output of all frames",
            )
        return self.builder.finish(self.nodes[result])

    def _constant(self, node: fx.Node) -> Any:
        """A node that does not depend on the input."""
        if node in self.traced.constants:
            name = f"constant_{str(node.target).rpartition('_')[2]}"
            self.builder.root.register_buffer(name, self.traced.constants[node])
            return self.builder.graph.get_attr(name)
        return node.args[0] if node.op == "placeholder" else self._copied(node)

    def _copied(self, node: fx.Node) -> fx.Node:
        new = self.builder.graph.node_copy(node, lambda old: self.nodes[old])
        if node.op in ("call_module", "get_attr"):
            new.target = f"model.{node.target}"
        new.meta.clear()
        return new

    def _add(self, node: fx.Node) -> None:
        """Add a node that depends on the input."""
        try:
            known = self._links(node)
            axis = self._axis(node)
        except TnalgebraError as error:
            raise type(error)(f"{self._title(node)}: {error.fact}", **error.context) from error
        if known is not None and known[0]:
            (first,) = (one for one in node.all_input_nodes if one in self.moving)
            self._add_links(node, self.nodes[first], *known)
            return
        if known is None and axis is not None and not self._takes_frames(node):
            self._refuse(node)
        timing = self._meet(node)
        self.nodes[node] = self._copied(node)
        self.nodes[node].meta["timing"] = timing
        if isinstance(axis, int):
            self._check_length(node, timing, axis)
            self.nodes[node].meta["axis"] = axis

    def _add_links(self, node: fx.Node, value: fx.Node, links: Sequence[Link], axis: int) -> None:
        value = self.builder.follow(value, links, name=self._title(node), cropped=self._cropped(node))
        value.meta["axis"] = axis
        self.nodes[node] = value
        self._check_length(node, timed(value), axis)

    def _cropped(self, node: fx.Node) -> int:
        """Frames at the end of a node's value that all of its readers leave out."""
        cropped = []
        self.moving.add(node)
        for user in node.users:
            known = self._links(user) if user.op == "call_function" else None
            windows = [link.window for link in known[0] if isinstance(link, Windowed)] if known else []
            cropped.append(max((-window.high for window in windows if window.size == 1), default=0))
        return min(cropped, default=0)

    def _check_length(self, node: fx.Node, timing: Timing, axis: int) -> None:
        """Compare the number of frames with that of the model's own value."""
        sizes = tuple(value.shape[axis] for value in self.traced.values[node])
        counts = tuple(timing.count(length) for length in self.traced.lengths)
        if sizes != counts:
            fact = f"{self._title(node)}: of clips of {self.traced.lengths} frames it has {sizes}, not {counts}"
            raise StreamError(fact, fix="a model whose number of frames follows from windows and strides alone")

    def _axis(self, node: fx.Node) -> int | str | None:
        """The axis of time of a node's value: None if it has no tensors, "several" if it has more than one tensor.

        Raises:
            StreamError: time is gone, or is on several axes, or was joined with another axis.
        """
        small, large = (tree_leaves(value) for value in self.traced.values[node])
        axes = [_time_axis(a, b) for a, b in zip(small, large, strict=True) if isinstance(a, Tensor)]
        if not axes:
            return None
        if None in axes and not isinstance(self.traced.values[node][0], Tensor):
            fact = f"output {axes.index(None)} of {len(axes)} has no axis of time"
            raise StreamError(fact, because="it has a value only when a clip ends", fix="a module without this output")
        if None in axes:
            raise StreamError(
                "the value of all frames has no axis of time: a global pooling has no value before a clip ends",
                fix="a window, such as AvgPool3d((16, 1, 1), stride=1), for the mean of 16 frames",
            )
        if -1 in axes:
            raise StreamError("time is on several axes", fix="steps of which each takes one frame, or windows")
        return axes[0] if isinstance(self.traced.values[node][0], Tensor) else "several"

    def _links(self, node: fx.Node) -> tuple[Sequence[Link], int] | None:
        """What is known of a node's windows along time: see `links_of_module`."""
        first = node.args[0] if node.args else None
        if not isinstance(first, fx.Node) or first not in self.moving:
            return None
        x, axis = self.traced.values[first][0], self._axis(first)
        if not isinstance(axis, int):
            return None
        if node.op == "call_module":
            return links_of_module(self._module(node), x, axis, tune=self.tune)
        if node.op == "call_function" and len(self.moving & {*node.all_input_nodes}) == 1:
            arguments, named = self._arguments(node, self._shaped)
            links = links_of_function(node.target, arguments, named, axis)
            return None if links is None else (links, axis)
        return None

    def _shaped(self, node: fx.Node) -> Any:
        """The value of a node for a clip; of one that does not depend on it the node in the graph of frames."""
        value = self.traced.values[node][0]
        if node in self.moving or node not in self.nodes or not isinstance(value, Tensor):
            return value
        self.nodes[node].meta["shape"] = value.shape
        return self.nodes[node]

    def _meet(self, node: fx.Node) -> Timing:
        """Delay the inputs of a node until its latest one, and return the timing of its value."""
        inputs = [one for one in node.all_input_nodes if one in self.moving]
        inputs = [one for one in inputs if self._has_tensors(one)] or inputs
        delayed, timing = self.builder.meet([self.nodes[one] for one in inputs], self._title(node))
        self.nodes |= dict(zip(inputs, delayed, strict=True))
        return timing

    def _has_tensors(self, node: fx.Node) -> bool:
        return any(isinstance(leaf, Tensor) for leaf in tree_leaves(self.traced.values[node][0]))

    # Trying ---------------------------------------------------------------------------------------------------

    def _takes_frames(self, node: fx.Node) -> bool:
        """Whether a step computes each frame from one frame: it is tried on random numbers, for the weights too."""
        inputs = node.all_input_nodes
        generator = torch.Generator().manual_seed(0)
        with torch.random.fork_rng([]), torch.no_grad():
            clip = {one: self._sample(one, _TRIED, generator) for one in inputs}
            try:
                whole = tree_leaves(self._call(node, clip))
                for number in range(_TRIED):
                    frame = {one: self._frame(one, clip[one], number) for one in inputs}
                    part = tree_leaves(self._call(node, frame))
                    if not all(_same(a, b, number, axis) for a, b, axis in self._pairs(node, whole, part)):
                        return False
            except (RuntimeError, ValueError, TypeError, IndexError, AssertionError, NotImplementedError):
                return False
        return True

    def _pairs(self, node: fx.Node, whole: list[Any], part: list[Any]) -> Iterator[tuple[Any, Any, int | None]]:
        small, large = (tree_leaves(value) for value in self.traced.values[node])
        axes = [_time_axis(a, b) if isinstance(a, Tensor) else None for a, b in zip(small, large, strict=True)]
        return zip(whole, part, axes, strict=True)

    def _sample(self, node: fx.Node, count: int, generator: torch.Generator) -> Any:
        """A random value of a node for clips on which its frames, or those of what it counts, are so many."""
        if node not in self.moving:
            return self._real(node)
        timing = timed(self.nodes[node])
        counts = [timing.count(length) for length in self.traced.lengths]

        def draw(a: Any, b: Any) -> Any:
            if isinstance(a, Tensor):
                axis = _time_axis(a, b)
                shape = [count if place == axis else size for place, size in enumerate(a.shape)]
                drawn = torch.randn(shape, generator=generator).to(a.device)
                return drawn.to(a.dtype) if a.is_floating_point() else drawn > 0
            if isinstance(a, torch.Size):
                return torch.Size(draw(one, other) for one, other in zip(a, b, strict=True))
            if isinstance(a, int) and a != b:  # a size, which grows with the clip
                return a + (b - a) * (count - counts[0]) // (counts[1] - counts[0])
            return a

        small, large = self.traced.values[node]
        return tree_map(draw, small, large)

    def _frame(self, node: fx.Node, value: Any, number: int) -> Any:
        """A frame of a random value; the sizes that steps read from frames are those of one frame."""
        if node not in self.moving:
            return value
        if any(isinstance(leaf, Tensor) for leaf in tree_leaves(value)):
            return tree_map(lambda one, a, b: _narrow(one, a, b, number), value, *self.traced.values[node])
        return self._of_one_frame(node)

    def _of_one_frame(self, node: fx.Node) -> Any:
        """The value of a step without tensors, such as a size, where all clips have one frame."""
        inputs = {}
        for one in node.all_input_nodes:
            generator = torch.Generator().manual_seed(0)
            inputs[one] = self._sample(one, 1, generator) if self._has_tensors(one) else self._of_one_frame(one)
        return self._call(node, inputs)

    def _real(self, node: fx.Node) -> Any:
        """The value of a node that does not depend on the input."""
        if node in self.traced.constants:
            return self.traced.constants[node]
        if node.op == "placeholder":
            return node.args[0]
        if node.op == "get_attr":
            value: Any = self.traced.model
            for name in str(node.target).split("."):
                value = getattr(value, name)
            return value
        return self._call(node, {one: self._real(one) for one in node.all_input_nodes})

    def _call(self, node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
        """Call the step; tensors are copied, because it may change them, and the weights of modules are random."""

        def copied(one: fx.Node) -> Any:
            return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, values[one])

        arguments, named = self._arguments(node, copied)
        if node.op == "call_function":
            return node.target(*arguments, **named)  # type: ignore[operator]
        if node.op == "call_method":
            first, *others = arguments
            return getattr(first, str(node.target))(*others, **named)
        module = self._module(node)
        generator = torch.Generator().manual_seed(1)
        drawn = {
            name: torch.randn(one.shape, generator=generator).to(one) + 1
            for name, one in module.named_parameters()
            if one.is_floating_point()
        }
        return torch.func.functional_call(module, drawn, tuple(arguments), named)

    def _arguments(self, node: fx.Node, value: Any) -> tuple[list[Any], dict[str, Any]]:
        arguments = fx.node.map_arg(node.args, value)
        return list(arguments), dict(fx.node.map_arg(node.kwargs, value))

    def _module(self, node: fx.Node) -> nn.Module:
        return self.traced.model.get_submodule(str(node.target))

    def _title(self, node: fx.Node) -> str:
        """What an error calls a node."""
        if node.op == "call_module":
            return f"{node.target} ({type(self._module(node)).__name__})"
        return str(node.target) if node.op == "call_method" else getattr(node.target, "__name__", str(node.target))

    def _refuse(self, node: fx.Node) -> NoReturn:
        raise StreamError(
            f"{self._title(node)} computes a frame from other frames, and is not a window along time",
            because="on random numbers, frames one by one gave other values than a clip",
            fix="a layer that takes single frames, or a convolution or pooling with a window along time",
        )


def _time_axis(small: Tensor, large: Tensor) -> int | None:
    """The axis whose size differs between two clips; -1 if there are several."""
    axes = [axis for axis, (a, b) in enumerate(zip(small.shape, large.shape, strict=True)) if a != b]
    return axes[0] if len(axes) == 1 else -1 if axes else None


def _narrow(value: Any, small: Any, large: Any, number: int) -> Any:
    """A frame of a value whose axis of time is that in which two values for clips differ."""
    axis = _time_axis(small, large) if isinstance(value, Tensor) else None
    return value if axis is None else value.narrow(axis, number, 1)


def _same(whole: Any, part: Any, number: int, axis: int | None) -> bool:
    """Whether a part is one frame of the whole, up to rounding."""
    if not isinstance(whole, Tensor) or axis is None:
        return not isinstance(whole, Tensor) or False
    if part.shape[axis] != 1 or whole.shape[axis] != _TRIED:
        return False
    expected = whole.narrow(axis, number, 1)
    if expected.shape != part.shape:
        return False
    if not part.is_floating_point():
        return torch.equal(expected, part)
    distance, norm = torch.dist(expected.double(), part.double()), expected.double().norm()
    return bool(distance <= torch.finfo(part.dtype).eps ** 0.5 * norm) if prod(part.shape) else True
