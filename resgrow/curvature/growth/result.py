"""The best units that a layer could get, and what each of them would bring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from resgrow.curvature.growth.decompose import CUTOFF, inverse_root, leading
from resgrow.curvature.growth.moments import Moments
from resgrow.curvature.growth.site import Site


@dataclass(frozen=True)
class Growth:
    """New units of one layer, the best first; ``k`` is their number, at most the rank of the cross-covariance.

    With ``S`` and ``N`` of `moments` (``N'`` where it is projected) and ``sum_j lambda_j u_j v_j^T`` the singular value
    decomposition of ``S^(-1/2) N'``::

        fan_in_j = S^(-1/2) u_j,    fan_out_j = v_j,    gain_j = lambda_j^2

    (TINY, Verbockhaven et al. 2024; without projection and with ``N`` in the place of ``S^(-1/2) N'``: GradMax, Evci
    et al. 2022, whose ``u_j`` are then scaled to the same size.)

    **Scale of the gain.** A unit with this fan-in has mean square 1 before its activation. The mean loss falls at the
    rate ``lambda_j`` as its fan-out grows along ``v_j``, with the readers' other weights taking back what they could
    have done themselves; no other unit of that size and other fan-out of norm 1 has a larger rate. A step of gradient
    descent with learning rate ``eta`` thus takes ``eta gain_j`` off the loss, to first order, and units of one layer
    add up. Assumed are a slope of one of the activation and all that `moments` says. Layers of one network can be
    compared; gains grow with the square of the loss's scale.

    Attributes:
        gain: float64 ``(k,)``, descending: ``rho+`` of the first, second, ... new unit. Of GradMax: the squared
            singular values of ``N``, for fan-ins of norm 1.
        fan_in: float64 ``(k, *maker.weight.shape[1:])``.
        bias: float64 ``(k,)``, zero where the maker has none or a batch norm takes it out.
        mean: float64 ``(k,)``: of the units before their activation, where a batch norm follows; otherwise zero.
        fan_out: for each reader float64 ``(k, O, *taps)``, with ``taps`` the kernel, or the columns of a Linear weight
            that read one unit; norm 1 over all readers together.
    """

    gain: Tensor
    fan_in: Tensor
    bias: Tensor
    mean: Tensor
    fan_out: tuple[Tensor, ...]

    def __len__(self) -> int:
        return len(self.gain)

    def chosen(self, units: Tensor) -> Growth:
        """Some of the units, by number."""
        at = units.to(self.gain.device)
        fan_out = tuple(each[at] for each in self.fan_out)
        return Growth(self.gain[at], self.fan_in[at], self.bias[at], self.mean[at], fan_out)

    def flipped(self) -> Growth:
        """The units with the other sign."""
        return Growth(self.gain, -self.fan_in, -self.bias, -self.mean, tuple(-each for each in self.fan_out))

    @staticmethod
    def joined(parts: Sequence[Growth]) -> Growth:
        """Units of one layer in one list."""
        gain, fan_in, bias, mean = (
            torch.cat([getattr(part, name) for part in parts]) for name in ("gain", "fan_in", "bias", "mean")
        )
        fan_out = zip(*(part.fan_out for part in parts), strict=True)
        return Growth(gain, fan_in, bias, mean, tuple(torch.cat(each) for each in fan_out))


def growth(site: Site, found: Moments, *, whiten: bool, count: int | None = None) -> Growth:
    """TINY's units (``whiten``, of projected moments), or GradMax's: the best ``count``, or all.

    Those with less than a millionth of the largest gain are left out, as rounding. How layers of more than 256 inputs
    are solved is told in `resgrow.curvature.growth.decompose`.
    """
    cross = torch.cat([each.flatten(1) for each in found.cross], 1)
    root = inverse_root(found.second) if whiten else None
    u, values, v = leading(cross if root is None else root.across(cross), count)
    gain = values.square()[:count]
    most = int((gain > CUTOFF * gain[:1]).sum())
    fan_out = v[:most].split([each[0].numel() for each in found.cross], 1)
    shaped = tuple(part.unflatten(1, each.shape[1:]) for part, each in zip(fan_out, found.cross, strict=True))
    rows = u[:, :most] if root is None else root.along(u[:, :most])
    return _units(site, found, rows.T, gain[:most], shaped)


def random_growth(site: Site, found: Moments, apart: Growth, count: int, generator: torch.Generator | None) -> Growth:
    """Units with random fan-in, orthogonal to that of ``apart`` as long as there is room; gain and fan-out are zero.

    Args:
        generator: of any device; torch's default one of the CPU otherwise.
    """
    device = torch.device("cpu") if generator is None else generator.device
    size = len(found.second)
    drawn = torch.randn(count, size, dtype=torch.float64, device=device, generator=generator).to(found.second.device)
    taken = torch.cat([apart.fan_in.flatten(1), apart.bias[:, None]], 1)[:, :size]
    room = size - int(torch.linalg.matrix_rank(taken)) if len(apart) else size
    basis = torch.linalg.qr(taken.T)[0]
    free = drawn[:room] - drawn[:room] @ basis @ basis.T
    free = torch.linalg.qr(free.T)[0].T if len(free) else free
    fan_out = tuple(each.new_zeros(count, *each.shape[1:]) for each in found.cross)
    return _units(site, found, torch.cat([free, drawn[room:]]), drawn.new_zeros(count), fan_out)


def _units(site: Site, found: Moments, rows: Tensor, gain: Tensor, fan_out: tuple[Tensor, ...]) -> Growth:
    """Fan-ins ``(k, D)`` of any size as units of mean square 1."""
    square = ((rows @ found.second) * rows).sum(1)
    # What is zero on the data keeps its size.
    seen = square > CUTOFF * found.second.diagonal().amax() * rows.square().sum(1)
    rows = rows * torch.where(seen, square, 1).rsqrt()[:, None]
    mean = rows.new_zeros(len(rows)) if found.mean is None else rows @ found.mean
    bias = rows[:, -1].clone() if found.biased else rows.new_zeros(len(rows))
    fan_in = rows[:, :-1] if found.biased else rows
    return Growth(gain, fan_in.reshape(len(rows), *site.maker.weight.shape[1:]), bias, mean, fan_out)
