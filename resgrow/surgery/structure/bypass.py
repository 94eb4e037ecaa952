"""Layers and blocks that have no effect any more, as whole modules: what to put in their places.

A residual block whose branch has become zero is what is left of its shortcut: nothing, or some of its children in a
row. A branch in the middle of other code gives a constant, and what only that reads can pass things on.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter

from torch import Tensor, nn
from torch.fx import Node

from resgrow.nn.constants import Shift, Zero, Zeros
from resgrow.surgery.forward import Example
from resgrow.surgery.structure.calls import Call, Calls
from resgrow.surgery.structure.liveness import Liveness, liveness, operation
from resgrow.surgery.structure.needed import MOVES, SHAPE_ONLY, needed
from resgrow.surgery.structure.trace import Traced

Make = Callable[[nn.Module], nn.Module]

# Activations that code calls as functions, or a module several times.
_ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "silu": nn.SiLU,
    "hardswish": nn.Hardswish,
    "sigmoid": nn.Sigmoid,
    "tanh": nn.Tanh,
}


@dataclass(frozen=True)
class Bypass:
    """``make`` turns the module at ``path`` into what takes its place."""

    path: str
    make: Make


@dataclass(frozen=True)
class _Link:
    """One part of what is left of a module: made from the module, and reading ``source``."""

    name: str
    make: Make
    source: Node


def bypasses(model: nn.Module, graph: Traced, example: Example, op: str, fixed: Collection[str] = ()) -> list[Bypass]:
    """The largest modules that can be replaced, none inside another. The model itself stays.

    The outputs remain what they are where the model's code does no more with a module than to call it.

    Args:
        fixed: paths of modules that have to stay themselves.
    """
    spare = needed(graph) - needed(graph, but=SHAPE_ONLY)
    search = _Search(liveness(model, graph), Calls.of(model, graph, example, op), spare, fixed)
    return list(search.inside("", model))


@dataclass(frozen=True)
class _Search:
    alive: Liveness
    calls: Calls
    spare: Collection[Node]  # of which only zeros are made
    fixed: Collection[str]

    def inside(self, path: str, module: nn.Module) -> Iterator[Bypass]:
        for name, child in module.named_children():
            inner = f"{path}.{name}" if path else name
            if not _has_parameters(child) or _is_settled(child):
                continue
            call = None if inner in self.fixed else self.calls.only(inner)
            make = None if call is None else self._make(inner, child, call)
            if make is not None:
                yield Bypass(inner, make)
            else:
                yield from self.inside(inner, child)

    def _make(self, path: str, module: nn.Module, call: Call) -> Make | None:
        made = self.calls.output(path)
        if made is None:
            return None
        same = self.calls.plain(path) and self.calls.keeps_shape(path)
        if made in self.spare:
            return _nothing if same else _zeros(call)
        constant = self.alive.known.get(self.alive.root(made))
        if constant is not None:
            if same:
                return _constant(constant)
            return _zeros(call) if self._is_left_out(made) and bool((constant == 0).all()) else None
        links = self._links(path, module, made) if self.calls.plain(path) else None
        kept = {link.name for link in links or ()}
        if links is None or not any(
            _has_parameters(child) for name, child in module.named_children() if name not in kept
        ):
            return None
        return lambda old: _joined(old, links)

    def _is_left_out(self, made: Node) -> bool:
        """Whether nothing is done with a value of zero than to add it to others."""
        moved = [node for node in made.users if operation(node) in MOVES]
        others = [node for node in made.users if node not in moved]
        added = all(operation(node) == "add" and node in self.alive.same for node in others)
        return added and all(self._is_left_out(node) for node in moved)

    def _links(self, path: str, module: nn.Module, made: Node) -> list[_Link] | None:
        """What is left of a module, if that is some of its children in a row."""
        links: list[_Link] = []
        at, start = self.alive.root(made), self.calls.input(path)
        if start is None:
            return None
        seen: set[Node] = set()
        while at is not self.alive.root(start):
            # Dense layers, which take lists of tensors, can seem to read what they make.
            link = None if at in seen else self._link(path, module, at)
            if link is None:
                return None
            seen.add(at)
            links.insert(0, link)
            at = link.source
        return links

    def _link(self, path: str, module: nn.Module, at: Node) -> _Link | None:
        if at not in self.calls.nodes(path):
            return None
        for name, _ in module.named_children():
            inner = f"{path}.{name}"
            if self.calls.plain(inner) and at in self.calls.nodes(inner):
                made, source = self.calls.output(inner), self.calls.input(inner)
                if made is not None and source is not None and self.alive.root(made) is at:
                    return _Link(name, attrgetter(name), self.alive.root(source))
        if at in self.alive.shifts:
            other, value = self.alive.shifts[at]
            shift = _shift(value)
            return None if shift is None else _Link("", shift, other)
        if operation(at) in _ACTIVATIONS:
            activation = _ACTIVATIONS[operation(at)]
            return _Link("", lambda old: activation(), self.alive.reads[at][0])
        return None


def _is_settled(module: nn.Module) -> bool:
    """Whether it is what a constant branch has become."""
    parts = [module, *module.modules()] if isinstance(module, nn.Sequential) else [module]
    return all(isinstance(part, nn.Sequential | Shift | Zero | Zeros) for part in parts)


def _has_parameters(module: nn.Module) -> bool:
    return next(module.parameters(), None) is not None


def _nothing(old: nn.Module) -> nn.Module:
    return nn.Sequential() if type(old) is nn.Sequential else nn.Identity()


def _zeros(call: Call) -> Make | None:
    """For what cannot be a `Zero`; None where more than one size changes."""
    if call.before is None or call.after is None or len(call.before) != len(call.after):
        return None
    changed = [dim for dim, sizes in enumerate(zip(call.before, call.after, strict=True)) if sizes[0] != sizes[1]]
    if not changed:
        return lambda old: Zeros(call.results)
    (dim, *more), after = changed, call.after
    return None if more or dim == 0 else lambda old: Zeros(call.results, after[dim], dim - len(after))


def _shift(value: Tensor) -> Make | None:
    """For a constant that changes along one dimension at most: no batch and no place in an image has its own."""
    if sum(size > 1 for size in value.shape) > 1:
        return None
    first = next((dim for dim, size in enumerate(value.shape) if size > 1), value.dim())
    if first == 0:
        return None
    shape = value.shape[first:]

    def make(old: nn.Module) -> nn.Module:
        like = next(parameter for parameter in old.parameters() if parameter.is_floating_point())
        return Shift(value.reshape(shape).to(like.device, like.dtype))

    return make


def _constant(value: Tensor) -> Make | None:
    if bool((value == 0).all()):
        return lambda old: Zero()
    shift = _shift(value)
    return None if shift is None else lambda old: nn.Sequential(Zero(), shift(old))


def _joined(old: nn.Module, links: Sequence[_Link]) -> nn.Module:
    """Children keep their names, and with them their parameters."""
    if not links:
        return _nothing(old)
    parts: OrderedDict[str, nn.Module] = OrderedDict()
    taken = {link.name for link in links}
    for link in links:
        part = link.make(old)
        name = link.name or type(part).__name__.lower()
        while not link.name and (name in taken or name in parts):
            name += "_"
        parts[name] = part
    return nn.Sequential(parts)
