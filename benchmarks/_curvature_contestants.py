"""Who competes: training step, our methods, what autograd gives, and peers that are installed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

import resgrow
from resgrow.curvature.engine import METHODS

Run = Callable[[Tensor, Tensor], dict[str, Tensor]]


@dataclass(frozen=True)
class Contestant:
    """``make(model)`` prepares once and gives the call that is timed: ``(x, y) -> {parameter name: diagonal}``.

    Attributes:
        kind: what it computes: "gradient", "exact" or "sampled" (Gauss-Newton), "fisher" (empirical) or "recursion".
        slow: runs in few rounds.
        scale: what its result must be multiplied by, given the number of samples, to be that of the mean loss.
        layout: the memory format in which it is fastest.
    """

    make: Callable[[nn.Module], Run]
    kind: str
    slow: bool = False
    scale: Callable[[int], float] = lambda samples: 1.0
    layout: torch.memory_format = torch.channels_last


def forward_backward(model: nn.Module) -> Run:
    def run(x: Tensor, y: Tensor) -> dict[str, Tensor]:
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    return run


def ours(method: str) -> Callable[[nn.Module], Run]:
    def make(model: nn.Module) -> Run:
        draws = iter(range(2**62))  # every call draws anew, as a peer's does

        def run(x: Tensor, y: Tensor) -> dict[str, Tensor]:
            generator = torch.Generator().manual_seed(next(draws))
            return resgrow.curvature(model, nn.CrossEntropyLoss(), (x, y), method=method, generator=generator)

        return run

    return make


def mean_square(model: nn.Module, losses: Iterable[Tensor], count: int, **options: bool) -> dict[str, Tensor]:
    """The empirical Fisher's diagonal as autograd gives it, one loss after the other."""
    parameters = dict(model.named_parameters())
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    for loss in losses:
        grads = torch.autograd.grad(loss, list(parameters.values()), **options)
        for value, found in zip(total.values(), grads, strict=True):
            value.addcmul_(found, found, value=1 / count)
    return total


def loop_over_samples(model: nn.Module) -> Run:
    """Batches of one."""

    def run(x: Tensor, y: Tensor) -> dict[str, Tensor]:
        losses = (F.cross_entropy(model(x[n : n + 1]), y[n : n + 1]) for n in range(len(x)))
        return mean_square(model, losses, len(x))

    return run


def loop_over_losses(model: nn.Module) -> Run:
    """One forward pass, then a backward pass per sample through the batch's graph, as pruning libraries do."""

    def run(x: Tensor, y: Tensor) -> dict[str, Tensor]:
        losses = F.cross_entropy(model(x), y, reduction="none")
        return mean_square(model, losses, len(x), retain_graph=True)

    return run


def per_sample(model: nn.Module) -> Run:
    """The same from torch.func's per-sample gradients, all at once."""

    def run(x: Tensor, y: Tensor) -> dict[str, Tensor]:
        weights = {name: p.detach() for name, p in model.named_parameters()}
        buffers = dict(model.named_buffers())

        def loss(weights: dict[str, Tensor], x: Tensor, y: Tensor) -> Tensor:
            return F.cross_entropy(functional_call(model, (weights, buffers), (x[None],)), y[None])

        with differentiable_attention():
            grads = vmap(grad(loss), (None, 0, 0))(weights, x, y)
        return {name: value.square().mean(0) for name, value in grads.items()}

    return run


@contextmanager
def differentiable_attention() -> Iterator[None]:
    """torch takes a fused encoder layer without derivatives where nothing seems to require one, as under vmap."""
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


OURS: dict[str, Contestant] = {
    name: Contestant(ours(name), kind, slow=kind == "exact")
    for name, kind in {"ggn-mc": "sampled", "lecun": "recursion", "fisher": "fisher", "ggn": "exact"}.items()
    if name in METHODS
}
AUTOGRAD: dict[str, Contestant] = {
    "vmap": Contestant(per_sample, "fisher", slow=True),
    "loop over samples": Contestant(loop_over_samples, "fisher", slow=True),
    "loop over losses": Contestant(loop_over_losses, "fisher", slow=True),
}


def contestants() -> dict[str, Contestant]:
    """Everyone present, the training step first."""
    from _curvature_peers import PEERS, installed

    peers: dict[str, Any] = {name: peer for name, peer in PEERS.items() if installed(name)}
    return {"forward+backward": Contestant(forward_backward, "gradient"), **OURS, **AUTOGRAD, **peers}
