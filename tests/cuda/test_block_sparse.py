"""block_sparse's CUDA code, interpreted and on a GPU: every product against its plain-torch meaning in float64."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import pytest
import torch
from block_sparse_cases import CONVS, close, draw, draw_mask
from torch import Tensor

from resgrow import ops
from resgrow.ops import reference
from resgrow.ops.block_index import block_index, pack, unpack
from resgrow.ops.block_sparse import packed_conv2d

NATIVE = torch.ops.resgrow
TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-4, torch.bfloat16: 2e-2, torch.float16: 3e-3}
BLOCKS = [(16, 1), (16, 16), (8, 1), (4, 1), (12, 3), (32, 16), (5, 2)]


def at(machine, *tensors: Tensor, dtype: torch.dtype, grad: bool = True) -> list[Tensor]:
    return [machine.put(t.to(dtype)).requires_grad_(grad) for t in tensors]


def check(machine, op: Callable, meaning: Callable, tensors: list[Tensor], mask: Tensor, **options: object) -> None:
    """Value and all gradients agree with the reference in float64 on the very same numbers."""
    dtype = tensors[0].dtype
    theirs = [t.detach().cpu().double().requires_grad_() for t in tensors]
    y = op(tensors[0], tensors[1], machine.put(mask), tensors[2], **options)
    expected = meaning(theirs[0], theirs[1], mask, theirs[2], **options)
    assert y.dtype == dtype
    close(y.cpu(), expected, TOLERANCE[dtype])
    grad = draw(*expected.shape, dtype=dtype, seed=3)
    ours = torch.autograd.grad(y, tensors, machine.put(grad))
    for a, e in zip(ours, torch.autograd.grad(expected, theirs, grad.double()), strict=True):
        close(a.cpu(), e, TOLERANCE[dtype])


def check_conv(
    machine, case: tuple, block: tuple[int, int], dtype: torch.dtype, density: float = 0.4, layout=torch.channels_last
) -> None:
    x, weight, bias, options = case
    tensors = at(machine, x.contiguous(memory_format=layout), weight, bias, dtype=dtype)
    mask = draw_mask(weight.shape, block, density)
    check(machine, ops.block_sparse_conv2d, reference.block_sparse_conv2d, tensors, mask, block=block, **options)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=str)
@pytest.mark.parametrize("block", BLOCKS, ids=str)
@pytest.mark.parametrize("case", CONVS)
def test_conv2d(case: str, block: tuple[int, int], layout: torch.memory_format, machine) -> None:
    check_conv(machine, CONVS[case], block, torch.float32, layout=layout)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("block", BLOCKS[:5], ids=str)
@pytest.mark.parametrize("case", CONVS)
def test_conv2d_in_every_type(case: str, block: tuple[int, int], dtype: torch.dtype, machine) -> None:
    check_conv(machine, CONVS[case], block, dtype)


@pytest.mark.parametrize("density", [0.0, 1.0])
@pytest.mark.parametrize("block", [(16, 1), (16, 16)])
@pytest.mark.parametrize("case", ["3x3 ragged", "3x3 stride 2", "1x1", "groups"])
def test_empty_and_full_masks(case: str, block: tuple[int, int], density: float, machine) -> None:
    check_conv(machine, CONVS[case], block, torch.float32, density)


@pytest.mark.parametrize("leading", [(), (5,), (2, 9), (2, 0, 3)])
@pytest.mark.parametrize("block", [(16, 1), (16, 16)], ids=str)
def test_linear(leading: tuple[int, ...], block: tuple[int, int], machine) -> None:
    weight = draw(37, 21, seed=1)
    tensors = at(machine, draw(*leading, 21), weight, draw(37, seed=2), dtype=torch.float32)
    mask = draw_mask(weight.shape, block)
    check(machine, ops.block_sparse_linear, reference.block_sparse_linear, tensors, mask, block=block)


def test_an_empty_batch(machine) -> None:
    _, weight, bias, options = CONVS["3x3"]
    check_conv(machine, (draw(0, 16, 8, 8), weight, bias, options), (16, 1), torch.float32)


@pytest.mark.parametrize(
    "layout",
    [
        lambda t: t.transpose(2, 3).contiguous().transpose(2, 3),
        lambda t: torch.cat([t, t], 1)[:, : t.shape[1]],
        lambda t: torch.stack([t, t], -1)[..., 0],
        lambda t: t[:1].expand_as(t),
    ],
    ids=["transposed", "sliced channels", "every other value", "expanded"],
)
def test_any_layout(layout: Callable[[Tensor], Tensor], machine) -> None:
    x, weight, bias, options = CONVS["3x3 ragged"]
    tensors = at(machine, layout(x), weight, bias, dtype=torch.float32)
    mask = draw_mask(weight.shape, (16, 1))
    check(machine, ops.block_sparse_conv2d, reference.block_sparse_conv2d, tensors, mask, **options)


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=str)
def test_results_have_the_memory_format_of_the_input(layout: torch.memory_format, machine) -> None:
    x, weight, bias, options = CONVS["3x3"]
    x, weight, bias = at(machine, x.contiguous(memory_format=layout), weight, bias, dtype=torch.float32)
    y = ops.block_sparse_conv2d(x, weight, machine.put(draw_mask(weight.shape, (16, 1))), bias, **options)
    (grad,) = torch.autograd.grad(y, x, torch.ones_like(y))
    assert y.is_contiguous(memory_format=layout)
    assert grad.is_contiguous(memory_format=layout)


@pytest.mark.parametrize("with_slopes", [False, True])
@pytest.mark.parametrize("residual", [None, torch.channels_last, torch.contiguous_format], ids=str)
@pytest.mark.parametrize("block", [(16, 1), (16, 16)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_what_is_done_before_the_output_is_stored(
    dtype: torch.dtype, block: tuple[int, int], residual: torch.memory_format | None, with_slopes: bool, machine
) -> None:
    x, weight, bias, options = CONVS["3x3 ragged"]
    index = block_index(draw_mask(weight.shape, block), block)
    exact = [x.to(dtype), pack(weight, index, block).to(dtype), bias.to(dtype)]
    y = packed_conv2d_reference(*exact, index, weight.shape, block, options)
    slopes = (draw(y.shape[1], dtype=dtype, seed=5), draw(y.shape[1], dtype=dtype, seed=6)) if with_slopes else None
    addend = None if residual is None else draw(*y.shape, dtype=dtype, seed=8).contiguous(memory_format=residual)
    expected = reference.block_sparse_activated(
        y, slopes and tuple(s.double() for s in slopes), None if addend is None else addend.double()
    )
    x, values, bias = (machine.put(t) for t in exact)
    got = packed_conv2d(
        x,
        values,
        machine.put(index),
        bias,
        tuple(weight.shape),
        **options,
        slopes=slopes and tuple(machine.put(s) for s in slopes),
        residual=None if addend is None else machine.put(addend),
    )
    close(got.cpu(), expected, TOLERANCE[dtype])


def packed_conv2d_reference(x, values, bias, index, shape, block, options) -> Tensor:
    """The product in float64, whatever the operators of torch.ops.resgrow are at the moment."""
    weight = unpack(values.double(), index, tuple(shape))
    return torch.nn.functional.conv2d(x.double(), weight, bias.double(), **options)


@pytest.mark.parametrize("case", ["3x3 stride 2", "1x1"])
def test_gradients_of_any_order(case: str, machine) -> None:
    x, weight, bias, options = CONVS[case]
    mask = machine.put(draw_mask((4, 2, *weight.shape[2:]), (4, 1), 0.6))
    leaves = at(machine, x[:1, :2, :3, :4], weight[:4, :2], bias[:4], dtype=torch.float64)

    def run(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        return ops.block_sparse_conv2d(x, weight, mask, bias, **options, block=(4, 1))

    assert torch.autograd.gradcheck(run, leaves, check_forward_ad=True, fast_mode=True)
    assert torch.autograd.gradgradcheck(run, leaves, fast_mode=True)


@pytest.mark.parametrize("block", [(16, 1), (16, 16)])
def test_probe_gives_the_gradient_of_absent_blocks(block: tuple[int, int], machine) -> None:
    x, weight, _, options = CONVS["3x3 stride 2"]
    asked = ~draw_mask(weight.shape, block)
    grad = draw(*torch.nn.functional.conv2d(x, weight, **options).shape)
    got = ops.block_sparse_probe(
        machine.put(grad.float()), machine.put(x.float()), machine.put(asked), block=block, **options
    )
    close(got.cpu(), reference.block_sparse_probe(grad, x, asked, block=block, **options), 1e-4)


def products(machine, case: str, block: tuple[int, int], dtype: torch.dtype) -> list[tuple[Callable, tuple]]:
    """The four operators with arguments that fit."""
    x, weight, bias, options = CONVS[case]
    index = block_index(draw_mask(weight.shape, block), block)
    y = torch.nn.functional.conv2d(x, weight, **options)
    pairs = [[v, v] if isinstance(v, int) else list(v) for k, v in options.items() if k != "groups"]
    tail = (list(weight.shape[2:]), *pairs, options["groups"])
    x, values, bias, grad = (machine.put(t.to(dtype)) for t in (x, pack(weight, index, block), bias, draw(*y.shape)))
    index = machine.put(index)
    fused = (x, values, index, bias, grad, [bias, bias], len(weight), *tail)
    return [
        (NATIVE.block_sparse_conv2d, (x, values, index, bias, len(weight), *tail)),
        (NATIVE.block_sparse_conv2d_input_grad, (grad, values, index, list(x.shape), *tail)),
        (NATIVE.block_sparse_conv2d_weight_grad, (grad, x, index, list(block), *tail)),
        (NATIVE.block_sparse_conv2d_activated, fused),
    ]


def test_registration(machine) -> None:
    for op, args in products(machine, "3x3 stride 2", (16, 1), torch.float32):
        assert set(torch.library.opcheck(op.default, args).values()) == {"SUCCESS"}


@pytest.mark.parametrize("block", [(16, 1), (16, 16)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_bits_do_not_depend_on_the_order_of_threads(dtype: torch.dtype, block: tuple[int, int], machine) -> None:
    for op, args in products(machine, "1x1 many pixels", block, dtype):
        runs = [op(*args) for _ in range(2) for _ in machine.seeds]
        assert all(torch.equal(runs[0], r) for r in runs[1:])


@pytest.mark.parametrize("block", [(16, 1), (16, 16)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_entries_of_another_mask_touch_no_other_memory(dtype: torch.dtype, block: tuple[int, int], machine) -> None:
    """The interpreter stops at an access outside of a tensor; what is computed is not said."""
    for op, args in products(machine, "3x3", block, dtype):
        good = op(*args)
        where = next(i for i, a in enumerate(args) if isinstance(a, Tensor) and a.dtype == torch.int32)
        for field, value in itertools.product(range(4), (-1, 1000, 2**31 - 1, -(2**31))):
            bad = args[where].cpu().clone()
            bad[field, ::2] = value
            assert op(*args[:where], machine.put(bad), *args[where + 1 :]).shape == good.shape
        assert torch.equal(op(*args), good)  # nothing that was read has been written


def test_refuses_what_does_not_fit(machine) -> None:
    (conv, args), *_ = products(machine, "3x3", (16, 1), torch.float32)
    x, values, index, bias, outputs, *tail = args
    many = index.repeat(1, 1000)
    for call, error, match in [
        (lambda: conv(x.int(), values, index, bias, outputs, *tail), TypeError, "bfloat16 or float16"),
        (lambda: conv(x, values.half(), index, bias, outputs, *tail), TypeError, "must have one dtype"),
        (lambda: conv(x, values, index.long(), bias, outputs, *tail), TypeError, "int32"),
        (lambda: conv(x, values[1:], index, bias, outputs, *tail), ValueError, "values must be"),
        (lambda: conv(x, values, index, bias[1:], outputs, *tail), ValueError, "bias must be"),
        (lambda: conv(x, values.repeat(1000, 1, 1), many, bias, outputs, *tail), ValueError, "index must be that of"),
    ]:
        with pytest.raises(error, match=match):
            call()
