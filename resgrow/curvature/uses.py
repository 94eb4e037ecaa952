"""From input and output gradient of calls to per-sample gradients of the parameters, or to the sums of their squares.

A parameter that is used once goes through its function's fused squares. Otherwise the per-sample gradients of all its
uses, and through the parameters' own graph where it did not enter as it is, are added before they are squared.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from resgrow.curvature.rules import Formula
from resgrow.curvature.tapped import Tapped
from resgrow.curvature.trace import Trace

CHUNK_BYTES = 64 * 2**20
"""About how much memory per-sample gradients may take at a time."""

Add = Callable[[str, Tensor], None]


@dataclass
class Use:
    """One operand's share in a call: input and output gradient, samples first."""

    formula: Formula
    role: str
    x: Tensor
    grad: Tensor

    @property
    def operand(self) -> Tapped:
        return self.formula.operands[self.role]

    def per_sample(self, rows: slice) -> Tensor:
        """``(n, *shape of the operand)``."""
        return self.formula.per_sample(self.role, self.x[rows], self.grad[rows])


class Squares:
    """Sums over samples of squared gradients; ``visit`` and then ``finish`` once for every backward pass."""

    def __init__(self, trace: Trace, add: Add) -> None:
        self.trace, self.add = trace, add
        self.shared = _shared(trace)
        self.waiting: list[Use] = []

    def visit(self, formula: Formula, x: Tensor, grad: Tensor) -> None:
        fused = set()
        with torch.no_grad():
            for role, operand in formula.operands.items():
                if operand.names <= self.trace.slow.keys():
                    continue
                use = Use(formula, role, x, grad)
                if operand.names & self.shared:
                    self.waiting.append(use)
                elif operand.rearranged:
                    fused.add(role)
                else:
                    self._add_squares([use])
            if fused:
                found = formula.squares(x, grad, frozenset(fused))
                for role in fused:
                    self._add(_pulled(self.trace, formula.operands[role], found[role]))

    def finish(self) -> None:
        """What had to wait for all uses of a parameter."""
        waiting, self.waiting = self.waiting, []
        with torch.no_grad():
            for uses in _connected(waiting):
                joined = _joined(uses)
                if joined is None:
                    self._add_squares(uses)
                else:
                    self._add(_pulled(self.trace, joined.operand, _fused(joined)))

    def _add_squares(self, uses: Sequence[Use]) -> None:
        """Per-sample gradients of a few samples at a time, added over uses, squared and added over samples."""
        names = sorted(frozenset().union(*(use.operand.names for use in uses)))
        largest = max(use.operand.numel() for use in uses)
        total = largest + sum(self.trace.leaves[name].numel() for name in names)
        samples = uses[0].grad.shape[0]
        step = max(1, CHUNK_BYTES // (total * uses[0].grad.element_size()))
        for start in range(0, samples, step):
            rows = slice(start, min(start + step, samples))
            grads = gradients(self.trace, uses, rows)
            self._add({name: grad.square_().sum(0) for name, grad in grads.items()})

    def _add(self, found: dict[str, Tensor]) -> None:
        for name, value in found.items():
            if name not in self.trace.slow:
                self.add(name, value)


def gradients(trace: Trace, uses: Iterable[Use], rows: slice) -> dict[str, Tensor]:
    """Per-sample gradients ``(n, *shape)`` of the samples ``rows``, added over ``uses``."""
    total: dict[str, Tensor] = {}
    for use in uses:
        for name, grad in _pulled_rows(trace, use.operand, use.per_sample(rows)).items():
            total[name] = total[name].add_(grad) if name in total else grad
    return total


def _pulled(trace: Trace, operand: Tapped, value: Tensor) -> dict[str, Tensor]:
    """A gradient with respect to ``operand`` as gradients with respect to parameters."""
    if operand.live.is_leaf:
        (name,) = operand.names
        return {name: value}
    names = sorted(operand.names)
    leaves = [trace.leaves[name] for name in names]
    grads = torch.autograd.grad(
        operand.live, leaves, value.to(operand.dtype), retain_graph=True, allow_unused=True, materialize_grads=True
    )
    return {name: grad.to_dense() for name, grad in zip(names, grads, strict=True)}


def _pulled_rows(trace: Trace, operand: Tapped, grads: Tensor) -> dict[str, Tensor]:
    """The same for each of ``grads (n, *)``."""
    if operand.live.is_leaf:
        return _pulled(trace, operand, grads)
    rows = [_pulled(trace, operand, grad) for grad in grads]
    return {name: torch.stack([row[name] for row in rows]) for name in operand.names}


def _shared(trace: Trace) -> frozenset[str]:
    """Parameters of which an element enters more than one function call."""
    uses: dict[str, list[Tapped]] = defaultdict(list)
    for formula in trace.formulas:
        for operand in formula.operands.values():
            for name in operand.names:
                uses[name].append(operand)
    return frozenset(name for name, operands in uses.items() if len(operands) > 1 and _overlap(trace, name, operands))


def _overlap(trace: Trace, name: str, operands: Sequence[Tapped]) -> bool:
    if any(operand.live.is_leaf or not operand.rearranged for operand in operands):
        return True
    counts = torch.zeros_like(trace.leaves[name], requires_grad=False)
    for operand in operands:
        counts += _pulled(trace, operand, torch.ones_like(operand.plain))[name]
    return bool((counts > 1).any())


def _connected(uses: Iterable[Use]) -> list[list[Use]]:
    """Uses in groups that have no parameter in common."""
    groups: list[tuple[set[str], list[Use]]] = []
    for use in uses:
        names, members = set(use.operand.names), [use]
        rest = []
        for group in groups:
            if group[0] & names:
                names |= group[0]
                members = group[1] + members
            else:
                rest.append(group)
        groups = [*rest, (names, members)]
    return [members for _, members in groups]


def _joined(uses: Sequence[Use]) -> Use | None:
    """All uses as one with all their positions, where that is what they amount to."""
    first = uses[0]
    operand, kind = first.operand, (first.formula.joins, first.role)
    if first.formula.joins is None or not operand.live.is_leaf:
        return None
    if any((use.formula.joins, use.role) != kind or use.operand.live is not operand.live for use in uses):
        return None
    features = first.formula.features

    def positions(t: Tensor) -> Tensor:
        return t.reshape(t.shape[0], -1, *t.shape[t.dim() - features :])

    x = torch.cat([positions(use.x) for use in uses], 1)
    return Use(first.formula, first.role, x, torch.cat([positions(use.grad) for use in uses], 1))


def _fused(use: Use) -> Tensor:
    return use.formula.squares(use.x, use.grad, frozenset((use.role,)))[use.role]
