"""A computation of frames as a graph of torch.fx in which windows along time are nodes, and the code of a step of it.

In the graph, a frame has one element along the axis of time. Nodes have these entries in `meta`:

    timing: when the frames of the value come; missing where the value does not depend on the input.
    axis: the axis of time; missing where the value is not one tensor.
    held: the `TimeWindow` or `Delay` of a node that has a state.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from functools import reduce
from typing import Any, TypeAlias

import torch
from torch import Tensor, fx, nn

from ..errors import StreamError
from .links import Branches, Call, FrameProduct, Link, Windowed
from .timing import Delay, TimeWindow, Timing

Held: TypeAlias = TimeWindow | Delay


def repeat(frame: Tensor, times: int, axis: int) -> Tensor:
    """A window in which all frames are the same: what a node with a state computes where only shapes matter."""
    return torch.cat([frame] * times, axis)


def timing_of(node: fx.Node) -> Timing | None:
    """When the frames of a node come; None if it does not depend on the input."""
    timing: Timing | None = node.meta.get("timing")
    return timing


def timed(node: fx.Node) -> Timing:
    """The timing of a node that depends on the input."""
    timing: Timing = node.meta["timing"]
    return timing


def held_nodes(graph: fx.Graph) -> list[fx.Node]:
    """The nodes with a state, in the order of the states."""
    return [node for node in graph.nodes if held_frames(node)]


def held_frames(node: fx.Node) -> int:
    """The number of past frames that a node holds."""
    held: Held | None = node.meta.get("held")
    return 0 if held is None else held.held(timed(source(node)))


def source(node: fx.Node) -> fx.Node:
    """The node whose frames a node with a state takes."""
    before = node.args[0]
    assert isinstance(before, fx.Node)
    return before


class GraphBuilder:
    """Builds the graph of frames, node by node.

    Args:
        root: the modules and tensors that the graph uses, by their names.
        padded: whether padding on the right may be behind another window.
    """

    def __init__(self, root: nn.Module, *, padded: bool) -> None:
        self.root = root
        self.graph = fx.Graph()
        self.padded = padded
        self.postponed: list[str] = []
        """Windows whose padding on the right is behind another window."""
        self._added = 0

    def start(self, axis: int) -> fx.Node:
        """The input, whose axis of time is `axis`."""
        return self._timed(self.graph.placeholder("x"), Timing(), axis)

    def follow(self, node: fx.Node, links: Sequence[Link], *, name: str, cropped: int = 0) -> fx.Node:
        """The value of a chain of steps that takes the frames of a node.

        Args:
            name: what an error calls the chain.
            cropped: frames at the end of its result that nothing reads.

        Raises:
            StreamError: a window is padded on the right, and behind another window.
        """
        for link in links:
            match link:
                case Windowed():
                    self._check_padding(node, link.window, name, cropped)
                    node = self._held(node, link.window, link.axis, link.window.size)
                case Call():
                    called = self.graph.call_function(link.function, (node, *link.arguments))
                    node = self._timed(called, timed(node), node.meta["axis"])
                case Branches():
                    ends = [self.follow(node, chain, name=name, cropped=cropped) for chain in link.chains]
                    ends, timing = self.meet(ends, name)
                    node = reduce(lambda a, b: self.graph.call_function(operator.add, (a, b)), ends)
                    self._timed(node, timing, ends[0].meta["axis"])
                case _:
                    node = self._module(node, link)
        return node

    def meet(self, nodes: Sequence[fx.Node], name: str) -> tuple[list[fx.Node], Timing]:
        """The nodes, the earlier ones delayed until the latest one, and the timing of a value that is made of them.

        Raises:
            StreamError: they come at different rates.
        """
        timings = [timed(node) for node in nodes]
        if len({(timing.stride, timing.gain) for timing in timings}) > 1:
            listed = ", ".join(f"{node} every {time.stride}" for node, time in zip(nodes, timings, strict=True))
            fact = f"{name} joins frames that come at different rates"
            raise StreamError(fact, steps=listed, fix="equal strides and lengths on all branches")
        latest = max(timing.offset for timing in timings)
        first, last = min(timing.first for timing in timings), max(timing.last for timing in timings)
        timing = Timing(timings[0].stride, latest, timings[0].gain, first, last)
        return [self._delayed(node, latest) for node in nodes], timing

    def _check_padding(self, node: fx.Node, window: TimeWindow, name: str, cropped: int) -> None:
        before = timed(node)
        if before.last > before.first and window.high > cropped:
            if not self.padded:
                raise StreamError(
                    f"{name} is behind another window and is padded by {window.high} on the right along time",
                    because="its last frames would see zeros where the frames of a longer clip are",
                    fix="padding on the left alone (causal), or padding='streaming' to pad it only where a clip ends",
                )
            self.postponed.append(name)

    def _delayed(self, node: fx.Node, offset: int) -> fx.Node:
        """The frames of a node at a later step."""
        steps = offset - timed(node).offset
        if steps and "axis" not in node.meta:
            raise StreamError(f"{node} has several tensors, which would have to be delayed", fix="one of them")
        return self._held(node, Delay(steps), node.meta["axis"], 1) if steps else node

    def _module(self, node: fx.Node, module: nn.Module) -> fx.Node:
        """A module that takes frames or windows; a `FrameProduct` may move the axis of time."""
        axis = module.axis if isinstance(module, FrameProduct) else node.meta["axis"]
        name = f"added_{self._added}"
        self._added += 1
        self.root.add_module(name, module)
        return self._timed(self.graph.call_module(name, (node,)), timed(node), axis)

    def finish(self, node: fx.Node) -> fx.GraphModule:
        """The graph whose output is a node; it comes at step 0 at the earliest."""
        if timed(node).offset < 0:
            node = self._delayed(node, 0)
        self.graph.output(node)
        self.graph.lint()
        return fx.GraphModule(self.root, self.graph)

    def _held(self, node: fx.Node, held: Held, axis: int, size: int) -> fx.Node:
        new = self.graph.call_function(repeat, (node, size, axis))
        new.meta["held"] = held
        return self._timed(new, held.after(timed(node)), axis)

    def _timed(self, node: fx.Node, timing: Timing, axis: int) -> fx.Node:
        node.meta |= {"timing": timing, "axis": axis}
        return node


# The code of a step -------------------------------------------------------------------------------------------


def step_code(flow: fx.GraphModule, step: int, clip: int | None, *, masked: bool = False) -> fx.GraphModule:
    """The code of one step, which takes a frame and the states, and returns a frame (or None) and the new states.

    Args:
        flow: the graph of frames.
        step: the number of the step. Below 0, and at the end of a clip, the frame only has the shape of one.
        clip: the number of frames of a clip that has ended; None while frames come.
        masked: whether the code takes the number of steps as well, as its second argument, and is right for steps
            before this one too, but for their outputs, which are not to be read.
    """
    return _Writer(flow, step, clip, masked=masked).write()


class _Writer:
    def __init__(self, flow: fx.GraphModule, step: int, clip: int | None, *, masked: bool) -> None:
        self.flow, self.step, self.clip, self.masked = flow, step, clip, masked
        self.graph = fx.Graph()
        self.values: dict[fx.Node, Any] = {}
        self.states: dict[fx.Node, fx.Node] = {}
        self.steps: fx.Node | None = None

    def write(self) -> fx.GraphModule:
        nodes = list(self.flow.graph.nodes)
        output = next(node for node in nodes if node.op == "output").args[0]
        x = self.graph.placeholder("x")
        if self.masked:
            self.steps = self.graph.placeholder("steps")
        held = held_nodes(self.flow.graph)
        self.states = {node: self.graph.placeholder(f"state_{number}") for number, node in enumerate(held)}
        needed = self._needed(nodes, output)
        for node in nodes:
            if node not in needed:
                continue
            if node.op == "placeholder":
                self.values[node] = self.graph.call_method("unsqueeze", (x, node.meta["axis"]))
            elif "held" in node.meta:
                self._hold(node)
            else:
                self.values[node] = self.graph.node_copy(node, lambda old: self.values[old])
        y = None
        if timed(output).has(self.step, self.clip):
            y = self.graph.call_method("squeeze", (self.values[output], output.meta["axis"]))
        self.graph.output((y, tuple(self.states[node] for node in held)))
        return fx.GraphModule(self.flow, self.graph)

    def _needed(self, nodes: Sequence[fx.Node], output: fx.Node) -> set[fx.Node]:
        """The nodes that are computed at this step."""
        needed = {output} if timed(output).has(self.step, self.clip) else set()
        for node in reversed(nodes):
            if "held" in node.meta and (node in needed or self._is_pushed(node)):
                needed.add(node)
                if timed(source(node)).comes(self.step):
                    needed.add(source(node))
            elif node in needed:
                needed |= {*node.all_input_nodes}
        return needed

    def _is_pushed(self, node: fx.Node) -> bool:
        """Whether the state of a node takes a frame: one of its source, or of padding."""
        before = timed(source(node))
        if not before.comes(self.step) or node.op == "output":
            return False
        return self.step >= before.offset or timed(node).has(self.step, self.clip)

    def _hold(self, node: fx.Node) -> None:
        """Write the value of a node with a state, and its new state."""
        held, before, axis, count = node.meta["held"], timed(source(node)), node.meta["axis"], held_frames(node)
        if not before.comes(self.step):  # a delay that is not a multiple of the stride
            self.values[node] = self._narrow(self.states[node], axis, 0, 1)
            return
        frame = self._frame(node)
        frames = self._call(torch.cat, [self.states[node], frame], axis) if count else frame
        if count and self._is_pushed(node):
            self.states[node] = self._narrow(frames, axis, 1, count)
        reach, dilation = (held.reach, held.dilation) if isinstance(held, TimeWindow) else (0, 1)
        if count > reach:
            frames = self._narrow(frames, axis, 0, reach + 1)
        if dilation > 1 and reach:
            frames = self._call(torch.ops.aten.slice.Tensor, frames, axis, 0, reach + 1, dilation)
        self.values[node] = frames

    def _frame(self, node: fx.Node) -> fx.Node:
        """The frame that a node with a state takes: padding before the first and after the last frame."""
        held, before, frame = node.meta["held"], timed(source(node)), self.values[source(node)]
        if not before.has(self.step, self.clip):
            return self._call(torch.full_like, frame, held.fill)
        if self.steps is None or before.offset <= 0 or not isinstance(held, TimeWindow) or held.low <= 0:
            return frame  # type: ignore[no-any-return]
        began = self._call(torch.ge, self.steps, before.offset)
        return self._call(torch.where, began, frame, held.fill)

    def _narrow(self, frames: fx.Node, axis: int, start: int, count: int) -> fx.Node:
        return self._call(torch.narrow, frames, axis, start, count)

    def _call(self, function: Any, *arguments: Any) -> fx.Node:
        return self.graph.call_function(function, arguments)
