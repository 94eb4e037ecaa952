"""A controller in the middle of its work, as plain types and tensors."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from resgrow.controller.grow import Regrower
from resgrow.controller.history import Move
from resgrow.controller.probation import Probation
from resgrow.controller.trust import Trust
from resgrow.curvature.batches import move
from resgrow.surgery.plans import Plan, describe, fit, from_json, stored_tensors, to_json
from resgrow.surgery.plans.plan import TensorPlan

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
        "structure": _structure(ctl),
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
        changed = take_structure(ctl.model, state["structure"], shop.optimizers)
        for optimizer, names in zip(shop.optimizers, state["groups"], strict=True):
            if changed or covers(ctl.model, optimizer, names):
                arrange(ctl.model, optimizer, names)
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


def take_structure(model: nn.Module, structure: Any, optimizers: Sequence[Optimizer] = ()) -> bool:
    """The model in a stored structure, in place; whether that has changed anything.

    Tensors of the stored shape keep their numbers; others are zero, until the model's own state is loaded, and lose the
    state that an optimizer has for them. Parameters that are no longer there leave the optimizers; `arrange` has new
    ones join.

    Raises:
        ValueError: the structure does not fit the model, which is as it was then.
    """
    plan, (now, own) = from_json(structure), describe(model)
    if _plain(now) == structure:
        return False
    before = {parameter: parameter.shape for parameter in model.parameters()}
    fit(plan, {name: _numbers(own.get(name), planned) for name, planned in stored_tensors(plan).items()}, model)
    after = {parameter: parameter.shape for parameter in model.parameters()}
    for optimizer in optimizers:
        for parameter in [each for each in before if before[each] != after.get(each)]:
            optimizer.state.pop(parameter, None)
        gone = {id(each) for each in before if each not in after}
        for group in optimizer.param_groups:
            group["params"][:] = [each for each in group["params"] if id(each) not in gone]
    return True


def arrange(
    model: nn.Module, optimizer: Optimizer, groups: Sequence[Sequence[str | None]], *, loaded: bool = False
) -> None:
    """An optimizer's parameters in a stored order, on which the meaning of its own stored state depends.

    Args:
        groups: of each group the names of parameters, None for those of other models.
        loaded: whether that state has been loaded already: it moves along with the places then.

    Raises:
        ValueError: another number of groups.
    """
    own, there = dict(model.named_parameters()), [list(group["params"]) for group in optimizer.param_groups]
    inside = {id(parameter) for parameter in own.values()}
    wanted: list[list[nn.Parameter]] = []
    for parameters, names in zip(there, groups, strict=True):
        others = iter([each for each in parameters if id(each) not in inside])
        wanted.append([next(others) if name is None else own[name] for name in names])
    if loaded and [len(each) for each in wanted] == [len(each) for each in there]:
        states = [optimizer.state.pop(parameter, None) for each in there for parameter in each]
        moved = zip([parameter for each in wanted for parameter in each], states, strict=True)
        optimizer.state.update({parameter: state for parameter, state in moved if state is not None})
    for group, parameters in zip(optimizer.param_groups, wanted, strict=True):
        group["params"][:] = parameters
    held = {id(parameter) for each in wanted for parameter in each}
    for parameter in [each for each in optimizer.state if id(each) not in held]:
        del optimizer.state[parameter]


def covers(model: nn.Module, optimizer: Optimizer, groups: Sequence[Sequence[str | None]]) -> bool:
    """Whether stored groups say where each of the model's parameters in an optimizer belongs."""
    stored = {name for names in groups for name in names}
    there = {name for names in _group_names(model, optimizer) for name in names}
    return (
        len(groups) == len(optimizer.param_groups) and there - {None} <= stored and (None in there) == (None in stored)
    )


def _structure(ctl: Controller) -> Any:
    """None where shapes never change."""
    course = ctl._course
    may_change = any(not isinstance(grower, Regrower) for grower in course.growers())
    if not (course.shop.structural or may_change):
        return None
    try:
        return _plain(describe(ctl.model)[0])
    except (TypeError, ValueError):
        if course.shop.structural:
            raise
        return None  # as it was constructed, which is all that can be known of it


def _plain(plan: Plan) -> Any:
    """As it comes back from a file: lists, not tuples."""
    return json.loads(json.dumps(to_json(plan)))


def _numbers(own: Tensor | None, planned: TensorPlan) -> Tensor:
    dtype = getattr(torch, planned.dtype)
    if own is not None and tuple(own.shape) == planned.shape and own.dtype == dtype:
        return own
    return torch.zeros(planned.shape, dtype=dtype)
