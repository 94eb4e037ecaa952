"""Criteria that look at no data."""

from __future__ import annotations

import torch

from resgrow.curvature.request import result_dtype
from resgrow.saliency.request import Request
from resgrow.saliency.result import Saliency


def magnitude(request: Request) -> Saliency:
    """``|w|``."""
    scores = {name: p.to(result_dtype(p)).abs() for name, p in request.parameters.items()}
    return Saliency(scores, "magnitude", "absolute value of the parameter")


def random(request: Request) -> Saliency:
    """Independent and uniform on [0, 1), drawn in the order of ``named_parameters``."""
    generator = request.generator()
    scores = {}
    for name, p in request.parameters.items():
        drawn = torch.rand(p.shape, generator=generator, device=generator.device, dtype=result_dtype(p))
        scores[name] = drawn.to(p.device)
    return Saliency(scores, "random", "none: uniform on [0, 1)")
