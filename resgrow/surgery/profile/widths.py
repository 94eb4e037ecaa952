"""How wide a layer is: its units, by whatever name the layer has for them."""

from __future__ import annotations

from torch import nn

# The first that a module has; what attention has of is heads.
_ATTRIBUTES = (
    "out_channels",
    "out_features",
    "num_heads",
    "num_attention_heads",
    "embedding_dim",
    "num_features",
    "num_channels",
)


def width_of(module: nn.Module, shape: tuple[int, ...] | None, multiplies: bool) -> int | None:
    """Channels, features or heads; None for what has no number of its own: activations, pooling, and modules that
    only hold others.

    Args:
        multiplies: whether it has products of its own.
        shape: of its output, for layers with parameters that do not say: channels are dimension 1 of images, and
            otherwise the last one.
    """
    if not multiplies and any(True for _ in module.children()):
        return None
    if isinstance(module, nn.RNNBase):
        return (module.proj_size or module.hidden_size) * (2 if module.bidirectional else 1)
    for name in _ATTRIBUTES:
        value = getattr(module, name, None)
        if type(value) is int:
            return value
    if isinstance(module, nn.LayerNorm):
        return int(module.normalized_shape[-1])
    if shape is None or len(shape) < 2 or not any(True for _ in module.parameters(recurse=False)):
        return None
    return shape[1] if len(shape) > 3 else shape[-1]
