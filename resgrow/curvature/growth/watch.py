"""One pass over data that sees what enters layers and which gradient arrives at their outputs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from resgrow._modes import eval_mode
from resgrow.curvature.batches import Batch, call, device_of, iterate
from resgrow.curvature.heads import Head
from resgrow.curvature.request import inverse


@dataclass
class Seen:
    """Of one batch.

    Attributes:
        inputs: of the layers that were asked for, detached.
        desired: minus the gradient of the batch's *sum* of losses at the outputs of those that were asked for.
    """

    inputs: dict[nn.Module, Tensor] = field(default_factory=dict)
    desired: dict[nn.Module, Tensor] = field(default_factory=dict)


def rereadable(data: Iterable[Any] | Batch) -> Iterable[Any] | Batch:
    """Data that can be read several times: what can be read only once is kept in memory."""
    return list(data) if isinstance(data, Iterator) else data


def watch(
    op: str,
    model: nn.Module,
    head: Head,
    data: Iterable[Any] | Batch,
    inputs: Sequence[nn.Module],
    outputs: Sequence[nn.Module],
    visit: Callable[[Seen], None],
) -> float:
    """Run the model over all data in eval mode, and ``visit`` what is seen of each batch.

    Args:
        inputs: layers whose input is wanted; each must run once in a forward pass.
        outputs: layers for the gradient at their output, likewise.

    Returns:
        What turns sums over all batches into those of the mean loss, by multiplication.

    Raises:
        ValueError: no data, a loss that is not finite, a layer that does not run once as a module.
        TypeError: ``data`` does not yield pairs.
    """
    total = 0.0
    with _at_rest(model):
        for batch, target in iterate(op, data, device_of(model)):
            seen, taps = Seen(), dict[nn.Module, Tensor]()
            with _hooks(op, seen, taps, inputs, outputs):
                output = call(model, batch)
            _ran(op, inputs, seen.inputs)
            _ran(op, outputs, taps)
            tapped = [taps[layer] for layer in outputs]
            for layer, grad in zip(outputs, _gradients(op, head, output, target, tapped), strict=True):
                seen.desired[layer] = -grad
            total += head.total(output, target)
            with torch.no_grad():
                visit(seen)
    return inverse(op, total)


def weight_gradients(
    op: str, model: nn.Module, head: Head, data: Iterable[Any] | Batch, weights: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Gradients of the mean loss in eval mode, float64, with respect to weights that stand in for those of the model.

    Raises: as `watch`.
    """
    leaves = {name: weight.detach().requires_grad_() for name, weight in weights.items()}
    sums = {name: torch.zeros_like(weight, dtype=torch.float64) for name, weight in leaves.items()}
    total = 0.0
    with _at_rest(model):
        for batch, target in iterate(op, data, device_of(model)):
            output = call(model, batch, leaves)
            grads = _gradients(op, head, output, target, list(leaves.values()))
            for each, grad in zip(sums.values(), grads, strict=True):
                each += grad
            total += head.total(output, target)
    return {name: each * inverse(op, total) for name, each in sums.items()}


def _gradients(op: str, head: Head, output: Any, target: Tensor, tensors: Sequence[Tensor]) -> list[Tensor]:
    """Of the sum of losses over a batch, in at least float32."""
    if not isinstance(output, Tensor):
        raise ValueError(f"{op}: the model must return one tensor (got {type(output).__name__})")
    loss = head.loss(output, target)
    if not math.isfinite(float(loss.detach())):
        raise ValueError(
            f"{op}: the loss must be finite (got {float(loss.detach())}); check the data, or lower the learning rate"
        )
    grads = torch.autograd.grad(loss, tensors, materialize_grads=True)
    return [grad.to(torch.promote_types(grad.dtype, torch.float32)) for grad in grads]


def _ran(op: str, layers: Iterable[nn.Module], there: Mapping[nn.Module, Tensor]) -> None:
    for layer in layers:
        if layer not in there:
            raise ValueError(
                f"{op}: layers must run as modules (got {layer}, which did not run); call the layer, rather than a "
                "function with its weight"
            )


@contextmanager
def _hooks(
    op: str,
    seen: Seen,
    taps: dict[nn.Module, Tensor],
    inputs: Sequence[nn.Module],
    outputs: Sequence[nn.Module],
) -> Iterator[None]:
    def before(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        _once(op, layer, layer in seen.inputs)
        x = args[0] if args else next(iter(kwargs.values()))
        # What follows may work in place.
        seen.inputs[layer] = x.detach().clone()

    def after(layer: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        _once(op, layer, layer in taps)
        taps[layer] = output if output.requires_grad else output.detach().requires_grad_()
        return taps[layer].clone()

    handles: list[Any] = []
    try:
        for layer in inputs:
            handles.append(layer.register_forward_pre_hook(before, with_kwargs=True))
        for layer in outputs:
            handles.append(layer.register_forward_hook(after))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _once(op: str, layer: nn.Module, again: bool) -> None:
    if again:
        raise ValueError(f"{op}: layers must run once in a forward pass (got {layer}, which ran twice)")


@contextmanager
def _at_rest(model: nn.Module) -> Iterator[None]:
    """Eval mode with gradients. The global random state is as before afterwards: data which are shuffled or augmented
    by it are the same in every pass."""
    device = device_of(model)
    devices = [device.index or 0] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.enable_grad(), eval_mode(model):
        yield
