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

_NUMBERS = (
    "_steps",
    "_every",
    "_active",
    "_losses",
    "_loss_limit",
    "_targets",
    "_failed",
    "_failures",
    "_rest",
    "_growth_failures",
    "_growth_rest",
)


def captured(ctl: Controller) -> dict[str, Any]:
    """See `resgrow.Controller.state_dict`."""
    shop = ctl._shop
    return {
        **{name.removeprefix("_"): _copied(getattr(ctl, name)) for name in _NUMBERS},
        "trust": asdict(ctl.trust),
        "growth_trust": asdict(ctl.growth_trust),
        "history": [asdict(each) for each in ctl.history],
        "masks": ctl.masks.state_dict(),
        "curvature": shop.estimate.state_dict(),
        "generators": [shop.generator.get_state(), shop.estimate.options["generator"].get_state()],
        "probation": None if ctl._probation is None else vars(ctl._probation),
        "recent": ctl._recent.batches,
        "refused": sorted(ctl._deepener.refused),
        "structure": to_json(describe(ctl.model)[0]) if shop.structural else None,
        "groups": [_group_names(ctl.model, optimizer) for optimizer in shop.optimizers],
    }


def restore(ctl: Controller, state: Mapping[str, Any]) -> None:
    """See `resgrow.Controller.load_state_dict`."""
    shop = ctl._shop
    missing = [key for key in ("history", "masks", "curvature", "recent", "structure", "groups") if key not in state]
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
    for name in _NUMBERS:
        setattr(ctl, name, _copied(state[name.removeprefix("_")]))
    (ctl.trust, ctl.growth_trust), ctl.history = trusts, history
    shop.estimate.load_state_dict(state["curvature"])
    for generator, value in zip((shop.generator, shop.estimate.options["generator"]), state["generators"], strict=True):
        generator.set_state(value.cpu())
    ctl._recent.replace([(move(inputs, ctl._device), target.to(ctl._device)) for inputs, target in state["recent"]])
    probation = state["probation"]
    ctl._probation = None if probation is None else Probation(**probation)
    ctl._deepener.refused = set(state["refused"])


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
