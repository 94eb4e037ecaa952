"""The last batches of a training loop."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from resgrow.curvature.batches import Batch


class Recent:
    """Keeps the newest batches that hold ``samples`` samples together, by reference."""

    def __init__(self, samples: int) -> None:
        self.samples = samples
        self._batches: deque[Batch] = deque()
        self._count = 0

    @property
    def batches(self) -> list[Batch]:
        return list(self._batches)

    def add(self, batch: Batch) -> None:
        self._batches.append(batch)
        self._count += len(batch[1])
        while self._count - len(self._batches[0][1]) >= self.samples:
            self._count -= len(self._batches.popleft()[1])

    def replace(self, batches: Iterable[Batch]) -> None:
        self._batches.clear()
        self._count = 0
        for batch in batches:
            self.add(batch)

    def split(self) -> tuple[list[Batch], list[Batch]]:
        """Older and newer half: one to estimate on, one to check on. The same batch twice if there is only one."""
        batches = list(self._batches)
        half = len(batches) // 2
        return batches[:half] or batches, batches[half:]
