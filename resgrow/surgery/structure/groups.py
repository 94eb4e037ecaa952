"""Which indices of which parameters are one unit: found by following a model's operations."""

from __future__ import annotations

import operator
import warnings
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from resgrow.surgery.forward import AnyInputs, Example
from resgrow.surgery.structure.atoms import PINNED
from resgrow.surgery.structure.call import Call, described_call, shapes
from resgrow.surgery.structure.heads import adapted
from resgrow.surgery.structure.rules import find_rule
from resgrow.surgery.structure.trace import Traced, traced
from resgrow.surgery.structure.values import Labels, Tracker, Value


@dataclass(frozen=True)
class Place:
    """Where a group's units lie in one parameter or buffer: ``index`` int64 ``(units, count)`` along ``dim``.

    ``read``: the dimension is one of a weight's inputs: what flows in there flows nowhere else.
    """

    name: str
    dim: int
    index: Tensor
    read: bool


@dataclass(frozen=True)
class Group:
    """``size`` units, each of which goes from all places at once.

    ``split_by``: modules whose code splits the dimension into its units, as attention does into heads.
    """

    places: tuple[Place, ...]
    split_by: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        return len(self.places[0].index)


@dataclass
class Structure:
    """What a model's forward pass couples.

    Attributes:
        groups: in forward order of what makes them.
        unknown: operations without a rule and modules without a form with fewer heads: what reaches them stays.
    """

    groups: list[Group]
    unknown: list[str] = field(default_factory=list)

    def warn(self, op: str) -> None:
        """Name what stays because it is not known, in a UserWarning."""
        if self.unknown:
            more = f" and {len(self.unknown) - 4} more" if len(self.unknown) > 4 else ""
            warnings.warn(f"{op}: what reaches these stays as it is: {'; '.join(self.unknown[:4])}{more}", stacklevel=4)


def structure(model: nn.Module, inputs: Example | AnyInputs, op: str) -> Structure:
    """All units of the model that can be removed without touching anything outside them."""
    return structure_of(model, traced(model, inputs, op))


def structure_of(model: nn.Module, graph: Traced) -> Structure:
    """The same of a model that has been traced."""
    walk = _Walk(graph)
    walk.run()
    result = Structure([], sorted(walk.unknown))
    for group in walk.groups():
        try:
            for path in group.split_by:
                adapted(model.get_submodule(path), group.size, group.size)
        except ValueError as error:
            result.unknown.append(f"{error}, in {path}")
        else:
            result.groups.append(group)
    return result


def kept_because(model: nn.Module, inputs: Example | AnyInputs, op: str, name: str, dim: int) -> list[str]:
    """Why a parameter's dimension is in no group: what pins its indices."""
    walk = _Walk(traced(model, inputs, op))
    walk.run()
    if (name, dim) not in walk.dims:
        return ["the forward pass does not use it"]
    return walk.track.atoms.reasons(walk.dims[name, dim]) or ["it has a size that stands in the model's code"]


class _Walk:
    def __init__(self, graph: Traced) -> None:
        self.graph = graph
        self.track = Tracker()
        self.values: dict[Node, Any] = {}
        # (name, dim) -> atoms, in the order in which parameters are used
        self.dims: dict[tuple[str, int], Tensor] = {}
        self.known: dict[str, Value] = {}
        self.unknown: set[str] = set()

    def run(self) -> None:
        for node in self.graph.nodes:
            if node.op == "placeholder":
                self.values[node] = Value(shapes(node)[0]) if shapes(node) else None
            elif node.op == "call_function":
                self.values[node] = self._call(node)
        for node in self.graph.outputs:
            for value in _leaves(self._value(node)):
                self.track.pin_value(value, "the model's output")

    def _value(self, node: Node) -> Any:
        """Parameters get their atoms when they are first used: groups then come in forward order."""
        name = self.graph.stored.get(node.name) if node.op == "placeholder" else None
        if name is None:
            return self.values.get(node)
        if name not in self.known:
            shape = shapes(node)[0]
            parts = []
            # Tables of whole numbers are looked up in, or are such indices themselves.
            labelled = node.meta["val"].is_floating_point()
            for dim, size in enumerate(shape if labelled else ()):
                self.dims[name, dim] = self.track.atoms.fresh(size)
                parts.append(Labels((dim,), self.dims[name, dim]))
            self.known[name] = Value(shape, tuple(parts))
        return self.known[name]

    def _call(self, node: Node) -> Any:
        if node.target is operator.getitem:
            source, number = node.args
            assert isinstance(source, Node)
            assert isinstance(number, int)
            values = self._value(source)
            return values[number] if isinstance(values, list) else values
        call = described_call(node, self._value)
        if not call.values():
            return _unlabelled(call)
        rule = find_rule(node.target)
        self.track.where = call.where
        if rule is None:
            if any(value.labels for value in call.values()):
                self.unknown.add(f"{node.target} in {call.where or 'the model'}")
            for value in call.values():
                self.track.pin_value(value, f"no rule for {node.target}")
            return _unlabelled(call)
        return rule(self.track, call)

    def groups(self) -> list[Group]:
        classes = self.track.atoms.classes()
        pinned = classes[PINNED]
        members: dict[int, dict[tuple[str, int], list[int]]] = defaultdict(lambda: defaultdict(list))
        for place, atoms in self.dims.items():
            for index, found in enumerate(classes[atoms].tolist()):
                if found != pinned:
                    members[found][place].append(index)
        alike: dict[tuple[tuple[tuple[str, int], int], ...], list[dict[tuple[str, int], list[int]]]] = defaultdict(list)
        for unit in members.values():
            alike[tuple((place, len(indices)) for place, indices in unit.items())].append(unit)
        read = self._read()
        inputs = {place for place, atoms in self.dims.items() if bool(read[atoms].all())}
        splits = [(set(classes[ids.reshape(-1)].tolist()), where) for ids, where in self.track.splits]
        result = []
        for kind, units in alike.items():
            places = tuple(
                Place(*place, torch.tensor([unit[place] for unit in units]), place in inputs) for place, _ in kind
            )
            name, dim = places[0].name, places[0].dim
            own = int(classes[self.dims[name, dim]][places[0].index[0, 0]])
            result.append(Group(places, tuple(dict.fromkeys(where for found, where in splits if own in found))))
        return result

    def _read(self) -> Tensor:
        """For each atom whether it is an input of a weight, bool: also of one that is computed from several parameters,
        as ``W + B A`` is."""
        read = torch.zeros(self.track.atoms.count, dtype=torch.bool)
        for atoms in self.track.read:
            read[atoms] = True
        before = -1
        while before != int(read.sum()):
            before = int(read.sum())
            read[PINNED] = False
            for one, other in self.track.twins:
                both = read[one] | read[other]
                read[one.expand_as(both)] = both
                read[other.expand_as(both)] = both
        return read


def _unlabelled(call: Call) -> Any:
    values = [Value(shape) for shape in call.shapes]
    return values[0] if len(values) == 1 else values


def _leaves(value: Any) -> list[Value]:
    if isinstance(value, Value):
        return [value]
    return [leaf for part in value or () for leaf in _leaves(part)] if isinstance(value, list) else []
