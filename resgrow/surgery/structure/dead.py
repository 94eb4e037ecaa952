"""Units that nothing reads, or of which only constants are read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from resgrow.surgery.structure.constants import Read
from resgrow.surgery.structure.edit import Edit
from resgrow.surgery.structure.groups import Group


@torch.no_grad()
def dead(model: nn.Module, groups: Sequence[Group], reads: Mapping[str, Read]) -> dict[int, Tensor]:
    """For each group a bool mask of units that can go: what is read of them is zero, or can be held by a bias.

    What goes may leave others unread, so this repeats until nothing is added. One unit of each group stays.

    Args:
        reads: constants, as from `constant_inputs`.
    """
    # Zero or not is all that matters; what goes is struck out here.
    parameters = dict(model.named_parameters(remove_duplicate=False))
    present = {name: parameter.detach() != 0 for name, parameter in parameters.items()}
    for name, read in reads.items():
        dim = 0 if isinstance(_owner(model, name), _ConvTransposeNd) else 1
        harmless = (read.value == 0) | (read.value.isfinite() & _takes(model, name, read))
        # Of a kernel in groups the inputs lie side by side in one group's: they are no unit's, and go with its outputs.
        if len(harmless) == present[name].shape[dim]:
            present[name].index_fill_(dim, harmless.nonzero().flatten(), False)
    gone = {number: torch.zeros(group.size, dtype=torch.bool) for number, group in enumerate(groups) if _reads(group)}
    while any([_strike(present, groups[number], units) for number, units in gone.items()]):
        pass
    for units in gone.values():
        if units.all():
            units[0] = False
    return {number: units for number, units in gone.items() if units.any()}


@torch.no_grad()
def absorb(edit: Edit, groups: Sequence[Group], gone: Mapping[int, Tensor], reads: Mapping[str, Read]) -> bool:
    """Let biases take over what weights read of units that are about to go.

    Returns False where a layer has no bias to do that: it has been given one of zeros, which the next structure knows
    of, and nothing else has been done.
    """
    model = edit.model
    shifts = {name: shift for name, shift in _shifts(model, groups, gone, reads).items() if shift.any()}
    without = [name for name in shifts if reads[name].bias is None]
    for name in without:
        weight = model.get_parameter(name)
        bias = nn.Parameter(weight.new_zeros(len(weight)), weight.requires_grad)
        edit.add_parameter(name.rpartition(".")[0], "bias", bias, beside=weight)
    if without:
        return False
    for each in edit.models:
        own = shifts if each is model else _shifts(each, groups, gone, reads)
        for name in shifts:
            bias = each.get_parameter(str(reads[name].bias))
            edit.set_values(bias, bias + own[name].to(bias.device, bias.dtype))
    return True


def _shifts(
    model: nn.Module, groups: Sequence[Group], gone: Mapping[int, Tensor], reads: Mapping[str, Read]
) -> dict[str, Tensor]:
    """By weight: what the units that go add to each output."""
    shifts: dict[str, Tensor] = {}
    for number, units in gone.items():
        for place in groups[number].places:
            read = reads.get(place.name) if place.read and place.dim == 1 else None
            if read is None or not read.uniform:
                continue
            index = place.index[units].flatten()
            columns = model.get_parameter(place.name).detach().double().cpu()[:, index]
            # What is not constant is read by zeros only.
            value = read.value[index].nan_to_num(0.0)
            shift = columns.reshape(len(columns), len(index), -1).sum(2) @ value
            shifts[place.name] = shifts.get(place.name, 0) + shift
    return shifts


def _takes(model: nn.Module, name: str, read: Read) -> bool:
    """Whether the layer of a weight can hold constants in its bias, if need be in a new one."""
    if not read.uniform:
        return False
    return read.bias is not None or isinstance(_owner(model, name), nn.Linear | _ConvNd)


def _owner(model: nn.Module, name: str) -> nn.Module:
    return model.get_submodule(name.rpartition(".")[0])


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
