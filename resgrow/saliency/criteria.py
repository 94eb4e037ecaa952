"""One function for all criteria, and the table of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from resgrow.curvature import curvature as curvature_of
from resgrow.curvature.batches import Batch, device_of, take
from resgrow.curvature.heads import LossFn
from resgrow.saliency.damping import obd
from resgrow.saliency.path import Stage, along_path

# Samples that `damping="auto"` works on.
PROBE_SAMPLES = 2048


class Saliency(dict[str, Tensor]):
    """``{parameter name: score per element}`` that remembers how it was made.

    Attributes:
        method: the criterion.
        damping: the multiple of the mean curvature in use; None where it was chosen stage by stage, or has no place.
        stages: what ``damping="auto"`` tried and chose at each stage of its path; otherwise empty.
    """

    def __init__(
        self,
        scores: Mapping[str, Tensor],
        method: str,
        damping: float | None = None,
        stages: list[Stage] | None = None,
    ) -> None:
        super().__init__(scores)
        self.method, self.damping, self.stages = method, damping, stages or []


@dataclass(frozen=True)
class _Request:
    model: nn.Module
    loss_fn: LossFn | None
    data: Any
    damping: float | str
    power: float
    curvature: Mapping[str, Any]


def saliency(
    model: nn.Module,
    loss_fn: LossFn | None = None,
    data: Iterable[Any] | Batch | None = None,
    method: str = "obd",
    *,
    curvature: str = "ggn-mc",
    damping: float | str = "auto",
    power: float = 1.0,
    temperature: float = 1.0,
    samples: int = 1,
    generator: torch.Generator | None = None,
) -> Saliency:
    """Score of every trainable parameter element: how much is lost when it goes. The model is left as it was.

    * ``"obd"``: ``1/2 (h + d) w^2`` with ``h`` the diagonal curvature of the mean loss and ``d = damping *
      mean(h)``: the predicted rise of the mean loss (LeCun, Denker & Solla 1990, damped).
    * ``"magnitude"``: ``|w|``. Needs neither loss nor data.

    Args:
        model: see ``resgrow.curvature``.
        loss_fn: see ``resgrow.curvature``.
        data: yields ``(input, target)`` batches.
        method: one of the above.
        curvature: method of ``resgrow.curvature``.
        damping: multiple of the mean curvature over all weights, >= 0. ``"auto"`` works on the first 2,048 samples
            of ``data``: weights are deleted a quarter at a time in a copy of the model, curvature is taken anew
            after each stage, and each stage keeps the damping and ``power`` under which its deletions raise the
            measured loss least. It costs 13 curvature passes and up to 78 loss evaluations; a number costs one pass.
        power: with a number for ``damping``: ``h + d`` enters as ``(h + d)^power mean(h)^(1 - power)``, in (0, 1].
        temperature: see ``resgrow.curvature``.
        samples: see ``resgrow.curvature``.
        generator: see ``resgrow.curvature``.

    Raises:
        ValueError: unknown method, negative damping, missing loss or data, scores that are not finite, and all that
            ``resgrow.curvature`` raises.
    """
    if method not in METHODS:
        raise ValueError(f"saliency: method must be one of {', '.join(METHODS)} (got {method!r})")
    number = isinstance(damping, (int, float)) and not isinstance(damping, bool)
    if damping != "auto" and not (number and 0 <= float(damping) < float("inf")):
        raise ValueError(f"saliency: damping must be 'auto' or a number >= 0 (got {damping!r})")
    if not 0 < power <= 1:
        raise ValueError(f"saliency: power must be in (0, 1] (got {power})")
    options = {"method": curvature, "samples": samples, "temperature": temperature, "generator": generator}
    scores = METHODS[method](_Request(model, loss_fn, data, damping, power, options))
    for name, score in scores.items():
        if not torch.isfinite(score).all():
            raise ValueError(f"saliency: scores of '{name}' are not finite; check that parameter and the data")
    return scores


def _magnitude(request: _Request) -> Saliency:
    trainable = ((name, p) for name, p in request.model.named_parameters() if p.requires_grad)
    return Saliency({name: p.detach().abs() for name, p in trainable}, "magnitude")


def _obd(request: _Request) -> Saliency:
    model, loss_fn, damping = request.model, request.loss_fn, request.damping
    if loss_fn is None or request.data is None:
        raise ValueError("saliency: method 'obd' needs loss_fn and data")
    if damping != "auto":
        h = curvature_of(model, loss_fn, request.data, **request.curvature)
        return Saliency(obd(model, h, float(damping), request.power), "obd", float(damping))
    probe = take("saliency", request.data, device_of(model), PROBE_SAMPLES)
    scores, stages = along_path(model, loss_fn, probe, lambda m: curvature_of(m, loss_fn, probe, **request.curvature))
    return Saliency(scores, "obd", stages=stages)


METHODS: dict[str, Callable[[_Request], Saliency]] = {"obd": _obd, "magnitude": _magnitude}
