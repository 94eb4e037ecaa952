"""What stands in the place of layers that give zeros."""

import pytest
import torch
from torch import Tensor, nn

from resgrow.nn import Zeros


@pytest.mark.parametrize(
    ("zeros", "shape"), [(Zeros(), (2, 3, 4)), (Zeros(0, 5, -1), (2, 3, 5)), (Zeros(0, 7, 1), (2, 7, 4))]
)
def test_zeros_can_be_traced_by_fx(zeros, shape):
    x = torch.randn(2, 3, 4)
    expected = zeros(x)
    assert expected.shape == shape
    assert not expected.any()
    traced = torch.fx.symbolic_trace(nn.Sequential(zeros, nn.ReLU()))
    assert torch.equal(traced(x), expected)


def test_zeros_return_what_attention_returns():
    attention = Zeros(2)
    query = torch.randn(2, 3, 4)
    found, weights = attention(query=query, key=query, value=query, need_weights=False)
    assert isinstance(found, Tensor)
    assert torch.equal(found, torch.zeros_like(query))
    assert weights is None
