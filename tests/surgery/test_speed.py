"""Measurements: what they say, and a cache that never stands in the way."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import resgrow
from resgrow._load import _C
from resgrow._stopwatch import medians, stopwatch
from resgrow.surgery import Speed, measure, speed

CPU = torch.device("cpu")
CONV = nn.Conv2d(16, 32, 3, stride=2, padding=1)
MASK = torch.arange(2 * 16 * 9).view(2, 16, 3, 3) % 4 == 0  # density 1/4


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> list[list[float]]:
    """Real calls are made, but their times are written down here."""
    seconds: list[list[float]] = []

    def medians(calls: list, seconds_of: object) -> list[float]:
        for call in calls:
            call()
        seconds.append([8.0 + len(seconds), 1.0, 0.5])
        return seconds[-1]

    monkeypatch.setattr(speed, "medians", medians)
    return seconds


def again(**options: object) -> Speed:
    arguments = {"layer": CONV, "x_shape": (2, 16, 9, 9), "mask": MASK, "block": (16, 1), **options}
    return measure(**arguments)  # type: ignore[arg-type]


def test_says_what_was_measured(timed: list[list[float]]) -> None:
    found = again(train=True)
    assert found == Speed(
        dense=8.0,
        sparse=1.0,
        ideal=2.0,  # a quarter of the dense time
        density=0.25,
        block=(16, 1),
        shape=(2, 16, 9, 9),
        channels_last=True,
        train=True,
        threads=torch.get_num_threads(),
        dtype="float32",
    )
    assert found.ratio == 8
    sparse = again(mask=torch.zeros_like(MASK).index_fill(1, torch.tensor([0]), True), train=True)
    assert sparse.ideal == 9 / 16  # density 1/16
    assert again(mask=torch.zeros_like(MASK)).ideal == 0.5  # input and output are still read and written


def test_real_times_are_positive_and_leave_the_layer_alone() -> None:
    layer = nn.Linear(32, 32)
    layer.weight.requires_grad_(False)
    state, random = torch.get_rng_state(), layer.weight.clone()
    for train in (False, True):
        for dtype in (None, torch.bfloat16, torch.float64):
            found = measure(layer, (3, 5, 32), torch.eye(2, dtype=torch.bool), (16, 16), train=train, dtype=dtype)
            assert min(found.dense, found.sparse, found.ideal) > 0
            assert found.shape == (3, 5, 32)
            assert not found.channels_last
    assert torch.equal(layer.weight, random)
    assert layer.weight.grad is None
    assert torch.equal(torch.get_rng_state(), state)


def test_medians_of_interleaved_rounds() -> None:
    order: list[int] = []
    times = medians([lambda: order.append(0), lambda: order.append(1)], stopwatch(CPU))
    assert len(times) == 2
    assert order[:6] == [0, 1] * 3
    assert len(order) >= 2 * 8


def test_waiting_for_other_programs_does_not_count(threads: None) -> None:
    torch.set_num_threads(1)
    waited, worked = medians([lambda: time.sleep(0.02), lambda: sum(range(10_000))], stopwatch(CPU))
    assert 0 < waited < 0.01
    assert worked > 0
    torch.set_num_threads(2)  # the work of two threads is not in one's processor time
    assert medians([lambda: time.sleep(0.02)], stopwatch(CPU))[0] >= 0.02


def test_known_measurements_are_not_repeated(timed: list[list[float]], cache: Path) -> None:
    first = again()
    assert again() == first
    assert len(timed) == 1
    nearly = MASK.clone()
    nearly.view(-1)[1] = True
    assert again(mask=nearly).dense == first.dense
    assert again(mask=nearly).density > 0.25
    assert again(remeasure=True).dense == 9
    assert again().dense == 9
    (path,) = cache.iterdir()
    assert json.loads(path.read_text())["machine"]["instruction set"] == _C.cpu_isa()


@pytest.mark.parametrize(
    "options",
    [
        {"x_shape": (3, 16, 9, 9)},
        {"train": True},
        {"channels_last": False},
        {"dtype": torch.float64},
        {"mask": MASK | (torch.arange(3) == 0)},
        {"mask": torch.zeros_like(MASK)},
        {"block": (32, 1), "mask": MASK[:1]},
        {"layer": nn.Conv2d(16, 32, 3, padding=1)},
        {"layer": nn.Conv2d(16, 32, 3, stride=2, padding=1, dilation=2)},
        {"layer": nn.Linear(16, 32), "x_shape": (2, 16), "mask": MASK[..., 0, 0]},
    ],
    ids=lambda options: " ".join(options),
)
def test_anything_that_matters_is_measured_apart(timed: list[list[float]], options: dict[str, object]) -> None:
    again()
    again(**options)
    assert len(timed) == 2
    again(**options)
    assert len(timed) == 2


def test_threads_and_versions_are_kept_apart(
    timed: list[list[float]], threads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    again()
    torch.set_num_threads(torch.get_num_threads() + 1)
    assert again().threads == torch.get_num_threads()
    assert len(timed) == 2
    monkeypatch.setattr(resgrow, "__version__", "9")
    again()
    assert len(timed) == 3


def damaged(content: str) -> str:
    """The entries of a good file replaced."""
    stored = json.loads(content)
    stored["seconds"] = {key: [1.0, -1.0, 2.0] for key in stored["seconds"]}
    return json.dumps(stored)


@pytest.mark.parametrize(
    "spoil",
    [
        lambda content: "",
        lambda content: "{" * 100_000,
        lambda content: "[1, 2]",
        lambda content: '{"seconds": 3}',
        lambda content: content.replace("8.0", "NaN"),
        lambda content: content.replace("8.0", '"8.0"'),
        lambda content: content.replace("8.0,", ""),
        damaged,
    ],
)
def test_a_broken_cache_is_measured_anew(timed: list[list[float]], cache: Path, spoil) -> None:
    again()
    (path,) = cache.iterdir()
    path.write_text(spoil(path.read_text()))
    assert again().dense == 9
    assert again().dense == 9


def test_a_cache_that_cannot_be_written_is_done_without(
    timed: list[list[float]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RESGROW_CACHE_DIR", str(tmp_path / "file"))
    assert (again().dense, again().dense) == (8, 9)
    monkeypatch.delenv("RESGROW_CACHE_DIR")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def homeless() -> Path:
        raise RuntimeError("no home")

    monkeypatch.setattr(Path, "home", homeless)
    assert (again().dense, again().dense) == (10, 11)


def test_where_the_cache_is(timed: list[list[float]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("RESGROW_CACHE_DIR")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    again()
    assert len(list((tmp_path / "xdg" / "resgrow").glob("speed-*.json"))) == 1
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    again()
    assert len(list((tmp_path / ".cache" / "resgrow").iterdir())) == 1
    assert len(timed) == 2


def test_sparse_layers_are_measured_as_they_are_used() -> None:
    """A grouped layer and an unbatched input run through the same calls."""
    layer = nn.Conv2d(32, 32, 3, groups=2)
    mask: Tensor = torch.rand(2, 16, 3, 3) < 0.5
    assert measure(layer, (32, 6, 6), mask, (16, 1), channels_last=False).sparse > 0
