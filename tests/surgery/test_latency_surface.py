"""What is measured of a layer, what lies between, and that fewer channels never seem to cost time."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable
from math import ceil, log2

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from resgrow.surgery.latency.density import DensityCurve
from resgrow.surgery.latency.surface import Surface, grid


def linear(inputs: float, outputs: float) -> float:
    return 2 + 0.5 * inputs * outputs


def in_vectors(inputs: float, outputs: float) -> float:
    """As a processor works that computes 16 channels at once."""
    return ceil(inputs / 16) * ceil(outputs / 16)


def counted(measure: Callable[[int, int], float]) -> tuple[Callable[[int, int], float], list[tuple[int, int]]]:
    asked: list[tuple[int, int]] = []

    def ask(inputs: int, outputs: int) -> float:
        asked.append((inputs, outputs))
        return measure(inputs, outputs)

    return ask, asked


def test_the_grid_has_the_ends_and_steps_of_vectors() -> None:
    assert grid(1) == [1]
    assert grid(5) == [1, 5]
    assert grid(64) == [1, 8, 16, 32, 48, 64]
    assert grid(64, edges=True) == [1, 8, 9, 16, 17, 32, 33, 48, 49, 64]
    assert grid(17, edges=True) == [1, 8, 9, 16, 17]
    assert grid(20, step=3) == [3, 24, 48, 60]
    for count in (*range(16, 200), 500, 512, 2048, 4097):
        assert len(grid(count, edges=True)) <= 4 * log2(count / 16) + 6


def test_products_of_widths_are_exact_anywhere() -> None:
    surface = Surface((70, 40), (1, 1), linear)
    for inputs, outputs in itertools.product((1, 7, 17, 31.5, 70), (1, 9, 16, 39, 40)):
        assert surface.seconds(inputs, outputs) == pytest.approx(linear(inputs, outputs))
        assert surface.seconds(inputs, outputs, smooth=True) == pytest.approx(linear(inputs, outputs))
    assert surface.seconds(0, 99) == pytest.approx(linear(1, 40))


def test_steps_of_vectors_are_kept_and_smoothed_over_on_request() -> None:
    surface = Surface((64, 64), (1, 1), in_vectors)
    for inputs, outputs in itertools.product((16, 17, 20, 31, 32, 33, 49, 64), repeat=2):
        assert surface.seconds(inputs, outputs) == pytest.approx(in_vectors(inputs, outputs))
    assert surface.seconds(24, 64, smooth=True) == pytest.approx(4 * 1.5)


def test_groups_go_whole() -> None:
    ask, asked = counted(linear)
    surface = Surface((4, 60), (1, 3), ask)
    assert surface.seconds(4, 45) == pytest.approx(linear(4, 45))
    assert all(outputs % 3 == 0 for _, outputs in asked)


def test_points_are_measured_once_and_only_where_they_are_needed() -> None:
    ask, asked = counted(linear)
    surface = Surface((512, 512), (1, 1), ask)
    assert asked == []
    surface.seconds(512, 512)
    assert asked == [(512, 512)]
    surface.seconds(511, 512)
    assert asked == [(512, 512), (385, 512)]
    for _ in range(2):
        for width in range(512, 50, -1):
            surface.seconds(width, width)
            surface.seconds(width - 1, width, smooth=True)
    assert len(asked) == len(set(asked)) <= 50
    points = [(i, o) for i in grid(512, edges=True) for o in grid(512, edges=True)]
    assert set(asked) <= set(points)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), inputs=st.integers(1, 70), outputs=st.integers(1, 40))
def test_noise_makes_no_width_cheaper_than_a_smaller_one(seed: int, inputs: int, outputs: int) -> None:
    noise = random.Random(seed)
    surface = Surface((inputs, outputs), (1, 1), lambda i, o: in_vectors(i, o) * noise.uniform(0.5, 2))
    asked = [(noise.randint(1, inputs), noise.randint(1, outputs)) for _ in range(25)]
    first = [surface.seconds(*widths) for widths in asked]
    assert [surface.seconds(*widths) for widths in asked] == first
    for smooth in (False, True):
        times = {widths: surface.seconds(*widths, smooth=smooth) for widths in asked}
        for (i, o), (p, q) in itertools.product(asked, repeat=2):
            if i <= p and o <= q:
                assert times[i, o] <= times[p, q] * (1 + 1e-12)


def test_a_sparse_layer_takes_over_where_it_is_faster() -> None:
    asked = []

    def ratio(density: float) -> float:
        asked.append(density)
        return 0.1 + 1.8 * density

    curve = DensityCurve(ratio)
    assert curve.share(1.0) == 1
    assert asked == []
    assert curve.share(0.9) == 1
    assert curve.share(0.3) == pytest.approx(0.64)
    assert curve.share(0) == pytest.approx(0.1)
    assert len(asked) == len(set(asked)) <= 5
    assert DensityCurve(None).share(0.1) == 1


def test_noise_makes_no_density_cheaper_than_a_lower_one() -> None:
    noise = random.Random(0)
    for _ in range(20):
        curve = DensityCurve(lambda density: noise.uniform(0, 1.2))
        asked = sorted((noise.random() for _ in range(30)), key=lambda _: noise.random())
        shares = {density: curve.share(density) for density in asked}
        ordered = [shares[density] for density in sorted(asked)]
        assert ordered == sorted(ordered)
