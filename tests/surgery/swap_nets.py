"""A small network with masked layers that the tests of swap share."""

from __future__ import annotations

import importlib
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import resgrow
from resgrow.nn import BlockSparseConv2d, BlockSparseLinear
from resgrow.ops import reference
from resgrow.surgery import Speed

# The module: as an attribute of its package, the function of the same name hides it.
SWAP = importlib.import_module("resgrow.surgery.swap")
X = torch.randn(6, 3, 8, 8, generator=torch.Generator().manual_seed(1))
Y = torch.tensor([0, 1, 2, 3, 4, 0])
# The layers that have absent blocks, and what swap makes of them.
LAYERS = {"3": BlockSparseConv2d, "5": BlockSparseLinear}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 20, 3, padding=1, bias=False),
        nn.BatchNorm2d(20),
        nn.ReLU(),
        nn.Conv2d(20, 36, 3, stride=2, bias=False),
        nn.Flatten(),
        nn.Linear(36 * 9, 24),
        nn.ReLU(),
        nn.Linear(24, 5),
    )


def block_masks(model: nn.Module, block: tuple[int, int] = (4, 1), seed: int = 2) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    masks = {}
    for name in LAYERS:
        shape = network().get_submodule(name).weight.shape
        over = torch.rand(-(-shape[0] // block[0]), -(-shape[1] // block[1]), *shape[2:], generator=generator) < 0.5
        masks[f"{name}.weight"] = reference.block_mask(over, shape, block)
    return masks


def pruned(model: nn.Module, block: tuple[int, int] = (4, 1)) -> resgrow.Masks:
    masks = resgrow.Masks(model, block_masks(model, block))
    masks.apply()
    return masks


def train(model: nn.Module, optimizers: list[Optimizer], steps: int = 2) -> None:
    dtype = next(model.parameters()).dtype
    for _ in range(steps):
        for optimizer in optimizers:
            optimizer.zero_grad()
        nn.functional.cross_entropy(model(X.to(dtype)), Y).backward()
        for optimizer in optimizers:
            optimizer.step()


def measured_as(
    monkeypatch: pytest.MonkeyPatch, seconds: Callable[[tuple[int, int]], float], dense: float = 1.0
) -> list[dict[str, object]]:
    """Lets swap find ``seconds(block)`` for every sparse layer and ``dense`` for every dense one; returns its calls."""
    calls: list[dict[str, object]] = []

    def measure(layer: nn.Module, shape: tuple[int, ...], mask: Tensor, block: tuple[int, int], **options) -> Speed:
        calls.append({"layer": layer, "shape": shape, "mask": mask, "block": block, **options})
        density = mask.float().mean().item()
        return Speed(
            dense=dense,
            sparse=seconds(block),
            ideal=dense * density,
            density=density,
            block=block,
            shape=tuple(shape),
            channels_last=options["channels_last"],
            train=options["train"],
            threads=1,
            dtype=str(options["dtype"]),
        )

    monkeypatch.setattr(SWAP, "measure", measure)
    return calls
