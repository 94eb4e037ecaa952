"""The mean loss as it is: what every prediction is compared with."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from resgrow._modes import eval_mode
from resgrow.curvature.batches import Batch, call
from resgrow.curvature.heads import LossFn, head_of
from resgrow.curvature.request import inverse


def mean_loss(
    op: str,
    model: nn.Module,
    loss_fn: LossFn,
    batches: Sequence[Batch],
    weights: Mapping[str, Tensor] | None = None,
) -> float:
    """Mean loss over ``batches`` in eval mode, with ``weights`` standing in for the model's own.

    It is the sum of losses over the sum of what they count for, on the scale of ``resgrow.curvature``.

    Args:
        op: name of the caller, for messages.
        weights: ``{parameter name: tensor}``; the model itself is not changed.

    Raises:
        ValueError: the loss is NaN, or no target counts. An infinite one is returned: a deletion may well cause it.
    """
    return _mean(op, model, loss_fn, batches, weights, lambda output: output)


def uninformed_loss(op: str, model: nn.Module, loss_fn: LossFn, batches: Sequence[Batch]) -> float:
    """Mean loss if the model answered the mean of its outputs to every sample of a batch: its outputs' scale, and
    nothing of what it knows about the inputs.

    Raises:
        ValueError: as `mean_loss`.
    """
    return _mean(op, model, loss_fn, batches, None, lambda output: output.mean(0, keepdim=True).expand_as(output))


def _mean(
    op: str,
    model: nn.Module,
    loss_fn: LossFn,
    batches: Sequence[Batch],
    weights: Mapping[str, Tensor] | None,
    seen: Callable[[Tensor], Tensor],
) -> float:
    head = head_of(op, loss_fn)
    total, weight = 0.0, 0.0
    with torch.no_grad(), eval_mode(model):
        for inputs, target in batches:
            output = seen(call(model, inputs, weights))
            loss = float(head.loss(output, target))
            if math.isnan(loss):
                raise ValueError(f"{op}: the loss is NaN; check the data, or lower the learning rate")
            total += loss
            weight += head.total(output, target)
    return total * inverse(op, weight)
