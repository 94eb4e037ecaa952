"""select against torch.kthvalue and a copy of the scores.

    pytest benchmarks/bench_select.py --benchmark-columns=median,rounds --benchmark-json=out.json

Floors: at least 5 times as fast as kthvalue, and at most the time of three copies, at 1e8 scores.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from _timing import interleave, median_ratio, report

from resgrow import ops

KINDS: dict[str, Callable[[int], torch.Tensor]] = {
    "spread": lambda n: 10 ** (10 * torch.rand(n) - 10),
    "normal": torch.randn,
    "zeros": lambda n: torch.rand(n) * (torch.rand(n) > 0.9),
    "equal": torch.ones,
}


@pytest.mark.parametrize("threads", [1, 2])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("n", [10**5, 10**6, 10**7, 10**8], ids="{:.0e}".format)
def test_select(benchmark: Any, n: int, kind: str, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        run(benchmark, KINDS[kind](n), k=n // 2, repeats=max(5, min(50, 10**8 // n)))
    finally:
        torch.set_num_threads(before)


def run(benchmark: Any, scores: torch.Tensor, k: int, repeats: int) -> None:
    target = scores.clone()
    threshold = ops.select_threshold(scores, k)
    assert threshold == scores.kthvalue(k).values
    assert int(ops.select_mask(scores, k)[0].sum()) == scores.numel() - k
    times = interleave(
        {
            "threshold": lambda: ops.select_threshold(scores, k),
            "mask": lambda: ops.select_mask(scores, k),
            "copy": lambda: target.copy_(scores),
        },
        repeats,
    )
    slow = interleave(
        {"threshold": lambda: ops.select_threshold(scores, k), "kthvalue": lambda: scores.kthvalue(k)},
        repeats if scores.numel() < 10**7 else 1,
    )
    report(
        benchmark,
        threads=torch.get_num_threads(),
        bytes=scores.nbytes,
        threshold_over_copy=median_ratio(times["threshold"], times["copy"]),
        mask_over_copy=median_ratio(times["mask"], times["copy"]),
        kthvalue_over_threshold=median_ratio(slow["kthvalue"], slow["threshold"]),
    )
    benchmark.pedantic(ops.select_threshold, (scores, k), rounds=repeats)
