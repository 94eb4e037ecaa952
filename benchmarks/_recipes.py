"""Networks that accuracy_blocks.py trains, and how: LeNet-5 on MNIST, ResNet-20 on CIFAR-10."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import resgrow
from resgrow.data import Dataset, load
from resgrow.surgery import Masks

BATCH, RISING = 128, 0.25  # images per step; share of dense training in which the learning rate rises
PAD = 4  # pixels by which an image is shifted at most, in each direction


@dataclass(frozen=True)
class Recipe:
    """A network, its data, and the two trainings: ``epochs`` of the dense one, ``tuning`` steps of a pruned one."""

    title: str
    data: str
    make: Callable[[], nn.Module]
    optimizer: Callable[..., torch.optim.Optimizer]
    options: dict[str, Any]
    epochs: int
    rate: float
    tuning: int
    tuning_rate: float
    shifted: bool = False  # random shifts and flips of the training images
    half: bool = False  # forward and backward pass in bfloat16 (autocast); weights and evaluation stay in float32

    def load(self, cifar: Path | None) -> Dataset:
        """MNIST from $RESGROW_DATA_DIR; CIFAR-10 from the folder with its binary batches."""
        if self.data == "mnist":
            return load("mnist")
        if cifar is None:
            raise SystemExit(f"accuracy_blocks: {self.title} needs --cifar FOLDER, with cifar-10-batches-bin in it")
        return load(cifar)


RECIPES = {
    "lenet5": Recipe(
        "LeNet-5 (20-50-500-10) on MNIST", "mnist", resgrow.nn.lenet5, torch.optim.Adam, {}, 3, 1e-3, 469, 3e-4
    ),
    "resnet20": Recipe(
        "ResNet-20 on CIFAR-10",
        "cifar",
        resgrow.nn.resnet,
        torch.optim.SGD,
        {"momentum": 0.9, "nesterov": True, "weight_decay": 5e-4},
        8,
        0.2,
        150,
        0.02,
        shifted=True,
        half=True,
    ),
}


def dense(recipe: Recipe, data: Dataset, seed: int, epochs: int, tell: Callable[[str], None]) -> nn.Module:
    """The network before anything is removed."""
    torch.manual_seed(seed)
    model = recipe.make().to(memory_format=torch.channels_last)
    return train(model, recipe, data, epochs * steps_per_epoch(data), recipe.rate, seed, rising=RISING, tell=tell)


def steps_per_epoch(data: Dataset) -> int:
    return -(-len(data.train_y) // BATCH)


def train(
    model: nn.Module,
    recipe: Recipe,
    data: Dataset,
    steps: int,
    rate: float,
    seed: int,
    masks: Masks | None = None,
    rising: float = 0.0,
    tell: Callable[[str], None] | None = None,
) -> nn.Module:
    """``steps`` steps; the learning rate rises linearly, then falls to zero as a cosine. Leaves eval mode."""
    generator = torch.Generator().manual_seed(seed)
    optimizer = recipe.optimizer(model.parameters(), lr=rate, **recipe.options)
    if masks is not None:
        masks.attach(optimizer)
    model.train()
    order: list[Tensor] = []
    for step in range(steps):
        if not order:
            order = list(torch.randperm(len(data.train_y), generator=generator).split(BATCH))
        for group in optimizer.param_groups:
            group["lr"] = rate * cycle(step, steps, rising)
        picked = order.pop()
        x = data.train_x[picked]
        if recipe.shifted:
            x = shift_and_flip(x, generator)
        with torch.autocast("cpu", torch.bfloat16, enabled=recipe.half):
            loss = F.cross_entropy(model(x), data.train_y[picked])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if tell is not None and (step + 1) % 100 == 0:
            tell(f"step {step + 1} of {steps}, loss {loss.item():.3f}")
    if masks is not None:
        masks.detach()
    return model.eval()


def cycle(step: int, steps: int, rising: float) -> float:
    """Factor on the learning rate: linearly up to 1 over the share ``rising`` of the steps, then a cosine to zero."""
    top = round(rising * steps)
    if step < top:
        return (step + 1) / (top + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - top) / (steps - top)))


def shift_and_flip(x: Tensor, generator: torch.Generator) -> Tensor:
    """Each image shifted by up to `PAD` pixels, zeros (the mean) moving in, and mirrored or not.

    ``(N, C, H, W)`` to the same shape, channels last.
    """
    count, _, height, width = x.shape
    padded = F.pad(x, (PAD, PAD, PAD, PAD)).permute(0, 2, 3, 1)
    offsets = torch.randint(2 * PAD + 1, (2, count, 1), generator=generator)
    rows, columns = offsets[0] + torch.arange(height), offsets[1] + torch.arange(width)
    mirrored = torch.rand(count, 1, generator=generator) < 0.5
    columns = torch.where(mirrored, columns.flip(1), columns)
    return padded[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
