"""Passes for diagonal curvature against forward+backward, per-sample gradients and peers.

    pytest benchmarks/bench_curvature.py -s --benchmark-columns=median,rounds --benchmark-json=out.json

Eval-mode norms, float32, the same threads, each contestant in its fastest memory format. Everyone is compared with
autograd's definition on a few samples first; ours must be right, and of a peer that is wrong or fails the table says
so. Peers draw labels, where ggn-mc takes random signs: both are unbiased for the same diagonal.

Floors, ResNet-20, one thread: ggn-mc and lecun take at most 1.15 times as long as forward+backward, exact ggn at most
8 times, and ggn-mc is at least 30 times as fast as the loop over losses (one forward pass, then a backward pass per
sample's loss). The loop over samples does far less work than that and is the stronger baseline; its ratio is shown too.

Times are medians over interleaved rounds, ratios medians of ratios within a round, so that what else the machine does
falls on all alike. Memory: see ``_curvature_memory``.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from statistics import median
from time import perf_counter
from typing import Any

import pytest
import torch
from _curvature_contestants import OURS, Contestant, contestants
from _curvature_memory import measure
from _curvature_peers import missing
from _curvature_problems import PROBLEMS, prepare
from _curvature_verify import Verdict, references, verify
from _timing import interleave, median_ratio

ROUNDS, SLOW_ROUNDS = 15, 3
BASE, SAMPLES, LOSSES = "forward+backward", "loop over samples", "loop over losses"
Row = dict[str, Any]


@pytest.fixture(params=sorted({1, torch.get_num_threads()}), ids=lambda n: f"{n} thread{'s' * (n > 1)}")
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def memory() -> Callable[[str, list[str]], dict[str, dict[str, float]]]:
    """Peaks in MB, measured once per problem, whatever the number of threads."""
    known: dict[str, dict[str, dict[str, float]]] = {}

    def peaks(problem: str, names: list[str]) -> dict[str, dict[str, float]]:
        if problem not in known:
            known[problem] = measure(problem, names)
        return known[problem]

    return peaks


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("problem", PROBLEMS)
def test_curvature(benchmark: Any, memory: Callable, problem: str, threads: int) -> None:
    everyone = contestants()
    verdicts = judge(problem, everyone)
    wrong = {name: v.words for name, v in verdicts.items() if name in OURS and v.ran and not v.right}
    assert not wrong, f"{problem}: {wrong}"
    calls = {name: call(problem, c) for name, c in everyone.items() if verdicts[name].ran}
    rows = time_all(calls, {name for name, c in everyone.items() if c.slow})
    for name, peaks in memory(problem, list(calls)).items():
        rows[name].update(peaks)
    for name, verdict in verdicts.items():
        rows.setdefault(name, {})["verdict"] = verdict.words
    show(problem, threads, {name: rows[name] for name in everyone})
    benchmark.group = problem
    benchmark.extra_info.update(threads=threads, dtype="float32", contestants=rows)
    benchmark.pedantic(calls.get("ggn-mc", calls[BASE]), rounds=5)


def judge(problem: str, everyone: dict[str, Contestant]) -> dict[str, Verdict]:
    layouts = {c.layout for c in everyone.values()}
    prepared = {layout: prepare(problem, layout) for layout in layouts}
    wanted = references(*prepare(problem))
    return {name: verify(c, *prepared[c.layout], wanted) for name, c in everyone.items()}


def call(problem: str, contestant: Contestant) -> Callable[[], object]:
    """Each contestant has a model of its own: peers leave hooks on theirs."""
    model, x, y = prepare(problem, contestant.layout)
    run = contestant.make(copy.deepcopy(model))
    return lambda: run(x, y)


def time_all(calls: dict[str, Callable[[], object]], slow_names: set[str]) -> dict[str, Row]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        fast = interleave({name: run for name, run in calls.items() if name not in slow_names}, ROUNDS)
        start = perf_counter()
        calls[SAMPLES]()
        slow = interleave(calls, SLOW_ROUNDS if perf_counter() - start < 5 else 1)  # once on a machine that is busy
    return {name: row(name, fast if name in fast else slow, slow) for name in calls}


def row(name: str, times: dict[str, list[float]], slow: dict[str, list[float]]) -> Row:
    """Figures of one contestant; the loops run in the slow rounds only."""
    return {
        "ms": 1000 * median(times[name]),
        "over_forward_backward": median_ratio(times[name], times[BASE]),
        "losses_loop_over_this": median_ratio(slow[LOSSES], slow[name]),
        "samples_loop_over_this": median_ratio(slow[SAMPLES], slow[name]),
    }


COLUMNS = {
    "ms": ("ms", "{:.1f}"),
    "over_forward_backward": ("/ forward+backward", "{:.2f}"),
    "losses_loop_over_this": ("loop over losses / this", "{:.1f}"),
    "samples_loop_over_this": ("loop over samples / this", "{:.2f}"),
    "live": ("MB live", "{:.1f}"),
    "cold": ("MB cold", "{:.0f}"),
    "warm": ("MB warm", "{:.0f}"),
    "verdict": ("verified", "{}"),
}


def show(problem: str, threads: int, rows: dict[str, Row]) -> None:
    """One Markdown table; "-" where there is nothing to tell."""
    print(f"\n\n{problem}, {threads} thread{'s' * (threads > 1)}, float32\n")
    if missing():
        print(f"Not installed and left out: {', '.join(missing())}.\n")
    print(f"| | {' | '.join(title for title, _ in COLUMNS.values())} |")
    print(f"|---|{'---:|' * (len(COLUMNS) - 1)}---|")
    for name, values in rows.items():
        cells = (form.format(values[key]) if key in values else "-" for key, (_, form) in COLUMNS.items())
        print(f"| {name} | {' | '.join(cells)} |")
