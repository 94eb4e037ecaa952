"""A controller in the middle of its work, as plain types and tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer

from resgrow.controller.history import Move
from resgrow.controller.probation import Probation
from resgrow.controller.trust import Trust
from resgrow.curvature.batches import move
from resgrow.surgery.plans import describe, fit, from_json, stored_tensors, to_json

if TYPE_CHECKING:
    from resgrow.controller.controller import Controller

# Of a `Course`, a `Growing` and a `LossLimit`: what plain types can tell.
_COURSE = ("steps", "every", "losses", "targets", "uninformed")
_GROWING = ("failures", "rest", "refused")
_LIMIT = ("limit", "failed", "failures", "rest", "hope", "recoveries")


def captured(ctl: Controller) -> dict[str, Any]:
    """See `resgrow.Controller.state_dict`."""
    course, probation = ctl._course, ctl._limit.probation
    shop = course.shop
    return {
        "course": _fields(course, _COURSE),
        "growth": _fields(ctl._growth, _GROWING),
        "limit": _fields(ctl._limit, _LIMIT),
        "active": ctl._active,
        "trust": asdict(ctl.trust),
        "growth_trust": asdict(ctl.growth_trust),
        "history": [asdict(each) for each in ctl.history],
        "masks": ctl.masks.state_dict(),
        "curvature": shop.estimate.state_dict(),
        "generators": [shop.generator.get_state(), shop.estimate.options["generator"].get_state()],
        "probation": None if probation is None else dict(vars(probation)),
        "recent": course.recent.batches,
        "refused": sorted(course.deepener.refused),
        "structure": to_json(describe(ctl.model)[0]) if shop.structural else None,
        "groups": [_group_names(ctl.model, optimizer) for optimizer in shop.optimizers],
    }


def restore(ctl: Controller, state: Mapping[str, Any]) -> None:
    """See `resgrow.Controller.load_state_dict`."""
    course = ctl._course
    shop = course.shop
    wanted = ("course", "growth", "limit", "history", "masks", "curvature", "recent", "structure", "groups")
    missing = [key for key in wanted if key not in state]
    if missing:
        raise ValueError(
            f"Controller.load_state_dict: needs what state_dict returned (got a dict without {', '.join(missing)}); "
            "save it again with this version"
        )
    history = [Move(**each) for each in state["history"]]
    trusts = Trust(**state["trust"]), Trust(**state["growth_trust"])
    if state["structure"] is not None:
        _take_structure(ctl.model, state["structure"], state["groups"], shop.optimizers)
        shop.structural = True
        shop.rebuilt()
    ctl.masks.load_state_dict(state["masks"])
    for part, key, names in (
        (course, "course", _COURSE),
        (ctl._growth, "growth", _GROWING),
        (ctl._limit, "limit", _LIMIT),
    ):
        for name in names:
            setattr(part, name, _copied(state[key][name]))
    ctl._active = state["active"]
    (ctl.trust, ctl._growth.trust), course.history = trusts, history
    shop.estimate.load_state_dict(state["curvature"])
    for generator, value in zip((shop.generator, shop.estimate.options["generator"]), state["generators"], strict=True):
        generator.set_state(value.cpu())
    course.recent.replace([(move(inputs, ctl._device), target.to(ctl._device)) for inputs, target in state["recent"]])
    probation = state["probation"]
    ctl._limit.probation = None if probation is None else Probation(**probation)
    course.deepener.refused = set(state["refused"])


def _fields(part: Any, names: Sequence[str]) -> dict[str, Any]:
    return {name: _copied(getattr(part, name)) for name in names}


def _copied(value: Any) -> Any:
    return dict(value) if isinstance(value, dict) else list(value) if isinstance(value, list) else value


def _group_names(model: nn.Module, optimizer: Optimizer) -> list[list[str | None]]:
    """Of each group of an optimizer, the names of its parameters; None for those of other models."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [[names.get(id(parameter)) for parameter in group["params"]] for group in optimizer.param_groups]


def _take_structure(
    model: nn.Module, structure: Any, groups: Sequence[Sequence[Sequence[str | None]]], optimizers: Sequence[Optimizer]
) -> None:
    """The model in the stored structure, and optimizers that hold its parameters in the stored order."""
    plan = from_json(structure)
    if to_json(describe(model)[0]) == structure:
        return
    zeros = {name: torch.zeros(t.shape, dtype=getattr(torch, t.dtype)) for name, t in stored_tensors(plan).items()}
    fit(plan, zeros, model)
    for optimizer, names in zip(optimizers, groups, strict=True):
        for group, wanted in zip(optimizer.param_groups, names, strict=True):
            others = iter([p for p in group["params"] if not _inside(model, p)])
            group["params"] = [next(others) if name is None else model.get_parameter(name) for name in wanted]
        held = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        for parameter in [p for p in optimizer.state if id(p) not in held or _inside(model, p)]:
            del optimizer.state[parameter]


def _inside(model: nn.Module, parameter: Any) -> bool:
    return any(parameter is each for each in model.parameters())
