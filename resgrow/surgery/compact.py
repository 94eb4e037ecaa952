"""Physically smaller copies of networks that masks have emptied."""

import copy

import torch
from torch import Tensor, nn

from resgrow.surgery.constants import can_absorb, produced, through
from resgrow.surgery.forward import Inputs, as_inputs, evaluate, require_same
from resgrow.surgery.groups import ChannelGroup, channel_groups, walkable
from resgrow.surgery.slices import keep_inputs, keep_outputs
from resgrow.surgery.structure import Edit, remove, structure, unread


def compact(model: nn.Module, example_inputs: Inputs) -> nn.Module:
    """A copy of the model without the channels that have no effect, with the same outputs in evaluation mode.

    A channel goes where nobody reads it (the consumers' weights for it are all zero), or where it is constant (its
    producer's weights are all zero, or a norm's gain or a gate is): zeros without further ado, other constants where
    the consumer's bias can hold them exactly, that is in front of a Linear or a convolution without zero padding. What
    goes may empty others, so this repeats until nothing changes. Each layer keeps at least one channel.

    Zeros count however they came about: masks of channels, of blocks, or of single weights.

    In other models than those of the first kind below, what goes is what nobody reads: units are found by following the
    model's operations, and are channels (also of residual streams and concatenations), groups of channels, attention
    heads, or neurons. What a norm or a softmax runs over has to stay, since the others would change.

    Args:
        model: `nn.Sequential` of Conv2d, Linear, BatchNorm2d, ReLU, TriStateReLU, pooling, Flatten, Dropout and
            Identity (channels next to other layers stay), or `resgrow.nn.ResNet` (channels inside blocks); or any
            model that ``torch.export`` can follow. Unchanged.
        example_inputs: a tensor or the sequence of the model's arguments; both models are run on it.

    Returns:
        The smaller copy, with the original's dtypes, devices, layouts, training flags and requires_grad; gradients
        are not copied. An optimizer has to be made anew for it.

    Raises:
        ValueError: ``torch.export`` cannot follow the model, the model does not run on example_inputs or is not finite
            there, or layers of a model of the first kind share parameters.
        RuntimeError: the copy's outputs differ by more than rounding.
    """
    inputs = as_inputs(example_inputs, "compact")
    if walkable(model):
        channel_groups(model, "compact")
    expected = evaluate(model, inputs, "compact")
    if not expected.isfinite().all():
        raise ValueError("compact: the model's outputs must be finite to be compared (got NaN or inf); check weights")
    small = copy.deepcopy(model)
    if walkable(model):
        while any([_shrink(small, group) for group in channel_groups(small, "compact")]):
            pass
    else:
        groups = structure(small, inputs, "compact").groups
        remove(Edit(small), groups, unread(small, groups))
    require_same(expected, evaluate(small, inputs, "compact"), "compact")
    return small


def _shrink(model: nn.Module, group: ChannelGroup) -> bool:
    """Remove what can go from one group, in place; whether anything could."""
    producer = model.get_submodule(group.producer)
    assert isinstance(producer, nn.Conv2d | nn.Linear)
    removable = torch.ones(group.size, dtype=torch.bool, device=producer.weight.device)
    absorbed = []
    for reader in group.consumers:
        consumer = model.get_submodule(reader.name)
        assert isinstance(consumer, nn.Conv2d | nn.Linear)
        constant = produced(producer)
        for name in reader.path:
            constant = through(model.get_submodule(name), constant)
        columns = consumer.weight.detach().unflatten(1, (group.size, reader.repeat))
        unread = ~(columns != 0).movedim(1, 0).flatten(1).any(1)
        harmless = constant.known & ((constant.value == 0) | can_absorb(consumer))
        removable &= unread | harmless
        absorbed.append((consumer, columns, torch.where(unread, 0, constant.value)))
    if removable.all():
        removable[0] = False
    if not removable.any():
        return False
    for consumer, columns, value in absorbed:
        _add_to_bias(consumer, columns, torch.where(removable, value, 0))
    index = (~removable).nonzero().flatten()
    for name in (group.producer, *group.followers):
        keep_outputs(model.get_submodule(name), index)
    for reader in group.consumers:
        keep_inputs(model.get_submodule(reader.name), index, reader.repeat)
    return True


def _add_to_bias(consumer: nn.Conv2d | nn.Linear, columns: Tensor, value: Tensor) -> None:
    """Let the bias take over constant inputs: ``columns`` (O, C, repeat, *k), ``value`` (C,), zero for the rest."""
    if not value.any():
        return
    shift = columns.flatten(2).sum(2) @ value
    if consumer.bias is None:
        consumer.bias = nn.Parameter(shift, consumer.weight.requires_grad)
    else:
        consumer.bias.data += shift
