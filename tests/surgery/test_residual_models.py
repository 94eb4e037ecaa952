"""Residual branches of torchvision's, timm's and Hugging Face's models: units, compact, stochastic depth."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
from peer_nets import IMAGES, PEERS
from structure_nets import uneven
from surgery_nets import saliency_like
from torch import Tensor, nn

from resgrow import stochastic_depth
from resgrow.surgery import Masks, compact, count_params, load, make_units, prune, save

# How many branches, one of them, and the module that returns it.
MODELS: dict[str, tuple[int, str, str]] = {
    "ResNet": (1, "layer1.0", "layer1.0.bn2"),
    "timm ResNet": (1, "layer1.0", "layer1.0.bn2"),
    "EfficientNet": (2, "features.2.1", "features.2.1.block"),
    "ConvNeXt": (3, "features.3.1", "features.3.1.block"),
    "Swin": (8, "features.1.1.attn", "features.1.1.attn"),
    "ViT": (4, "encoder.layers.encoder_layer_1.self_attention", "encoder.layers.encoder_layer_1.dropout"),
    "BERT": (4, "encoder.encoder.layer.0.attention", "encoder.encoder.layer.0.attention.output.dropout"),
}


def made(make: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(0)
    return uneven(make()).double().eval()


def bottleneck() -> nn.Module:
    models = pytest.importorskip("torchvision").models
    return models.ResNet(models.resnet.Bottleneck, [2, 1, 1, 2], num_classes=5, width_per_group=4)


def run(model: nn.Module, x: Tensor = IMAGES) -> Tensor:
    with torch.no_grad():
        out = model(x)
    return out if isinstance(out, Tensor) else out[0]


@pytest.mark.parametrize("name", MODELS)
def test_compact_takes_out_what_a_unit_costs(name: str) -> None:
    number, path, _ = MODELS[name]
    model = made(PEERS[name])
    units = make_units(model, "residual", example_inputs=IMAGES)
    assert len(units.groups) == number
    at = units.groups.index(path)
    masks = Masks(model, units.to_masks([torch.tensor([group != path]) for group in units.groups]))
    live, full = masks.live_parameters(), count_params(model)
    masks.apply()
    small = compact(model, IMAGES)
    assert count_params(small) == live == full - float(units.costs()[at])
    assert (run(small) - run(model)).abs().max() <= 1e-12 * run(model).abs().max()


@pytest.mark.parametrize("name", MODELS)
def test_dropping_a_branch_is_what_its_removal_leaves(name: str) -> None:
    number, path, end = MODELS[name]
    model = made(PEERS[name])
    expected, names = run(model), list(model.state_dict())
    depth = stochastic_depth(model, IMAGES, rate=0.5, schedule="uniform")
    assert len(depth.rates) == number
    assert path in depth.rates
    assert torch.equal(run(model), expected)
    assert list(model.state_dict()) == names
    scales = [hook for hook in model.get_submodule(end)._forward_hooks.values() if type(hook).__name__ == "_Scale"]
    assert len(scales) == 1
    units = make_units(model, "residual", example_inputs=IMAGES)
    masked = copy.deepcopy(model)
    Masks(masked, units.to_masks([torch.tensor([group != path]) for group in units.groups])).apply()
    wanted = run(masked.eval())
    model.training = model.get_submodule(end).training = True
    for _ in range(60):
        actual = run(model)
        if not depth.decisions()[path]:
            break
    assert list(depth.decisions()) == [path]  # all other modules are in evaluation mode
    assert not depth.decisions()[path]
    assert (actual - wanted).abs().max() <= 1e-12 * wanted.abs().max()


def test_bottlenecks_are_pruned_and_loaded_into_a_model_of_the_constructor(tmp_path: object) -> None:
    model = made(bottleneck)
    units = make_units(model, "residual", example_inputs=IMAGES)
    assert units.groups == ("layer1.1", "layer4.1")
    masks = prune(model, saliency_like(model), sparsity=0.5, block="residual", example_inputs=IMAGES)
    small = compact(model, IMAGES)
    assert count_params(small) == masks.live_parameters() < count_params(model)
    save(small, tmp_path)
    again = load(tmp_path, model=lambda: bottleneck().double())
    assert torch.equal(run(again.eval()), run(small))


@pytest.mark.parametrize("name", ["ViT", "BERT"])
def test_what_stands_for_attention_is_saved_and_loaded(name: str, tmp_path: object) -> None:
    model = made(PEERS[name])
    masks = prune(model, saliency_like(model), sparsity=0.6, block="residual", example_inputs=IMAGES)
    small = compact(model, IMAGES)
    assert count_params(small) == masks.live_parameters()
    save(small, tmp_path)
    again = load(tmp_path, model=lambda: PEERS[name]().double())
    assert torch.equal(run(again.eval()), run(small))


def test_training_a_transformer_with_random_depth() -> None:
    model = made(PEERS["ViT"]).train()
    depth = stochastic_depth(model, IMAGES, rate=0.5, per_sample=True)
    optimizer = torch.optim.SGD(model.parameters(), 1e-2)
    for _ in range(5):
        optimizer.zero_grad()
        losses = nn.functional.cross_entropy(model(IMAGES), torch.tensor([0, 1]), reduction="none")
        losses.mean().backward()
        optimizer.step()
        depth.observe(losses.detach())
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert len(depth.table().splitlines()) == 5
