"""A model's structure as data: what it is now, not how it came to be so.

A plan has an entry for each path of the model, in the model's order, the model itself (path "") first:

* null where a module holds None in a child's place;
* ``{"same": path}`` for a module that stands at an earlier path, too;
* otherwise ``{"type", "training", "numbers", "tensors", "layer"}``: the class by its name (to be compared, never looked
  up), `numbers`, its own parameters and buffers, and the row of the layer table that it can be built from, with its
  config, or null. Numbers of layers of the table are not repeated: the config implies them.

A tensor is null, ``{"same": name}`` for one that an earlier name has, too, or ``{"shape", "dtype", "trainable",
"format"}``: "trainable" is null for buffers, "format" is the memory format.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from resgrow.surgery.layer_table import row_of, short
from resgrow.surgery.plans.numbers import is_number

# Far deeper than any model, and well within the recursion that modules themselves need.
DEEPEST = 64
FORMATS = {
    "contiguous": torch.contiguous_format,
    "channels_last": torch.channels_last,
    "channels_last_3d": torch.channels_last_3d,
}
_DIMS = {"channels_last": 4, "channels_last_3d": 5}


@dataclass(frozen=True)
class Same:
    """What stands elsewhere, too: the path of a module or the name of a tensor."""

    same: str


@dataclass(frozen=True)
class TensorPlan:
    shape: tuple[int, ...]
    dtype: str
    trainable: bool | None
    format: str = "contiguous"

    @classmethod
    def of(cls, tensor: Tensor, parameter: bool) -> TensorPlan:
        dtype = str(tensor.dtype).removeprefix("torch.")
        return cls(tuple(tensor.shape), dtype, tensor.requires_grad if parameter else None, _format(tensor))


@dataclass(frozen=True)
class ModulePlan:
    type: str
    training: bool
    numbers: Mapping[str, Any]
    tensors: Mapping[str, TensorPlan | Same | None]
    layer: tuple[str, dict[str, Any]] | None


Plan = dict[str, ModulePlan | Same | None]


def join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def planned(plan: Plan) -> Iterator[tuple[str, ModulePlan]]:
    """Modules of their own."""
    for path, node in plan.items():
        if isinstance(node, ModulePlan):
            yield path, node


def stored_tensors(plan: Plan) -> dict[str, TensorPlan]:
    """Those with numbers of their own, by name."""
    return {
        join(path, name): tensor
        for path, node in planned(plan)
        for name, tensor in node.tensors.items()
        if isinstance(tensor, TensorPlan)
    }


def children(plan: Plan) -> dict[str, dict[str, str]]:
    """By path of a module: the paths of its children by their keys, in order."""
    result: dict[str, dict[str, str]] = {path: {} for path in plan}
    for path in plan:
        if path:
            parent, _, key = path.rpartition(".")
            result[parent][key] = path
    return result


def to_json(plan: Plan) -> dict[str, Any]:
    return {path: None if node is None else _node_to_json(node) for path, node in plan.items()}


def from_json(data: Any) -> Plan:
    """The plan that `to_json` wrote.

    Raises:
        ValueError: anything else.
    """
    if not isinstance(data, dict) or next(iter(data), None) != "":
        raise _damaged("modules must begin with the model itself", data, "")
    plan: Plan = {}
    names: set[str] = set()
    for path, entry in data.items():
        _check_path(path, plan)
        plan[path] = _node(entry, path, plan, names)
    return plan


def _node_to_json(node: ModulePlan | Same) -> dict[str, Any]:
    if isinstance(node, Same):
        return asdict(node)
    tensors = {name: None if tensor is None else asdict(tensor) for name, tensor in node.tensors.items()}
    layer = None if node.layer is None else {"row": node.layer[0], "config": node.layer[1]}
    return {
        "type": node.type,
        "training": node.training,
        "numbers": dict(node.numbers),
        "tensors": tensors,
        "layer": layer,
    }


def _node(entry: Any, path: str, plan: Plan, names: set[str]) -> ModulePlan | Same | None:
    if entry is None and path:
        return None
    if _is_same(entry):
        if not isinstance(plan.get(entry["same"]), ModulePlan):
            raise _damaged("a module can be the same only as one before it", entry, path)
        if not entry["same"] or path.startswith(f"{entry['same']}."):
            raise _damaged("a module must not be part of itself", entry, path)
        return Same(entry["same"])
    if not isinstance(entry, dict) or set(entry) != {"type", "training", "numbers", "tensors", "layer"}:
        raise _damaged("a module must have type, training, numbers, tensors and layer", entry, path)
    if not isinstance(entry["type"], str) or type(entry["training"]) is not bool:
        raise _damaged("type must be text and training true or false", [entry["type"], entry["training"]], path)
    given = entry["numbers"]
    if not isinstance(given, dict) or not all(map(is_number, given.values())):
        raise _damaged("numbers must be numbers, true, false, null or lists of these", given, path)
    if not isinstance(entry["tensors"], dict):
        raise _damaged("tensors must be by name", entry["tensors"], path)
    tensors = {name: _tensor(tensor, join(path, name), names) for name, tensor in entry["tensors"].items()}
    return ModulePlan(entry["type"], entry["training"], given, tensors, _layer(entry["layer"], path))


def _layer(entry: Any, path: str) -> tuple[str, dict[str, Any]] | None:
    if entry is None:
        return None
    if not isinstance(entry, dict) or set(entry) != {"row", "config"}:
        raise _damaged("a layer must have row and config", entry, path)
    row_of(entry["row"], entry["config"], path)
    return entry["row"], entry["config"]


def _tensor(entry: Any, name: str, names: set[str]) -> TensorPlan | Same | None:
    if entry is None:
        return None
    if _is_same(entry):
        if entry["same"] not in names:
            raise _damaged("a tensor can be the same only as one before it", entry, name)
        return Same(entry["same"])
    if not isinstance(entry, dict) or set(entry) != {"shape", "dtype", "trainable", "format"}:
        raise _damaged("a tensor must have shape, dtype, trainable and format", entry, name)
    shape, trainable, memory = entry["shape"], entry["trainable"], entry["format"]
    good = isinstance(shape, list) and all(type(size) is int and size >= 0 for size in shape)
    good = good and isinstance(entry["dtype"], str) and (trainable is None or type(trainable) is bool)
    if not good or memory not in list(FORMATS) or len(shape) != _DIMS.get(memory, len(shape)):
        raise _damaged("a tensor must have sizes, a dtype, true, false or null, and a format for it", entry, name)
    names.add(name)
    return TensorPlan(tuple(shape), entry["dtype"], trainable, memory)


def _check_path(path: str, plan: Plan) -> None:
    parent, _, key = path.rpartition(".")
    if path and (not key or not isinstance(plan.get(parent), ModulePlan)):
        raise _damaged("a module must come after the one that holds it", path, parent)
    if path.count(".") >= DEEPEST:
        raise ValueError(f"load: model.json nests layers too deeply (more than {DEEPEST}); save the model again")


def _is_same(entry: Any) -> bool:
    return isinstance(entry, dict) and set(entry) == {"same"} and isinstance(entry["same"], str)


def _damaged(rule: str, found: Any, where: str) -> ValueError:
    return ValueError(f"load: model.json: {rule} (got {short(found)} at {where or 'the top'}); save the model again")


def _format(tensor: Tensor) -> str:
    """By its strides, which tell formats apart even where they are the same in memory (1x1 kernels)."""
    strides = tensor.stride()
    for name in FORMATS:
        if _DIMS.get(name, tensor.dim()) == tensor.dim():
            like = torch.empty(tensor.shape, device="meta", memory_format=FORMATS[name])
            if like.stride() == strides:
                return name
    return "contiguous"
