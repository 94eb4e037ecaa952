"""Other people's models, made smaller: saved, and brought back into fresh ones of their constructors."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from stored import assert_same
from test_structure_models import some, widened_norms
from torch import Tensor, nn

from resgrow.surgery import compact, load, save
from resgrow.surgery.structure import Edit, mask, remove, structure


def torchvision(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: pytest.importorskip("torchvision.models").get_model(name, num_classes=10, **options)


def vision_transformer() -> nn.Module:
    models = pytest.importorskip("torchvision.models")
    return models.VisionTransformer(32, 8, num_layers=2, num_heads=4, hidden_dim=64, mlp_dim=96, num_classes=10)


def densenet() -> nn.Module:
    return pytest.importorskip("torchvision.models").DenseNet(8, (2, 2), 16, num_classes=10)


def timm(name: str, **options: Any) -> Callable[[], nn.Module]:
    return lambda: pytest.importorskip("timm").create_model(name, num_classes=10, **options)


SWIN = {"img_size": 32, "window_size": 4, "depths": (2, 2), "embed_dim": 24, "num_heads": (2, 4), "patch_size": 2}
MODELS: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "resnet18": (torchvision("resnet18"), 64),
    "mobilenet_v3_small": (torchvision("mobilenet_v3_small"), 64),
    "densenet": (densenet, 32),
    "vision transformer": (vision_transformer, 32),
    "timm vit": (timm("vit_tiny_patch16_224", img_size=32, depth=2), 32),
    "timm swin": (timm("swin_tiny_patch4_window7_224", **SWIN), 32),
}


def assert_comes_back(
    make: Callable[[], nn.Module], folder: Path, inputs: tuple[Tensor, ...], compacted: bool = True
) -> None:
    torch.manual_seed(0)
    model = widened_norms(make().eval())
    found = structure(model, inputs, "test")
    gone = some(found.groups)
    small = copy.deepcopy(model)
    if compacted:
        mask(small, found.groups, gone)
        compact(small, inputs, inplace=True)
    else:
        remove(Edit(small), found.groups, gone)
    count, before = (sum(p.numel() for p in each.parameters()) for each in (small, model))
    assert count < 0.9 * before
    save(small, folder)
    again = load(folder, make)
    assert_same(again, small)
    with torch.no_grad():
        assert torch.equal(again(*inputs), small(*inputs))
    with pytest.raises(ValueError, match=r"model=\.\.\."):
        load(folder)


@pytest.mark.parametrize("name", MODELS)
def test_images(name: str, tmp_path: Path) -> None:
    make, size = MODELS[name]
    assert_comes_back(make, tmp_path, (torch.randn(2, 3, size, size),), name != "mobilenet_v3_small")


def test_bert(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = {"vocab_size": 100, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}

    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bert = transformers.BertModel(transformers.BertConfig(**config, intermediate_size=96))
            self.head = nn.Linear(64, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.bert(x).last_hidden_state[:, 0])

    assert_comes_back(Classifier, tmp_path, (torch.randint(0, 100, (2, 8)),))


def test_tied_words(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")

    def make() -> nn.Module:
        config = transformers.GPT2Config(vocab_size=50, n_positions=16, n_embd=16, n_layer=2, n_head=2)
        return transformers.GPT2LMHeadModel(config)

    torch.manual_seed(0)
    model = make().eval()
    save(model, tmp_path)
    again = load(tmp_path, make)
    assert_same(again, model)
    assert again.lm_head.weight is again.transformer.wte.weight
    x = torch.randint(0, 50, (2, 8))
    with torch.no_grad():
        assert torch.equal(again(x).logits, model(x).logits)


def test_another_constructor_is_refused(tmp_path: Path) -> None:
    save(torchvision("resnet18")(), tmp_path)
    with pytest.raises(ValueError, match=r"a torchvision\.models\.resnet\.BasicBlock at layer1\.0 \(got .*Bottleneck"):
        load(tmp_path, torchvision("resnet50"))
    with pytest.raises(ValueError, match=r"resnet\.ResNet at the top \(got .*MobileNetV3"):
        load(tmp_path, torchvision("mobilenet_v3_small"))
