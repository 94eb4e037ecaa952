"""Plans of folders that earlier versions wrote: one nested description, from which all layers are built."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from resgrow.surgery.layer_table import build, row_of, short
from resgrow.surgery.plans.describe import own_tensors, type_name
from resgrow.surgery.plans.plan import DEEPEST, ModulePlan, Plan, Same, TensorPlan, join, stored_tensors

# Arguments that the table has got since, with what layers were built with before.
_SINCE = {"TriStateReLU": {"learn": "both", "inplace": False}}


def upgraded(head: Mapping[str, Any]) -> Plan:
    """The plan of a ``model.json`` of version 1, whose entries ``frozen`` and ``training`` are good.

    Raises:
        ValueError: a description that is damaged, or does not go with the tensors listed.
    """
    if not isinstance(head["tensors"], dict):
        raise ValueError("load: model.json must list the tensors; save the model again")
    plan: Plan = {}
    _add(plan, "", head["model"], head)
    odd = sorted(head["tensors"].keys() - stored_tensors(plan).keys())
    if odd:
        raise ValueError(f"load: tensors must belong to layers (got {odd[0]}, which has none); save the model again")
    return plan


def _add(plan: Plan, path: str, description: Any, head: Mapping[str, Any]) -> None:
    where = path or "the top"
    if path.count(".") >= DEEPEST:
        raise ValueError("load: model.json nests layers too deeply; save the model again")
    if not isinstance(description, dict) or set(description) != {"type", "config", "children"}:
        raise ValueError(f"load: a layer must have type, config and children (got {short(description)} at {where})")
    name, config, children = description["type"], description["config"], description["children"]
    if not isinstance(children, dict) or any("." in key or not key for key in children):
        raise ValueError(f"load: a layer must hold others by their keys (got {short(children)} at {where})")
    if isinstance(name, str) and isinstance(config, dict):
        config = _SINCE.get(name, {}) | config
    row = row_of(name, config, path)
    tensors = {} if row.join is not None else _tensors(name, config, path, head)
    plan[path] = ModulePlan(type_name(row.kind), head["training"], {}, tensors, (name, config))
    for key, child in children.items():
        _add(plan, join(path, key), child, head)


def _tensors(name: str, config: Any, path: str, head: Mapping[str, Any]) -> dict[str, TensorPlan | Same | None]:
    with torch.device("meta"):
        layer = build(name, config, path)
    result: dict[str, TensorPlan | Same | None] = {}
    for key, tensor in own_tensors(layer).items():
        full = join(path, key)
        result[key] = None
        if tensor is not None:
            listed = head["tensors"].get(full)
            found = _signature(listed)
            if found is None or found[0] != tuple(tensor.shape):
                raise ValueError(
                    f"load: tensors must fit the described layers (got {short(listed)} for {full}, layer wants "
                    f"{list(tensor.shape)}); save the model again"
                )
            trainable = full not in head["frozen"] if key in layer._parameters else None
            result[key] = TensorPlan(*found, trainable)
    return result


def _signature(listed: Any) -> tuple[tuple[int, ...], str] | None:
    if not isinstance(listed, dict) or not isinstance(listed.get("shape"), list):
        return None
    return tuple(listed["shape"]), str(listed.get("dtype"))
