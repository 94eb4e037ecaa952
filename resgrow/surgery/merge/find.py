"""Which layers follow each other with nothing between them but what is linear, read off a graph of torch.fx."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node

from resgrow.nn import TriStateReLU
from resgrow.surgery.fuse.chain import Finder

LAYERS = (nn.Conv2d, nn.Linear)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


@dataclass(frozen=True)
class Pair:
    """A layer, the next one, and what lies between, in order; nodes of the graph.

    ``why``: None, or why the two cannot be merged.
    """

    first: Node
    second: Node
    between: tuple[Node, ...]
    why: str | None = None


class Pairs:
    """Finds pairs of layers in a graph whose nodes know the shapes of their tensors."""

    def __init__(self, traced: GraphModule) -> None:
        self._finder = Finder(traced)
        self._graph = traced.graph

    def module(self, node: Node) -> Any:
        return self._finder.module(node)

    def all(self) -> list[Pair]:
        """Those with a gate or nothing but linear steps between them, in order of execution."""
        found = (self._from(node) for node in self._graph.nodes if type(self.module(node)) in LAYERS)
        return [pair for pair in found if pair is not None]

    def _from(self, first: Node) -> Pair | None:
        between: list[Node] = []
        why = None if self._finder.alone(first, self.module(first)) else "the first is used more than once"
        last = first
        while True:
            users = list(last.users)
            if len(users) != 1:
                return None if not between else self._told(first, last, between, users)
            node = users[0]
            module = self.module(node)
            if type(module) in LAYERS:
                if not self._finder.alone(node, module):
                    why = why or "the second is used more than once"
                return Pair(first, node, tuple(between), why)
            problem = self._step(node, module)
            if problem == "":
                return None
            why = why or problem
            between.append(node)
            last = node

    def _told(self, first: Node, last: Node, between: list[Node], users: list[Node]) -> Pair | None:
        """A gate whose output goes several ways: worth a word where it is open."""
        gates = [self.module(node) for node in between if type(self.module(node)) is TriStateReLU]
        if not users or not any(bool(gate.d >= 0.5) for gate in gates):
            return None
        return Pair(first, last, tuple(between), f"what it makes is read in {len(users)} places")

    def _step(self, node: Node, module: Any) -> str | None:
        """None where a step is linear in evaluation mode and exactly known, "" where it is something else."""
        if type(module) is TriStateReLU:
            return None if bool(module.d >= 0.5) else "its depth gate is closed: between them lies a ReLU"
        if type(module) is nn.Identity or _flattens(node, module):
            return None
        if type(module) in _NORMS:
            return None if module.running_mean is not None else "the norm between them has no running statistics"
        if type(module) is nn.Dropout:
            return "between them lies a dropout, which training needs"
        return ""


def _flattens(node: Node, module: Any) -> bool:
    """Everything but the batch."""
    if type(module) is nn.Flatten:
        return bool(module.start_dim == 1 and module.end_dim == -1)
    is_call = node.target is torch.flatten or (node.op == "call_method" and node.target == "flatten")
    return is_call and tuple(node.args[1:]) == (1,) and not node.kwargs


def shape_of(node: Node) -> tuple[int, ...]:
    """Of the tensor that a node makes."""
    return tuple(node.meta["tensor_meta"].shape)
