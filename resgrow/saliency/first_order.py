"""The first-order criterion."""

from __future__ import annotations

import torch
from torch import Tensor

from resgrow._modes import eval_mode
from resgrow.curvature.batches import call
from resgrow.curvature.request import inverse, result_dtype
from resgrow.saliency.request import Request
from resgrow.saliency.result import Saliency


def taylor(request: Request) -> Saliency:
    """``|g w|`` with ``g`` the gradient of the mean loss over all data (Molchanov et al. 2017, eq. 8)."""
    parameters = request.parameters
    scores = {name: (g * parameters[name]).abs() for name, g in _mean_gradients(request).items()}
    return Saliency(scores, "taylor", "size of the first-order change of the mean loss")


def _mean_gradients(request: Request) -> dict[str, Tensor]:
    """Gradient of the mean loss over all data, in eval mode; ``.grad`` stays as it is."""
    head = request.head()
    wanted = {name: p for name, p in request.model.named_parameters() if p.requires_grad}
    sums = {name: torch.zeros_like(p, dtype=result_dtype(p)) for name, p in request.parameters.items()}
    weight = 0.0
    with eval_mode(request.model), torch.enable_grad():
        for inputs, target in request.batches():
            output = call(request.model, inputs)
            loss = head.loss(output, target)
            if not torch.isfinite(loss):
                raise ValueError(f"saliency: the loss is not finite (got {loss.item()}); check the data")
            if not loss.requires_grad:
                raise ValueError("saliency: the loss does not depend on any trainable parameter; unfreeze some")
            gradients = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True)
            for name, gradient in zip(wanted, gradients, strict=True):
                if gradient is not None:
                    sums[name] += gradient
            weight += head.total(output.detach(), target)
    scale = inverse("saliency", weight)
    return {name: total * scale for name, total in sums.items()}
