"""One more layer for a plain network: one that is the identity, or a residual branch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules import activation, dropout, pooling
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from resgrow.nn import Residual, TriStateReLU
from resgrow.surgery.deepen.addition import Addition, copied, like, path_of, redraw, zero
from resgrow.surgery.forward import Example
from resgrow.surgery.structure.observe import observed

_NOT_ELEMENTWISE = ("GLU", "MultiheadAttention", "Softmin", "Softmax", "Softmax2d", "LogSoftmax")
_ACTIVATIONS = (
    *(getattr(activation, name) for name in activation.__all__ if name not in _NOT_ELEMENTWISE),
    TriStateReLU,
)
_PASSED = tuple(getattr(module, name) for module in (pooling, dropout) for name in module.__all__)
_NORMS = (_BatchNorm, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm)
_CONVOLUTIONS: dict[int, Callable[..., nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


@dataclass(frozen=True)
class _Spot:
    """A layer in a Sequential, and what follows it there: keys; ``end`` is the last of them."""

    parent: str
    key: str
    norm: str | None
    act: str | None

    @property
    def end(self) -> str:
        return self.act or self.norm or self.key


def is_layer(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear | _ConvNd)


def identity_addition(model: nn.Module, name: str, example: Example) -> Addition:
    """Net2Deeper (Chen, Goodfellow and Shlens 2016, section 3.2): identity weights, and the activation again.

    Raises:
        ValueError: something else than a layer in a Sequential with an activation behind it that leaves its own results
            as they are, or a norm that cannot be the identity.
    """
    spot = _spot(model, name)
    parent = model.get_submodule(spot.parent)
    if spot.act is None:
        raise ValueError(
            f"deepen: an identity layer wants an activation behind {name} in its Sequential (got "
            f"{_behind(parent, spot.key)}); name a layer that has one, or use init='residual'"
        )
    values = _values(model, spot, example)
    act = copied(parent.get_submodule(spot.act))
    again = act.eval()(values.clone())
    act.train(parent.get_submodule(spot.act).training)
    if not torch.equal(again, values):
        raise ValueError(
            f"deepen: an identity layer needs an activation with f(f(x)) = f(x), as ReLU is (got "
            f"{type(act).__name__} behind {name}, which changes its own results by up to "
            f"{float((again - values).abs().max()):.2g}); use init='residual', which any activation allows"
        )
    layer = parent.get_submodule(spot.key)
    parts = [(spot.key, _same_size(layer, _biased(parent, spot), identity=True))]
    if spot.norm is not None:
        parts.append((spot.norm, _neutral(parent.get_submodule(spot.norm), values, path_of(spot.parent, spot.norm))))
    parts.append((spot.act, act))
    return _addition(model, spot, parts)


def residual_addition(model: nn.Module, name: str, example: Example, generator: torch.Generator | None) -> Addition:
    """``x + layer(act(norm(layer(x))))`` with zeros in the second layer, behind the activation of the named one.

    Raises:
        ValueError: something else than a layer in a Sequential.
    """
    spot = _spot(model, name)
    parent = model.get_submodule(spot.parent)
    layer = parent.get_submodule(spot.key)
    parts = [(spot.key, _same_size(layer, _biased(parent, spot)))]
    if spot.norm is not None:
        parts.append((spot.norm, copied(parent.get_submodule(spot.norm))))
    act = spot.act or _before(parent, spot.key)
    parts.append((act or spot.key, nn.ReLU() if act is None else copied(parent.get_submodule(act))))
    parts.append((spot.key, _same_size(layer, layer.bias is not None)))
    for _, part in parts:
        redraw(part, generator)
    last = tuple(name for name, _ in parts[-1][1].named_parameters())
    zero(parts[-1][1], last)
    found = _addition(model, spot, parts)
    module = Residual(found.module)
    module.training = found.module.training
    return Addition(
        found.parent,
        found.after,
        module,
        {f"branch.{name}": value for name, value in found.beside.items()},
        tuple(f"branch.{len(parts) - 1}.{name}" for name in last),
    )


def _spot(model: nn.Module, name: str) -> _Spot:
    layer = model.get_submodule(name)
    path, _, key = name.rpartition(".")
    parent = model.get_submodule(path)
    if not name or not is_layer(layer) or not isinstance(parent, nn.Sequential):
        raise ValueError(
            f"deepen: a layer must be a Linear or a convolution in an nn.Sequential (got {name or 'the model'}, a "
            f"{type(layer).__name__} in a {type(parent).__name__}); put it and its activation into one, or name a "
            "stage of residual blocks"
        )
    norm = act = nothing = None
    keys = list(parent._modules)
    for each in keys[keys.index(key) + 1 :]:
        child = parent._modules[each]
        if isinstance(child, _ACTIVATIONS):
            act = each
            break
        if isinstance(child, _NORMS) and norm is None:
            norm = each
        elif isinstance(child, nn.Identity):
            nothing = each
        elif not isinstance(child, _PASSED):
            break
    return _Spot(path, key, norm, act or nothing)


def _behind(parent: nn.Module, key: str) -> str:
    kinds = {each: type(child).__name__ for each, child in parent._modules.items()}
    keys = list(kinds)
    following = [f"{kinds[each]} {each!r}" for each in keys[keys.index(key) + 1 :][:3]]
    return ", ".join(following) or "nothing"


def _before(parent: nn.Module, key: str) -> str | None:
    """The activation nearest to a layer among what comes before it."""
    keys = list(parent._modules)
    before = keys[: keys.index(key)][::-1]
    return next((each for each in before if isinstance(parent._modules[each], _ACTIVATIONS)), None)


def _values(model: nn.Module, spot: _Spot, example: Example) -> Tensor:
    path = path_of(spot.parent, spot.end)
    seen = observed(model, example, {path: model.get_submodule(path)}, "deepen").get(path)
    if seen is None or seen.output is None:
        raise ValueError(f"deepen: the forward pass must use the layer (got {path}, which is not called); name another")
    return seen.output


def _biased(parent: nn.Module, spot: _Spot) -> bool:
    """Whether the new layer has a bias; a batch norm would take it out again, so that it would never learn."""
    follows = None if spot.norm is None else parent.get_submodule(spot.norm)
    return parent.get_submodule(spot.key).bias is not None and not isinstance(follows, _BatchNorm)


def _same_size(layer: Any, bias: bool, identity: bool = False) -> nn.Module:
    """A layer from as many channels or features to as many, over the same shape, in the dtype and place of the given.

    Kernels of even size are one larger, so that they have a middle. Values are those of the identity, or none yet.
    """
    if isinstance(layer, nn.Linear):
        with torch.device("meta"):  # draws no random numbers
            linear = nn.Linear(layer.out_features, layer.out_features, bias)
        new: Any = like(linear, layer, layer.weight)
        if identity:
            nn.init.eye_(new.weight)
    else:
        channels, kernel = layer.out_channels, [size + 1 - size % 2 for size in layer.kernel_size]
        groups = layer.groups if channels % layer.groups == 0 else 1
        padding = [dilation * (size // 2) for dilation, size in zip(layer.dilation, kernel, strict=True)]
        geometry = {"padding": padding, "dilation": layer.dilation, "padding_mode": layer.padding_mode}
        with torch.device("meta"):
            convolution = _CONVOLUTIONS[len(kernel)](channels, channels, kernel, groups=groups, bias=bias, **geometry)
        new = like(convolution, layer, layer.weight)
        if identity:
            nn.init.dirac_(new.weight, groups)
    if identity and bias:
        nn.init.zeros_(new.bias)
    return new


def _neutral(norm: nn.Module, values: Tensor, path: str) -> nn.Module:
    """A batch norm that leaves ``values`` as they are: its statistics are theirs, its gain and bias take them back."""
    if not (isinstance(norm, _BatchNorm) and norm.affine and norm.track_running_stats):
        raise ValueError(
            f"deepen: an identity layer allows batch norms with running statistics and a gain only (got {path}, a "
            f"{norm}); use init='residual'"
        )
    new: Any = copied(norm)
    dims = [dim for dim in range(values.dim()) if dim != 1]
    variance, mean = torch.var_mean(values.double(), dims, correction=int(values.numel() > values.shape[1]))
    new.running_mean.copy_(mean)
    new.running_var.copy_(variance)
    new.weight.copy_((variance + new.eps).sqrt())
    new.bias.copy_(mean)
    return new


def _addition(model: nn.Module, spot: _Spot, parts: Sequence[tuple[str, nn.Module]]) -> Addition:
    """The parts in a row; each belongs to the module whose key comes with it."""
    known = dict(model.named_parameters(remove_duplicate=False))
    layer = path_of(spot.parent, spot.key)
    fallback = next(name for name in known if name.startswith(f"{layer}."))
    beside: dict[str, str] = {}
    for position, (key, part) in enumerate(parts):
        for name, parameter in part.named_parameters():
            source = f"{path_of(spot.parent, key)}.{name}"
            beside[f"{position}.{name}"] = source if source in known else fallback
            parameter.requires_grad_(known[beside[f"{position}.{name}"]].requires_grad)
    module = nn.Sequential(*(part for _, part in parts))
    module.training = model.get_submodule(layer).training
    return Addition(spot.parent, spot.end, module, beside)
