"""Residual branches of a block: which parameters have to be zero for the block to be the identity.

A block's operations are followed back from its result. Where two of the block's own values are added and one of them
leads straight to the block's input, the other is the end of a branch; its last parameters make it zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node
from torch.fx.node import map_arg

from resgrow.surgery.structure.call import described_call
from resgrow.surgery.structure.trace import Traced

# Arguments, by the schema's names, that are zero where the result is to be zero: what multiplies, what is added.
_LAST: dict[str, tuple[str, str | None]] = {
    **{f"conv{n}d": ("weight", "bias") for n in (1, 2, 3)},
    **{f"conv_transpose{n}d": ("weight", "bias") for n in (1, 2)},
    "conv_transpose3d": ("weight", "bias"),
    "linear": ("weight", "bias"),
    "addmm": ("mat2", "self"),
    "mm": ("mat2", None),
    "matmul": ("other", None),
    "batch_norm": ("weight", "bias"),
    "instance_norm": ("weight", "bias"),
    "layer_norm": ("weight", "bias"),
    "group_norm": ("weight", "bias"),
    "rms_norm": ("weight", None),
}  # fmt: skip
_SUMS = ("add", "sub", "cat", "stack")


@dataclass
class Branches:
    """Of one block.

    Attributes:
        last: names of the block's parameters which, zero, make every branch zero.
        after: operations between the block's input and its result other than the additions, the last one first.
        dead_ends: operations at which a branch ends whose result no parameters before can bring to zero and learn.
    """

    last: list[str] = field(default_factory=list)
    after: list[str] = field(default_factory=list)
    dead_ends: list[str] = field(default_factory=list)


def residual_branches(graph: Traced, parameters: Sequence[str]) -> Branches:
    """Of a block that adds to its first input; ``last`` is empty for another."""
    walk = _Walk(graph, parameters)
    found = walk.stream(graph.outputs[0]) if graph.outputs else None
    last, after = found or ([], [])
    return Branches(list(dict.fromkeys(last)), after, list(dict.fromkeys(walk.dead_ends)))


def last_parameters(graph: Traced, parameters: Sequence[str]) -> Branches:
    """Those which, zero, make the block's first result zero; ``last`` is empty where there are none."""
    walk = _Walk(graph, parameters)
    last = walk.end(graph.outputs[0]) if graph.outputs else None
    return Branches(list(dict.fromkeys(last or [])), [], list(dict.fromkeys(walk.dead_ends)))


def zeroed_by(graph: Traced, parameters: Sequence[str]) -> Callable[[Node], tuple[str, ...]]:
    """For any value of a model: which parameters, zero, make it zero, whether they would learn then or not; () where
    there are none."""
    walk = _Walk(graph, parameters, learning=False)
    return lambda node: tuple(dict.fromkeys(walk.end(node) or ()))


class _Walk:
    def __init__(self, graph: Traced, parameters: Sequence[str], learning: bool = True) -> None:
        self.learning = learning
        self.names = {key: name for key, name in graph.stored.items() if name in set(parameters)}
        self.source = next((node for node in graph.inputs if isinstance(node.meta.get("val"), Tensor)), None)
        self.live = set(graph.inputs)
        for node in graph.nodes:
            if any(each in self.live for each in node.all_input_nodes):
                self.live.add(node)
        self.dead_ends: list[str] = []

    def stream(self, node: Node) -> tuple[list[str], list[str]] | None:
        """The parameters at the ends of all branches between the input and here, and the operations other than adds."""
        if node is self.source:
            return [], []
        live = [each for each in node.all_input_nodes if each in self.live]
        if _name(node) == "add" and len(live) == 2:
            for stream, branch in (live, live[::-1]):
                before = self.stream(stream)
                last = None if before is None else self.end(branch)
                if before is not None and last is not None:
                    return before[0] + last, before[1]
            return None
        if len(live) != 1 or (_name(node) in _LAST and not _name(node).endswith("norm")):
            return None
        before = self.stream(live[0])
        return before and (before[0], [_name(node), *before[1]])

    def end(self, node: Node) -> list[str] | None:
        """Parameters which, zero, make this zero and have a gradient then; None where there are none."""
        if node.op == "placeholder":
            return [self.names[node.name]] if node.name in self.names else None
        name, inputs = _name(node), node.all_input_nodes
        found: list[str] | None = None
        if name in _LAST:
            found = self._layer(node)
        elif name in _SUMS and len(inputs) > 1:
            parts = [self.end(each) for each in inputs]
            found = None if None in parts else [each for part in parts for each in part or ()]
        elif name == "mul" and len(inputs) == 2:
            # A parameter that scales comes before what it scales.
            found = next(filter(None, (self.end(each) for each in sorted(inputs, key=self.live.__contains__))), None)
        elif name == "getitem" or (len(inputs) == 1 and _keeps_zero(node, self.learning)):
            found = self.end(inputs[0])
        if found is None:
            self.dead_ends.append(name)
        return found

    def _layer(self, node: Node) -> list[str] | None:
        arguments = described_call(node, lambda each: each).arguments
        weight, bias = (arguments.get(key) if key else None for key in _LAST[_name(node)])
        parts = [self.end(each) if each not in self.live else None for each in (weight, bias) if isinstance(each, Node)]
        if not isinstance(weight, Node) or None in parts:
            return None
        return [each for part in parts for each in part or ()]


def _name(node: Node) -> str:
    schema = getattr(node.target, "_schema", None)
    name = schema.name.partition("::")[2] if schema else getattr(node.target, "__name__", str(node.target))
    return str(name).removesuffix("_")


def _keeps_zero(node: Node, learning: bool) -> bool:
    """Whether an operation sends zeros to zeros; if asked for, with a gradient there. ReLU has none at zero."""
    value = node.all_input_nodes[0].meta.get("val")
    target: Any = node.target
    if not isinstance(value, Tensor) or not value.is_floating_point():
        return False
    with torch.enable_grad():
        zeros = torch.zeros(value.shape, dtype=value.dtype, requires_grad=True)
        changed = zeros.clone()  # for operations in place
        try:
            result = target(*map_arg(node.args, lambda each: changed), **map_arg(node.kwargs, lambda each: changed))
            results = [result] if isinstance(result, Tensor) else list(result)
            if any(bool(each.any()) for each in results):
                return False
            if not learning:
                return True
            (grad,) = torch.autograd.grad([each.sum() for each in results], zeros)
        except (RuntimeError, TypeError, NotImplementedError):
            return False
    return bool(grad.any())
