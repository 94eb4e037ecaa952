"""What a training forward pass keeps for its backward pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from weakref import WeakSet

import torch
from torch import Tensor, nn

from resgrow.surgery.profile.trace import NOWHERE, memory_of


@dataclass(eq=False)
class _Saved:
    tensor: Tensor


def saved_bytes(model: nn.Module, call: Callable[[], object]) -> int:
    """Bytes that autograd holds after a forward pass, for as long as its output lives.

    Each piece of memory counts once and as a whole, the inputs' too where a layer needs them; parameters and buffers,
    which are there anyway, do not. What functions keep by other ways than ``save_for_backward`` is not seen.

    Args:
        call: runs the model, in the mode that it is in.
    """
    saved: WeakSet[_Saved] = WeakSet()

    def pack(tensor: Tensor) -> _Saved:
        kept = _Saved(tensor)
        saved.add(kept)
        return kept

    with torch.enable_grad(), torch.autograd.graph.saved_tensors_hooks(pack, lambda kept: kept.tensor):
        output = call()
    known = {NOWHERE, *(memory_of(tensor) for tensor in (*model.parameters(), *model.buffers()))}
    total = 0
    for kept in saved:
        if (memory := memory_of(kept.tensor)) not in known:
            known.add(memory)
            total += kept.tensor.untyped_storage().nbytes()
    del output
    return total
