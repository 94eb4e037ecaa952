"""Streaming sums of what layers see, and of what is asked of them, over samples and positions, in float64."""

from __future__ import annotations

from math import prod
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from resgrow.curvature.growth.lags import WEIGHT_GRADIENT, Lagged, full_precision, regular
from resgrow.curvature.growth.site import Reader, Site, exact, rows
from resgrow.curvature.patches import CHUNK, padded, patches_size, spatial_of


class Second:
    """``sum b b^T (D, D)`` of what a layer's positions see, with a one at the end of ``b`` if wanted.

    Attributes:
        count: positions so far.
    """

    def __init__(self, layer: Any, one: bool) -> None:
        self.layer, self.one, self.count = layer, one, 0
        device = layer.weight.device
        self._lagged: list[Lagged] = []
        if regular(layer):
            kernel, channels = layer.kernel_size, layer.in_channels
            point = [1] * len(kernel)
            self._lagged = [Lagged(channels, kernel, channels, kernel, device)]
            if one:
                self._lagged.append(Lagged(1, point, channels, kernel, device))
        else:
            self._total = torch.zeros(len(self), len(self), dtype=torch.float64, device=device)

    def __len__(self) -> int:
        return int(self.layer.weight[0].numel()) + self.one

    def add(self, x: Tensor) -> None:
        x = exact(x)
        if self._lagged:
            self._lagged[0].add(x, x)
            for ones in self._lagged[1:]:
                ones.add(torch.ones_like(x[:, :1]), x)
            self.count += len(x) * prod(x.shape[2:])
            return
        for piece in x.split(_step(self.layer, x)):
            seen = rows(self.layer, piece, self.one).flatten(0, -2)
            self._total += seen.T @ seen
            self.count += len(seen)

    def sums(self) -> Tensor:
        if not self._lagged:
            return self._total
        size = len(self) - self.one
        total = self._lagged[0].sums().reshape(size, size)
        if not self.one:
            return total
        ones = self._lagged[1].sums().reshape(1, size)
        return torch.cat([torch.cat([total, ones.T], 1), torch.cat([ones, ones.new_full((1, 1), self.count)], 1)])


class Cross:
    """``sum b_i(q + t) v_o(q)``, ``(D, O, taps)``: what new units' fan-outs at a reader are asked to become, unit ``i``
    being ``b_i`` of the maker."""

    def __init__(self, site: Site, reader: Reader) -> None:
        self.site, self.reader = site, reader
        outputs, device = len(reader.layer.weight), reader.layer.weight.device
        self._lagged: list[Lagged] = []
        if not reader.route and regular(site.maker) and regular(reader.layer):
            taps, kernel = reader.layer.kernel_size, site.maker.kernel_size
            self._lagged = [Lagged(outputs, taps, site.maker.in_channels, kernel, device)]
            if site.one:
                self._lagged.append(Lagged(outputs, taps, 1, [1] * len(kernel), device))
        else:
            size = int(site.maker.weight[0].numel()) + site.one
            self._total = torch.zeros(prod(reader.taps), size, outputs, dtype=torch.float64, device=device)

    def add(self, x: Tensor, v: Tensor) -> None:
        """``x``: the maker's input. ``v``: at the reader's output, like it."""
        if self._lagged:
            x = exact(x)
            self._lagged[0].add(v, x)
            for ones in self._lagged[1:]:
                ones.add(v, torch.ones_like(x[:, :1]))
            return
        step = _step(self.site.maker, x)
        for piece, asked in zip(x.split(step), v.split(step), strict=True):
            units = self.site.as_units(self.site.features(piece))
            for layer in self.reader.route:
                units = layer(units)
            asked = self.reader.outputs(asked).flatten(0, 1)
            for tap, view in enumerate(self.reader.views(units)):
                view = view.unflatten(0, (len(piece), -1)).transpose(0, 1).flatten(1)
                self._total[tap] += view @ asked

    def sums(self) -> Tensor:
        if not self._lagged:
            return self._total.movedim(0, -1)
        found = []
        for lagged in self._lagged:
            # The reader's output q = p - t is at the offset -t from the maker's position p.
            dims = range(1, 1 + len(self.reader.taps))
            found.append(lagged.sums().flip(*dims).flatten(1 + len(dims)).flatten(1, -2).permute(2, 0, 1))
        return torch.cat(found)


def weight_sums(layer: Any, x: Tensor, v: Tensor, one: bool) -> Tensor:
    """``sum h v^T (D, O)`` of what a layer's positions see and what is asked at its outputs; with a one at the end of
    ``h`` if wanted."""
    x, dims = exact(x), spatial_of(layer)
    if dims:
        options = {"stride": layer.stride, "dilation": layer.dilation}
        with full_precision():
            found = WEIGHT_GRADIENT[dims](padded(layer, x), layer.weight.shape, v, **options).flatten(1).T
        over = (0, *range(2, 2 + dims))
    else:
        found, over = x.flatten(0, -2).T @ v.flatten(0, -2), tuple(range(v.dim() - 1))
    return torch.cat([found, v.sum(over)[None]]) if one else found


def explained(layer: Any, x: Tensor, fit: Tensor) -> Tensor:
    """What weights ``fit (D, O)`` in the place of a layer's own give on its input; one row more is a bias."""
    x = exact(x)
    size = int(layer.weight[0].numel())
    weight = fit[:size].T.reshape(layer.weight.shape).to(x.dtype).contiguous()
    bias = fit[size].to(x.dtype) if len(fit) > size else None
    if not spatial_of(layer):
        return F.linear(x, weight, bias)
    with full_precision():
        given: Tensor = layer._conv_forward(x, weight, bias)
    return given


def _step(layer: Any, x: Tensor) -> int:
    return max(1, CHUNK // patches_size(layer, x))
