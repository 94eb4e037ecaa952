"""A place where units could come: the layer that would make them, and the layers that would read them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from resgrow.curvature.growth.sample import at, places
from resgrow.curvature.patches import padded, spatial_of, windows

# Part of a route: linear, on each sample on its own, in dimension 0.
Step = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Reader:
    """A Linear or convolutional layer without groups that reads the units.

    Attributes:
        layer: Linear or Conv1d to Conv3d.
        route: what lies between the maker and this layer, as a linear map of one unit alone: from the maker's output
            with one channel, ``(n, 1, *positions)`` or ``(n, *positions, 1)``, to this layer's input.
        columns: of a Linear weight that read one unit: one, or one per position where positions are flattened.
        shifts: whether the network can already add a constant to each of the layer's outputs: by its bias, or that of
            a norm behind it.
    """

    layer: Any
    route: tuple[Step, ...]
    columns: int
    shifts: bool

    @property
    def taps(self) -> tuple[int, ...]:
        """Shape of what one output reads of one unit: the kernel's, or ``(columns,)``."""
        return tuple(self.layer.kernel_size) if spatial_of(self.layer) else (self.columns,)

    def views(self, units: Tensor) -> Iterator[Tensor]:
        """What each tap sees of units behind the route, ``(n, *positions)`` of the output, in the order of ``taps``."""
        if not spatial_of(self.layer):
            for column in range(self.columns):
                yield units[..., column] if units.dim() > 2 else units[:, column, None]
            return
        units = padded(self.layer, units)[:, 0]
        sizes = zip(units.shape[1:], self.layer.kernel_size, self.layer.stride, self.layer.dilation, strict=True)
        ranges = []
        for size, kernel, stride, dilation in sizes:
            last = size - dilation * (kernel - 1)
            ranges.append([slice(tap * dilation, tap * dilation + last, stride) for tap in range(kernel)])
        for tap in product([slice(None)], *ranges):
            yield units[tap]

    def outputs(self, y: Tensor) -> Tensor:
        """The layer's output or a gradient there as ``(n, Q, outputs)``."""
        if spatial_of(self.layer):
            return y.flatten(2).transpose(1, 2)
        return y.flatten(1, -2) if y.dim() > 2 else y[:, None]

    def inputs(self, x: Tensor, drawn: Tensor | None = None) -> Tensor:
        """What the layer reads of its units ``x``, ``(n, Q, D)``, or ``(n, r, D)`` at positions ``drawn (n, r)``; with a
        one at the end where it `shifts`."""
        return _rows(self.layer, x, drawn, self.shifts)

    @property
    def indexed(self) -> bool:
        """Whether each tap sees the maker's outputs themselves, in places that `seen` can tell."""
        return not self.route and bool(spatial_of(self.layer)) and self.layer.padding_mode == "zeros"

    def seen(self, drawn: Tensor, sizes: Sequence[int]) -> Iterator[tuple[Tensor, Tensor]]:
        """Which of the maker's positions each tap sees from output positions ``drawn (n, r)``, in the order of
        ``taps``, and which of them exist rather than lie in the border. Needs `indexed`.

        Args:
            sizes: the maker's positions.
        """
        layer, border = self.layer, self.layer._reversed_padding_repeated_twice[::-1]
        before, both = border[1::2], [sum(border[2 * dim : 2 * dim + 2]) for dim in range(len(sizes))]
        geometry = zip(sizes, both, layer.kernel_size, layer.stride, layer.dilation, strict=True)
        shape = [(size + pad - step * (kernel - 1) - 1) // stride + 1 for size, pad, kernel, stride, step in geometry]
        starts = [at * stride - pad for at, stride, pad in zip(places(drawn, shape), layer.stride, before, strict=True)]
        for tap in product(*map(range, layer.kernel_size)):
            flat, there = torch.zeros_like(drawn), torch.ones_like(drawn, dtype=torch.bool)
            for start, t, step, size in zip(starts, tap, layer.dilation, sizes, strict=True):
                here = start + t * step
                there &= (here >= 0) & (here < size)
                flat = flat * size + here.clamp(0, size - 1)
            yield flat, there


@dataclass(frozen=True)
class Site:
    """Where units could come.

    Attributes:
        maker: Linear or Conv1d to Conv3d without groups, whose outputs the units would be.
        readers: at least one.
        centred: whether a batch norm lies directly behind the maker: what it takes out of a unit is not counted.
    """

    maker: Any
    readers: tuple[Reader, ...]
    centred: bool

    @property
    def biased(self) -> bool:
        """Whether new units have a bias that matters."""
        return self.maker.bias is not None and not self.centred

    @property
    def layers(self) -> tuple[nn.Module, ...]:
        return (self.maker, *(reader.layer for reader in self.readers))

    @property
    def one(self) -> bool:
        """Whether `features` have a one at the end."""
        return self.biased or self.centred

    def features(self, x: Tensor, drawn: Tensor | None = None) -> Tensor:
        """``b`` of the maker's input: ``(n, Q, D)``, or ``(n, r, D)`` at positions ``drawn (n, r)``; with a one at the end
        where it is `biased` or `centred`."""
        return _rows(self.maker, x, drawn, self.one)

    def as_units(self, x: Tensor) -> Tensor:
        """`features` as if each were the maker's only output: ``(n D, 1, *positions)``, or ``(n D, *positions, 1)``."""
        dims = spatial_of(self.maker)
        if not dims:
            return self.features(x).transpose(1, 2).reshape(-1, *self.positions(x), 1)
        seen = windows(self.maker, _exact(x))
        seen = seen.permute(0, 1, *range(2 + dims, 2 + 2 * dims), *range(2, 2 + dims))
        return _with_one(seen, 1, 2 + dims, self.one).flatten(0, 1)[:, None]

    def positions(self, x: Tensor) -> tuple[int, ...]:
        """Shape of the maker's positions."""
        dims = spatial_of(self.maker)
        return tuple(windows(self.maker, x).shape[2 : 2 + dims]) if dims else tuple(x.shape[1:-1])


def _exact(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _rows(layer: Any, x: Tensor, drawn: Tensor | None, one: bool) -> Tensor:
    """``(n, Q, D)``, or ``(n, r, D)``, in at least float32, with a one at the end if wanted."""
    x, dims = _exact(x), spatial_of(layer)
    if not dims:
        rows = at(x.flatten(1, -2) if x.dim() > 2 else x[:, None], drawn)
    else:
        seen = windows(layer, x)
        samples = torch.arange(len(x), device=x.device)[:, None]
        rows = (
            seen.movedim(1, 1 + dims)
            if drawn is None
            else seen[(samples, slice(None), *places(drawn, seen.shape[2 : 2 + dims]))]
        )
    last = rows.dim()
    return _with_one(rows, last - 1 - dims, last, one).flatten(1, -2)


def _with_one(values: Tensor, start: int, stop: int, one: bool) -> Tensor:
    """Dimensions from start to stop as one, with a one at its end if wanted. One copy, whatever the order in memory."""
    inner = values.shape[start:stop]
    size = inner.numel()
    found = values.new_ones(*values.shape[:start], size + one, *values.shape[stop:])
    found.narrow(start, 0, size).unflatten(start, inner).copy_(values)
    return found
