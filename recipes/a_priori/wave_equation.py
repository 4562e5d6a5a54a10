"""Waves in a medium: data for a network that predicts the solution of a partial differential equation.

The equation is u_tt = c(x, y)^2 (u_xx + u_yy) on a periodic box: a wave that leaves on the right comes in on the left.
Without walls every cell has the same neighbourhood, as in a convolution with circular padding, and standing waves are
known in closed form. The solver makes leapfrog steps with the five-point Laplacian, of second order in time and space.

    inputs, targets = wave_fields(1500, seed=0)        # (1500, 3, 32, 32), (1500, 1, 32, 32): a second on one core
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

import tnalgebra as tn


@dataclass(frozen=True)
class Waves:
    """The kind of waves, and how far ahead they are predicted. Lengths are in cells, so that a cell is 1 wide.

    The fastest wave runs 6.4 cells in `horizon` times `frame` steps, which is as far as a network of seven 3 x 3
    convolutions sees: the prediction is local, but far from a straight line through the two frames.
    """

    size: tuple[int, int] = (32, 32)
    """height and width of the box, in cells"""
    time_step: float = 0.4
    """the time step of the solver; for speeds up to 1 it has to be at most 1 / sqrt(2)"""
    frame: int = 4
    """steps between the two fields of an input"""
    horizon: int = 4
    """frames from the second of them to the field that is predicted"""
    slowest: float = 0.4
    """least speed, in cells per unit of time"""
    fastest: float = 1.0
    """largest speed"""
    bumps: tuple[int, int] = (2, 5)
    """least and largest number of Gaussians in an initial field"""
    width: tuple[float, float] = (1.5, 4.0)
    """least and largest standard deviation of a Gaussian, in cells: smooth on the grid, and small in the box"""


USUAL = Waves()


def wave_fields(
    count: int, *, seed: int, waves: Waves = USUAL, dtype: torch.dtype = torch.float32
) -> tuple[Tensor, Tensor]:
    """Random waves in random media: two frames and the speed, and the field some frames later.

    A field begins at rest, as a sum of Gaussians of either sign, and runs for a random number of frames, up to twice
    the horizon, before the first frame is taken. Each wave is scaled to a mean square of 1 in its second frame. Half
    of the media are smooth, the others layered along either axis; see `random_speed`.

    Args:
        count: the number of waves, n.
        seed: the seed of all random numbers. Another seed, and another `count`, gives other waves.
        waves: the kind of waves.
        dtype: of the result. The solver runs in float64.

    Returns:
        inputs: shape (n, 3, height, width): u one frame ago, u now, and the speed c.
        targets: shape (n, 1, height, width): u after `waves.horizon` frames.

    Raises:
        DataError: the time step is too long, see `leapfrog`.
    """
    generator = torch.Generator().manual_seed(seed)
    speed = random_speed(count, generator=generator, waves=waves)
    now = _bumps(count, generator, waves)
    age = torch.randint(1, 2 * waves.horizon + 1, (count, 1, 1), generator=generator)
    # at rest a wave is symmetric in time: the step before the first equals the one after it
    before = now + 0.5 * waves.time_step**2 * speed.square() * laplacian(now)
    kept: dict[str, Tensor] = {name: torch.empty_like(now) for name in ("first", "second", "asked")}
    for number in range(1, 3 * waves.horizon + 1):
        earlier = now
        before, now = leapfrog(before, now, speed, steps=waves.frame, time_step=waves.time_step)
        for name, field, moment in (("first", earlier, age), ("second", now, age), ("asked", now, age + waves.horizon)):
            kept[name] = torch.where(moment == number, field, kept[name])
    scale = kept["second"].square().mean(dim=(1, 2), keepdim=True).sqrt()
    inputs = torch.stack([kept["first"] / scale, kept["second"] / scale, speed], dim=1)
    return inputs.to(dtype), (kept["asked"] / scale)[:, None].to(dtype)


def leapfrog(before: Tensor, now: Tensor, speed: Tensor, *, steps: int, time_step: float) -> tuple[Tensor, Tensor]:
    """Continue a wave by several steps u(t + dt) = 2 u(t) - u(t - dt) + dt^2 c^2 (Laplacian of u)(t).

    With `before` and `now` exchanged, the wave runs back in time.

    Args:
        before: u(t - dt), shape (..., height, width).
        now: u(t), of the same shape.
        speed: c in cells per unit of time, of a shape that can be broadcast with it.
        steps: the number of steps, at least 0.
        time_step: dt, at most 1 / (sqrt(2) max c): the condition of Courant, Friedrichs and Lewy.

    Returns:
        u(t + (steps - 1) dt) and u(t + steps dt).

    Raises:
        DataError: the time step is so long that the waves would grow without bound.

    Source:
        R. Courant, K. Friedrichs and H. Lewy, Mathematische Annalen 100 (1928), 32.
    """
    fastest = float(speed.abs().max())
    # the shortest wave of the grid has the frequency sqrt(8) c; the margin is for rounding of a step at the limit
    if not fastest * time_step * math.sqrt(2) <= 1 + 1e-12:
        raise tn.errors.DataError(
            "the time step breaks the Courant-Friedrichs-Lewy condition",
            time_step=f"{time_step:g}, of speeds to {fastest:g} cells per unit of time",
            needed=f"at most 1 / (sqrt(2) * {fastest:g}) = {1 / (math.sqrt(2) * fastest):.4g}",
        )
    pull = (time_step * speed).square()
    for _ in range(steps):
        before, now = now, 2 * now - before + pull * laplacian(now)
    return before, now


def laplacian(field: Tensor) -> Tensor:
    """The five-point Laplacian on the periodic grid of cells of width 1, shape (..., height, width)."""
    return field.roll(1, -2) + field.roll(-1, -2) + field.roll(1, -1) + field.roll(-1, -1) - 4 * field


def random_speed(count: int, *, generator: torch.Generator, waves: Waves = USUAL) -> Tensor:
    """Random media, which are smooth and layered in turn.

    A smooth medium is a sum of the longest waves of the box, one in each of four directions, scaled to random bounds
    between the least and the largest speed. A layered medium has two to five layers along the height or the width, each
    with a random speed.

    Returns:
        Shape (count, height, width), float64, between `waves.slowest` and `waves.fastest`.
    """
    height, width = waves.size
    span = waves.fastest - waves.slowest
    bounds = torch.rand((count, 2, 1, 1), dtype=torch.float64, generator=generator).sort(dim=1).values
    y, x = (2 * math.pi * torch.arange(size, dtype=torch.float64) / size for size in waves.size)
    smooth = torch.zeros((count, height, width), dtype=torch.float64)
    for ky, kx in ((0, 1), (1, 0), (1, 1), (1, -1)):
        amplitude, phase = torch.rand((2, count, 1, 1), dtype=torch.float64, generator=generator)
        smooth += amplitude * torch.cos(ky * y[:, None] + kx * x[None, :] + 2 * math.pi * phase)
    low, high = smooth.amin(dim=(1, 2), keepdim=True), smooth.amax(dim=(1, 2), keepdim=True)
    smooth = bounds[:, 0] + (bounds[:, 1] - bounds[:, 0]) * (smooth - low) / (high - low)
    layered = torch.empty_like(smooth)
    for number in range(count):
        layers = int(torch.randint(2, 6, (), generator=generator))
        values = torch.rand(layers, dtype=torch.float64, generator=generator)
        across = bool(torch.randint(2, (), generator=generator))
        size = width if across else height
        edges = torch.rand(layers - 1, dtype=torch.float64, generator=generator).sort().values * size
        profile = values[torch.bucketize(torch.arange(size, dtype=torch.float64), edges)]
        layered[number] = profile[None, :] if across else profile[:, None]
    chosen = torch.where((torch.arange(count) % 2 == 0)[:, None, None], smooth, layered)
    return waves.slowest + span * chosen


def _bumps(count: int, generator: torch.Generator, waves: Waves) -> Tensor:
    """Sums of Gaussians of either sign, shape (count, height, width), float64; distances are around the box."""
    least, most = waves.bumps
    sizes = torch.tensor(waves.size, dtype=torch.float64)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, dtype=torch.float64, generator=generator)

    places = uniform(count, most, 2) * sizes
    widths = waves.width[0] + (waves.width[1] - waves.width[0]) * uniform(count, most)
    heights = (2 * uniform(count, most) - 1) * (
        torch.arange(most) < torch.randint(least, most + 1, (count, 1), generator=generator)
    )
    profiles = []
    for axis, size in enumerate(waves.size):
        distance = torch.arange(size) - places[:, :, axis, None]
        distance = distance - size * (distance / size).round()
        profiles.append(torch.exp(-0.5 * (distance / widths[:, :, None]).square()))
    return torch.einsum("nb,nby,nbx->nyx", heights, *profiles)
