"""Other people's architectures, short and narrow: of torchvision, timm and Hugging Face; random weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from structure_nets import uneven, without_zeros
from torch import Tensor, nn

IMAGES = torch.randn(2, 3, 16, 16, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def vision() -> Any:
    return pytest.importorskip("torchvision").models


def resnet(block: str, **options: Any) -> nn.Module:
    module = vision().resnet
    model = module.ResNet(getattr(module, block), [1, 1, 1, 1], num_classes=5, **options)
    narrow(model, 8)
    return model


def narrow(model: nn.Module, by: int) -> None:
    """A fraction of the width of every layer between the images and the classes."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            inputs = 3 if module.in_channels == 3 else module.in_channels // by
            groups = module.groups if module.groups == 1 else max(1, module.groups // by)
            replace(
                model,
                name,
                nn.Conv2d(
                    inputs,
                    module.out_channels // by,
                    module.kernel_size,
                    module.stride,
                    module.padding,
                    groups=groups,
                    bias=module.bias is not None,
                ),
            )
        elif isinstance(module, nn.BatchNorm2d):
            replace(model, name, nn.BatchNorm2d(module.num_features // by))
        elif isinstance(module, nn.Linear):
            outputs = 5 if module.out_features == 5 else module.out_features // by
            replace(model, name, nn.Linear(module.in_features // by, outputs))


def replace(model: nn.Module, name: str, layer: nn.Module) -> None:
    path, _, attribute = name.rpartition(".")
    setattr(model.get_submodule(path), attribute, layer)


def densenet() -> nn.Module:
    return vision().DenseNet(growth_rate=6, block_config=(2, 3), num_init_features=8, bn_size=2, num_classes=5)


def vgg() -> nn.Module:
    module = vision().vgg
    model = module.VGG(module.make_layers([6, "M", 10, "M", 8], batch_norm=True), num_classes=5)
    model.avgpool = nn.AdaptiveAvgPool2d(2)
    model.classifier = nn.Sequential(nn.Linear(32, 12), nn.ReLU(), nn.Dropout(), nn.Linear(12, 5))
    return model


def mobilenet() -> nn.Module:
    module = vision().mobilenetv3
    config = partial(module.InvertedResidualConfig, width_mult=1)
    settings = [
        config(16, 3, 16, 16, True, "RE", 2, 1),
        config(16, 3, 32, 24, False, "RE", 1, 1),
        config(24, 5, 40, 24, True, "HS", 1, 1),
    ]
    return module.MobileNetV3(settings, last_channel=32, num_classes=5)


def efficientnet() -> nn.Module:
    module = vision().efficientnet
    settings = [module.MBConvConfig(1, 3, 1, 8, 8, 1), module.MBConvConfig(3, 3, 1, 8, 16, 2)]
    return module.EfficientNet(settings, dropout=0.1, last_channel=24, num_classes=5)


def convnext() -> nn.Module:
    module = vision().convnext
    return module.ConvNeXt([module.CNBlockConfig(8, 16, 1), module.CNBlockConfig(16, None, 2)], num_classes=5)


def vit() -> nn.Module:
    return vision().VisionTransformer(16, 4, num_layers=2, num_heads=4, hidden_dim=16, mlp_dim=24, num_classes=5)


def swin() -> nn.Module:
    return vision().SwinTransformer([2, 2], 8, [2, 2], [2, 4], [4, 4], num_classes=5)


def timm(name: str, **options: Any) -> nn.Module:
    return pytest.importorskip("timm").create_model(name, num_classes=5, **options)


class Bert(nn.Module):
    """An encoder that classifies by its first token; the tokens are counted off the images."""

    def __init__(self) -> None:
        transformers = pytest.importorskip("transformers")
        super().__init__()
        config = transformers.BertConfig(
            vocab_size=20,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=24,
            max_position_embeddings=16,
        )
        self.encoder, self.head = transformers.BertModel(config, add_pooling_layer=False), nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = (x.flatten(1)[:, :8] * 4).long().clamp(-9, 9) + 9
        return self.head(self.encoder(tokens).last_hidden_state[:, 0])


PEERS: dict[str, Callable[[], nn.Module]] = {
    "ResNet": partial(resnet, "BasicBlock"),
    "ResNet, bottlenecks": partial(resnet, "Bottleneck"),
    "ResNeXt": partial(resnet, "Bottleneck", groups=32, width_per_group=4),
    "DenseNet": densenet,
    "VGG": vgg,
    "MobileNetV3": mobilenet,
    "EfficientNet": efficientnet,
    "ConvNeXt": convnext,
    "ViT": vit,
    "Swin": swin,
    "timm ResNet": partial(timm, "test_resnet"),
    "timm EfficientNet": partial(timm, "test_efficientnet"),
    "timm ViT": partial(timm, "test_vit", img_size=16, patch_size=4),
    "BERT": Bert,
}


def made(name: str, seed: int = 0) -> nn.Module:
    """In float64 and evaluation mode; norms, zeros and scales that a fresh model has are random here."""
    torch.manual_seed(seed)
    return without_zeros(uneven(PEERS[name]().double().eval()), ("layer_scale", "gamma"))
