"""A model as a graph of torch.fx, writes in place included."""

from __future__ import annotations

import copy
import operator
from typing import Any

from torch import nn
from torch.fx import Graph, GraphModule, Node, Proxy, Tracer

from resgrow.nn import BlockSparseConv2d, BlockSparseLinear, FusedConv2d, FusedLinear, PooledConv2d, TriStateReLU

_LEAVES = (BlockSparseConv2d, BlockSparseLinear, FusedConv2d, FusedLinear, PooledConv2d, TriStateReLU)
_OPERATORS = "add and floordiv lshift matmul mod mul or pow rshift sub truediv xor"


def trace(model: nn.Module, op: str, remedy: str) -> GraphModule:
    """A copy of ``model`` as a graph. ``op`` and ``remedy``: what an error is to say.

    Raises:
        ValueError: torch.fx cannot trace it.
    """
    tracer = _Tracer()
    root = copy.deepcopy(model)
    if tracer.is_leaf_module(root, ""):
        root = nn.Sequential(root).eval()
    try:
        graph: Graph = tracer.trace(root)
    except Exception as error:  # tracing runs the model's own code on stand-ins for tensors
        reason = str(error).strip().partition("\n")[0] or "no reason given"
        raise ValueError(
            f"{op}: torch.fx must be able to trace the model (got {type(error).__name__}: {reason}); {remedy}"
        ) from error
    return GraphModule(root, graph, f"Fused{type(model).__name__}").eval()  # containers are new, in training mode


def in_place(name: str, left: Any, right: Any) -> Any:
    """``left += right`` and the like, by the name in module ``operator``.

    Not the functions of that module themselves: for those torch.fx writes ``left += right`` into the graph's code,
    after which ``left`` is another number where it is no tensor.
    """
    return getattr(operator, name)(left, right)


class _Proxy(Proxy):
    """torch.fx's own takes ``y += x`` for ``y + x``, and who else sees ``y`` misses the change."""


def _written(name: str) -> Any:
    def method(self: _Proxy, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", in_place, (name, self, other), {})

    return method


for _name in _OPERATORS.split():
    setattr(_Proxy, f"__i{_name}__", _written(f"i{_name}"))


class _Tracer(Tracer):
    """Stops at the layers of this package as at those of torch."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, _LEAVES) or super().is_leaf_module(m, module_qualified_name)

    def proxy(self, node: Node) -> Proxy:
        return _Proxy(node, self)
