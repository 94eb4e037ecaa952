"""Units added to a group of a structure, in place: the counterpart of `remove`."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from resgrow.surgery.structure.edit import Edit, Fill, Sources
from resgrow.surgery.structure.groups import Group, Place
from resgrow.surgery.structure.heads import adapted
from resgrow.surgery.structure.tensors import NEW


def grown(group: Group, by: int, op: str) -> Group:
    """The group with ``by`` more units, which are its last: where all of them will lie in the larger tensors.

    Raises:
        ValueError: one place has the units in another order than the first.
    """
    for place in group.places:
        if group.size > 1 and not bool((place.index.diff(dim=0) > 0).all()):
            raise ValueError(
                f"{op}: units must lie in one order in all tensors (got {group.places[0].name} and {place.name}, which "
                "has another, as a flip or a roll of channels makes it)"
            )
    places = tuple(Place(place.name, place.dim, _grown(place.index, by), place.read) for place in group.places)
    return Group(places, group.split_by)


def insert(edit: Edit, group: Group, larger: Group, fill: Fill) -> None:
    """Make the tensors of ``group`` those of ``larger``, and tell the layers and the modules that split into heads.

    Args:
        larger: from `grown`.
        fill: what is in the new entries; see `Edit.reindex`.

    Raises:
        ValueError: a module of heads that cannot have another number of them; nothing has been changed then.
    """
    values = [(path, adapted(edit.model.get_submodule(path), group.size, larger.size)) for path in larger.split_by]
    edit.reindex(_sources(edit.model, group, larger), fill)
    for path, value in values:
        edit.set_attributes(path, value)


def _sources(model: nn.Module, group: Group, larger: Group) -> Sources:
    tensors = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    sources: dict[str, dict[int, Tensor]] = {}
    for place in larger.places:
        old = tensors[place.name].shape[place.dim]
        new = place.index[group.size :].flatten()
        there = torch.ones(old + len(new), dtype=torch.bool)
        there[new] = False
        source = torch.full((len(there),), NEW)
        source[there] = torch.arange(old)
        sources.setdefault(place.name, {})[place.dim] = source
    return sources


def _grown(index: Tensor, by: int) -> Tensor:
    """``(units, count)`` to ``(units + by, count)``: new indices go in behind the last unit, segment by segment.

    A unit's neighbouring indices are one segment: positions of a flattened channel, what is in a head, a group of
    channels. Where a dimension has several (queries, keys and values, or the halves of a chunk), each grows at its own
    end, so that they remain equal pieces.
    """
    segments = _segments(index)
    ends = torch.tensor([int(index[-1, columns[-1]]) + 1 for columns in segments])
    lengths = torch.tensor([len(columns) for columns in segments])
    result = index.new_empty(len(index) + by, index.shape[1])
    inserted = (ends <= index[..., None]) * (by * lengths)
    result[: len(index)] = index + inserted.sum(-1)
    for number, columns in enumerate(segments):
        first = ends[number] + by * lengths[ends < ends[number]].sum()
        result[len(index) :, columns] = first + torch.arange(by * len(columns)).view(by, -1)
    return result


def _segments(index: Tensor) -> list[Tensor]:
    """Columns that are neighbours in every unit, int64."""
    breaks = (index.diff(dim=1) != 1).any(0).nonzero().flatten() + 1
    return list(torch.arange(index.shape[1]).tensor_split(breaks))
