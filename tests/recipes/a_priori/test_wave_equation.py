"""The solver of the wave equation: exact on the grid, of second order against the equation, keeping what waves keep."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch import Tensor

from recipes.a_priori import wave_equation
from recipes.a_priori.wave_equation import Waves, laplacian, leapfrog, random_speed, wave_fields
from tests.refusals import refused
from tnalgebra.errors import DataError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def shape_of_mode(height: int, width: int, ky: int, kx: int) -> tuple[Tensor, float, float]:
    """cos(ky y + kx x) on the grid, and its wave numbers in cells."""
    a, b = 2 * math.pi * ky / height, 2 * math.pi * kx / width
    y, x = torch.arange(height, dtype=torch.float64), torch.arange(width, dtype=torch.float64)
    return torch.cos(a * y[:, None] + b * x[None, :]), a, b


def random_wave(height: int = 9, width: int = 12) -> tuple[Tensor, Tensor, Tensor]:
    """Two random fields, and a speed that jumps from cell to cell, up to 1."""
    before, now, speed = torch.rand((3, height, width), dtype=torch.float64, generator=generator())
    return before, now, 0.1 + 0.9 * speed


def test_a_step_is_the_formula_cell_by_cell() -> None:
    before, now, speed = (each.numpy() for each in random_wave(4, 5))
    expected = np.empty((4, 5))
    for y in range(4):
        for x in range(5):
            around = now[(y - 1) % 4, x] + now[(y + 1) % 4, x] + now[y, (x - 1) % 5] + now[y, (x + 1) % 5]
            expected[y, x] = 2 * now[y, x] - before[y, x] + 0.3**2 * speed[y, x] ** 2 * (around - 4 * now[y, x])
    given, found = leapfrog(*map(torch.from_numpy, (before, now, speed)), steps=1, time_step=0.3)
    np.testing.assert_array_equal(given.numpy(), now)
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize(("ky", "kx"), [(1, 0), (0, 2), (2, 3), (5, -4), (5, 6)])
def test_a_standing_wave_of_the_grid_is_exact(ky: int, kx: int) -> None:
    """sin(w dt / 2)^2 = (c dt)^2 (sin(a / 2)^2 + sin(b / 2)^2) is the frequency of the steps themselves."""
    mode, a, b = shape_of_mode(10, 12, ky, kx)
    speed, time_step = 0.8, 0.7
    sine = speed * time_step * math.sqrt(math.sin(a / 2) ** 2 + math.sin(b / 2) ** 2)
    turn = 2 * math.asin(sine)
    before, now = leapfrog(mode * math.cos(turn), mode, torch.full_like(mode, speed), steps=100, time_step=time_step)
    torch.testing.assert_close(now, mode * math.cos(100 * turn), rtol=0, atol=1e-10)
    torch.testing.assert_close(before, mode * math.cos(99 * turn), rtol=0, atol=1e-10)


def error_against_the_equation(cells: int) -> float:
    """The largest error of a standing wave after the same time on a grid of n x n cells; dt shrinks as the cells do.

    At that time it has turned 3.58 pi: where it is largest its error would be of the fourth order.
    """
    mode, a, b = shape_of_mode(cells, cells, 1, 2)
    speed, time_step, steps = 0.8, 0.5, 2 * cells
    frequency = speed * math.hypot(a, b)
    _, now = leapfrog(
        mode * math.cos(frequency * time_step), mode, torch.full_like(mode, speed), steps=steps, time_step=time_step
    )
    return float((now - mode * math.cos(frequency * steps * time_step)).abs().max())


def test_it_is_of_second_order() -> None:
    errors = [error_against_the_equation(cells) for cells in (18, 36, 72, 144)]
    orders = [math.log2(coarse / fine) for coarse, fine in pairwise(errors)]
    # the next terms are of order 4: orders come near 2 by a factor of 4 each time
    assert orders[1] == pytest.approx(2, abs=0.1)
    assert orders[2] == pytest.approx(2, abs=0.03)
    assert errors[-1] < 0.01


def energy(before: Tensor, now: Tensor, speed: Tensor, *, time_step: float) -> Tensor:
    """The energy that leapfrog steps keep: 1/2 sum (v / c)^2 - 1/2 sum u(t) (Laplacian of u)(t - dt).

    v = (u(t) - u(t - dt)) / dt. With both fields in the second term, and not twice the same, it is kept to rounding,
    not to second order.
    """
    kinetic = ((now - before) / (time_step * speed)).square()
    return 0.5 * (kinetic - now * laplacian(before)).sum(dim=(-2, -1))


def test_energy_is_kept_in_any_medium() -> None:
    before, now, speed = random_wave()
    at_first = energy(before, now, speed, time_step=0.6)
    for _ in range(5):
        before, now = leapfrog(before, now, speed, steps=100, time_step=0.6)
        # sums of 108 cells, over 500 steps: rounding of some 1e-13
        torch.testing.assert_close(energy(before, now, speed, time_step=0.6), at_first, rtol=1e-11, atol=0)
    assert at_first > 0


def test_it_runs_back_to_where_it_came_from() -> None:
    before, now, speed = random_wave()
    late, later = leapfrog(before, now, speed, steps=200, time_step=0.7)
    assert float((later - now).abs().max()) > 0.1
    again, first = leapfrog(later, late, speed, steps=200, time_step=0.7)
    torch.testing.assert_close((first, again), (before, now), rtol=0, atol=1e-10)


def test_the_courant_friedrichs_lewy_condition() -> None:
    """At the limit the shortest wave stays as large as it is; beyond it the steps are refused before they are made."""
    checks = shape_of_mode(8, 8, 4, 4)[0]
    limit = 1 / math.sqrt(2)
    _, now = leapfrog(-checks, checks, torch.ones(8, 8, dtype=torch.float64), steps=1000, time_step=limit)
    assert float(now.abs().max()) == pytest.approx(1, abs=1e-6)
    with refused(DataError, "0.353907", "speeds to 2", 0.3536):
        leapfrog(-checks, checks, 2 * torch.ones(8, 8), steps=1, time_step=0.5 * limit * 1.001)
    with refused(DataError, "nan"):
        leapfrog(-checks, checks, torch.full((8, 8), math.nan), steps=1, time_step=0.1)


# data

SMALL = Waves(size=(14, 11), frame=3, horizon=2)


def test_the_fields_are_those_of_one_run() -> None:
    inputs, targets = wave_fields(12, seed=5, waves=SMALL, dtype=torch.float64)
    chance = generator(5)
    speed = random_speed(12, generator=chance, waves=SMALL)
    start = wave_equation._bumps(12, chance, SMALL)
    ages = torch.randint(1, 5, (12,), generator=chance).tolist()
    assert len(set(ages)) > 2
    torch.testing.assert_close(inputs[:, 2], speed, rtol=0, atol=0)
    for number, age in enumerate(ages):
        # at rest: the field before the first is the field after it
        before = start[number] + 0.5 * 0.4**2 * speed[number] ** 2 * laplacian(start[number])
        run = [start[number]]
        now = start[number]
        for _ in range(3 * (age + 2)):
            before, now = leapfrog(before, now, speed[number], steps=1, time_step=0.4)
            run.append(now)
        scale = run[3 * age].square().mean().sqrt()
        wanted = torch.stack([run[3 * (age - 1)], run[3 * age], run[3 * (age + 2)]]) / scale
        found = torch.stack([inputs[number, 0], inputs[number, 1], targets[number, 0]])
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-12)


def test_shapes_types_and_seeds() -> None:
    inputs, targets = wave_fields(7, seed=3)
    assert (inputs.shape, targets.shape) == ((7, 3, 32, 32), (7, 1, 32, 32))
    assert (inputs.dtype, targets.dtype) == (torch.float32, torch.float32)
    torch.testing.assert_close(inputs[:, 1].square().mean(dim=(1, 2)), torch.ones(7))
    torch.manual_seed(9)
    state = torch.get_rng_state()
    again, other = wave_fields(7, seed=3), wave_fields(7, seed=4)
    assert torch.equal(torch.get_rng_state(), state), "torch's own generator is left alone"
    assert torch.equal(again[0], inputs)
    assert torch.equal(again[1], targets)
    assert not torch.equal(other[0][:, 2], inputs[:, 2])


def test_media_are_smooth_and_layered_in_turn() -> None:
    speed = random_speed(40, generator=generator(), waves=Waves(size=(24, 30), slowest=0.3, fastest=0.7))
    assert speed.shape == (40, 24, 30)
    assert 0.3 <= float(speed.min()) < 0.35
    assert 0.65 < float(speed.max()) <= 0.7
    steps = torch.stack([(speed - speed.roll(1, axis)).abs().amax(dim=(1, 2)) for axis in (1, 2)])
    assert float(steps[:, ::2].max()) < 0.4 * 2 * math.pi * 2 / 24, "a wave of the box rises no faster"
    layered = steps[:, 1::2]
    assert bool(((layered == 0).sum(dim=0) == 1).all()), "each is constant along one axis, and not along the other"
    assert 4 < int((layered[0] == 0).sum()) < 16, "along either"
    counts = [len(each.unique()) for each in speed[1::2]]
    assert set(counts) == {2, 3, 4, 5}


def test_bumps_go_around_the_box() -> None:
    """A field of Gaussians is smooth across the border, and of the number of bumps that is asked for."""
    waves = Waves(size=(20, 28), bumps=(1, 1), width=(2.0, 2.0))
    fields = wave_equation._bumps(50, generator(), waves)
    for field in fields:
        y, x = divmod(int(field.abs().argmax()), 28)
        middle = field.roll((10 - y, 14 - x), (0, 1))
        assert float((middle - middle.roll(1, 0)).abs().max()) < 0.5 * float(middle.abs().max())
        assert float(middle[0].abs().max()) < 1e-4 * float(middle.abs().max())
        width = math.sqrt(float(middle.abs().sum()) / (2 * math.pi * float(middle.abs().max())))
        assert width == pytest.approx(2.0, rel=0.05), "the top lies up to half a cell beside the grid's"
    assert {bool(field.sum() > 0) for field in fields} == {True, False}
