"""The curvature pass: which gradients are sent back, and how their squares are averaged."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from resgrow.curvature.batches import Batch, call, device_of, iterate
from resgrow.curvature.heads import LossFn, head_of, reduction_of
from resgrow.curvature.rules import Layer, layers_of
from resgrow.curvature.tap import Taps

METHODS = ("ggn", "ggn-mc", "fisher")


def curvature(
    model: nn.Module,
    loss_fn: LossFn,
    data: Iterable[Any] | Batch,
    method: str = "ggn-mc",
    *,
    samples: int = 1,
    temperature: float = 1.0,
    generator: torch.Generator | None = None,
) -> dict[str, Tensor]:
    """Diagonal curvature of the *mean* loss over ``data`` with respect to every trainable parameter.

    With ``g_n(v)`` the gradient that vector ``v`` at the output of sample ``n`` sends to a parameter, and ``S_c`` the
    factors of the loss's Hessian at the output (``sum_c S_c S_c^T``):

    * ``"ggn"``: ``1/N sum_n sum_c g_n(S_c)^2``, the generalised Gauss-Newton diagonal. Equals the diagonal of the
      Hessian for networks that are piecewise linear in each layer's weights. One backward pass per output.
    * ``"ggn-mc"``: the same with ``samples`` random vectors in place of the factors; unbiased.
    * ``"fisher"``: ``1/N sum_n (dl_n/dw)^2`` with the true targets (the empirical Fisher). Any loss. It is *not* an
      estimate of the Hessian: near interpolation it holds a small part of its mass.

    The model runs in eval mode, one forward pass per batch, each layer in its own dtype; results have the
    parameter's shape, in float32 (float64 for float64 parameters).

    Args:
        model: any module whose trainable parameters belong to layers with a rule (Linear, Conv2d, batch, layer and
            group norm), each run once per forward pass. Frozen parameters are left out.
        loss_fn: ``CrossEntropyLoss`` or ``MSELoss`` (or their functional forms); any loss module for ``"fisher"``.
        data: yields ``(input, target)`` batches; one pair of tensors counts as one batch.
        method: one of the above.
        samples: random vectors per sample, for ``"ggn-mc"``.
        temperature: takes the curvature of ``T^2 CE(output / T)``: T > 1 reveals curvature that a saturated softmax
            hides.
        generator: source of randomness for ``"ggn-mc"``; by default a fresh one with seed 0. The global random
            state is never touched.

    Returns:
        ``{parameter name: tensor of the parameter's shape}``, all >= 0.

    Raises:
        ValueError: unknown method, unsupported loss or layer, tied or reused modules, no data, or an output or loss
            that is not finite. The model is left as it was found.
    """
    pass_ = _Pass(model, loss_fn, method, samples, temperature, generator)
    with Taps(model, pass_.layers, pass_.visit) as taps, torch.enable_grad():
        for inputs, target in iterate("curvature", data, device_of(model)):
            pass_.batch(taps, inputs, target)
    return pass_.result()


class _Pass:
    """Accumulates one curvature pass; ``visit`` is called for every layer in every backward pass."""

    def __init__(
        self,
        model: nn.Module,
        loss_fn: LossFn,
        method: str,
        samples: int,
        temperature: float,
        generator: torch.Generator | None,
    ) -> None:
        if method not in METHODS:
            raise ValueError(f"curvature: method must be one of {', '.join(METHODS)} (got {method!r})")
        if isinstance(model, nn.parallel.DistributedDataParallel):
            raise ValueError(
                "curvature: pass model.module instead of the DistributedDataParallel wrapper; every rank gets the "
                "curvature of its own data, to be averaged with all_reduce"
            )
        if samples < 1:
            raise ValueError(f"curvature: samples must be at least 1 (got {samples})")
        self.model, self.loss_fn, self.method = model, loss_fn, method
        self.samples = samples if method == "ggn-mc" else 1
        if method == "fisher":
            self.reduction = reduction_of("curvature", loss_fn)
            if temperature != 1:
                raise ValueError(f"curvature: temperature has no meaning for 'fisher' (got {temperature})")
        else:
            self.head = head_of("curvature", loss_fn, temperature)
        self.generator = generator or torch.Generator(device_of(model)).manual_seed(0)
        self.layers = list(layers_of(model))
        self.names = {parameter: name for name, parameter in model.named_parameters()}
        self.wanted = {name: p for name, p in model.named_parameters() if p.requires_grad}
        # Filled during the first backward pass, like gradients, and not before it.
        self.totals: dict[str, Tensor] = {}
        self.seen = 0

    def visit(self, layer: Layer, x: Tensor, grad: Tensor) -> None:
        with torch.no_grad():
            for local, value in layer.rule(layer.module, x, grad, layer.wanted).items():
                parameter = getattr(layer.module, local)
                name = self.names[parameter]
                self.totals[name] = self.totals[name].add_(value) if name in self.totals else value.to(_wide(parameter))

    def batch(self, taps: Taps, inputs: Any, target: Tensor) -> None:
        count = target.shape[0]
        taps.new_batch(count)
        output = call(self.model, inputs)
        if not isinstance(output, Tensor) or not output.requires_grad:
            raise ValueError(
                "curvature: the model's output must be one tensor that depends on a trainable parameter "
                f"(got {type(output).__name__}); wrap the model so that it returns that tensor"
            )
        if not torch.isfinite(output).all():
            raise ValueError("curvature: the model's output is not finite; lower the learning rate or check the data")
        vectors = self._vectors(output.detach(), target)
        pending = next(vectors)
        for vector in vectors:
            taps.backward(output, pending, keep_graph=True)
            pending = vector
        taps.backward(output, pending, keep_graph=False)
        self.seen += count

    def _vectors(self, output: Tensor, target: Tensor) -> Any:
        if self.method == "ggn":
            yield from self.head.factors(output)
        elif self.method == "ggn-mc":
            for _ in range(self.samples):
                yield self.head.sample(output, self.generator)
        else:
            yield self._loss_gradient(output, target)

    def _loss_gradient(self, output: Tensor, target: Tensor) -> Tensor:
        """Gradient of each sample's own loss, the mean's factor ``1/N`` undone."""
        output = output.requires_grad_()
        loss = self.loss_fn(output, target)
        if not torch.isfinite(loss):
            raise ValueError(f"curvature: the loss is not finite (got {loss.item()})")
        (grad,) = torch.autograd.grad(loss, output)
        return grad * target.shape[0] if self.reduction == "mean" else grad

    def result(self) -> dict[str, Tensor]:
        scale = 1 / (self.seen * self.samples)
        return {
            name: self.totals[name].mul_(scale) if name in self.totals else torch.zeros_like(p, dtype=_wide(p))
            for name, p in self.wanted.items()
        }


def _wide(parameter: Tensor) -> torch.dtype:
    return torch.promote_types(parameter.dtype, torch.float32)
