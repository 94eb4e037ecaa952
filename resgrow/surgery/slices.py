"""Cutting channels out of layers: tensors and the widths that layers keep beside them."""

import torch
from torch import Tensor, nn

from resgrow.nn import TriStateReLU

# Layer type -> (attribute that holds its width, per-channel tensors, all cut along dimension 0).
_OUTPUTS: dict[type[nn.Module], tuple[str, tuple[str, ...]]] = {
    nn.Conv2d: ("out_channels", ("weight", "bias")),
    nn.Linear: ("out_features", ("weight", "bias")),
    nn.BatchNorm2d: ("num_features", ("weight", "bias", "running_mean", "running_var")),
    TriStateReLU: ("num_channels", ("w",)),
}
_INPUTS: dict[type[nn.Module], str] = {nn.Conv2d: "in_channels", nn.Linear: "in_features"}


def keep_outputs(layer: nn.Module, index: Tensor) -> None:
    """Keep only the channels at ``index`` (int64) of a producer or follower, in place."""
    width, tensors = _OUTPUTS[type(layer)]
    for name in tensors:
        _take(layer, name, 0, index)
    setattr(layer, width, index.numel())


def keep_inputs(layer: nn.Module, index: Tensor, repeat: int) -> None:
    """Keep only the input channels at ``index``, each ``repeat`` columns wide, of a consumer, in place."""
    columns = (index[:, None] * repeat + torch.arange(repeat, device=index.device)).flatten()
    _take(layer, "weight", 1, columns)
    setattr(layer, _INPUTS[type(layer)], columns.numel())


def _take(layer: nn.Module, name: str, dim: int, index: Tensor) -> None:
    """Replace a parameter or buffer by part of it, with the same dtype, device, layout and requires_grad."""
    old = getattr(layer, name)
    if old is None:
        return
    new = old.detach().index_select(dim, index)
    if old.dim() == 4 and not old.is_contiguous() and old.is_contiguous(memory_format=torch.channels_last):
        new = new.contiguous(memory_format=torch.channels_last)
    setattr(layer, name, nn.Parameter(new, old.requires_grad) if isinstance(old, nn.Parameter) else new)
