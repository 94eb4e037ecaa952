"""CIFAR-style residual networks, 6n+2 layers (He et al. 2016, section 4.2).

`ResNet` and `BasicBlock` are composed of ready-made parts, so a network whose blocks have shrunk to uneven inner
widths is built the same way as a fresh one; `resnet` makes the fresh ones.
"""

import torch
from torch import nn


class BasicBlock(nn.Module):
    """``act2(bn2(conv2(act1(bn1(conv1(x))))) + shortcut(x))``; the shortcut is ``downsample`` or the identity.

    Only the channels between ``conv1`` and ``conv2`` are private to the block.
    """

    def __init__(
        self,
        conv1: nn.Conv2d,
        bn1: nn.BatchNorm2d,
        act1: nn.Module,
        conv2: nn.Conv2d,
        bn2: nn.BatchNorm2d,
        act2: nn.Module,
        downsample: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.conv1 = conv1
        self.bn1 = bn1
        self.act1 = act1
        self.conv2 = conv2
        self.bn2 = bn2
        self.act2 = act2
        self.downsample = downsample

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(N, C, H, W)`` to ``(N, C', H', W')``."""
        shortcut = x if self.downsample is None else self.downsample(x)
        inner = self.act1(self.bn1(self.conv1(x)))
        return self.act2(self.bn2(self.conv2(inner)) + shortcut)


class ResNet(nn.Module):
    """A stem, three stages of `BasicBlock` and a linear classifier on globally averaged features."""

    def __init__(
        self,
        conv1: nn.Conv2d,
        bn1: nn.BatchNorm2d,
        act1: nn.Module,
        layer1: nn.Sequential,
        layer2: nn.Sequential,
        layer3: nn.Sequential,
        fc: nn.Linear,
    ) -> None:
        super().__init__()
        self.conv1 = conv1
        self.bn1 = bn1
        self.act1 = act1
        self.layer1 = layer1
        self.layer2 = layer2
        self.layer3 = layer3
        self.fc = fc

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(N, in_channels, H, W)`` to logits ``(N, num_classes)``."""
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(x.mean((2, 3)))


def resnet(depth: int = 20, width: float = 1.0, in_channels: int = 3, num_classes: int = 10) -> ResNet:
    """A CIFAR-style ResNet with stages of 16, 32 and 64 channels times ``width``.

    The gain of each block's last norm starts at zero, so that every block starts as its shortcut.

    Args:
        depth: 6n+2 with n >= 1 (8, 20, 56, ...).
        width: factor on the stages' channels; each stage keeps at least one channel.
        in_channels: channels of the input images.
        num_classes: number of logits.

    Raises:
        ValueError: depth is not 6n+2, width is not positive, or a count is below 1.
    """
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"resnet: depth must be 6n+2 with n >= 1 (got {depth}); use 8, 20 or 56")
    if not 0 < width < float("inf"):
        raise ValueError(f"resnet: width must be a positive number (got {width})")
    if in_channels < 1 or num_classes < 1:
        raise ValueError(
            "resnet: in_channels and num_classes must be at least 1 "
            f"(got in_channels={in_channels}, num_classes={num_classes})"
        )
    blocks = (depth - 2) // 6
    widths = [max(1, round(base * width)) for base in (16, 32, 64)]
    inputs = [widths[0], widths[0], widths[1]]
    layer1, layer2, layer3 = (
        _stage(blocks, inner, outer, stride) for inner, outer, stride in zip(inputs, widths, (1, 2, 2), strict=True)
    )
    model = ResNet(
        _conv(in_channels, widths[0], 3),
        nn.BatchNorm2d(widths[0]),
        nn.ReLU(),
        layer1,
        layer2,
        layer3,
        nn.Linear(widths[2], num_classes),
    )
    initialise(model)
    return model


def initialise(model: ResNet) -> None:
    """Draws new convolutions in place and sets the gains of the blocks' last norms to zero, as `resnet` starts.

    Also for blocks of uneven inner widths. The classifier and the other norms are left alone.
    """
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        elif isinstance(module, BasicBlock):
            nn.init.zeros_(module.bn2.weight)


def _conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False)


def _block(inputs: int, outputs: int, stride: int) -> BasicBlock:
    downsample = None
    if stride != 1 or inputs != outputs:
        downsample = nn.Sequential(_conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))
    return BasicBlock(
        _conv(inputs, outputs, 3, stride),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
        _conv(outputs, outputs, 3),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
        downsample,
    )


def _stage(blocks: int, inputs: int, outputs: int, stride: int) -> nn.Sequential:
    first = _block(inputs, outputs, stride)
    return nn.Sequential(first, *(_block(outputs, outputs, 1) for _ in range(blocks - 1)))
