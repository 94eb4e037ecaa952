"""Elementwise functions, arithmetic, views and functions in place: what ``lecun`` is compared on."""

from __future__ import annotations

from collections.abc import Callable

import torch
from lecun_layers import DOUBLE, MASK, Case, X, case, draw, positive, third, words
from torch import Tensor
from torch.nn import functional as F

from resgrow.ops import tristate_relu

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    name: getattr(F, name)
    for name in words(
        "relu relu6 hardtanh leaky_relu elu selu celu gelu silu mish softplus softsign tanhshrink softshrink "
        "hardshrink hardsigmoid hardswish logsigmoid sigmoid tanh"
    )
}
ACTIVATIONS |= {
    "threshold": lambda x: F.threshold(x, 0.1, 3.0),
    "rrelu": lambda x: F.rrelu(x, 0.1, 0.4),
    "gelu tanh": lambda x: F.gelu(x, approximate="tanh"),
    "leaky_relu slope": lambda x: F.leaky_relu(x, 0.3),
    "elu alpha": lambda x: F.elu(x, 0.7),
    "softplus beta": lambda x: F.softplus(x, 2.0, 1.0),
    "clamp": lambda x: x.clamp(-0.5, 0.7),
    "clip": lambda x: x.clip(-0.5, 0.7),
    "clamp_min": lambda x: x.clamp_min(0.2),
    "clamp_max": lambda x: x.clamp_max(0.2),
    "nan_to_num": lambda x: x.nan_to_num(),
    "positive": lambda x: +x,
    "abs": torch.abs,
    "erf": torch.erf,
    "exp": torch.exp,
    "exp2": torch.exp2,
    "expm1": torch.expm1,
    "square": torch.square,
    "sin": torch.sin,
    "cos": torch.cos,
    "sinh": torch.sinh,
    "cosh": torch.cosh,
    "atan": torch.atan,
    "asinh": torch.asinh,
    "tan": lambda x: torch.tan(x / 3),
    "erfc": torch.erfc,
    "pow": lambda x: x**3,
    "rpow": lambda x: 2**x,
    "tristate_relu": lambda x: tristate_relu(x, draw(4), torch.zeros((), dtype=DOUBLE)),
}
POSITIVE: dict[str, Callable[[Tensor], Tensor]] = {
    name: getattr(torch, name) for name in words("log log1p log2 log10 sqrt rsqrt reciprocal")
}
POSITIVE |= {name: third(getattr(torch, name)) for name in words("asin acos atanh logit")}
POSITIVE |= {
    "acosh": lambda x: torch.acosh(x + 1),
    "pow": lambda x: torch.pow(x, 1.7),
    "rdiv": lambda x: 3 / x,
    "divide constant by activation": lambda x: torch.div(draw(2, 4, 5, 4), x),
}

ARITHMETIC: dict[str, Case] = {
    "add": case(lambda x, y: x + y, X, draw(4, 1, 1)),
    "add constant": case(lambda x: 3 + x, X),
    "add alpha": case(lambda x, y: torch.add(x, y, alpha=-2), X, draw(2, 4, 5, 4, seed=3)),
    "add parameter": case(lambda x, p: x + p[:, None], X, p=(draw(5),)),
    "sub": case(lambda x, y: x - y, X, draw(2, 4, 5, 1)),
    "sub alpha": case(lambda x, y: torch.sub(x, y, alpha=3), X, draw(2, 4, 5, 1)),
    "sub constant": case(lambda x: x - 1, X),
    "rsub": case(lambda x: 1 - x, X),
    "rsub tensor": case(lambda x: draw(5, 1) - x, X),
    "mul": case(lambda x: x * 3, X),
    "rmul": case(lambda x: -2.5 * x, X),
    "mul tensor": case(lambda x: x * draw(4, 1, 1), draw(2, 1, 5, 4)),
    "mul tensor first": case(lambda x: draw(4, 1, 1) * x, X),
    "mul parameter": case(lambda x, p: x * p[:, None, None], X, p=(draw(4),)),
    "mul parameter first": case(lambda x, p: p * x, X, p=(draw(4),)),
    "mul parameter by data": case(lambda p: p * draw(3, 4), p=(draw(4),)),
    "div": case(lambda x: x / 3, X),
    "div tensor": case(lambda x: x / positive(4, 1, 1), X),
    "div parameter": case(lambda x, p: x / p, X, p=(positive(4),)),
    "pow parameter": case(lambda x, p: x**p, positive(3, 4), p=(positive(4),)),
    "neg": case(lambda x: -x, X),
}

VIEWS: dict[str, Case] = {
    name: case(function, X)
    for name, function in {
        "view": lambda x: x.view(2, -1),
        "reshape": lambda x: x.reshape(8, 20),
        "flatten": lambda x: x.flatten(1),
        "unflatten": lambda x: x.unflatten(1, (2, 2)),
        "permute": lambda x: x.permute(0, 2, 3, 1),
        "transpose": lambda x: x.transpose(1, 2),
        "mT": lambda x: x.mT,
        "squeeze": lambda x: x.unsqueeze(1).squeeze(1),
        "expand": lambda x: x[:, :1].expand(-1, 3, -1, -1),
        "getitem": lambda x: x[:, [0, 2, 2], 1:],
        "select": lambda x: x.select(1, 2),
        "narrow": lambda x: x.narrow(2, 1, 2),
        "index_select": lambda x: x.index_select(1, torch.tensor([3, 3, 0])),
        "gather": lambda x: x.gather(1, torch.zeros(2, 2, 5, 4, dtype=torch.long)),
        "chunk": lambda x: torch.cat(x.chunk(2, 1)[::-1], 1),
        "split": lambda x: x.split([1, 3], 1)[1],
        "unbind": lambda x: x.unbind(1)[1],
        "iteration": lambda x: sum(x),
        "cat": lambda x: torch.cat([x, x.relu(), torch.ones(2, 1, 5, 4, dtype=DOUBLE)], 1),
        "stack": lambda x: torch.stack([x, x], 1),
        "repeat": lambda x: x.repeat(1, 2, 1, 1),
        "repeat_interleave": lambda x: x.repeat_interleave(2, 1),
        "pad": lambda x: F.pad(x, (1, 0, 2, 1), value=3.0),
        "pad reflect": lambda x: F.pad(x, (1, 1, 1, 1), mode="reflect"),
        "pad circular": lambda x: F.pad(x, (1, 1, 1, 1), mode="circular"),
        "pixel_shuffle": lambda x: F.pixel_shuffle(x, 2),
        "pixel_unshuffle": lambda x: F.pixel_unshuffle(x[:, :, :4], 2),
        "channel_shuffle": lambda x: F.channel_shuffle(x, 2),
        "unfold": lambda x: F.unfold(x, 2),
        "roll": lambda x: x.roll(1, 2),
        "flip": lambda x: x.flip(1),
        "where": lambda x: torch.where(MASK, x, 0.0),
        "masked_fill": lambda x: x.masked_fill(MASK, 2.0),
        "clone": lambda x: x.clone().contiguous(),
        "to": lambda x: x.to(torch.float64).double(),
        "broadcast_to": lambda x: x[:1].broadcast_to(3, 4, 5, 4),
        "broadcast_tensors": lambda x: torch.broadcast_tensors(x, torch.zeros(3, 1, 1, 1, 1))[0],
        "expand_as": lambda x: x[:1].expand_as(x),
        "view_as": lambda x: x.view_as(torch.zeros(8, 20)),
        "reshape_as": lambda x: x.reshape_as(torch.zeros(8, 20)),
        "ravel": lambda x: x.ravel(),
        "movedim": lambda x: x.movedim(1, 3).moveaxis(0, 1),
        "swapaxes": lambda x: x.swapaxes(1, 3).swapdims(0, 1),
        "t": lambda x: x[0, 0].t(),
        "diagonal": lambda x: x.diagonal(0, 2, 3),
        "diag": lambda x: x[0, 0].diag(),
        "triangles": lambda x: torch.stack([x.tril(), x.triu()]),
        "tile": lambda x: x.tile(2, 1, 1, 1),
        "take_along_dim": lambda x: x.take_along_dim(torch.tensor([[[[1]]]]), 1),
        "masked_select": lambda x: x.masked_select(MASK),
        "fold": lambda x: F.fold(x[:, :, 0], (3, 3), 2),
        "stacks": lambda x: torch.hstack([torch.vstack([x, x]), torch.dstack([x, x]).reshape(4, 4, 5, 4)]),
        "concat": lambda x: torch.concat([torch.concatenate([x, x]), x]),
        "splits": lambda x: torch.cat(
            [x.tensor_split(3, 1)[0], x.hsplit(2)[1], x.vsplit(2)[0].expand(2, -1, -1, -1)], 1
        ),
        "split_with_sizes": lambda x: x.split_with_sizes([1, 4], 2)[1],
        "turns": lambda x: x.fliplr() + x.flipud() + x.rot90(2, (2, 3)),
        "type_as": lambda x: x.type(DOUBLE).type_as(x).cpu(),
        "steps": lambda x: x + x.round() + x.floor() + x.ceil() + x.trunc() + x.sign(),
        "dropout1d": lambda x: F.dropout1d(x[0], training=False),
        "dropout3d": lambda x: F.dropout3d(x, training=False),
        "feature dropouts": lambda x: F.feature_alpha_dropout(torch.feature_dropout(x, 0.5, False)),
        "dropout": lambda x: F.dropout(x, 0.5, False),
        "dropout2d": lambda x: F.dropout2d(x, training=False),
        "alpha_dropout": lambda x: F.alpha_dropout(x),
        "detach": lambda x: x + x.detach(),
        "metadata": lambda x: x if x.dim() == 4 and x.shape[0] == len(x) and bool((x > -9).all()) else -x,
    }.items()
}


# torch has no second derivative of these, which are piecewise linear.
LINEAR = {"hardsigmoid", "tristate_relu"}


def written(x: Tensor) -> Tensor:
    y = x.clone()
    y[:, 1] = x[:, 0]
    y[:, 2] = 0
    return y


IN_PLACE: dict[str, Case] = {
    name: case(lambda x, f=function: f(x.clone()), X, curved=name not in LINEAR)
    for name, function in {
        "relu": lambda x: F.relu(x, inplace=True),
        "relu_": lambda x: x.relu_(),
        "hardtanh": lambda x: F.hardtanh(x, inplace=True),
        "leaky_relu": lambda x: F.leaky_relu(x, 0.2, True),
        "leaky_relu_": lambda x: F.leaky_relu_(x, 0.3),
        "elu": lambda x: F.elu(x, 0.5, inplace=True),
        "selu": lambda x: F.selu(x, True),
        "celu": lambda x: F.celu(x, inplace=True),
        "silu": lambda x: F.silu(x, inplace=True),
        "mish": lambda x: F.mish(x, inplace=True),
        "hardswish": lambda x: F.hardswish(x, inplace=True),
        "hardsigmoid": lambda x: F.hardsigmoid(x, inplace=True),
        "sigmoid_": lambda x: x.sigmoid_(),
        "tanh_": lambda x: x.tanh_(),
        "exp_": lambda x: x.exp_(),
        "dropout": lambda x: F.dropout(x, training=False, inplace=True),
        "add_": lambda x: x.add_(2).add_(draw(4)),
        "mul_": lambda x: x.mul_(draw(5, 1)),
        "copy_": lambda x: torch.zeros_like(x).copy_(x),
        "fill_": lambda x: x[:, 1].fill_(2) + x[:, 0],
        "zero_": lambda x: x[:, 1].zero_() + x[:, 0],
        "clamp_": lambda x: x.clamp_(min=-0.3),
    }.items()
}
IN_PLACE |= {
    "setitem": case(written, X),
    "iadd": case(lambda x, y: x.clone().add_(y), X, draw(2, 4, 5, 4, seed=2)),
    "isub": case(lambda x, y: x.clone().sub_(y), X, draw(2, 4, 5, 4, seed=2)),
    "mul_ parameter": case(lambda x, p: x.clone().mul_(p), X, p=(draw(4),)),
    "view": case(lambda x: x.clone().flatten(1).sigmoid_(), X),
}

SMOOTH = {name: case(f, X, curved=name not in LINEAR) for name, f in ACTIVATIONS.items()} | {
    f"{name} of positive": case(f, positive(2, 4, 5, 4)) for name, f in POSITIVE.items()
}
