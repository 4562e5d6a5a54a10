"""Lowering: from a contraction tree to a program of torch operations."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import replace
from math import prod

from ..networks import Conv, Fuse, window
from . import operations as ops
from .computation import Leaf, moving_labels
from .convolution import convolve
from .equal_steps import without_equal_steps
from .fourier import convolve_by_fourier
from .fourier_steps import fourier_axis
from .operations import Axes, Axis, labels_in, shape_in
from .program import Program, Style
from .steps import Steps
from .trees import ContractionTree
from .values import (
    UNKNOWN,
    Draft,
    Value,
    arrange,
    as_matrices,
    axes_of_images,
    in_format,
    pad,
    plain_label,
    relabel_axes,
    relabel_axis,
    roles,
    run_of,
    singles,
    split_apart,
    sum_dead,
    without,
)


def lower(
    steps: Steps,
    tree: ContractionTree,
    style: Style,
    *,
    channels_last_inputs: bool = False,
    bias: str | None = None,
    format_kept: bool = False,
    fixed: frozenset[str] = frozenset(),
) -> Program:
    """The program of one contraction tree.

    Args:
        steps: the steps that the search chose from.
        channels_last_inputs: whether inputs with 4 or 5 axes are in that memory format.
        bias: the output label along which the vector `bias` is added.
        format_kept: whether the value has the memory format of the inputs.
        fixed: labels whose size another term of a sum fixes.
    """
    computation = steps.computation
    patterns = {part.mask: _pattern(steps, part) for part in tree.leaves if part.step == "pattern"}
    moving = (moving_labels(computation, patterns.values()) | computation.repeated) - fixed
    sizes = {label: size for label, size in computation.sizes.items() if label not in computation.repeated - fixed}
    draft = Draft(computation, steps, style, channels_last_inputs, patterns, sizes, moving, computation.factor)
    if bias is not None:
        draft.add(ops.Load("bias", ((bias,),), "weight"))
    # sizes that cannot change become part of the factor
    for label, power in computation.sized:
        if label not in moving:
            draft.factor *= float(draft.sizes[label]) ** power
    value = _lower(draft, tree)
    # each label of the output on an axis of its own
    value = arrange(draft, value, tuple(() if n in computation.units else (n,) for n in computation.output))
    if format_kept:
        value = in_format(draft, value, last=channels_last_inputs)
    if not {*computation.units} <= computation.repeated:
        axes = tuple(() if label in computation.repeated else (label,) for label in computation.output)
        draft.add(ops.Rename(value.number, axes))
    _apply_factor(draft, [pair for pair in computation.sized if pair[0] in moving])
    if bias is not None:
        _add_bias(draft, bias)
    operations = ops.used_operations(draft.operations)
    dense = {leaf.name: leaf for leaf in computation.leaves if leaf.kind == "pattern"}
    leaves = (*(leaf for leaf in dense.values() if leaf.name in draft.loaded), *patterns.values())
    program = Program(operations, computation.inputs, draft.sizes, draft.moving, leaves, style)
    return without_equal_steps(program)


def _pattern(steps: Steps, tree: ContractionTree) -> Leaf:
    """A window or reshape as a dense tensor, under a new name."""
    number = tree.mask.bit_length() - 1
    name = f"pattern_of_view_{number - steps.first_view}"
    while any(leaf.name == name for leaf in steps.computation.leaves):
        name += "_"
    node = steps.view(number)
    return Leaf(name, node.labels, "pattern", node)


def _lower(draft: Draft, tree: ContractionTree) -> Value:
    """The value of a tree, summed over the labels that no later step needs."""
    live = draft.steps.live_names(tree.mask)
    match tree.step:
        case "leaf":
            value = _load(draft, draft.computation.leaves[tree.mask.bit_length() - 1])
        case "pattern":
            value = _load(draft, draft.patterns[tree.mask])
        case "view":
            value = _view(draft, _lower(draft, tree.parts[0]), _nodes(draft, tree), live)
        case _:
            value = _join(draft, tree, live)
    return sum_dead(draft, value, live)


def _nodes(draft: Draft, tree: ContractionTree) -> list[Conv | Fuse]:
    return [draft.steps.view(number) for number in tree.views]


# Tensors, reshapes, and windows alone ----------------------------------------------------------------------------


def _load(draft: Draft, leaf: Leaf) -> Value:
    value = draft.loaded.get(leaf.name)
    if value is None:
        order = leaf.labels
        if leaf.kind == "input" and draft.channels_last_inputs and len(order) in (4, 5):
            order = (order[0], *order[2:], order[1])
        value = draft.add(ops.Load(leaf.name, singles(leaf.labels), leaf.kind), order)
        draft.loaded[leaf.name] = value
    elif value.labels != leaf.labels:  # tied: the same tensor under other labels
        order = leaf.labels
        if len(set(value.labels)) == len(value.labels):
            order = relabel_axis(value.order, dict(zip(value.labels, leaf.labels, strict=True)))
        value = draft.add(ops.Rename(value.number, singles(leaf.labels)), order)
    while len(set(value.labels)) < len(value.labels):
        first, second = next(
            (i, j) for i, a in enumerate(value.labels) for j, b in enumerate(value.labels) if i < j and a == b
        )
        rest = [axis for number, axis in enumerate(value.axes) if number not in (first, second)]
        value = draft.add(ops.Diagonal(value.number, (*rest, value.axes[first]), first, second), UNKNOWN)
    return value


def _view(draft: Draft, value: Value, views: Sequence[Conv | Fuse], live: Collection[str]) -> Value:
    """Apply the windows or the reshape of a tree to a value."""
    first, windows = views[0], [view for view in views if isinstance(view, Conv)]
    if isinstance(first, Fuse):
        return _split_whole(draft, value, first) if first.whole in value.labels else _merge_parts(draft, value, first)
    if windows[0].x not in value.labels:
        return _toeplitz(draft, value, windows[0])
    if not any(node.k in live or node.dilation != 1 for node in windows):
        moves = all(draft.sizes[node.k] == node.stride == 1 and node.mode == "zeros" for node in windows)
        return _move(draft, value, windows) if moves else _pool(draft, value, windows)
    for node in windows:
        value = _unfold(draft, value, node)
    return value


def _split_whole(draft: Draft, value: Value, fuse: Fuse) -> Value:
    def split(axis: Axis) -> Axis:
        return tuple(part for label in axis for part in (fuse.parts if label == fuse.whole else (label,)))

    return draft.add(ops.Rename(value.number, tuple(map(split, value.axes))), split(value.order))


def _merge_parts(draft: Draft, value: Value, fuse: Fuse) -> Value:
    def merge(axis: Axis) -> Axis:
        place = run_of(axis, fuse.parts)
        return axis if place is None else (*axis[:place], fuse.whole, *axis[place + len(fuse.parts) :])

    if all(run_of(axis, fuse.parts) is None for axis in value.axes):
        # move the parts onto one axis, at the place of the first of them
        rest = [without(axis, fuse.parts) for axis in value.axes]
        place = next(n for n, axis in enumerate(value.axes) if set(axis) & set(fuse.parts))
        before, after = (tuple(axis for axis in axes if axis) for axes in (rest[:place], rest[place:]))
        value = arrange(draft, value, (*before, fuse.parts, *after))
    order = UNKNOWN if run_of(value.order, fuse.parts) is None else merge(value.order)
    return draft.add(ops.Rename(value.number, tuple(map(merge, value.axes))), order)


def _unfold(draft: Draft, value: Value, node: Conv) -> Value:
    numbers = window(node)
    others = tuple(axis for axis in (without(axis, (node.x,)) for axis in value.axes) if axis)
    if node.mode != "zeros" and (numbers["low"] > 0 or numbers["high"] > 0):
        others = (labels_in(others),)
    value = arrange(draft, value, (*others, (node.x,)))
    value = pad(draft, value, [(node, numbers["low"], numbers["high"])])
    axes = (*others, (node.y,), (node.k,))
    unfold = ops.Unfold(value.number, axes, len(others), draft.sizes[node.k], numbers["stride"], numbers["dilation"])
    return draft.add(unfold, UNKNOWN)


def _toeplitz(draft: Draft, value: Value, node: Conv) -> Value:
    numbers = window(node)
    others = tuple(axis for axis in (without(axis, (node.k,)) for axis in value.axes) if axis)
    value = arrange(draft, value, (*others, (node.k,)))
    # as the tensors that it meets have them, if they follow the order of the nodes
    last = sorted((node.x, node.y), key=draft.steps.names.index)
    x, y = (last.index(label) - 2 for label in (node.x, node.y))
    numbers = {name: numbers[name] for name in ("stride", "dilation", "low")}
    return draft.add(ops.Toeplitz(value.number, (*others, *singles(last)), x, y, **numbers))


def _move(draft: Draft, value: Value, windows: Sequence[Conv]) -> Value:
    """Windows of one element, which put a value among zeros or take a part of it."""
    axes = value.axes
    for node in windows:
        axes = split_apart(axes, (node.x,))
    value = arrange(draft, value, axes)
    value = pad(draft, value, [(node, window(node)["low"], window(node)["high"]) for node in windows])
    ys = {node.x: node.y for node in windows}
    words = {label: ys[plain_label(label)] for label in value.labels if plain_label(label) in ys}
    return draft.add(ops.Rename(value.number, relabel_axes(value.axes, words)), relabel_axis(value.order, words))


def _pool(draft: Draft, value: Value, windows: Sequence[Conv]) -> Value:
    """Sums over windows: the means by a pooling of torch, and the number of elements as a factor."""
    ends = {node.x: node for node in windows}
    first = min(n for n, axis in enumerate(value.axes) if set(axis) & ends.keys())
    channels = without(value.axes[first - 1], ends) if first else ()
    batch, positions = axes_of_images(value, channels, ends)
    value = arrange(draft, value, (batch, channels, *positions))
    # padding is done by the call itself where torch can, else before it
    kernel, stride, padding, before, after = [], [], [], [], []
    for axis in positions:
        node = ends.get(axis[0]) if len(axis) == 1 else None
        numbers = {"stride": 1, "low": 0, "high": 0} if node is None else window(node)
        size = 1 if node is None else draft.sizes[node.k]
        low, high = numbers["low"], numbers["high"]
        inside = low == high and 0 <= low <= size // 2 and (node is None or node.mode == "zeros")
        kernel.append(size)
        stride.append(numbers["stride"])
        padding.append(low if inside else 0)
        after.append(axis if node is None else (node.y,))
        if node is not None and not inside:
            before.append((node, low, high))
    value = pad(draft, value, before)
    draft.factor *= prod(kernel)
    ys = {node.x: node.y for node in windows}
    order = tuple(ys.get(plain_label(label), label) for label in value.order)
    if prod(kernel) == prod(stride) == 1:  # padded or cropped, and nothing is added up
        return draft.add(ops.Rename(value.number, (batch, channels, *after)), order)
    pool = ops.Pool(value.number, (batch, channels, *after), tuple(kernel), tuple(stride), tuple(padding))
    return draft.add(pool, order)


# Joins -----------------------------------------------------------------------------------------------------------


def _join(draft: Draft, tree: ContractionTree, live: Collection[str]) -> Value:
    if tree.is_basis:
        return _into_basis(draft, *sorted(tree.parts, key=lambda part: part.mask not in draft.steps.bases))
    left, right = (_lower(draft, part) for part in tree.parts)
    windows = [node for node in _nodes(draft, tree) if isinstance(node, Conv)]
    if tree.lengths:
        axes = [fourier_axis(draft.steps, node, transposed=tree.transposed) for node in windows]
        return convolve_by_fourier(
            draft, left, right, axes=axes, lengths=tree.lengths, live=live, transposed=tree.transposed
        )
    if windows:
        return convolve(draft, left, right, windows=windows, live=live, transposed=tree.transposed)
    with_inputs = [bool(part.mask & draft.steps.inputs) for part in tree.parts]
    if with_inputs == [False, True]:
        left, right = right, left
    groups, summed, _ = roles(left, right, live)
    if not summed:
        return _multiply(draft, left, right, live)
    if any(with_inputs) and not all(with_inputs):
        _, positions = axes_of_images(left, groups + summed, ())
        if positions and (groups or draft.style.pointwise == "convolution"):
            return convolve(draft, left, right, windows=(), live=live, transposed=False)
        if not groups:
            return _linear(draft, left, right, summed)
    return _batched(draft, left, right, live)


def _into_basis(draft: Draft, basis: ContractionTree, rest: ContractionTree) -> Value:
    """The fast transform of a value into a basis, along the label that both have."""
    leaf, value = draft.steps.bases[basis.mask], _lower(draft, rest)
    rows, columns = leaf.labels
    old, new = (columns, rows) if columns in value.labels else (rows, columns)
    known = sorted(value.order) == sorted(value.labels)
    value = arrange(draft, value, singles(value.order if known else value.labels))
    place = value.labels.index(old)
    return draft.add(
        ops.ApplyBasis(value.number, relabel_axes(value.axes, {old: new}), leaf.basis, place, transposed=old == rows)
    )


def _multiply(draft: Draft, left: Value, right: Value, live: Collection[str]) -> Value:
    """The elementwise product; labels of the right side alone come after the shared ones."""
    groups, _, new = roles(left, right, live)

    def last_shared() -> int:
        return max((n for n, axis in enumerate(left.axes) if set(axis) & set(groups)), default=len(left.axes) - 1)

    place = last_shared()
    mixed = any(set(axis) & set(groups) and not set(axis) <= set(groups) for axis in left.axes)
    if mixed or (new and place >= 0 and len(left.axes[place]) > 1):
        left = arrange(draft, left, singles(left.labels))
        place = last_shared()
    before, after = left.axes[: place + 1], left.axes[place + 1 :]
    axes = (*before, *singles(new), *after)
    other = tuple(axis if set(axis) <= {*groups, *new} else () for axis in axes)
    while other and not other[0]:  # torch broadcasts along missing leading axes
        other = other[1:]
    left = arrange(draft, left, (*before, *(() for _ in new), *after))
    right = arrange(draft, right, other)
    order = None if new or draft.lies(left, left.labels) else left.order
    return draft.add(ops.Multiply(left.number, right.number, axes), order)


def _linear(draft: Draft, left: Value, right: Value, summed: Axis) -> Value:
    """Contract channels by a matrix product with a weight, on whichever axes they are."""
    new = without(right.labels, summed)
    axes = split_apart(left.axes, summed)
    channels = next(n for n, axis in enumerate(axes) if set(axis) & set(summed))
    batch, rest = (
        tuple(axis for axis in part if not set(axis) & set(summed)) for part in (axes[:channels], axes[channels:])
    )
    if rest and draft.lies(left, left.labels):
        rest = (labels_in(rest),)
        if draft.style.memory_format == "contiguous" and len(batch) < 2 and all(batch):
            left = arrange(draft, left, (*batch, summed, *rest))
            right = arrange(draft, right, (new, summed))
            return draft.add(ops.Matmul(right.number, left.number, (*batch, new, *rest), summed, "above"))
    left = as_matrices(draft, arrange(draft, left, (*batch, *rest, summed)))
    right = arrange(draft, right, (new, summed))
    return draft.add(ops.Matmul(left.number, right.number, (*batch, *rest, new), summed, "linear"))


def _batched(draft: Draft, left: Value, right: Value, live: Collection[str]) -> Value:
    groups, summed, new = roles(left, right, live)
    old = without(left.labels, groups + summed)
    lead: Axes = (groups,) if groups else ()
    left = as_matrices(draft, arrange(draft, left, (*lead, old, summed)))
    right = as_matrices(draft, arrange(draft, right, (*lead, summed, new)))
    return draft.add(ops.Matmul(left.number, right.number, (*lead, old, new), summed, "batched"))


# A factor and a bias of the whole value --------------------------------------------------------------------------


def _apply_factor(draft: Draft, sized: Sequence[tuple[str, int]]) -> None:
    """Multiply by the factor and by sizes that are known at the call.

    The factor alone scales the smallest weight that occurs once, if there is one; all else scales the value.
    """
    operations = draft.operations
    if draft.factor == 1 and not sized:
        return
    loads = [number for number, operation in enumerate(operations) if draft.is_single_weight(operation)]
    if sized or not loads:
        operations.append(ops.Scale(len(operations) - 1, operations[-1].axes, draft.factor, tuple(sized)))
        return
    place = min(loads, key=lambda number: prod(shape_in(operations[number].axes, draft.sizes)))
    later = [ops.renumber(operation, lambda n: n + (n >= place)) for operation in operations[place + 1 :]]
    operations[place + 1 :] = [ops.Scale(place, operations[place].axes, draft.factor, ()), *later]


def _add_bias(draft: Draft, label: str) -> None:
    """Add the bias along one label: in the call that makes the label if it can, else at the end."""
    operations = draft.operations
    axes = operations[-1].axes
    place = _call_with_bias(operations, label)
    if place is None:
        operations.append(ops.Add(len(operations) - 1, 0, axes, axes.index((label,))))
    else:
        call = operations[place]
        assert isinstance(call, ops.Convolve | ops.Matmul)
        operations[place] = replace(call, bias=0)


def _call_with_bias(operations: Sequence[ops.Operation], label: str) -> int | None:
    """The position of the convolution or product with a weight whose channels are the label.

    Between it and the value, elements may only be put into another order; else None.
    """
    number = len(operations) - 1
    axis: Axis = (label,)
    while True:
        operation = operations[number]
        match operation:
            case ops.Arrange() | ops.ChannelsLast() if axis in operations[operation.source].axes:
                number = operation.source
            case ops.Rename():
                axis = operations[operation.source].axes[operation.axes.index(axis)]
                number = operation.source
            case ops.Convolve():
                return number if operation.axes[1] == axis else None
            case ops.Matmul():
                place = {"linear": -1, "above": -2}.get(operation.form)
                return number if place is not None and operation.axes[place] == axis else None
            case _:
                return None
