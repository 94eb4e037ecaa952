"""block_sparse on a GPU: large layers, and what only a device has: streams, graphs, several devices, its memory."""

from __future__ import annotations

import pytest
import torch
from block_sparse_cases import close, draw, draw_mask
from torch import Tensor
from torch.nn import functional as F

from resgrow import ops
from resgrow.ops import reference

from .test_block_sparse import BLOCKS, TOLERANCE, check_conv

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.parametrize("machine", [pytest.param("cuda", marks=pytest.mark.cuda)], indirect=True),
]
LARGE = {"padding": 1}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("block", [(16, 1), (16, 16), (64, 64)], ids=str)
@pytest.mark.parametrize("density", [0.1, 0.25, 1.0])
def test_layers_that_fill_the_device(density: float, block: tuple[int, int], dtype: torch.dtype, machine) -> None:
    case = (draw(9, 256, 27, 30), draw(192, 256, 3, 3, seed=1) / 48, draw(192, seed=2), LARGE)
    check_conv(machine, case, block, dtype, density)


def layer(device: torch.device | str, block: tuple[int, int] = (16, 1)) -> tuple[list[Tensor], Tensor]:
    tensors = [draw(4, 64, 14, 14), draw(96, 64, 3, 3, seed=1), draw(96, seed=2)]
    return [t.to(device, torch.float16) for t in tensors], draw_mask((96, 64, 3, 3), block).to(device)


def step(tensors: list[Tensor], mask: Tensor, block: tuple[int, int] = (16, 1)) -> list[Tensor]:
    """The output and all gradients."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    y = ops.block_sparse_conv2d(leaves[0], leaves[1], mask, leaves[2], padding=1, block=block)
    return [y.detach(), *torch.autograd.grad(y, leaves, torch.ones_like(y))]


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_another_stream_than_the_default_one(block: tuple[int, int], machine) -> None:
    tensors, mask = layer(machine.device, block)
    expected = step(tensors, mask, block)
    torch.cuda.synchronize()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(50_000_000)  # what runs on another stream than this one reads too early
        late = [t * 1 for t in tensors]
        got = step(late, mask, block)
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_a_graph_is_captured_and_replayed(block: tuple[int, int], machine) -> None:
    (x, weight, bias), mask = layer(machine.device, block)
    index = ops.block_index.block_index(mask, block)
    values = ops.block_index.pack(weight, index, block)
    tail = ([3, 3], [1, 1], [1, 1], [1, 1], 1)

    def run() -> list[Tensor]:
        y = torch.ops.resgrow.block_sparse_conv2d(x, values, index, bias, 96, *tail)
        dx = torch.ops.resgrow.block_sparse_conv2d_input_grad(y, values, index, list(x.shape), *tail)
        return [y, dx, torch.ops.resgrow.block_sparse_conv2d_weight_grad(y, x, index, list(block), *tail)]

    run()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = run()
    x.copy_(x.flip(0) / 2)
    graph.replay()
    torch.cuda.synchronize()
    assert all(torch.equal(a, b) for a, b in zip(captured, run(), strict=True))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two devices")
def test_a_device_that_is_not_the_current_one(machine) -> None:
    first, second = (step(*layer(f"cuda:{i}")) for i in range(2))
    assert torch.cuda.current_device() == 0
    assert all(b.device.index == 1 and torch.equal(a.cpu(), b.cpu()) for a, b in zip(first, second, strict=True))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two devices")
def test_refuses_tensors_of_two_devices(machine) -> None:
    (x, weight, bias), mask = layer("cuda:0")
    with pytest.raises(ValueError, match="must be on one device"):
        ops.block_sparse_conv2d(x.to("cuda:1"), weight, mask, bias, padding=1)


def test_memory_is_returned(machine) -> None:
    tensors, mask = layer(machine.device)
    step(tensors, mask)
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    for _ in range(5):
        step(tensors, mask)
    torch.cuda.synchronize()
    assert torch.cuda.memory_allocated() == before


def test_torch_compile(machine) -> None:
    tensors, mask = layer(machine.device)
    index = ops.block_index.block_index(mask, (16, 1))
    values = ops.block_index.pack(tensors[1], index, (16, 1))

    def run(x: Tensor, values: Tensor) -> Tensor:
        y = ops.block_sparse.packed_conv2d(x, values, index, tensors[2], (96, 64, 3, 3), padding=1)
        return F.relu(y) * 2

    got, expected = torch.compile(run, fullgraph=True)(tensors[0], values), run(tensors[0], values)
    close(got.cpu(), expected.cpu().double(), 2e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_autocast(dtype: torch.dtype, machine) -> None:
    (x, weight, bias), mask = layer(machine.device)
    leaves = [t.float().requires_grad_() for t in (x, weight, bias)]
    with torch.autocast("cuda", dtype):
        y = ops.block_sparse_conv2d(*leaves[:2], mask, leaves[2], padding=1)
    assert y.dtype == dtype
    expected = reference.block_sparse_conv2d(
        *(t.detach().cpu().double() for t in leaves[:2]), mask.cpu(), bias.cpu().double(), padding=1
    )
    close(y.cpu(), expected, 2e-2)
    y.float().sum().backward()
    assert all(t.grad is not None and t.grad.dtype == torch.float32 for t in leaves)
