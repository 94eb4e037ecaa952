"""The networks and batches on which passes for diagonal curvature compete."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

import resgrow

Problem = tuple[nn.Module, Tensor, Tensor]


class PooledResNet(resgrow.nn.ResNet):
    """The same network with its pooling as modules: BackPACK's converter knows no ``mean``."""

    def __init__(self, net: resgrow.nn.ResNet) -> None:
        super().__init__(net.conv1, net.bn1, net.act1, net.layer1, net.layer2, net.layer3, net.fc)
        self.pool, self.flatten = nn.AdaptiveAvgPool2d(1), nn.Flatten()

    def forward(self, x: Tensor) -> Tensor:
        x = self.act1(self.bn1(self.conv1(x)))
        return self.fc(self.flatten(self.pool(self.layer3(self.layer2(self.layer1(x))))))


class ResNet18(nn.Module):
    """He et al. 2016, table 1, with ten classes: exact curvature takes a backward pass per class."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)
        )
        widths, blocks = (64, 64, 128, 256, 512), []
        for inputs, outputs in pairwise(widths):
            blocks += [_block(inputs, outputs, 1 if inputs == outputs else 2), _block(outputs, outputs, 1)]
        self.blocks = nn.Sequential(*blocks)
        self.pool, self.flatten, self.fc = nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.flatten(self.pool(self.blocks(self.stem(x)))))


def _block(inputs: int, outputs: int, stride: int) -> resgrow.nn.BasicBlock:
    short = None
    if stride != 1 or inputs != outputs:
        short = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
    conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
    conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
    norms = nn.BatchNorm2d(outputs), nn.BatchNorm2d(outputs)
    return resgrow.nn.BasicBlock(conv1, norms[0], nn.ReLU(), conv2, norms[1], nn.ReLU(), short)


class SequenceClassifier(nn.Module):
    """Six encoder layers on ``(N, 64, 256)`` and a linear classifier on their mean over positions."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(256, 4, 1024, dropout=0.0, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 6, enable_nested_tensor=False), nn.Linear(256, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.encoder(x).mean(1))


def lenet5() -> Problem:
    return resgrow.nn.lenet5(), torch.randn(128, 1, 28, 28), torch.randint(10, (128,))


def resnet20() -> Problem:
    model = _with_statistics(PooledResNet(resgrow.nn.resnet(20)))
    return model, torch.randn(64, 3, 32, 32), torch.randint(10, (64,))


def resnet18() -> Problem:
    return _with_statistics(ResNet18()), torch.randn(8, 3, 224, 224), torch.randint(10, (8,))


def transformer() -> Problem:
    return SequenceClassifier(), torch.randn(16, 64, 256), torch.randint(10, (16,))


def _with_statistics(model: nn.Module) -> nn.Module:
    """Norms as after some training: no gain of zero, and statistics that are not those of a fresh module."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
    return model


PROBLEMS: dict[str, Callable[[], Problem]] = {
    "LeNet-5, batch 128": lenet5,
    "ResNet-20, batch 64": resnet20,
    "ResNet-18 at 224x224, batch 8": resnet18,
    "Transformer, 6 layers, batch 16": transformer,
}


def prepare(name: str, layout: torch.memory_format = torch.channels_last) -> Problem:
    """A fresh, seeded copy in eval mode; sequences have no layout."""
    torch.manual_seed(0)
    model, x, y = PROBLEMS[name]()
    if x.dim() == 4:
        model, x = model.to(memory_format=layout), x.to(memory_format=layout)
    return model.eval(), x, y
