"""Modules whose results are residual branches: what scales one scales the branch, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import Tensor
from torch.fx import Node

from resgrow.surgery.structure.call import module_paths
from resgrow.surgery.structure.calls import Calls
from resgrow.surgery.structure.liveness import operation
from resgrow.surgery.structure.needed import MOVES
from resgrow.surgery.structure.residuals import ResidualBranch
from resgrow.surgery.structure.trace import Traced


def ends(graph: Traced, branches: Sequence[ResidualBranch], calls: Calls) -> dict[str, str | None]:
    """By the branch's path the module that returns it, as it is added or a fixed multiple of it; None where there is
    none that is called once and returns a tensor."""
    fixed = set(graph.nodes)
    live = set(graph.inputs)
    for node in graph.nodes:
        if any(each in live for each in node.all_input_nodes):
            live.add(node)
    fixed -= live
    return {each.path: next(_modules(each, calls, fixed), None) for each in branches}


def _modules(branch: ResidualBranch, calls: Calls, fixed: set[Node]) -> Iterator[str]:
    around = set(module_paths(branch.addition))
    node: Node | None = branch.result
    while node is not None and len(node.users) == 1:
        for path in module_paths(node):
            if path not in around and calls.returns_tensor(path) and calls.output(path) is node:
                yield path
        node = _multiple_of(node, fixed)


def _multiple_of(node: Node, fixed: set[Node]) -> Node | None:
    """What a value is a multiple of, by numbers that do not depend on the model's input."""
    name, inputs = operation(node), [each for each in node.all_input_nodes if each not in fixed]
    scaled = name == "mul" or (name == "div" and node.args[0] in inputs and node.kwargs.get("rounding_mode") is None)
    if len(inputs) != 1 or not (name in MOVES or name == "neg" or scaled):
        return None
    return inputs[0] if isinstance(inputs[0].meta.get("val"), Tensor) and inputs[0].op != "placeholder" else None
