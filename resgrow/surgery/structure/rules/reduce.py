"""Operations over dimensions: means, pooling, softmax, products of activations."""

from __future__ import annotations

from resgrow.surgery.structure.call import Call
from resgrow.surgery.structure.rules.layers import product
from resgrow.surgery.structure.values import Labels, Tracker, Value


def reduced(track: Tracker, call: Call) -> Value:
    """``mean``, ``sum``, ``amax`` over ``dim``: other dimensions keep their labels."""
    value = call.values()[0]
    dims = call.get("dim")
    over = {value.dim(d) for d in ([dims] if isinstance(dims, int) else dims or range(len(value.shape)))}
    stay = [dim for dim in range(len(value.shape)) if dim not in over]
    kept = {dim: dim if call.get("keepdim", False) else place for place, dim in enumerate(stay)}
    return Value(call.shape, tuple(track.keep(value, call.shape, kept, "reduced over")))


def pooled(track: Tracker, call: Call) -> Value:
    """Over positions of ``(N, C, *)``: ``rank`` of them from the end."""
    value = call.values()[0]
    name = call.op._schema.name
    rank = next(int(name[name.index(f"{n}d") :][0]) for n in (1, 2, 3) if f"{n}d" in name)
    kept = {dim: dim for dim in range(len(value.shape) - rank)}
    return Value(call.shape, tuple(track.keep(value, call.shape, kept, "positions of an image")))


def resized(track: Tracker, call: Call) -> Value:
    """Interpolation of ``(N, C, *)``."""
    value = call.values()[0]
    return Value(call.shape, tuple(track.keep(value, call.shape, {0: 0, 1: 1}, "positions of an image")))


def softmax(track: Tracker, call: Call) -> Value:
    value = call.values()[0]
    over = value.dim(int(call.get("dim", -1)))
    kept = {dim: dim for dim in range(len(value.shape)) if dim != over}
    return Value(value.shape, tuple(track.keep(value, value.shape, kept, "softmax runs over it")))


def matmul(track: Tracker, call: Call) -> Value:
    """``(*, M, K) @ (*, K, N)``; batch dimensions stay labelled where both have them alike."""
    first, second = call.values()
    if len(second.shape) == 2 and len(first.shape) > 1:
        return product(track, first, second, 0, 1, None, call.shape)
    first, second = track.outermost(first), track.outermost(second)
    rank = len(call.shape)
    if not len(first.shape) == len(second.shape) == rank:
        track.pin_value(first, "a product of unlike shapes")
        track.pin_value(second, "a product of unlike shapes")
        return Value(call.shape)
    track.atoms.tie(track.along(first, rank - 1), track.along(second, rank - 2))
    result = _batch(track, [first, second], rank - 2, call.shape)
    for value, dim in ((first, rank - 2), (second, rank - 1)):
        result += [labels for labels in value.labels if labels.dims == (dim,)]
    return Value(call.shape, tuple(result))


def _batch(track: Tracker, values: list[Value], count: int, shape: tuple[int, ...]) -> list[Labels]:
    """Labels of the first ``count`` dimensions, tied between the values."""
    result = []
    for dim in range(count):
        labelled = [value for value in values if any(part.dims == (dim,) for part in value.labels)]
        if not labelled:
            continue
        atoms = [track.along(value, dim) for value in values]
        if any(len(each) != shape[dim] for each in atoms):
            for each in atoms:
                track.pin(each, "spread over a batch")
            continue
        for other in atoms[1:]:
            track.atoms.tie(atoms[0], other)
        result.append(Labels((dim,), atoms[0]))
    return result


def attention(track: Tracker, call: Call) -> Value:
    """``softmax(q k^T) v`` of ``(*, L, D)``: heads stay labelled, and what is in v's heads."""
    q, k, v = (track.outermost(call.value(name)) for name in ("query", "key", "value"))
    rank = len(call.shape)
    values = [q, k, v]
    mask = call.optional("attn_mask")
    if mask is not None:
        track.pin_value(mask, "a mask of attention")
    track.atoms.tie(track.along(q, rank - 1), track.along(k, rank - 1))
    for value in (k, v):
        for labels in value.labels:
            if labels.dims == (rank - 2,):
                track.pin(labels.ids, "softmax runs over it")
    result = _batch(track, values, rank - 2, call.shape)
    result += [labels for labels in q.labels if labels.dims == (rank - 2,)]
    result += [labels for labels in v.labels if labels.dims == (rank - 1,)]
    return Value(call.shape, tuple(result))
