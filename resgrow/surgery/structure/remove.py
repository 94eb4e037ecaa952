"""Units of a structure taken out of a model, in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from resgrow.surgery.structure.edit import Edit, Sources
from resgrow.surgery.structure.groups import Group
from resgrow.surgery.structure.heads import adapted


def without(model: nn.Module, groups: Sequence[Group], gone: Mapping[int, Tensor]) -> Sources:
    """What is left of every tensor: ``gone`` maps a group's number to a bool mask of its units."""
    keep: dict[tuple[str, int], Tensor] = {}
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    for number, units in gone.items():
        for place in groups[number].places:
            left = keep.setdefault(
                (place.name, place.dim), torch.ones(tensors[place.name].shape[place.dim], dtype=torch.bool)
            )
            left[place.index[units]] = False
    sources: dict[str, dict[int, Tensor]] = {}
    for (name, dim), left in keep.items():
        sources.setdefault(name, {})[dim] = left.nonzero().flatten()
    return sources


@torch.no_grad()
def mask(model: nn.Module, groups: Sequence[Group], gone: Mapping[int, Tensor]) -> None:
    """Zeros in all places of these units, at full size: what their removal has to agree with. Buffers stay."""
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for number, units in gone.items():
        for place in groups[number].places:
            if place.name in parameters:
                parameters[place.name].index_fill_(place.dim, place.index[units].flatten(), 0)


def remove(edit: Edit, groups: Sequence[Group], gone: Mapping[int, Tensor]) -> None:
    """Take the units out, and tell the layers and the modules that split them into heads.

    Raises:
        ValueError: a module of heads that cannot have fewer; nothing has been changed then.
    """
    values = []
    for number, units in gone.items():
        for path in groups[number].split_by:
            module = edit.model.get_submodule(path)
            values.append((path, adapted(module, groups[number].size, int((~units).sum()))))
    edit.reindex(without(edit.model, groups, gone))
    for path, value in values:
        edit.set_attributes(path, value)
