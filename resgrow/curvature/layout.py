"""Which dimension of a tensor holds the samples, known for certain or not used.

Sizes alone can mislead: a sequence may be as long as the batch is large. Where they leave room for doubt the model is
run once more on the first few samples, and what scaled with their number, with the same values, holds the samples.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from resgrow.curvature.tapped import storage

CONSTANT = "constant"


@dataclass(frozen=True)
class Layout:
    """Where ``samples`` samples are in a tensor.

    Attributes:
        dim: the dimension that holds them; None if the whole tensor belongs to a single one.
        inner: of several rows per sample in that dimension, those of one sample are not neighbours.
    """

    samples: int
    dim: int | None
    inner: bool = False

    def split(self, t: Tensor) -> Tensor:
        """A view of ``t`` with the samples first; several rows of one sample become a dimension where they were."""
        if self.dim is None:
            return t[None]
        if t.shape[self.dim] == self.samples:
            return t.movedim(self.dim, 0)
        if self.inner:
            return t.unflatten(self.dim, (-1, self.samples)).movedim(self.dim + 1, 0)
        return t.unflatten(self.dim, (self.samples, -1)).movedim(self.dim, 0)


Verdict = Layout | str | None
"""A layout, CONSTANT for what does not depend on the samples, or None for neither."""


class Unclear(BaseException):
    """Ends a forward pass that has to be repeated once the question ``key`` is answered.

    Not an Exception: models may catch those.
    """

    def __init__(self, key: Hashable) -> None:
        super().__init__(key)
        self.key = key


class Layouts:
    """Answers for one forward pass on ``samples`` samples.

    Args:
        samples: number of samples in the batch.
        inputs: storages of the tensors in the model's input.
        decided: answers found so far, by question; grows.
        probe: the tensors asked about in a pass on the first ``probed`` samples, by question.
        probing: this *is* that pass; ``seen`` collects its tensors.
    """

    def __init__(
        self,
        samples: int,
        inputs: frozenset[int],
        decided: dict[Hashable, Verdict],
        probe: Mapping[Hashable, Tensor] | None = None,
        probed: int = 0,
        probing: bool = False,
    ) -> None:
        self.samples, self.inputs, self.decided = samples, inputs, decided
        self.probe, self.probed, self.probing = probe, probed, probing
        self.seen: dict[Hashable, Tensor] = {}

    def of(self, key: Hashable, t: Tensor, candidates: Sequence[int], batched: bool = False) -> Verdict:
        """Where the samples are in ``t``, given that they can only be in the dimensions ``candidates``.

        ``batched``: dimension 0 holds them if it has their number.

        Raises:
            Unclear: it takes a probe to tell.
        """
        if self.probing:
            self.seen[key] = t.detach().clone()  # a later function may work in place
        else:
            certain = self._certain(t, candidates, batched)
            if certain is not None:
                if self.samples > 1:
                    self.decided[key] = certain
                return certain
        if key in self.decided and self._fits(self.decided[key], t):
            return self._again(self.decided[key])
        if self.probing:
            return self._certain(t, candidates, batched) or self._guess(t, candidates)
        if self.probe is None or key not in self.probe:
            raise Unclear(key)
        self.decided[key] = _compared(t, self.probe[key], candidates, self.samples, self.probed)
        return self.decided[key]

    def _certain(self, t: Tensor, candidates: Sequence[int], batched: bool) -> Layout | None:
        n = self.samples
        if batched and t.shape[0] == n:
            return Layout(n, 0)
        if n == 1:
            return Layout(1, None)
        dims = [d for d in candidates if t.shape[d] % n == 0]
        carries = t.requires_grad or storage(t) in self.inputs
        return Layout(n, dims[0]) if carries and len(dims) == 1 and t.shape[dims[0]] == n else None

    def _guess(self, t: Tensor, candidates: Sequence[int]) -> Verdict:
        """What lets a probe go on. The pass that asked decides; if this was wrong, a further probe will know."""
        carries = t.requires_grad or storage(t) in self.inputs or (t.dim() and t.shape[0] == self.samples)
        dims = [d for d in candidates if t.shape[d] % self.samples == 0]
        return Layout(self.samples, dims[0] if dims else None) if carries else CONSTANT

    def _fits(self, verdict: Verdict, t: Tensor) -> bool:
        """Whether an answer from another pass is possible here."""
        if not isinstance(verdict, Layout) or verdict.dim is None:
            return True
        return verdict.dim < t.dim() and t.shape[verdict.dim] % self.samples == 0

    def _again(self, verdict: Verdict) -> Verdict:
        if not isinstance(verdict, Layout):
            return verdict
        return Layout(self.samples, None if self.samples == 1 else verdict.dim, verdict.inner)


def _compared(whole: Tensor, part: Tensor, candidates: Sequence[int], samples: int, probed: int) -> Verdict:
    """What the same tensor in passes on ``samples`` samples and on the first ``probed`` of them tells."""
    if whole.dim() != part.dim():
        return None
    changed = [d for d in range(whole.dim()) if whole.shape[d] != part.shape[d]]
    if not changed:
        return CONSTANT if not whole.requires_grad and alike(whole, part) else None
    (dim, *others) = changed
    if others or dim not in candidates or whole.shape[dim] * probed != part.shape[dim] * samples:
        return None
    if part.shape[dim] == probed:
        return Layout(samples, dim) if alike(whole.narrow(dim, 0, probed), part) else None
    fitting = [
        Layout(samples, dim, inner)
        for inner in (False, True)
        if alike(Layout(samples, dim, inner).split(whole)[:probed], Layout(probed, dim, inner).split(part))
    ]
    return fitting[0] if len(fitting) == 1 else None


def alike(a: Tensor, b: Tensor) -> bool:
    """Equal up to rounding that differs between batch sizes, also in half precision; integers exactly."""
    if a.shape != b.shape or not b.is_floating_point():
        return torch.equal(a, b)
    a, b = a.detach().double(), b.detach().double()
    if not b.numel():
        return True
    distance, scale = (a - b).abs().max().item(), b.abs().max().item()
    if math.isfinite(distance) and math.isfinite(scale):
        return distance <= 0.02 * scale
    finite = b[torch.isfinite(b)].abs()
    scale = finite.max().item() if finite.numel() else 0.0
    return bool(torch.isclose(a, b, rtol=0.0, atol=0.02 * scale, equal_nan=True).all())
