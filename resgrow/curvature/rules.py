"""One rule per layer type: squared per-sample parameter gradients from the layer's input and output gradient.

A rule takes ``(module, x, grad, wanted)`` with ``x`` the layer's input and ``grad`` the gradient at its output, both
with the sample as first dimension, and ``wanted`` the module's own parameter names to compute. It returns
``{parameter name within the module: sum over samples of squared gradients}``.
A new layer type is one function and one row in ``RULES``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from resgrow import ops

Rule = Callable[[nn.Module, Tensor, Tensor, frozenset[str]], dict[str, Tensor]]


def _linear(module: nn.Module, x: Tensor, grad: Tensor, wanted: frozenset[str]) -> dict[str, Tensor]:
    found = {}
    if "weight" in wanted:
        found["weight"] = ops.squared_grad_linear(x, grad)
    if "bias" in wanted:
        found["bias"] = ops.squared_grad_bias(grad, grad.dim() - 1)
    return found


def _conv2d(module: nn.Module, x: Tensor, grad: Tensor, wanted: frozenset[str]) -> dict[str, Tensor]:
    assert isinstance(module, nn.Conv2d)
    found = {}
    if "weight" in wanted:
        padding = module.padding
        if isinstance(padding, str) or module.padding_mode != "zeros":
            mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
            x, padding = F.pad(x, module._reversed_padding_repeated_twice, mode=mode), (0, 0)
        found["weight"] = ops.squared_grad_conv2d(
            x, grad, module.kernel_size, module.stride, padding, module.dilation, module.groups
        )
    if "bias" in wanted:
        found["bias"] = ops.squared_grad_bias(grad, 1)
    return found


def _batch_norm(module: nn.Module, x: Tensor, grad: Tensor, wanted: frozenset[str]) -> dict[str, Tensor]:
    assert isinstance(module, nn.modules.batchnorm._BatchNorm)
    if module.running_mean is None or module.running_var is None:
        raise ValueError(
            "curvature: a batch norm without running statistics couples the samples of a batch; "
            "build it with track_running_stats=True, or freeze its parameters with requires_grad_(False)"
        )
    rstd = (module.running_var + module.eps).rsqrt()
    weight, bias = ops.squared_grad_norm(x, grad, module.running_mean, rstd)
    return _keep(wanted, {"weight": weight, "bias": bias})


def _layer_norm(module: nn.Module, x: Tensor, grad: Tensor, wanted: frozenset[str]) -> dict[str, Tensor]:
    assert isinstance(module, nn.LayerNorm)
    shape = module.normalized_shape
    x, grad = _wide(x), _wide(grad)
    normalised = F.layer_norm(x, shape, eps=module.eps)

    def per_sample(product: Tensor) -> Tensor:
        return product.reshape(product.shape[0], -1, *shape).sum(1).square().sum(0)

    return _keep(wanted, {"weight": per_sample(grad * normalised), "bias": per_sample(grad)})


def _group_norm(module: nn.Module, x: Tensor, grad: Tensor, wanted: frozenset[str]) -> dict[str, Tensor]:
    assert isinstance(module, nn.GroupNorm)
    x, grad = _wide(x), _wide(grad)
    normalised = F.group_norm(x, module.num_groups, eps=module.eps)
    weight, bias = ops.squared_grad_bias(grad * normalised, 1), ops.squared_grad_bias(grad, 1)
    return _keep(wanted, {"weight": weight, "bias": bias})


RULES: dict[type[nn.Module], Rule] = {
    nn.Linear: _linear,
    nn.Conv2d: _conv2d,
    nn.BatchNorm1d: _batch_norm,
    nn.BatchNorm2d: _batch_norm,
    nn.BatchNorm3d: _batch_norm,
    nn.LayerNorm: _layer_norm,
    nn.GroupNorm: _group_norm,
}


@dataclass
class Layer:
    """A module with trainable parameters of its own, and how to differentiate it."""

    name: str
    module: nn.Module
    rule: Rule
    wanted: frozenset[str]


def layers_of(model: nn.Module) -> Iterator[Layer]:
    """Every module that holds a trainable parameter itself, with its rule.

    Raises:
        ValueError: a module has no rule, or a parameter belongs to two modules.
    """
    owner: dict[Tensor, str] = {}
    for name, module in model.named_modules():
        direct = {n: p for n, p in module.named_parameters(recurse=False) if p.requires_grad}
        if not direct:
            continue
        for local, parameter in direct.items():
            full = f"{name}.{local}" if name else local
            if parameter in owner:
                raise ValueError(
                    f"curvature: parameters shared between modules are not supported ('{full}' is "
                    f"'{owner[parameter]}'); untie them, or freeze them with requires_grad_(False)"
                )
            owner[parameter] = full
        yield Layer(name, module, _rule_of(name, module, next(iter(direct))), frozenset(direct))


def _rule_of(name: str, module: nn.Module, parameter: str) -> Rule:
    for kind in type(module).__mro__:
        rule = RULES.get(kind)
        # A subclass that computes something else must not inherit its parent's derivative.
        if rule is not None and all(
            getattr(type(module), method, None) is getattr(kind, method, None)
            for method in ("forward", "_conv_forward")
        ):
            return rule
    known = ", ".join(kind.__name__ for kind in RULES)
    raise ValueError(
        f"curvature: no rule for module '{name}' of type {type(module).__name__}, which holds parameter "
        f"'{parameter}' (rules exist for {known}); freeze it with requires_grad_(False) to leave it out"
    )


def _keep(wanted: frozenset[str], found: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in found.items() if name in wanted}


def _wide(t: Tensor) -> Tensor:
    """At least float32, so that sums over positions keep their digits."""
    return t.float() if t.dtype in (torch.bfloat16, torch.float16) else t
