"""block_sparse: every product against its plain-torch meaning in float64, on every usable instruction set."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from block_sparse_cases import CONVS, close, conv_case, draw, draw_mask
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from resgrow import ops
from resgrow.ops import reference
from resgrow.ops.block_index import block_index, pack

NATIVE = torch.ops.resgrow
BLOCKS = [(16, 1), (16, 16), (8, 1), (4, 1), (12, 3), (32, 2), (5, 2)]


def check(op: Callable, meaning: Callable, tensors: tuple, mask: Tensor, tolerance: float, **options: object) -> None:
    """Value and all gradients agree with the reference in float64 on the very same numbers."""
    ours = [t.detach().requires_grad_() for t in tensors]
    theirs = [t.detach().double().requires_grad_() for t in tensors]
    y = op(ours[0], ours[1], mask, ours[2], **options)
    expected = meaning(theirs[0], theirs[1], mask, theirs[2], **options)
    assert y.dtype == tensors[0].dtype
    close(y, expected, tolerance)
    grad = draw(*expected.shape, dtype=y.dtype, seed=3)
    for a, e in zip(
        torch.autograd.grad(y, ours, grad), torch.autograd.grad(expected, theirs, grad.double()), strict=True
    ):
        close(a, e, tolerance)


def check_conv(case: str, block: tuple[int, int], dtype: torch.dtype, tolerance: float, density: float = 0.4) -> None:
    x, weight, bias, options = CONVS[case]
    tensors = tuple(t.to(dtype) for t in (x, weight, bias))
    mask = draw_mask(weight.shape, block, density)
    check(ops.block_sparse_conv2d, reference.block_sparse_conv2d, tensors, mask, tolerance, block=block, **options)


@pytest.mark.parametrize("block", BLOCKS, ids=str)
@pytest.mark.parametrize("case", CONVS)
def test_conv2d(case: str, block: tuple[int, int], isa: str) -> None:
    check_conv(case, block, torch.float64, 1e-11)
    check_conv(case, block, torch.float32, 1e-4)


@pytest.mark.parametrize("n", [16, 1])
@pytest.mark.parametrize("settings_", [{}, {"stride": 2}, {"dilation": (3, 1)}], ids=str)
def test_conv2d_of_more_rows_than_the_cache_holds(settings_: dict, n: int, isa: str, threads: None) -> None:
    torch.set_num_threads(3 - n % 2)
    x, weight, bias, options = conv_case(n, 3, (37, 30), 256, 3, padding=1, **settings_)
    tensors = tuple(t.float() for t in (x, weight, bias))
    mask = draw_mask(weight.shape, (16, 1))
    check(ops.block_sparse_conv2d, reference.block_sparse_conv2d, tensors, mask, 1e-4, **options)


@pytest.mark.parametrize("case", ["3x3", "3x3 stride 2", "1x1", "depthwise"])
def test_conv2d_bfloat16_accumulates_in_float32(case: str, isa: str) -> None:
    check_conv(case, (16, 1), torch.bfloat16, 2e-2)


@pytest.mark.parametrize("density", [0.0, 1.0])
@pytest.mark.parametrize("block", [(16, 1), (16, 16)])
@pytest.mark.parametrize("case", ["3x3 ragged", "3x3 stride 2", "1x1", "groups"])
def test_empty_and_full_masks(case: str, block: tuple[int, int], density: float) -> None:
    check_conv(case, block, torch.float64, 1e-11, density)


@pytest.mark.parametrize("block", BLOCKS, ids=str)
@pytest.mark.parametrize("leading", [(), (5,), (3, 50), (2, 0, 3)])
def test_linear(leading: tuple[int, ...], block: tuple[int, int], isa: str) -> None:
    weight = draw(37, 21, seed=1)
    tensors = (draw(*leading, 21), weight, draw(37, seed=2))
    mask = draw_mask(weight.shape, block)
    check(ops.block_sparse_linear, reference.block_sparse_linear, tensors, mask, 1e-11, block=block)
    single = tuple(t.float() for t in tensors)
    check(ops.block_sparse_linear, reference.block_sparse_linear, single, mask, 1e-4, block=block)


@settings(max_examples=60, deadline=None)
@given(
    n=st.integers(0, 18),
    c=st.integers(1, 34),
    o=st.integers(1, 40),
    size=st.tuples(st.integers(1, 17), st.integers(1, 30)),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    stride=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    padding=st.tuples(st.integers(0, 3), st.integers(0, 3)),
    dilation=st.tuples(st.integers(1, 2), st.integers(1, 2)),
    block=st.tuples(st.sampled_from([3, 4, 8, 12, 16, 32]), st.integers(1, 17)),
    density=st.floats(0, 1),
)
def test_any_convolution(n, c, o, size, kernel, stride, padding, dilation, block, density) -> None:
    if any(size[i] + 2 * padding[i] <= dilation[i] * (kernel[i] - 1) for i in range(2)):
        size = (size[0] + 4, size[1] + 4)
    weight = draw(o, c, *kernel, seed=1)
    tensors = (draw(n, c, *size), weight, draw(o, seed=2))
    options = {"stride": stride, "padding": padding, "dilation": dilation, "block": block}
    mask = draw_mask(weight.shape, block, density)
    check(ops.block_sparse_conv2d, reference.block_sparse_conv2d, tensors, mask, 1e-11, **options)


@pytest.mark.parametrize(
    "layout",
    [
        lambda t: t.contiguous(memory_format=torch.channels_last),
        lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
        lambda t: torch.cat([t, t], 1)[:, : t.shape[1]],
        lambda t: torch.stack([t, t], -1)[..., 0],
        lambda t: t[:1].expand_as(t),
    ],
    ids=["channels_last", "transposed", "sliced channels", "every other value", "expanded"],
)
def test_any_layout(layout: Callable[[Tensor], Tensor], isa: str) -> None:
    x, weight, bias, options = CONVS["3x3 ragged"]
    tensors = (layout(x.float()), weight.float(), bias.float())
    mask = draw_mask(weight.shape, (16, 1))
    check(ops.block_sparse_conv2d, reference.block_sparse_conv2d, tensors, mask, 1e-4, **options)


def test_result_has_the_memory_format_of_the_input() -> None:
    x, weight, bias, options = CONVS["3x3"]
    mask = draw_mask(weight.shape, (16, 1))
    assert ops.block_sparse_conv2d(x, weight, mask, bias, **options).is_contiguous()
    rows = x.contiguous(memory_format=torch.channels_last)
    y = ops.block_sparse_conv2d(rows, weight, mask, bias, **options)
    assert y.is_contiguous(memory_format=torch.channels_last)


def test_absent_blocks_do_not_matter_whatever_they_hold() -> None:
    x, weight, bias, options = CONVS["3x3"]
    mask = draw_mask(weight.shape, (16, 1))
    expected = ops.block_sparse_conv2d(x, weight, mask, bias, **options)
    weight = torch.where(reference.block_mask(mask, weight.shape, (16, 1)), weight, torch.nan)
    assert torch.equal(ops.block_sparse_conv2d(x, weight, mask, bias, **options), expected)


@pytest.mark.parametrize("case", ["3x3 ragged", "3x3 stride 2", "1x1 many pixels", "groups"])
@pytest.mark.parametrize("block", [(16, 1), (16, 16), (4, 1)])
def test_bits_do_not_depend_on_threads(case: str, block: tuple[int, int], threads: None) -> None:
    x, weight, bias, options = CONVS[case]
    mask = draw_mask(weight.shape, block)

    def results(count: int) -> list[Tensor]:
        torch.set_num_threads(count)
        leaves = [t.float().requires_grad_() for t in (x, weight, bias)]
        y = ops.block_sparse_conv2d(leaves[0], leaves[1], mask, leaves[2], **options, block=block)
        return [y, *torch.autograd.grad(y, leaves[:2], draw(*y.shape, dtype=torch.float32))]

    one = results(1)
    for count in (2, 3):
        assert all(torch.equal(a, b) for a, b in zip(one, results(count), strict=True))


@pytest.mark.parametrize("case", ["3x3 stride 2", "1x1"])
def test_gradients_of_any_order(case: str) -> None:
    x, weight, bias, options = CONVS[case]
    x, weight, bias = x[:1, :2, :5, :5], weight[:4, :2], bias[:4]
    mask = draw_mask(weight.shape, (4, 1), 0.6)
    leaves = tuple(t.clone().requires_grad_() for t in (x, weight, bias))

    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return ops.block_sparse_conv2d(x, weight, mask, bias, **options, block=(4, 1))

    assert torch.autograd.gradcheck(run, leaves, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(run, leaves)


@pytest.mark.parametrize("case", ["3x3 ragged", "3x3 stride 2", "groups", "depthwise"])
@pytest.mark.parametrize("block", [(16, 1), (16, 16), (5, 2)])
def test_probe_gives_the_gradient_of_absent_blocks(case: str, block: tuple[int, int]) -> None:
    x, weight, _, options = CONVS[case]
    y = reference.block_sparse_conv2d(x, weight, draw_mask(weight.shape, block), block=block, **options)
    grad, asked = draw(*y.shape), ~draw_mask(weight.shape, block)
    close(
        ops.block_sparse_probe(grad, x, asked, block=block, **options),
        reference.block_sparse_probe(grad, x, asked, block=block, **options),
        1e-11,
    )


@pytest.mark.parametrize("case", ["3x3 ragged", "3x3 stride 2", "1x1", "groups"])
def test_registration(case: str) -> None:
    x, weight, bias, options = CONVS[case]
    index = block_index(draw_mask(weight.shape, (16, 1)), (16, 1))
    values = pack(weight, index, (16, 1)).contiguous()
    pairs = [[v, v] if isinstance(v, int) else list(v) for k, v in options.items() if k != "groups"]
    tail = (list(weight.shape[2:]), *pairs, options["groups"])
    y = NATIVE.block_sparse_conv2d(x, values, index, bias, weight.shape[0], *tail)
    for op, args in [
        (NATIVE.block_sparse_conv2d, (x, values, index, bias, weight.shape[0], *tail)),
        (NATIVE.block_sparse_conv2d_input_grad, (draw(*y.shape), values, index, list(x.shape), *tail)),
        (NATIVE.block_sparse_conv2d_weight_grad, (draw(*y.shape), x, index, [16, 1], *tail)),
    ]:
        for needs in (False, True):
            leaves = [
                a.clone().requires_grad_(needs and a.is_floating_point()) if isinstance(a, Tensor) else a for a in args
            ]
            assert set(torch.library.opcheck(op.default, leaves).values()) == {"SUCCESS"}
    fused = (x, values, index, bias, draw(*y.shape), [bias, bias], weight.shape[0], *tail)
    assert set(torch.library.opcheck(NATIVE.block_sparse_conv2d_activated.default, fused).values()) == {"SUCCESS"}


def test_refuses_what_does_not_fit() -> None:
    x, weight, bias, _ = CONVS["3x3"]
    mask = draw_mask(weight.shape, (16, 1))
    conv = ops.block_sparse_conv2d
    for call, error, match in [
        (lambda: conv(x, weight, mask.float()), TypeError, "mask must be a bool tensor"),
        (lambda: conv(x, weight, mask[:1]), ValueError, r"mask must be \(2, 16, 3, 3\)"),
        (lambda: conv(x, weight[0], mask), ValueError, "weight must be"),
        (lambda: conv(x, weight, mask, block=(16,)), ValueError, "block must be a pair"),
        (lambda: conv(x, weight, mask, block=(0, 1)), ValueError, "block must be a pair"),
        (lambda: conv(x, weight, mask, stride=(1, 1, 1)), ValueError, "stride must be an int or a pair"),
        (lambda: conv(x, weight, mask, stride=0), ValueError, "must be positive"),
        (lambda: conv(x[0], weight, mask), ValueError, r"x must be \(N, C, H, W\)"),
        (lambda: conv(x[:, :12], weight, mask), ValueError, "must have 16 channels"),
        (lambda: conv(x[:, :0], weight[:, :0], mask[:, :0]), ValueError, "at least one channel"),
        (lambda: conv(x[:, :, :2], weight, mask), ValueError, "kernel must fit"),
        (lambda: conv(x.half(), weight, mask), TypeError, "must be float32, float64 or bfloat16"),
        (lambda: conv(x.float(), weight, mask), TypeError, "must have one dtype"),
        (lambda: conv(x, weight, mask, bias[:3]), ValueError, "bias must be"),
    ]:
        with pytest.raises(error, match=match):
            call()
    with pytest.raises(ValueError, match=r"^block_sparse_linear: x must be \(\*, 16\)"):
        ops.block_sparse_linear(x, weight[..., 0, 0], mask[..., 0, 0])


def test_refuses_an_index_of_another_mask() -> None:
    x, weight, _, _ = CONVS["3x3"]
    index = block_index(draw_mask(weight.shape, (16, 1)), (16, 1))
    values = pack(weight, index, (16, 1))
    tail = ([3, 3], [1, 1], [1, 1], [1, 1], 1)
    for row, wrong in [(0, 2), (1, 16), (2, 9), (3, index.shape[1]), (1, -1)]:
        bad = index.clone()
        bad[row, -1] = wrong
        with pytest.raises(ValueError, match="index must be that of a mask"):
            NATIVE.block_sparse_conv2d(x, values, bad, None, 32, *tail)
    with pytest.raises(ValueError, match="values must be"):
        NATIVE.block_sparse_conv2d(x, values[1:], index, None, 32, *tail)
    with pytest.raises(TypeError, match="int32"):
        NATIVE.block_sparse_conv2d(x, values, index.long(), None, 32, *tail)
