"""Indices of dimensions, and which of them can only go together."""

from __future__ import annotations

import numpy as np
import torch
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

# The atom of everything that has to stay.
PINNED = 0


class Atoms:
    """Atoms are numbers: one for each index of each dimension of each parameter. Ties say which are one unit."""

    def __init__(self) -> None:
        self.count = 1
        self._ties: list[tuple[np.ndarray, np.ndarray]] = []
        self.pins: list[tuple[np.ndarray, str]] = []

    def fresh(self, count: int) -> Tensor:
        """New atoms, int64 ``(count,)``."""
        first = self.count
        self.count += count
        return torch.arange(first, first + count)

    def tie(self, first: Tensor, second: Tensor) -> None:
        """Element by element, after broadcasting."""
        one, other = torch.broadcast_tensors(first, second)
        if one.numel():
            self._ties.append((one.reshape(-1).numpy().copy(), other.reshape(-1).numpy().copy()))

    def pin(self, atoms: Tensor, why: str) -> None:
        """They have to stay; ``why`` is for messages."""
        if atoms.numel():
            self.pins.append((atoms.reshape(-1).numpy().copy(), why))
            self.tie(atoms, torch.tensor(PINNED))

    def classes(self) -> Tensor:
        """For each atom the number of its unit, int64 ``(count,)``."""
        if not self._ties:
            return torch.arange(self.count)
        one, other = (np.concatenate(side) for side in zip(*self._ties, strict=True))
        graph = coo_array((np.ones(len(one), bool), (one, other)), shape=(self.count, self.count))
        return torch.from_numpy(connected_components(graph, directed=False)[1].astype(np.int64))

    def reasons(self, atoms: Tensor) -> list[str]:
        """Why these atoms have to stay, if they do; nothing for what is tied to a dimension that is just fixed."""
        free = Atoms()
        free.count = self.count
        for one, other in self._ties:
            loose = (one != PINNED) & (other != PINNED)
            free._ties.append((one[loose], other[loose]))
        classes = free.classes()
        own = set(classes[atoms].tolist())
        found = (why for pinned, why in self.pins if own & set(classes[torch.from_numpy(pinned)].tolist()))
        return list(dict.fromkeys(found))
