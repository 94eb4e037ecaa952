"""What is compared in ``compare_torch_pruning``: half of the channels of a model, by magnitude, by either tool."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

import resgrow
from resgrow.surgery import compact, prune

RATIO = 0.5
# Model, inputs, names of the layers that make the output, optimizer.
Tool = Callable[[nn.Module, tuple[Tensor, ...], Sequence[str], Optimizer], nn.Module]


def ours(model: nn.Module, inputs: tuple[Tensor, ...], last: Sequence[str], optimizer: Optimizer) -> nn.Module:
    """Output layers need not be named."""
    scores = resgrow.saliency(model, method="magnitude")
    prune(model, scores, sparsity=RATIO, block="channel", scope="layer", example_inputs=inputs)
    return compact(model, inputs, inplace=True, optimizer=optimizer)


def theirs(model: nn.Module, inputs: tuple[Tensor, ...], last: Sequence[str], optimizer: Optimizer) -> nn.Module:
    """Torch-Pruning as its examples for these models use it; the optimizer is out of its reach."""
    import torch_pruning

    options: dict[str, Any] = {"ignored_layers": [model.get_submodule(name) for name in last]}
    after = _heads(model, options)
    pruner = torch_pruning.pruner.BasePruner(
        model,
        inputs[0] if len(inputs) == 1 else inputs,
        importance=torch_pruning.importance.GroupMagnitudeImportance(p=2),
        pruning_ratio=RATIO,
        global_pruning=False,
        **options,
    )
    pruner.step()
    after(pruner)
    return model


def _heads(model: nn.Module, options: dict[str, Any]) -> Callable[[Any], None]:
    """What its examples do by hand for attention, before and after."""
    kinds = {type(module).__name__ for module in model.modules()}
    if "VisionTransformer" in kinds and hasattr(model, "conv_proj"):
        options["round_to"] = model.encoder.layers[0].num_heads
        options["ignored_layers"] += [m for m in model.modules() if type(m).__name__.startswith("NonDynamically")]
        return lambda pruner: setattr(model, "hidden_dim", model.conv_proj.out_channels)
    timm = [m for m in model.modules() if type(m).__name__ == "Attention" and hasattr(m, "qkv")]
    bert = [m for m in model.modules() if type(m).__name__ == "BertSelfAttention"]
    heads = {m.qkv: m.num_heads for m in timm}
    heads |= {layer: m.num_attention_heads for m in bert for layer in (m.query, m.key, m.value)}
    if heads:
        options.update(num_heads=heads, prune_num_heads=True, prune_head_dims=False, head_pruning_ratio=RATIO)
    for module in timm:
        module.forward = _attention.__get__(module)

    def after(pruner: Any) -> None:
        for module in timm:
            module.num_heads = pruner.num_heads[module.qkv]
            module.head_dim = module.qkv.out_features // (3 * module.num_heads)
        for module in bert:
            module.num_attention_heads = pruner.num_heads[module.query]
            module.attention_head_size = module.query.out_features // module.num_attention_heads
            module.all_head_size = module.query.out_features

    return after


def _attention(self: Any, x: Tensor, *ignored: Any, **also: Any) -> Tensor:
    """timm's, written such that the width of the heads may differ from that of the stream."""
    n, count, _ = x.shape
    qkv = self.qkv(x).reshape(n, count, 3, self.num_heads, -1).permute(2, 0, 3, 1, 4)
    q, k, v = qkv.unbind(0)
    x = torch.nn.functional.scaled_dot_product_attention(self.q_norm(q), self.k_norm(k), v)
    return self.proj(x.transpose(1, 2).reshape(n, count, -1))


def half(model: nn.Module, inputs: tuple[Tensor, ...], last: Sequence[str]) -> float:
    """Parameters of the model with every width halved but those of its inputs and outputs.

    A weight that reads the inputs keeps its inputs, one that makes the outputs its outputs; whatever else is along
    channels, norms, tables of positions and slopes, has half.
    """
    leaves = [module for module in model.modules() if not list(module.children())]
    read = {id(x) for x in inputs}
    first: set[int] = set()
    hooks = [
        leaf.register_forward_pre_hook(
            lambda module, given: first.add(id(module)) if given and id(given[0]) in read else None
        )
        for leaf in leaves
    ]
    with torch.no_grad():
        model(*inputs)
    for hook in hooks:
        hook.remove()
    final = {id(model.get_submodule(name)) for name in last}
    return sum(
        _half(module, name, parameter, id(module) in first, id(module) in final)
        for module in model.modules()
        for name, parameter in module._parameters.items()
        if parameter is not None
    )


def _half(module: nn.Module, name: str, parameter: Tensor, first: bool, final: bool) -> float:
    """One parameter's share. Depthwise kernels have one input each, other tables one dimension of channels."""
    size = float(parameter.numel())
    layer = isinstance(module, nn.Linear | nn.modules.conv._ConvNd | nn.MultiheadAttention)
    bare = parameter.dim() == 2 and len(list(module.parameters(recurse=False))) > 1
    if parameter.dim() > 1 and (layer or (bare and not isinstance(module, nn.Embedding))):
        read, made = (0, 1) if isinstance(module, nn.modules.conv._ConvTransposeNd) else (1, 0)
        size *= 1 if first or parameter.shape[read] == 1 else RATIO
        return size * (1 if final or parameter.shape[made] == 1 else RATIO)
    return size * (1 if final or size == 1 or (first and parameter.dim() == 1) else RATIO)


TOOLS: dict[str, Tool] = {"Torch-Pruning": theirs, "resgrow": ours}
