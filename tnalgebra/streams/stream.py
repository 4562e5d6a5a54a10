"""`Stream`: a network, layer or model that takes one frame at a step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, Self, TypeAlias, overload

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from .._tables import plural
from ..compiler import Compiled
from ..errors import StreamError
from .flow import held_frames, held_nodes, source, step_code, timed, timing_of
from .timing import Timing

State: TypeAlias = tuple[Tensor, ...]
"""The state of a stream: see `Stream.initial_state`."""


class Stream(nn.Module):
    """A network, layer or model that takes one frame at a step, made by `tn.stream`.

        stream = tn.stream(model.eval(), along="t", example=(1, 3, 16, 112, 112))
        for frame in video:                       # shape (1, 3, 112, 112)
            y = stream.step(frame)                # one frame of the model's output, or None

    Output s comes at step `stride * s + delay`, counted from 0, and equals frame s of the output for a whole clip. The
    outputs that a clip has after its last frame, because of padding on the right, come from `flush`.

    The step is a pure function too: `y, state = stream.step(x, state)`, from `stream.initial_state()` on. As a module,
    `y, state = stream(x, state)` is the step without a condition, for torch.compile and torch.onnx.export: all of its
    `delay` first outputs are tensors that mean nothing.

    The parameters are those of the model itself, so that training and loading reach the stream, and `to` both.

    Attributes:
        delay: steps from a frame of the input to the output frame of its number, or of its number / stride.
        stride: the number of steps for each output.
        receptive_field: the number of frames of the input that an output depends on.
        frame_shape: shape of the frame that the stream was planned for; it takes all others that the model takes.
    """

    def __init__(self, flow: fx.GraphModule, frame_shape: Sequence[int], clip: int, postponed: Sequence[str]) -> None:
        super().__init__()
        self.flow = flow
        self.frame_shape = tuple(frame_shape)
        self.clip = clip
        self.postponed = tuple(postponed)
        self._codes: dict[tuple[int, bool], fx.GraphModule] = {}  # by the number of a step, and whether it is masked
        self._distinct: dict[tuple[Any, ...], fx.GraphModule] = {}  # by what the code of a step depends on
        self._expected: dict[tuple[torch.Size, torch.dtype], list[torch.Size]] = {}
        self._state: State | None = None
        self._like: Tensor | None = None
        self._settle()

    def _settle(self) -> None:
        """Read from the graph what all calls need."""
        times = [timing for node in self.flow.graph.nodes if (timing := timing_of(node)) is not None]
        self._timings = tuple(dict.fromkeys(times))
        result = self._timing
        self.delay, self.stride = result.offset, result.stride
        self.receptive_field = result.receptive_field
        self._period = max(timing.stride for timing in times)
        self._settled = max(0, *(timing.offset for timing in times))
        self._start = min(0, *(timing.offset for timing in times))
        self._counted = self._settled > 0 or self._period > 1 or result.after_the_end > 0

    @property
    def _output(self) -> fx.Node:
        node = next(node for node in self.flow.graph.nodes if node.op == "output").args[0]
        assert isinstance(node, fx.Node)
        return node

    @property
    def _timing(self) -> Timing:
        return timed(self._output)

    @property
    def _axes(self) -> tuple[int, int]:
        """The axis of time of a clip, and of its output."""
        x = next(node for node in self.flow.graph.nodes if node.op == "placeholder")
        return x.meta["axis"], self._output.meta["axis"]

    # Calling ---------------------------------------------------------------------------------------------------

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        """One step without a condition, for code that torch compiles or exports.

        Args:
            x: a frame.
            state: as of `initial_state`.

        Returns:
            The output, which means nothing at the first `delay` steps, and the new state.

        Raises:
            StreamError: the stream has an output only at some of its steps; a state that does not belong to it.
        """
        if self._period > 1:
            fact = f"an output comes at every step of {self.stride}, and one code cannot be that of all steps"
            raise StreamError(fact, fix="stream.step(x, state)")
        if not torch.compiler.is_compiling():
            self._check_state(x, state)
        code = self._code(self._settled, None, masked=self._counted)
        if not self._counted:
            return code(x, *state)  # type: ignore[no-any-return]
        steps, *frames = state
        y, new = code(x, steps, *frames)
        return y, (steps + 1, *new)

    @overload
    def step(self, x: Tensor) -> Tensor | None: ...

    @overload
    def step(self, x: Tensor, state: State) -> tuple[Tensor | None, State]: ...

    def step(self, x: Tensor, state: State | None = None) -> Tensor | tuple[Tensor | None, State] | None:
        """Take a frame.

        Args:
            x: a frame: the shape of a clip without the axis of time.
            state: of the step before, or `initial_state`. The function is pure then. Without it, the stream keeps its
                own state, without gradients, until `reset`.

        Returns:
            The output, or None at a step without one; and with `state` also the new state.

        Raises:
            StreamError: the frame has another number of axes, or another shape than the frame before; a state that
                does not belong to the stream or to frames of this shape.
        """
        if state is not None:
            self._check_state(x, state)
            return self._advance(x, state)
        y, new = self._advance(x, self._kept(x))
        self._state, self._like = tuple(tensor.detach() for tensor in new), x.detach()
        return y

    def steps(self, xs: Tensor) -> Tensor:
        """Take all frames of a clip, or of a part of one, from the stream's own state on.

        Args:
            xs: frames, along the axis of time.

        Returns:
            The outputs that come, along the axis of time of the model's output; there may be 0 of them.
        """
        axis = self._axes[0]
        check_tensor(xs, "the clip")
        if xs.ndim != len(self.frame_shape) + 1:
            raise StreamError(f"the clip has {xs.ndim} axes, not {len(self.frame_shape) + 1}", shape=tuple(xs.shape))
        outputs = [self.step(x) for x in xs.unbind(axis)]
        return self._stacked([y for y in outputs if y is not None])

    def flush(self) -> Tensor:
        """End the clip: the outputs that a clip has after its last frame. The stream is reset.

        Returns:
            The outputs along the axis of time; 0 of them if nothing is padded on the right.

        Raises:
            StreamError: no frame came since the last `reset`.
        """
        if self._state is None or self._like is None:
            raise StreamError("no clip has begun that could end", fix="stream.step(x)")
        outputs = []
        if self._counted:
            steps, *frames = self._state
            clip = int(steps)
            last = self._timing.stride * (self._timing.count(clip) - 1) + self._timing.offset
            for number in range(clip, last + 1):
                y, frames = self._code(number, clip)(torch.zeros_like(self._like), *frames)
                if y is not None:
                    outputs.append(y)
        result = self._stacked(outputs)
        self.reset()
        return result

    def reset(self) -> None:
        """Forget all frames: the next one is the first one."""
        self._state = self._like = None

    def _kept(self, x: Tensor) -> State:
        """The stream's own state, for a frame like the one before."""
        check_tensor(x, "the frame")
        if self._state is None or self._like is None:
            return self.initial_state(x.shape, dtype=x.dtype, device=x.device)
        if (x.shape, x.dtype) != (self._like.shape, self._like.dtype):
            shown = [f"{tuple(one.shape)} of {one.dtype}" for one in (x, self._like)]
            raise StreamError(
                f"the frame is {shown[0]}, the one before {shown[1]}", fix="stream.reset() before another clip"
            )
        return self._state

    def _advance(self, x: Tensor, state: State) -> tuple[Tensor | None, State]:
        self._check(x.shape)
        if not self._counted:
            return self._code(0, None)(x, *state)  # type: ignore[no-any-return]
        steps, *frames = state
        number = int(steps)
        if number > self._settled:  # all steps that are alike have one code
            number = self._settled + (number - self._settled) % self._period
        y, new = self._code(number, None)(x, *frames)
        return y, (steps + 1, *new)

    def _check_state(self, x: Tensor, state: State) -> None:
        """Raise StreamError for a state that is not one of this stream, for frames like this one."""
        check_tensor(x, "the frame")
        key = (x.shape, x.dtype)
        if key not in self._expected:
            self._expected[key] = [one.shape for one in self.initial_state(x.shape, dtype=x.dtype, device="meta")]
        shapes = [one.shape if isinstance(one, Tensor) else type(one).__name__ for one in state]
        if shapes != self._expected[key]:
            shown, expected = (
                " ".join(str(tuple(one) if isinstance(one, tuple) else one) for one in listed) or "none"
                for listed in (shapes, self._expected[key])
            )
            fact = f"the state does not belong to this stream and frames of shape {tuple(x.shape)}"
            raise StreamError(fact, tensors=shown, expected=expected, fix="stream.initial_state(x.shape)")

    def _check(self, frame_shape: Sequence[int]) -> None:
        if not all(isinstance(size, int) and size >= 0 for size in frame_shape):
            raise StreamError(f"the shape of a frame is {frame_shape}", fix="integers, such as x.shape")
        if len(frame_shape) != len(self.frame_shape):
            fact = f"the frame has {len(frame_shape)} axes, not {len(self.frame_shape)}"
            raise StreamError(fact, shape=tuple(frame_shape), planned_for=self.frame_shape)

    def _code(self, step: int, clip: int | None, *, masked: bool = False) -> fx.GraphModule:
        if clip is None and (step, masked) in self._codes:
            return self._codes[step, masked]
        what = (masked, *(timing.at(step, clip) for timing in self._timings))
        if what not in self._distinct:
            self._distinct[what] = step_code(self.flow, step, clip, masked=masked)
        if clip is None:
            self._codes[step, masked] = self._distinct[what]
        return self._distinct[what]

    def _stacked(self, outputs: Sequence[Tensor]) -> Tensor:
        axis = self._axes[1]
        if outputs:
            return torch.stack(list(outputs), axis)
        if self._like is None:
            raise StreamError("no frame came")
        one = self._shapes(self._like)[self._output]
        shape = (*one.shape[:axis], 0, *one.shape[axis + 1 :])
        return torch.empty(shape, dtype=one.dtype, device=self._like.device)

    # States ----------------------------------------------------------------------------------------------------

    def initial_state(
        self,
        frame_shape: Sequence[int] | None = None,
        *,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> State:
        """The state before the first frame.

        Args:
            frame_shape: shape of the frames; by default that which the stream was planned for.
            dtype, device: of the frames; by default those of the weights.

        Returns:
            The number of steps, an integer on the CPU, unless all steps are alike; and for each window its past frames,
            dilation * (size - 1) of them, along the axis of time.
        """
        if frame_shape is not None and not isinstance(frame_shape, Sequence):
            raise StreamError(f"the shape of a frame is a {type(frame_shape).__name__}", fix="x.shape")
        like, shape = self._weight(), self.frame_shape if frame_shape is None else tuple(frame_shape)
        self._check(shape)
        x = torch.empty(
            shape,
            dtype=like.dtype if dtype is None else dtype,
            device="meta",
        )
        target = like.device if device is None else torch.device(device)
        state = []
        shapes = self._shapes(x)
        for node in held_nodes(self.flow.graph):
            before, axis = shapes[source(node)], node.meta["axis"]
            shape = (*before.shape[:axis], held_frames(node), *before.shape[axis + 1 :])
            state.append(torch.full(shape, node.meta["held"].fill, dtype=before.dtype, device=target))
        if self._start < 0:
            frame = torch.zeros(x.shape, dtype=x.dtype, device=target)
            for number in range(self._start, 0):
                _, state = self._code(number, None)(frame, *state)
        return (torch.zeros((), dtype=torch.int64), *state) if self._counted else tuple(state)

    @property
    def state_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Shapes of the tensors of the state, for frames of the shape that the stream was planned for."""
        return tuple(tuple(tensor.shape) for tensor in self.initial_state(device="meta"))

    def _shapes(self, x: Tensor) -> dict[fx.Node, Tensor]:
        """Tensors without elements with the shapes of all values, for frames like this one."""
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            reader = _Reader(self.flow)
            frame = torch.empty(x.shape, dtype=x.dtype, device=self._weight().device)
            reader.run(frame.unsqueeze(self._axes[0]))
        return reader.values

    def _weight(self) -> Tensor:
        held = (*self.parameters(), *self.buffers())
        return next((one for one in held if one.is_floating_point()), torch.empty(0))

    # Counts ----------------------------------------------------------------------------------------------------

    @property
    def multiply_adds(self) -> int:
        """The multiply-adds of convolutions and matrix products of a step; with strides, the mean over the steps."""
        counts = self._multiply_adds()
        return round(sum(count / timing.stride for timing, count in counts))

    @property
    def clip_multiply_adds(self) -> int:
        """The multiply-adds of all frames of a clip, as many as the example has."""
        return sum(timing.count(self.clip) * count for timing, count in self._multiply_adds())

    def _multiply_adds(self) -> list[tuple[Timing, int]]:
        """For each node that depends on the input, its timing and the multiply-adds of one frame."""
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            reader = _Reader(self.flow)
            frame = torch.empty(self.frame_shape, dtype=self._weight().dtype, device=self._weight().device)
            reader.run(frame.unsqueeze(self._axes[0]))
        return [(timed(node), count) for node, count in reader.counts.items() if timing_of(node) is not None]

    def extra_repr(self) -> str:
        step, clip = self.multiply_adds, self.clip_multiply_adds
        states = [shape for shape in self.state_shapes if shape]
        held = f"{sum(map(prod, states)):,} elements in {plural(len(states), 'tensor')}"
        outputs = "one output a step" if self.stride == 1 else f"one output in {self.stride} steps"
        lines = [
            f"{outputs}, delay {self.delay}, receptive field {self.receptive_field}",
            f"frames of {' x '.join(map(str, self.frame_shape))}, state of {held}",
            f"{step:,} multiply-adds a step, {clip:,} for a clip of {self.clip}",
        ]
        if self.postponed:
            more = f" and {len(self.postponed) - 3} more" if len(self.postponed) > 3 else ""
            lines.append(f"padded on the right only by flush: {', '.join(self.postponed[:3])}{more}")
        return "\n  " + "\n  ".join(lines) + "\n"

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"

    # Copies ----------------------------------------------------------------------------------------------------

    def freeze(self) -> Self:
        """Contract once what depends on weights alone, in all products: see `Compiled.freeze`."""
        for module in self.modules():
            if isinstance(module, Compiled):
                module.freeze()
        return self

    def _apply(self, fn: Callable[[Tensor], Tensor], *args: Any, **keywords: Any) -> Any:
        super()._apply(fn, *args, **keywords)  # type: ignore[no-untyped-call]
        if self._state is not None and self._like is not None:
            self._state = tuple(fn(tensor) if tensor.ndim else tensor for tensor in self._state)
            self._like = fn(self._like)
        return self

    def __getstate__(self) -> dict[str, Any]:
        """The state with the graph itself, of which torch.fx would keep the code alone."""
        parts = {name: vars(self.flow)[name] for name in ("_modules", "_parameters", "_buffers")}
        return {**self.__dict__, "_codes": {}, "_distinct": {}, "_modules": {}, "_parts": (parts, self.flow.graph)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        parts, graph = state.pop("_parts")
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        root = nn.Module()
        vars(root).update(parts)
        self.flow = fx.GraphModule(root, graph)


def check_tensor(x: object, what: str) -> None:
    """Raise StreamError unless this is a tensor with elements."""
    if not isinstance(x, Tensor):
        raise StreamError(f"{what} is a {type(x).__name__}", fix="a tensor")
    if x.is_meta:
        raise StreamError(f"{what} is on the meta device, which has no elements", fix="a tensor with elements")


class _Reader(fx.Interpreter):
    """Computes all values, and counts the multiply-adds of each node."""

    def __init__(self, flow: fx.GraphModule) -> None:
        super().__init__(flow, garbage_collect_values=False)
        self.extra_traceback = False
        self.values: dict[fx.Node, Any] = {}
        self.counts: dict[fx.Node, int] = {}

    def run_node(self, n: fx.Node) -> Any:
        with FlopCounterMode(display=False) as counter:
            value = super().run_node(n)
        self.values[n] = value
        self.counts[n] = counter.get_total_flops() // 2
        return value
