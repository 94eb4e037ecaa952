from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from resgrow import ops
from resgrow.curvature.damping import mean_curvature
from resgrow.ops import reference
from resgrow.saliency.damping import obd

DTYPES = [torch.float32, torch.float64, torch.bfloat16]
SIZES: list[tuple[int, ...]] = [(7,), (0, 3), (3, 5, 2), (), (66_000,), (300, 200)]


def either_sign(size: tuple[int, ...]) -> Tensor:
    return torch.where(torch.rand(size) < 0.5, -1.0, 1.0)


# What scores look like: spread over ten orders of magnitude, tied, mostly zero, equal, infinite.
KINDS: dict[str, Callable[[tuple[int, ...]], Tensor]] = {
    "spread": lambda size: 10.0 ** (10 * torch.rand(size) - 10),
    "signed": torch.randn,
    "tied": lambda size: (3 * torch.randn(size)).round(),
    "zeros": lambda size: torch.rand(size) * (torch.rand(size) > 0.9) * torch.randn(size).sign(),
    "equal": lambda size: torch.full(size, 0.3),
    "infinite": lambda size: (
        torch.where(torch.rand(size) < 0.2, torch.inf, torch.randn(size).abs()) * either_sign(size)
    ),
    "subnormal": lambda size: 1e-40 * torch.randn(size),
}
SAMPLES = [([torch.tensor([3.0, 1.0, 2.0])], 2), ([torch.randn(2, 3), torch.randn(4)], 7)]

# What weights and curvatures look like: any, many absent weights, few values with ties, negative curvature only.
OBD: dict[str, Callable[[tuple[int, ...]], tuple[Tensor, Tensor]]] = {
    "any": lambda size: (torch.randn(size), torch.randn(size)),
    "absent": lambda size: (torch.randn(size) * (torch.rand(size) > 0.8), torch.rand(size)),
    "tied": lambda size: (torch.randn(size).round(), torch.rand(size).round()),
    "negative": lambda size: (torch.randn(size), -torch.rand(size)),
}


def obd_case(kind: str, dtype: torch.dtype) -> tuple[list[Tensor], list[Tensor], float]:
    pairs = [OBD[kind](size) for size in [(7,), (0, 3), (3, 5, 2), (), (2100,), (50, 61)]]
    return [w.to(dtype) for w, _ in pairs], [h.to(dtype) for _, h in pairs], 0.3


def scores(kind: str, dtype: torch.dtype) -> list[Tensor]:
    return [KINDS[kind](size).to(dtype) for size in SIZES]


def assert_like_reference(given_scores: list[Tensor], k: int) -> None:
    for got, want in zip(ops.select_mask(given_scores, k), reference.select_mask(given_scores, k), strict=True):
        assert torch.equal(got, want)
    if k > 0:
        got, want = ops.select_threshold(given_scores, k), reference.select_threshold(given_scores, k)
        assert got.dtype == want.dtype
        assert got == want


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_ranks(isa: str, kind: str, dtype: torch.dtype) -> None:
    given_scores = scores(kind, dtype)
    total = sum(s.numel() for s in given_scores)
    for k in (0, 1, total // 3, total - 1, total):
        assert_like_reference(given_scores, k)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.0, 0.5, 0.95, 1.0])
def test_many_scores(kind: str, share: float) -> None:
    x = KINDS[kind]((1_500_000,))
    k = max(1, int(share * x.numel()))
    threshold = ops.select_threshold(x, k)
    below, equal = int((x < threshold).sum()), int((x == threshold).sum())
    assert below < k <= below + equal
    (keep,) = ops.select_mask([x.view(1000, 1500)], k)
    ties = (x == threshold).cumsum(0)
    assert torch.equal(keep.flatten(), (x > threshold) | ((x == threshold) & (ties > k - below)))


@pytest.mark.parametrize("k", [1, 2, 3, 999_998, 1_999_999, 2_000_000])
def test_rare_extremes(k: int) -> None:
    x = torch.ones(2_000_000)
    x[[5, 1_000_000]] = torch.tensor([-2.0, -1.0])
    x[[77, 1_500_000]] = torch.tensor([3.0, 2.0])
    assert_like_reference([x], k)


def sampled_places(total: int, size: int = 1 << 14) -> Tensor:
    """Where the native code looks for a first idea of ranks: one place in each of `size` stretches."""
    random, stretch, places = 0, total // size, []
    for i in range(size):
        random = (random * 6364136223846793005 + 1442695040888963407) % 2**64
        places.append(i * stretch + (random >> 33) % stretch)
    return torch.tensor(places)


@pytest.mark.parametrize("sampled", ["above", "apart"])
def test_scores_whose_sample_misleads(sampled: str) -> None:
    x = torch.rand(1_300_000)
    places = sampled_places(x.numel())
    # "above": the rank lies below the bracket; "apart": the bracket holds nearly all scores.
    x[places] = torch.full((len(places),), 2.0) if sampled == "above" else 2.0 * (places % 2) - 0.5
    assert_like_reference([x[:400_000], x[400_000:]], x.numel() // 2)


value = st.floats(width=32, allow_nan=False) | st.sampled_from([0.0, -0.0, 1.0, float("inf"), -float("inf")])


@settings(max_examples=80, deadline=None)
@given(st.lists(st.lists(value, max_size=20), min_size=1, max_size=4), st.data(), st.sampled_from(DTYPES))
def test_ranks_of_any_scores(lists: list[list[float]], data: st.DataObject, dtype: torch.dtype) -> None:
    given_scores = [torch.tensor(values, dtype=torch.float32).to(dtype) for values in lists]
    assert_like_reference(given_scores, data.draw(st.integers(0, sum(map(len, lists)))))


@pytest.mark.parametrize("dtype", DTYPES)
def test_same_bits_for_every_number_of_threads(dtype: torch.dtype, threads: None) -> None:
    given_scores = [s for kind in ("tied", "zeros") for s in scores(kind, dtype)] + [torch.randn(1_200_000).to(dtype)]
    for k in (1000, 150_000, 900_000):
        found = []
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            found.append([ops.select_threshold(given_scores, k), *ops.select_mask(given_scores, k)])
        for other in found[1:]:
            assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


def test_strides_change_nothing() -> None:
    x = torch.randn(6, 4, 5, 7).round()
    for view in (x.permute(2, 0, 3, 1), x[:, ::2], x.to(memory_format=torch.channels_last), x[:1].expand(6, 4, 5, 7)):
        (got,) = ops.select_mask(view, 300 if view.numel() > 300 else 100)
        (want,) = ops.select_mask(view.contiguous(), 300 if view.numel() > 300 else 100)
        assert torch.equal(got, want)
        assert got.is_contiguous()


def test_zeros_of_both_signs_are_ties() -> None:
    assert ops.select_mask(torch.tensor([0.0, -0.0, 0.0, -0.0]), 2)[0].tolist() == [False, False, True, True]
    assert not ops.select_threshold(torch.tensor([-0.0, 1.0]), 1).signbit()


def test_subnormal_scores_differ_even_where_arithmetic_flushes_them() -> None:
    x = torch.tensor([2e-40, 1e-40, 0.0])
    torch.set_flush_denormal(True)
    try:
        assert ops.select_mask(x, 2)[0].tolist() == [True, False, False]
    finally:
        torch.set_flush_denormal(False)


def test_parameters_give_plain_results() -> None:
    weight = torch.nn.Parameter(torch.randn(5))
    assert not ops.select_threshold([weight], 2).requires_grad
    assert not ops.select_mask(weight, 2)[0].requires_grad


def test_compiles_without_graph_breaks() -> None:
    x = torch.randn(4, 5)
    compiled = torch.compile(lambda x: ops.select_mask([x * 2], 7)[0], fullgraph=True, backend="aot_eager")
    assert torch.equal(compiled(x), ops.select_mask(x * 2, 7)[0])


@pytest.mark.parametrize("sample", SAMPLES)
def test_registration(sample: tuple[list[Tensor], int]) -> None:
    for op in (torch.ops.resgrow.select_threshold.default, torch.ops.resgrow.select_mask.default):
        assert set(torch.library.opcheck(op, sample).values()) == {"SUCCESS"}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", OBD)
def test_obd(kind: str, dtype: torch.dtype) -> None:
    weights, curvatures, damping = obd_case(kind, dtype)
    total = sum(w.numel() for w in weights)
    for k in (0, 1, total // 2, total):
        got = ops.select_mask_obd(weights, curvatures, damping, k)
        for mask, want in zip(got, reference.select_mask_obd(weights, curvatures, damping, k), strict=True):
            assert torch.equal(mask, want)
    assert torch.library.opcheck(torch.ops.resgrow.select_mask_obd.default, (weights, curvatures, damping, 7))


def test_obd_is_the_selection_by_saliency() -> None:
    """The scores are those of `resgrow.saliency.damping`, whose damping is relative to the mean curvature."""
    model = torch.nn.Linear(30, 40)
    h = {name: torch.randn_like(p) for name, p in model.named_parameters()}
    scores_of = list(obd(model, h, damping=0.5).values())
    damping = 0.5 * mean_curvature(h)
    masks = ops.select_mask_obd([model.weight, model.bias], list(h.values()), damping, 700)
    for got, want in zip(masks, ops.select_mask(scores_of, 700), strict=True):
        assert torch.equal(got, want)
        assert not got.requires_grad


def test_obd_refuses_what_does_not_fit() -> None:
    w, h = torch.randn(4), torch.rand(4)
    with pytest.raises(ValueError, match=r"one curvature per weight .*1 weights and 2 curvatures"):
        ops.select_mask_obd([w], [h, h], 0.1, 1)
    with pytest.raises(ValueError, match=r"one shape \(got \[4\] and \[3\] at 0\)"):
        ops.select_mask_obd(w, h[:3], 0.1, 1)
    with pytest.raises(TypeError, match="weights and curvatures must have one dtype"):
        ops.select_mask_obd(w, h.double(), 0.1, 1)
    with pytest.raises(TypeError, match=r"all curvatures must have one dtype .*curvatures\[1\]"):
        ops.select_mask_obd([w, w], [h, h.double()], 0.1, 1)
    for damping in (-1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="damping must be finite and at least 0"):
            ops.select_mask_obd(w, h, damping, 1)
    with pytest.raises(TypeError, match="damping must be a number"):
        ops.select_mask_obd(w, h, "much", 1)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="k must lie between 0 and"):
        ops.select_mask_obd(w, h, 0.1, 5)
    with pytest.raises(ValueError, match=r"^select_mask_obd: .*NaN in scores\[0\]"):
        ops.select_mask_obd(w.fill_(0), h.fill_(torch.inf), 0.1, 1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("size", [10, 1_200_000])
@pytest.mark.parametrize("many", [False, True])
def test_nan_is_refused_with_its_tensor(isa: str, dtype: torch.dtype, sign: int, size: int, many: bool) -> None:
    given_scores = [torch.zeros(3, dtype=dtype), torch.zeros(size, dtype=dtype), torch.zeros(2, dtype=dtype)]
    given_scores[1][size // 2 : None if many else size // 2 + 1] = sign * torch.nan
    for call, k in ((ops.select_threshold, 1), (ops.select_mask, 4), (ops.select_mask, 0)):
        with pytest.raises(ValueError, match=rf"^{call.__name__}: .*NaN in scores\[1\]"):
            call(given_scores, k)


def test_refuses_what_does_not_fit() -> None:
    x = torch.randn(4)
    for call, k in ((ops.select_mask, -1), (ops.select_mask, 5), (ops.select_threshold, 0), (ops.select_threshold, 5)):
        with pytest.raises(ValueError, match=rf"^{call.__name__}: k must lie between .*got k={k} for 4 scores"):
            call(x, k)
    with pytest.raises(ValueError, match="at least one tensor"):
        ops.select_mask([], 0)
    with pytest.raises(TypeError, match=r"one dtype .*scores\[1\]"):
        ops.select_mask([x, x.double()], 1)
    with pytest.raises(TypeError, match="must be float32, float64 or bfloat16"):
        ops.select_mask(x.half(), 1)
    with pytest.raises(TypeError, match="k must be an integer"):
        ops.select_mask(x, 1.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="sequence of tensors"):
        ops.select_mask([x, 3], 1)  # type: ignore[list-item]
