"""Channels that carry the same number whatever the input: where they start and what becomes of them.

A channel whose producer has only zeros left gives its bias at every position. Following that number through the
layers behind tells what the consumer reads, and whether its bias can hold it instead. All of this is evaluation mode.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from resgrow.nn import TriStateReLU


@dataclass(frozen=True)
class Constants:
    """``known`` (C,) bool: the channel is constant; ``value`` (C,): its number there, meaningless elsewhere."""

    known: Tensor
    value: Tensor


def produced(layer: nn.Conv2d | nn.Linear) -> Constants:
    """Constant outputs of a layer: rows of zeros, which leave the bias. Padding does not change that."""
    weight = layer.weight.detach()
    known = ~(weight != 0).flatten(1).any(1)
    value = weight.new_zeros(weight.shape[0]) if layer.bias is None else layer.bias.detach()
    return Constants(known & value.isfinite(), value)


def through(layer: nn.Module, before: Constants) -> Constants:
    """What constants become behind a layer of the kinds that `channel_groups` lets channels pass."""
    rule = _RULES.get(type(layer))
    after = before if rule is None else rule(layer, before)
    return Constants(after.known & after.value.isfinite(), after.value)


def can_absorb(layer: nn.Conv2d | nn.Linear) -> bool:
    """Whether a constant input adds the same to every output position, so that the bias can take it over.

    With zero padding the border sees less of the constant than the middle does.
    """
    if isinstance(layer, nn.Linear) or layer.padding_mode != "zeros" or layer.padding == "valid":
        return True
    if layer.padding == "same":
        return all(size == 1 for size in layer.kernel_size)
    return all(padding == 0 for padding in layer.padding)


def _norm(layer: nn.BatchNorm2d, before: Constants) -> Constants:
    known, value = before.known, before.value
    if layer.running_mean is None or layer.running_var is None:
        # Statistics of the batch: a constant is its own mean.
        value = torch.zeros_like(value) if layer.bias is None else layer.bias.detach()
    else:
        batch = F.batch_norm(
            value.view(1, -1, 1, 1), layer.running_mean, layer.running_var, layer.weight, layer.bias, eps=layer.eps
        )
        value = batch.detach().flatten()
    if layer.weight is not None:
        silent = layer.weight.detach() == 0
        known = known | silent
        if layer.bias is not None:
            value = torch.where(silent, layer.bias.detach(), value)
    return Constants(known, value)


def _relu(layer: nn.Module, before: Constants) -> Constants:
    return Constants(before.known, before.value.relu())


def _gate(layer: TriStateReLU, before: Constants) -> Constants:
    closed = layer.w.detach() < 0.5
    with torch.no_grad():
        value = layer(before.value[None])[0]
    return Constants(before.known | closed, value.masked_fill(closed, 0))


def _average(layer: nn.AvgPool2d, before: Constants) -> Constants:
    padding = layer.padding if isinstance(layer.padding, tuple) else (layer.padding,)
    if layer.divisor_override is None and not any(padding):
        return before
    return Constants(before.known & (before.value == 0), before.value)


# Layers without a row (max-pool, adaptive pool, flatten, dropout, identity) pass a constant as it is.
_RULES: dict[type[nn.Module], Callable[..., Constants]] = {
    nn.BatchNorm2d: _norm,
    nn.ReLU: _relu,
    TriStateReLU: _gate,
    nn.AvgPool2d: _average,
}
