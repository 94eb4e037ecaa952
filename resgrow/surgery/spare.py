"""Units that masks have emptied: capacity that is allocated and can be woken."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from resgrow.surgery.structure import Edit, Group, Place
from resgrow.surgery.structure.edit import Fill
from resgrow.surgery.widen_names import fans_out


def wake(
    edit: Edit, groups: Sequence[Group], group: Group, most: int, made: Callable[[Group, Group, bool], Fill]
) -> Tensor:
    """Wake units of a group, as many as there are, in all that the edit holds; which of them it were, int64.

    Args:
        groups: all of the model's.
        made: what is in the entries of new units, from the others, all of them with the new ones as the last, and False
            as no tensor grows.
    """
    found = torch.empty(0, dtype=torch.int64)
    for masks in edit.masks:
        units = spare_units(edit.model, group, masks).nonzero().flatten()[: most - len(found)]
        if len(units):
            others, all_units = woken(group, units)
            fill = made(others, all_units, False)
            edit.set_masks(masks, woken_masks(edit.model, groups, group, units, masks))
            indices: dict[str, dict[int, Tensor]] = {}
            for place in group.places:
                indices.setdefault(place.name, {})[place.dim] = place.index[units].flatten()
            edit.renew(indices, partial(_present, masks, fill))
            found = torch.cat([found, units])
    return found


def _present(masks: Mapping[str, Tensor], fill: Fill, name: str, values: Tensor) -> Tensor:
    """New values, zero where other units are absent."""
    values = fill(name, values)
    return values * masks[name].to(values.device) if name in masks else values


def spare_units(model: nn.Module, group: Group, masks: Mapping[str, Tensor]) -> Tensor:
    """Which units are absent from everything that reads them, and from all else of theirs that is masked; bool."""
    readers = [place for place in group.places if fans_out(model, place)]
    if not readers or any(place.name not in masks for place in readers):
        return torch.zeros(group.size, dtype=torch.bool)
    present = torch.zeros(group.size, dtype=torch.bool)
    for place in group.places:
        if place.name in masks:
            present |= _slices(masks[place.name], place).any(1)
    return ~present


def woken(group: Group, units: Tensor) -> tuple[Group, Group]:
    """The group without some units, and with them as its last: what `widen` knows as the group and the larger one.

    Args:
        units: int64, which.
    """
    others = torch.ones(group.size, dtype=torch.bool)
    others[units] = False
    order = torch.cat([others.nonzero().flatten(), units])
    count = int(others.sum())

    def chosen(rows: Tensor) -> Group:
        places = tuple(Place(place.name, place.dim, place.index[rows], place.read) for place in group.places)
        return Group(places, group.split_by)

    return chosen(order[:count]), chosen(order)


def woken_masks(
    model: nn.Module, groups: Sequence[Group], group: Group, units: Tensor, masks: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Masks in which these units of ``group`` are present; where they meet units that remain spare, those decide."""
    new = {name: mask.clone() for name, mask in masks.items()}
    remaining = {number: spare_units(model, each, masks) for number, each in enumerate(groups)}
    for place in group.places:
        if place.name in new:
            new[place.name].index_fill_(place.dim, place.index[units].flatten().to(new[place.name].device), True)
    for number, each in enumerate(groups):
        left = remaining[number].clone()
        if each is group:
            left[units] = False
        for place in each.places:
            if place.name in new and left.any():
                index = place.index[left].flatten().to(new[place.name].device)
                new[place.name].index_fill_(place.dim, index, False)
    return new


def _slices(mask: Tensor, place: Place) -> Tensor:
    """Whether each index of each unit has anything present, bool ``(units, count)``."""
    rows = mask.movedim(place.dim, 0)
    return rows.reshape(len(rows), -1).any(1).cpu()[place.index]
