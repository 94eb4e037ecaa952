"""LeNet-5 in other widths: what searchers choose among, how it is trained, and what that costs."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from resgrow.data import Dataset
from resgrow.experiments.config import FitConfig
from resgrow.experiments.models import as_network
from resgrow.experiments.training import total_steps
from resgrow.nn import lenet5
from resgrow.surgery.count import count_macs


@dataclass(frozen=True)
class Widths:
    """Neurons of LeNet-5's hidden layers. ``third`` is None where the third layer is merged into the last."""

    first: int
    second: int
    third: int | None

    @property
    def neurons(self) -> int:
        """As the gates' penalty counts them: those of layers that are not linear."""
        return self.first + self.second + (self.third or 0)

    def as_list(self) -> list[int | None]:
        """As it stands in results."""
        return [self.first, self.second, self.third]

    def __str__(self) -> str:
        return "-".join(str(width) for width in (*self.as_list(), 10) if width is not None)


LENET5 = Widths(20, 50, 500)


def build(widths: Widths, data: Dataset, seed: int) -> nn.Module:
    """The network, with weights drawn from ``seed``."""
    channels, _, side = data.image_shape
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers: list[Any] = list(lenet5(channels, len(data.classes), side))
        flat = widths.second * layers[7].in_features // layers[3].out_channels
        layers[0] = nn.Conv2d(channels, widths.first, 5)
        layers[3] = nn.Conv2d(widths.first, widths.second, 5)
        if widths.third is None:
            layers[7:] = [nn.Linear(flat, len(data.classes))]
        else:
            layers[7:] = [nn.Linear(flat, widths.third), nn.ReLU(), nn.Linear(widths.third, len(data.classes))]
    return as_network(nn.Sequential(*layers))


def hold_out(data: Dataset) -> Dataset:
    """Training images with a twelfth of them, always the same, in the place of the test images.

    Of MNIST's 60,000 these are 5,000.
    """
    count = len(data.train_y)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(0))
    kept, held = order[: count - count // 12], order[count - count // 12 :]
    return replace(
        data,
        train_x=data.train_x[kept],
        train_y=data.train_y[kept],
        test_x=data.train_x[held],
        test_y=data.train_y[held],
    )


def training_macs(model: nn.Module, data: Dataset, config: FitConfig) -> int:
    """Multiply-accumulates of convolutions and linear layers in one training of ``model``, as it is, to the end.

    Three forward passes' worth for each training image seen, since the gradients of inputs and of weights take one
    each, and one for each of ``data``'s test images after each epoch.
    """
    seen = total_steps(config, data) * min(config.batch_size, len(data.train_y))
    return count_macs(model, data.train_x[:1]) * (3 * seen + config.epochs * len(data.test_y))
