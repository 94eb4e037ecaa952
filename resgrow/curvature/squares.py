"""Methods that average squared per-sample gradients: ``ggn``, ``ggn-mc`` and ``fisher``."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from resgrow.curvature.request import Request, result_dtype
from resgrow.curvature.rules import Layer, layers_of
from resgrow.curvature.tap import Taps


def squares(request: Request) -> dict[str, Tensor]:
    """Diagonal of the generalised Gauss-Newton or empirical Fisher matrix of the mean loss, see ``curvature``."""
    pass_ = _Pass(request)
    with Taps(request.model, pass_.layers, pass_.visit) as taps, torch.enable_grad():
        for inputs, target in request.batches():
            taps.new_batch(target.shape[0])
            output = request.output(inputs)
            if not output.requires_grad:
                raise ValueError("curvature: the model's output does not depend on any trainable parameter")
            pass_.seen += target.shape[0]
            pass_.weight += request.head.total(output.detach(), target)
            pass_.backward(taps, output, _vectors(request, output.detach(), target))
    return pass_.result()


def _vectors(request: Request, output: Tensor, target: Tensor) -> Iterator[tuple[float, Tensor]]:
    """What is sent back from the output, each with the weight of its squares."""
    head = request.head
    if request.method == "ggn":
        yield from head.factors(output, target)
    elif request.method == "ggn-mc":
        for _ in range(request.samples):
            yield 1 / request.samples, head.sample(output, target, request.generator)
    else:
        yield 1.0, head.gradient(output, target)


class _Pass:
    """Accumulates one curvature pass; ``visit`` is called for every layer in every backward pass."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.layers = list(layers_of(request.model))
        self.names = {parameter: name for name, parameter in request.model.named_parameters()}
        # Filled during the first backward pass, like gradients, and not before it.
        self.totals: dict[str, Tensor] = {}
        self.seen, self.weight = 0, 0.0
        self.wanted = request.parameters

    def backward(self, taps: Taps, output: Tensor, vectors: Iterator[tuple[float, Tensor]]) -> None:
        pending = next(vectors)
        for following in vectors:
            self._send(taps, output, pending, keep_graph=True)
            pending = following
        self._send(taps, output, pending, keep_graph=False)

    def _send(self, taps: Taps, output: Tensor, vector: tuple[float, Tensor], keep_graph: bool) -> None:
        self.sign, grad = vector
        taps.backward(output, grad, keep_graph)

    def visit(self, layer: Layer, x: Tensor, grad: Tensor) -> None:
        with torch.no_grad():
            for local, value in layer.rule(layer.module, x, grad, layer.wanted).items():
                parameter = getattr(layer.module, local)
                name = self.names[parameter]
                if name in self.totals:
                    self.totals[name].add_(value, alpha=self.sign)
                else:
                    self.totals[name] = value.to(result_dtype(parameter)).mul_(self.sign)

    def result(self) -> dict[str, Tensor]:
        # A sample's own loss, such that their mean is the mean loss, is its share of head.loss times seen / weight.
        fisher = self.request.method == "fisher"
        scale = self.seen / self.weight**2 if fisher else 1 / self.weight
        return {
            name: self.totals[name].mul_(scale)
            if name in self.totals
            else torch.zeros_like(p, dtype=result_dtype(p), requires_grad=False)
            for name, p in self.wanted.items()
        }
