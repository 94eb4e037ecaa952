"""Operations that only rearrange: what they do to a tensor of atoms is what they do to labels."""

from __future__ import annotations

from typing import Any

import torch

from resgrow.surgery.structure.atoms import PINNED
from resgrow.surgery.structure.call import Call
from resgrow.surgery.structure.values import Labels, Tracker, Value


def rearranged(track: Tracker, call: Call) -> Any:
    """Of one tensor. Done by the operation itself."""
    name, value = _only(call)
    others = {key: argument for key, argument in call.arguments.items() if key != name}
    return track.moved(value, lambda atoms: call.op(**{name: atoms}, **others))


def reshaped(track: Tracker, call: Call) -> Value:
    """To a shape that is known, in the order of elements."""
    value = call.values()[0]
    moved: Value = track.moved(value, lambda atoms: atoms.reshape(call.shape))
    return moved


def made(track: Tracker, call: Call) -> Value:
    """New tensors of a size that stands in the model's code."""
    return Value(call.shape)


def checked(track: Tracker, call: Call) -> None:
    """Checks of dtypes and sizes, which have no result."""


def _only(call: Call) -> tuple[str, Value]:
    (found,) = [(name, each) for name, each in call.arguments.items() if isinstance(each, Value)]
    return found


def cut(track: Tracker, call: Call) -> Any:
    """Pieces of sizes that stand in the model's code: along labelled dimensions everything has to stay."""
    _, value = _only(call)
    dim = value.dim(int(call.get("dim", 0)))
    whole = call.get("start") in (None, 0) and (call.get("end") is None or int(call.get("end")) >= value.shape[dim])
    if not whole or "start" not in call.arguments:
        for labels in value.labels:
            if dim in labels.dims:
                track.pin(labels.ids, "pieces of fixed sizes")
    return rearranged(track, call)


def chunks(track: Tracker, call: Call) -> Any:
    """Equal pieces by their number: index i of one goes with index i of all others."""
    _, value = _only(call)
    dim, count = value.dim(int(call.get("dim", 0))), int(call.get("chunks", 1))
    for labels in value.labels:
        if dim in labels.dims:
            at = labels.dims.index(dim)
            if value.shape[dim] % count:
                track.pin(labels.ids, "pieces of unequal sizes")
            else:
                pieces = labels.ids.unflatten(at, (count, -1)).movedim(at, 0)
                track.atoms.tie(pieces[1:], pieces[:1])
    return rearranged(track, call)


def padded(track: Tracker, call: Call) -> Value:
    """At the borders of dimensions that are not labelled."""
    value = call.value(_only(call)[0])
    kept = {dim: dim for dim, size in enumerate(value.shape) if size == call.shape[dim]}
    return Value(call.shape, tuple(track.keep(value, call.shape, kept, "padded")))


def joined(track: Tracker, call: Call) -> Value:
    """``cat``: atoms side by side."""
    tensors: list[Value] = [value for value in call.arguments["tensors"] if value.shape != (0,)]
    dim = tensors[0].dim(int(call.get("dim", 0)))
    result: list[Labels] = []
    for dims in dict.fromkeys(labels.dims for value in tensors for labels in value.labels):
        parts = [next((part.ids for part in value.labels if part.dims == dims), None) for value in tensors]
        sizes = [[value.shape[each] for each in dims] for value in tensors]
        filled = [torch.full(size, PINNED) if part is None else part for part, size in zip(parts, sizes, strict=True)]
        if dim in dims:
            result.append(Labels(dims, torch.cat(filled, dims.index(dim))))
        else:
            for other in filled[1:]:
                track.atoms.tie(filled[0], other)
            result.append(Labels(dims, filled[0]))
    return Value(call.shape, tuple(result))


def indexed(track: Tracker, call: Call) -> Any:
    """``x[index]`` by tensors: the dimensions that are indexed have to stay."""
    value = call.value("self") if "self" in call.arguments else call.value("input")
    indices = call.get("indices")
    kept = []
    for labels in value.labels:
        if any(dim < len(indices) and indices[dim] is not None for dim in labels.dims):
            track.pin(labels.ids, "looked up by index")
        else:
            kept.append(labels)
    places = [None if index is None else torch.zeros(index.shape, dtype=torch.int64) for index in indices]
    return track.moved(Value(value.shape, tuple(kept)), lambda atoms: torch.ops.aten.index.Tensor(atoms, places))
