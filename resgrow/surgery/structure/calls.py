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
class Call:
    """Shapes of the first tensor that went in and of the first that came out, if any; ``count``: how many arguments
    there were other than None; ``results``: how many things the module returns in a tuple, 0 for anything else."""

    before: Shape | None
    after: Shape | None
    count: int
    results: int


@dataclass(frozen=True)
class Calls:
    """Of modules by their paths."""

    _nodes: dict[str, set[Node]]
    _inputs: tuple[Node, ...]  # the model's own arguments
    _single: dict[str, Call]  # modules that are called once

    @classmethod
    def of(cls, model: nn.Module, graph: Traced, example: Example, op: str) -> Calls:
        nodes: dict[str, set[Node]] = {}
        for node in graph.nodes:
            for path in module_paths(node):
                nodes.setdefault(path, set()).add(node)
        return cls(nodes, graph.inputs, _single_calls(model, example, op))

    def plain(self, path: str) -> bool:
        """Whether the module is called once, with one tensor and nothing else, and returns one tensor."""
        return self.returns_tensor(path) and self._single[path].before is not None and self._single[path].count == 1

    def returns_tensor(self, path: str) -> bool:
        """Whether the module is called once and returns one tensor."""
        call = self._single.get(path)
        return call is not None and path in self._nodes and call.after is not None and not call.results

    def only(self, path: str) -> Call | None:
        """Of a module that is called once."""
        return self._single.get(path) if path in self._nodes else None

    def keeps_shape(self, path: str) -> bool:
        call = self._single[path]
        return call.before == call.after

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


def _single_calls(model: nn.Module, example: Example, op: str) -> dict[str, Call]:
    times: Counter[str] = Counter()
    found: dict[str, Call] = {}
    handles = []

    def watch(name: str, module: nn.Module) -> None:
        def record(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], made: Any) -> None:
            times[name] += 1
            given = [each for each in tree_leaves((args, kwargs)) if each is not None]
            first = next((each for each in given if isinstance(each, Tensor)), None)
            results = len(made) if isinstance(made, tuple) else 0
            out = made[0] if results else made
            found[name] = Call(_shape(first), _shape(out), len(given), results)

        handles.append(module.register_forward_hook(record, with_kwargs=True))

    for name, module in model.named_modules():
        watch(name, module)
    try:
        outputs(model, example, op)
    finally:
        for handle in handles:
            handle.remove()
    return {name: call for name, call in found.items() if times[name] == 1}


def _shape(value: Any) -> Shape | None:
    return tuple(value.shape) if isinstance(value, Tensor) else None
