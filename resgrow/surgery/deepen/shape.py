"""A block that changes the shape of its input, as the first of a stage does, made into one that does not."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import Node
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from resgrow.surgery.deepen.addition import copied
from resgrow.surgery.forward import Example
from resgrow.surgery.structure.call import by_name
from resgrow.surgery.structure.observe import Seen
from resgrow.surgery.structure.trace import Traced, traced


def shape_keeping(source: nn.Module, seen: Seen) -> list[nn.Module]:
    """Copies from the shape of the block's result to that shape; none where the block is of another kind.

    Its shortcut, whatever child of the block that is, becomes None in the first and the identity in the second, since
    not all blocks ask whether they have one. Strides become 1, and convolutions that read the block's input read as
    many channels as its result has. Values of the new weights are not set.
    """
    output = seen.output
    block = copied(source)
    if output is None or output.dim() < 3:
        return []
    try:
        with torch.enable_grad():
            graph = traced(copied(source).requires_grad_(), Example(seen.args, seen.kwargs), "deepen")
    except ValueError:
        return []
    start = next((node for node in graph.inputs if isinstance(node.meta.get("val"), Tensor)), None)
    shortcut = None if start is None else _shortcut(block, graph, start)
    if start is None or shortcut is None:
        return []
    parent, _, key = shortcut.rpartition(".")
    inside = f"{shortcut}."
    readers = {_module(node) for node in start.users}
    for path, module in list(block.named_modules()):
        if isinstance(module, _ConvNd) and not path.startswith(inside) and path != shortcut:
            if isinstance(module, _ConvTransposeNd) or (path in readers and module.groups != 1):
                return []
            _reshape(module, output.shape[1] if path in readers else module.in_channels)
    other = copied(block)
    block.get_submodule(parent)._modules[key] = None
    other.get_submodule(parent)._modules[key] = nn.Identity()
    return [block, other]


def _shortcut(block: nn.Module, graph: Traced, start: Node) -> str | None:
    """The child that alone leads from the input to one side of the addition nearest to the result.

    Where both sides are one child each, it is that with fewer parameters.
    """
    node = graph.outputs[0]
    while by_name({"add": True}, node.target) is None:
        if len(node.all_input_nodes) != 1:
            return None
        node = node.all_input_nodes[0]
    found: list[str] = []
    for side in node.all_input_nodes:
        between = _between(start, side)
        heads = {_module(each).partition(".")[0] for each in between}
        if len(heads) == 1 and "" not in heads:
            found += heads
    return min(found, key=lambda name: sum(p.numel() for p in block.get_submodule(name).parameters()), default=None)


def _between(start: Node, end: Node) -> set[Node]:
    """Operations that ``end`` is computed by."""
    between: set[Node] = set()
    waiting = [end]
    while waiting:
        node = waiting.pop()
        if node is not start and node.op == "call_function" and node not in between:
            between.add(node)
            waiting += node.all_input_nodes
    return between


def _module(node: Node) -> str:
    stack = node.meta.get("nn_module_stack") or {}
    return str(next(reversed(stack.values()), ("",))[0])


def _reshape(layer: Any, inputs: int) -> None:
    layer.stride = (1,) * len(layer.stride)
    if inputs != layer.in_channels:
        old = layer.weight
        new = torch.empty_like(old[:, :1]).expand(-1, inputs, *old.shape[2:]).clone(memory_format=torch.preserve_format)
        layer.weight = nn.Parameter(new, old.requires_grad)
        layer.in_channels = inputs
