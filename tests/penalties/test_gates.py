"""Gates: the penalty's value and gradient, the optimizer's groups, clipping."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from resgrow import GateCoefficients, Gates
from resgrow.nn import TriStateReLU


def net(**learn: str) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(4, 6),
        TriStateReLU(6, learn=learn.get("first", "both")),
        nn.Linear(6, 5),
        TriStateReLU(5, learn=learn.get("second", "both")),
        nn.Linear(5, 2),
    )


def set_gates(layer: TriStateReLU, w: list[float], d: float) -> None:
    with torch.no_grad():
        layer.w.copy_(torch.tensor(w))
        layer.d.fill_(d)


def test_penalty_is_the_authors_sum() -> None:
    model = net()
    widths, depths = ([0.1, 0.5, 0.9, 0.0, 1.0, 0.3], [0.2, 0.6, 0.7, 0.4, 1.0]), (0.4, 0.8)
    for layer, w, d in zip((model[1], model[3]), widths, depths, strict=True):
        set_gates(layer, w, d)
    c = GateCoefficients(binary_width=0.3, binary_depth=0.07, width=0.2, depth=0.05)
    expected = 0.3 * sum(w * (1 - w) for row in widths for w in row)
    expected += 0.07 * sum(d * (1 - d) for d in depths)
    expected += 0.2 * sum(widths[0])  # the second layer is linear: its width is free
    expected -= 0.05 * sum(depths)
    penalty = Gates(model).penalty(c)
    torch.testing.assert_close(penalty, torch.tensor(expected))
    penalty.backward()
    torch.testing.assert_close(model[1].w.grad, 0.3 * (1 - 2 * torch.tensor(widths[0])) + 0.2)
    torch.testing.assert_close(model[3].w.grad, 0.3 * (1 - 2 * torch.tensor(widths[1])))
    # The indicator is a constant: no gradient for the width that an open depth gate would save.
    torch.testing.assert_close(model[1].d.grad, torch.tensor(0.07 * (1 - 0.8) - 0.05))
    assert model[0].weight.grad is None


def test_all_coefficients_from_one() -> None:
    c = GateCoefficients.of(1e-5)
    assert c.width == 1e-5
    assert c.binary_width == pytest.approx(2e-5)
    assert c.width < c.binary_width
    assert c.binary_depth == pytest.approx(c.binary_width / 10)
    assert c.depth == pytest.approx(c.width / 10)
    gates = Gates(net())
    assert torch.equal(gates.penalty(1e-5), gates.penalty(c))


@pytest.mark.parametrize(
    ("learn", "w", "d"), [("both", 0.7, 0.45), ("width", 0.7, 0.0), ("depth", 1.0, 0.45), ("neither", 1.0, 0.0)]
)
def test_what_a_layer_learns(learn: str, w: float, d: float) -> None:
    layer = TriStateReLU(3, learn=learn)
    assert layer.w.tolist() == pytest.approx([w] * 3)
    assert layer.d.item() == pytest.approx(d)
    assert layer.w.requires_grad == (learn in ("both", "width"))
    assert layer.d.requires_grad == (learn in ("both", "depth"))
    layer(torch.randn(2, 3, requires_grad=True)).sum().backward()
    assert (layer.w.grad is not None) == layer.w.requires_grad
    gates = Gates(nn.Sequential(layer))
    assert len(gates.parameters()) == layer.w.requires_grad + layer.d.requires_grad
    c = GateCoefficients(1.0, 1.0, 1.0, 1.0)
    width, depth = 3 * (w * (1 - w) + w), d * (1 - d) - d
    expected = width * layer.w.requires_grad + depth * layer.d.requires_grad
    torch.testing.assert_close(gates.penalty(c), torch.tensor(expected))


def test_groups_and_clipping_go_with_any_optimizer() -> None:
    model = net(first="width")
    gates = Gates(model)
    groups = gates.param_groups(lr=0.5, betas=(0.5, 0.9))
    optimizer = torch.optim.AdamW(groups, lr=1e-3, weight_decay=0.1)
    held = [p for group in optimizer.param_groups for p in group["params"]]
    assert {id(p) for p in held} == {id(p) for p in model.parameters()}
    assert len(held) == len(list(model.parameters()))
    assert [group["lr"] for group in optimizer.param_groups] == [1e-3, 0.5]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0]
    handle = gates.attach(optimizer)
    (model(torch.randn(8, 4)).sum() + gates.penalty(10.0)).backward()
    optimizer.step()
    assert all(((gate >= 0) & (gate <= 1)).all() for gate in gates.parameters())
    assert (model[1].w < 0.5).all()  # from .7, a step of .5 and a strong penalty
    handle.remove()
    for gate in gates.parameters():
        gate.grad = torch.full_like(gate, 1.0)
    optimizer.step()
    optimizer.step()
    assert any((gate < 0).any() for gate in gates.parameters())


def test_shared_gates_cost_in_each_layer_and_are_stepped_once() -> None:
    model = net()
    single = Gates(nn.Sequential(model[1])).penalty(1e-3)
    twin = TriStateReLU(6)
    twin.w = model[1].w
    shared = Gates(nn.Sequential(model[1], twin))
    torch.testing.assert_close(shared.penalty(1e-3), 2 * single)
    assert len(shared.parameters()) == 3


def test_reports_the_architecture() -> None:
    model = net()
    set_gates(model[1], [0.0, 0.5, 1.0, 1.0, 0.4, 0.0], 0.2)
    set_gates(model[3], [1.0] * 5, 0.5)
    gates = Gates(model)
    assert gates.widths() == {"1": 3, "3": 5}
    assert gates.linear() == ["3"]


def test_refuses_what_cannot_work() -> None:
    with pytest.raises(ValueError, match="must have TriStateReLU layers"):
        Gates(nn.Linear(2, 2))
    with pytest.raises(ValueError, match="learn must be one of"):
        TriStateReLU(3, learn="height")


def test_training_closes_what_is_not_needed() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(256, 4, generator=generator)
    y = (x[:, 0] > 0).long()
    model = net(first="width", second="width")
    gates = Gates(model)
    optimizer = torch.optim.Adam(gates.param_groups(lr=5e-3), lr=1e-2)
    gates.attach(optimizer)
    for _ in range(300):
        optimizer.zero_grad()
        (nn.functional.cross_entropy(model(x), y) + gates.penalty(5e-2)).backward()
        optimizer.step()
    assert sum(gates.widths().values()) <= 6
    assert (model(x).argmax(1) == y).float().mean() > 0.97
    settled = torch.cat([gate.detach().flatten() for gate in gates.parameters()])
    assert ((settled < 0.05) | (settled > 0.95)).float().mean() > 0.7
