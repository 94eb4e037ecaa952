"""Coupled dimensions of other people's models: units taken out of them are units masked, in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from structure_nets import uneven, without_zeros
from torch import Tensor, nn

from resgrow.surgery.structure import Edit, Group, mask, remove, structure


def torchvision(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: pytest.importorskip("torchvision.models").get_model(name, num_classes=10, **options)


def timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: pytest.importorskip("timm").create_model(name, num_classes=10, **options)


def vision_transformer() -> nn.Module:
    models = pytest.importorskip("torchvision.models")
    return models.VisionTransformer(32, 8, num_layers=2, num_heads=4, hidden_dim=64, mlp_dim=96, num_classes=10)


# The model, the size of its images, and how many of its groups at least can lose units.
MODELS: dict[str, tuple[Callable[[], nn.Module], int, int]] = {
    "resnet18": (torchvision("resnet18"), 64, 12),
    "resnet50": (torchvision("resnet50"), 64, 37),
    "resnext50_32x4d": (torchvision("resnext50_32x4d"), 64, 21),
    "densenet121": (torchvision("densenet121"), 64, 120),
    "mobilenet_v3_small": (torchvision("mobilenet_v3_small"), 64, 27),
    "efficientnet_b0": (torchvision("efficientnet_b0"), 64, 40),
    "vgg11_bn": (torchvision("vgg11_bn"), 64, 10),
    "convnext_tiny": (torchvision("convnext_tiny"), 64, 18),
    "shufflenet_v2_x0_5": (torchvision("shufflenet_v2_x0_5"), 64, 20),
    "googlenet": (torchvision("googlenet", init_weights=False, aux_logits=False), 64, 57),
    "squeezenet1_1": (torchvision("squeezenet1_1"), 64, 20),
    "vision transformer": (vision_transformer, 32, 4),
    "timm vit_tiny": (timm("vit_tiny_patch16_224", img_size=32, depth=2), 32, 4),
    "timm regnety_002": (timm("regnety_002"), 64, 31),
    "timm ghostnet_100": (timm("ghostnet_100"), 64, 31),
    "timm hrnet_w18_small": (timm("hrnet_w18_small"), 64, 45),
    "timm mixer_s32": (timm("mixer_s32_224"), 224, 16),
}


def widened_norms(model: nn.Module) -> nn.Module:
    return without_zeros(uneven(model), ("head.weight", "layer_scale"))


def some(groups: list[Group]) -> dict[int, Tensor]:
    gone = {number: torch.rand(group.size) < 0.4 for number, group in enumerate(groups)}
    for units in gone.values():
        units[0] = False
    return gone


def check(model: nn.Module, inputs: tuple[Tensor, ...], least: int, output: Callable[[Any], Tensor]) -> None:
    found = structure(model, inputs, "test")
    assert len(found.groups) >= least
    gone = some(found.groups)
    masked = copy.deepcopy(model)
    mask(masked, found.groups, gone)
    before = sum(parameter.numel() for parameter in model.parameters())
    remove(Edit(model), found.groups, gone)
    with torch.no_grad():
        expected, actual = output(masked(*inputs)), output(model(*inputs))
    assert (expected - actual).abs().max() <= 1e-12 * expected.abs().max()
    assert 0 < expected.abs().max() < torch.inf
    assert sum(parameter.numel() for parameter in model.parameters()) < 0.9 * before


@pytest.mark.parametrize("name", MODELS)
def test_images(name: str) -> None:
    make, size, least = MODELS[name]
    torch.manual_seed(0)
    model = widened_norms(make().double().eval())
    check(model, (torch.randn(2, 3, size, size, dtype=torch.float64),), least, lambda out: out)


def test_bert() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=100, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96
    )
    model = transformers.BertModel(config).double().eval()
    check(model, (torch.randint(0, 100, (2, 8)),), 4, lambda out: out.last_hidden_state)
