"""Why a layer cannot be block-sparse: a table of rules, in the order in which they are told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from resgrow._load import has_cuda_kernels

KINDS: tuple[type[nn.Module], ...] = (nn.Conv2d, nn.Linear)
_DTYPES = {
    "cpu": (torch.float32, torch.float64, torch.bfloat16),
    "cuda": (torch.float32, torch.float64, torch.bfloat16, torch.float16),
}
_STATE_HOOKS = (
    "_state_dict_hooks",
    "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks",
    "_load_state_dict_post_hooks",
)


def _is_lazy(layer: Any) -> bool:
    return isinstance(layer, nn.modules.lazy.LazyModuleMixin)


def _is_parametrised(layer: Any) -> bool:
    """Its weight is computed: parametrizations, weight_norm of either kind, torch.nn.utils.prune."""
    if nn.utils.parametrize.is_parametrized(layer):
        return True
    return set(layer._parameters) != {"weight", "bias"} or bool(layer._buffers) or bool(layer._modules)


def _has_weight_hooks(layer: Any) -> bool:
    return bool(layer.weight._backward_hooks) or bool(getattr(layer.weight, "_post_accumulate_grad_hooks", None))


_RULES: tuple[tuple[Callable[[Any], bool], str], ...] = (
    (_is_lazy, "lazy: run the model once before"),
    (_is_parametrised, "its weight is computed by a parametrization or hook"),
    (lambda layer: type(layer) not in KINDS, "a subclass"),
    (lambda layer: "forward" in vars(layer), "its forward is replaced"),
    (_has_weight_hooks, "hooks on its weight"),
    (lambda layer: any(getattr(layer, name) for name in _STATE_HOOKS), "state_dict hooks"),
    (lambda layer: layer.weight.device.type not in _DTYPES, "on a device without kernels"),
    (lambda layer: layer.weight.is_cuda and not has_cuda_kernels(), "on a GPU, and resgrow is built without CUDA"),
    (lambda layer: layer.weight.dtype not in _DTYPES[layer.weight.device.type], "a dtype without kernels"),
    (lambda layer: getattr(layer, "padding_mode", "zeros") != "zeros", "padding with other than zeros"),
    (lambda layer: isinstance(getattr(layer, "padding", None), str), "padding by name"),
    (lambda layer: layer.weight.numel() == 0, "an empty weight"),
)


def refusal(layer: nn.Module) -> str | None:
    """Why ``layer``, a Conv2d or Linear, must stay dense; None where nothing speaks against blocks."""
    return next((why for rule, why in _RULES if rule(layer)), None)
