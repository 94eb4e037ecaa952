"""Methods that average squared per-sample gradients: ``ggn``, ``ggn-mc`` and ``fisher``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor

from resgrow._modes import eval_mode
from resgrow.curvature.one_by_one import sample_gradients
from resgrow.curvature.request import Request, inverse, result_dtype
from resgrow.curvature.taps import Taps
from resgrow.curvature.trace import Trace
from resgrow.curvature.uses import Squares

Vector = tuple[float, Tensor]


def squares(request: Request) -> dict[str, Tensor]:
    """Diagonal of the generalised Gauss-Newton or empirical Fisher matrix of the mean loss, see ``curvature``."""
    with eval_mode(request.model):
        pass_ = _Pass(request)
        for inputs, target in request.batches():
            pass_.batch(inputs, target)
    return pass_.result()


def _vectors(request: Request, output: Tensor, target: Tensor) -> Iterator[Vector]:
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
    """Accumulates one curvature pass."""

    def __init__(self, request: Request) -> None:
        self.request = request
        self.taps = Taps(request.model, request.output)
        self.wanted = request.parameters
        # Filled during the first backward pass, like gradients, and not before it.
        self.totals: dict[str, Tensor] = {}
        self.seen, self.weight = 0, 0.0

    def batch(self, inputs: Any, target: Tensor) -> None:
        trace, output = self.taps.forward(inputs, target.shape[0])
        if not output.requires_grad and not trace.slow:
            raise ValueError("curvature: the model's output does not depend on any trainable parameter")
        self.seen += target.shape[0]
        self.weight += self.request.head.total(output.detach(), target)
        vectors = _vectors(self.request, output.detach(), target)
        if trace.slow:
            vectors = self._one_by_one(trace, inputs, output.detach(), list(vectors))
        if output.requires_grad:
            self._together(trace, output, vectors)

    def _together(self, trace: Trace, output: Tensor, vectors: Iterator[Vector]) -> None:
        sums = Squares(trace, self._add)
        pending = next(vectors)
        for following in vectors:
            self._send(trace, sums, output, pending, keep_graph=True)
            pending = following
        self._send(trace, sums, output, pending, keep_graph=False)

    def _send(self, trace: Trace, sums: Squares, output: Tensor, vector: Vector, keep_graph: bool) -> None:
        self.sign, grad = vector
        trace.backward(output, grad, sums.visit, keep_graph)
        sums.finish()

    def _one_by_one(self, trace: Trace, inputs: Any, output: Tensor, vectors: list[Vector]) -> Iterator[Vector]:
        """Takes care of the parameters that the trace does not understand."""
        parameters = [self.wanted[name] for name in trace.slow]
        grads = sample_gradients(self.request.model, inputs, output, [v for _, v in vectors], parameters)
        for _, index, found in grads:
            self.sign = vectors[index][0]
            for name, grad in zip(trace.slow, found, strict=True):
                self._add(name, grad.to(result_dtype(grad)).square())
        return iter(vectors)

    def _add(self, name: str, value: Tensor) -> None:
        if name in self.totals:
            self.totals[name].add_(value, alpha=self.sign)
        else:
            self.totals[name] = value.to(result_dtype(self.wanted[name])).mul_(self.sign)

    def result(self) -> dict[str, Tensor]:
        # A sample's own loss, such that their mean is the mean loss, is its share of head.loss times seen / weight.
        fisher = self.request.method == "fisher"
        scale = inverse("curvature", self.weight)
        scale *= self.seen * scale if fisher else 1
        return {
            name: self.totals[name].mul_(scale) if name in self.totals else p.new_zeros(p.shape, dtype=result_dtype(p))
            for name, p in self.wanted.items()
        }
