"""What the growth of a layer is computed from: streaming sums over data, in float64."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from resgrow.curvature.batches import Batch
from resgrow.curvature.growth.site import Reader, Site
from resgrow.curvature.growth.watch import Seen, rereadable, watch
from resgrow.curvature.heads import LossFn, head_of
from resgrow.curvature.patches import CHUNK, patches_size

# Eigenvalues of a second moment below this part of the largest one count as zero: sums of float32 products know no
# smaller ones, and directions that data hardly vary in would be blown up.
CUTOFF = 1e-6


@dataclass(frozen=True)
class Moments:
    """Of one site. ``b (D,)`` is what the maker sees at a position, with a one at the end where ``biased``.

    Attributes:
        second: ``S = E[b b^T] (D, D)``, mean over samples and positions; covariance where a batch norm follows.
        cross: for each reader ``N (D, O, *taps)``, minus the gradient of the mean loss with respect to the weights
            with which the reader would read a unit ``b_i``; see `moments`.
        mean: ``E[b] (D,)`` where a batch norm follows, otherwise None.
        biased: see above.
    """

    second: Tensor
    cross: tuple[Tensor, ...]
    mean: Tensor | None
    biased: bool


def moments(
    op: str,
    model: nn.Module,
    loss_fn: LossFn,
    data: Iterable[Any] | Batch,
    sites: Sequence[Site],
    *,
    project: bool,
) -> list[Moments]:
    """Second moments of inputs and their cross-covariance with what the loss asks of new units.

    A unit ``z(p) = alpha^T b(p)`` at the maker's position ``p`` that a reader reads with weights ``omega (O, taps)``
    adds ``sum_t omega[o, t] z(q + t)`` to output ``o`` at position ``q``, with ``q + t`` the place that tap ``t`` sees
    from ``q``. With ``v = -dL/d(reader's output)`` of the mean loss ``L``, summed over samples and positions::

        N[i, (o, t)] = sum_q b_i(q + t) v_o(q),    -dL/d omega = alpha^T N  at omega = 0

    which is exact where the activation between is the identity, as in a linear network. Others are taken for it (slope
    one, as in TINY), max-pooling for average pooling, and a batch norm directly behind the maker for the subtraction of
    ``E[b]``. Everything else between that is linear (average pooling, flattening) is exact.

    ``project``: ``v`` is replaced by its part that no change of the reader's existing weights can give, the residual
    of least squares on the reader's unfolded input ``h`` (with a one where `Reader.shifts`)::

        v' = v - W h,    W = E[v h^T] E[h h^T]^+

    This reads the data twice, the residual being known only after the whole of it; sums of ``b h^T``, with which one
    pass would do, are larger than everything else together. Products are in the dtype of the activations (at least
    float32), sums over batches in float64; at no time more than a batch is in memory.

    Raises:
        ValueError: no data, a loss that is not finite, layers that do not run once as modules, data of other sizes
            than what the routes were made for.
    """
    head, data = head_of(op, loss_fn), rereadable(data)
    readers = list({reader.layer: reader for site in sites for reader in site.readers}.values())
    layers = [reader.layer for reader in readers]
    fits: dict[nn.Module, Tensor] = {}
    if project:
        normal = {reader.layer: _Normal(reader) for reader in readers}

        def gather(seen: Seen) -> None:
            for sums in normal.values():
                sums.add(seen)

        watch(op, model, head, data, layers, layers, gather)
        fits = {layer: sums.solved(op) for layer, sums in normal.items()}

    sums = [_Sums(op, site) for site in sites]

    def add(seen: Seen) -> None:
        desired = {reader.layer: _asked(reader, seen, fits.get(reader.layer)) for reader in readers}
        for each in sums:
            each.add(seen.inputs[each.site.maker], desired)

    makers = [site.maker for site in sites]
    scale = watch(op, model, head, data, list(dict.fromkeys(makers + layers * project)), layers, add)
    return [each.moments(scale) for each in sums]


def pseudo_root(second: Tensor) -> Tensor:
    """``R (D, r)`` with ``R R^T`` the pseudo-inverse of a second moment ``(D, D)``, and ``R^T second R`` the identity.

    Eigenvalues below `CUTOFF` times the largest are left out.
    """
    values, vectors = torch.linalg.eigh(second)
    kept = values > CUTOFF * values[-1].clamp_min(0)
    return vectors[:, kept] * values[kept].rsqrt()


class _Normal:
    """Normal equations of the desired update on what a reader reads."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        rows = reader.layer.weight[0].numel() + reader.shifts
        self.second = torch.zeros(rows, rows, dtype=torch.float64, device=reader.layer.weight.device)
        self.cross = self.second.new_zeros(rows, reader.layer.weight.shape[0])

    def add(self, seen: Seen) -> None:
        x, v = seen.inputs[self.reader.layer], seen.desired[self.reader.layer]
        for inputs, desired in _pieces(self.reader.layer, x, v):
            h, asked = self.reader.inputs(inputs).flatten(0, 1), self.reader.outputs(desired).flatten(0, 1)
            self.second += h.T @ h
            self.cross += h.T @ asked

    def solved(self, op: str) -> Tensor:
        """``W^T (D, O)``."""
        _finite(op, self.second, self.cross)
        root = pseudo_root(self.second)
        return root @ (root.T @ self.cross)


def _asked(reader: Reader, seen: Seen, fit: Tensor | None) -> Tensor:
    """``v (n, Q, O)``, without what ``fit`` says that existing weights can do."""
    v = seen.desired[reader.layer]
    if fit is None:
        return reader.outputs(v)
    x, fit = seen.inputs[reader.layer], fit.to(v.dtype)
    return torch.cat([reader.outputs(v) - reader.inputs(x) @ fit for x, v in _pieces(reader.layer, x, v)])


class _Sums:
    """Sums over batches of one site."""

    def __init__(self, op: str, site: Site) -> None:
        self.op, self.site, self.count = op, site, 0
        weight = site.maker.weight
        size = weight[0].numel() + (site.biased or site.centred)
        self.second = torch.zeros(size, size, dtype=torch.float64, device=weight.device)
        self.cross = [
            self.second.new_zeros(torch.Size(reader.taps).numel(), size, reader.layer.weight.shape[0])
            for reader in site.readers
        ]

    def add(self, x: Tensor, desired: Mapping[nn.Module, Tensor]) -> None:
        step = max(1, CHUNK // patches_size(self.site.maker, x))
        for start in range(0, len(x), step):
            b = self.site.features(x[start : start + step])
            rows = b.flatten(0, -2)
            self.second += rows.T @ rows
            self.count += len(rows)
            units = self.site.as_units(b)
            for reader, total in zip(self.site.readers, self.cross, strict=True):
                self._cross(reader, units, len(b), desired[reader.layer][start : start + step], total)

    def _cross(self, reader: Reader, units: Tensor, samples: int, v: Tensor, total: Tensor) -> None:
        try:
            for step in reader.route:
                units = step(units)
            for tap, view in enumerate(reader.views(units)):
                view = view.unflatten(0, (samples, -1)).transpose(0, 1).flatten(1)
                total[tap] += view @ v.flatten(0, 1)
        except RuntimeError as error:
            raise ValueError(
                f"{self.op}: what lies between {self.site.maker} and {reader.layer} must take the data as it takes "
                f"example_inputs (got: {error}); give example_inputs of the data's size"
            ) from error

    def moments(self, scale: float) -> Moments:
        _finite(self.op, self.second, *self.cross)
        second, mean = self.second / self.count, None
        cross = [total.movedim(0, -1) * scale for total in self.cross]
        if self.site.centred:
            mean = second[:-1, -1]
            second = second[:-1, :-1] - mean[:, None] * mean
            cross = [each[:-1] - mean[:, None, None] * each[-1:] for each in cross]
        shaped = [each.unflatten(-1, reader.taps) for each, reader in zip(cross, self.site.readers, strict=True)]
        return Moments(second, tuple(shaped), mean, self.site.biased)


def _pieces(layer: nn.Module, x: Tensor, v: Tensor) -> list[tuple[Tensor, Tensor]]:
    step = max(1, CHUNK // patches_size(layer, x))
    return list(zip(x.split(step), v.split(step), strict=True))


def _finite(op: str, *sums: Tensor) -> None:
    if not all(bool(each.isfinite().all()) for each in sums):
        raise ValueError(f"{op}: activations and gradients must be finite (got NaN or inf); check the data and weights")
