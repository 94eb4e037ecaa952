"""Swapped models are the models they were: function, training, optimizer, state; and back again."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import resgrow
from resgrow.nn import BlockSparseConv2d, BlockSparseLinear
from resgrow.ops import reference


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    monkeypatch.setenv("RESGROW_CACHE_DIR", str(tmp_path))
    return tmp_path


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 20, 3, padding=1),
        nn.BatchNorm2d(20),
        nn.ReLU(),
        nn.Conv2d(20, 36, 3, stride=2, bias=False),
        nn.Flatten(),
        nn.Linear(36 * 9, 24),
        nn.ReLU(),
        nn.Linear(24, 5),
    )


X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))
LAYERS = {"3": BlockSparseConv2d, "5": BlockSparseLinear}


def block_masks(model: nn.Module, block: tuple[int, int] = (4, 1)) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(2)
    masks = {}
    for name in LAYERS:
        shape = model.get_submodule(name).weight.shape
        over = torch.rand(-(-shape[0] // block[0]), -(-shape[1] // block[1]), *shape[2:], generator=generator) < 0.5
        masks[f"{name}.weight"] = reference.block_mask(over, shape, block)
    return masks


def pruned(model: nn.Module, block: tuple[int, int] = (4, 1)) -> resgrow.Masks:
    masks = resgrow.Masks(model, block_masks(model, block))
    masks.apply()
    return masks


def test_function_is_kept_there_and_back() -> None:
    model = network().eval()
    masks = pruned(model)
    expected, weights = model(X), {name: w.clone() for name, w in model.state_dict().items()}
    table = resgrow.swap(model, masks, block=(4, 1), force=True)
    assert table.swapped == list(LAYERS)
    assert all(type(model.get_submodule(name)) is kind for name, kind in LAYERS.items())
    torch.testing.assert_close(model(X), expected)
    assert resgrow.unswap(model).swapped == []
    assert all(torch.equal(weights[name], w) for name, w in model.state_dict().items())
    assert repr(model) == repr(network())
