from __future__ import annotations

import numpy as np
import pytest
import torch

from resgrow._errors import InputError
from resgrow.data import mackey_glass, waveforms
from resgrow.data.series import mackey_glass_series


def test_the_equation_holds():
    """Its two sides, with the derivative by central differences of fine steps."""
    steps, tau = 100, 17
    fine = mackey_glass_series(60 * steps, tau=tau * steps, beta=0.2 / steps, gamma=0.1 / steps, settling=0, steps=1)
    now = np.arange(tau * steps + 1, len(fine) - 1)
    left = (fine[now + 1] - fine[now - 1]) / 2
    late = fine[now - tau * steps]
    right = 0.2 / steps * late / (1 + late**10) - 0.1 / steps * fine[now]
    assert np.abs(left - right).max() < 1e-3 * np.abs(right).max()


def test_without_feedback_it_decays():
    x = mackey_glass_series(21, beta=0.0, settling=0)
    np.testing.assert_allclose(x, x[0] * np.exp(-0.1 * np.arange(21)), rtol=1e-8)


def test_a_short_delay_settles_at_the_fixed_point():
    # beta / (1 + x^10) = gamma at x = 1.
    np.testing.assert_allclose(mackey_glass_series(10, tau=2.0), 1.0, atol=1e-9)


def test_finer_steps_change_little():
    coarse, fine = (mackey_glass_series(100, settling=0, steps=steps) for steps in (10, 80))
    assert np.abs(coarse - fine).max() < 1e-3
    assert np.abs(coarse - mackey_glass_series(100, settling=0, steps=5)).max() > 1e-6


def test_the_usual_delay_is_chaotic():
    x = mackey_glass_series(3000)
    assert 0.2 < x.min() < 0.5
    assert 1.2 < x.max() < 1.5
    assert 0.18 < x.std() < 0.28
    one, other = (mackey_glass_series(800, seed=seed) for seed in (0, 1))
    assert np.abs(one - other).max() > 0.3


def test_forecasts_are_of_the_same_series():
    data = mackey_glass(50, 20, length=16, horizon=4)
    assert (data.train_x.shape, data.train_y.shape) == ((50, 1, 16), (50, 1))
    assert (data.test_x.shape, data.test_y.shape) == ((20, 1, 16), (20, 1))
    assert (data.train_x.dtype, data.classes) == (torch.float32, None)
    # What follows the last value of one window is the last value of the window that starts horizon later.
    assert torch.equal(data.train_y[:-4, 0], data.train_x[4:, 0, -1])
    values = torch.cat([data.train_x[:, 0, 0], data.train_x[-1, 0, 1:], data.train_y[-4:, 0]])
    assert float(values.mean()) == pytest.approx(0, abs=1e-5)
    assert float(values.std(correction=0)) == pytest.approx(1, abs=1e-5)
    assert not np.isin(data.test_x.numpy(), values.numpy()).any()
    assert torch.equal(data.train_x, mackey_glass(50, 20, length=16, horizon=4).train_x)


def test_wave_forms_without_noise():
    data = waveforms(40, 20, length=256, noise=0.0)
    assert data.classes == ("sine", "square", "sawtooth", "chirp")
    assert (data.train_x.shape, data.test_x.shape) == ((40, 1, 256), (20, 1, 256))
    assert torch.bincount(data.train_y).tolist() == [10] * 4
    assert data.train_y.tolist() != sorted(data.train_y.tolist())
    x = data.train_x[:, 0].double()
    rises = (x[:, 1:] - x[:, :-1]).abs()
    square = x[data.train_y == 1]
    assert all(len(row.unique()) == 2 for row in square)
    saw = x[data.train_y == 2]
    assert ((saw[:, 1:] > saw[:, :-1]).sum(1) >= 255 - 6).all()  # it falls once in a cycle
    smooth = rises[(data.train_y == 0) | (data.train_y == 3)].max()
    assert smooth < rises[(data.train_y == 1) | (data.train_y == 2)].amax(1).min()

    def crossings(row: torch.Tensor) -> int:
        return int(((row[1:] > 0) != (row[:-1] > 0)).sum())

    # Cycles per half: as many in both of a sine, of a chirp f 3/4 against f 5/4.
    centred = x - (x.amax(1, keepdim=True) + x.amin(1, keepdim=True)) / 2
    for label, more in ((0, False), (3, True)):
        rows = centred[data.train_y == label]
        first, second = (sum(map(crossings, half)) for half in (rows[:, :128], rows[:, 128:]))
        assert (second > 1.4 * first) == more


def test_noise_seed_and_scale():
    data, same, other = (waveforms(400, 40, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(data.test_x, same.test_x)
    assert not torch.equal(data.test_x, other.test_x)
    assert float(data.train_x.mean()) == pytest.approx(0, abs=1e-5)
    assert float(data.train_x.std(correction=0)) == pytest.approx(1, abs=1e-5)
    squares = data.train_x[data.train_y == 1][:, 0]
    assert min(len(row.unique()) for row in squares) > 100
    assert data.to("cpu").name == "waveforms"


@pytest.mark.parametrize(
    ("make", "rule"),
    [
        (lambda: mackey_glass(0), "train must be at least 1 \\(got 0\\)"),
        (lambda: mackey_glass(horizon=0), "horizon must be at least 1"),
        (lambda: mackey_glass_series(0), "count must be at least 1"),
        (lambda: mackey_glass_series(5, tau=0.0), "tau must be a multiple of 1/10, above 0 \\(got 0.0\\)"),
        (lambda: mackey_glass_series(5, tau=1.23), "tau must be a multiple of 1/10"),
        (lambda: waveforms(3), "train must be at least 4 \\(got 3\\)"),
        (lambda: waveforms(length=1), "length must be at least 2"),
        (lambda: waveforms(noise=-1.0), "noise must be at least 0"),
        (lambda: waveforms(noise=float("nan")), "noise must be at least 0"),
    ],
)
def test_wrong_arguments(make, rule):
    with pytest.raises(InputError, match=rule):
        make()
