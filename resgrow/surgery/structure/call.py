"""A node of the graph as rules see it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from resgrow.surgery.structure.values import Value


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
