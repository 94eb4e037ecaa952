"""Values of entries that tensors of a layer gain: what the layer's own initialisation would have put there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd

from resgrow.nn.tristate_relu import LEARN, TriStateReLU

Draw = Callable[[nn.Module, str, Sequence[int], torch.Generator | None], Tensor | None]


def fresh(module: nn.Module, attribute: str, shape: Sequence[int], generator: torch.Generator | None) -> Tensor:
    """New entries ``shape`` for a parameter or buffer of a module, with its dtype and device.

    Linear layers and convolutions: uniform within ``1 / sqrt(fan_in)``, weight and bias, as ``reset_parameters`` has
    it. Attention: Xavier's uniform, biases zero. Embeddings: normal, zero for ``padding_idx``. Norms: gain 1, bias 0,
    mean 0, variance 1. PReLU and TriStateReLU: the value that their constructor takes. Tensors of modules that are not
    known: values drawn from those that the tensor has, so that variances stay positive and gains stay near one.

    Args:
        generator: of any device; draws do not depend on where the tensor is.
    """
    tensor = getattr(module, attribute).detach()
    for kind, draw in _KINDS:
        found = draw(module, attribute, shape, generator) if isinstance(module, kind) else None
        if found is not None:
            return found.to(tensor)
    at = torch.randint(tensor.numel(), (prod(shape),), generator=generator, device=_device(generator))
    return tensor.reshape(-1)[at.to(tensor.device)].view(*shape)


def _device(generator: torch.Generator | None) -> torch.device:
    return torch.device("cpu") if generator is None else generator.device


def _uniform(bound: float, shape: Sequence[int], generator: torch.Generator | None) -> Tensor:
    values = torch.empty(tuple(shape), dtype=torch.float64, device=_device(generator))
    return values.uniform_(-bound, bound, generator=generator)


def _layer(module: nn.Module, attribute: str, shape: Sequence[int], generator: torch.Generator | None) -> Tensor | None:
    """He's uniform with ``a = sqrt(5)``, for which ``sqrt(6 / ((1 + a^2) fan_in))`` is ``1 / sqrt(fan_in)``."""
    if attribute not in ("weight", "bias"):
        return None
    weight = module.weight
    assert isinstance(weight, Tensor)
    return _uniform(weight.shape[1:].numel() ** -0.5, shape, generator)


def _attention(
    module: nn.Module, attribute: str, shape: Sequence[int], generator: torch.Generator | None
) -> Tensor | None:
    if attribute == "in_proj_bias":
        return torch.zeros(tuple(shape))
    weight = getattr(module, attribute)
    return _uniform((6 / sum(weight.shape)) ** 0.5, shape, generator) if attribute.endswith("proj_weight") else None


def _embedding(
    module: nn.Module, attribute: str, shape: Sequence[int], generator: torch.Generator | None
) -> Tensor | None:
    assert isinstance(module, nn.Embedding)
    values = torch.empty(tuple(shape), dtype=torch.float64, device=_device(generator)).normal_(generator=generator)
    if module.padding_idx is not None:
        values[module.padding_idx] = 0
    return values


def _norm(module: nn.Module, attribute: str, shape: Sequence[int], generator: torch.Generator | None) -> Tensor | None:
    value = {"weight": 1.0, "bias": 0.0, "running_mean": 0.0, "running_var": 1.0}.get(attribute)
    return None if value is None else torch.full(tuple(shape), value)


def _prelu(module: nn.Module, attribute: str, shape: Sequence[int], generator: torch.Generator | None) -> Tensor | None:
    assert isinstance(module, nn.PReLU)
    return torch.full(tuple(shape), float(module.init), dtype=torch.float64)


def _gate(module: nn.Module, attribute: str, shape: Sequence[int], generator: torch.Generator | None) -> Tensor | None:
    assert isinstance(module, TriStateReLU)
    learnt, _ = LEARN[module.learn]
    return torch.full(tuple(shape), 0.7 if learnt else 1.0, dtype=torch.float64)


_KINDS: tuple[tuple[type[nn.Module], Draw], ...] = (
    (nn.Linear, _layer),
    (_ConvNd, _layer),
    (nn.MultiheadAttention, _attention),
    (nn.Embedding, _embedding),
    (_NormBase, _norm),
    (nn.GroupNorm, _norm),
    (nn.LayerNorm, _norm),
    (nn.RMSNorm, _norm),
    (nn.PReLU, _prelu),
    (TriStateReLU, _gate),
)
