"""What block_sparse does to its output before storing it, against plain torch in float64."""

from __future__ import annotations

import pytest
import torch
from block_sparse_cases import CONVS, close, draw, draw_mask
from torch import Tensor

from resgrow.ops import reference
from resgrow.ops.block_index import block_index, pack
from resgrow.ops.block_sparse import packed_conv2d, packed_linear

EPILOGUES = {
    "slopes": (True, None),
    "residual": (False, torch.channels_last),
    "both": (True, torch.channels_last),
    "both, residual NCHW": (True, torch.contiguous_format),
}


@pytest.mark.parametrize("case", ["3x3 ragged", "3x3 stride 2", "1x1 many pixels", "depthwise"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("epilogue", EPILOGUES)
def test_what_is_done_before_the_output_is_stored(case: str, dtype: torch.dtype, epilogue: str, isa: str) -> None:
    x, weight, bias, options = CONVS[case]
    index = block_index(draw_mask(weight.shape, (16, 1)), (16, 1))
    values = pack(weight, index, (16, 1))
    args = (x, values, index, bias, tuple(weight.shape))
    y = packed_conv2d(*args, **options)
    with_slopes, layout = EPILOGUES[epilogue]
    slopes = (draw(y.shape[1], seed=5), draw(y.shape[1], seed=6)) if with_slopes else None
    residual = None if layout is None else draw(*y.shape, seed=8).contiguous(memory_format=layout)
    extras = {"slopes": slopes, "residual": residual}
    x, values, index, bias, _ = cast(args, dtype)
    got = packed_conv2d(x, values, index, bias, args[-1], **options, **{k: cast(v, dtype) for k, v in extras.items()})
    expected = reference.block_sparse_activated(y, **extras)
    close(got, expected, 1e-11 if dtype == torch.float64 else 1e-4)


def cast(value: object, dtype: torch.dtype) -> object:
    """Every floating tensor in ``value`` in ``dtype``."""
    if isinstance(value, tuple):
        return tuple(cast(v, dtype) for v in value)
    return value.to(dtype) if isinstance(value, Tensor) and value.is_floating_point() else value


@pytest.mark.parametrize("kernel", [1, 3])
def test_large_outputs_with_everything(kernel: int, isa: str) -> None:
    """Beyond any cache, where stores go another way; ragged outputs."""
    x, weight, bias = draw(2, 8, 160, 160), draw(44, 8, kernel, kernel, seed=1), draw(44, seed=2)
    index = block_index(draw_mask(weight.shape, (16, 1)), (16, 1))
    args = (x, pack(weight, index, (16, 1)), index, bias, tuple(weight.shape))
    rows = tuple(a.contiguous(memory_format=torch.channels_last) if a is x else a for a in args)
    padding = kernel // 2
    extras = {"slopes": (draw(44, seed=5), draw(44, seed=6)), "residual": draw(2, 44, 160, 160)}
    y = reference.block_sparse_conv2d(x, weight, draw_mask(weight.shape, (16, 1)), bias, padding=padding)
    expected = reference.block_sparse_activated(y, **extras)
    close(packed_conv2d(*rows, padding=padding, **extras), expected, 1e-11)
    single = {k: cast(v, torch.float32) for k, v in extras.items()}
    close(packed_conv2d(*cast(rows, torch.float32), padding=padding, **single), expected, 1e-4)


def test_linear_with_slopes() -> None:
    x, weight = draw(5, 21), draw(37, 21, seed=1)
    mask = draw_mask(weight.shape, (16, 1))
    index = block_index(mask, (16, 1))
    slopes = draw(37, seed=5), draw(37, seed=6)
    got = packed_linear(x, pack(weight, index, (16, 1)), index, None, tuple(weight.shape), slopes)
    y = reference.block_sparse_linear(x, weight, mask)
    close(got, y * torch.where(y >= 0, *slopes), 1e-11)


def test_what_is_fused_is_for_inference_and_must_fit() -> None:
    x, weight, bias, options = CONVS["3x3"]
    index = block_index(draw_mask(weight.shape, (16, 1)), (16, 1))
    values = pack(weight, index, (16, 1))
    slopes, residual = (draw(32), draw(32, seed=1)), draw(3, 32, 8, 8)

    def run(x: Tensor = x, slopes: tuple | None = slopes, residual: Tensor = residual) -> Tensor:
        return packed_conv2d(x, values, index, bias, tuple(weight.shape), **options, slopes=slopes, residual=residual)

    for call, error, match in [
        (lambda: run(x=x.clone().requires_grad_()), RuntimeError, "it is for inference"),
        (lambda: run(slopes=None, residual=residual.clone().requires_grad_()), RuntimeError, "it is for inference"),
        (lambda: run(slopes=(slopes[0], slopes[1].clone().requires_grad_())), RuntimeError, "it is for inference"),
        (lambda: run(residual=residual[:, :16]), ValueError, r"residual must be \[3, 32, 8, 8\], as the output"),
        (lambda: run(residual=residual.float()), TypeError, "must have one dtype"),
        (lambda: run(slopes=(slopes[0], slopes[1][:3])), ValueError, "negative must be"),
        (lambda: run(slopes=slopes[:1]), ValueError, "slopes must be two"),
    ]:
        with pytest.raises(error, match=match):
            call()
    with torch.no_grad():
        assert not run(x=x.clone().requires_grad_()).requires_grad
