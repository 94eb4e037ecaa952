"""The public function: checks what is asked for and hands it to a method."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from resgrow.curvature.batches import Batch, device_of
from resgrow.curvature.heads import LossFn, head_of
from resgrow.curvature.request import Request
from resgrow.curvature.squares import squares

METHODS: dict[str, Callable[[Request], dict[str, Tensor]]] = {"ggn": squares, "ggn-mc": squares, "fisher": squares}


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
    if method not in METHODS:
        raise ValueError(f"curvature: method must be one of {', '.join(METHODS)} (got {method!r})")
    if isinstance(model, nn.parallel.DistributedDataParallel):
        raise ValueError(
            "curvature: pass model.module instead of the DistributedDataParallel wrapper; every rank gets the "
            "curvature of its own data, to be averaged with all_reduce"
        )
    if samples < 1:
        raise ValueError(f"curvature: samples must be at least 1 (got {samples})")
    if method == "fisher" and temperature != 1:
        raise ValueError(f"curvature: temperature has no meaning for 'fisher' (got {temperature})")
    head = head_of("curvature", loss_fn, temperature)
    generator = generator or torch.Generator(device_of(model)).manual_seed(0)
    return METHODS[method](Request(model, head, data, method, samples, generator))
