"""Second and cross moments of what convolutions see, from sums over lags between two positions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor
from torch.nn import grad

from resgrow.curvature.patches import spatial_of

WEIGHT_GRADIENT = {1: grad.conv1d_weight, 2: grad.conv2d_weight, 3: grad.conv3d_weight}
_ALL, _FIRST, _LAST = "all", "first", "last"


def regular(layer: Any) -> bool:
    """Whether a layer is a convolution for `Lagged`: kernels of 1 and 3 at stride 1, and zeros around such that inputs
    and outputs have one size."""
    if not spatial_of(layer) or layer.padding_mode != "zeros":
        return False
    around = [size // 2 for size in reversed(layer.kernel_size) for _ in range(2)]
    steps = (*layer.stride, *layer.dilation)
    return {*layer.kernel_size} <= {1, 3} and {*steps} == {1} and [*layer._reversed_padding_repeated_twice] == around


class Lagged:
    """Sums over samples and positions ``p`` of ``w_o(p + a) x_c(p + b)``, with zeros around both maps.

    Offsets ``a`` and ``b`` run over kernels of sizes 1 and 3. Only ``b - a`` matters, so that of 81 pairs of places in
    3x3 kernels 25 differ, but for pairs with ``a = b = 1`` in some dimension: no ``p`` sees the first line through
    these (and none the last one through ``a = b = -1``), so that its sum is taken off. For other pairs the lines that
    are not seen would meet zeros. Both kinds of sums are weight gradients of convolutions, with kernels of up to five,
    and nothing has to be unfolded.

    Args:
        outputs, before: channels of ``w`` and the sizes of its kernel. inputs, after: likewise for ``x``.
    """

    def __init__(
        self, outputs: int, before: Sequence[int], inputs: int, after: Sequence[int], device: torch.device
    ) -> None:
        self.outputs, self.inputs, self.sizes = outputs, inputs, list(zip(before, after, strict=True))
        modes = [(_ALL, _FIRST, _LAST) if a == b == 3 else (_ALL,) for a, b in self.sizes]
        self._sums = {
            each: torch.zeros(outputs, inputs, *self._kernel(each), dtype=torch.float64, device=device)
            for each in product(*modes)
        }

    def _kernel(self, modes: Sequence[str]) -> list[int]:
        return [a + b - 1 if mode == _ALL else 1 for mode, (a, b) in zip(modes, self.sizes, strict=True)]

    def add(self, w: Tensor, x: Tensor) -> None:
        """``w (n, outputs, *positions)`` and ``x (n, inputs, *positions)``."""
        for modes, total in self._sums.items():
            kernel = self._kernel(modes)
            shape = (self.outputs, self.inputs, *kernel)
            with full_precision():
                total += WEIGHT_GRADIENT[len(kernel)](
                    _line(x, modes), shape, _line(w, modes), padding=[size // 2 for size in kernel]
                )

    def sums(self) -> Tensor:
        """``(outputs, *before, inputs, *after)``, float64."""
        dims = range(len(self.sizes))
        before, after = ([size[at] for size in self.sizes] for at in (0, 1))
        found = next(iter(self._sums.values())).new_empty(self.outputs, *before, self.inputs, *after)
        for a, b in product(product(*map(range, before)), product(*map(range, after))):
            terms = [list(self._terms(dim, a[dim], b[dim])) for dim in dims]
            place: Any = (slice(None), *a, slice(None), *b)
            found[place] = sum(self._signed(each) for each in product(*terms))
        return found

    def _signed(self, term: Sequence[tuple[str, int]]) -> Tensor:
        modes, lags = zip(*term, strict=True)
        place: Any = (..., *lags)
        total = self._sums[modes][place]
        return total if (len(modes) - modes.count(_ALL)) % 2 == 0 else -total

    def _terms(self, dim: int, a: int, b: int) -> Iterator[tuple[str, int]]:
        """What a pair of places along a dimension is made of: kinds of sums, and the place in their kernel."""
        before, after = self.sizes[dim]
        yield _ALL, b - a + before - 1
        if before == after == 3 and a == b != 1:
            yield (_FIRST if a == 2 else _LAST), 0


def _line(x: Tensor, modes: Sequence[str]) -> Tensor:
    for dim, mode in enumerate(modes, start=2):
        if mode != _ALL:
            x = x.narrow(dim, 0 if mode == _FIRST else x.shape[dim] - 1, 1)
    return x


def full_precision() -> Any:
    """Sums in TF32, which is cuDNN's default, would make moments that no factor can be found of."""
    now = torch.backends.cudnn
    return now.flags(now.enabled, now.benchmark, now.benchmark_limit, now.deterministic, allow_tf32=False)
