"""Model name -> network that fits a data set."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

import resgrow.nn
from resgrow._errors import InputError
from resgrow.data import Dataset
from resgrow.experiments.config import FitConfig


def _resnet(depth: int) -> Callable[[Dataset, float], nn.Module]:
    def build(data: Dataset, width: float) -> nn.Module:
        return resgrow.nn.resnet(depth, width, data.image_shape[0], len(data.classes))

    return build


def _lenet5(data: Dataset, width: float) -> nn.Module:
    channels, height, side = data.image_shape
    if height != side:
        raise InputError(f"fit: lenet5 needs square images (got {height}x{side}); use --model resnet8")
    if width != 1.0:
        raise InputError(f"fit: lenet5 has one width (got --width {width}); leave --width out, or use a resnet")
    return resgrow.nn.lenet5(channels, len(data.classes), side)


MODELS: dict[str, Callable[[Dataset, float], nn.Module]] = {
    "resnet8": _resnet(8),
    "resnet20": _resnet(20),
    "resnet56": _resnet(56),
    "lenet5": _lenet5,
}


def build_model(config: FitConfig, data: Dataset) -> nn.Module:
    """The network of ``config`` on its device, with weights drawn from ``config.seed``, channels_last.

    The weights are drawn on the CPU, so that they are the same for every device. channels_last because oneDNN's
    convolutions are two to four times faster in it (also with one input channel). Raises InputError where network and
    images do not fit.
    """
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(config.seed)
            model = MODELS[config.model](data, config.width)
    except ValueError as error:
        raise InputError(str(error)) from error
    return as_network(model).to(config.device)


def as_network(model: nn.Module) -> nn.Module:
    """``model`` with channels_last weights, in place."""
    module: Any = model  # torch's stubs do not know this overload
    return module.to(memory_format=torch.channels_last)


def as_input(images: Tensor) -> Tensor:
    """Images (N, C, H, W) in the memory format of ``build_model``'s networks."""
    return images.contiguous(memory_format=torch.channels_last)
