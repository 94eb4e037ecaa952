"""Channels that carry the same number whatever the input: where they start, and what weights read of them.

A channel whose producer has only zeros left gives its bias at every position; a norm without gain or a closed gate
gives a constant, too. Such numbers are followed through the model's operations, in evaluation mode, to the inputs of
weights.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node

from resgrow.surgery.structure.call import described_call, shapes
from resgrow.surgery.structure.constant_rules import Known, Reading, find_rule
from resgrow.surgery.structure.trace import Traced


@dataclass(frozen=True)
class Read:
    """What a weight reads: float64 ``(I,)``, NaN where it changes.

    ``uniform``: a constant adds the same to every output, so that a bias can take it over. With zero padding the border
    sees less of it than the middle does. ``bias``: name of the layer's bias, if it has one.
    """

    value: Tensor
    uniform: bool
    bias: str | None


@torch.no_grad()
def constant_inputs(model: nn.Module, graph: Traced) -> dict[str, Read]:
    """By the name of the weight, for convolutions and linear layers; what several calls of one do not share is NaN."""
    walk = _Walk(model, graph)
    walk.run()
    return walk.reads


@torch.no_grad()
def constants(model: nn.Module, graph: Traced) -> dict[Node, Any]:
    """What is known of each operation's result when it has been made, before anything writes over it.

    Scales that are zero do not count here, gains of norms and parameters that multiply activations: new residual blocks
    start with them, and learn.
    """
    walk = _Walk(model, graph, scales=False)
    walk.run()
    return walk.made


class _Walk:
    def __init__(self, model: nn.Module, graph: Traced, scales: bool = True) -> None:
        tensors: dict[str, Tensor] = dict(model.named_buffers(remove_duplicate=False))
        tensors.update(model.named_parameters(remove_duplicate=False))
        self.graph = graph
        self.scales = scales
        self.values: dict[Node, Any] = {}
        self.made: dict[Node, Any] = {}
        self.reads: dict[str, Read] = {}
        for node in graph.nodes:
            if node.op == "placeholder" and node.name in graph.stored:
                tensor = tensors[graph.stored[node.name]].detach().cpu()
                self.values[node] = Known(
                    tuple(tensor.shape), tensor.double() if tensor.is_floating_point() else tensor
                )

    def run(self) -> None:
        for node in self.graph.nodes:
            if node.op == "call_function":
                self.values[node] = self.made[node] = self._call(node)

    def _value(self, node: Node) -> Any:
        return self.values[node] if node in self.values else _nothing(node)

    def _call(self, node: Node) -> Any:
        if node.target is operator.getitem:
            source, number = node.args
            assert isinstance(source, Node)
            return self._value(source)[number]
        scaled = any(each.name in self.graph.stored for each in node.all_input_nodes)
        rule = find_rule(node.target, zero_scales=self.scales or not scaled)
        if rule is None or not all(_floating(each) for each in node.all_input_nodes):
            return _nothing(node)
        result = rule(described_call(node, self._value))
        if isinstance(result, Reading):
            self._record(node, result)
            result = result.out
        if getattr(node.target, "_schema").is_mutable:  # noqa: B009
            self.values[node.all_input_nodes[0]] = result  # what it has written over
        return result

    def _record(self, node: Node, found: Reading) -> None:
        names = [self.graph.stored.get(each.name) if isinstance(each, Node) else None for each in node.args[1:3]]
        name, bias = (*names, None, None)[:2]
        if name is None:
            return
        known, value = self.reads.get(name), found.value
        if known is not None:
            value = torch.where(known.value == value, value, torch.nan)
        self.reads[name] = Read(value, found.uniform and (known is None or known.uniform), bias)


def _floating(node: Node) -> bool:
    value = node.meta.get("val")
    return not isinstance(value, Tensor) or value.is_floating_point()


def _nothing(node: Node) -> Any:
    unknown = [Known(shape, torch.full([1] * len(shape), torch.nan, dtype=torch.float64)) for shape in shapes(node)]
    several = isinstance(node.meta.get("val"), list | tuple)
    return unknown if several else unknown[0] if unknown else None
