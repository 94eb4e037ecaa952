"""tristate_relu on CUDA, over the samples of the CPU tests and what only this device does differently."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from resgrow import ops
from resgrow.ops import reference
from tests.ops.test_tristate_relu import BACKWARD, SAMPLES, SHAPES, gates, layouts

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
MORE_SHAPES = [
    (9, 2003),  # no row begins with a whole vector
    (3, 700, 3),  # runs cut by tiles
    (21, 3, 5),
    (2, 5, 613),  # runs with values before the first vector and after the last
    (1, 1, 3001),
    (2, 20000),  # few long rows
]


def compare(machine: Any, x: Tensor, grad: Tensor, w: Tensor, d: Tensor) -> None:
    """Values and gradients on the machine with the reference's."""
    device_x, device_grad, device_w, device_d = map(machine.put, (x, grad, w, d))
    y = ops.tristate_relu(device_x, device_w, device_d)
    assert y.stride() == torch.empty_like(x).stride()
    torch.testing.assert_close(y.cpu(), reference.tristate_relu(x, w, d), rtol=0, atol=0)
    got = BACKWARD(device_grad, device_x, device_w, device_d, True, True)
    want = reference.tristate_relu_backward(grad.double(), x.double(), w.double(), d.double())
    torch.testing.assert_close(got[0].cpu().double(), want[0], rtol=0, atol=0)
    rounding = 1e-12 if x.dtype == torch.float64 else 1e-5
    for gate, result, exact in zip((w, d), got[1:], want[1:], strict=True):
        assert result.dtype == gate.dtype
        atol = rounding * max(1.0, x.numel() ** 0.5)
        rtol = max(1e-6, torch.finfo(gate.dtype).eps)
        torch.testing.assert_close(result.cpu().double(), exact, rtol=rtol, atol=atol)


@pytest.mark.parametrize("depth", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [*SHAPES, *MORE_SHAPES])
def test_values_and_gradients(machine: Any, shape: tuple[int, ...], dtype: torch.dtype, depth: bool) -> None:
    grad = torch.randn(shape).to(dtype)
    for x in layouts(torch.randn(shape).to(dtype)):
        compare(machine, x, grad, *gates(shape[1], depth))


@pytest.mark.parametrize("offsets", [(1, 0), (0, 3), (5, 5)])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(70, 13), (2, 5, 613)])
def test_tensors_that_start_inside_a_storage(
    machine: Any, shape: tuple[int, ...], dtype: torch.dtype, offsets: tuple[int, int]
) -> None:
    count = torch.Size(shape).numel()
    x, grad = (torch.randn(offset + count).to(dtype)[offset:].view(shape) for offset in offsets)
    compare(machine, x, grad, *gates(shape[1], depth=True))


@pytest.mark.parametrize("offset", [0, 3])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(70, 13), (2, 5, 613)])
def test_in_place(machine: Any, shape: tuple[int, ...], dtype: torch.dtype, offset: int) -> None:
    w, d = gates(shape[1], depth=False)
    memory = machine.put(torch.randn(offset + torch.Size(shape).numel()).to(dtype))
    x = memory[offset:].view(shape)
    expected, before = reference.tristate_relu(x.cpu(), w, d), memory[:offset].clone()
    torch.ops.resgrow.tristate_relu_.default(x, machine.put(w), machine.put(d))
    torch.testing.assert_close(x.cpu(), expected, rtol=0, atol=0)
    assert torch.equal(memory[:offset], before)


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    "shape", [(64, 64, 56, 56), (33, 129, 31, 29), (1, 3, 2000, 3001), (256, 2048, 7, 7), (300000, 33)]
)
def test_large_tensors(machine: Any, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    if machine.is_simt:
        pytest.skip("for a GPU: minutes where it is interpreted")
    x, grad = torch.randn(2, *shape).to(dtype).unbind()
    for layout in [x, x.to(memory_format=torch.channels_last)] if x.dim() == 4 else [x]:
        compare(machine, layout, grad, *gates(shape[1], depth=True))


@pytest.mark.parametrize("gate_dtype", DTYPES)
def test_gates_are_compared_in_their_own_precision(machine: Any, gate_dtype: torch.dtype) -> None:
    below = 0.5 - torch.finfo(gate_dtype).eps / 4  # the next smaller value
    w, d = (machine.put(torch.tensor(gate, dtype=gate_dtype)) for gate in ([0.5, below], 0.5))
    assert w[1] < 0.5
    x = machine.put(torch.ones(2, 2))
    assert ops.tristate_relu(x, w, d).tolist() == [[1, 0], [1, 0]]
    grad_w, grad_d = BACKWARD(x, x, w, d, True, True)[1:]
    assert (grad_w.dtype, grad_d.dtype) == (gate_dtype, gate_dtype)
    assert grad_w.tolist() == [2, 2]


def test_gates_of_any_stride_and_of_two_types(machine: Any) -> None:
    w, d = torch.rand(13, 3)[:, 1], torch.tensor(0.9, dtype=torch.bfloat16)
    compare(machine, torch.randn(5, 13, 3), torch.randn(5, 13, 3), w, d)


def test_special_values_are_those_of_the_reference(machine: Any) -> None:
    special = torch.tensor([torch.nan, torch.inf, -torch.inf, 0.0, -0.0, 1e-40]).repeat(20)
    x = special.expand(2, 3, 120).contiguous()
    for dtype in DTYPES:
        for depth in (False, True):
            w, d = gates(3, depth)
            runs = x.to(dtype).repeat(1, 1, 5)
            for layout in (x.to(dtype), x.to(dtype).transpose(1, 2).contiguous().transpose(1, 2), runs):
                y, want = ops.tristate_relu(*map(machine.put, (layout, w, d))), reference.tristate_relu(layout, w, d)
                torch.testing.assert_close(y.cpu(), want, rtol=0, atol=0, equal_nan=True)
                assert torch.equal(y.cpu().signbit() | y.cpu().isnan(), want.signbit() | want.isnan())


@pytest.mark.parametrize("gate", range(2))
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("shape", [(3, 4, 5), (2, 4, 600)])
def test_special_values_reach_the_gates_as_in_the_reference(
    machine: Any, shape: tuple[int, ...], value: float, gate: int
) -> None:
    x, grad = torch.randn(2, *shape).unbind()
    x[1, 2, 3] = value
    for depth in (False, True):
        w, d = gates(4, depth)
        got = BACKWARD(*map(machine.put, (grad, x, w, d)), True, True)[1 + gate]
        want = reference.tristate_relu_backward(grad, x, w, d)[1 + gate]
        torch.testing.assert_close(got.cpu(), want, rtol=1e-4, atol=1e-3, equal_nan=True)


@pytest.mark.parametrize("shape", [(1, 3, 20_000), (500, 3, 7), (300, 70), (2, 16, 33, 35)])
def test_same_bits_in_every_order_of_threads(machine: Any, shape: tuple[int, ...]) -> None:
    x, grad = map(machine.put, torch.randn(2, *shape).unbind())
    w, d = map(machine.put, gates(shape[1], depth=True))
    found = [BACKWARD(grad, x, w, d, True, True) for _ in machine.seeds for _ in range(2)]
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))


@pytest.mark.parametrize("depth", [False, True])
def test_gradcheck_of_x(machine: Any, depth: bool) -> None:
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    x = machine.put(x + 0.1 * x.sign()).requires_grad_()  # away from the kink
    w, d = map(machine.put, gates(3, depth, torch.float64))
    assert torch.autograd.gradcheck(lambda x: ops.tristate_relu(x, w, d), x, check_forward_ad=True)


@pytest.mark.parametrize("needed", range(1, 8))
@pytest.mark.parametrize("shape", [(4, 3, 5), (1, 3, 700)])
def test_gives_the_gradients_that_are_needed(machine: Any, shape: tuple[int, ...], needed: int) -> None:
    leaves = [machine.put(t) for t in (torch.randn(shape), *gates(3, depth=False))]
    for i, leaf in enumerate(leaves):
        leaf.requires_grad_(bool(needed >> i & 1))
    grad = torch.randn(shape)
    ops.tristate_relu(*leaves).backward(machine.put(grad))
    expected = reference.tristate_relu_backward(grad, *(leaf.detach().cpu() for leaf in leaves))
    for i, (leaf, exact) in enumerate(zip(leaves, expected, strict=True)):
        assert (leaf.grad is not None) == bool(needed >> i & 1)
        if leaf.grad is not None:
            torch.testing.assert_close(leaf.grad.cpu(), exact)


@pytest.mark.parametrize("sample", SAMPLES)
def test_registration(machine: Any, sample: tuple[Tensor, Tensor, Tensor]) -> None:
    leaves = [machine.put(t).requires_grad_() for t in sample]
    assert set(torch.library.opcheck(torch.ops.resgrow.tristate_relu.default, leaves).values()) == {"SUCCESS"}
    x, w, d = (leaf.detach() for leaf in leaves)
    results = torch.library.opcheck(BACKWARD, (torch.randn_like(x), x, w, d, True, True))
    assert set(results.values()) == {"SUCCESS"}


def test_refuses_what_does_not_fit(machine: Any) -> None:
    x, w, d = (machine.put(t) for t in (torch.randn(2, 3, 4), *gates(3, depth=True)))
    with pytest.raises(ValueError, match=r"^tristate_relu: w must be \(C,\)"):
        ops.tristate_relu(x, w[:2], d)
    with pytest.raises(TypeError, match=r"^tristate_relu: x must be float32, float64, bfloat16 or float16"):
        ops.tristate_relu(x.int(), w, d)
    if not machine.is_simt:
        with pytest.raises(ValueError, match=r"^tristate_relu: d and x must be on one device"):
            ops.tristate_relu(x, w, d.cpu())


@pytest.mark.cuda
@pytest.mark.parametrize("shape", [(16, 8, 9), (4, 8, 40, 40)])
def test_captured_in_a_graph_on_another_stream(machine: Any, shape: tuple[int, ...]) -> None:
    if machine.is_simt:
        pytest.skip("the interpreter has no streams")
    x, grad = (machine.put(torch.randn(shape)) for _ in range(2))
    w, d = map(machine.put, gates(8, depth=True))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        y, gradients = ops.tristate_relu(x, w, d), BACKWARD(grad, x, w, d, True, True)
    for static in (x, grad, w):
        static.copy_(torch.rand_like(static) - 0.2)
    graph.replay()
    assert torch.equal(y, ops.tristate_relu(x, w, d))
    for replayed, now in zip(gradients, BACKWARD(grad, x, w, d, True, True), strict=True):
        assert torch.equal(replayed, now)
