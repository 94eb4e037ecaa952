"""Small networks twice: as modules, and as the steps of which they consist."""

from __future__ import annotations

from collections.abc import Callable

import torch
from lecun_layers import DOUBLE, draw
from lecun_reference import Step
from torch import Tensor, nn
from torch.nn import functional as F

IMAGES, TOKENS = draw(3, 2, 6, 5), torch.tensor([[0, 3, 1], [2, 2, 4], [1, 0, 0]])
LABELS = torch.tensor([1, 0, 2])


def linear(x: str, layer: str, y: str) -> Step:
    return Step(F.linear, (x, f"{layer}.weight", f"{layer}.bias"), y)


def conv(x: str, layer: str, y: str, **settings: int) -> Step:
    return Step(lambda x, w, b: F.conv2d(x, w, b, **settings), (x, f"{layer}.weight", f"{layer}.bias"), y)


def plain(function: Callable[..., Tensor], x: str, y: str) -> Step:
    return Step(function, (x,), y)


def sequential() -> tuple[nn.Module, Tensor, list[Step]]:
    pool = nn.MaxPool2d(2, ceil_mode=True)
    layers = [nn.Conv2d(2, 3, 3, 2, 1), nn.ReLU(), pool, nn.Flatten(), nn.Linear(12, 4), nn.LeakyReLU(0.3)]
    steps = [
        conv("x", "0", "a", stride=2, padding=1),
        plain(torch.relu, "a", "b"),
        plain(lambda b: F.max_pool2d(b, 2, ceil_mode=True).flatten(1), "b", "c"),
        linear("c", "4", "d"),
        plain(lambda d: F.leaky_relu(d, 0.3), "d", "e"),
        linear("e", "6", "f"),
    ]
    return nn.Sequential(*layers, nn.Linear(4, 3)), IMAGES, steps


class Residual(nn.Module):
    """Eval-mode norm, activations in place, an addition, a difference, dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv0, self.conv1 = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
        self.norm = nn.BatchNorm2d(3)
        with torch.no_grad():
            for t in (self.norm.weight, self.norm.bias, self.norm.running_mean, self.norm.running_var):
                t.uniform_(0.3, 1.5)
        self.relu, self.drop, self.fc = nn.ReLU(inplace=True), nn.Dropout(0.5), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.norm(self.conv0(x)))
        y = self.conv1(x)
        y += x
        x = self.relu(y) - 2 * x
        return self.fc(self.drop(x.mean((2, 3))))


def residual() -> tuple[nn.Module, Tensor, list[Step]]:
    model = Residual()
    mean, var = model.norm.running_mean.double(), model.norm.running_var.double()
    steps = [
        conv("x", "conv0", "a", padding=1),
        Step(lambda a, w, b: F.batch_norm(a, mean, var, w, b), ("a", "norm.weight", "norm.bias"), "b"),
        plain(torch.relu, "b", "c"),
        conv("c", "conv1", "d", padding=1),
        Step(torch.add, ("d", "c"), "e"),
        plain(torch.relu, "e", "f"),
        plain(lambda c: 2 * c, "c", "g"),
        Step(torch.sub, ("f", "g"), "h"),
        plain(lambda h: h.mean((2, 3)), "h", "i"),
        linear("i", "fc", "j"),
    ]
    return model, IMAGES, steps


class Branches(nn.Module):
    """Depthwise and pointwise convolutions, concatenation, chunks, average pooling with borders; a layer used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.point = nn.Conv2d(2, 4, 3, padding=1, groups=2), nn.Conv2d(4, 4, 1)
        self.fc = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.wide(x))
        x = F.relu6(self.point(x) + self.point(-x))
        a, b = x.chunk(2, 1)
        x = F.avg_pool2d(torch.cat([b, a], 1), 3, 3, 1, count_include_pad=False)
        return self.fc(x.flatten(1))


def branches() -> tuple[nn.Module, Tensor, list[Step]]:
    steps = [
        conv("x", "wide", "a", padding=1, groups=2),
        plain(torch.relu, "a", "b"),
        conv("b", "point", "c"),
        plain(torch.neg, "b", "d"),
        conv("d", "point", "e"),
        Step(torch.add, ("c", "e"), "f"),
        plain(F.relu6, "f", "g"),
        plain(lambda g: torch.cat([g[:, 2:], g[:, :2]], 1), "g", "h"),
        plain(lambda h: F.avg_pool2d(h, 3, 3, 1, count_include_pad=False).flatten(1), "h", "i"),
        linear("i", "fc", "j"),
    ]
    return Branches(), IMAGES, steps


class Smooth(nn.Module):
    """Curved activations in sequence, side by side and in place: all need the loss's gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.conv0, self.conv1, self.fc = nn.Conv2d(2, 3, 3, 2), nn.Conv2d(3, 3, 2), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(self.conv0(x)).mul_(3)
        y = F.silu(self.conv1(x), inplace=True)
        y = F.gelu(y) - F.softplus(y).neg_()
        return self.fc(y.mean((2, 3)).sigmoid_())


def smooth() -> tuple[nn.Module, Tensor, list[Step]]:
    steps = [
        conv("x", "conv0", "a", stride=2),
        plain(torch.tanh, "a", "b"),
        plain(lambda b: 3 * b, "b", "c"),
        conv("c", "conv1", "d"),
        plain(F.silu, "d", "e"),
        plain(F.gelu, "e", "f"),
        plain(F.softplus, "e", "g"),
        Step(torch.add, ("f", "g"), "h"),
        plain(lambda h: h.mean((2, 3)), "h", "i"),
        plain(torch.sigmoid, "i", "j"),
        linear("j", "fc", "k"),
    ]
    return Smooth(), IMAGES, steps


class Words(nn.Module):
    """Embedding, layer norm, a residual stream with a scale of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.norm = nn.Embedding(5, 4), nn.LayerNorm(4)
        self.up, self.down, self.fc = nn.Linear(4, 6), nn.Linear(6, 4), nn.Linear(4, 3)
        self.scale = nn.Parameter(torch.linspace(-1, 1, 4))

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens)
        x = x + self.scale * self.down(F.elu(self.up(self.norm(x))))
        return self.fc(x.transpose(1, 2).amax(2))


def words() -> tuple[nn.Module, Tensor, list[Step]]:
    steps = [
        Step(F.embedding, ("x", "table.weight"), "a"),
        Step(lambda a, w, b: F.layer_norm(a, (4,), w, b), ("a", "norm.weight", "norm.bias"), "b", curved=False),
        linear("b", "up", "c"),
        plain(F.elu, "c", "d"),
        linear("d", "down", "e"),
        Step(torch.mul, ("e", "scale"), "f"),
        Step(torch.add, ("a", "f"), "g"),
        plain(lambda g: g.amax(1), "g", "h"),
        linear("h", "fc", "i"),
    ]
    return Words(), TOKENS, steps


NETWORKS = {f.__name__: f for f in (sequential, residual, branches, smooth, words)}


def network(name: str) -> tuple[nn.Module, Tensor, list[Step]]:
    model, x, steps = NETWORKS[name]()
    return model.to(DOUBLE), x, steps
