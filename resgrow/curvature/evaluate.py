"""The mean loss as it is: what every prediction is compared with."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from resgrow._modes import eval_mode
from resgrow.curvature.batches import Batch, call
from resgrow.curvature.heads import LossFn, reduction_of


def mean_loss(
    op: str,
    model: nn.Module,
    loss_fn: LossFn,
    batches: Sequence[Batch],
    weights: Mapping[str, Tensor] | None = None,
) -> float:
    """Mean loss per sample over ``batches`` in eval mode, with ``weights`` standing in for the model's own.

    Args:
        op: name of the caller, for messages.
        weights: ``{parameter name: tensor}``; the model itself is not changed.

    Raises:
        ValueError: the loss is NaN. An infinite one is returned: a deletion may well cause it.
    """
    mean = reduction_of(op, loss_fn) == "mean"
    total, count = 0.0, 0
    with torch.no_grad(), eval_mode(model):
        for inputs, target in batches:
            loss = float(loss_fn(call(model, inputs, weights), target))
            if math.isnan(loss):
                raise ValueError(f"{op}: the loss is NaN; check the data, or lower the learning rate")
            total += loss * target.shape[0] if mean else loss
            count += target.shape[0]
    return total / count
