"""Operations with weights."""

from __future__ import annotations

import torch

from resgrow.surgery.structure.atoms import PINNED
from resgrow.surgery.structure.call import Call
from resgrow.surgery.structure.values import Labels, Tracker, Value


def convolution(track: Tracker, call: Call) -> Value:
    """``(N, C, *)`` or ``(C, *)`` with a weight ``(O, C / groups, *kernel)``."""
    x, weight, bias = call.value("input"), call.value("weight"), call.optional("bias")
    groups = int(call.get("groups", 1))
    channels = len(x.shape) - len(weight.shape) + 1
    outputs, inputs = track.along(weight, 0), track.along(weight, 1)
    read = track.along(x, channels)
    _pin_kernel(track, weight)
    if groups == 1:
        track.atoms.tie(inputs, read)
        track.read.append(inputs)
    else:
        track.pin(inputs, "inputs of a group")
        _tie_groups(track, groups, read, outputs)
    return _made(track, x, channels, outputs, bias, call)


def transposed_convolution(track: Tracker, call: Call) -> Value:
    """``(N, C, *)`` or ``(C, *)`` with a weight ``(C, O / groups, *kernel)``."""
    x, weight, bias = call.value("input"), call.value("weight"), call.optional("bias")
    groups = int(call.get("groups", 1))
    channels = len(x.shape) - len(weight.shape) + 1
    read, inputs, outputs = track.along(x, channels), track.along(weight, 0), track.along(weight, 1)
    _pin_kernel(track, weight)
    track.atoms.tie(inputs, read)
    track.read.append(inputs)
    if groups > 1:
        track.pin(outputs, "outputs of a group")
        outputs = track.atoms.fresh(groups).repeat_interleave(len(outputs))
        _tie_groups(track, groups, read, outputs)
    return _made(track, x, channels, outputs, bias, call)


def _pin_kernel(track: Tracker, weight: Value) -> None:
    for dim in range(2, len(weight.shape)):
        track.pin(track.along(weight, dim), "taps of a kernel")


def _tie_groups(track: Tracker, groups: int, read: torch.Tensor, outputs: torch.Tensor) -> None:
    """A group of channels goes as a whole, inputs and outputs: what is inside it keeps its shape."""
    if len(read) % groups or len(outputs) % groups:
        track.pin(torch.cat([read, outputs]), "groups of unequal size")
        return
    whole = torch.cat([read.view(groups, -1), outputs.view(groups, -1)], 1)
    track.atoms.tie(whole[:, 1:], whole[:, :1])


def _made(track: Tracker, x: Value, channels: int, outputs: torch.Tensor, bias: Value | None, call: Call) -> Value:
    if bias is not None:
        track.atoms.tie(track.along(bias, 0), outputs)
    kept = {dim: dim for dim in range(channels)}
    others = Value(x.shape, tuple(labels for labels in x.labels if channels not in labels.dims))
    return Value(
        call.shape, (*track.keep(others, call.shape, kept, "positions of an image"), Labels((channels,), outputs))
    )


def linear(track: Tracker, call: Call) -> Value:
    """``(*, I)`` with a weight ``(O, I)``."""
    x, weight, bias = call.value("input"), call.value("weight"), call.optional("bias")
    return product(track, x, weight, 1, 0, bias, call.shape)


def addmm(track: Tracker, call: Call) -> Value:
    """``bias + x @ weight``."""
    return product(track, call.value("mat1"), call.value("mat2"), 0, 1, call.value("input"), call.shape)


def product(
    track: Tracker, x: Value, weight: Value, inputs: int, outputs: int, bias: Value | None, shape: tuple[int, ...]
) -> Value:
    """``x (*, I)`` times a matrix whose dimensions are ``inputs`` and ``outputs``."""
    last = len(x.shape) - 1
    made, read = track.along(weight, outputs), track.along(weight, inputs)
    track.atoms.tie(read, track.along(x, last))
    track.read.append(read)
    if bias is not None:
        track.atoms.tie(track.along(bias, -1), made)
    others = tuple(labels for labels in x.labels if last not in labels.dims)
    return Value(shape, (*others, Labels((len(shape) - 1,), made)))


def embedding(track: Tracker, call: Call) -> Value:
    """Rows of a table ``(V, E)``: the rows stay, what is in a row can go."""
    weight = call.value("weight")
    track.pin(track.along(weight, 0), "rows of an embedding")
    return Value(call.shape, (Labels((len(call.shape) - 1,), track.along(weight, 1)),))


def batch_norm(track: Tracker, call: Call) -> Value:
    """``(N, C, *)``, each channel on its own."""
    x = call.value("input")
    channels = track.along(x, 1)
    for name in ("weight", "bias", "running_mean", "running_var"):
        value = call.optional(name)
        if value is not None:
            track.atoms.tie(track.along(value, 0), channels)
    others = Value(x.shape, tuple(labels for labels in x.labels if 1 not in labels.dims))
    track.pin_value(others, "what a norm averages over")
    return Value(x.shape, (Labels((1,), channels),) if bool((channels != PINNED).any()) else ())


def group_norm(track: Tracker, call: Call) -> Value:
    """Channels of a group are averaged over, so that they go together or not at all."""
    x, groups = call.value("input"), int(call.get("num_groups", 1))
    channels = track.along(x, 1)
    whole = channels.view(groups, -1)
    if groups == 1:
        track.pin(channels, "a norm averages over all channels")
    track.atoms.tie(whole[:, 1:], whole[:, :1])
    for name in ("weight", "bias"):
        value = call.optional(name)
        if value is not None:
            track.atoms.tie(track.along(value, 0), channels)
    return Value(x.shape, (Labels((1,), channels),))


def layer_norm(track: Tracker, call: Call) -> Value:
    """The last dimensions are averaged over: removing some would change the others."""
    x = call.value("input")
    count = len(call.get("normalized_shape", ()))
    normed = range(len(x.shape) - count, len(x.shape))
    for name in ("weight", "bias"):
        value = call.optional(name)
        if value is not None:
            track.pin_value(value, "a norm averages over it")
    kept = {dim: dim for dim in range(len(x.shape)) if dim not in normed}
    return Value(x.shape, tuple(track.keep(x, x.shape, kept, "a norm averages over it")))


def prelu(track: Tracker, call: Call) -> Value:
    """A slope for all, or one for each channel."""
    x, weight = call.value("self"), call.value("weight")
    if weight.shape == (1,):
        track.pin_value(weight, "one slope for all channels")
    else:
        track.atoms.tie(track.along(weight, 0), track.along(x, 1))
    return x


def tristate_relu(track: Tracker, call: Call) -> Value:
    """A gate for each channel."""
    x, gates = call.value("x"), call.value("w")
    track.atoms.tie(track.along(gates, 0), track.along(x, 1))
    return x
