"""``fuse``: traces a copy of the model and rewrites its graph."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from resgrow.surgery.forward import Inputs, as_inputs, evaluate
from resgrow.surgery.fuse.chain import SPARSE, Chain, Finder
from resgrow.surgery.fuse.fold import folded_conv, fused_layer
from resgrow.surgery.fuse.settle import join_pooling, settle_relus
from resgrow.surgery.fuse.trace import trace

_UNTRACED = "use it as resgrow.swap leaves it, which needs no tracing, or fuse the parts that can be traced"
# What hands its input on in evaluation mode: the same tensor, not a copy.
_PASSING = (nn.Identity, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout)
# Relative to the largest output, where example inputs are given: far above rounding, far below another function.
_TOLERANCES = {torch.float64: 1e-9, torch.float32: 1e-3}
_COARSE = 0.1


def fuse(model: nn.Module, example_inputs: Inputs | None = None) -> GraphModule:
    """A copy of ``model`` for inference, with norms, residual additions and activations fused into its layers.

    * :class:`resgrow.nn.BlockSparseConv2d` and ``BlockSparseLinear`` take up the batch norm behind them, an addition
      (``+``, ``+=``, ``torch.add``) and a ReLU (module, function or method) or
      :class:`resgrow.nn.TriStateReLU`, each where it is there, and become :class:`resgrow.nn.FusedConv2d` and
      ``FusedLinear``.
    * Dense ``nn.Conv2d`` take up the batch norm behind them.
    * Other ReLUs work in place where nothing else sees their input, and change places with max-pooling behind them.
    * A convolution and the max-pooling behind it become :class:`resgrow.nn.PooledConv2d`.
    * ``nn.Identity`` and dropout, which do nothing here, go.

    Only what gives the same outputs up to rounding is fused: a step takes part where the number it takes in has no
    other use, where norms have running statistics, where layers run once, are of exactly these types, share no
    parameters and carry no hooks, and where an addition in place writes to the layer's output, not to what is added
    to it. Everything else stays as it is. Numbers agree to rounding (folded weights are computed in float64 and
    rounded once); a ReLU in a fused layer gives NaN, not zero, where its input is minus infinity.

    Args:
        model: in evaluation mode, and such that ``torch.fx`` can trace it; it is left alone.
        example_inputs: a tensor, or the sequence of the model's arguments. Where given, the outputs of both (one
            tensor each) are compared on them: a safeguard against models of which torch.fx sees one path of several.

    Returns:
        A ``torch.fx.GraphModule``, in evaluation mode and with no parameter that needs a gradient. It can be copied,
        pickled, compiled and exported; gradients of its inputs are right, but slow.

    Raises:
        ValueError: some module is in training mode; torch.fx cannot trace the model; the outputs differ on
            ``example_inputs``, or the model does not run on them.
        TypeError: not a module, or ``example_inputs`` are not tensors.
    """
    _check(model)
    inputs = None if example_inputs is None else as_inputs(example_inputs, "fuse")
    traced = trace(model, "fuse", _UNTRACED)
    _skip_passing(traced)
    finder = Finder(traced)
    for node in list(traced.graph.nodes):
        chain = finder.chain(node)
        if chain is not None:
            _replace(traced, chain)
    settle_relus(traced)
    join_pooling(traced)
    traced.delete_all_unused_submodules()
    traced.graph.lint()
    traced.recompile()
    traced.requires_grad_(False)
    if inputs is not None:
        _compare(model, traced, inputs)
    return traced


def _check(model: nn.Module) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"fuse: model must be a torch.nn.Module (got {type(model).__name__})")
    training = [name or "the model" for name, module in model.named_modules() if module.training]
    if training:
        more = f" and {len(training) - 1} more" if len(training) > 1 else ""
        raise ValueError(
            f"fuse: the model must be in evaluation mode, whose norms can be folded (got {training[0]}{more} in "
            "training mode); call model.eval()"
        )


def _skip_passing(traced: GraphModule) -> None:
    modules = dict(traced.named_modules())
    for node in list(traced.graph.nodes):
        if node.op != "call_module" or type(modules[node.target]) not in _PASSING or len(node.all_input_nodes) != 1:
            continue
        if not modules[node.target]._forward_hooks and not modules[node.target]._forward_pre_hooks:
            node.replace_all_uses_with(node.all_input_nodes[0])
            traced.graph.erase_node(node)


def _replace(traced: GraphModule, chain: Chain) -> None:
    """Puts one call in the place of the chain; an addition happens where it happened."""
    modules = dict(traced.named_modules())

    def module_of(node: Node | None) -> Any:
        return None if node is None or node.op != "call_module" else modules[str(node.target)]

    target = str(chain.layer.target)
    layer, norm = modules[target], module_of(chain.norm)
    if isinstance(layer, SPARSE):
        activation = None if chain.activation is None else module_of(chain.activation) or nn.ReLU()
        new: nn.Module = fused_layer(layer, norm, activation, chain.in_place)
    else:
        new = folded_conv(layer, norm)
    parent, _, name = target.rpartition(".")
    setattr(traced.get_submodule(parent), name, new)
    steps = chain.steps()
    arguments = (chain.layer.args[0], *(() if chain.residual is None else (chain.residual,)))
    with traced.graph.inserting_before(chain.addition or chain.layer):
        call = traced.graph.call_module(target, arguments)
    steps[-1].replace_all_uses_with(call)
    for step in reversed(steps):
        traced.graph.erase_node(step)


def _compare(model: nn.Module, fused: GraphModule, inputs: tuple[Tensor, ...]) -> None:
    wanted, got = (evaluate(m, [x.clone() for x in inputs], "fuse") for m in (model, fused))
    allowed = _TOLERANCES.get(wanted.dtype, _COARSE)
    scale = wanted.detach().abs().max() if wanted.numel() else wanted.new_zeros(())
    if wanted.shape != got.shape or not ((got - wanted).abs() <= allowed * scale).all():
        raise ValueError(
            f"fuse: the traced model must give the outputs of the model on example_inputs (got a difference of more "
            f"than {allowed:g} of the largest output); torch.fx has followed a path that depends on the input, so use "
            "the model as resgrow.swap leaves it"
        )
