"""What the scripts that measure accuracy against sparsity share: removing, checking, evaluating, saving a plot."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import resgrow
from resgrow.surgery import Masks

Block = tuple[int, int] | str
LAYER_SLACK, CHANNEL_SLACK = 0.002, 0.08  # layers round one by one; a channel goes with much else


def remove(
    model: nn.Module,
    scores: Mapping[str, Tensor],
    sparsity: float,
    block: Block,
    before: Masks | None = None,
    **options: Any,
) -> Masks:
    """Prunes in place, with ``options`` of `resgrow.prune`; what ``before`` lacks goes first, whatever its score.

    ``scores`` is changed: it should be made anew for each call that has a ``before``.
    """
    for name, mask in (before or {}).items():
        if name in scores:
            scores[name] = scores[name].masked_fill(~mask, min(0.0, scores[name].min().item()) - 1)
    masks = resgrow.prune(model, scores, sparsity=sparsity, block=block, **options)
    if before is not None:
        came_back = sum(int((masks[name] & ~mask).sum()) for name, mask in before.items())
        assert came_back == 0, f"{came_back} removed weights came back"
    return masks


def check(model: nn.Module, masks: Masks, block: Block, sparsity: float) -> float:
    """The share removed: it is what was asked for, and what was removed is zero, also after training."""
    removed = 1 - masks.density()
    total = sum(mask.numel() for mask in masks.values())
    slack = CHANNEL_SLACK if isinstance(block, str) else LAYER_SLACK + block[0] * block[1] / total
    assert sparsity - LAYER_SLACK <= removed <= sparsity + slack, f"asked for {sparsity}, removed {removed}"
    for name, mask in masks.items():
        assert not model.get_parameter(name)[~mask].any(), f"removed weights of {name} are not zero"
    return removed


@torch.no_grad()
def accuracy(model: nn.Module, x: Tensor, y: Tensor, batch: int = 500) -> float:
    """Percent of images named right, in eval mode."""
    model.eval()
    pairs = zip(x.split(batch), y.split(batch), strict=True)
    return 100 * sum(int((model(a).argmax(1) == b).sum()) for a, b in pairs) / len(y)


def save_plot(figure: Any, path: Path) -> None:
    """A small PNG: a palette takes a third of the bytes."""
    from PIL import Image

    figure.savefig(path, dpi=80)
    with Image.open(path) as image:
        small = image.convert("RGB").quantize(128)
    small.save(path, optimize=True)
