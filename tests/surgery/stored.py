"""Networks of own classes, and what has to be the same of a model and of the one that comes back from a folder."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from structure_nets import X, random_units
from torch import Tensor, nn

from resgrow.surgery.structure import Edit, remove, structure

IMAGES = X.float()


class Words(nn.Module):
    """Tied, with heads of torch's own attention, a buffer that is not saved, and a frozen layer."""

    def __init__(self, width: int = 12, words: int = 7) -> None:
        super().__init__()
        self.words = nn.Embedding(words, width)
        layer = nn.TransformerEncoderLayer(width, 4, 16, batch_first=True)
        self.layers = nn.TransformerEncoder(layer, 2)
        self.out = nn.Linear(width, words)
        self.out.weight = self.words.weight
        self.register_buffer("scale", torch.full((width,), 2.0), persistent=False)
        self.out.bias.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.layers(self.words(x) * self.scale))


def narrow_words() -> Words:
    torch.manual_seed(0)
    model = Words().eval()
    x = torch.randint(0, 7, (2, 5))
    groups = structure(model, (x,), "test").groups
    remove(Edit(model), groups, random_units(groups, 0, 0.5))
    return model


class Block(nn.Module):
    """A residual block with a setting that is no number, and one that is text."""

    def __init__(self, stride: int = 1, mode: str = "add") -> None:
        super().__init__()
        self.stride, self.mode, self.slope = stride, mode, 0.1
        self.conv = nn.Conv2d(4, 4, 3, stride, 1)
        self.shortcut = nn.Conv2d(4, 4, 1, stride) if stride > 1 else None
        self.relu = nn.ReLU()
        self.act: Callable[[Tensor], Tensor] = torch.tanh

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.act(self.conv(x)) + self.slope * (x if self.shortcut is None else self.shortcut(x)))


class Stages(nn.Module):
    def __init__(self, blocks: int = 2) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.stage = nn.Sequential(Block(2), *(Block() for _ in range(blocks - 1)))
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stage(self.stem(x)).mean((2, 3)))


def assert_same(again: nn.Module, model: nn.Module) -> None:
    """All tensors to the bit, in the same dtypes and memory formats, modes, and what is shared."""
    names = [name for name, _ in model.named_modules(remove_duplicate=False)]
    assert [name for name, _ in again.named_modules(remove_duplicate=False)] == names
    for one, other in zip(_modules(again), _modules(model), strict=True):
        assert one.training == other.training
        assert one.extra_repr() == other.extra_repr()
        assert one._non_persistent_buffers_set == other._non_persistent_buffers_set
    first, second = _tensors(again), _tensors(model)
    assert first.keys() == second.keys()
    for name, tensor in second.items():
        assert torch.equal(first[name], tensor), name
        assert first[name].dtype == tensor.dtype
        assert first[name].stride() == tensor.stride(), name
        assert first[name].requires_grad == tensor.requires_grad, name
        assert type(first[name]) is type(tensor)
    assert _shared(first) == _shared(second)
    assert again.state_dict().keys() == model.state_dict().keys()


def bits(model: nn.Module) -> list[Any]:
    """All that `load` could change of a model, objects and values."""
    tensors = _tensors(model)
    result: list[Any] = [(name, id(module), type(module)) for name, module in model.named_modules()]
    for module in model.modules():
        plain = {name: value for name, value in vars(module).items() if isinstance(value, int | float | tuple | list)}
        result.append((repr(plain), list(module._modules), list(module._parameters), list(module._buffers)))
    result += [(n, id(t), t.data_ptr(), t._version, t.requires_grad, t.tolist()) for n, t in tensors.items()]
    return result


def edit(folder: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    """Another ``model.json``: ``change`` gets what is in it and alters that."""
    head = json.loads((folder / "model.json").read_text())
    change(head)
    (folder / "model.json").write_text(json.dumps(head))


def _modules(model: nn.Module) -> list[nn.Module]:
    return [module for _, module in model.named_modules(remove_duplicate=False)]


def _tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters(remove_duplicate=False)), **dict(model.named_buffers(remove_duplicate=False))}


def _shared(tensors: dict[str, Tensor]) -> list[list[str]]:
    places: dict[int, list[str]] = {}
    for name, tensor in tensors.items():
        places.setdefault(id(tensor), []).append(name)
    return list(places.values())
