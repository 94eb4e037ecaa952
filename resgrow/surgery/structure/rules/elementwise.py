"""Operations that work element by element, with broadcasting."""

from __future__ import annotations

import torch

from resgrow.surgery.structure.call import Call
from resgrow.surgery.structure.values import Labels, Tracker, Value


def elementwise(track: Tracker, call: Call) -> Value:
    """Labels of one input hold in all that are not broadcast along them."""
    shape = call.shape
    inputs = [_aligned(value, len(shape)) for value in call.values()]
    result: list[Labels] = []
    for number, value in enumerate(inputs):
        for labels in value.labels:
            _settle(track, labels, number, inputs, shape, result)
    return Value(shape, tuple(result))


def _aligned(value: Value, rank: int) -> Value:
    """The same with as many dimensions as the result."""
    missing = rank - len(value.shape)
    labels = tuple(Labels(tuple(dim + missing for dim in part.dims), part.ids) for part in value.labels)
    return Value((1,) * missing + value.shape, labels)


def _settle(
    track: Tracker, labels: Labels, number: int, inputs: list[Value], shape: tuple[int, ...], result: list[Labels]
) -> None:
    if any(inputs[number].shape[dim] != shape[dim] for dim in labels.dims):
        track.pin(labels.ids, "one channel is spread over many")
        return
    for other, value in enumerate(inputs):
        if other == number:
            continue
        covered = tuple(dim for dim in labels.dims if value.shape[dim] == shape[dim])
        if not covered or (all(shape[dim] == 1 for dim in covered) and not _labelled(value, covered)):
            continue
        if covered != labels.dims:
            labels = Labels(covered[:1], track.onto(labels, covered[0]))
        atoms = _at(track, value, labels.dims)
        track.atoms.tie(labels.ids, atoms)
        track.twins.append((labels.ids, atoms))
    known = next((part for part in result if part.dims == labels.dims), None)
    if known is None:
        result.append(labels)
    else:
        track.atoms.tie(known.ids, labels.ids)


def _labelled(value: Value, dims: tuple[int, ...]) -> bool:
    return any(set(dims) & set(part.dims) for part in value.labels)


def _at(track: Tracker, value: Value, dims: tuple[int, ...]) -> torch.Tensor:
    """The value's atoms over these dimensions, by broadcasting; pinned where it has none."""
    for part in value.labels:
        if part.dims == dims:
            return part.ids
    rank = len(dims)
    total: torch.Tensor | None = None
    for place, dim in enumerate(dims):
        if any(dim in part.dims for part in value.labels):
            atoms = track.along(value, dim).reshape([-1 if i == place else 1 for i in range(rank)])
            if total is not None:
                track.atoms.tie(total, atoms)
            total = atoms
    return torch.zeros([1] * rank, dtype=torch.int64) if total is None else total
