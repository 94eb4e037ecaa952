"""What every operator means, in plain torch. These docstrings are the contract of the native kernels.

Slow and memory-hungry on purpose: each function is the shortest correct statement of its equation, and the
tests compare the kernels with it in float64. Nothing in the package calls these functions at run time.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.grad import conv2d_weight


def squared_grad_linear(x: Tensor, grad: Tensor) -> Tensor:
    """``H[o, i] = sum_n (sum_t grad[n, t, o] x[n, t, i])^2``.

    x: ``(N, *, I)``, the layer's input; grad: ``(N, *, O)``, the gradient at its output. Sample ``n`` is the
    first dimension and ``t`` runs over all dimensions between. Returns ``(O, I)``, a *sum* over samples.
    """
    x3, grad3 = (
        x.flatten(1, -2) if x.dim() > 2 else x[:, None],
        grad.flatten(1, -2) if grad.dim() > 2 else grad[:, None],
    )
    return torch.einsum("nto,nti->noi", grad3, x3).square().sum(0)


def squared_grad_conv2d(
    x: Tensor,
    grad: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> Tensor:
    """``H[o, i, ky, kx] = sum_n (d sum(grad[n] * conv2d(x[n], W)) / dW[o, i, ky, kx])^2``.

    x: ``(N, C, Hx, Wx)``; grad: ``(N, O, Hy, Wy)``. Returns ``(O, C / groups, kh, kw)``, a *sum* over samples.
    """
    n, channels = x.shape[:2]
    out = grad.shape[1]
    columns = F.unfold(x, tuple(kernel_size), tuple(dilation), tuple(padding), tuple(stride))  # (N, C kh kw, T)
    columns = columns.unflatten(1, (groups, channels // groups * kernel_size[0] * kernel_size[1]))
    grads = grad.reshape(n, groups, out // groups, -1)
    per_sample = torch.einsum("ngot,ngkt->ngok", grads, columns)
    return per_sample.square().sum(0).reshape(out, channels // groups, *kernel_size)


def squared_grad_bias(grad: Tensor, channel_dim: int = 1) -> Tensor:
    """``H[c] = sum_n (sum_t grad[n, c, t])^2``.

    grad: ``(N, *)`` with C entries in ``channel_dim``. Returns ``(C,)``, a *sum* over samples.
    """
    grads = grad.movedim(channel_dim, 1)
    return grads.reshape(grads.shape[0], grads.shape[1], -1).sum(2).square().sum(0)


def squared_grad_norm(x: Tensor, grad: Tensor, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    """Squared per-sample gradients of the gain and bias of ``y = weight * (x - mean) * rstd + bias``.

    x, grad: ``(N, C, *)``; mean, rstd: ``(C,)``, constants (eval mode). Returns two ``(C,)`` tensors, *sums* over
    samples: ``sum_n (sum_t grad * (x - mean) * rstd)^2`` and ``sum_n (sum_t grad)^2``.
    """
    shape = (1, -1) + (1,) * (x.dim() - 2)
    normalised = (x - mean.view(shape)) * rstd.view(shape)
    return squared_grad_bias(grad * normalised), squared_grad_bias(grad)


def squared_input_grad_linear(x: Tensor, grad: Tensor) -> Tensor:
    """``H[o, i] = sum_{n, t} grad[n, t, o] x[n, t, i]^2``: the weight gradient of a linear layer on ``x^2``.

    x: ``(N, *, I)``; grad: ``(N, *, O)``, of either sign. Returns ``(O, I)``, a *sum* over samples and positions.
    """
    return grad.flatten(0, -2).mT @ x.flatten(0, -2).square()


def squared_input_grad_conv2d(
    x: Tensor,
    grad: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (1, 1),
    padding: Sequence[int] = (0, 0),
    dilation: Sequence[int] = (1, 1),
    groups: int = 1,
) -> Tensor:
    """``H = d sum(grad * conv2d(x^2, W)) / dW``: the weight gradient of a convolution of ``x^2``.

    x: ``(N, C, Hx, Wx)``; grad: ``(N, O, Hy, Wy)``, of either sign. Returns ``(O, C / groups, kh, kw)``, a *sum* over
    samples and positions.
    """
    n, channels = x.shape[:2]
    out = grad.shape[1]
    columns = F.unfold(x.square(), tuple(kernel_size), tuple(dilation), tuple(padding), tuple(stride))
    columns = columns.unflatten(1, (groups, channels // groups * kernel_size[0] * kernel_size[1]))
    grads = grad.reshape(n, groups, out // groups, -1)
    return torch.einsum("ngot,ngkt->gok", grads, columns).reshape(out, channels // groups, *kernel_size)


def squared_input_grad_norm(x: Tensor, grad: Tensor, mean: Tensor, rstd: Tensor) -> tuple[Tensor, Tensor]:
    """``sum_{n,t} grad ((x - mean) rstd)^2`` and ``sum_{n,t} grad``.

    x, grad: ``(N, C, *)``, grad of either sign; mean, rstd: ``(C,)``. Returns two ``(C,)`` tensors, *sums* over
    samples and positions.
    """
    shape = (1, -1) + (1,) * (x.dim() - 2)
    normalised = (x - mean.view(shape)) * rstd.view(shape)
    return tuple(v.transpose(0, 1).flatten(1).sum(1) for v in (grad * normalised.square(), grad))  # type: ignore


def select_threshold(scores: Sequence[Tensor], k: int) -> Tensor:
    """The ``k``-th smallest value (1-based, as ``torch.kthvalue``) over all elements of all tensors; 0-dim."""
    return torch.cat([s.reshape(-1) for s in scores]).kthvalue(k).values


def select_mask(scores: Sequence[Tensor], k: int) -> list[Tensor]:
    """Boolean tensors shaped like ``scores``: False at exactly the ``k`` smallest values over all tensors.

    Equal values go in order of position: earlier tensors first, and within one in row-major order.
    """
    flat = torch.cat([s.reshape(-1) for s in scores])
    keep = torch.ones_like(flat, dtype=torch.bool)
    keep[flat.sort(stable=True).indices[:k]] = False
    return [part.view(s.shape) for part, s in zip(keep.split([s.numel() for s in scores]), scores, strict=True)]


def obd_scores(weights: Sequence[Tensor], curvatures: Sequence[Tensor], damping: float) -> list[Tensor]:
    """``1/2 (max(h, 0) + damping) w^2``, rounded in this order; in float64 for float64, otherwise in float32.

    weights, curvatures: ``w`` and ``h``, pairs of one shape and dtype.
    Source: LeCun, Denker & Solla 1990, eq. 3, damped.
    """
    scores = []
    for w, h in zip(weights, curvatures, strict=True):
        dtype = torch.promote_types(w.dtype, torch.float32)
        scores.append(0.5 * (h.to(dtype).clamp_min(0) + damping) * w.to(dtype).square())
    return scores


def select_mask_obd(weights: Sequence[Tensor], curvatures: Sequence[Tensor], damping: float, k: int) -> list[Tensor]:
    """:func:`select_mask` of :func:`obd_scores`."""
    return select_mask(obd_scores(weights, curvatures, damping), k)


def tristate_relu(x: Tensor, w: Tensor, d: Tensor) -> Tensor:
    """``y = w' x`` where ``x >= 0`` and ``y = w' d' x`` where ``x < 0``, with ``w' = 1[w >= .5]``, ``d' = 1[d >= .5]``.

    x: ``(N, C, *)``; w: ``(C,)``, one width gate per channel; d: 0-dim, one depth gate per layer.
    Source: Srinivas & Babu, Learning Neural Network Architectures using Backpropagation, eq. for tsReLU.
    """
    shape = (1, -1) + (1,) * (x.dim() - 2)
    width = (w >= 0.5).to(x.dtype).view(shape)
    depth = (d >= 0.5).to(x.dtype)
    return width * torch.where(x >= 0, x, depth * x)


def tristate_relu_backward(grad: Tensor, x: Tensor, w: Tensor, d: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Straight-through gradients of :func:`tristate_relu` with respect to ``x``, ``w`` and ``d``.

    ``dx = w' grad (1 if x >= 0 else d')``, ``dw = sum_{n,t} grad (x if x >= 0 else d' x)``,
    ``dd = sum_{x < 0} grad w' x``: closed gates still receive gradient and can reopen.
    """
    shape = (1, -1) + (1,) * (x.dim() - 2)
    width = (w >= 0.5).to(x.dtype).view(shape)
    depth = (d >= 0.5).to(x.dtype)
    positive = x >= 0
    slope = torch.where(positive, torch.ones_like(x), depth)
    other = [i for i in range(x.dim()) if i != 1]
    grad_w = (grad * slope * x).sum(other)
    grad_d = torch.where(positive, torch.zeros_like(x), grad * width * x).sum()
    return grad * width * slope, grad_w.to(w.dtype), grad_d.to(d.dtype)


def block_mask(mask: Tensor, shape: Sequence[int], block: tuple[int, int]) -> Tensor:
    """``mask`` over blocks as a boolean tensor like the weight: ``M[o, i, ...] = mask[o // bo, i // bi, ...]``.

    mask: ``(ceil(O / bo), ceil(I / bi), *k)``; shape: the weight's, ``(O, I, *k)``. Ragged at the upper edges.
    """
    spread = mask.repeat_interleave(block[0], 0)[: shape[0]]
    return spread.repeat_interleave(block[1], 1)[:, : shape[1]]


def block_sparse_conv2d(
    x: Tensor,
    weight: Tensor,
    mask: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    block: tuple[int, int] = (16, 1),
) -> Tensor:
    """``conv2d(x, weight where M else 0, bias, ...)`` with ``M`` from :func:`block_mask`.

    x: ``(N, C, H, W)``; weight: ``(O, C / groups, kh, kw)``; mask: bool,
    ``(ceil(O / bo), ceil(C / groups / bi), kh, kw)``. The gradient of an absent weight is zero.
    """
    present = block_mask(mask, weight.shape, block)
    masked = torch.where(present, weight, torch.zeros_like(weight))
    return F.conv2d(x, masked, bias, stride, padding, dilation, groups)


def block_sparse_activated(
    y: Tensor, slopes: tuple[Tensor, Tensor] | None = None, residual: Tensor | None = None
) -> Tensor:
    """``z = y + residual``, then ``z p`` where ``z >= 0`` and ``z n`` elsewhere, for ``slopes`` ``(p, n)``.

    y, residual: ``(N, O, H, W)``; p, n: ``(O,)``. None leaves its step out.
    """
    z = y if residual is None else y + residual
    if slopes is None:
        return z
    positive, negative = (slope.view(1, -1, 1, 1) for slope in slopes)
    return z * torch.where(z >= 0, positive, negative)


def block_sparse_linear(
    x: Tensor, weight: Tensor, mask: Tensor, bias: Tensor | None = None, block: tuple[int, int] = (16, 1)
) -> Tensor:
    """``linear(x, weight where M else 0, bias)``.

    x: ``(*, I)``; weight: ``(O, I)``; mask: bool ``(ceil(O / bo), ceil(I / bi))``.
    """
    present = block_mask(mask, weight.shape, block)
    return F.linear(x, torch.where(present, weight, torch.zeros_like(weight)), bias)


def block_sparse_probe(
    grad: Tensor,
    x: Tensor,
    mask: Tensor,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
    block: tuple[int, int] = (16, 1),
) -> Tensor:
    """The weight gradient of a *dense* convolution at the blocks that ``mask`` names, zero elsewhere.

    grad: ``(N, O, Ho, Wo)`` at the output; x: ``(N, C, H, W)``. Returns ``(O, C / groups, kh, kw)``: what absent blocks
    would have as gradient if they were present and zero.
    """
    shape = (grad.shape[1], x.shape[1] // groups, *mask.shape[2:])
    dense = conv2d_weight(x, shape, grad, stride, padding, dilation, groups)
    return dense * block_mask(mask, shape, block)
