"""What deeper networks are made of: a residual branch around any module, and lists that are grown in their middle."""

from __future__ import annotations

import operator
from typing import Any

from torch import Tensor, nn


class Residual(nn.Module):
    """``x + branch(x)``. Where the branch returns a tuple, ``x`` is added to its first entry.

    Further arguments go to the branch, as the masks of attention do.
    """

    def __init__(self, branch: nn.Module) -> None:
        super().__init__()
        self.branch = branch

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        out = self.branch(x, *args, **kwargs)
        return (x + out[0], *out[1:]) if isinstance(out, tuple) else x + out


class KeyedModuleList(nn.ModuleList):
    """``nn.ModuleList`` whose keys need not be "0", "1", ...: indices are positions.

    Surgery turns a list into this one in place when it puts a module between two others, so that these keep their
    names, and with them those of their parameters; it is not made by itself.
    """

    def _get_abs_string_index(self, idx: Any) -> str:
        position = operator.index(idx)
        if not -len(self) <= position < len(self):
            raise IndexError(f"index {position} is out of range")
        return list(self._modules)[position]
