"""A node of the graph as rules see it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

from torch import Tensor
from torch.fx import Node

from resgrow.surgery.structure.values import Value

R = TypeVar("R")


@dataclass(frozen=True)
class Call:
    """One operation: ``arguments`` by the schema's names, tensors among them as `Value`.

    ``shapes``: of the results. ``op``: the overload itself. ``where``: its place in the model, for messages.
    """

    op: Any
    arguments: dict[str, Any]
    shapes: tuple[tuple[int, ...], ...]
    where: str

    @property
    def shape(self) -> tuple[int, ...]:
        return self.shapes[0]

    def get(self, name: str, default: Any = None) -> Any:
        return self.arguments.get(name, default)

    def value(self, name: str) -> Value:
        found = self.arguments[name]
        assert isinstance(found, Value), (self.op, name, found)
        return found

    def optional(self, name: str) -> Value | None:
        found = self.arguments.get(name)
        return found if isinstance(found, Value) else None

    def values(self) -> list[Value]:
        """All tensors among the arguments, those in lists too."""
        return list(_flat(list(self.arguments.values())))


def _flat(arguments: Any) -> Any:
    for each in arguments:
        if isinstance(each, Value):
            yield each
        elif isinstance(each, list | tuple):
            yield from _flat(each)


def described_call(node: Node, value: Callable[[Node], Any]) -> Call:
    """What a node does, with ``value`` in the place of every node among its arguments."""
    schema = getattr(node.target, "_schema", None)
    names = [argument.name for argument in schema.arguments] if schema else []
    names += [f"argument {i}" for i in range(len(names), len(node.args))]
    arguments = dict(zip(names, node.args, strict=False)) | dict(node.kwargs)
    inside = next(reversed(module_paths(node)), "")
    filled = {name: _filled(argument, value) for name, argument in arguments.items()}
    return Call(node.target, filled, tuple(shapes(node)), inside)


def module_paths(node: Node) -> list[str]:
    """Of the modules that a node is inside of, from the model inwards."""
    stack = node.meta.get("nn_module_stack") or {}
    return [str(path).removeprefix("L['self']").lstrip(".") for path, _ in stack.values()]


def shapes(node: Node) -> list[tuple[int, ...]]:
    """Of a node's tensors."""
    value = node.meta.get("val")
    parts = value if isinstance(value, list | tuple) else [value]
    return [tuple(int(size) for size in part.shape) for part in parts if isinstance(part, Tensor)]


def by_name(rules: Mapping[str, R], op: Any) -> R | None:
    """The rule for an overload, by its operation's name without namespace; in place or not is the same."""
    schema = getattr(op, "_schema", None)
    if schema is None:
        return None
    name = schema.name.partition("::")[2]
    return rules.get(name) or rules.get(name.rstrip("_"))


def _filled(argument: Any, value: Callable[[Node], Any]) -> Any:
    if isinstance(argument, Node):
        return value(argument)
    if isinstance(argument, list | tuple):
        return [_filled(each, value) for each in argument]
    return argument
