"""Operators decomposed into aten: same values, and nothing of ours left in exported programs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from resgrow.nn import BlockSparseConv2d, BlockSparseLinear
from resgrow.ops import decompositions
from resgrow.ops.block_index import block_index, mask_shape, pack

NATIVE = torch.ops.resgrow
TABLE = decompositions()
# batch, inputs, side, outputs, kernel, stride, padding, dilation, groups, block
CASES = {
    "3x3": (2, 20, 7, 36, 3, 1, 1, 1, 1, (16, 1)),
    "stride": (1, 8, 9, 24, 3, 2, 1, 1, 1, (8, 1)),
    "dilated": (2, 5, 9, 12, 3, 1, 0, 2, 1, (4, 3)),
    "groups": (2, 32, 6, 32, 3, 1, 1, 1, 2, (16, 16)),
    "1x1": (3, 17, 5, 40, 1, 1, 0, 1, 1, (16, 16)),
}


def draw(*shape: int) -> Tensor:
    return torch.randn(shape, dtype=torch.float64)


@pytest.mark.parametrize("case", CASES)
def test_same_values(case: str) -> None:
    batch, inputs, side, outputs, kernel, stride, padding, dilation, groups, block = CASES[case]
    weight = draw(outputs, inputs // groups, kernel, kernel)
    index = block_index(torch.rand(mask_shape(weight.shape, block)) < 0.5, block)
    values, bias, x = pack(weight, index, block).contiguous(), draw(outputs), draw(batch, inputs, side, side)
    tail = ([kernel] * 2, [stride] * 2, [padding] * 2, [dilation] * 2, groups)
    y = NATIVE.block_sparse_conv2d(x, values, index, bias, outputs, *tail)
    grad, slopes = torch.randn_like(y), [draw(outputs), draw(outputs)]
    for op, args in [
        (NATIVE.block_sparse_conv2d, (x, values, index, bias, outputs, *tail)),
        (NATIVE.block_sparse_conv2d, (x, values, index, None, outputs, *tail)),
        (NATIVE.block_sparse_conv2d_activated, (x, values, index, bias, grad, slopes, outputs, *tail)),
        (NATIVE.block_sparse_conv2d_activated, (x, values, index, None, grad, [], outputs, *tail)),
        (NATIVE.block_sparse_conv2d_activated, (x, values, index, bias, None, slopes, outputs, *tail)),
        (NATIVE.block_sparse_conv2d_input_grad, (grad, values, index, list(x.shape), *tail)),
        (NATIVE.block_sparse_conv2d_weight_grad, (grad, x, index, list(block), *tail)),
    ]:
        torch.testing.assert_close(TABLE[op.default](*args), op(*args))


def test_every_operator_of_the_family_has_one() -> None:
    names = [name.split("::")[1] for name in torch._C._dispatch_get_all_op_names() if "resgrow::block_sparse" in name]
    assert {getattr(NATIVE, name).default for name in names} == set(TABLE)


@pytest.mark.slow
@pytest.mark.parametrize("strict", [True, False])
def test_exported_programs_hold_aten_only(strict: bool) -> None:
    conv, linear = nn.Conv2d(3, 20, 3, padding=1), nn.Linear(20, 8)
    model = nn.Sequential(
        BlockSparseConv2d.from_dense(conv, torch.rand(2, 3, 3, 3) < 0.6),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        BlockSparseLinear.from_dense(linear, torch.rand(1, 20) < 0.6),
    ).eval()
    x = torch.randn(2, 3, 6, 6)
    dynamic = ({0: torch.export.Dim("batch", min=1, max=64)},)
    program = torch.export.export(model, (x,), strict=strict, dynamic_shapes=dynamic)
    assert operators(program) & {"resgrow"}
    torch.testing.assert_close(program.module()(x), model(x))
    plain = program.run_decompositions(TABLE)
    assert operators(plain) == {"aten"}
    more = torch.randn(5, 3, 6, 6)
    torch.testing.assert_close(plain.module()(more), model(more))


def operators(program: torch.export.ExportedProgram) -> set[str]:
    """Namespaces of the operators that a program calls."""
    targets = [node.target for node in program.graph.nodes if node.op == "call_function"]
    return {target.namespace for target in targets if isinstance(target, torch._ops.OpOverload)}
