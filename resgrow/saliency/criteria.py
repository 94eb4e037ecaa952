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
from resgrow.saliency.damping import TEMPERATURES, Trial, choose, obd

# Samples on which `damping="auto"` tries its settings.
PROBE_SAMPLES = 2048


class Saliency(dict[str, Tensor]):
    """``{parameter name: score per element}`` that remembers how it was made.

    Attributes:
        method: the criterion.
        damping: the multiple of the mean curvature in use (None where the criterion has none).
        temperature: of the softmax under which the curvature was taken (None likewise).
        trials: what ``damping="auto"`` tried, best first.
    """

    def __init__(
        self,
        scores: Mapping[str, Tensor],
        method: str,
        damping: float | None = None,
        temperature: float | None = None,
        trials: list[Trial] | None = None,
    ) -> None:
        super().__init__(scores)
        self.method, self.damping, self.temperature = method, damping, temperature
        self.trials = trials or []


@dataclass(frozen=True)
class _Request:
    model: nn.Module
    loss_fn: LossFn | None
    data: Any
    curvature: str
    damping: float | str
    temperature: float | None
    samples: int
    generator: torch.Generator | None


def saliency(
    model: nn.Module,
    loss_fn: LossFn | None = None,
    data: Iterable[Any] | Batch | None = None,
    method: str = "obd",
    *,
    curvature: str = "ggn-mc",
    damping: float | str = "auto",
    temperature: float | None = None,
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
        damping: multiple of the mean curvature over all weights, >= 0. ``"auto"`` tries several on the first 2,048
            samples of ``data``: each candidate deletes the lowest-scoring 80, 90 and 95 % of all weights in a copy,
            and the one with the lowest mean log loss wins. ``Saliency.trials`` lists them.
        temperature: see ``resgrow.curvature``. By default 1, or chosen from 1, 2 and 4 together with the damping
            when that is ``"auto"`` and the loss is cross-entropy.
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
    request = _Request(model, loss_fn, data, curvature, damping, temperature, samples, generator)
    scores = METHODS[method](request)
    for name, score in scores.items():
        if not torch.isfinite(score).all():
            raise ValueError(f"saliency: scores of '{name}' are not finite; check that parameter and the data")
    return scores


def _magnitude(request: _Request) -> Saliency:
    trainable = ((name, p) for name, p in request.model.named_parameters() if p.requires_grad)
    return Saliency({name: p.detach().abs() for name, p in trainable}, "magnitude")


def _obd(request: _Request) -> Saliency:
    model, loss_fn = request.model, request.loss_fn
    if loss_fn is None or request.data is None:
        raise ValueError("saliency: method 'obd' needs loss_fn and data")
    data = request.data
    if iter(data) is data:
        # A one-shot iterator would be empty when the next temperature asks for it.
        data = list(data)

    def at(temperature: float) -> dict[str, Tensor]:
        return curvature_of(
            model,
            loss_fn,
            data,
            request.curvature,
            samples=request.samples,
            temperature=temperature,
            generator=request.generator,
        )

    temperature = 1.0 if request.temperature is None else request.temperature
    if request.damping != "auto":
        damping = float(request.damping)
        return Saliency(obd(model, at(temperature), damping), "obd", damping, temperature)
    search = request.temperature is None and request.curvature != "fisher" and _is_cross_entropy(loss_fn)
    probe = take("saliency", data, device_of(model), PROBE_SAMPLES)
    scores, trials = choose(model, loss_fn, probe, at, TEMPERATURES if search else (temperature,))
    return Saliency(scores, "obd", trials[0].damping, trials[0].temperature, trials)


def _is_cross_entropy(loss_fn: LossFn) -> bool:
    return isinstance(loss_fn, nn.CrossEntropyLoss) or loss_fn is nn.functional.cross_entropy


METHODS: dict[str, Callable[[_Request], Saliency]] = {"obd": _obd, "magnitude": _magnitude}
