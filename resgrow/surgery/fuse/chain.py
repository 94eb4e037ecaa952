"""What may be fused: a layer, the norm behind it, an addition and an activation, read off a graph of torch.fx.

A step joins the chain where nothing else sees what it takes in, so that leaving that number out changes nothing. Steps
that write in place count as others do, as long as they write to what the chain itself has made.
"""

from __future__ import annotations

import operator
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node
from torch.nn import functional as F

from resgrow.nn import BlockSparseConv2d, BlockSparseLinear, TriStateReLU
from resgrow.surgery.fuse.trace import in_place

# A layer and the norm that can be folded into it. Exact types: subclasses may behave otherwise.
NORMS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv2d: nn.BatchNorm2d,
    BlockSparseConv2d: nn.BatchNorm2d,
    BlockSparseLinear: nn.BatchNorm1d,
}
# Those that also add and apply an activation.
SPARSE = (BlockSparseConv2d, BlockSparseLinear)
_ADDITIONS: dict[str, tuple[Any, ...]] = {
    "call_function": (operator.add, torch.add),
    "call_method": ("add",),
}
# These write to their first operand.
_ADDITIONS_IN_PLACE: dict[str, tuple[Any, ...]] = {"call_function": (operator.iadd, in_place), "call_method": ("add_",)}
_RELUS: dict[str, tuple[Any, ...]] = {
    "call_function": (F.relu, F.relu_, torch.relu, torch.relu_),
    "call_method": ("relu", "relu_"),
}
# Packages whose functions say by their name or options that they write; of others nothing is known.
_KNOWN_HOMES = ("torch", "_operator", "math", "builtins")


@dataclass(frozen=True)
class Chain:
    """``activation(norm(layer(x)) + residual)``: nodes of a graph; only ``layer`` is there always."""

    layer: Node
    norm: Node | None
    addition: Node | None
    residual: Node | None
    activation: Node | None

    @property
    def in_place(self) -> bool:
        """Whether the addition keeps the dtype of what it writes to."""
        return self.addition is not None and _adds_in_place(self.addition)

    def steps(self) -> list[Node]:
        """In order of execution."""
        found = (self.layer, self.norm, self.addition, self.activation)
        return [node for node in found if node is not None]


class Finder:
    """Finds chains in ``graph_module``, which may change between calls."""

    def __init__(self, graph_module: GraphModule) -> None:
        self._modules = dict(graph_module.named_modules())
        self._calls = Counter(node.target for node in graph_module.graph.nodes if node.op == "call_module")
        self._owners = Counter(id(p) for m in self._modules.values() for p in m._parameters.values() if p is not None)
        self._read = {str(node.target) for node in graph_module.graph.nodes if node.op == "get_attr"}

    def chain(self, node: Node) -> Chain | None:
        """The longest chain that begins at ``node``, or None where there is nothing to fuse."""
        layer = self.module(node)
        if layer is None or type(layer) not in NORMS or not self.alone(node, layer):
            return None
        norm = self._follower(node, lambda user: self._is_norm(user, layer))
        last = norm or node
        addition = residual = activation = None
        if isinstance(layer, SPARSE):
            addition = self._follower(last, lambda user: _residual(user, last) is not None)
            if addition is not None and not any(map(self._writes, _between(node, addition))):
                residual = _residual(addition, last)
                last = addition
            else:
                addition = None
            activation = self._follower(last, lambda user: self._is_activation(user, layer))
        chain = Chain(node, norm, addition, residual, activation)
        return chain if len(chain.steps()) > 1 else None

    def module(self, node: Node) -> nn.Module | None:
        """The module a node calls on one tensor, unless hooks or a replaced forward do something else."""
        if node.op != "call_module" or len(node.args) != 1 or node.kwargs or not isinstance(node.args[0], Node):
            return None
        module = self._modules[str(node.target)]
        hooks = (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks)
        return None if any(hooks) or "forward" in vars(module) else module

    def calls(self, node: Node) -> int:
        """How often the module that a node calls is called."""
        return self._calls[node.target]

    def alone(self, node: Node, layer: nn.Module) -> bool:
        """Whether this call is the only use of the layer's parameters."""
        own = [p for p in layer._parameters.values() if p is not None]
        read = any(name.startswith(f"{node.target}.") for name in self._read)
        return self.calls(node) == 1 and all(self._owners[id(p)] == 1 for p in own) and not read

    def _follower(self, node: Node, accepts: Callable[[Node], bool]) -> Node | None:
        """The only user of ``node``, if it is acceptable."""
        users = list(node.users)
        return users[0] if len(users) == 1 and accepts(users[0]) else None

    def _is_norm(self, node: Node, layer: nn.Module) -> bool:
        norm = self.module(node)
        if norm is None or type(norm) is not NORMS[type(layer)] or norm.training or norm.running_mean is None:
            return False
        weight = layer.weight if isinstance(layer, nn.Conv2d) else layer.values
        return bool(norm.num_features == _outputs(layer) and norm.running_mean.dtype == weight.dtype)

    def _is_activation(self, node: Node, layer: nn.Module) -> bool:
        module = self.module(node)
        if type(module) is TriStateReLU:
            return module.num_channels == _outputs(layer)
        return is_relu(node, module)

    def _writes(self, node: Node) -> bool:
        """Whether a node may change a tensor that others hold."""
        if node.op == "call_module":
            return bool(getattr(self._modules[str(node.target)], "inplace", False))
        if node.op == "call_method":
            return str(node.target).endswith("_")
        if node.op != "call_function":
            return False
        name, home = getattr(node.target, "__name__", ""), getattr(node.target, "__module__", None) or "torch"
        # operator: iadd, imul and the like; a few harmless ones share the initial.
        in_place = name.endswith("_") or (home == "_operator" and name.startswith(("i", "set", "del")))
        options = bool(node.kwargs.get("inplace")) or "out" in node.kwargs
        return in_place or options or home.partition(".")[0] not in _KNOWN_HOMES


def is_relu(node: Node, module: nn.Module | None) -> bool:
    """``module``: what the node calls, if it calls one."""
    return type(module) is nn.ReLU or node.target in _RELUS.get(node.op, ())


def adds(node: Node) -> bool:
    """Whether a node is the sum of two others, and a new tensor."""
    return len(node.all_input_nodes) == 2 and node.target in _ADDITIONS.get(node.op, ()) and not node.kwargs


def _outputs(layer: Any) -> int:
    return int(layer.out_channels if isinstance(layer, nn.Conv2d) else layer.shape[0])


def _residual(node: Node, product: Node) -> Node | None:
    """What ``node`` adds to ``product``, if that is all it does."""
    operands = _operands(node)
    if len(operands) != 2 or node.kwargs or operands[0] is operands[1]:
        return None
    first, second = operands
    if not isinstance(first, Node) or not isinstance(second, Node):
        return None
    if first is product:
        return second
    return None if _adds_in_place(node) else first


def _operands(node: Node) -> tuple[Any, ...]:
    """Of an addition; none for other nodes."""
    if node.target is in_place:
        return node.args[1:] if node.args[0] == "iadd" else ()
    known = node.target in _ADDITIONS.get(node.op, ()) or _adds_in_place(node)
    return node.args if known else ()


def _adds_in_place(node: Node) -> bool:
    return node.target in _ADDITIONS_IN_PLACE.get(node.op, ())


def _between(first: Node, last: Node) -> list[Node]:
    """The nodes after ``first`` and before ``last``, in order of execution."""
    nodes = []
    node = first.next
    while node is not last:
        nodes.append(node)
        node = node.next
    return nodes
