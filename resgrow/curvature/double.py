"""Batches' losses with graphs that can be differentiated twice: what ``hessian`` and ``hutchinson`` share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from resgrow._modes import eagerly, eval_mode
from resgrow.curvature.batches import Batch
from resgrow.curvature.request import Request


class Differentiable(NamedTuple):
    """One batch's output with its graph, and the gradient of its loss by every trainable parameter with its own.

    ``gradients`` has None where the loss does not depend on a parameter, or only linearly.
    """

    target: Tensor
    output: Tensor
    total: float
    gradients: dict[str, Tensor | None]


@contextmanager
def twice(request: Request) -> Iterator[None]:
    """Modules in eval mode, or their own for ``request.train``; gradients on; only kernels with second derivatives."""
    with ExitStack() as stack:
        stack.enter_context(eagerly() if request.train else eval_mode(request.model))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(sdpa_kernel(SDPBackend.MATH))
        stack.enter_context(_ContiguousGroupNorm())
        if any(isinstance(module, nn.RNNBase) for module in request.model.modules()):
            stack.enter_context(torch.backends.cudnn.flags(enabled=False))
        yield


class _ContiguousGroupNorm(TorchFunctionMode):
    """Group norms get contiguous inputs.

    For channels_last ones their second derivative crashes the process in torch up to 2.13; this can go with those.
    """

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (F.group_norm, torch.group_norm) and args:
            args = (args[0].contiguous(), *args[1:])
        return func(*args, **(kwargs or {}))


def differentiate(request: Request, batch: Batch) -> Differentiable:
    """The graph of one batch. Running statistics are updated in copies of the model's buffers.

    Raises:
        ValueError: output or loss are not finite, or do not depend on a trainable parameter.
    """
    inputs, target = batch
    buffers = {name: b.clone() for name, b in request.model.named_buffers()} if request.train else None
    output = request.output(inputs, buffers)
    if not output.requires_grad:
        raise ValueError("curvature: the model's output does not depend on any trainable parameter")
    loss = request.head.loss(output, target)
    if not torch.isfinite(loss):
        raise ValueError(f"curvature: the loss is not finite (got {loss.item()})")
    parameters = request.parameters
    found = torch.autograd.grad(loss, list(parameters.values()), create_graph=True, allow_unused=True)
    gradients = {n: g if g is not None and g.requires_grad else None for n, g in zip(parameters, found, strict=True)}
    return Differentiable(target, output, request.head.total(output.detach(), target), gradients)
