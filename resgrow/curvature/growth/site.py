"""A place where units could come: the layer that would make them, and the layers that would read them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
from torch import Tensor, nn

from resgrow.curvature.patches import padded, patches, spatial_of

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
        """What each tap sees of units behind the route, ``(n, Q)`` over output positions, in the order of ``taps``."""
        if not spatial_of(self.layer):
            for column in range(self.columns):
                yield units[..., column].flatten(1) if units.dim() > 2 else units[:, column, None]
            return
        units = padded(self.layer, units)[:, 0]
        sizes = zip(units.shape[1:], self.layer.kernel_size, self.layer.stride, self.layer.dilation, strict=True)
        ranges = []
        for size, kernel, stride, dilation in sizes:
            last = size - dilation * (kernel - 1)
            ranges.append([slice(tap * dilation, tap * dilation + last, stride) for tap in range(kernel)])
        for tap in product([slice(None)], *ranges):
            yield units[tap].flatten(1)

    def outputs(self, y: Tensor) -> Tensor:
        """The layer's output or a gradient there as ``(n, Q, outputs)``."""
        return y.flatten(2).transpose(1, 2) if spatial_of(self.layer) else _positions(y)


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
    def one(self) -> bool:
        """Whether `features` have a one at the end."""
        return self.biased or self.centred

    @property
    def layers(self) -> tuple[nn.Module, ...]:
        return (self.maker, *(reader.layer for reader in self.readers))

    def features(self, x: Tensor) -> Tensor:
        """``b`` of the maker's input: ``(n, *positions, D)``, with a one at the end where there is `one`."""
        return rows(self.maker, x, self.one)

    def as_units(self, b: Tensor) -> Tensor:
        """`features` as if each were the maker's only output: ``(n D, 1, *positions)``, or ``(n D, *positions, 1)``."""
        b = b.movedim(-1, 1).flatten(0, 1)
        return b.unsqueeze(1) if spatial_of(self.maker) else b.unsqueeze(-1)


def rows(layer: Any, x: Tensor, one: bool) -> Tensor:
    """What positions of a layer see, ``(n, *positions, D)``, in at least float32; with a one at the end if wanted."""
    seen = patches(layer, exact(x))[0]
    return torch.cat([seen, seen.new_ones(*seen.shape[:-1], 1)], -1) if one else seen


def exact(x: Tensor) -> Tensor:
    """In at least float32."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _positions(x: Tensor) -> Tensor:
    """``(n, *positions, D)`` to ``(n, Q, D)``."""
    return x.flatten(1, -2) if x.dim() > 2 else x[:, None]
