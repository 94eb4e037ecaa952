"""Curvature by definition, in float64: what the engine is compared with."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call


def hessian_diagonal(model: nn.Module, loss_fn: Callable[..., Tensor], x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """Exact diagonal of the Hessian of the loss, element by element, by double backward."""
    model.eval()
    parameters = dict(model.named_parameters())
    loss = loss_fn(model(x), y)
    found = {}
    for name, parameter in parameters.items():
        (first,) = torch.autograd.grad(loss, parameter, create_graph=True)
        diagonal = torch.zeros_like(parameter).flatten()
        for k, entry in enumerate(first.flatten()):
            (second,) = torch.autograd.grad(entry, parameter, retain_graph=True, allow_unused=True)
            diagonal[k] = 0 if second is None else second.flatten()[k]
        found[name] = diagonal.view_as(parameter)
    return found


def fisher_diagonal(model: nn.Module, loss_fn: Callable[..., Tensor], x: Tensor, y: Tensor) -> dict[str, Tensor]:
    """``1/N sum_n (dl_n / dw)^2``, one backward pass per sample."""
    model.eval()
    total = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
    for n in range(len(x)):
        loss = loss_fn(model(x[n : n + 1]), y[n : n + 1])
        grads = torch.autograd.grad(loss, list(model.parameters()))
        for name, grad in zip(total, grads, strict=True):
            total[name] += grad.square() / len(x)
    return total


def ggn_diagonal(model: nn.Module, factors: Callable[[Tensor], list[Tensor]], x: Tensor) -> dict[str, Tensor]:
    """``1/N sum_n sum_c (d(S_c^T f_n) / dw)^2``, one backward pass per sample and factor."""
    model.eval()
    parameters = {name: p.detach() for name, p in model.named_parameters()}
    buffers = dict(model.named_buffers())
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for n in range(len(x)):
        sample = x[n : n + 1]
        for factor in factors(model(sample).detach()):

            def projected(p: dict[str, Tensor], sample: Tensor = sample, factor: Tensor = factor) -> Tensor:
                return (functional_call(model, {**p, **buffers}, (sample,)) * factor).sum()

            for name, grad in torch.func.grad(projected)(parameters).items():
                total[name] += grad.square() / len(x)
    return total


def softmax_factors(output: Tensor) -> list[Tensor]:
    """``S_c = sqrt(p_c) (e_c - p)``."""
    p = output.softmax(1)
    return [p[:, c : c + 1].sqrt() * (torch.eye(p.shape[1], dtype=p.dtype)[c] - p) for c in range(p.shape[1])]


def fisher_one_by_one(
    model: nn.Module, loss_fn: Callable[..., Tensor], x: Sequence[Tensor], y: Tensor
) -> dict[str, Tensor]:
    """``1/N sum_n (dl_n / dw)^2`` for any inputs and uses of parameters; zeros for those that are not used."""

    def losses(sample: Sequence[Tensor], n: int) -> list[Tensor]:
        return [loss_fn(model(*sample), y[n : n + 1])]

    return _mean_square(model, x, losses)


def ggn_one_by_one(model: nn.Module, x: Sequence[Tensor]) -> dict[str, Tensor]:
    """The generalised Gauss-Newton diagonal of softmax cross-entropy, likewise."""

    def projections(sample: Sequence[Tensor], n: int) -> list[Tensor]:
        output = model(*sample)
        return [(output * factor).sum() for factor in softmax_factors(output.detach())]

    return _mean_square(model, x, projections)


def _mean_square(
    model: nn.Module, x: Sequence[Tensor], scalars: Callable[[Sequence[Tensor], int], list[Tensor]]
) -> dict[str, Tensor]:
    model.eval()
    parameters = dict(model.named_parameters())
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for n in range(len(x[0])):
        for scalar in scalars([t[n : n + 1] for t in x], n):
            grads = torch.autograd.grad(
                scalar, list(parameters.values()), retain_graph=True, allow_unused=True, materialize_grads=True
            )
            for name, grad in zip(total, grads, strict=True):
                total[name] += grad.square() / len(x[0])
    return total


def state(model: nn.Module) -> list[object]:
    """What no measurement may change: modes, values, gradients, who is trainable, hooks, the random state."""
    hooks = torch.nn.modules.module._global_forward_hooks, torch.nn.modules.module._global_forward_pre_hooks
    return [
        [module.training for module in model.modules()],
        [t.clone() for t in model.state_dict().values()],
        [p.grad if p.grad is None else p.grad.clone() for p in model.parameters()],
        [p.requires_grad and p.is_leaf for p in model.parameters()],
        sum(len(h) for h in hooks) + sum(len(m._forward_hooks) + len(m._forward_pre_hooks) for m in model.modules()),
        torch.get_rng_state(),
    ]


def assert_unchanged(model: nn.Module, before: list[object]) -> None:
    for now, then in zip(state(model), before, strict=True):
        torch.testing.assert_close(now, then, rtol=0, atol=0)
