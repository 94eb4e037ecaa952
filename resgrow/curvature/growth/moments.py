"""What the growth of a layer is computed from: streaming sums over data, in float64."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from resgrow.curvature.batches import Batch
from resgrow.curvature.growth.decompose import inverse_root
from resgrow.curvature.growth.site import Reader, Site
from resgrow.curvature.growth.sums import Cross, Second, explained, weight_sums
from resgrow.curvature.growth.watch import Seen, rereadable, watch
from resgrow.curvature.heads import LossFn, head_of


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
    pass would do, are larger than everything else together. Convolutions that keep the size of maps are summed over
    lags between positions (`resgrow.curvature.growth.lags`), others over unfolded inputs. Products are in the dtype of
    the activations (at least float32), sums over batches in float64; at no time more than a batch is in memory.

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
            for layer, sums in normal.items():
                sums.add(seen.inputs[layer], seen.desired[layer])

        watch(op, model, head, data, layers, layers, gather)
        fits = {layer: normal.pop(layer).solved(op) for layer in layers}

    sums = [_Sums(op, site) for site in sites]

    def add(seen: Seen) -> None:
        desired = dict(seen.desired)
        for layer, fit in fits.items():
            desired[layer] -= explained(layer, seen.inputs[layer], fit)
        for each in sums:
            each.add(seen.inputs[each.site.maker], desired)

    makers = [site.maker for site in sites]
    scale = watch(op, model, head, data, list(dict.fromkeys(makers + layers * project)), layers, add)
    return [each.moments(scale) for each in sums]


class _Normal:
    """Normal equations of the desired update on what a reader reads."""

    def __init__(self, reader: Reader) -> None:
        self.reader, weight = reader, reader.layer.weight
        self.second = Second(reader.layer, reader.shifts)
        self.cross = torch.zeros(len(self.second), len(weight), dtype=torch.float64, device=weight.device)

    def add(self, x: Tensor, v: Tensor) -> None:
        self.second.add(x)
        self.cross += weight_sums(self.reader.layer, x, v, self.reader.shifts)

    def solved(self, op: str) -> Tensor:
        """``W^T (D, O)``."""
        second = self.second.sums()
        _finite(op, second, self.cross)
        root = inverse_root(second)
        return root.along(root.across(self.cross))


class _Sums:
    """Sums over batches of one site."""

    def __init__(self, op: str, site: Site) -> None:
        self.op, self.site = op, site
        self.second = Second(site.maker, site.one)
        self.cross = [Cross(site, reader) for reader in site.readers]

    def add(self, x: Tensor, desired: Mapping[nn.Module, Tensor]) -> None:
        self.second.add(x)
        for cross in self.cross:
            try:
                cross.add(x, desired[cross.reader.layer])
            except RuntimeError as error:
                raise ValueError(
                    f"{self.op}: what lies between {self.site.maker} and {cross.reader.layer} must take the data as it "
                    f"takes example_inputs (got: {error}); give example_inputs of the data's size"
                ) from error

    def moments(self, scale: float) -> Moments:
        total, mean = self.second.sums(), None
        cross = [each.sums() * scale for each in self.cross]
        _finite(self.op, total, *cross)
        second = total / self.second.count
        if self.site.centred:
            mean = second[:-1, -1]
            second = second[:-1, :-1] - mean[:, None] * mean
            cross = [each[:-1] - mean[:, None, None] * each[-1:] for each in cross]
        shaped = [each.unflatten(-1, reader.taps) for each, reader in zip(cross, self.site.readers, strict=True)]
        return Moments(second, tuple(shaped), mean, self.site.biased)


def _finite(op: str, *sums: Tensor) -> None:
    if not all(bool(each.isfinite().all()) for each in sums):
        raise ValueError(f"{op}: activations and gradients must be finite (got NaN or inf); check the data and weights")
