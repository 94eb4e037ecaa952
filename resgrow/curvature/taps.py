"""Forward and backward passes of a model whose parameters are watched."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor, nn

from resgrow.curvature.batches import device_of
from resgrow.curvature.layout import Layouts, Unclear, Verdict
from resgrow.curvature.one_by_one import check_alone, first
from resgrow.curvature.tapped import Tapped, storage, tensors
from resgrow.curvature.trace import Trace

Run = Callable[[Any, dict[str, Tensor]], Tensor]


class Taps:
    """Runs a model batch after batch with watched stand-ins for its trainable parameters.

    The model itself is not changed: no hooks, no flags.

    Args:
        model: in eval mode.
        run: ``(inputs, weights) -> output`` with ``weights`` in place of the parameters of those names.

    Raises:
        ValueError: a kind of model that cannot be watched.
    """

    def __init__(self, model: nn.Module, run: Run) -> None:
        _check(model)
        self.run = run
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        fixed = [p for p in model.parameters() if not p.requires_grad]
        self.constants = frozenset(storage(t) for t in (*fixed, *model.buffers()))
        self.anchor = torch.zeros((), device=device_of(model), requires_grad=True)
        self._names = {id(p): name for name, p in self.parameters.items()}
        self._decided: dict[Hashable, Verdict] = {}
        self._told: set[str] = set()

    def forward(self, inputs: Any, samples: int) -> tuple[Trace, Tensor]:
        """The batch's output and how it came about."""
        storages = frozenset(storage(t) for t in tensors(inputs) if t.dim() and t.shape[0] == samples)
        probe: dict[Hashable, Tensor] | None = None
        probed = min(2, samples - 1)
        while True:
            layouts = Layouts(samples, storages, self._decided, probe, probed)
            try:
                trace, output = self._attempt(inputs, layouts)
            except Unclear as question:
                few = first(inputs, samples, probed)
                layouts = Layouts(probed, storages, self._decided, probing=True)
                part = self._attempt(few, layouts)[1].detach()
                probe = layouts.seen
                if question.key not in probe:  # although all is decided up to there: passes differ
                    self._decided[question.key] = None
                continue
            if probe is not None:
                check_alone(part, output, 0, probed)
            self._tell(trace)
            return trace, output

    def _attempt(self, inputs: Any, layouts: Layouts) -> tuple[Trace, Tensor]:
        trace = Trace(self.parameters, self.constants, layouts, self.anchor)
        with torch.enable_grad():
            output = self.run(inputs, dict(trace.weights))
        if isinstance(output, Tapped):
            trace.slow.update(dict.fromkeys(output.names, "the output"))
            output = output.plain
        for name in self._unwatched(output):
            trace.slow.setdefault(name, "a function out of sight")
        return trace, output

    def _unwatched(self, output: Tensor) -> list[str]:
        """Parameters in the graph that no watched function has put there."""
        found: list[str] = []
        seen, pending = set(), [output.grad_fn]
        while pending:
            node = pending.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            variable = getattr(node, "variable", None)
            if isinstance(variable, Tapped):
                found.extend(variable.names)
            elif id(variable) in self._names:
                found.append(self._names[id(variable)])
            pending.extend(following for following, _ in node.next_functions)
        return found

    def _tell(self, trace: Trace) -> None:
        new = {name: func for name, func in trace.slow.items() if name not in self._told}
        if not new:
            return
        self._told.update(new)
        listed = ", ".join(f"'{name}' ({func})" for name, func in new.items())
        warnings.warn(
            f"curvature: no rule for how these parameters are used: {listed}. Their curvature is exact, but takes one "
            "forward and backward pass per sample; freeze them with requires_grad_(False) to leave them out",
            UserWarning,
            stacklevel=2,
        )


def _check(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, (torch.jit.ScriptModule, nn.DataParallel)):
            remedy = "module.module" if isinstance(module, nn.DataParallel) else "the module it was compiled from"
            raise ValueError(f"curvature: cannot see into a {type(module).__name__}; use {remedy} instead")
