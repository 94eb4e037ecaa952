"""Series that need no download: a chaotic one to forecast, and wave forms to tell apart. Inputs are (N, 1, L)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from resgrow._errors import InputError

# Mackey-Glass: steps per unit of time of the integration, and units of time until the start is forgotten.
STEPS = 10
SETTLING = 1000
TEST_SHARE = 0.2


@dataclass(frozen=True)
class Series:
    """A problem on sequences.

    ``train_x``, ``test_x``: float32 (N, C, L), standardised with mean and deviation of the *training* values.
    ``train_y``, ``test_y``: int64 (N,) in [0, len(classes)); of a forecast (``classes`` None) float32 (N, C), in the
    unit of the inputs.
    """

    name: str
    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    classes: tuple[str, ...] | None

    def to(self, device: str | torch.device) -> Series:
        """The same with its tensors on ``device``."""
        tensors = {name: getattr(self, name).to(device) for name in ("train_x", "train_y", "test_x", "test_y")}
        return replace(self, **tensors)


def mackey_glass_series(
    count: int,
    *,
    tau: float = 17.0,
    beta: float = 0.2,
    gamma: float = 0.1,
    power: float = 10.0,
    seed: int = 0,
    settling: int = SETTLING,
    steps: int = STEPS,
) -> np.ndarray:
    """``count`` values, a unit of time apart, float64, of the delay differential equation of Mackey and Glass.

    ``dx/dt = beta x(t - tau) / (1 + x(t - tau)^power) - gamma x(t)``, by the classical Runge-Kutta method with
    ``steps`` steps per unit of time, the delayed value half-way between two steps by the mean of its neighbours. Before
    t = 0 x is constant, drawn by ``seed`` from [1.1, 1.3]; the first ``settling`` units are left out. Chaotic for
    tau = 17.

    Source: Mackey & Glass, "Oscillation and chaos in physiological control systems", Science 197, 1977.

    Raises InputError for counts below 1 and for a delay that is not a positive multiple of a step.
    """
    delay = round(tau * steps)
    if delay < 1 or abs(delay - tau * steps) > 1e-9:
        raise InputError(f"data: mackey_glass: tau must be a multiple of 1/{steps}, above 0 (got {tau}); take 17")
    _at_least("mackey_glass", "count", count, 1)
    _at_least("mackey_glass", "settling", settling, 0)
    step = 1.0 / steps
    x = [float(np.random.default_rng(seed).uniform(1.1, 1.3))] * (delay + 1)

    def feed(late: float) -> float:
        return beta * late / (1 + late**power)

    for _ in range((settling + count - 1) * steps):
        old, new = x[-delay - 1], x[-delay]
        start, half, end = feed(old), feed((old + new) / 2), feed(new)
        now = x[-1]
        first = start - gamma * now
        second = half - gamma * (now + step / 2 * first)
        third = half - gamma * (now + step / 2 * second)
        fourth = end - gamma * (now + step * third)
        x.append(now + step / 6 * (first + 2 * second + 2 * third + fourth))
    return np.array(x[delay + settling * steps :: steps])


def mackey_glass(train: int = 2000, test: int = 500, *, length: int = 64, horizon: int = 6, seed: int = 0) -> Series:
    """From ``length`` values in a row (N, 1, length) the one that follows ``horizon`` units of time after the last.

    Windows start a unit apart. Those of the test come after those of the training, and share no value with them.
    Raises InputError for counts, a length or a horizon below 1.
    """
    for name, value in (("train", train), ("test", test), ("length", length), ("horizon", horizon)):
        _at_least("mackey_glass", name, value, 1)
    span = length + horizon
    values = mackey_glass_series(train + test + 2 * (span - 1), seed=seed)
    known = values[: train + span - 1]
    windows = np.lib.stride_tricks.sliding_window_view((values - known.mean()) / known.std(), span)

    def half(first: int, count: int) -> tuple[Tensor, Tensor]:
        chosen = torch.from_numpy(windows[first : first + count].astype(np.float32))
        return chosen[:, None, :length].contiguous(), chosen[:, -1:].contiguous()

    return Series("mackey-glass", *half(0, train), *half(train + span - 1, test), None)


# Of the phase in cycles, at a time in [0, 1).
_FORMS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "sine": lambda cycles: np.sin(2 * np.pi * cycles),
    "square": lambda cycles: np.where(cycles % 1 < 0.5, 1.0, -1.0),
    "sawtooth": lambda cycles: 2 * (cycles % 1) - 1,
    "chirp": lambda cycles: np.sin(2 * np.pi * cycles),
}


def waveforms(train: int = 2000, test: int = 500, *, length: int = 128, noise: float = 0.3, seed: int = 0) -> Series:
    """Four wave forms with noise (N, 1, length), as many of each as of the others, up to one, in random order.

    At ``t = i / length`` the phase is ``p + f t``, in cycles, of a chirp ``p + f t + f t^2``, whose frequency rises
    from f to 3 f. A sine is ``sin(2 pi phase)``, and so is a chirp; a square wave is 1 in the first half of a cycle and
    -1 in the second; a saw-tooth rises from -1 to 1 in each. All are times an amplitude, plus normal noise of deviation
    ``noise``. Drawn by ``seed``: p from [0, 1), f from [2, 6), amplitudes from [0.5, 1.5).

    Raises InputError for counts below 4 (one of each class), a length below 2 and negative noise.
    """
    for name, value, least in (("train", train, 4), ("test", test, 4), ("length", length, 2)):
        _at_least("waveforms", name, value, least)
    if not (noise >= 0 and np.isfinite(noise)):
        raise InputError(f"data: waveforms: noise must be at least 0 (got {noise}); 0.3 is the default")
    generator = np.random.default_rng(seed)
    t = np.arange(length) / length

    def half(count: int) -> tuple[np.ndarray, Tensor]:
        labels = generator.permutation(np.arange(count) % len(_FORMS))
        x = np.empty((count, 1, length))
        for i, label in enumerate(labels):
            phase, frequency, amplitude = generator.uniform((0, 2, 0.5), (1, 6, 1.5))
            name = tuple(_FORMS)[label]
            cycles = phase + frequency * t + (frequency * t**2 if name == "chirp" else 0)
            x[i, 0] = amplitude * _FORMS[name](cycles) + noise * generator.standard_normal(length)
        return x, torch.from_numpy(labels)

    (train_x, train_y), (test_x, test_y) = half(train), half(test)
    mean, deviation = train_x.mean(), train_x.std()

    def prepare(x: np.ndarray) -> Tensor:
        return torch.from_numpy(((x - mean) / deviation).astype(np.float32))

    return Series("waveforms", prepare(train_x), train_y, prepare(test_x), test_y, tuple(_FORMS))


def _at_least(op: str, name: str, value: int, least: int) -> None:
    if value < least:
        raise InputError(f"data: {op}: {name} must be at least {least} (got {value}); give more")
