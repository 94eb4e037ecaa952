"""Models of classes that no table knows, changed in every way, saved and brought back through their constructors."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from stored import IMAGES, Block, Stages, Words, assert_same, narrow_words
from structure_nets import MODELS, Net, X, made, outputs, random_units
from torch import Tensor, nn

from resgrow.nn import Shift, TriStateReLU, resnet
from resgrow.nn.attention import NarrowAttention
from resgrow.surgery import compact, factorise, load, prune, save, swap, swap_activations, unswap, widen
from resgrow.surgery.structure import Edit, mask, remove, structure


def returned(model: nn.Module, folder: Path, make: Callable[[], nn.Module], x: Tensor = X) -> nn.Module:
    """Saved, and loaded into another one: the same to the bit, with the same outputs."""
    save(model, folder)
    given = make()
    again = load(folder, given)
    assert again is given
    assert_same(again, model)
    assert torch.equal(outputs(again, x), outputs(model, x))
    return again


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_smaller(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    model = made(name)
    groups = structure(model, (X,), "test").groups
    remove(Edit(model), groups, random_units(groups, 1, 0.4))
    model.to(dtype, memory_format=torch.channels_last)
    again = returned(model, tmp_path, MODELS[name], X.to(dtype))
    assert sum(p.numel() for p in again.parameters()) < sum(p.numel() for p in MODELS[name]().parameters())


@pytest.mark.parametrize(("name", "layer"), [("residual", "stem"), ("transformer", "attention.qkv"), ("gated", "0")])
def test_larger(name: str, layer: str, tmp_path: Path) -> None:
    model = made(name)
    widen(model, layer, 2, example_inputs=X)
    returned(model, tmp_path, MODELS[name])


def without_biases() -> nn.Module:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.second(self.norm(self.first(x)).relu())

    first, second = nn.Conv2d(3, 6, 3, bias=False), nn.Conv2d(6, 4, 3, bias=False)
    return Net(forward, first=first, norm=nn.BatchNorm2d(6), second=second).double().eval()


def test_biases_that_are_new(tmp_path: Path) -> None:
    model = without_biases()
    nn.init.uniform_(model.norm.bias, 0.5, 1)
    model.first.weight.data[:2] = 0
    small = compact(model, X)
    assert small.first.out_channels == 4
    assert small.second.bias is not None
    returned(small, tmp_path, without_biases)


def test_biases_that_are_gone(tmp_path: Path) -> None:
    model = without_biases()
    save(model, tmp_path)
    given = without_biases()
    given.first.bias = nn.Parameter(torch.ones(6))
    load(tmp_path, given)
    assert given.first.bias is None
    assert torch.equal(outputs(given), outputs(model))


def test_attention_with_fewer_heads_tied_and_frozen(tmp_path: Path) -> None:
    model = narrow_words()
    model.layers.layers[0].norm1.train()
    model.scale.mul_(1.5)
    assert type(model.layers.layers[0].self_attn) is NarrowAttention
    again = returned(model, tmp_path, Words, torch.randint(0, 7, (2, 5)))
    assert again.out.weight is again.words.weight
    assert again.layers.layers[0].norm1.training
    assert not again.layers.training
    assert not again.out.bias.requires_grad


def test_ties_that_only_one_of_both_has(tmp_path: Path) -> None:
    def untied() -> Words:
        model = Words()
        model.out.weight = nn.Parameter(torch.randn(7, 12))
        return model

    x = torch.randint(0, 7, (2, 5))
    again = returned(Words().eval(), tmp_path, untied, x)
    again.words.weight.data.zero_()
    assert not again.out.weight.any()
    again = returned(untied().eval(), tmp_path, Words, x)
    again.words.weight.data.zero_()
    assert again.out.weight.any()


def test_modules_that_only_one_of_both_shares(tmp_path: Path) -> None:
    def model(shared: bool) -> nn.Module:
        first = nn.Linear(3, 3)
        second = first if shared else nn.Linear(3, 3)
        return Net(lambda self, x: self.second(self.first(x)), first=first, second=second)

    x = torch.randn(2, 3)
    returned(model(True), tmp_path, lambda: model(False), x)
    returned(model(False), tmp_path, lambda: model(True), x)


def test_blocks_whose_branch_is_gone(tmp_path: Path) -> None:
    model = Stages()
    block = model.stage[0]
    model.stage[0] = nn.Sequential()
    model.stage[0].add_module("shortcut", block.shortcut)
    model.stage[0].add_module("relu", block.relu)
    model.stage[1] = nn.Identity()
    given = Stages()
    kept = given.stage[0].shortcut.weight
    save(model, tmp_path)
    load(tmp_path, given)
    assert given.stage[0].shortcut.weight is kept
    assert_same(given, model)
    assert torch.equal(outputs(given, IMAGES), outputs(model, IMAGES))


def test_blocks_that_are_new(tmp_path: Path) -> None:
    model = Stages()
    new = Block()
    new.slope = 0.5
    new.conv = nn.Conv2d(4, 4, 5, padding=2)
    model.stage.add_module("2", model.stage[1])
    model.stage._modules = {"0": model.stage[0], "0_1": new, "1": model.stage[1], "2": Block()}
    assert [type(block) for block in model.stage] == [Block] * 4
    again = returned(model, tmp_path, Stages, IMAGES)
    assert len({id(parameter) for parameter in again.parameters()}) == len(list(model.parameters()))


def test_modules_that_are_gone(tmp_path: Path) -> None:
    returned(Stages(1), tmp_path, lambda: Stages(4), IMAGES)


def test_other_layers_in_the_place_of_some(tmp_path: Path) -> None:
    model = Stages()
    model = swap_activations(model, IMAGES, learn="width")
    assert type(model.stage[0].relu) is TriStateReLU
    model.stage[0].relu.w.data.uniform_(0, 1)
    model = factorise(model, {"stem": 2, "head": 1}).model
    returned(model, tmp_path, Stages, IMAGES)


def test_block_sparse_layers(tmp_path: Path) -> None:
    model = Stages()
    scores = {name: torch.rand_like(p) for name, p in model.named_parameters()}
    masks = prune(model, scores, sparsity=0.5, block=(4, 1))
    assert len(swap(model, masks, block=(4, 1), force=True).swapped) > 2
    again = returned(model, tmp_path, Stages, IMAGES)
    unswap(again)
    dense = Stages()
    dense.load_state_dict(again.state_dict())
    assert torch.equal(outputs(dense, IMAGES), outputs(again, IMAGES))


def test_recurrent_layers_know_their_new_parameters(tmp_path: Path) -> None:
    def make(size: int) -> nn.Module:
        return Net(lambda self, x: self.lstm(x)[0], lstm=nn.LSTM(3, size, batch_first=True))

    x = torch.randn(2, 4, 3)
    returned(make(5), tmp_path, lambda: make(8), x)
    returned(make(5), tmp_path, lambda: make(8).to("meta"), x)


def test_a_model_without_memory_is_filled(tmp_path: Path) -> None:
    model = narrow_words()
    save(model, tmp_path)
    with torch.device("meta"):
        given = Words()
    assert_same(load(tmp_path, given), model)


def test_models_loaded_in_inference_mode_can_be_trained(tmp_path: Path) -> None:
    save(narrow_words(), tmp_path)
    with torch.inference_mode():
        again = load(tmp_path, Words)
    assert not any(tensor.is_inference() for tensor in again.state_dict().values())
    again(torch.randint(0, 7, (2, 5))).sum().backward()


@pytest.mark.parametrize("norm", [nn.utils.parametrizations.weight_norm, nn.utils.parametrizations.spectral_norm])
def test_computed_weights(tmp_path: Path, norm: Any) -> None:
    def make(out: int) -> nn.Module:
        return Net(lambda self, x: self.layer(x), layer=norm(nn.Linear(3, out))).eval()

    returned(make(2), tmp_path, lambda: make(4), torch.randn(2, 3))


def test_parameters_and_hooks_stay(tmp_path: Path) -> None:
    model = made("residual")
    groups = structure(model, (X,), "test").groups
    remove(Edit(model), groups, random_units(groups, 1, 0.4))
    save(model, tmp_path)
    given = MODELS["residual"]()
    given(IMAGES).sum().backward()
    before = dict(given.named_parameters())
    calls: list[int] = []
    given.inner.register_forward_hook(lambda *_: calls.append(1))
    load(tmp_path, given)
    assert all(parameter is before[name] for name, parameter in given.named_parameters())
    assert all(parameter.grad is None for parameter in given.parameters())
    given(X).sum().backward()
    assert len(calls) == 2


def test_it_can_be_saved_and_loaded_again(tmp_path: Path) -> None:
    first = load_saved(narrow_words(), tmp_path / "a")
    save(first, tmp_path / "b")
    assert (tmp_path / "a/model.json").read_text() == (tmp_path / "b/model.json").read_text()
    assert (tmp_path / "a/model.safetensors").read_bytes() == (tmp_path / "b/model.safetensors").read_bytes()


def load_saved(model: nn.Module, folder: Path) -> nn.Module:
    save(model, folder)
    return load(folder, Words)


def test_scripts_classes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = Stages.__module__
    monkeypatch.setattr(Stages, "__module__", "__main__")
    save(Stages(), tmp_path)
    monkeypatch.setattr(Stages, "__module__", module)
    load(tmp_path, Stages)
    save(Stages(), tmp_path)
    monkeypatch.setattr(Stages, "__module__", "__main__")
    load(tmp_path, Stages)
    monkeypatch.setattr(Stages, "__module__", "elsewhere")
    with pytest.raises(ValueError, match=r"stored\.Stages at the top \(got a elsewhere\.Stages\)"):
        load(tmp_path, Stages)


def test_what_is_no_number_stays_as_constructed(tmp_path: Path) -> None:
    save(Stages(), tmp_path)
    given = Stages()
    given.stage[0].act, given.stage[0].mode, given.stage[0].slope = torch.sin, "other", 7.0
    load(tmp_path, given)
    assert (given.stage[0].act, given.stage[0].mode, given.stage[0].slope) == (torch.sin, "other", 0.1)


def test_masks_can_be_made_for_what_was_loaded(tmp_path: Path) -> None:
    model = made("residual")
    groups = structure(model, (X,), "test").groups
    mask(model, groups, random_units(groups, 1, 0.4))
    again = returned(compact(model, X), tmp_path, MODELS["residual"])
    scores = {name: torch.rand_like(p) for name, p in again.named_parameters()}
    masks = prune(again, scores, sparsity=0.5)
    assert masks.density() == pytest.approx(0.5, abs=0.01)
    assert compact(again, X) is not again


def test_blocks_that_compact_took_out(tmp_path: Path) -> None:
    """An identity, what is left of a downsampling block, and a constant."""

    class Wrapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = resnet(20)

        def forward(self, x: Tensor) -> Tensor:
            return self.body(x)

    torch.manual_seed(0)
    model, x = Wrapped(), torch.randn(2, 3, 8, 8)
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            nn.init.uniform_(tensor, 0.2, 1.0)
    body = model.body
    nn.init.zeros_(body.layer1[1].conv2.weight)  # a constant is left
    for block in (body.layer2[0], body.layer3[1]):
        for tensor in (block.conv2.weight, block.bn2.bias, block.bn2.running_mean):
            nn.init.zeros_(tensor)
    small = compact(model.eval(), x)
    kinds = {type(module) for module in small.modules()}
    assert Shift in kinds
    assert type(small.body.layer2[0]) is nn.Sequential
    assert len(small.body.layer3) == 2
    save(small, tmp_path)
    again = load(tmp_path, model=Wrapped)
    assert_same(again, small)
    assert torch.equal(again(x), small(x))
