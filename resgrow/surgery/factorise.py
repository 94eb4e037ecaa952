"""Layers replaced by two thinner ones: truncated SVD, and 3x3 as 3x1 and 1x3."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class FactorRow:
    """One replaced layer.

    Attributes:
        name, kind, rank: which, how, and the channels between its two factors.
        before, after: parameters.
        error: ``||W - W_r|| / ||W||`` (Frobenius).
        predicted: rise of the mean loss, ``1/2 sum (h + damping) (W - W_r)^2``; None without curvature.
    """

    name: str
    kind: str
    rank: int
    before: int
    after: int
    error: float
    predicted: float | None


@dataclass(frozen=True)
class Factorised:
    """What `factorise` returns: the new ``model``, and a row for each replaced layer; print it."""

    model: nn.Module
    rows: tuple[FactorRow, ...]

    def __iter__(self) -> Iterator[FactorRow]:
        return iter(self.rows)

    @property
    def predicted(self) -> float | None:
        """Predicted rise of the mean loss by all replacements; None without curvature."""
        parts = [row.predicted for row in self.rows]
        return None if any(part is None for part in parts) else sum(part for part in parts if part is not None)

    def __str__(self) -> str:
        return "\n".join(
            f"{row.name}: {row.kind}, rank {row.rank}, {row.before:,} -> {row.after:,} parameters, "
            f"error {row.error:.3g}" + ("" if row.predicted is None else f", predicted rise {row.predicted:.3g}")
            for row in self.rows
        )


@torch.no_grad()
def factorise(
    model: nn.Module,
    ranks: Mapping[str, int],
    *,
    kind: str = "svd",
    curvature: Mapping[str, Tensor] | None = None,
    damping: float = 0.0,
) -> Factorised:
    """A copy of the model in which each named layer is two layers in a row, the best approximation of its weight.

    * "svd": a Linear ``(O, I)`` becomes ``(r, I)`` and ``(O, r)``; a Conv2d becomes one of ``r`` channels with its own
      kernel and a 1x1 convolution. The truncated singular value decomposition of the weight as ``(O, rest)``: no
      other weight of rank ``r`` is nearer (Eckart & Young).
    * "separable": a Conv2d becomes a ``kh x 1`` and a ``1 x kw`` convolution, by the decomposition of its weight as
      ``(C kh, O kw)`` (Jaderberg et al., "Speeding up convolutional neural networks with low rank expansions").

    The bias goes with the second layer; each takes the square root of the singular values, so that both learn alike.
    An optimizer has to be made anew. What the replacement is predicted to cost is in the currency of pruning.

    Args:
        model: left alone.
        ranks: names of Linear and Conv2d layers, and the channels between their factors.
        kind: "svd" or "separable".
        curvature: diagonal curvature by parameter name, as `resgrow.curvature` returns it, for the prediction.
        damping: added to the curvature.

    Raises:
        ValueError: unknown names or kinds, a rank below 1 or above the full one, a layer that the kind does not fit
            (groups, padding other than zeros, a Linear for "separable"), or curvature that lacks a weight.
    """
    if kind not in _KINDS:
        raise ValueError(f"factorise: kind must be one of {', '.join(_KINDS)} (got {kind!r})")
    layers = {name: _layer(model, name, kind) for name in ranks}
    for name, layer in layers.items():
        _check_rank(name, ranks[name], _KINDS[kind].matrix(layer.weight))
        if curvature is not None and f"{name}.weight" not in curvature:
            raise ValueError(f"factorise: curvature must have {name}.weight (got {sorted(curvature)[:5]}); compute it")
    small = copy.deepcopy(model)
    rows = []
    for name, layer in layers.items():
        pair, nearest = _replacement(layer, ranks[name], _KINDS[kind])
        change = (layer.weight - nearest).double()
        predicted = None
        if curvature is not None:
            h = curvature[f"{name}.weight"].double() + damping
            predicted = float(0.5 * (h * change.square()).sum())
        before, after = (sum(p.numel() for p in module.parameters()) for module in (layer, pair))
        error = float(change.norm() / layer.weight.double().norm().clamp_min(1e-300))
        rows.append(FactorRow(name, kind, ranks[name], before, after, error, predicted))
        path, _, last = name.rpartition(".")
        setattr(small.get_submodule(path), last, pair)
    return Factorised(small, tuple(rows))


@dataclass(frozen=True)
class _Kind:
    """How a weight is a matrix to be decomposed, and back; and how ``(rows, r)`` and ``(r, columns)`` are layers."""

    matrix: Callable[[Tensor], Tensor]
    weight: Callable[[Tensor, tuple[int, ...]], Tensor]
    layers: Callable[[Any, Tensor, Tensor], tuple[nn.Module, nn.Module]]


def _svd_layers(layer: Any, left: Tensor, right: Tensor) -> tuple[nn.Module, nn.Module]:
    """left ``(O, r)``, right ``(r, rest)``."""
    outputs, rank = left.shape
    bias = layer.bias is not None
    if isinstance(layer, nn.Linear):
        first, second = nn.Linear(layer.in_features, rank, False), nn.Linear(rank, outputs, bias)
        return _fill(first, right, layer), _fill(second, left, layer)
    kernel = (layer.kernel_size, layer.stride, layer.padding, layer.dilation)
    narrow = nn.Conv2d(layer.in_channels, rank, *kernel, bias=False)
    wide = nn.Conv2d(rank, outputs, 1, bias=bias)
    return _fill(narrow, right.view_as(narrow.weight), layer), _fill(wide, left.view_as(wide.weight), layer)


def _separable_layers(layer: Any, left: Tensor, right: Tensor) -> tuple[nn.Module, nn.Module]:
    """left ``(C kh, r)``, right ``(r, O kw)``."""
    (height, width), rank = layer.kernel_size, left.shape[1]
    (sy, sx), (dy, dx) = layer.stride, layer.dilation
    py, px = layer.padding
    first = nn.Conv2d(layer.in_channels, rank, (height, 1), (sy, 1), (py, 0), (dy, 1), bias=False)
    bias = layer.bias is not None
    second = nn.Conv2d(rank, layer.out_channels, (1, width), (1, sx), (0, px), (1, dx), bias=bias)
    columns = left.view(layer.in_channels, height, rank).permute(2, 0, 1).unsqueeze(3)
    rows = right.view(rank, layer.out_channels, width).permute(1, 0, 2).unsqueeze(2)
    return _fill(first, columns, layer), _fill(second, rows, layer)


_KINDS = {
    "svd": _Kind(lambda w: w.flatten(1), lambda m, shape: m.view(shape), _svd_layers),
    "separable": _Kind(
        lambda w: w.permute(1, 2, 0, 3).flatten(2).flatten(0, 1),
        lambda m, s: m.view(s[1], s[2], s[0], s[3]).permute(2, 0, 1, 3),
        _separable_layers,
    ),
}


def _replacement(layer: Any, rank: int, kind: _Kind) -> tuple[nn.Sequential, Tensor]:
    """The two layers, and the weight that they amount to."""
    matrix = kind.matrix(layer.weight).double()
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    root = s[:rank].sqrt()
    left, right = u[:, :rank] * root, root[:, None] * v[:rank]
    first, second = kind.layers(layer, left, right)  # the second has the bias
    if layer.bias is not None:
        second.get_parameter("bias").copy_(layer.bias)
    pair = nn.Sequential(first, second).train(layer.training)
    return pair, kind.weight(left @ right, tuple(layer.weight.shape)).to(layer.weight.dtype)


def _fill(module: Any, weight: Tensor, like: Any) -> Any:
    """``module`` with that weight, and the dtype, device and requires_grad of ``like``."""
    module.to(like.weight.device, like.weight.dtype).requires_grad_(like.weight.requires_grad)
    module.weight.copy_(weight)
    return module


def _layer(model: nn.Module, name: str, kind: str) -> Any:
    layer = dict(model.named_modules()).get(name)
    if not name or not isinstance(layer, nn.Linear | nn.Conv2d):
        found = "nothing" if layer is None else type(layer).__name__
        raise ValueError(
            f"factorise: ranks must name Linear and Conv2d layers inside the model (got {name!r}, {found})"
        )
    if kind == "separable" and not isinstance(layer, nn.Conv2d):
        raise ValueError(f"factorise: only convolutions are separable (got {name}, a Linear); use kind='svd'")
    if isinstance(layer, nn.Conv2d):
        plain = layer.padding_mode == "zeros" and not isinstance(layer.padding, str)
        if layer.groups != 1 or not plain:
            raise ValueError(
                f"factorise: a convolution must have one group and zero padding given in numbers (got {name}: {layer})"
            )
    return layer


def _check_rank(name: str, rank: int, matrix: Tensor) -> None:
    if not 1 <= rank <= min(matrix.shape):
        raise ValueError(f"factorise: the rank of {name} must lie between 1 and {min(matrix.shape)} (got {rank})")
