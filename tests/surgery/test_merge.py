"""merge_linear: exact wherever it merges, and a reason wherever it does not."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from resgrow.nn import TriStateReLU
from resgrow.surgery.merge import Merged, merge_linear


def gate(channels: int, d: float = 0.9, closed: int = 0) -> TriStateReLU:
    layer = TriStateReLU(channels, d=d)
    with torch.no_grad():
        layer.w[:closed] = 0.2
    return layer


def norm(channels: int, kind: type[nn.Module] = nn.BatchNorm2d) -> nn.Module:
    layer = kind(channels)
    for value in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
        nn.init.uniform_(value, 0.5, 1.5)
    return layer


def merged(model: nn.Module, x: Tensor, **options: object) -> Merged:
    """With outputs equal in float64, and the model as it was."""
    model, x = model.double().eval(), x.double()
    before = copy.deepcopy(model.state_dict())
    found = merge_linear(model, x, **options)
    with torch.no_grad():
        expected, actual = model(x), found.model(x)
    assert (expected - actual).abs().max() <= 1e-12 * expected.abs().max()
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    return found


MERGED = {
    "linear": (lambda: [nn.Linear(12, 5), gate(5, closed=2), nn.Linear(5, 3)], (4, 12)),
    "linear without bias": (lambda: [nn.Linear(12, 5, bias=False), nn.Linear(5, 3, bias=False)], (4, 12)),
    "linear, first bias only": (lambda: [nn.Linear(12, 5), gate(5), nn.Linear(5, 3, bias=False)], (4, 12)),
    "linear on sequences": (lambda: [nn.Linear(12, 5), nn.Identity(), nn.Linear(5, 3)], (4, 7, 12)),
    "1x1 after 3x3": (lambda: [nn.Conv2d(4, 6, 3, padding=1), gate(6, closed=1), nn.Conv2d(6, 5, 1)], (2, 4, 8, 7)),
    "1x1 after norm": (
        lambda: [nn.Conv2d(4, 6, 3, 2, 1, bias=False), norm(6), gate(6), nn.Conv2d(6, 3, 1)],
        (2, 4, 9, 9),
    ),
    "padded 3x3 after bare 1x1": (
        lambda: [nn.Conv2d(4, 6, 1, bias=False), gate(6), nn.Conv2d(6, 3, 3, padding=1)],
        (2, 4, 6, 6),
    ),
    "strides": (lambda: [nn.Conv2d(3, 8, 2, 2), gate(8), nn.Conv2d(8, 3, 2, 2)], (2, 3, 17, 19)),
    "padded after strided 1x1": (
        lambda: [nn.Conv2d(3, 8, 1, 3, 1, bias=False), gate(8), nn.Conv2d(8, 2, 3, 2, 2)],
        (2, 3, 12, 13),
    ),
    "dilations": (lambda: [nn.Conv2d(3, 8, 3, dilation=2), gate(8), nn.Conv2d(8, 2, 2, dilation=4)], (2, 3, 15, 16)),
    "row after column": (lambda: [nn.Conv2d(9, 9, (3, 1), padding=(1, 0)), nn.Conv2d(9, 2, (1, 3))], (2, 9, 7, 7)),
    "equal groups": (lambda: [nn.Conv2d(8, 8, 3, groups=4), gate(8), nn.Conv2d(8, 8, 1, groups=4)], (2, 8, 6, 6)),
    "groups with a common part": (
        lambda: [nn.Conv2d(12, 12, 1, groups=6), gate(12), nn.Conv2d(12, 12, 3, groups=4)],
        (2, 12, 6, 6),
    ),
    "pointwise after depthwise": (
        lambda: [nn.Conv2d(6, 6, 3, groups=6), gate(6), nn.Conv2d(6, 4, 1)],
        (2, 6, 6, 6),
    ),
    "matrix after convolution": (
        lambda: [nn.Conv2d(2, 9, 3, 2, 1), gate(9, closed=3), nn.Flatten(), nn.Linear(9 * 16, 4)],
        (3, 2, 7, 8),
    ),
    "gates and norms behind the flatten": (
        lambda: [
            nn.Conv2d(2, 3, 3),
            nn.Flatten(),
            gate(75, closed=3),
            norm(75, nn.BatchNorm1d),
            gate(75),
            nn.Linear(75, 4),
        ],
        (3, 2, 7, 7),
    ),
    "three in a row": (
        lambda: [nn.Linear(9, 8), gate(8), nn.Linear(8, 8), gate(8), nn.Linear(8, 7), gate(7, d=0.2), nn.Linear(7, 2)],
        (5, 9),
    ),
}


@pytest.mark.parametrize("name", MERGED)
def test_merges_are_exact(name: str) -> None:
    make, shape = MERGED[name]
    model = nn.Sequential(*make())
    found = merged(model, torch.randn(shape), force=True)
    layers = [m for m in found.model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    count = sum(isinstance(m, nn.Conv2d | nn.Linear) for m in model)
    assert len(layers) == (2 if name == "three in a row" else 1) < count
    assert sum(row.merged for row in found) == count - len(layers)


@settings(max_examples=80, deadline=None)
@given(
    kernels=st.tuples(*[st.tuples(st.integers(1, 3), st.integers(1, 3))] * 2),
    strides=st.tuples(*[st.tuples(st.integers(1, 3), st.integers(1, 3))] * 2),
    dilations=st.tuples(*[st.tuples(st.integers(1, 3), st.integers(1, 3))] * 2),
    paddings=st.tuples(*[st.tuples(st.integers(0, 2), st.integers(0, 2))] * 2),
    groups=st.tuples(st.sampled_from([1, 2, 3, 6]), st.sampled_from([1, 2, 3, 6])),
    biases=st.tuples(st.booleans(), st.booleans()),
    size=st.tuples(st.integers(14, 24), st.integers(14, 24)),
)
def test_any_two_convolutions(kernels, strides, dilations, paddings, groups, biases, size) -> None:
    first, second = (
        nn.Conv2d(6, 6, kernels[i], strides[i], paddings[i], dilations[i], groups[i], biases[i]) for i in range(2)
    )
    model, x = nn.Sequential(first, second).double(), torch.randn(2, 6, *size, dtype=torch.float64)
    try:
        model(x)
    except RuntimeError:
        return  # the second does not fit
    found = merged(model, x, force=True)
    (row,) = found
    exact = all(p == 0 or k == 1 for p, k in zip(paddings[1], kernels[0], strict=True))
    exact = exact and (not any(paddings[1]) or not biases[0])
    assert row.merged == exact, row.why


CONV = {"padding": 1}
REFUSED: dict[str, tuple[Callable[[], list[nn.Module]], tuple[int, ...], str]] = {
    "closed gate": (lambda: [nn.Linear(4, 5), gate(5, d=0.4), nn.Linear(5, 3)], (2, 4), "gate is closed"),
    "border": (lambda: [nn.Conv2d(4, 4, 3, **CONV), gate(4), nn.Conv2d(4, 4, 3, **CONV)], (2, 4, 6, 6), "border"),
    "bias": (lambda: [nn.Conv2d(4, 4, 1), gate(4), nn.Conv2d(4, 4, 3, **CONV)], (2, 4, 6, 6), "has its bias"),
    "norm without statistics": (
        lambda: [nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4, track_running_stats=False), gate(4), nn.Conv2d(4, 4, 1)],
        (2, 4, 6, 6),
        "no running statistics",
    ),
    "reflection": (
        lambda: [nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), gate(4), nn.Conv2d(4, 4, 1)],
        (2, 4, 6, 6),
        "other than zeros",
    ),
    "padding by name": (
        lambda: [nn.Conv2d(4, 4, 3, padding="same"), gate(4), nn.Conv2d(4, 4, 1)],
        (2, 4, 6, 6),
        "by name",
    ),
    "dropout": (lambda: [nn.Linear(4, 5), gate(5), nn.Dropout(), nn.Linear(5, 3)], (2, 4), "dropout"),
    "flattened matrix": (
        lambda: [nn.Linear(4, 5), nn.Flatten(), nn.Linear(15, 3)],
        (2, 3, 4),
        "flattened in between",
    ),
    "gate over rows": (
        lambda: [nn.Linear(4, 5), gate(3), nn.Linear(5, 3)],
        (2, 3, 4),
        "does not count",
    ),
    "matrix of pixels": (lambda: [nn.Conv2d(4, 4, 1), gate(4), nn.Linear(6, 3)], (2, 4, 5, 6), "not one map"),
    "cost": (lambda: [nn.Linear(30, 2), gate(2), nn.Linear(2, 30)], (2, 30), "930 params would"),
    "larger kernel": (lambda: [nn.Conv2d(4, 4, 3), gate(4), nn.Conv2d(4, 4, 3)], (2, 4, 9, 9), "params would take"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_stays_apart_and_why(name: str) -> None:
    make, shape, why = REFUSED[name]
    found = merged(nn.Sequential(*make()), torch.randn(shape))
    (row,) = found
    assert not row.merged
    assert why in row.why
    assert why in str(found)


def test_no_row_where_a_relu_lies_between() -> None:
    assert not merged(nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3)), torch.randn(2, 4)).rows


class Branched(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.act, self.second = nn.Linear(4, 4), gate(4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.act(self.first(x))
        return self.second(y) + y


class Twice(Branched):
    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.act(self.first(self.second(x))))


class Flattened(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.act, self.head = nn.Conv2d(1, 8, 3), gate(8), nn.Linear(8 * 4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.flatten(self.act(self.conv(x)), 1))


def test_layers_of_any_module() -> None:
    (row,) = merged(Branched(), torch.randn(3, 4))
    assert not row.merged
    assert "read in 2 places" in row.why
    assert not any(row.merged for row in merged(Twice(), torch.randn(3, 4)))
    found = merged(Flattened(), torch.randn(3, 1, 4, 4))
    assert isinstance(found.model, Flattened)
    assert type(found.model.conv) is nn.Identity
    assert tuple(found.model.head.weight.shape) == (2, 16)


def test_cost_in_macs_decides_otherwise_than_in_parameters() -> None:
    # 3x3 with stride 2 after 1x1: fewer weights than both, but the 1x1 was cheap where pixels are few.
    model = nn.Sequential(nn.Conv2d(8, 8, 2, 2), gate(8), nn.Conv2d(8, 2, 2))
    x = torch.randn(1, 8, 8, 8)
    assert [row.merged for row in merged(model, x)] == [True]
    (row,) = merged(model, x, cost="macs")
    assert row.before == 4096 + 2 * 8 * 4 * 9
    assert row.after == 2 * 8 * 16 * 9


def test_the_one_layer_goes_on_learning_where_the_first_did() -> None:
    model = nn.Sequential(nn.Linear(6, 5), gate(5), nn.Linear(5, 3)).train()
    model[0].requires_grad_(False)
    small = merge_linear(model, torch.randn(2, 6), force=True).model
    assert small[0].training
    assert not small[0].weight.requires_grad
    assert small[0].weight.dtype == torch.float32


def test_refuses_what_cannot_work() -> None:
    model = nn.Sequential(nn.Linear(4, 4))
    with pytest.raises(ValueError, match="cost must be one of"):
        merge_linear(model, torch.randn(2, 4), cost="time")
    with pytest.raises(ValueError, match="does not run"):
        merge_linear(model, torch.randn(2, 5))
    hooked = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 1))
    hooked.register_forward_hook(lambda module, args, y: y * (2 if type(module[1]) is nn.Linear else 1))
    with pytest.raises(RuntimeError, match="outputs must agree"):
        merge_linear(hooked, torch.randn(2, 4))
