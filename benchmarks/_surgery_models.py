"""Models for comparisons of structural surgery: other people's, and small ones for what is known to be hard."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


@dataclass(frozen=True)
class Case:
    """``make``: a new model. ``inputs``: its arguments, in float32. ``last``: the layers that make its output, by
    name: a peer has to be told to leave them."""

    make: Callable[[], nn.Module]
    inputs: Callable[[], tuple[Tensor, ...]]
    last: tuple[str, ...]


def images(side: int, channels: int = 3) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: (torch.randn(2, channels, side, side),)


def torchvision(name: str, last: str, side: int = 64, **options: Any) -> Case:
    def make() -> nn.Module:
        from torchvision import models

        return models.get_model(name, num_classes=10, **options)

    return Case(make, images(side), (last,))


def vision_transformer() -> nn.Module:
    from torchvision import models

    return models.VisionTransformer(32, 8, num_layers=2, num_heads=4, hidden_dim=64, mlp_dim=128, num_classes=10)


def timm(name: str, last: str, side: int = 64, **options: Any) -> Case:
    def make() -> nn.Module:
        import timm

        return timm.create_model(name, num_classes=10, **options)

    return Case(make, images(side), (last,))


class Bert(nn.Module):
    """An encoder that classifies by its first token."""

    def __init__(self) -> None:
        from transformers import BertConfig, BertModel

        super().__init__()
        self.encoder = BertModel(
            BertConfig(
                vocab_size=100, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=128
            ),
            add_pooling_layer=False,
        )
        self.head = nn.Linear(64, 10)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.encoder(tokens).last_hidden_state[:, 0])


def conv(inputs: int, outputs: int, size: int = 3, **options: Any) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, size, padding=size // 2, **options), nn.BatchNorm2d(outputs), nn.ReLU()
    )


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down, self.deeper, self.deepest = conv(3, 16), conv(16, 32), conv(32, 64)
        self.up, self.upper = nn.ConvTranspose2d(64, 32, 2, 2), nn.ConvTranspose2d(32, 16, 2, 2)
        self.middle, self.top, self.out = conv(64, 32), conv(32, 16), nn.Conv2d(16, 1, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.down(x)
        b = self.deeper(F.max_pool2d(a, 2))
        c = self.deepest(F.max_pool2d(b, 2))
        c = self.middle(torch.cat([self.up(c), b], 1))
        return self.out(self.top(torch.cat([self.upper(c), a], 1)))


class Shared(nn.Module):
    """One block, applied three times."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.outer = conv(3, 16), conv(16, 24), nn.Conv2d(24, 16, 1)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for _ in range(3):
            x = x + self.outer(self.inner(x))
        return self.head(x.mean((2, 3)))


class OneChannel(nn.Module):
    """A map of one channel that weighs all positions, and a bottleneck of one channel."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.attend, self.next = conv(3, 16), nn.Conv2d(16, 1, 3, padding=1), conv(16, 16)
        self.squeeze, self.widen, self.head = nn.Conv2d(16, 1, 1), nn.Conv2d(1, 8, 3), nn.Linear(8, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = self.next(x * self.attend(x).sigmoid())
        return self.head(self.widen(self.squeeze(x)).relu().mean((2, 3)))


class Encoder(nn.Module):
    """torch's own attention, over positions of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 32, 4, 4)
        self.attention, self.norm = nn.MultiheadAttention(32, 4, batch_first=True), nn.LayerNorm(32)
        self.wide, self.narrow, self.head = nn.Linear(32, 64), nn.Linear(64, 32), nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.patches(x).flatten(2).transpose(1, 2)
        normed = self.norm(x)
        x = x + self.attention(normed, normed, normed, need_weights=False)[0]
        return self.head((x + self.narrow(F.gelu(self.wide(x)))).mean(1))


class Gated(nn.Module):
    """Halves that meet: a gated linear unit, and channels split and shuffled."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.mixed = conv(3, 16), conv(8, 8), conv(16, 32)
        self.head = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        a, b = self.stem(x).chunk(2, 1)
        x = torch.cat([self.left(a), b], 1)
        gate, value = self.mixed(x).chunk(2, 1)
        return self.head((gate.sigmoid() * value).mean((2, 3)))


class Bare(nn.Module):
    """Weights that are parameters of the model itself."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = conv(3, 16), nn.Linear(16, 10)
        self.first, self.second = nn.Parameter(torch.randn(24, 16) / 4), nn.Parameter(torch.randn(16, 24) / 4)
        self.scale = nn.Parameter(torch.ones(24))

    def forward(self, x: Tensor) -> Tensor:
        x = F.linear(self.stem(x).mean((2, 3)), self.first).relu() * self.scale
        return self.head(F.linear(x, self.second).relu())


def _flat() -> list[nn.Module]:
    return [nn.AdaptiveAvgPool2d(1), nn.Flatten()]


CASES: dict[str, Case] = {
    "resnet18": torchvision("resnet18", "fc"),
    "resnet50": torchvision("resnet50", "fc"),
    "resnext50_32x4d": torchvision("resnext50_32x4d", "fc"),
    "densenet121": torchvision("densenet121", "classifier"),
    "mobilenet_v3_small": torchvision("mobilenet_v3_small", "classifier.3"),
    "efficientnet_b0": torchvision("efficientnet_b0", "classifier.1"),
    "vgg11_bn": torchvision("vgg11_bn", "classifier.6"),
    "googlenet": torchvision("googlenet", "fc", init_weights=False, aux_logits=False),
    "squeezenet1_1": torchvision("squeezenet1_1", "classifier.1"),
    "shufflenet_v2_x1_0": torchvision("shufflenet_v2_x1_0", "fc"),
    "regnet_y_400mf": torchvision("regnet_y_400mf", "fc"),
    "convnext_tiny": torchvision("convnext_tiny", "classifier.2"),
    "swin_t": torchvision("swin_t", "head"),
    "torchvision ViT, 2 layers": Case(vision_transformer, images(32), ("heads.head",)),
    "timm vit_tiny, 2 layers": timm("vit_tiny_patch16_224", "head", 32, img_size=32, depth=2),
    "timm mixer_s32": timm("mixer_s32_224", "head", 224),
    "timm ghostnet_100": timm("ghostnet_100", "classifier"),
    "timm hrnet_w18_small": timm("hrnet_w18_small", "classifier"),
    "Hugging Face BERT, 2 layers": Case(Bert, lambda: (torch.randint(0, 100, (2, 8)),), ("head",)),
    "U-Net": Case(UNet, images(16), ("out",)),
    "block used three times": Case(Shared, images(16), ("head",)),
    "convolutions of one output channel": Case(OneChannel, images(16), ("head",)),
    "nn.MultiheadAttention": Case(Encoder, images(16), ("head",)),
    "chunks, gates": Case(Gated, images(16), ("head",)),
    "bare parameters": Case(Bare, images(16), ("head",)),
    "group norm": Case(
        lambda: nn.Sequential(
            nn.Conv2d(3, 16, 3),
            nn.GroupNorm(4, 16),
            nn.ReLU(),
            nn.Conv2d(16, 24, 3),
            nn.ReLU(),
            *_flat(),
            nn.Linear(24, 10),
        ),
        images(16),
        ("7",),
    ),
    "transposed and grouped transposed convolution": Case(
        lambda: nn.Sequential(
            nn.Conv2d(3, 16, 3),
            nn.ReLU(),
            nn.ConvTranspose2d(16, 24, 2, 2),
            nn.ReLU(),
            nn.ConvTranspose2d(24, 16, 2, 2, groups=4),
            nn.ReLU(),
            nn.Conv2d(16, 1, 1),
        ),
        images(8),
        ("6",),
    ),
    "pixel shuffle": Case(
        lambda: nn.Sequential(
            nn.Conv2d(3, 16, 3),
            nn.ReLU(),
            nn.Conv2d(16, 32, 3),
            nn.PixelShuffle(2),
            nn.Conv2d(8, 12, 3),
            nn.ReLU(),
            nn.Conv2d(12, 1, 1),
        ),
        images(16),
        ("6",),
    ),
    "norm in front, PReLU": Case(
        lambda: nn.Sequential(
            nn.BatchNorm2d(3),
            nn.Conv2d(3, 16, 3),
            nn.PReLU(16),
            nn.BatchNorm2d(16),
            nn.Conv2d(16, 24, 3),
            nn.InstanceNorm2d(24, affine=True),
            nn.ReLU(),
            *_flat(),
            nn.Linear(24, 10),
        ),
        images(16),
        ("9",),
    ),
}
