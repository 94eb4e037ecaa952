"""What constants become: one rule for each operation, all else gives nothing known.

Tensors are known by float64 ones of as many dimensions: of size 1 where nothing changes along a dimension, NaN where
nothing is known. Most operations are simply run on that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from resgrow.surgery.structure.call import Call, by_name


@dataclass(frozen=True)
class Known:
    """``values`` can be expanded to ``shape``."""

    shape: tuple[int, ...]
    values: Tensor

    def along(self, dim: int) -> Tensor:
        """``(size,)``: NaN for what changes along other dimensions."""
        dim %= len(self.shape)
        rows = self.values.movedim(dim, 0).flatten(1) if self.values.dim() > 1 else self.values[:, None]
        same = (rows == rows[:, :1]).all(1)
        return torch.where(same, rows[:, 0], torch.nan).expand(self.shape[dim])


@dataclass(frozen=True)
class Reading:
    """The result of a layer, and what it reads: ``value`` ``(I,)``, ``uniform`` as in `constants.Read`."""

    out: Known
    value: Tensor
    uniform: bool


def _pointwise(call: Call) -> Known:
    arguments = {
        name: each.values.clone() if isinstance(each, Known) else each
        for name, each in call.arguments.items()
        if name not in ("dtype", "layout", "device", "memory_format")
    }
    if call.op._schema.is_mutable:
        # What is written over has to have room for the result.
        given = {name: each for name, each in arguments.items() if isinstance(each, Tensor)}
        written = next(iter(given))
        shape = torch.broadcast_shapes(*(each.shape for each in given.values()))
        arguments[written] = given[written].expand(shape).clone()
    return Known(call.shape, call.op(**arguments))


def _product(call: Call) -> Known:
    """Zero times anything is zero, also where nothing is known of that."""
    result = _pointwise(call).values
    for factor in (call.arguments["self"], call.arguments["other"]):
        if isinstance(factor, Known):
            result = torch.where(factor.values == 0, 0.0, result)
    return Known(call.shape, result)


def _zeros(call: Call) -> Known:
    return Known(call.shape, torch.zeros([1] * len(call.shape), dtype=torch.float64))


def _same(call: Call) -> Known:
    first: Known = next(each for each in call.arguments.values() if isinstance(each, Known))
    return Known(call.shape, first.values)


def _moved(call: Call) -> Any:
    """Rearranged, averaged: at full size."""
    made = call.op(**{name: _full(each) for name, each in call.arguments.items()})
    if isinstance(made, Tensor):
        return Known(call.shape, _compressed(made))
    return [Known(tuple(part.shape), _compressed(part)) for part in made]


def _reshaped(call: Call) -> Known:
    first = next(each for each in call.arguments.values() if isinstance(each, Known))
    return Known(call.shape, _compressed(_full(first).reshape(call.shape)))


def _full(argument: Any) -> Any:
    if isinstance(argument, Known):
        return argument.values.expand(argument.shape)
    return [_full(each) for each in argument] if isinstance(argument, list) else argument


def _compressed(x: Tensor) -> Tensor:
    for dim, size in enumerate(x.shape):
        first = x.narrow(dim, 0, min(size, 1))
        if size > 1 and bool(((x == first) | (x.isnan() & first.isnan())).all()):
            x = first
    return x


def _pooled(call: Call) -> Known:
    """Of what does not change over an image. Zeros at the border, where an average counts them, are no constant's."""
    (x,) = [each for each in call.arguments.values() if isinstance(each, Known)]
    values = x.values
    name = call.op._schema.name
    rank = next(n for n in (1, 2, 3) if f"{n}d" in name)
    if any(size > 1 for size in values.shape[-rank:]):
        values = torch.full([1] * len(x.shape), torch.nan, dtype=torch.float64)
    padding = call.get("padding", 0)
    padded = any(padding) if isinstance(padding, list) else bool(padding)
    if "avg_pool" in name and (padded or call.get("divisor_override") is not None):
        values = torch.where(values == 0, values, torch.nan)
    return Known(call.shape, values)


def _padded(call: Call) -> Known:
    """By its own values a constant is what it was; by zeros only zero is."""
    x = call.arguments["self"]
    values = x.values
    if any(size > 1 for size in values.shape[2:]):
        values = torch.full([1] * len(x.shape), torch.nan, dtype=torch.float64)
    if call.get("mode", "constant") == "constant":
        values = torch.where(values == (call.get("value") or 0.0), values, torch.nan)
    return Known(call.shape, values)


def _batch_norm(call: Call) -> Known:
    """In evaluation mode. With the batch's own statistics a constant is its own mean."""
    gain, bias, centred = _normed(call)
    return Known(call.shape, torch.where(gain == 0, bias, centred * gain + bias))


def _learning_batch_norm(call: Call) -> Known:
    """The same where a gain of zero may be another one tomorrow."""
    gain, bias, centred = _normed(call)
    return Known(call.shape, centred * gain + bias)


def _normed(call: Call) -> tuple[Tensor, Tensor, Tensor]:
    """Gain, bias and what they are applied to."""
    x = call.arguments["input"]
    shape = [1, -1, *[1] * (len(x.shape) - 2)]

    def each(name: str, default: float) -> Tensor:
        given = call.get(name)
        return torch.tensor(default, dtype=torch.float64) if given is None else given.values.view(shape)

    if call.get("running_mean") is None:
        centred = x.values - x.values
    else:
        centred = (x.values - each("running_mean", 0.0)) / (each("running_var", 1.0) + call.get("eps", 1e-5)).sqrt()
    return each("weight", 1.0), each("bias", 0.0), centred


def _standardised(call: Call) -> Known:
    """Over dimensions of a sample: known where all of these are."""
    if bool(call.arguments["input"].values.isnan().any()):
        return Known(call.shape, torch.full([1] * len(call.shape), torch.nan, dtype=torch.float64))
    known: Known = _moved(call)
    return known


def _gated(call: Call) -> Known:
    """``tristate_relu``: what a closed gate gives is zero whatever comes."""
    x, w, d = (call.arguments[name] for name in ("x", "w", "d"))
    gates = (w.values >= 0.5).double().view(1, -1, *[1] * (len(x.shape) - 2))
    slope = float(d.values >= 0.5)
    result = torch.where(x.values >= 0, x.values, slope * x.values)
    return Known(call.shape, torch.where(gates == 0, 0.0, result * gates))


def _convolution(call: Call) -> Reading:
    x, weight, bias = call.arguments["input"], call.arguments["weight"].values, call.get("bias")
    channels = len(x.shape) - weight.dim() + 1
    groups, padding = int(call.get("groups", 1)), call.get("padding", 0)
    value = x.along(channels)
    if isinstance(padding, str):
        uniform = padding == "valid" or all(size == 1 for size in weight.shape[2:])
    else:
        uniform = not any(padding if isinstance(padding, list) else [padding])
    outputs = len(weight)
    taps = weight.flatten(2).sum(2).view(groups, outputs // groups, -1)
    present = (weight != 0).flatten(2).any(2).view(taps.shape)
    added = value.view(groups, 1, -1) if uniform else torch.where(value == 0, 0.0, torch.nan).view(groups, 1, -1)
    total = torch.where(present, taps * added, 0.0).sum(2).flatten()
    return Reading(_layer_output(call, channels, total, bias), value, uniform and groups == 1)


def _transposed(call: Call) -> Reading:
    """How many of a constant's copies meet at a position varies: only zeros are known behind it."""
    x, weight, bias = call.arguments["input"], call.arguments["weight"].values, call.get("bias")
    channels = len(x.shape) - weight.dim() + 1
    groups = int(call.get("groups", 1))
    value = x.along(channels)
    present = (weight != 0).flatten(2).any(2).view(groups, -1, weight.shape[1])
    unknown = (present & (value != 0).view(groups, -1, 1)).any(1).flatten()
    return Reading(_layer_output(call, channels, torch.where(unknown, torch.nan, 0.0).double(), bias), value, False)


def _linear(call: Call) -> Reading:
    x, weight, bias = call.arguments["input"], call.arguments["weight"].values, call.get("bias")
    value = x.along(-1)
    total = torch.where(weight != 0, weight * value, 0.0).sum(1)
    return Reading(_layer_output(call, len(call.shape) - 1, total, bias), value, True)


def _layer_output(call: Call, channels: int, total: Tensor, bias: Known | None) -> Known:
    if bias is not None:
        total = total + bias.values
    return Known(call.shape, total.view([-1 if dim == channels else 1 for dim in range(len(call.shape))]))


Rule = Callable[[Call], Any]

_NAMES: tuple[tuple[Rule, str], ...] = (
    (
        _pointwise,
        "relu relu6 hardtanh clamp clamp_min clamp_max sigmoid tanh silu gelu hardswish hardsigmoid leaky_relu elu "
        "selu mish softplus add sub div neg abs exp sqrt pow prelu",
    ),
    (_product, "mul"),
    (_zeros, "zeros_like new_zeros"),
    (_same, "dropout feature_dropout alpha_dropout clone contiguous alias detach to _to_copy"),
    (_moved, "permute transpose t expand unbind select slice chunk split split_with_sizes cat roll flip mean sum"),
    (_reshaped, "view reshape _unsafe_view flatten unflatten squeeze unsqueeze view_as reshape_as"),
    (
        _pooled,
        "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d "
        "adaptive_avg_pool3d",
    ),
    (_padded, "pad constant_pad_nd"),
    (_batch_norm, "batch_norm"),
    (_standardised, "layer_norm group_norm rms_norm"),
    (_gated, "tristate_relu"),
    (_convolution, "conv1d conv2d conv3d"),
    (_transposed, "conv_transpose1d conv_transpose2d conv_transpose3d"),
    (_linear, "linear"),
)
_RULES = {name: rule for rule, names in _NAMES for name in names.split()}


# Where a scale of zero is no reason for a result of zero.
_LEARNING_SCALES: dict[str, Rule] = {"mul": _pointwise, "batch_norm": _learning_batch_norm}


def find_rule(op: Any, zero_scales: bool = True) -> Rule | None:
    """
    Args:
        zero_scales: what is multiplied by a gain or another parameter of zero is zero, whatever it is.
    """
    return (None if zero_scales else by_name(_LEARNING_SCALES, op)) or by_name(_RULES, op)
