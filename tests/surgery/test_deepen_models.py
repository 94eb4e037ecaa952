"""deepen on other people's models: the same outputs to the bit, one module more, and the way back."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from structure_nets import assert_alike, everything
from test_structure_models import timm, torchvision, vision_transformer, widened_norms
from torch import Tensor, nn
from torch.optim import SGD

from resgrow import deepen
from resgrow.nn import KeyedModuleList


def shorter_resnet() -> nn.Module:
    model = torchvision("resnet18")()
    model.layer2 = model.layer2[:1]
    return model


# The model, the size of its images, what is named, the new module, and what ends its branches.
MODELS: dict[str, tuple[Callable[[], nn.Module], int, str, str, set[str]]] = {
    "resnet18": (torchvision("resnet18"), 64, "layer2", "layer2.2", {"bn2.weight", "bn2.bias"}),
    "resnet18, in the middle": (torchvision("resnet18"), 64, "layer2.0", "layer2.0_1", {"bn2.weight", "bn2.bias"}),
    "resnet50": (torchvision("resnet50"), 64, "layer1.1", "layer1.1_1", {"bn3.weight", "bn3.bias"}),
    "resnet18, changes shape": (shorter_resnet, 64, "layer2", "layer2.1", {"bn2.weight", "bn2.bias"}),
    "mobilenet_v3_small": (
        torchvision("mobilenet_v3_small"),
        64,
        "features.5",
        "features.5_1",
        {"block.3.1.weight", "block.3.1.bias"},
    ),
    "efficientnet_b0": (
        torchvision("efficientnet_b0"),
        64,
        "features.3",
        "features.3.2",
        {"block.3.1.weight", "block.3.1.bias"},
    ),
    "convnext_tiny": (torchvision("convnext_tiny"), 64, "features.3", "features.3.3", {"layer_scale"}),
    "swin_t": (
        torchvision("swin_t"),
        64,
        "features.1.0",
        "features.1.0_1",
        {"attn.proj.weight", "attn.proj.bias", "mlp.3.weight", "mlp.3.bias"},
    ),
    "vision transformer": (
        vision_transformer,
        32,
        "encoder.layers",
        "encoder.layers.encoder_layer_2",
        {"self_attention.out_proj.weight", "self_attention.out_proj.bias", "mlp.3.weight", "mlp.3.bias"},
    ),
    "timm vit_tiny": (
        timm("vit_tiny_patch16_224", img_size=32, depth=2),
        32,
        "blocks.0",
        "blocks.0_1",
        {"attn.proj.weight", "attn.proj.bias", "mlp.fc2.weight", "mlp.fc2.bias"},
    ),
    "timm regnety_002, whose stages are no lists": (
        timm("regnety_002"),
        64,
        "s3",
        "s3.b5",
        {"conv3.bn.weight", "conv3.bn.bias"},
    ),
    "timm seresnet18": (timm("seresnet18"), 64, "layer1", "layer1.2", {"bn2.weight", "bn2.bias"}),
    "timm mixer_s32": (
        timm("mixer_s32_224", img_size=64),
        64,
        "blocks",
        "blocks.8",
        {"mlp_tokens.fc2.weight", "mlp_tokens.fc2.bias", "mlp_channels.fc2.weight", "mlp_channels.fc2.bias"},
    ),
}


def output(model: nn.Module, x: Tensor) -> Tensor:
    out = model(x)
    return out if isinstance(out, Tensor) else out.last_hidden_state


def without_dropout(model: nn.Module) -> nn.Module:
    """Whose losses depend on nothing but the weights, in training, too."""
    for module in model.modules():
        if type(module).__name__ in ("Dropout", "StochasticDepth", "DropPath"):
            module.train = lambda mode=True, module=module: module
    return model


def check(model: nn.Module, x: Tensor, name: str, path: str, last: set[str] | None, **options: Any) -> None:
    optimizer = SGD(model.parameters(), lr=1e-2, momentum=0.9)
    before, names = everything(model), list(model.state_dict())
    with torch.no_grad():
        expected = output(model, x)
    assert deepen(model, name, example_inputs=x, optimizer=optimizer, **options) == path
    with torch.no_grad():
        assert torch.equal(output(model, x), expected)
    held = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters())
    back = copy.deepcopy(model)
    parent, _, key = path.rpartition(".")
    delattr(back.get_submodule(parent), key)
    if type(back.get_submodule(parent)) is KeyedModuleList:
        back.get_submodule(parent).__class__ = nn.ModuleList
    assert list(back.state_dict()) == names
    assert_alike(everything(back), before)

    new = dict(model.get_submodule(path).named_parameters())
    zeros = {each for each, parameter in new.items() if not parameter.any()}
    assert (last or set()) <= zeros
    # Norms start with biases of zero.
    assert last is None or all(each.endswith("bias") for each in zeros - last)
    start = {each: parameter.detach().clone() for each, parameter in new.items()}
    without_dropout(model).train()
    for _ in range(2):
        optimizer.zero_grad()
        out = output(model, x)
        (out * torch.arange(out.numel()).view_as(out).sin()).sum().backward()
        optimizer.step()
    still = {each for each, parameter in new.items() if torch.equal(parameter, start[each])}
    # The keys' bias has no effect: a softmax takes out what all scores have in common.
    assert all("key.bias" in each for each in still), still


@pytest.mark.parametrize("name", MODELS)
def test_images(name: str) -> None:
    make, size, place, path, last = MODELS[name]
    torch.manual_seed(0)
    model = widened_norms(make().double().eval())
    check(model, torch.randn(2, 3, size, size, dtype=torch.float64), place, path, last)


TOKENS = {"vocab_size": 100, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 2}


def bert() -> nn.Module:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=100, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24
    )
    return transformers.BertModel(config, add_pooling_layer=False).double().eval()


def test_bert_normalises_behind_its_additions() -> None:
    model, x = bert(), torch.randint(0, 100, (2, 8))
    before = everything(model)
    with pytest.raises(RuntimeError, match=r"through layer_norm, layer_norm\); everything has been undone.*residual"):
        deepen(model, "encoder.layer", example_inputs=x)
    assert_alike(everything(model), before)
    check(
        model,
        x,
        "encoder.layer",
        "encoder.layer.2",
        {"branch.output.LayerNorm.weight", "branch.output.LayerNorm.bias"},
        init="residual",
    )


def test_bert_in_the_middle() -> None:
    check(bert(), torch.randint(0, 100, (2, 8)), "encoder.layer.0", "encoder.layer.0_1", None, init="residual")


def test_gpt2_and_its_cache() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    model = transformers.GPT2Model(transformers.GPT2Config(n_embd=16, n_head=2, n_layer=2, **TOKENS))
    last = {"attn.c_proj.weight", "attn.c_proj.bias", "mlp.c_proj.weight", "mlp.c_proj.bias"}
    x = torch.randint(0, 100, (2, 8))
    with pytest.raises(RuntimeError, match=r"must run with h\.2 \(got.*config\.num_hidden_layers, raise it before"):
        deepen(model.double().eval(), "h", example_inputs=x)
    model.config.num_hidden_layers = 3
    check(model, x, "h", "h.2", last)
    assert [block.attn.layer_idx for block in model.h] == [0, 1, 2]
    assert len(model(x).past_key_values) == 3


def test_a_model_that_counts_its_layers() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, use_cache=False, **TOKENS
    )
    model, x = transformers.LlamaModel(config).double().eval(), torch.randint(0, 100, (2, 8))
    before = everything(model)
    with pytest.raises(RuntimeError, match=r"got layers\.2, which it does not call.*config\.num_hidden_layers"):
        deepen(model, "layers", example_inputs=x)
    assert_alike(everything(model), before)
    model.config.num_hidden_layers = 3
    check(model, x, "layers", "layers.2", {"self_attn.o_proj.weight", "mlp.down_proj.weight"})
