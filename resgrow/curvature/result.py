"""What ``curvature`` returns."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor


class Curvature(dict[str, Tensor]):
    """``{parameter name: tensor of the parameter's shape}``, and how it was computed.

    Attributes:
        method: as asked for.
        samples: as asked for.
        temperature: as asked for.
        damping: the multiple of ``mean`` that was added to every entry; found by measurement for "auto".
        mean: mean of ``max(h, 0)`` over all weights (parameters of two dimensions or more) before damping.
    """

    def __init__(
        self, h: Mapping[str, Tensor], *, method: str, samples: int, temperature: float, damping: float, mean: float
    ) -> None:
        super().__init__(h)
        self.method, self.samples, self.temperature = method, samples, temperature
        self.damping, self.mean = damping, mean
