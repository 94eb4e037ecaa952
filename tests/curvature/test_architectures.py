"""Unmodified models of torchvision, timm and transformers, in float64 against one sample at a time."""

from __future__ import annotations

import brute
import pytest
import torch
from measured import TARGET, fast
from torch import Tensor, nn
from torch.nn import functional as F

from resgrow import curvature

SAMPLES = 3


def check(model: nn.Module, x: Tensor) -> None:
    """``fisher`` is what it is by definition, and no parameter goes one sample at a time."""
    model, y = model.double().eval(), TARGET[:SAMPLES]
    with torch.no_grad():
        for p in model.parameters():
            # Gains, scales and heads of nearly zero hide what is behind them.
            if sum(size > 1 for size in p.shape) < 2 or not p.any():
                p.add_(torch.empty_like(p).uniform_(0.0, 0.4))
    with fast():
        found = curvature(model, nn.CrossEntropyLoss(), [(x, y)], "fisher")
    wanted = brute.fisher_one_by_one(model, F.cross_entropy, [x], y)
    largest = max(value.max() for value in wanted.values())
    for name, value in wanted.items():
        # Attention does not depend on the keys' biases: what is left of them is rounding.
        rounding = 1e-30 * largest if name.endswith("key.bias") else 0.0
        assert value.max() > 0, f"{name}: the comparison would be vacuous"
        assert (found[name] - value).abs().max() <= 1e-10 * value.max() + rounding, name


def images(size: int) -> Tensor:
    return torch.randn(SAMPLES, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize(
    "name", ["resnet18", "resnet50", "mobilenet_v3_small", "convnext_tiny", "efficientnet_b0", "densenet121"]
)
def test_torchvision(name):
    models = pytest.importorskip("torchvision.models")
    check(models.get_model(name, num_classes=3), images(32))


def test_torchvision_vit():
    models = pytest.importorskip("torchvision.models")
    check(models.VisionTransformer(16, 4, 2, 2, 12, 24, num_classes=3), images(16))


def test_torchvision_swin():
    models = pytest.importorskip("torchvision.models")
    check(models.SwinTransformer([2, 2], 8, [2, 2], [2, 2], [2, 2], num_classes=3), images(16))


TIMM = {
    "vit_tiny_patch16_224": {"img_size": 32, "depth": 2, "embed_dim": 24, "num_heads": 2},
    "swin_tiny_patch4_window7_224": {
        "img_size": 32,
        "window_size": 2,
        "depths": (2, 2),
        "embed_dim": 12,
        "num_heads": (2, 2),
    },
    "resnetv2_50": {"layers": (1, 1), "channels": (8, 16), "stem_chs": 8},
}


@pytest.mark.parametrize("name", TIMM)
def test_timm(name):
    timm = pytest.importorskip("timm")
    check(timm.create_model(name, num_classes=3, **TIMM[name]), images(32))


class Classified(nn.Module):
    """The last token's state through a linear layer."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body, self.head = body, nn.Linear(16, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.body(tokens).last_hidden_state[:, -1])


SMALL = {"vocab_size": 20, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}


@pytest.mark.parametrize("length", [5, 3])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_bert(attention, length):
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(**SMALL, max_position_embeddings=8, attn_implementation=attention)
    check(Classified(transformers.BertModel(config, add_pooling_layer=False)), tokens(length))


def test_gpt2():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(n_embd=16, n_layer=2, n_head=2, vocab_size=20, n_positions=8)
    check(Classified(transformers.GPT2Model(config)), tokens(5))


def test_llama():
    transformers = pytest.importorskip("transformers")
    config = transformers.LlamaConfig(**SMALL, num_key_value_heads=1, max_position_embeddings=8)
    check(Classified(transformers.LlamaModel(config)), tokens(5))


def tokens(length: int) -> Tensor:
    return torch.randint(20, (SAMPLES, length), generator=torch.Generator().manual_seed(3))
