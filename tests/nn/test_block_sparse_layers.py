"""Layers that hold only the present blocks: same function, training and state as the masked dense layer."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from torch import Tensor, nn

from resgrow.nn import BlockSparseConv2d, BlockSparseLinear
from resgrow.ops import reference

BLOCKS = [(16, 1), (16, 16), (4, 1), (5, 3)]


def conv_pair(block: tuple[int, int], **options: object) -> tuple[nn.Conv2d, BlockSparseConv2d, Tensor]:
    """A dense layer with masked weight, the sparse one, and the mask over single weights."""
    layer = nn.Conv2d(20, 36, 3, padding=1, **options).double()
    blocks = torch.rand(-(-36 // block[0]), -(-layer.weight.shape[1] // block[1]), 3, 3) < 0.5
    mask = reference.block_mask(blocks, layer.weight.shape, block)
    with torch.no_grad():
        layer.weight.mul_(mask)
    return layer, BlockSparseConv2d.from_dense(layer, blocks, block), mask


def linear_pair(block: tuple[int, int]) -> tuple[nn.Linear, BlockSparseLinear, Tensor]:
    layer = nn.Linear(20, 36).double()
    blocks = torch.rand(-(-36 // block[0]), -(-20 // block[1])) < 0.5
    mask = reference.block_mask(blocks, layer.weight.shape, block)
    with torch.no_grad():
        layer.weight.mul_(mask)
    return layer, BlockSparseLinear.from_dense(layer, blocks, block), mask


PAIRS = {
    "conv": (conv_pair, (2, 20, 6, 5)),
    "conv stride 2": (lambda block: conv_pair(block, stride=2, bias=False), (2, 20, 6, 5)),
    "conv groups": (lambda block: conv_pair(block, groups=4), (2, 20, 6, 5)),
    "linear": (linear_pair, (3, 4, 20)),
}


@pytest.fixture(params=PAIRS)
def pair(request: pytest.FixtureRequest):
    make, shape = PAIRS[request.param]
    return lambda block: (*make(block), torch.randn(shape, dtype=torch.float64))


def present_gradients(sparse: nn.Module, values_like: Tensor) -> Tensor:
    """A tensor shaped like ``values`` as a dense weight."""
    other = copy.deepcopy(sparse)
    with torch.no_grad():
        other.values.copy_(values_like)
    return other.dense_weight().detach()


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_function_and_gradients_are_those_of_the_masked_layer(pair, block: tuple[int, int]) -> None:
    dense, sparse, mask, x = pair(block)
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, expected = sparse(ours), dense(theirs)
    torch.testing.assert_close(y, expected)
    grad = torch.randn_like(y)
    y.backward(grad)
    expected.backward(grad)
    torch.testing.assert_close(ours.grad, theirs.grad)
    torch.testing.assert_close(present_gradients(sparse, sparse.values.grad), dense.weight.grad * mask)
    if dense.bias is not None:
        torch.testing.assert_close(sparse.bias.grad, dense.bias.grad)


@pytest.mark.parametrize("block", [(16, 1), (16, 16)], ids=str)
@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, 0.05, momentum=0.9, weight_decay=1e-3),
        lambda p: torch.optim.Adam(p, 1e-2, amsgrad=True),
        lambda p: torch.optim.RMSprop(p, 1e-3),
    ],
    ids=["sgd", "adam", "rmsprop"],
)
def test_training_follows_the_masked_dense_layer(pair, block: tuple[int, int], make) -> None:
    dense, sparse, mask, x = pair(block)
    optimizers = [make(dense.parameters()), make(sparse.parameters())]
    for _ in range(5):
        for layer, optimizer in zip((dense, sparse), optimizers, strict=True):
            optimizer.zero_grad()
            layer(x).square().mean().backward()
            if layer is dense:
                layer.weight.grad *= mask
            optimizer.step()
    torch.testing.assert_close(sparse.dense_weight(), dense.weight * mask)
    torch.testing.assert_close(sparse(x), dense(x))


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_dense_and_back(pair, block: tuple[int, int]) -> None:
    dense, sparse, _, x = pair(block)
    again = sparse.to_dense()
    assert type(again) is type(dense)
    assert repr(again) == repr(dense)
    torch.testing.assert_close(again(x), dense(x), rtol=0, atol=0)
    found = type(sparse).from_dense(dense, block=block)  # the blocks that hold anything
    assert torch.equal(found.mask, sparse.mask)
    assert torch.equal(found.values, sparse.values)


@pytest.mark.parametrize("kernel", [1, 3])
@pytest.mark.parametrize("format_", [torch.contiguous_format, torch.channels_last])
def test_dense_weights_lie_as_they_lay(kernel: int, format_: torch.memory_format) -> None:
    layer = nn.Conv2d(8, 16, kernel).to(memory_format=format_)
    again = BlockSparseConv2d.from_dense(layer).to_dense()
    assert again.weight.stride() == layer.weight.stride()
    assert torch.equal(again.weight, layer.weight)


def test_mask_over_single_weights() -> None:
    dense, sparse, mask = conv_pair((16, 1))
    assert torch.equal(BlockSparseConv2d.from_dense(dense, mask, (16, 1)).mask, sparse.mask)
    mask[0, 0, 0, 0] = ~mask[0, 0, 0, 0]
    with pytest.raises(ValueError, match="constant within every block"):
        BlockSparseConv2d.from_dense(dense, mask, (16, 1))


def test_blocks_wider_than_the_layer() -> None:
    """They hold what there is: kernels compute nothing that hangs over the inputs."""
    dense = nn.Conv2d(3, 20, 3).double()
    mask = torch.rand(2, 1, 3, 3) < 0.5
    sparse = BlockSparseConv2d.from_dense(dense, mask, (16, 16))
    assert sparse.block == (16, 3)
    assert torch.equal(sparse.mask, mask)
    assert sparse.values.shape == (int(mask.sum()), 3, 16)
    with torch.no_grad():
        dense.weight.mul_(reference.block_mask(mask, dense.weight.shape, (16, 16)))
    x = torch.randn(2, 3, 6, 5, dtype=torch.float64)
    torch.testing.assert_close(sparse(x), dense(x))
    sparse.set_mask(~mask)
    assert torch.equal(sparse.mask, ~mask)


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_state_dicts_are_those_of_the_dense_layer(pair, block: tuple[int, int]) -> None:
    dense, sparse, _, x = pair(block)
    state = sparse.state_dict()
    assert set(state) == {*dense.state_dict(), "mask"}
    torch.testing.assert_close(state["weight"], dense.weight.detach(), rtol=0, atol=0)
    dense.load_state_dict(state, strict=False)
    stored = io.BytesIO()
    torch.save(state, stored)
    stored.seek(0)
    fresh = type(sparse).from_dense(dense, torch.ones_like(sparse.mask), block)
    fresh.load_state_dict(torch.load(stored))  # takes the mask too
    assert torch.equal(fresh.values, sparse.values)
    torch.testing.assert_close(fresh(x), sparse(x), rtol=0, atol=0)
    with torch.no_grad():
        dense.weight.mul_(2)
    sparse.load_state_dict(dense.state_dict())  # keeps its mask
    torch.testing.assert_close(sparse(x), dense(x))


def test_load_reports_what_is_missing_or_does_not_fit() -> None:
    dense, sparse, _ = conv_pair((16, 1))
    before = sparse.dense_weight().detach()
    with pytest.raises(RuntimeError, match=r"Missing key.*weight"):
        sparse.load_state_dict({"bias": dense.bias})
    with pytest.raises(RuntimeError, match="size mismatch for weight"):
        sparse.load_state_dict({"bias": dense.bias, "weight": dense.weight[:1]})
    with pytest.raises(RuntimeError, match=r"Unexpected key.*other"):
        sparse.load_state_dict({**dense.state_dict(), "other": dense.bias})
    assert torch.equal(sparse.dense_weight(), before)


@pytest.mark.parametrize("block", [(16, 1), (16, 16)], ids=str)
def test_set_mask_moves_values_gradients_and_moments(pair, block: tuple[int, int]) -> None:
    dense, sparse, _, x = pair(block)
    optimizer = torch.optim.Adam(sparse.parameters(), 1e-2)
    for _ in range(2):
        optimizer.zero_grad()
        sparse(x).square().mean().backward()
        optimizer.step()
    parameter, before = sparse.values, sparse.dense_weight().detach()
    moment = present_gradients(sparse, optimizer.state[parameter]["exp_avg"])
    gradient = present_gradients(sparse, parameter.grad)
    old = sparse.mask.clone()
    new = torch.rand(old.shape) < 0.5
    weight = torch.randn_like(dense.weight)
    sparse.set_mask(new, optimizer, weight)
    stays = reference.block_mask(old & new, sparse.shape, block)
    comes = reference.block_mask(~old & new, sparse.shape, block)
    assert sparse.values is parameter
    assert torch.equal(sparse.mask, new)
    torch.testing.assert_close(sparse.dense_weight(), torch.where(comes, weight, before * stays), rtol=0, atol=0)
    assert torch.equal(present_gradients(sparse, optimizer.state[parameter]["exp_avg"]), moment * stays)
    assert torch.equal(present_gradients(sparse, parameter.grad), gradient * stays)
    optimizer.zero_grad()
    sparse(x).square().mean().backward()
    optimizer.step()


def test_set_mask_leaves_everything_as_it_was_when_refused() -> None:
    _, sparse, _ = conv_pair((16, 1))
    mask, values = sparse.mask.clone(), sparse.values.clone()
    for bad, error in [(mask.float(), TypeError), (mask[:1], ValueError)]:
        with pytest.raises(error):
            sparse.set_mask(bad)
    with pytest.raises(ValueError, match="weight must have"):
        sparse.set_mask(~mask, weight=torch.zeros(1))
    assert torch.equal(sparse.mask, mask)
    assert torch.equal(sparse.values, values)


def test_compact_parameter_holds_only_what_is_present() -> None:
    layer = nn.Conv2d(64, 64, 3, bias=False)
    mask = torch.zeros(4, 64, 3, 3, dtype=torch.bool)
    mask[:, ::8] = True
    sparse = BlockSparseConv2d.from_dense(layer, mask)
    assert sum(p.numel() for p in sparse.parameters()) * 8 == layer.weight.numel()
    assert sparse.density() == 0.125


def test_copies_are_independent(pair) -> None:
    _, sparse, _, x = pair((16, 1))
    expected = sparse(x)
    other = copy.deepcopy(sparse)
    other.set_mask(torch.zeros_like(other.mask))
    torch.testing.assert_close(sparse(x), expected, rtol=0, atol=0)
    assert other.values.numel() == 0


def test_autocast_and_memory_formats() -> None:
    dense, sparse, _ = conv_pair((16, 1))
    dense, sparse = dense.float(), sparse.float()
    x = torch.randn(2, 20, 6, 5)
    expected = dense(x)
    for format_ in (torch.contiguous_format, torch.channels_last):
        y = sparse(x.contiguous(memory_format=format_))
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
        assert y.is_contiguous(memory_format=format_)
    with torch.autocast("cpu", torch.bfloat16):
        y = sparse(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), expected, rtol=5e-2, atol=5e-2)
    y.sum().backward()
    assert sparse.values.grad.dtype == torch.float32
    torch.testing.assert_close(sparse(x[0]), expected[0], rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_compiles_without_graph_breaks(pair) -> None:
    _, sparse, _, x = pair((16, 1))
    compiled = torch.compile(sparse, fullgraph=True, backend="aot_eager")
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    y, expected = compiled(ours), sparse(theirs)
    torch.testing.assert_close(y, expected)
    for a, b in zip(
        torch.autograd.grad(y.square().sum(), (ours, sparse.values)),
        torch.autograd.grad(expected.square().sum(), (theirs, sparse.values)),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_refuses_padding_it_does_not_have() -> None:
    for options in ({"padding": "same"}, {"padding": 1, "padding_mode": "reflect"}):
        with pytest.raises(ValueError, match="padding must be given in numbers"):
            BlockSparseConv2d.from_dense(nn.Conv2d(16, 16, 3, **options))
