"""One forward pass seen from its parameters: where they enter, and what comes back there.

Autograd carries everything between those places, so any architecture works. Two things keep the pass cheap:

* The values that functions compute with require no gradients, so no ordinary weight gradient is computed. The
  graph then begins at the first outputs of functions that parameters entered, which are hung on a scalar ``anchor``.
* What a function's parameters contribute is taken inside the backward pass, when the gradient at its output exists,
  and nothing is kept.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from resgrow.curvature import rules
from resgrow.curvature.layout import CONSTANT, Layout, Layouts
from resgrow.curvature.rules import Formula
from resgrow.curvature.tapped import Tapped, live, plain, replaced, storage, tap, tensors

Visit = Callable[[Formula, Tensor, Tensor], None]


class _Hang(torch.autograd.Function):
    """The identity, in place, with ``anchor`` as a second input: makes ``output`` part of a graph."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, anchor: Tensor) -> Tensor:
        ctx.mark_dirty(output)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None]:
        return None, None


class _HangView(_Hang):
    """The same for a view of a parameter, which must not count as modified."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, anchor: Tensor) -> Tensor:
        return output.view_as(output)


class Trace:
    """Watches one forward pass; every parameter that enters a function is either understood or named in ``slow``.

    Attributes:
        leaves: the parameters as leaves of graphs of their own.
        weights: what stands in for them in the model.
        formulas: those of the calls whose gradients will come by.
        slow: parameters that entered a function without a rule, with that function's name.
    """

    def __init__(
        self, parameters: Mapping[str, Tensor], constants: frozenset[int], layouts: Layouts, anchor: Tensor
    ) -> None:
        self.constants, self.layouts, self.anchor = constants, layouts, anchor
        self.leaves = {name: p.detach().requires_grad_() for name, p in parameters.items()}
        self.weights = {name: tap(self, leaf, frozenset((name,)), True) for name, leaf in self.leaves.items()}
        self.formulas: list[Formula] = []
        self.slow: dict[str, str] = {}
        self._calls: Counter[Hashable] = Counter()

    def backward(self, output: Tensor, grad: Tensor, visit: Visit, keep_graph: bool) -> None:
        """Send ``grad`` back from ``output``; ``visit`` is called for every formula on the way, samples first."""
        self._visit, self._keep = visit, keep_graph
        torch.autograd.grad(output, self.anchor, grad, retain_graph=keep_graph, allow_unused=True)

    def call(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """What ``func`` returns, made such that gradients will be seen."""
        if not torch.is_grad_enabled() or (func in rules.LIKE and not isinstance(_first(args, kwargs), Tapped)):
            return func(*plain(args), **plain(kwargs))
        found = tensors((args, kwargs))
        operands = [t for t in found if isinstance(t, Tapped)]
        if func in rules.EXPANSIONS:
            return self._expand(func, args, kwargs, operands)
        varying = [t for t in found if not isinstance(t, Tapped) and not self._constant(t)]
        if not varying:
            return self._derive(func, args, kwargs, operands)
        if func in rules.COMPOSITES:
            output = rules.COMPOSITES[func](*args, **kwargs)
            if output is not NotImplemented:
                return output
        key = self._key(func, operands)
        if func in rules.BROADCASTS:
            return self._broadcast(key, func, args, kwargs, operands, varying)
        site = rules.RULES[func](*args, **kwargs) if func in rules.RULES else None
        if site is None or not site.formula.operands:
            return self._unknown(key, func, args, kwargs, operands, varying)
        layout = self.layouts.of(key, site.x, site.candidates, site.batched)
        if layout == CONSTANT:
            return self._derive(func, args, kwargs, operands)
        if not isinstance(layout, Layout) or len(site.formula.operands) < len(operands):
            return self._mark(func, operands, func(*plain(args), **plain(kwargs)))
        output = site.relink(func(*plain(args), **plain(kwargs)))
        return self._watch(func, site.formula, site.x, layout, output)

    def _derive(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], operands: list[Tapped]
    ) -> Any:
        """A function of parameters alone: part of their own graph."""
        names = frozenset().union(*(operand.names for operand in operands))
        rearranged = func in rules.REARRANGEMENTS or (func is Tensor.__getitem__ and _slices(args[1]))
        rearranged = rearranged and len(operands) == 1 and operands[0].rearranged
        output = func(*live(args), **live(kwargs))
        return replaced(output, lambda t: tap(self, t, names, rearranged) if t.requires_grad else t)

    def _expand(
        self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], operands: list[Tapped]
    ) -> Any:
        """A parameter repeated, for each sample or for other ends."""
        operand, output = _first(args, kwargs), func(*plain(args), **plain(kwargs))
        if not isinstance(operand, Tapped):
            return output
        shape = [1] * (output.dim() - operand.dim()) + list(operand.shape)
        dims = [d for d, size in enumerate(shape) if size == 1 and output.shape[d] % self.layouts.samples == 0]
        if self.layouts.samples == 1 or not dims:
            return self._derive(func, args, kwargs, operands)
        key = self._key(func, operands)
        layout = self.layouts.of(key, output, dims)
        if layout == CONSTANT:
            return self._derive(func, args, kwargs, operands)
        if not isinstance(layout, Layout) or any(size not in (1, output.shape[d]) for d, size in enumerate(shape)):
            return self._mark(func, operands, output)
        return self._copy(func, operand, output, layout)

    def _broadcast(
        self,
        key: Hashable,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        operands: list[Tapped],
        varying: list[Tensor],
    ) -> Any:
        """Parameters and samples in a function of broadcast arguments: each sample gets a copy."""
        witness = max(varying, key=lambda t: (t.dim(), t.numel()))
        dims = witness.dim()
        free = [
            d
            for d in range(dims)
            if all(d < dims - operand.dim() or operand.shape[d - dims] == 1 for operand in operands)
        ]
        layout = self.layouts.of((key, "widest"), witness, free)
        if layout == CONSTANT:
            return self._unknown(key, func, args, kwargs, operands, varying)
        if not isinstance(layout, Layout) or any(operand.dim() > dims for operand in operands):
            return self._mark(func, operands, func(*plain(args), **plain(kwargs)))

        def copied(t: Tensor) -> Tensor:
            if not isinstance(t, Tapped):
                return t
            size = 1 if layout.dim is None else witness.shape[layout.dim]
            return self._copy(func, t, rules.spread(t, dims, layout, size), layout)

        return func(*replaced(args, copied), **replaced(kwargs, copied))

    def _unknown(
        self,
        key: Hashable,
        func: Callable[..., Any],
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        operands: list[Tapped],
        varying: list[Tensor],
    ) -> Any:
        """No rule: a function of parameters alone after all, or one sample at a time."""
        verdicts = [self.layouts.of((key, place), t, range(t.dim())) for place, t in enumerate(varying)]
        if all(verdict == CONSTANT for verdict in verdicts):
            return self._derive(func, args, kwargs, operands)
        return self._mark(func, operands, func(*plain(args), **plain(kwargs)))

    def _mark(self, func: Callable[..., Any], operands: Sequence[Tapped], output: Any) -> Any:
        for operand in operands:
            self.slow.update(dict.fromkeys(operand.names, _label(func)))
        return output

    def _copy(self, func: Callable[..., Any], operand: Tapped, copy: Tensor, layout: Layout) -> Tensor:
        if storage(copy) == storage(operand.plain):
            copy = _HangView.apply(copy, self.anchor)
        return self._watch(func, rules.copies(operand, copy.dim(), layout), copy, layout, copy)

    def _watch(self, func: Callable[..., Any], formula: Formula, x: Tensor, layout: Layout, output: Tensor) -> Tensor:
        """The output, part of the graph, with its gradient announced to the visitor of a backward pass."""
        if not output.requires_grad:
            output = _Hang.apply(output, self.anchor)
        self.formulas.append(formula)
        version, inputs = x._version, [x.detach()]

        def receive(grad: Tensor) -> None:
            # The last backward pass frees activations on its way, as an ordinary one does.
            x = inputs[0] if self._keep else inputs.pop()
            if x._version != version:
                listed = ", ".join(sorted(name for operand in formula.operands.values() for name in operand.names))
                raise RuntimeError(
                    f"curvature: the input of {_label(func)} with {listed} was modified in place after it was used; "
                    "make that operation out of place"
                )
            # Under autocast a function may cast its input; its gradient tells the dtype it computed in.
            x = x.to(grad.dtype) if x.is_floating_point() else x
            self._visit(formula, layout.split(x), layout.split(grad.detach()))

        output.register_hook(receive)
        return output

    def _key(self, func: Callable[..., Any], operands: Sequence[Tapped]) -> Hashable:
        """A name for this call that is the same in another pass."""
        call = (func, tuple(sorted(name for operand in operands for name in operand.names)))
        self._calls[call] += 1
        return (*call, self._calls[call])

    def _constant(self, t: Tensor) -> bool:
        return not t.requires_grad and (t.dim() == 0 or storage(t) in self.constants)


def _first(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args[0] if args else next(iter(kwargs.values()))


def _slices(index: Any) -> bool:
    """Whether an index names no element twice for sure: numbers, slices, None and Ellipsis."""
    parts = index if isinstance(index, tuple) else (index,)
    return all(part is None or part is Ellipsis or isinstance(part, (int, slice)) for part in parts)


def _label(func: Callable[..., Any]) -> str:
    name = getattr(func, "__name__", str(func))
    return str(getattr(func, "__self__", name)) if name == "__get__" else name
