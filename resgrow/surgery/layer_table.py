"""Layers as JSON and back: one explicit row for each type, nothing is looked up by name elsewhere.

A description is ``{"type": row name, "config": {constructor argument: JSON value}, "children": {name: description}}``.
"""

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import nn

from resgrow.nn import BasicBlock, Residual, ResNet, TriStateReLU


@dataclass(frozen=True)
class Row:
    """How one layer type is described and built.

    ``config`` names constructor arguments that are attributes of the same name; ``bias`` is stored as whether there is
    one. Layers are built from these by ``make`` (by default the type itself), containers from their children by
    ``join``.
    """

    kind: type[nn.Module]
    config: tuple[str, ...] = ()
    make: Callable[..., nn.Module] | None = None
    join: Callable[[dict[str, nn.Module]], nn.Module] | None = None


def _batch_norm(bias: bool, **config: Any) -> nn.BatchNorm2d:
    # A gain without a bias is an argument in newer torch only.
    layer = nn.BatchNorm2d(**config)
    if not bias:
        layer.register_parameter("bias", None)
    return layer


_CONV = (
    "in_channels",
    "out_channels",
    "kernel_size",
    "stride",
    "padding",
    "dilation",
    "groups",
    "bias",
    "padding_mode",
)
_NORM = ("num_features", "eps", "momentum", "affine", "track_running_stats", "bias")
_MAX_POOL = ("kernel_size", "stride", "padding", "dilation", "return_indices", "ceil_mode")
_AVG_POOL = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")

ROWS: dict[str, Row] = {
    "Sequential": Row(nn.Sequential, join=lambda children: nn.Sequential(OrderedDict(children))),
    "ResNet": Row(ResNet, join=lambda children: ResNet(**children)),  # type: ignore[arg-type]
    "BasicBlock": Row(BasicBlock, join=lambda children: BasicBlock(**children)),  # type: ignore[arg-type]
    "Residual": Row(Residual, join=lambda children: Residual(**children)),
    "Conv2d": Row(nn.Conv2d, _CONV),
    "Linear": Row(nn.Linear, ("in_features", "out_features", "bias")),
    "BatchNorm2d": Row(nn.BatchNorm2d, _NORM, make=_batch_norm),
    "ReLU": Row(nn.ReLU, ("inplace",)),
    "MaxPool2d": Row(nn.MaxPool2d, _MAX_POOL),
    "AvgPool2d": Row(nn.AvgPool2d, _AVG_POOL),
    "AdaptiveAvgPool2d": Row(nn.AdaptiveAvgPool2d, ("output_size",)),
    "Flatten": Row(nn.Flatten, ("start_dim", "end_dim")),
    "Dropout": Row(nn.Dropout, ("p", "inplace")),
    "Identity": Row(nn.Identity),
    "TriStateReLU": Row(TriStateReLU, ("num_channels",)),
}
_NAMES = {row.kind: name for name, row in ROWS.items()}


def describe(module: nn.Module, path: str = "") -> dict[str, Any]:
    """The description of a module and all in it.

    Raises:
        TypeError: a type (exactly; subclasses may behave otherwise) without a row.
    """
    name = _NAMES.get(type(module))
    if name is None:
        raise TypeError(
            f"save: layers must be of a known type (got {type(module).__name__} at {path or 'the top'}); "
            f"known are {', '.join(ROWS)}"
        )
    row = ROWS[name]
    children = _children(module)
    if row.join is None and children:
        raise TypeError(f"save: a {name} must not hold other layers (got {sorted(children)} at {path or 'the top'})")
    return {
        "type": name,
        "config": {argument: _value(module, argument) for argument in row.config},
        "children": {key: describe(child, f"{path}.{key}" if path else key) for key, child in children.items()},
    }


def build(description: Any, path: str = "") -> nn.Module:
    """The module of a description, with fresh weights, on the device that is the default.

    Raises:
        ValueError: not a description, an unknown type, or arguments the layer does not take.
    """
    where = path or "the top"
    if not isinstance(description, dict) or set(description) != {"type", "config", "children"}:
        raise ValueError(f"load: a layer must have type, config and children (got {_short(description)} at {where})")
    name, config, children = description["type"], description["config"], description["children"]
    row = ROWS.get(name) if isinstance(name, str) else None
    if row is None:
        raise ValueError(f"load: layers must be of a known type (got {_short(name)} at {where}); update resgrow")
    if not isinstance(config, dict) or set(config) != set(row.config) or not isinstance(children, dict):
        raise ValueError(f"load: a {name} must have config {list(row.config)} (got {_short(config)} at {where})")
    parts = {key: build(child, f"{path}.{key}" if path else key) for key, child in children.items()}
    try:
        if row.join is not None:
            return row.join(parts)
        if parts:
            raise ValueError(f"it cannot hold {sorted(parts)}")
        return (row.make or row.kind)(**{argument: _tuples(value) for argument, value in config.items()})
    except (TypeError, ValueError, RuntimeError, KeyError, ArithmeticError) as error:
        raise ValueError(f"load: {name} at {where} cannot be built ({error}); the description is damaged") from error


def _children(module: nn.Module) -> dict[str, nn.Module]:
    # Not named_children(), which leaves out the second place of a stateless layer that stands in two.
    return {name: child for name, child in module._modules.items() if child is not None}


def _value(module: nn.Module, argument: str) -> Any:
    value = getattr(module, argument)
    return value is not None if argument == "bias" else value


def _tuples(value: Any) -> Any:
    return tuple(_tuples(item) for item in value) if isinstance(value, list) else value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
