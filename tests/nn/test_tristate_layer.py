import pytest
import torch

from resgrow.nn import TriStateReLU


@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 5), (2, 3, 4, 5)])
def test_three_states(shape: tuple[int, ...]) -> None:
    x = torch.randn(shape)
    relu, identity = TriStateReLU(3, w=0.7, d=0.3), TriStateReLU(3, w=0.7, d=0.7)
    torch.testing.assert_close(relu(x), x.relu())
    torch.testing.assert_close(identity(x), x)
    with torch.no_grad():
        identity.w[1] = 0.2
    y = identity(x)
    assert not y[:, 1].any()
    torch.testing.assert_close(y[:, ::2], x[:, ::2])


def test_closed_gates_receive_gradient_and_stay_in_bounds() -> None:
    gate = TriStateReLU(2, w=0.4, d=0.1)
    gate(torch.ones(3, 2)).sum().backward()
    assert gate.w.grad is not None
    assert gate.w.grad.tolist() == [3.0, 3.0]
    torch.optim.SGD(gate.parameters(), lr=1.0).step()
    gate.clip_()
    assert gate.w.tolist() == [0.0, 0.0]


def test_writes_over_the_input_only_where_no_gradient_is_recorded() -> None:
    gate = TriStateReLU(3, inplace=True)
    x = torch.randn(2, 3, 4)
    kept = x.clone()
    y = gate(x)
    assert y is not x
    assert torch.equal(x, kept)
    y.sum().backward()
    with torch.no_grad():
        y = gate(x)
    assert y is x
    torch.testing.assert_close(x, kept.relu())
    with torch.inference_mode():
        assert gate(x) is x
    fixed = TriStateReLU(3, learn="neither", inplace=True)
    z = torch.randn(2, 3, 4)
    assert fixed(z) is z
    assert repr(fixed) == "TriStateReLU(3, learn='neither', inplace=True)"


def test_refuses_what_cannot_work() -> None:
    with pytest.raises(ValueError, match="num_channels"):
        TriStateReLU(0)
    with pytest.raises(ValueError, match=r"\[0, 1\]"):
        TriStateReLU(3, w=1.5)
