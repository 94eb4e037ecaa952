"""What is known of a tensor: which of its dimensions are made of atoms, and of which."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from resgrow.surgery.structure.atoms import PINNED, Atoms


@dataclass(frozen=True)
class Labels:
    """Atoms along one or more dimensions: ``ids`` has their sizes, ``dims`` ascending.

    Several dimensions are labelled together where one has been split: heads and what is in a head.
    """

    dims: tuple[int, ...]
    ids: Tensor


@dataclass(frozen=True)
class Value:
    """A tensor. Dimensions without labels must keep their size."""

    shape: tuple[int, ...]
    labels: tuple[Labels, ...] = ()

    def dim(self, dim: int) -> int:
        return dim % max(1, len(self.shape))


class Tracker:
    """Rules speak of values by this: it ties and pins atoms as it goes."""

    def __init__(self) -> None:
        self.atoms = Atoms()
        self.where = ""  # the operation at hand, for messages
        self.read: list[Tensor] = []  # atoms of inputs of weights
        self.twins: list[tuple[Tensor, Tensor]] = []  # atoms that have been combined element by element
        self.splits: list[tuple[Tensor, str]] = []  # atoms of dimensions that were split, and by whose code

    def pin(self, ids: Tensor, why: str) -> None:
        self.atoms.pin(ids, f"{self.where}: {why}" if self.where else why)

    def pin_value(self, value: Value, why: str) -> None:
        for labels in value.labels:
            self.pin(labels.ids, why)

    def along(self, value: Value, dim: int) -> Tensor:
        """One atom for each index of the dimension, ``(size,)``; whatever else is labelled with it is tied to it."""
        dim = value.dim(dim)
        found = [self.onto(labels, dim) for labels in value.labels if dim in labels.dims]
        for other in found[1:]:
            self.atoms.tie(found[0], other)
        return found[0] if found else torch.full((value.shape[dim],), PINNED)

    def onto(self, labels: Labels, dim: int) -> Tensor:
        """Labels of several dimensions as those of one: what lies at one index of it becomes one unit."""
        rows = labels.ids.movedim(labels.dims.index(dim), 0).flatten(1) if len(labels.dims) > 1 else labels.ids[:, None]
        self.atoms.tie(rows[:, 1:], rows[:, :1])
        return rows[:, 0]

    def outermost(self, value: Value) -> Value:
        """Every set of labels on its first dimension alone: whole heads, say."""
        return Value(value.shape, tuple(Labels(part.dims[:1], self.onto(part, part.dims[0])) for part in value.labels))

    def keep(self, value: Value, shape: Sequence[int], kept: dict[int, int], why: str) -> list[Labels]:
        """Labels of the dimensions in ``kept`` (old: new); those of others are pinned."""
        result = []
        for labels in value.labels:
            if all(dim in kept for dim in labels.dims):
                result.append(Labels(tuple(kept[dim] for dim in labels.dims), labels.ids))
            else:
                self.pin(labels.ids, why)
        return result

    def moved(self, value: Value, move: Callable[[Tensor], Any]) -> Any:
        """What becomes of a value that ``move`` only rearranges: tensors of atoms are sent the same way.

        Returns a value, or a list of values if ``move`` returns several tensors.
        """
        outs: list[tuple[tuple[int, ...], list[Labels]]] = []
        single = True
        sources: list[tuple[Labels | None, Tensor]] = [(labels, _spread(value, labels)) for labels in value.labels]
        for labels, atoms in sources or [(None, _nothing(value))]:
            made = move(atoms)
            single = isinstance(made, Tensor)
            parts = [made] if single else list(made)
            outs = outs or [(tuple(part.shape), []) for part in parts]
            if labels is not None:
                for (_, found), part in zip(outs, parts, strict=True):
                    found += self._arrived(labels, part, single)
        values = [Value(shape, tuple(found)) for shape, found in outs]
        return values[0] if single else values

    def _arrived(self, labels: Labels, atoms: Tensor, whole: bool) -> list[Labels]:
        """What labels have become of those that were sent on their way."""
        found = _compressed(atoms)
        if found is None:
            self.pin(labels.ids, "one index of many is taken out")
            return []
        if len(found.dims) > len(labels.dims):
            self.splits.append((labels.ids, self.where))
        elif whole and len(found.dims) < len(labels.dims) and found.ids.numel() >= labels.ids.numel():
            # Split and joined again in another order, as channels are shuffled: the number of pieces stays.
            self.onto(labels, _innermost(labels))
        return [found]


def _innermost(labels: Labels) -> int:
    """The dimension that ran fastest before the split: there, neighbours have neighbouring atoms."""
    steps = [int(labels.ids.diff(dim=at).abs().median()) for at in range(len(labels.dims))]
    return labels.dims[steps.index(min(steps))]


def _nothing(value: Value) -> Tensor:
    return torch.zeros((), dtype=torch.int64).expand(value.shape)


def _spread(value: Value, labels: Labels) -> Tensor:
    """The labels' atoms over the whole shape."""
    shape = [size if dim in labels.dims else 1 for dim, size in enumerate(value.shape)]
    return labels.ids.reshape(shape).expand(value.shape)


def _compressed(atoms: Tensor) -> Labels | None:
    """Labels of the dimensions along which atoms differ; None where they differ along none."""
    dims = []
    for dim, size in enumerate(atoms.shape):
        if size > 1 and not bool((atoms == atoms.narrow(dim, 0, 1)).all()):
            dims.append(dim)
        else:
            atoms = atoms.narrow(dim, 0, min(size, 1))
    if not dims or not atoms.numel():
        return None
    return Labels(tuple(dims), atoms.reshape([atoms.shape[dim] for dim in dims]).clone())
