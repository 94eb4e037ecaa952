"""Units that nothing reads."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from resgrow.surgery.structure.groups import Group


@torch.no_grad()
def unread(model: nn.Module, groups: Sequence[Group]) -> dict[int, Tensor]:
    """For each group a bool mask of units that can go: all weights that read them are zero.

    What goes may leave others unread, so this repeats until nothing is added. One unit of each group stays.
    """
    # Zero or not is all that matters; what goes is struck out here.
    present = {name: parameter != 0 for name, parameter in model.named_parameters(remove_duplicate=False)}
    gone = {number: torch.zeros(group.size, dtype=torch.bool) for number, group in enumerate(groups) if _reads(group)}
    while any([_strike(present, groups[number], units) for number, units in gone.items()]):
        pass
    for units in gone.values():
        if units.all():
            units[0] = False
    return {number: units for number, units in gone.items() if units.any()}


def _reads(group: Group) -> bool:
    return any(place.read for place in group.places)


def _strike(present: dict[str, Tensor], group: Group, gone: Tensor) -> bool:
    """Adds to ``gone`` what is not read; whether there was any."""
    wanted = torch.zeros(group.size, dtype=torch.bool)
    for place in group.places:
        if place.read:
            there = present[place.name]
            used = there.movedim(place.dim, 0).flatten(1).any(1).cpu()
            wanted |= used[place.index].any(1)
    new = ~wanted & ~gone
    gone |= new
    for place in group.places:
        if place.name in present and new.any():
            there = present[place.name]
            there.index_fill_(place.dim, place.index[new].flatten().to(there.device), False)
    return bool(new.any())
