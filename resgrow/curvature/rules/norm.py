"""Normalisations: ``gain * normalised + bias``, where what normalises a sample is its own or fixed.

Folded rows of a sample (see :class:`~resgrow.curvature.rules.site.Site`) stand before the channels; they are moved
behind them, where they are positions like any others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from resgrow import ops
from resgrow.curvature.affine import relink
from resgrow.curvature.rules.site import Formula, PerSampleFn, Site, SquaresFn, channel_sums, tapped, wide
from resgrow.curvature.tapped import plain

Normalise = Callable[[Tensor], Tensor]


def batch_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    training: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Site:
    """``torch.batch_norm`` of ``input (N, C, *)`` with its running statistics, which are constants.

    Raises:
        ValueError: the batch's own statistics are used.
    """
    if training or running_mean is None or running_var is None:
        raise ValueError(
            "curvature: a batch norm without running statistics couples the samples of a batch; "
            "build it with track_running_stats=True, or freeze its parameters with requires_grad_(False)"
        )
    return _fixed(input, weight, bias, running_mean, running_var, eps)


def functional_batch_norm(
    input: Tensor,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    training: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Site:
    """``F.batch_norm``."""
    return batch_norm(input, weight, bias, running_mean, running_var, training, momentum, eps, False)


def instance_norm(
    input: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    running_mean: Tensor | None,
    running_var: Tensor | None,
    use_input_stats: bool,
    momentum: float,
    eps: float,
    cudnn_enabled: bool,
) -> Site:
    """``torch.instance_norm`` of ``input (N, C, *)``, with each sample's own statistics or running ones."""
    if not use_input_stats:
        assert running_mean is not None
        assert running_var is not None
        return _fixed(input, weight, bias, running_mean, running_var, eps)
    return _channels(input, weight, bias, lambda x: F.instance_norm(x, eps=eps))


def functional_instance_norm(
    input: Tensor,
    running_mean: Tensor | None = None,
    running_var: Tensor | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    use_input_stats: bool = True,
    momentum: float = 0.1,
    eps: float = 1e-5,
) -> Site:
    """``F.instance_norm``."""
    return instance_norm(input, weight, bias, running_mean, running_var, use_input_stats, momentum, eps, False)


def group_norm(
    input: Tensor,
    num_groups: int,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Site:
    """``F.group_norm`` and ``torch.group_norm`` of ``input (N, C, *)``."""
    return _channels(input, weight, bias, lambda x: F.group_norm(x, num_groups, eps=eps))


def layer_norm(
    input: Tensor,
    normalized_shape: Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Site:
    """``F.layer_norm`` and ``torch.layer_norm`` of ``input (*, *normalized_shape)``."""
    shape = tuple(normalized_shape)
    return _trailing("layer_norm", input, shape, weight, bias, eps, lambda x: F.layer_norm(x, shape, eps=eps))


def rms_norm(
    input: Tensor, normalized_shape: Sequence[int], weight: Tensor | None = None, eps: float | None = None
) -> Site:
    """``F.rms_norm`` of ``input (*, *normalized_shape)``."""
    shape = tuple(normalized_shape)
    return _trailing("rms_norm", input, shape, weight, None, eps, lambda x: F.rms_norm(x, shape, eps=eps))


def _fixed(x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, eps: float) -> Site:
    rstd = (var + eps).rsqrt()

    def squares(x: Tensor, grad: Tensor, roles: frozenset[str]) -> dict[str, Tensor]:
        gain, shift = ops.squared_grad_norm(_behind(x, dims), _behind(grad, dims), mean, rstd)
        return {"weight": gain, "bias": shift}

    def normalise(x: Tensor) -> Tensor:
        shape = (-1, *(1,) * (dims - 2))
        return (x - mean.view(shape)) * rstd.view(shape)

    dims = x.dim()
    scale = rstd if weight is None else rstd * plain(weight)
    per_sample = partial(_per_sample, normalise, partial(channel_sums, dims=dims))
    return Site(
        x,
        Formula(tapped(weight=weight, bias=bias), squares, per_sample),
        (0,),
        batched=True,
        relink=lambda output: relink(x, output, scale),
    )


def _channels(x: Tensor, weight: Tensor | None, bias: Tensor | None, normalise: Normalise) -> Site:
    """Gain and bias per channel, in dimension 1."""
    dims = x.dim()

    def rows(x: Tensor) -> Tensor:
        return normalise(x.flatten(0, x.dim() - dims)).view_as(x)

    sums = partial(channel_sums, dims=dims)
    return Site(x, Formula(tapped(weight=weight, bias=bias), *_formulas(rows, sums)), (0,), batched=True)


def _trailing(
    kind: str,
    x: Tensor,
    shape: tuple[int, ...],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float | None,
    normalise: Normalise,
) -> Site:
    """Gain and bias per element of the trailing dimensions ``shape``."""

    def sums(product: Tensor) -> Tensor:
        return product.reshape(product.shape[0], -1, *shape).sum(1)

    operands = tapped(weight=weight, bias=bias)
    formula = Formula(operands, *_formulas(normalise, sums), features=len(shape), joins=(kind, shape, eps))
    return Site(x, formula, range(x.dim() - len(shape)))


def _formulas(normalise: Normalise, sums: Normalise) -> tuple[SquaresFn, PerSampleFn]:
    """Both formulas of a norm whose gradients ``sums`` adds over positions: ``(n, *) -> (n, *shape)``."""

    def squares(x: Tensor, grad: Tensor, roles: frozenset[str]) -> dict[str, Tensor]:
        return {role: _per_sample(normalise, sums, role, x, grad).square_().sum(0) for role in roles}

    return squares, partial(_per_sample, normalise, sums)


def _per_sample(normalise: Normalise, sums: Normalise, role: str, x: Tensor, grad: Tensor) -> Tensor:
    return sums(wide(grad) * normalise(wide(x)) if role == "weight" else wide(grad))


def _behind(t: Tensor, dims: int) -> Tensor:
    """Folded rows behind the channels; ``dims`` is the number of dimensions of an input without them."""
    return t if t.dim() == dims else torch.movedim(t, 1, 2)
