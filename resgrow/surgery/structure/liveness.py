"""What operations of a model still do: which only pass something on, and which give constants."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.fx import Node

from resgrow.surgery.structure.call import shapes
from resgrow.surgery.structure.constant_rules import Known
from resgrow.surgery.structure.constants import constants
from resgrow.surgery.structure.trace import Traced

_NOT_NEGATIVE = frozenset(("relu", "relu6", "hardsigmoid", "sigmoid", "softmax", "exp", "abs"))
# Not negative where all inputs are.
_KEEP_SIGN = frozenset(
    name
    for names in (
        "max_pool1d max_pool2d max_pool3d avg_pool1d avg_pool2d avg_pool3d",
        "adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d mean sum add mul cat",
        "view reshape flatten permute transpose contiguous",
    )
    for name in names.split()
)
_SAME = frozenset(("dropout", "feature_dropout", "alpha_dropout", "clone", "contiguous", "alias", "detach"))


def operation(node: Node) -> str:
    """Its name without namespace; in place or not is the same. Empty for what is none."""
    schema = getattr(node.target, "_schema", None)
    return "" if schema is None else schema.name.partition("::")[2].rstrip("_")


@dataclass
class Liveness:
    """What is left of a graph's operations.

    Attributes:
        same: node -> the node whose value it has, where that is another.
        reads: node -> what it reads, each followed to where it comes from.
        shifts: additions of a constant that is not zero: node -> (the other operand, the constant).
        known: constant results, float64, with size 1 where nothing changes along a dimension.
    """

    same: dict[Node, Node] = field(default_factory=dict)
    reads: dict[Node, list[Node]] = field(default_factory=dict)
    shifts: dict[Node, tuple[Node, Tensor]] = field(default_factory=dict)
    known: dict[Node, Tensor] = field(default_factory=dict)

    def root(self, node: Node) -> Node:
        while node in self.same:
            node = self.same[node]
        return node


@torch.no_grad()
def liveness(model: nn.Module, graph: Traced) -> Liveness:
    found = Liveness()
    for node, value in constants(model, graph).items():
        if isinstance(value, Known) and bool(value.values.isfinite().all()):
            found.known[node] = value.values
    positive: set[Node] = set()
    for node in graph.nodes:
        if node.op == "call_function":
            _follow(node, found, positive)
    return found


def _follow(node: Node, found: Liveness, positive: set[Node]) -> None:
    reads = found.reads[node] = [found.root(each) for each in node.all_input_nodes]
    _pass_on(node, found, positive)
    name = operation(node)
    if name in _NOT_NEGATIVE or (name in _KEEP_SIGN and all(each in positive for each in reads)):
        positive.add(node)
    if reads and getattr(getattr(node.target, "_schema", None), "is_mutable", False):
        # Whoever reads later what this has written over reads its result.
        written, result = node.all_input_nodes[0], found.root(node)
        if found.root(written) is not result:
            found.same[found.root(written)] = result


def _pass_on(node: Node, found: Liveness, positive: set[Node]) -> None:
    """Note where a node only passes something on."""
    name = operation(node)
    inputs = [found.root(each) for each in node.args if isinstance(each, Node)]
    if (name in _SAME and inputs) or (name == "relu" and inputs[0] in positive):
        found.same[node] = inputs[0]
    elif name == "add" and len(inputs) == 2 and node.kwargs.get("alpha", 1) == 1:
        for one, other in (inputs, inputs[::-1]):
            if one in found.known and other not in found.known and shapes(other) == shapes(node):
                if bool((found.known[one] == 0).all()):
                    found.same[node] = other
                else:
                    found.shifts[node] = (other, found.known[one])
