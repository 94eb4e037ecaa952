"""``swap_activations``: gates in the place of a model's ReLUs."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.passes.shape_prop import ShapeProp
from torch.nn import functional as F

from resgrow._modes import eval_mode
from resgrow.nn import TriStateReLU
from resgrow.nn.tristate_relu import LEARN
from resgrow.surgery.forward import Inputs, as_inputs, evaluate
from resgrow.surgery.fuse.chain import Finder, adds, is_relu
from resgrow.surgery.fuse.trace import in_place, trace
from resgrow.surgery.merge.find import LAYERS, shape_of

# Steps after which channel c is still channel c.
_KEEPING = (
    nn.ReLU,
    nn.Identity,
    nn.Dropout,
    nn.Dropout1d,
    nn.Dropout2d,
    nn.BatchNorm1d,
    nn.BatchNorm2d,
    nn.MaxPool2d,
    nn.AvgPool2d,
    nn.AdaptiveAvgPool2d,
    nn.AdaptiveMaxPool2d,
    TriStateReLU,
)
_KEEPING_CALLS = (F.relu, F.relu_, torch.relu, torch.relu_, F.dropout, F.max_pool2d, F.avg_pool2d)
# Steps between two layers that leave them mergeable once the gate is open.
_LINEAR = (nn.Identity, nn.BatchNorm1d, nn.BatchNorm2d, nn.Flatten)


@torch.no_grad()
def swap_activations(
    model: nn.Module,
    example_inputs: Inputs,
    *,
    learn: str | Mapping[str, str] = "both",
    w: float | None = None,
    d: float | None = None,
) -> nn.Module:
    """A copy of the model with `TriStateReLU` in the place of its ReLUs, computing the same as before.

    Replaced are ``nn.ReLU`` modules and the functions and methods ``relu`` and ``relu_`` on tensors ``(N, C, *)``; each
    call gets gates of its own. Rules:

    * a depth gate is learnt only where opening it could make two layers one: between two Conv2d or Linear layers with
      nothing but norms and flattening beside it. So never before or after max-pooling, nor where the output is read
      twice, nor before a padded convolution (unless a 1x1 one without bias and norm comes first), which
      `merge_linear` would have to refuse;
    * width gates are shared by all activations of one residual stream, since its channels exist in all of them or in
      none.

    Where every ReLU is a module that is called once the copy is of the model's own class, else a
    ``torch.fx.GraphModule`` (whose branches are those that ``example_inputs`` and the present mode take).

    Args:
        model: one that ``torch.fx`` can trace; it is left alone.
        example_inputs: a tensor or the sequence of the model's arguments.
        learn: as for `TriStateReLU`, for all or by the name of the activation: that of the module, or of the node in
            the graph for functions (``relu``, ``relu_1``, ...). The rules above still hold; "neither" leaves a ReLU.
        w, d: initial gates, as for `TriStateReLU`.

    Raises:
        ValueError: ``torch.fx`` cannot trace the model, it does not run on example_inputs, it has no ReLU that could be
            gated, or ``learn`` has other words or unknown names.
        TypeError: example_inputs are not tensors, or the model does not return one.
        RuntimeError: the copy computes something else: the forward pass does more than tracing shows.
    """
    inputs = as_inputs(example_inputs, "swap_activations")
    expected = evaluate(model, inputs, "swap_activations")
    traced = trace(model, "swap_activations", "put TriStateReLU layers in by hand")
    traced.train(model.training)
    for name, module in model.named_modules():
        if name in dict(traced.named_modules()):
            traced.get_submodule(name).training = module.training
    with eval_mode(traced):
        ShapeProp(traced).propagate(*inputs)
    found = _found(traced, learn)
    if not found:
        raise ValueError(
            "swap_activations: the model must have ReLUs of tensors (N, C, *) (got none that could be gated); put "
            "TriStateReLU layers in by hand"
        )
    gates = _gates(found, w, d, next(model.parameters(), torch.empty(0)))
    gated = _in_modules(model, found, gates) or _in_graph(traced, found, gates)
    if not torch.allclose(evaluate(gated, inputs, "swap_activations"), expected, rtol=1e-4, atol=1e-5, equal_nan=True):
        raise RuntimeError(
            "swap_activations: the gated model must compute the same as before (got other outputs); gates start "
            "closed, or the model does more in its forward pass than tracing shows"
        )
    return gated


@dataclass(frozen=True)
class _Found:
    """One call of a ReLU."""

    node: Node
    name: str
    module: str | None  # the ReLU's name where it is a module called once
    channels: int
    learn: str
    stream: int | None  # which residual stream its output belongs to


def _found(traced: GraphModule, learn: str | Mapping[str, str]) -> list[_Found]:
    finder = Finder(traced)
    classes = _channel_classes(traced, finder)
    streams = {classes[node] for node in traced.graph.nodes if _is_sum(node) and node in classes}
    result = []
    for node in traced.graph.nodes:
        if not is_relu(node, finder.module(node)) or len(shape_of(node)) < 2 or _seen_changed(node, finder):
            continue
        module = str(node.target) if node.op == "call_module" else None
        name = module or node.name
        stream = classes[node] if classes.get(node) in streams else None
        allowed = (True, stream is None and _mergeable(node, finder))
        wanted = LEARN[_word(learn, name)]
        word = next(
            w for w, both in LEARN.items() if both == tuple(a and b for a, b in zip(allowed, wanted, strict=True))
        )
        if word != "neither":
            once = module is not None and finder.calls(node) == 1
            result.append(_Found(node, name, module if once else None, shape_of(node)[1], word, stream))
    if isinstance(learn, Mapping) and (unknown := set(learn) - {f.name for f in result} - _names(traced, finder)):
        raise ValueError(
            f"swap_activations: learn must name activations (got {sorted(unknown)}); see the model's graph"
        )
    return result


def _names(traced: GraphModule, finder: Finder) -> set[str]:
    relus = [node for node in traced.graph.nodes if is_relu(node, finder.module(node))]
    return {str(node.target) if node.op == "call_module" else node.name for node in relus}


def _word(learn: str | Mapping[str, str], name: str) -> str:
    word = learn if isinstance(learn, str) else learn.get(name, "both")
    if word not in LEARN:
        raise ValueError(f"swap_activations: learn must be one of {', '.join(LEARN)} (got {word!r})")
    return word


def _seen_changed(node: Node, finder: Finder) -> bool:
    """Whether others see that the activation wrote over its input."""
    written = str(node.target).endswith("_") or getattr(node.target, "__name__", "").endswith("_")
    written = written or bool(node.kwargs.get("inplace")) or (len(node.args) > 1 and bool(node.args[1]))
    module = finder.module(node)
    written = written or bool(getattr(module, "inplace", False))
    return written and len(node.all_input_nodes[0].users) > 1


def _mergeable(node: Node, finder: Finder) -> bool:
    """Whether a layer lies on either side, with linear steps between that nothing else reads, and both could be one."""
    steps = []
    before: Node | None = node.all_input_nodes[0]
    while before is not None and type(finder.module(before)) in _LINEAR:
        steps.append(finder.module(before))
        before = before.all_input_nodes[0] if len(before.users) == 1 else None
    if before is None or type(finder.module(before)) not in LAYERS or len(before.users) != 1:
        return False
    after = node
    while len(after.users) == 1:
        after = next(iter(after.users))
        if type(finder.module(after)) in LAYERS:
            return _exact(finder.module(before), steps, finder.module(after))
        flattens = after.target in (torch.flatten, "flatten")
        if type(finder.module(after)) not in _LINEAR and not flattens:
            return False
        steps.append(finder.module(after))
    return False


def _exact(first: Any, steps: list[Any], second: Any) -> bool:
    """Whether `merge_linear` could merge them: behind a padded convolution's border lies what no kernel can hold."""
    convolutions = [layer for layer in (first, second) if isinstance(layer, nn.Conv2d)]
    if any(layer.padding_mode != "zeros" or isinstance(layer.padding, str) for layer in convolutions):
        return False
    if len(convolutions) < 2 or second.padding == (0, 0):
        return True
    shifted = first.bias is not None or any(isinstance(step, nn.BatchNorm2d) for step in steps)
    return first.kernel_size == (1, 1) and not shifted


def _is_sum(node: Node) -> bool:
    return adds(node) or (node.target is in_place and node.args[0] == "iadd" and len(node.all_input_nodes) == 2)


def _channel_classes(traced: GraphModule, finder: Finder) -> dict[Node, int]:
    """Numbers that are equal where channels are coupled: nodes through which channel c stays channel c."""
    parent: dict[Node, Node] = {}

    def root(node: Node) -> Node:
        while parent.setdefault(node, node) is not node:
            node = parent[node]
        return node

    for node in traced.graph.nodes:
        if not isinstance(getattr(node.meta.get("tensor_meta"), "shape", None), torch.Size):
            continue
        root(node)
        for source in node.all_input_nodes if _keeps(node, finder) else ():
            same = "tensor_meta" in source.meta and shape_of(source)[1:2] == shape_of(node)[1:2]
            if same:
                parent[root(source)] = root(node)
    numbers: dict[Node, int] = {}
    return {node: numbers.setdefault(root(node), len(numbers)) for node in list(parent)}


def _keeps(node: Node, finder: Finder) -> bool:
    module: Any = finder.module(node)
    if type(module) is nn.Conv2d:
        return module.groups == module.in_channels == module.out_channels > 1
    if type(module) in _KEEPING or _is_sum(node):
        return True
    return node.target in _KEEPING_CALLS or (node.op == "call_method" and node.target in ("relu", "relu_"))


def _gates(found: list[_Found], w: float | None, d: float | None, like: Tensor) -> list[TriStateReLU]:
    shared: dict[int, nn.Parameter] = {}
    gates = []
    for site in found:
        gate = TriStateReLU(site.channels, w, d if site.learn in ("both", "depth") else None, learn=site.learn)
        gate.to(like.device)
        if site.stream is not None:
            gate.w = shared.setdefault(site.stream, gate.w)
        gates.append(gate)
    return gates


def _in_modules(model: nn.Module, found: list[_Found], gates: list[TriStateReLU]) -> nn.Module | None:
    """A copy of the model's own class, where every activation has a module to itself."""
    names = Counter(site.module for site in found)
    if None in names or max(names.values()) > 1 or any(_aliased(model, str(name)) for name in names):
        return None
    result = copy.deepcopy(model)
    for site, gate in zip(found, gates, strict=True):
        path, _, last = str(site.module).rpartition(".")
        old = result.get_submodule(str(site.module))
        setattr(result.get_submodule(path), last, gate.train(old.training))
    return result


def _aliased(model: nn.Module, name: str) -> bool:
    """Whether a module stands in several places."""
    module = model.get_submodule(name)
    return sum(other is module for _, other in model.named_modules(remove_duplicate=False)) > 1


def _in_graph(traced: GraphModule, found: list[_Found], gates: list[TriStateReLU]) -> nn.Module:
    for site, gate in zip(found, gates, strict=True):
        name = f"{site.node.name}_gate"
        traced.add_submodule(name, gate.train(traced.training))
        with traced.graph.inserting_after(site.node):
            node = traced.graph.call_module(name, (site.node.all_input_nodes[0],))
        site.node.replace_all_uses_with(node)
        traced.graph.erase_node(site.node)
    traced.graph.lint()
    traced.delete_all_unused_submodules()
    traced.recompile()
    return traced
