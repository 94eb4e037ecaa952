"""select on CUDA: the cases of the CPU tests, and what only this device does differently.

Interpreted, 3,000 scores are enough for a sample to bracket the rank; on a GPU it takes millions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import interpreter
import pytest
import torch
from torch import Tensor

from resgrow import ops
from resgrow.ops import reference
from tests.ops.test_select import KINDS, OBD, obd_case

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]
FEW: list[tuple[int, ...]] = [(7,), (0, 3), (3, 5, 2), (), (700,), (30, 20)]
MANY: list[tuple[int, ...]] = [*FEW, (2049,), (61, 71)]


def many(machine: Any, size: int) -> int:
    """So many scores that their rank is bracketed by a sample."""
    return size if machine.is_simt else 2**24


def ranked(machine: Any, scores: list[Tensor], k: int) -> tuple[Tensor, list[Tensor]]:
    given = [machine.put(s) for s in scores]
    return ops.select_threshold(given, max(k, 1)).cpu(), [m.cpu() for m in ops.select_mask(given, k)]


def assert_like_reference(machine: Any, scores: list[Tensor], k: int) -> None:
    threshold, masks = ranked(machine, scores, k)
    want = reference.select_threshold(scores, max(k, 1))
    assert threshold.dtype == want.dtype
    assert threshold == want
    assert not (threshold == 0 and threshold.signbit())
    for got, expected in zip(masks, reference.select_mask(scores, k), strict=True):
        assert torch.equal(got, expected)
        assert got.is_contiguous()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_ranks_of_few(machine: Any, kind: str, dtype: torch.dtype) -> None:
    scores = [KINDS[kind](size).to(dtype) for size in FEW]
    total = sum(s.numel() for s in scores)
    for k in (0, 1, total // 3, total - 1, total):
        assert_like_reference(machine, scores, k)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_ranks_of_many(machine: Any, kind: str, dtype: torch.dtype) -> None:
    scores = [KINDS[kind](size).to(dtype) for size in [*MANY, (many(machine, 1),)]]
    total = sum(s.numel() for s in scores)
    for k in (0, total // 2, total - 3):
        assert_like_reference(machine, scores, k)


def sampled_places(total: int, size: int) -> Tensor:
    """Where the kernel looks for a first idea of ranks: one place in each of ``size`` stretches."""
    stretch, places = total // size, []
    for i in range(size):
        x = (i + 1) * 0x9E3779B97F4A7C15 % 2**64
        x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ x >> 27) * 0x94D049BB133111EB % 2**64
        places.append(i * stretch + (((x ^ x >> 31) >> 32) * stretch >> 32))
    return torch.tensor(places)


@pytest.mark.parametrize("sampled", ["above", "apart"])
def test_scores_whose_sample_misleads(machine: Any, sampled: str) -> None:
    x = torch.rand(many(machine, 8000))
    places = sampled_places(x.numel(), 512 if machine.is_simt else 2**14)
    # "above": the rank lies below the bracket; "apart": the bracket holds nearly all scores.
    x[places] = torch.full((len(places),), 2.0) if sampled == "above" else 2.0 * (places % 2) - 0.5
    assert_like_reference(machine, [x[: x.numel() // 3], x[x.numel() // 3 :]], x.numel() // 2)


@pytest.mark.parametrize("share", [0.3, 0.5, 0.8])
def test_rank_at_an_end_of_the_bracket(machine: Any, share: float) -> None:
    """Two values in equal shares: bracket and rank lie between them, below or above."""
    x = (torch.rand(many(machine, 6000)) < 0.5).float()
    assert_like_reference(machine, [x], int(share * x.numel()))


@pytest.mark.parametrize("dtype", DTYPES)
def test_ties_inside_the_bracket(machine: Any, dtype: torch.dtype) -> None:
    """Each value has about ten ties, of which some go; they lie in several tensors and items."""
    total = many(machine, 9000)
    x = torch.randint(0, total // 10, (total,)).clamp_max(2000).to(dtype)
    scores = [x[: total // 2].view(2, -1), x[total // 2 : total // 2 + 7], x[total // 2 + 7 :]]
    for k in (total // 20, total // 20 + 4, total // 20 + 5):
        assert_like_reference(machine, scores, k)


def test_same_bits_in_every_order_of_threads(machine: Any) -> None:
    scores = [KINDS["tied"]((3500,)), KINDS["zeros"]((1200,)), KINDS["spread"]((900,))]
    given = [machine.put(s) for s in scores]
    found = [[ops.select_threshold(given, 2500), *ops.select_mask(given, 2500)] for _ in machine.seeds]
    for other in found:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_more_tensors_than_one_launch_describes(machine: Any) -> None:
    sizes = torch.randint(0, 40, (200,)).tolist()
    scores = [torch.randn(size).round() for size in [*sizes, 2500]]
    for k in (1, 2000, sum(s.numel() for s in scores) - 1):
        assert_like_reference(machine, scores, k)


def test_strides_change_nothing(machine: Any) -> None:
    x = torch.randn(6, 4, 5, 7).round()
    given = machine.put(x)
    for view in (
        lambda x: x.permute(2, 0, 3, 1),
        lambda x: x[:, ::2],
        lambda x: x.to(memory_format=torch.channels_last),
        lambda x: x[:1].expand(6, 4, 5, 7),
    ):
        want = reference.select_mask([view(x), x], 700)
        for got, expected in zip(ops.select_mask([view(given), given], 700), want, strict=True):
            assert torch.equal(got.cpu(), expected)
            assert got.is_contiguous()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [900, 1026, 4101])
def test_storage_that_no_wide_load_can_begin_at(machine: Any, dtype: torch.dtype, size: int) -> None:
    x = torch.randn(size + 7).to(dtype)
    for offset in (1, 2, 3, 7):
        assert_like_reference(machine, [x[offset : offset + size], x[:5]], size // 2)


def test_subnormal_scores_differ(machine: Any) -> None:
    assert_like_reference(machine, [torch.tensor([2e-40, 1e-40, 0.0, -1e-40, -0.0])], 2)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("size", [10, 4000])
@pytest.mark.parametrize("lots", [False, True])
def test_nan_is_refused_with_its_tensor(machine: Any, dtype: torch.dtype, sign: int, size: int, lots: bool) -> None:
    scores = [torch.zeros(3, dtype=dtype), torch.randn(size).to(dtype), torch.zeros(0), torch.zeros(2, dtype=dtype)]
    scores[1][size // 2 : None if lots else size // 2 + 1] = sign * torch.nan
    given = [machine.put(s.to(dtype)) for s in scores]
    for call, k in ((ops.select_threshold, 1), (ops.select_mask, 4), (ops.select_mask, 0)):
        with pytest.raises(ValueError, match=rf"^{call.__name__}: .*NaN in scores\[1\]"):
            call(given, k)


def test_the_first_tensor_with_nan_is_named(machine: Any) -> None:
    given = [machine.put(torch.tensor(values)) for values in ([1.0], [torch.nan, 1.0], [2.0], [torch.nan])]
    for _ in machine.seeds:
        with pytest.raises(ValueError, match=r"NaN in scores\[1\]"):
            ops.select_mask(given, 2)


@contextmanager
def recorded(machine: Any) -> Iterator[None]:
    interpreter.library().set_capturing(True)
    try:
        yield
    finally:
        interpreter.library().set_capturing(False)


@pytest.mark.parametrize("size", [100, 4000])
def test_within_a_graph_nan_shows_in_the_results(machine: Any, size: int) -> None:
    x, y = machine.put(torch.rand(size)), machine.put(torch.rand(7))
    y[3] = torch.nan
    if machine.is_simt:
        with recorded(machine):
            threshold, masks = ops.select_threshold([x, y], 20), ops.select_mask([x, y], 20)
    else:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            threshold, masks = ops.select_threshold([x, y], 20), ops.select_mask([x, y], 20)
        graph.replay()
    assert threshold.isnan()
    assert all(m.all() for m in masks)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_streams_and_devices() -> None:
    """Work is queued on the current stream of the tensors' device, whichever device is the current one."""
    last = torch.device("cuda", torch.cuda.device_count() - 1)
    stream = torch.cuda.Stream(last)
    with torch.cuda.stream(stream):
        x = torch.zeros(2**24, device=last)
        torch.cuda._sleep(10**8)
        x.uniform_()
        with torch.cuda.device(0):
            threshold = torch.ops.resgrow.select_threshold([x], 2**23)
    assert threshold.device == last
    assert threshold == x.cpu().kthvalue(2**23).values


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("size", [1000, 2**24])
def test_graphs_are_replayed_on_other_scores(size: int) -> None:
    x = torch.rand(size, device="cuda")
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        threshold, (keep,) = ops.select_threshold(x, size // 3), ops.select_mask(x, size // 3)
    for _ in range(3):
        x.uniform_()
        graph.replay()
        assert threshold == ops.select_threshold(x, size // 3)
        assert torch.equal(keep, ops.select_mask(x, size // 3)[0])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", OBD)
def test_obd(machine: Any, case: str, dtype: torch.dtype) -> None:
    weights, curvatures, damping = obd_case(case, dtype)
    total = sum(w.numel() for w in weights)
    given = [machine.put(w) for w in weights], [machine.put(h) for h in curvatures]
    for k in (0, 1, total // 2, total):
        got = ops.select_mask_obd(*given, damping, k)
        for mask, want in zip(got, reference.select_mask_obd(weights, curvatures, damping, k), strict=True):
            assert torch.equal(mask.cpu(), want)


def test_obd_where_only_one_of_both_is_aligned(machine: Any) -> None:
    weight, curvature = torch.randn(4500), torch.randn(4501)[1:]
    (want,) = reference.select_mask_obd([weight], [curvature], 0.1, 1300)
    (got,) = ops.select_mask_obd(machine.put(weight), machine.put(curvature), 0.1, 1300)
    assert torch.equal(got.cpu(), want)


def test_obd_refuses_nan(machine: Any) -> None:
    weights = [machine.put(torch.ones(3)), machine.put(torch.zeros(3))]
    curvatures = [machine.put(torch.ones(3)), machine.put(torch.tensor([0.0, torch.inf, 1.0]))]
    with pytest.raises(ValueError, match=r"^select_mask_obd: .*NaN in scores\[1\]"):
        ops.select_mask_obd(weights, curvatures, 0.0, 2)


def test_refuses_what_does_not_fit(machine: Any) -> None:
    x = machine.put(torch.randn(4))
    with pytest.raises(ValueError, match=r"^select_mask: k must lie between 0 .*got k=5 for 4 scores"):
        ops.select_mask(x, 5)
    with pytest.raises(TypeError, match="must be float32, float64, bfloat16 or float16"):
        ops.select_mask(x.to(torch.int32), 1)
    assert [m.shape for m in ops.select_mask([x[:0], x[:0].view(0, 3)], 0)] == [(0,), (0, 3)]


@pytest.mark.parametrize("op", ["select_threshold", "select_mask"])
def test_registration(machine: Any, op: str) -> None:
    given = [machine.put(torch.randn(2, 3)), machine.put(torch.randn(4))]
    tests = torch.library.opcheck(getattr(torch.ops.resgrow, op).default, (given, 7))
    assert set(tests.values()) == {"SUCCESS"}
