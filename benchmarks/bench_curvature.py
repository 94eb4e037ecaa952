"""The diagonal-curvature pass against forward+backward, per-sample loops and torch.func per-sample gradients.

    pytest benchmarks/bench_curvature.py -s --benchmark-columns=median,rounds --benchmark-json=out.json

Eval-mode norms, channels_last, float32. Floors, ResNet-20, one thread: ggn-mc takes at most 1.15 times as long as
forward+backward, exact ggn at most 8 times, and ggn-mc is at least 30 times as fast as the loop over losses (one
forward pass, then a backward pass per sample's loss). The loop over samples (forward and backward on one sample at a
time) does far less work than that and is the stronger baseline; its ratio is shown too.

Memory is measured on Linux, once per contestant, in a process of its own: the high-water mark of resident memory
above what model, data and a warm-up on two samples hold ("cold"), and the same in a process that has just done a
forward+backward, whose freed memory is there to be used again ("warm").
"""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import pytest
import torch
from _timing import interleave, median_ratio
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

import resgrow

Problem = tuple[nn.Module, Tensor, Tensor]
Contestant = Callable[[nn.Module, Tensor, Tensor], dict[str, Tensor]]

SLOW = ("ggn", "vmap", "loop over samples", "loop over losses")
ROUNDS, SLOW_ROUNDS = 15, 3


def lenet5() -> Problem:
    return resgrow.nn.lenet5(), torch.randn(128, 1, 28, 28), torch.randint(10, (128,))


def resnet20() -> Problem:
    model = resgrow.nn.resnet(20)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model, torch.randn(64, 3, 32, 32), torch.randint(10, (64,))


PROBLEMS: dict[str, Callable[[], Problem]] = {"LeNet-5, batch 128": lenet5, "ResNet-20, batch 64": resnet20}


def prepare(name: str) -> Problem:
    torch.manual_seed(0)
    model, x, y = PROBLEMS[name]()
    return model.eval().to(memory_format=torch.channels_last), x.to(memory_format=torch.channels_last), y


def forward_backward(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    F.cross_entropy(model(x), y).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def ours(method: str, **options: Any) -> Contestant:
    return lambda model, x, y: resgrow.curvature(model, nn.CrossEntropyLoss(), (x, y), method=method, **options)


def mean_square(model: nn.Module, losses: Iterable[Tensor], count: int, **options: bool) -> dict[str, Tensor]:
    """The empirical Fisher's diagonal as autograd gives it, one loss after the other."""
    parameters = dict(model.named_parameters())
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for loss in losses:
        grads = torch.autograd.grad(loss, list(parameters.values()), **options)
        for value, found in zip(total.values(), grads, strict=True):
            value.addcmul_(found, found, value=1 / count)
    return total


def loop_over_samples(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    losses = (F.cross_entropy(model(x[n : n + 1]), y[n : n + 1]) for n in range(len(x)))
    return mean_square(model, losses, len(x))


def loop_over_losses(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    return mean_square(model, F.cross_entropy(model(x), y, reduction="none"), len(x), retain_graph=True)


def per_sample(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """The same from torch.func's per-sample gradients, all at once."""
    weights = {name: p.detach() for name, p in model.named_parameters()}
    buffers = dict(model.named_buffers())

    def loss(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, (weights, buffers), (x[None],)), y[None])

    grads = vmap(grad(loss), (None, 0, 0))(weights, x, y)
    return {name: value.square().mean(0) for name, value in grads.items()}


CONTESTANTS: dict[str, Contestant] = {
    "forward+backward": forward_backward,
    "ggn-mc": ours("ggn-mc"),
    "fisher": ours("fisher"),
    "ggn": ours("ggn"),
    "vmap": per_sample,
    "loop over samples": loop_over_samples,
    "loop over losses": loop_over_losses,
}


def verify(model: nn.Module, x: Tensor, y: Tensor) -> None:
    """fisher is what the baselines compute; the mean of many ggn-mc samples is ggn."""
    fisher = CONTESTANTS["fisher"](model, x, y)
    for name in ("vmap", "loop over samples", "loop over losses"):
        for parameter, value in CONTESTANTS[name](model, x, y).items():
            scale = value.max().item()
            torch.testing.assert_close(fisher[parameter], value, rtol=1e-3, atol=1e-4 * scale)
    exact, sampled = ours("ggn")(model, x, y), ours("ggn-mc", samples=100)(model, x, y)
    for parameter, value in exact.items():
        distance = (sampled[parameter] - value).norm() / value.norm()
        assert distance < 0.2, f"{parameter}: ggn-mc is {distance:.2f} of ggn's norm away from it"


@pytest.fixture(params=sorted({1, torch.get_num_threads()}), ids=lambda n: f"{n} thread{'s' * (n > 1)}")
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def memory() -> dict[str, dict[str, list[float]]]:
    """Peaks in MB, cold and warm: problem -> contestant; nothing where they cannot be measured."""
    if not Path("/proc/self/clear_refs").exists():
        return {}
    return json.loads(subprocess.run([sys.executable, __file__], check=True, capture_output=True, text=True).stdout)


@pytest.mark.parametrize("problem", PROBLEMS)
def test_curvature(benchmark: Any, memory: dict, problem: str, threads: int) -> None:
    model, x, y = prepare(problem)
    verify(model, x[:16], y[:16])
    calls = {name: (lambda run=run: run(model, x, y)) for name, run in CONTESTANTS.items()}
    fast = interleave({name: call for name, call in calls.items() if name not in SLOW}, ROUNDS)
    start = perf_counter()
    calls["loop over samples"]()
    slow = interleave(calls, SLOW_ROUNDS if perf_counter() - start < 5 else 1)  # once on a machine that is busy
    rows = {name: row(name, fast if name in fast else slow, slow) for name in CONTESTANTS}
    for name, (cold, warm) in memory.get(problem, {}).items():
        rows[name].update(cold_mb=cold, warm_mb=warm)
    show(problem, threads, rows)
    benchmark.group = problem
    benchmark.extra_info.update(threads=threads, memory_format="channels_last", dtype="float32", contestants=rows)
    benchmark.pedantic(calls["ggn-mc"], rounds=5)


def row(name: str, times: dict[str, list[float]], slow: dict[str, list[float]]) -> dict[str, float]:
    """Figures of one contestant; the loops run in the slow rounds only."""
    return {
        "ms": 1000 * median(times[name]),
        "over_forward_backward": median_ratio(times[name], times["forward+backward"]),
        "samples_loop_over_this": median_ratio(slow["loop over samples"], slow[name]),
        "losses_loop_over_this": median_ratio(slow["loop over losses"], slow[name]),
    }


def show(problem: str, threads: int, rows: dict[str, dict[str, float]]) -> None:
    """One Markdown table; "-" where memory could not be measured."""
    formats = {
        "ms": "{:.1f}",
        "over_forward_backward": "{:.2f}",
        "losses_loop_over_this": "{:.1f}",
        "samples_loop_over_this": "{:.2f}",
        "cold_mb": "{:.0f}",
        "warm_mb": "{:.0f}",
    }
    print(f"\n\n{problem}, {threads} thread{'s' if threads > 1 else ''}, channels_last, float32\n")
    print("| | ms | / forward+backward | loop over losses / this | loop over samples / this | MB cold | MB warm |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    for name, values in rows.items():
        cells = (form.format(values[key]) if key in values else "-" for key, form in formats.items())
        print(f"| {name} | {' | '.join(cells)} |")


def peak(job: tuple[str, str, bool]) -> float:
    """Extra MB of resident memory at the peak of one call, in a process that has done nothing else."""
    problem, contestant, warm = job
    torch.set_num_threads(1)
    model, x, y = prepare(problem)
    for run in (forward_backward, CONTESTANTS[contestant]):
        run(model, x[:2].clone(memory_format=torch.preserve_format), y[:2])
    if warm:
        forward_backward(model, x, y)
    Path("/proc/self/clear_refs").write_text("5")  # the high-water mark is now what is resident
    before = resident("VmRSS")
    CONTESTANTS[contestant](model, x, y)
    return resident("VmHWM") - before


def resident(kind: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(kind)) / 1024


if __name__ == "__main__":  # the memory fixture's process, which must not have used autograd before it forks
    with multiprocessing.get_context("fork").Pool(1, maxtasksperchild=1) as pool:
        found = {
            problem: {
                name: pool.map(peak, [(problem, name, warm) for warm in (False, True)], 1) for name in CONTESTANTS
            }
            for problem in PROBLEMS
        }
    print(json.dumps(found))
