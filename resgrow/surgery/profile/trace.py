"""One forward pass, watched: which module multiplies what, and what memory comes out of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from resgrow.surgery.dense_names import dense_parameter
from resgrow.surgery.profile.hooks import around_modules
from resgrow.surgery.profile.products import is_unknown, macs_of

NOWHERE = 0
_COPIES = ("aten::clone", "aten::_to_copy")


@dataclass
class Tally:
    """Of one module, over the whole batch.

    Attributes:
        started: which of all calls was its first; None where it never ran as a module.
        macs, live_macs: of its own products, not those of modules in it.
        bytes: of the memory that it made: that came out of it first, or went from its code into a module inside.
        shape: of its first output that is a tensor.
    """

    started: int | None = None
    calls: int = 0
    macs: float = 0.0
    live_macs: float = 0.0
    bytes: int = 0
    shape: tuple[int, ...] | None = None


@dataclass
class Watched:
    """What a pass has shown: a tally per module, by ``id``, and the names of operations that were not counted."""

    tallies: dict[int, Tally]
    unknown: set[str] = field(default_factory=set)


def watch(
    model: nn.Module, call: Callable[[], object], given: Sequence[Tensor], masks: Mapping[str, Tensor] | None
) -> Watched:
    """Make the call, which runs the model, without gradients.

    Args:
        given: the inputs, whose memory counts for no layer.
        masks: by dense name, checked; None: everything is live.
    """
    watched = Watched({id(module): Tally() for module in model.modules()})
    watch_ = _Watch(model, given, masks or {}, watched)
    fast = torch.backends.mha.get_fastpath_enabled()
    # Transformers' fast paths are one operation each, whose parts nobody sees.
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.no_grad(), around_modules(model, watch_.enter, watch_.leave), watch_:
            call()
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
    return watched


class _Watch(TorchDispatchMode):
    supports_higher_order_operators = True

    def __init__(
        self, model: nn.Module, given: Sequence[Tensor], masks: Mapping[str, Tensor], watched: Watched
    ) -> None:
        super().__init__()
        self._model = model
        self._watched = watched
        self._running: list[nn.Module] = []
        self._inside: dict[int, set[int]] = {}
        self._started = 0
        self._owners: dict[int, list[nn.Module]] = {}
        for module in model.modules():
            for parameter in module.parameters(recurse=False):
                if parameter.numel():
                    self._owners.setdefault(memory_of(parameter), []).append(module)
        self._claimed = {NOWHERE, *(memory_of(tensor) for tensor in (*model.parameters(), *model.buffers(), *given))}
        # Memory that is used again must not pass for what it was: nothing that was seen is freed.
        self._held: list[Tensor] = []
        self._present: dict[int, Tensor] = {}
        for name, mask in masks.items():
            parameter, layer = dense_parameter(model, name)
            self._mark(parameter, mask if layer is None else layer.packed(mask))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, torch._ops.OpOverload):
            with self:  # in inference mode, composite operations come in one piece
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        out = func(*args, **kwargs)
        macs = macs_of(func, args, kwargs, out)
        if macs is not None:
            self._count(macs, [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)], out)
        elif is_unknown(func):
            self._watched.unknown.add(str(func))
        elif func._schema.name in _COPIES:
            self._follow(args[0], out)
        return out

    def enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if self._running:  # what it is given and no module made, the code around it has
            self._claim(self._watched.tallies[id(self._running[-1])], (args, kwargs))
        self._running.append(module)
        tally = self._watched.tallies[id(module)]
        tally.calls += 1
        if tally.started is None:
            tally.started = self._started
        self._started += 1

    def leave(self, module: nn.Module, args: Any, output: Any) -> None:
        self._running.pop()
        tally = self._watched.tallies[id(module)]
        if tally.shape is None:
            tally.shape = next((tuple(x.shape) for x in tree_leaves(output) if isinstance(x, Tensor)), None)
        self._claim(tally, output)

    def _count(self, macs: float, operands: Sequence[Tensor], out: Any) -> None:
        owner = self._owner(operands)
        tally = self._watched.tallies[id(owner)]
        tally.macs += macs
        tally.live_macs += macs * self._share(operands)
        if tally.started is None:
            self._claim(tally, out)

    def _owner(self, operands: Sequence[Tensor]) -> nn.Module:
        """The running module, or one inside it whose parameter it takes without running it."""
        running = self._running[-1] if self._running else self._model
        owners = [module for x in operands for module in self._owners.get(memory_of(x), ())]
        if owners and running not in owners:
            if id(running) not in self._inside:
                self._inside[id(running)] = {id(module) for module in running.modules()}
            return next((module for module in owners if id(module) in self._inside[id(running)]), running)
        return running

    def _claim(self, tally: Tally, tensors: Any) -> None:
        for x in tree_leaves(tensors):
            if isinstance(x, Tensor) and (memory := memory_of(x)) not in self._claimed:
                self._claimed.add(memory)
                self._held.append(x)
                tally.bytes += x.untyped_storage().nbytes()

    def _mark(self, tensor: Tensor, present: Tensor) -> None:
        """Note which elements of a tensor's memory are present; the rest of it is."""
        memory = memory_of(tensor)
        if memory == NOWHERE:
            return
        if memory not in self._present:
            length = tensor.untyped_storage().nbytes() // tensor.element_size()
            self._present[memory] = torch.ones(length, dtype=torch.bool, device=tensor.device)
        self._of(tensor, self._present[memory]).copy_(present)
        self._held.append(tensor)

    def _share(self, operands: Sequence[Tensor]) -> float:
        """Of the products that have no absent factor. Biases and other vectors are added, not multiplied."""
        share = 1.0
        for x in operands:
            present = self._present.get(memory_of(x))
            if present is not None and x.dim() > 1 and x.numel():
                share *= float(self._of(x, present).double().mean())
        return share

    def _follow(self, source: Tensor, copy: Any) -> None:
        present = self._present.get(memory_of(source))
        if present is not None and isinstance(copy, Tensor):
            self._mark(copy, self._of(source, present))

    @staticmethod
    def _of(tensor: Tensor, memory: Tensor) -> Tensor:
        return memory.as_strided(tensor.shape, tensor.stride(), tensor.storage_offset())


def memory_of(tensor: Tensor) -> int:
    """Which storage a tensor lies in, also on the meta device; `NOWHERE` where it has none (sparse tensors)."""
    try:
        return int(tensor.untyped_storage()._cdata)
    except (NotImplementedError, RuntimeError):
        return NOWHERE
