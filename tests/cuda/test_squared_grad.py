"""squared_grad on CUDA: every operator against its plain-torch meaning in float64, on the very same numbers."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import islice

import pytest
import torch
from torch import Tensor

from resgrow.ops import reference, squared_grad
from tests.ops.test_squared_grad import CONV2D, CONVS, ELEMENTWISE, FORMS, LINEAR, LINEARS, NORM, conv_case, draw

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def meaning(op: str, *args: object) -> tuple[Tensor, ...]:
    result = getattr(reference, op)(*(a.cpu().double() if isinstance(a, Tensor) else a for a in args))
    return result if isinstance(result, tuple) else (result,)


def check(machine, op: str, *args: object, tolerance: float = 2e-5, orders: int = 3) -> None:
    """The operator agrees with its meaning, and gives the same bits in so many orders of threads."""
    given = [machine.put(a) if isinstance(a, Tensor) else a for a in args]
    double = next(a for a in args if isinstance(a, Tensor)).dtype == torch.float64
    tolerance = 1e-12 if double else tolerance
    first: tuple[Tensor, ...] = ()
    for _ in islice(machine.seeds, orders):
        actual = getattr(squared_grad, op)(*given)
        actual = actual if isinstance(actual, tuple) else (actual,)
        if first:
            assert all(torch.equal(a, f) for a, f in zip(actual, first, strict=True))
            continue
        first = actual
        for a, e in zip(actual, meaning(op, *args), strict=True):
            assert a.dtype == (torch.float64 if double else torch.float32)
            assert a.is_contiguous()
            assert not a.requires_grad
            # What is not squared may cancel: errors are measured against the largest entry.
            scale = e.abs().max().item() if e.numel() else 1.0
            torch.testing.assert_close(a.cpu().double(), e, rtol=tolerance, atol=tolerance * scale + 1e-300)


# The interpreter takes some microseconds per product of matrices and thread.
TINY_CONVS = {
    "3x3": conv_case(3, 8, (5, 6), 9, 3, padding=1),
    "3x3 stride 2": conv_case(2, 12, (7, 7), 20, 3, stride=2, padding=1),
    "3x3 dilated": conv_case(2, 8, (7, 8), 17, 3, padding=2, dilation=2),
    "1x1": conv_case(3, 20, (5, 7), 33, 1),
    "1x1 wide": conv_case(2, 72, (3, 3), 70, 1),
    "1x1 stride 2": conv_case(3, 16, (6, 5), 8, 1, stride=2),
    "1x1 padded": conv_case(2, 16, (4, 4), 12, 1, padding=1),
    "1 channel 5x5": conv_case(5, 1, (8, 8), 6, 5),
    "3 channels 7x7 stride 2": conv_case(2, 3, (9, 9), 8, 7, stride=2, padding=3),
    "many positions": conv_case(2, 8, (12, 13), 8, 1),
    "even kernel": conv_case(2, 9, (6, 9), 10, (2, 4), stride=(2, 1), padding=(0, 3), dilation=(3, 1)),
    "one pixel": conv_case(4, 16, (1, 1), 16, 3, padding=1),
    "many taps": conv_case(2, 5, (11, 9), 3, (11, 8)),
    "padding beyond kernel": conv_case(2, 16, (3, 3), 16, 2, padding=3),
    "tile 128 x 128": conv_case(2, 72, (5, 8), 104, 1),
    "tile 64 x 128": conv_case(2, 16, (5, 8), 24, 3, padding=1),
    "tile 128 x 64": conv_case(2, 16, (5, 8), 72, 1),
    "wide groups": conv_case(2, 32, (4, 5), 48, 3, padding=1, groups=2),
    "ragged groups": conv_case(2, 27, (4, 5), 51, 1, groups=3),
    "small groups": conv_case(2, 8, (6, 5), 12, 3, padding=1, groups=4),
    "depthwise": conv_case(3, 12, (5, 6), 12, 3, padding=1, groups=12),
    "depthwise ragged": conv_case(2, 37, (7, 7), 37, 5, padding=2, stride=2, groups=37),
    "depthwise multiplier": conv_case(2, 6, (7, 8), 18, 3, padding=1, groups=6),
}


@pytest.mark.parametrize("op", CONV2D)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", TINY_CONVS)
def test_conv2d(machine, name: str, dtype: torch.dtype, op: str) -> None:
    x, grad, settings = TINY_CONVS[name]
    last = FORMS["channels_last"]
    check(machine, op, last(x).to(dtype), last(grad).to(dtype), *settings)


LAYOUTS = ("contiguous", "channels_last", "sliced", "transposed", "expanded")


def test_samples_of_one_part_are_kept_apart(machine) -> None:
    """More samples than blocks that fit: a block squares several, each with stages of its own."""
    x, grad, settings = conv_case(140, 72, (6, 6), 72, 1)
    x, grad = (FORMS["channels_last"](t).bfloat16() for t in (x, grad))
    check(machine, "squared_grad_conv2d", x, grad, *settings, orders=1)
    x, grad, settings = conv_case(400, 6, (2, 2), 6, (2, 1), groups=6)
    check(machine, "squared_grad_conv2d", x, grad, *settings, orders=1)


@pytest.mark.parametrize("op", CONV2D)
@pytest.mark.parametrize("form", LAYOUTS)
def test_layouts(machine, form: str, op: str) -> None:
    for name in ("3x3 stride 2", "depthwise"):
        x, grad, settings = TINY_CONVS[name]
        for dtype in (torch.float32, torch.bfloat16, torch.float64):
            check(machine, op, FORMS[form](x).to(dtype), FORMS[form](grad).to(dtype), *settings)
    x, grad, settings = TINY_CONVS["1x1"]
    check(machine, op, FORMS[form](x), FORMS["channels_last"](grad), *settings)


TINY_LINEARS = {name: LINEARS[name] for name in ("samples", "one sample", "single", "sequence", "sequence of one")} | {
    "wide": (draw(9, 70), draw(9, 66, seed=1)),
    "many": (draw(300, 19), draw(300, 35, seed=1)),
    "long": (draw(2, 90, 12), draw(2, 90, 9, seed=1)),
    "grid": (draw(2, 3, 4, 8), draw(2, 3, 4, 8, seed=1)),
}


@pytest.mark.parametrize("op", LINEAR)
@pytest.mark.parametrize("name", TINY_LINEARS)
def test_linear(machine, name: str, op: str) -> None:
    for dtype in DTYPES:
        x, grad = (t.to(dtype) for t in TINY_LINEARS[name])
        check(machine, op, x, grad)
    strided = torch.stack([grad, grad], -1)[..., 0]
    check(machine, op, x.mT.contiguous().mT, strided)
    check(machine, op, x, grad[:1].expand_as(grad))


# The largest takes seconds in the interpreter.
MOMENTS = [shape for shape in ELEMENTWISE if shape != (70, 64, 2, 2)]


@pytest.mark.parametrize("shape", MOMENTS, ids=str)
def test_bias(machine, shape: tuple[int, ...]) -> None:
    for dtype in DTYPES:
        grad = draw(*shape, dtype=dtype)
        for dim in range(1, len(shape)):
            check(machine, "squared_grad_bias", grad, dim)
        check(machine, "squared_grad_bias", grad.mT.contiguous().mT)
        check(machine, "squared_grad_bias", grad[..., :1].expand_as(grad))
        check(machine, "squared_grad_bias", torch.cat([grad, grad], -1)[..., 1 : 1 + shape[-1]])


@pytest.mark.parametrize("op", NORM)
@pytest.mark.parametrize("shape", MOMENTS, ids=str)
def test_norm(machine, shape: tuple[int, ...], op: str) -> None:
    mean, rstd = draw(shape[1]), draw(shape[1], seed=3).abs() + 0.1
    for dtype in DTYPES:
        x, grad = draw(*shape, dtype=dtype), draw(*shape, dtype=dtype, seed=1)
        last = x.movedim(1, -1).contiguous().movedim(-1, 1)
        grad_last = grad.movedim(1, -1).contiguous().movedim(-1, 1)
        for pair in ((x, grad), (last, grad_last), (last, grad), (x, grad_last)):
            check(machine, op, *pair, mean, rstd)
    check(machine, op, x, grad, mean.bfloat16(), rstd.double())


def test_moments_of_many_samples(machine) -> None:
    """More samples than blocks that are wanted: a block sums several, one after the other."""
    x, grad = draw(300, 30, 33).mT, draw(300, 30, 33, seed=1).mT
    check(machine, "squared_grad_norm", x, grad, draw(33), draw(33, seed=3).abs(), orders=1)
    check(machine, "squared_grad_norm", x.contiguous(), grad.contiguous(), draw(33), draw(33, seed=3).abs(), orders=1)


@pytest.mark.parametrize("op", NORM)
def test_norm_keeps_precision_where_the_mean_is_large(machine, op: str) -> None:
    """(x - mean) is formed before anything is summed: no difference of large sums."""
    x, grad = draw(4, 24, 6, 6) + 1000.0, draw(4, 24, 6, 6, seed=1)
    check(machine, op, x, grad, x.mean((0, 2, 3)), torch.ones(24))


@pytest.mark.parametrize(("conv2d", "linear", "norm"), [*zip(CONV2D, LINEAR, NORM, strict=True)], ids=CONV2D)
def test_empty_inputs_give_zeros(machine, conv2d: str, linear: str, norm: str) -> None:
    def put(*shape: int) -> Tensor:
        return machine.put(draw(*shape))

    conv, linear, norm = (getattr(squared_grad, op) for op in (conv2d, linear, norm))
    statistics = machine.put(torch.zeros(3)), machine.put(torch.ones(3))
    for result, shape in (
        (conv(put(0, 3, 8, 8), put(0, 5, 6, 6), 3), (5, 3, 3, 3)),
        (conv(put(2, 3, 2, 8), put(2, 5, 0, 6), 3), (5, 3, 3, 3)),
        (conv(put(2, 0, 8, 8), put(2, 5, 6, 6), 3), (5, 0, 3, 3)),
        (conv(put(2, 3, 8, 8), put(2, 0, 6, 6), 3), (0, 3, 3, 3)),
        (linear(put(0, 3), put(0, 5)), (5, 3)),
        (linear(put(2, 0, 3), put(2, 0, 5)), (5, 3)),
        (linear(put(2, 0), put(2, 5)), (5, 0)),
        (squared_grad.squared_grad_bias(put(0, 3, 4)), (3,)),
        (squared_grad.squared_grad_bias(put(2, 3, 0)), (3,)),
        *((part, (3,)) for part in norm(put(0, 3, 4), put(0, 3, 4), *statistics)),
    ):
        assert torch.equal(result.cpu(), torch.zeros(shape))


def test_no_gradient_flows(machine) -> None:
    x, grad = machine.put(draw(4, 3).requires_grad_()), machine.put(draw(4, 5).requires_grad_())
    assert not squared_grad.squared_grad_linear(x, grad).requires_grad
    assert not squared_grad.squared_input_grad_linear(x, grad).requires_grad


@contextmanager
def tf32() -> Iterator[None]:
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def test_tf32_where_it_is_allowed(machine) -> None:
    """Inputs that tf32 holds lose nothing; others lose what 10 bits of mantissa lose, only where that is allowed."""
    for name in ("3x3", "tile 128 x 128"):
        x, grad, settings = TINY_CONVS[name]
        with tf32():
            check(machine, "squared_grad_conv2d", x.bfloat16().float(), grad.bfloat16().float(), *settings)
            check(machine, "squared_grad_conv2d", x, grad, *settings, tolerance=4e-3)
            check(machine, "squared_input_grad_conv2d", x, grad, *settings)


WRONG: list[tuple[type[Exception], str, Callable[[Tensor, Tensor], object]]] = [
    (ValueError, "one batch size", lambda x, g: squared_grad.squared_grad_conv2d(x, g[:1], 3)),
    (ValueError, "width of grad must be 4", lambda x, g: squared_grad.squared_grad_conv2d(x, g[..., :3], 3)),
    (ValueError, "divide the channels", lambda x, g: squared_grad.squared_input_grad_conv2d(x, g, 3, groups=4)),
    (TypeError, "one dtype", lambda x, g: squared_grad.squared_grad_conv2d(x, g.double(), 3)),
    (TypeError, "bfloat16 or float16", lambda x, g: squared_grad.squared_grad_linear(x.int(), x.int())),
    (ValueError, "at least 2", lambda x, g: squared_grad.squared_input_grad_linear(x[0, 0, 0], x[0, 0, 0])),
    (ValueError, "other than the first", lambda x, g: squared_grad.squared_grad_bias(g, 0)),
    (ValueError, "with C = 4", lambda x, g: squared_grad.squared_grad_norm(x, x, x[0, 0, 0], x[0, 0, 0])),
]


@pytest.mark.parametrize(("error", "message", "call"), WRONG, ids=[f"{m}-{i}" for i, (_, m, _) in enumerate(WRONG)])
def test_errors_say_what_is_wrong(machine, error: type[Exception], message: str, call: Callable) -> None:
    with pytest.raises(error, match=rf"squared_\w+: .*{message}"):
        call(machine.put(draw(2, 4, 6, 6)), machine.put(draw(2, 6, 4, 4)))


@pytest.mark.parametrize("op", CONV2D)
@pytest.mark.parametrize("name", CONVS)
def test_every_case_of_the_cpu_suite(machine, name: str, op: str) -> None:
    if machine.is_simt:
        pytest.skip("seconds each in the interpreter; TINY_CONVS holds the like")
    x, grad, settings = CONVS[name]
    for form in (FORMS[layout] for layout in LAYOUTS):
        for dtype in DTYPES:
            check(machine, op, form(x).to(dtype), form(grad).to(dtype), *settings)
