"""Networks that can be deeper, plain and residual, and what has to hold of them then."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from structure_nets import assert_alike, everything
from surgery_nets import randomised
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import SGD, Optimizer

from resgrow.nn import KeyedModuleList, Residual, TriStateReLU, resnet

X = torch.randn(4, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
VECTORS = torch.randn(6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
SEQUENCES = torch.randn(3, 7, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


class PreActivation(nn.Module):
    """Two branches at once, scaled, and a third behind them."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.norm, self.a, self.b = nn.BatchNorm2d(width), nn.Conv2d(width, width, 3, padding=1), nn.Conv2d(width, 4, 1)
        self.back, self.mix = nn.Conv2d(4, width, 1, bias=False), nn.Conv2d(width, width, 1)
        self.scale = nn.Parameter(torch.ones(width, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x).relu()
        x = x + 0.5 * self.a(y) + self.back(F.silu(self.b(y)))
        return x.add(F.dropout(self.scale * self.mix(x).tanh(), 0.0))


def preactivation() -> nn.Module:
    stem, head = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 2, 1)
    return nn.Sequential(stem, nn.Sequential(PreActivation(), PreActivation()), head)


class Strided(nn.Module):
    """Does not ask whether it has a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.branch = nn.Sequential(nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 6, 1))
        self.shortcut = nn.Sequential(nn.AvgPool2d(2), nn.Conv2d(3, 6, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.branch(x) + self.shortcut(x)


def strided() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sequential(Strided()), nn.Conv2d(6, 2, 1))


def one_to_one() -> nn.Module:
    return nn.Sequential(nn.Linear(5, 5), Residual(nn.Sequential(nn.Linear(5, 9), nn.Tanh(), nn.Linear(9, 5))))


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(8, 2, 12, 0.0, "gelu", batch_first=True, norm_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def after_norm() -> nn.Module:
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 12, 0.0, batch_first=True), 2)


# The model, its inputs, what deepen is told, the new module, and what of it is zero.
BLOCKS: dict[str, tuple[Callable[[], nn.Module], Tensor, dict[str, Any], str, set[str]]] = {
    "stage": (lambda: resnet(14, 0.5), X, {"name": "layer2"}, "layer2.2", {"bn2.weight", "bn2.bias"}),
    "block": (lambda: resnet(14, 0.5), X, {"name": "layer3.0"}, "layer3.0_1", {"bn2.weight", "bn2.bias"}),
    "only block": (lambda: resnet(8, 0.5), X, {"name": "layer2"}, "layer2.1", {"bn2.weight", "bn2.bias"}),
    "only block, shortcut called": (strided, X, {"name": "1"}, "1.1", {"branch.1.weight", "branch.1.bias"}),
    "last block": (lambda: resnet(14, 0.5), X, {"name": "layer1.1"}, "layer1.2", {"bn2.weight", "bn2.bias"}),
    "branches": (preactivation, X, {"name": "1"}, "1.2", {"a.weight", "a.bias", "back.weight", "scale"}),
    "the model": (one_to_one, VECTORS, {"name": ""}, "2", {"branch.2.weight", "branch.2.bias"}),
    "transformer": (
        encoder,
        SEQUENCES,
        {"name": "layers"},
        "layers.2",
        {"self_attn.out_proj.weight", "self_attn.out_proj.bias", "linear2.weight", "linear2.bias"},
    ),
    "transformer, between": (
        encoder,
        SEQUENCES,
        {"name": "layers.0"},
        "layers.0_1",
        {"self_attn.out_proj.weight", "self_attn.out_proj.bias", "linear2.weight", "linear2.bias"},
    ),
    "norms behind": (
        after_norm,
        SEQUENCES,
        {"name": "layers", "init": "residual"},
        "layers.2",
        {"branch.norm2.weight", "branch.norm2.bias"},
    ),
}


def plain(*layers: nn.Module) -> Callable[[], nn.Module]:
    return lambda: nn.Sequential(*copy.deepcopy(layers))


def with_act(act: nn.Module) -> Callable[[], nn.Module]:
    return plain(nn.Linear(5, 6), act, nn.Linear(6, 2))


# For both inits: the model, its inputs, and the layer.
LAYERS: dict[str, tuple[Callable[[], nn.Module], Tensor, str]] = {
    "linear": (with_act(nn.ReLU()), VECTORS, "0"),
    "relu6": (with_act(nn.ReLU6()), VECTORS, "0"),
    "hardtanh": (with_act(nn.Hardtanh()), VECTORS, "0"),
    "identity": (with_act(nn.Identity()), VECTORS, "0"),
    "gated": (with_act(TriStateReLU(6)), VECTORS, "0"),
    "in place": (with_act(nn.ReLU(inplace=True)), VECTORS, "0"),
    "without bias": (plain(nn.Linear(5, 6, bias=False), nn.ReLU(), nn.Linear(6, 2)), VECTORS, "0"),
    "dropout": (plain(nn.Linear(5, 6), nn.Dropout(0.5), nn.ReLU(), nn.Linear(6, 2)), VECTORS, "0"),
    "positions": (plain(nn.Linear(8, 6), nn.ReLU(), nn.Linear(6, 2)), SEQUENCES, "0"),
    "1d": (plain(nn.Conv1d(7, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(24, 2)), SEQUENCES, "0"),
    "3d": (plain(nn.Conv3d(3, 4, (1, 3, 2)), nn.ReLU(), nn.Conv3d(4, 1, 1)), X[:, :, None], "0"),
    "strides, dilation, even": (plain(nn.Conv2d(3, 4, (2, 3), 2, dilation=2), nn.ReLU(), nn.Conv2d(4, 2, 1)), X, "0"),
    "depthwise, circular": (
        plain(nn.Conv2d(3, 6, 3, padding=1, groups=3, padding_mode="circular"), nn.ReLU(), nn.Conv2d(6, 2, 1)),
        X,
        "0",
    ),
    "norm": (plain(nn.Conv2d(3, 6, 3, bias=False), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, 2, 1)), X, "0"),
    "norm of vectors": (plain(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 2)), VECTORS, "0"),
    "pool before": (plain(nn.Conv2d(3, 6, 3), nn.MaxPool2d(2), nn.ReLU(), nn.Conv2d(6, 2, 1)), X, "0"),
    "nested": (lambda: nn.Sequential(with_act(nn.ReLU())(), nn.ReLU()), VECTORS, "0.0"),
    "up": (plain(nn.ConvTranspose2d(3, 4, 2, 2), nn.ReLU(), nn.Conv2d(4, 2, 1)), X, "0"),
}
ANY: dict[str, tuple[Callable[[], nn.Module], Tensor, str]] = {
    type(act).__name__: (with_act(act), VECTORS, "0")
    for act in (nn.Tanh(), nn.GELU(), nn.Sigmoid(), nn.SiLU(), nn.PReLU(6), nn.LeakyReLU(), nn.Softplus())
} | {
    "nothing behind": (with_act(nn.ReLU()), VECTORS, "2"),
    "layer norm": (plain(nn.Linear(5, 6), nn.LayerNorm(6), nn.GELU(), nn.Linear(6, 2)), VECTORS, "0"),
    "group norm": (plain(nn.Conv2d(3, 6, 3), nn.GroupNorm(2, 6), nn.SiLU(), nn.Conv2d(6, 2, 1)), X, "0"),
}


def made(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return randomised(make()).double().eval()


def run(model: nn.Module, x: Tensor, training: bool = False) -> Tensor:
    """Leaves running statistics as they are."""
    with torch.no_grad():
        return (copy.deepcopy(model).train() if training else model)(x)


def step(model: nn.Module, x: Tensor, optimizer: Optimizer) -> None:
    model.train()
    optimizer.zero_grad()
    out = model(x)
    (out * torch.arange(out.numel()).view_as(out).sin()).sum().backward()
    optimizer.step()
    model.eval()


def check_learning(model: nn.Module, path: str, x: Tensor) -> None:
    """Every new parameter has a gradient within two steps, and moves."""
    new = dict(model.get_submodule(path).named_parameters())
    start = {name: parameter.detach().clone() for name, parameter in new.items()}
    optimizer, seen = SGD(model.parameters(), lr=1e-2), dict.fromkeys(new, False)
    for _ in range(2):
        step(model, x, optimizer)
        for name, parameter in new.items():
            seen[name] |= parameter.grad is not None and bool(parameter.grad.any())
    assert all(seen.values()), seen
    assert not [name for name, parameter in new.items() if torch.equal(parameter, start[name])]


def check_way_back(model: nn.Module, path: str, before: list[Any]) -> None:
    back = copy.deepcopy(model)
    parent, _, key = path.rpartition(".")
    delattr(back.get_submodule(parent), key)
    if type(back.get_submodule(parent)) is KeyedModuleList:
        back.get_submodule(parent).__class__ = nn.ModuleList
    assert_alike(everything(back), before)
