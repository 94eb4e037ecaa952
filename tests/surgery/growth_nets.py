"""Networks with a layer that can grow: what lies between it and its readers is linear, or becomes so by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from structure_nets import Net
from torch import Tensor, nn
from torch.nn import functional as F

LOSS = nn.CrossEntropyLoss()


def branches(m: Any, x: Tensor) -> Tensor:
    """Two readers of one layer, at different sizes, and a stream that goes on beside them."""
    x = m.stem(x)
    h = m.make(x)
    a, b = m.one(h), m.other(F.avg_pool2d(h, 2))
    return (a.mean((2, 3)) + b.mean((2, 3)) + m.beside(x).mean((2, 3)))[:, :4]


def tokens(m: Any, x: Tensor) -> Tensor:
    """Positions of an image as a sequence."""
    h = m.make(x).flatten(2).transpose(1, 2)
    return m.head(torch.tanh(m.read(h)).mean(1))


# Name -> (network, the layer that grows, its input without the batch); everything in front of its readers is linear.
LINEAR: dict[str, tuple[Callable[[], nn.Module], str, tuple[int, ...]]] = {
    "layers": (lambda: nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 4)), "0", (5,)),
    "no biases": (lambda: nn.Sequential(nn.Linear(5, 3, bias=False), nn.Linear(3, 4, bias=False)), "0", (5,)),
    "sequences": (lambda: nn.Sequential(nn.Linear(5, 3), nn.Dropout(), nn.Linear(3, 4), Mean()), "0", (6, 5)),
    "convolutions": (
        lambda: nn.Sequential(
            nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 4, (3, 2), stride=2, padding=(2, 1), dilation=(1, 2)), *end()
        ),
        "0",
        (2, 7, 7),
    ),
    "one dimension": (
        lambda: nn.Sequential(
            nn.Conv1d(2, 3, 3, 2, padding_mode="circular", padding=1), nn.Conv1d(3, 4, 2, padding="same"), *end()
        ),
        "0",
        (2, 9),
    ),
    "three dimensions": (
        lambda: nn.Sequential(nn.Conv3d(1, 2, 2), nn.AvgPool3d(2), nn.Conv3d(2, 4, 2), *end()),
        "0",
        (1, 5, 5, 5),
    ),
    "pooled and flattened": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 3), nn.AvgPool2d(2, 1, 1), nn.Flatten(), nn.Linear(32, 4)), "0", (1, 5, 5)
    ),
    "normed": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.AdaptiveAvgPool2d(2), nn.Conv2d(3, 4, 2), nn.Flatten()
        ),
        "0",
        (1, 6, 6),
    ),
    "averaged, halved, turned round": (
        lambda: Net(
            lambda m, x: m.read(-(m.make(x).mean((2, 3)) / 2)), make=nn.Conv2d(1, 3, 2), read=nn.Linear(3, 4)
        ),
        "make",
        (1, 5, 5),
    ),
    "larger": (
        lambda: nn.Sequential(nn.Conv2d(1, 2, 2), nn.Upsample(scale_factor=2), nn.Conv2d(2, 4, 2), *end()),
        "0",
        (1, 4, 4),
    ),
    "a sequence of positions": (
        lambda: Net(tokens, make=nn.Conv2d(1, 3, 2), read=nn.Linear(3, 5), head=nn.Linear(5, 4)), "make", (1, 4, 4)
    ),
    "channels last, flattened": (
        lambda: Net(lambda m, x: m.read(m.make(x).permute(0, 2, 3, 1).flatten(1)), make=nn.Conv2d(1, 3, 2),
                    read=nn.Linear(27, 4)),
        "make",
        (1, 4, 4),
    ),
    "several readers": (
        lambda: Net(branches, stem=nn.Conv2d(1, 2, 1), make=nn.Conv2d(2, 3, 2), one=nn.Conv2d(3, 4, 2, 2),
                    other=nn.Conv2d(3, 4, 2), beside=nn.Conv2d(2, 4, 1)),
        "make",
        (1, 6, 6),
    ),
}  # fmt: skip


class Mean(nn.Module):
    """Over all between samples and features."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1)


def end() -> tuple[nn.Module, ...]:
    return nn.Tanh(), nn.Flatten(), nn.LazyLinear(4)


# With activations between, to be trained. Single units of which are hardly ever dead.
ACTIVE: dict[str, tuple[Callable[[], nn.Module], str, tuple[int, ...]]] = {
    "perceptron": (lambda: nn.Sequential(nn.Linear(5, 3), nn.ReLU(), nn.Linear(3, 4)), "0", (5,)),
    "lenet": (
        lambda: nn.Sequential(
            *(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(2, 3, 2), nn.ReLU(), nn.MaxPool2d(2)),
            *(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Linear(5, 4)),
        ),
        "3",
        (1, 12, 12),
    ),
    "normed": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 3, 3, bias=False), nn.BatchNorm2d(3), nn.PReLU(3), nn.Conv2d(3, 4, 2), nn.ReLU(), Positions()
        ),
        "0",
        (1, 6, 6),
    ),
    "gelu on sequences": (lambda: nn.Sequential(nn.Linear(5, 3), nn.GELU(), nn.Linear(3, 4), Mean()), "0", (6, 5)),
}  # fmt: skip


class Positions(nn.Module):
    """Global average pooling."""

    def forward(self, x: Tensor) -> Tensor:
        return x.mean((2, 3))


def made(
    nets: dict[str, tuple[Callable[[], nn.Module], str, tuple[int, ...]]], name: str, samples: int = 48
) -> tuple[nn.Module, str, Tensor, Tensor]:
    """The network, the layer that grows, inputs and targets."""
    torch.manual_seed(0)
    make, layer, shape = nets[name]
    model = make().double()
    x = torch.randn(samples, *shape, dtype=torch.float64)
    model.eval()(x[:1])
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            for tensor in (module.weight, module.bias, module.running_mean, module.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)
    return model, layer, x, torch.randint(0, 4, (samples,))
