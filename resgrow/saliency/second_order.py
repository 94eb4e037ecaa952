"""Criteria from the diagonal of a curvature matrix."""

from __future__ import annotations

from resgrow.curvature import curvature
from resgrow.curvature.batches import device_of, take
from resgrow.saliency.damping import obd as damped_obd
from resgrow.saliency.path import along_path, densities
from resgrow.saliency.request import Request
from resgrow.saliency.result import LOSS, Saliency

# Samples that `damping="auto"` works on.
PROBE_SAMPLES = 2048


def obd(request: Request) -> Saliency:
    """``1/2 (h + d) w^2``, see `resgrow.saliency.damping`."""
    model, loss_fn, damping = request.model, request.loss(), request.options.get("damping", "auto")
    options = {"method": request.options.get("curvature", "ggn-mc")}
    options |= request.pick("samples", "temperature", "generator")
    if damping != "auto":
        h = curvature(model, loss_fn, request.given_data(), progress=request.progress, **options)
        scores = damped_obd(model, h, float(damping), request.options.get("power", 1.0))
        return Saliency(scores, "obd", LOSS, damping=float(damping))
    if "power" in request.options:
        raise ValueError(
            f"saliency: power goes with a number for damping, which 'auto' chooses itself (got "
            f"{request.options['power']}); leave it out, or give damping a number"
        )
    probe = take("saliency", request.given_data(), device_of(model), PROBE_SAMPLES)
    with request.meter(len(densities(model))) as meter:
        scores, stages = along_path(model, loss_fn, probe, lambda m: curvature(m, loss_fn, probe, **options), meter)
    return Saliency(scores, "obd", LOSS, stages=stages)


def fisher(request: Request) -> Saliency:
    """``1/2 F w^2`` with ``F`` the diagonal of the empirical Fisher matrix of the mean loss."""
    h = curvature(request.model, request.loss(), request.given_data(), method="fisher", progress=request.progress)
    return Saliency(damped_obd(request.model, h, 0.0), "fisher", LOSS, damping=0.0)
