"""Average percentage of zeros: how often a channel is silent after its activation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from resgrow.curvature.request import result_dtype
from resgrow.saliency.layers import Layer, layers_of, refuse_attention, run, watched
from resgrow.saliency.request import Request
from resgrow.saliency.result import Saliency

# By function name: torch.relu, F.relu, Tensor.relu and Tensor.relu_ are one. Names are looked up without leading
# and trailing underscores (operators, in place functions) and without the overload of a custom operator.
ACTIVATIONS = frozenset(
    name
    for names in (
        ("relu", "relu6", "threshold", "clamp", "clamp_min", "clip", "maximum", "tristate_relu"),
        ("hardtanh", "hardswish", "hardsigmoid", "hardshrink", "softshrink", "tanhshrink", "softsign", "softplus"),
        ("leaky_relu", "rrelu", "prelu", "elu", "celu", "selu", "gelu", "silu", "mish", "glu"),
        ("sigmoid", "logsigmoid", "tanh", "softmax", "log_softmax"),
    )
    for name in names
)
# What may stand between a layer and its activation: it mixes no channels.
TRANSPARENT = frozenset(
    name
    for names in (
        ("batch_norm", "instance_norm", "group_norm", "layer_norm", "rms_norm"),
        ("add", "iadd", "radd", "sub", "isub", "mul", "imul", "rmul", "div", "truediv", "itruediv"),
        ("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"),
        ("max_pool1d", "max_pool2d", "max_pool3d", "avg_pool1d", "avg_pool2d", "avg_pool3d"),
        ("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d"),
        ("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d"),
        ("contiguous", "clone", "to", "float"),
    )
    for name in names
)
# These keep channels together where they turn (N, C, *S) into (N, C * prod(S)), or leave the last dimension alone.
RESHAPING = frozenset({"flatten", "view", "reshape"})


def apoz(request: Request) -> Saliency:
    """``(1 - APoZ_c) / (elements of channel c's weights)`` for each weight of channel ``c`` (Hu et al. 2016, eq. 1).

    APoZ_c is the share of zeros of the channel over all samples and positions at the output of the first activation
    that the layer's output reaches, through norms, residual adds, pooling and flattening. Layers that reach none, or
    one without exact zeros, have 0. Channels thus sum to ``1 - APoZ``; parameters other than weights score 0.
    """
    refuse_attention(request.model, "apoz")
    layers = layers_of(request.model)
    counter = _Counter()
    with watched(layers, counter.produced, outputs=True), counter:
        run(request)
    scores = {name: torch.zeros_like(p, dtype=result_dtype(p)) for name, p in request.parameters.items()}
    for layer in layers:
        score = scores[layer.weight]
        channels = layer.module.weight.shape[1] * layer.groups if layer.transposed else score.shape[0]
        active = counter.active(layer, channels).to(score)
        scores[layer.weight] = (layer.over_outputs(active) * (channels / score.numel())).expand_as(score).clone()
    return Saliency(scores, "apoz", "share of activations that are not zero, spread over the channel's weights")


@dataclass
class _Trace:
    """One output of a layer on its way to its first activation."""

    layer: Layer
    channels: int
    counted: bool = False


class _Counter(TorchFunctionMode):
    """Follows the outputs of layers through torch functions and counts zeros behind their first activation."""

    def __init__(self) -> None:
        super().__init__()
        self._traces: Any = WeakTensorKeyDictionary()
        self._zeros: dict[str, Tensor] = {}
        self._seen: dict[str, int] = {}

    def produced(self, layer: Layer, output: Tensor) -> None:
        """An output hook for layers."""
        self._traces[output] = [_Trace(layer, layer.features_last(output).shape[-1])]

    def active(self, layer: Layer, channels: int) -> Tensor:
        """``1 - APoZ`` of each channel; 1 without an activation."""
        if layer.weight not in self._seen:
            return torch.ones(channels, dtype=torch.float64)
        return 1 - self._zeros[layer.weight] / self._seen[layer.weight]

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        # Read before the call: in place functions give their argument back.
        values = [value for value in (*args, *(kwargs or {}).values()) if isinstance(value, Tensor)]
        shape = values[0].shape if values else None
        arriving = [trace for value in values for trace in self._traces.get(value, [])]
        output = func(*args, **(kwargs or {}))
        if not arriving or not isinstance(output, Tensor):
            return output
        name = getattr(func, "__name__", "").partition(".")[0].strip("_")
        if name in ACTIVATIONS:
            for trace in arriving:
                self._count(trace, output)
            self._traces.pop(output, None)
        elif name in TRANSPARENT:
            self._traces[output] = arriving
        elif name in RESHAPING:
            self._traces[output] = [trace for trace in arriving if _keeps_channels(trace, shape, output.shape)]
        return output

    def _count(self, trace: _Trace, output: Tensor) -> None:
        layer = trace.layer
        flat = layer.spatial and output.dim() == 2
        values = output.unflatten(1, (trace.channels, -1)).movedim(1, -1) if flat else layer.features_last(output)
        if trace.counted or values.shape[-1] != trace.channels:
            return
        trace.counted = True
        zeros = (values == 0).flatten(0, -2).sum(0).double()
        self._zeros[layer.weight] = self._zeros.get(layer.weight, 0) + zeros
        self._seen[layer.weight] = self._seen.get(layer.weight, 0) + values[..., 0].numel()


def _keeps_channels(trace: _Trace, before: Any, after: torch.Size) -> bool:
    if not trace.layer.spatial:
        return bool(after) and after[-1] == trace.channels
    return len(after) == 2 and after[0] == before[0] and before[1] == trace.channels
