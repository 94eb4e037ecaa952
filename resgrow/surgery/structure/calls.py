"""How a model's modules are called: how often, with what, and by which operations of its graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.fx import Node
from torch.utils._pytree import tree_leaves

from resgrow.surgery.forward import Example, outputs
from resgrow.surgery.structure.call import module_paths
from resgrow.surgery.structure.trace import Traced

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Calls:
    """Of modules by their paths."""

    _nodes: dict[str, set[Node]]
    _inputs: tuple[Node, ...]  # the model's own arguments
    _shapes: dict[str, tuple[Shape, Shape]]

    @classmethod
    def of(cls, model: nn.Module, graph: Traced, example: Example, op: str) -> Calls:
        nodes: dict[str, set[Node]] = {}
        for node in graph.nodes:
            for path in module_paths(node):
                nodes.setdefault(path, set()).add(node)
        return cls(nodes, graph.inputs, _plain_calls(model, example, op))

    def plain(self, path: str) -> bool:
        """Whether the module is called once, with one tensor and nothing else, and returns one tensor."""
        return path in self._shapes and path in self._nodes

    def keeps_shape(self, path: str) -> bool:
        before, after = self._shapes[path]
        return before == after

    def nodes(self, path: str) -> set[Node]:
        return self._nodes[path]

    def output(self, path: str) -> Node | None:
        """The operation inside whose result is used outside, if it is one."""
        return _only(node for node in self._nodes[path] if node.users.keys() - self._nodes[path])

    def input(self, path: str) -> Node | None:
        """What operations inside take from outside, if it is one; parameters, buffers and constants do not count."""
        inside = self._nodes[path]
        taken = (each for node in inside for each in node.all_input_nodes if each not in inside)
        return _only(each for each in taken if each.op != "placeholder" or each in self._inputs)


def _only(nodes: Iterable[Node]) -> Node | None:
    found = set(nodes)
    return found.pop() if len(found) == 1 else None


def _plain_calls(model: nn.Module, example: Example, op: str) -> dict[str, tuple[Shape, Shape]]:
    times: Counter[str] = Counter()
    shapes: dict[str, tuple[Shape, Shape]] = {}
    handles = []

    def watch(name: str, module: nn.Module) -> None:
        def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], made: Any) -> None:
            times[name] += 1
            given = [each for each in tree_leaves((args, kwargs)) if each is not None]
            if len(given) == 1 and isinstance(given[0], Tensor) and isinstance(made, Tensor):
                shapes[name] = tuple(given[0].shape), tuple(made.shape)

        handles.append(module.register_forward_hook(record, with_kwargs=True))

    for name, module in model.named_modules():
        watch(name, module)
    try:
        outputs(model, example, op)
    finally:
        for handle in handles:
            handle.remove()
    return {name: found for name, found in shapes.items() if times[name] == 1}
