"""swap_activations: where gates go, which of them are shared, and that nothing changes until they move."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional as F

import resgrow
from resgrow import Gates, merge_linear, swap_activations
from resgrow.nn import TriStateReLU


def gates_of(model: nn.Module) -> dict[str, TriStateReLU]:
    return {name: m for name, m in model.named_modules() if isinstance(m, TriStateReLU)}


def same(model: nn.Module, gated: nn.Module, x: Tensor) -> None:
    model.eval()
    gated.eval()
    with torch.no_grad():
        torch.testing.assert_close(gated(x), model(x))


class Block(nn.Module):
    """As torchvision's: one ReLU module, called twice."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += x
        return self.relu(out)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.stages = nn.Conv2d(3, 8, 3), nn.Sequential(Block(8), Block(8))
        self.down, self.more, self.head = nn.Conv2d(8, 6, 1), Block(6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stages(F.relu(self.stem(x)))
        x = self.more(self.down(x).relu())
        return self.head(x.mean((2, 3)))


def test_streams_share_width_gates_and_nothing_else_does() -> None:
    model, x = Net(), torch.randn(2, 3, 9, 9)
    gated = swap_activations(model, x)
    assert isinstance(gated, GraphModule)
    same(model, gated, x)
    gates = gates_of(gated)
    assert len(gates) == 8  # the stem's, two of each block, and the one before the last stage
    shared: dict[int, list[int]] = {}
    for gate in gates.values():
        shared.setdefault(id(gate.w), []).append(gate.num_channels)
        assert not (gate.d.requires_grad and sum(other.w is gate.w for other in gates.values()) > 1)
    # The first stream: the stem's and two blocks' last; the second: the one before it and its block's last.
    assert sorted(shared.values(), key=len) == [[8], [8], [6], [6, 6], [8, 8, 8]]
    assert not any(isinstance(m, nn.ReLU) for m in gated.modules())


def test_a_closed_channel_of_a_stream_is_closed_in_all_of_it() -> None:
    gated = swap_activations(Net(), x := torch.randn(2, 3, 9, 9)).eval()
    stem = next(gate for name, gate in gates_of(gated).items() if gate.num_channels == 8)
    with torch.no_grad():
        stem.w[2] = 0
    seen: list[Tensor] = []
    for gate in gates_of(gated).values():
        if gate.w is stem.w:
            gate.register_forward_hook(lambda module, args, y: seen.append(y))
    gated(x)
    assert len(seen) == 3
    assert not any(y[:, 2].any() for y in seen)


def test_sequential_keeps_its_class_and_depth_is_learnt_where_layers_could_merge() -> None:
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(4, 5, 3),
        nn.BatchNorm2d(5),
        nn.ReLU(),
        nn.Conv2d(5, 6, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(54, 7),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.Linear(7, 2),
    )
    x = torch.randn(2, 1, 12, 12)
    gated = swap_activations(model, x)
    assert type(gated) is nn.Sequential
    assert gated.training
    assert not any(gate.training != model.training for gate in gates_of(gated).values())
    same(model, gated, x)
    assert {name: gate.learn for name, gate in gates_of(gated).items()} == {
        "1": "width",
        "5": "both",
        "7": "both",
        "10": "width",  # dropout lies between
    }
    assert isinstance(model[1], nn.ReLU)


PAIRS = {
    "linear": (nn.Linear(4, 6), nn.Linear(6, 3)),
    "flattened": (nn.Conv2d(4, 6, 3, padding=1), nn.Flatten(), nn.Linear(6 * 64, 3)),
    "unpadded": (nn.Conv2d(4, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Conv2d(6, 3, 3)),
    "padded": (nn.Conv2d(4, 6, 3), nn.Conv2d(6, 3, 3, padding=1)),
    "padded on one side": (nn.Conv2d(4, 6, 3, bias=False), nn.Conv2d(6, 3, 3, padding=(0, 1))),
    "padded behind 1x1": (nn.Conv2d(4, 6, 1, bias=False), nn.Conv2d(6, 3, 3, padding=1)),
    "padded behind 1x1 with bias": (nn.Conv2d(4, 6, 1), nn.Conv2d(6, 3, 3, padding=1)),
    "padded behind 1x1 and a norm": (nn.Conv2d(4, 6, 1, bias=False), nn.BatchNorm2d(6), nn.Conv2d(6, 3, 3, padding=1)),
    "by name": (nn.Conv2d(4, 6, 3, padding="valid"), nn.Conv2d(6, 3, 3)),
    "reflected": (nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), nn.Conv2d(6, 3, 3)),
}


@pytest.mark.parametrize("name", PAIRS)
def test_depth_is_learnt_exactly_where_merge_linear_would_merge(name: str) -> None:
    first, *rest = copy.deepcopy(PAIRS[name])
    for norm in rest[:-1]:
        if isinstance(norm, nn.BatchNorm2d):
            nn.init.normal_(norm.bias)
    x = torch.randn(2, 4) if name == "linear" else torch.randn(2, 4, 8, 8)
    model = nn.Sequential(first, *rest[:-1], nn.ReLU(), rest[-1]).eval()
    (gate,) = gates_of(swap_activations(model, x)).values()
    opened = nn.Sequential(first, *rest[:-1], TriStateReLU(gate.num_channels, d=1.0), rest[-1]).eval()
    (row,) = merge_linear(opened, x, force=True)
    assert (gate.learn == "both") == row.merged, row.why


def test_pooling_on_either_side_forbids_a_depth_gate() -> None:
    gated = swap_activations(resgrow.nn.lenet5(), torch.randn(1, 1, 28, 28))
    assert [gate.learn for gate in gates_of(gated).values()] == ["width", "width", "both"]
    assert Gates(gated).widths() == {"2": 20, "5": 50, "8": 500}


def test_what_is_learnt_can_be_chosen_by_name() -> None:
    x = torch.randn(1, 1, 28, 28)
    gated = swap_activations(resgrow.nn.lenet5(), x, learn={"2": "neither", "8": "depth"}, d=0.1)
    assert {name: gate.learn for name, gate in gates_of(gated).items()} == {"5": "width", "8": "depth"}
    assert gated[8].d.item() == pytest.approx(0.1)
    assert isinstance(gated[2], nn.ReLU)
    assert {gate.learn for gate in gates_of(swap_activations(resgrow.nn.lenet5(), x, learn="width")).values()} == {
        "width"
    }


def test_residual_networks_of_the_package() -> None:
    model, x = resgrow.nn.resnet(8), torch.randn(2, 3, 32, 32)
    gated = swap_activations(model, x)
    same(model, gated, x)
    widths = [gate.num_channels for gate in gates_of(gated).values()]
    assert sorted(widths) == [16, 16, 16, 32, 32, 64, 64]


def test_it_learns_and_copies() -> None:
    gated = swap_activations(Net(), x := torch.randn(4, 3, 9, 9)).train()
    twin = copy.deepcopy(gated)
    gates = Gates(twin)
    optimizer = torch.optim.Adam(gates.param_groups(), 1e-2)
    gates.attach(optimizer)
    for _ in range(3):
        optimizer.zero_grad()
        (F.cross_entropy(twin(x), torch.arange(4)) + gates.penalty(1e-2)).backward()
        optimizer.step()
    assert any(not torch.equal(a, b) for a, b in zip(twin.parameters(), gated.parameters(), strict=True))
    assert len(gates.parameters()) == 5  # widths; inside the blocks the second convolution is padded
    gated.load_state_dict(twin.state_dict())
    same(twin, gated, x)


def test_activations_that_others_see_written_over_stay() -> None:
    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            z = F.relu(y, inplace=True)
            return self.b(z).relu() + y

    model, x = Written(), torch.randn(3, 4)
    gated = swap_activations(model, x)
    assert len(gates_of(gated)) == 1
    same(model, gated, x)


def test_refuses_what_cannot_work() -> None:
    x = torch.randn(2, 4)
    with pytest.raises(ValueError, match="must have ReLUs"):
        swap_activations(nn.Linear(4, 4), x)
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    with pytest.raises(ValueError, match="learn must be one of"):
        swap_activations(model, x, learn="all")
    with pytest.raises(ValueError, match="must name activations"):
        swap_activations(model, x, learn={"0": "width"})
    with pytest.raises(RuntimeError, match="gates start closed"):
        swap_activations(model, x, w=0.1)
    with pytest.raises(ValueError, match="does not run"):
        swap_activations(model, torch.randn(2, 5))


def test_settled_gates_are_plain_activations() -> None:
    model = nn.Sequential(
        nn.Linear(4, 5),
        TriStateReLU(5, d=0.2, inplace=True),
        nn.Linear(5, 5),
        TriStateReLU(5, d=0.8),
        nn.Linear(5, 5),
        TriStateReLU(5),
    ).eval()
    with torch.no_grad():
        model[5].w[3] = 0.1
    settled = resgrow.settle_gates(model)
    assert [type(settled[i]) for i in (1, 3, 5)] == [nn.ReLU, nn.Identity, TriStateReLU]
    assert settled[1].inplace
    assert not settled[1].training
    same(model, settled, torch.randn(3, 4))
    assert type(model[1]) is TriStateReLU


def test_gated_residual_networks_are_compacted_inside_their_blocks_and_along_streams() -> None:
    model, x = resgrow.nn.resnet(8), torch.randn(2, 3, 32, 32)
    gated = swap_activations(model, x).eval()
    with torch.no_grad():
        for gate in gates_of(gated).values():
            gate.w[1] = 0.1
    small = resgrow.settle_gates(resgrow.compact(gated, x))
    same(gated, small, x)
    assert not gates_of(small)
    widths = [module.out_channels for module in small.modules() if isinstance(module, nn.Conv2d)]
    assert set(widths) == {15, 31, 63}
