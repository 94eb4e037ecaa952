"""What the method ``lecun`` has no rule for is named with its place, and nothing changes."""

from __future__ import annotations

from collections.abc import Callable

import brute
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resgrow import curvature

LABELS = torch.tensor([1, 0, 2])


class Double(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return 2 * x

    @staticmethod
    def backward(ctx, grad):
        return 2 * grad


REFUSED: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "softmax": (lambda x: x.softmax(1), r"softmax\(\) in module 'block.inner' \(Inner\)"),
    "product": (lambda x: x * x.sigmoid(), r"mul\(\) in module 'block.inner' \(Inner\): both operands are act"),
    "quotient": (lambda x: x / (1 + x.exp()), r"div\(\) in .*both operands"),
    "matmul": (lambda x: (x @ x.T) @ torch.ones(3, 4), r"matmul\(\) in .*parameter or a constant"),
    "addmm": (lambda x: torch.addmm(x, x, torch.ones(4, 4), alpha=2), r"addmm\(\) in .*alpha"),
    "dropout": (F.dropout, r"dropout\(\) in .*random"),
    "rrelu": (lambda x: F.rrelu(x, training=True), r"rrelu\(\) in .*random"),
    "glu": (lambda x: F.glu(torch.cat([x, x], 1)), r"glu\(\) in module"),
    "norm": (lambda x: x / torch.linalg.vector_norm(x), r"linalg_vector_norm\(\) in"),
    "bilinear": (lambda x: F.interpolate(x[None], 4, mode="linear")[0], r"interpolate\(\) in .*'nearest'"),
    "floor division": (lambda x: torch.div(x, 2, rounding_mode="floor"), r"div\(\) in .*rounding_mode"),
    "operator": (torch.ops.aten.relu.default, r"aten::relu\(\) in module 'block.inner'"),
    "builtin": (
        lambda x: torch.batch_norm(x, None, None, torch.zeros(4), torch.ones(4), False, 0.1, 1e-5, False),
        r"torch.batch_norm\(\) in module 'block.inner'",
    ),
    "in place": (lambda x: x.clone().addcmul_(x, x), r"addcmul\(\) in module"),
    "without result": (lambda x: torch._foreach_mul_([x], 2) or x, r"foreach_mul\(\) in module"),
    "function": (Double.apply, r"Double in a torch.autograd.Function"),
    "attention": (lambda x: F.scaled_dot_product_attention(x, x, x), r"scaled_dot_product_attention\(\) in"),
    "norm of the weights": (
        lambda x: F.embedding(torch.zeros(3, dtype=int), x, max_norm=1.0),
        r"embedding\(\) in .*max",
    ),
}


class Inner(nn.Module):
    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Model(nn.Module):
    """The function to be refused, in a module with a name."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.block = nn.ModuleDict({"first": nn.Linear(4, 4), "inner": Inner(function), "last": nn.Linear(4, 3)})

    def forward(self, x: Tensor) -> Tensor:
        return self.block["last"](self.block["inner"](self.block["first"](x)))


@pytest.mark.parametrize("name", REFUSED)
def test_functions(name: str) -> None:
    function, message = REFUSED[name]
    model, x = Model(function), torch.randn(3, 4)
    model.block["first"].eval()
    model.block["last"](x).sum().backward()
    before = brute.state(model)
    with pytest.raises(ValueError, match=rf"lecun: no rule for .*{message}.*; use method='ggn-mc'"):
        curvature(model, nn.CrossEntropyLoss(), (x, LABELS), "lecun")
    brute.assert_unchanged(model, before)


def test_batch_statistics() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False))
    with pytest.raises(ValueError, match=r"batch_norm\(\) in module '1' .*couple its samples"):
        curvature(model, nn.CrossEntropyLoss(), (torch.randn(3, 4), LABELS), "lecun")


def test_torchscript() -> None:
    model = nn.Sequential(nn.Linear(4, 4), torch.jit.trace(nn.Sigmoid(), torch.zeros(3, 4)), nn.Linear(4, 3))
    with pytest.raises(ValueError, match="module '1': TorchScript"):
        curvature(model, nn.CrossEntropyLoss(), (torch.randn(3, 4), LABELS), "lecun")


def test_a_function_of_the_model_itself() -> None:
    class Soft(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x).softmax(1)

    with pytest.raises(ValueError, match=r"softmax\(\) in Soft"):
        curvature(Soft(4, 3), nn.CrossEntropyLoss(), (torch.randn(3, 4), LABELS), "lecun")
