"""Linear and convolutional layers as criteria see them: features in, channels out, and how to watch them run."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from resgrow._modes import eval_mode
from resgrow.curvature.batches import call
from resgrow.saliency.request import Request

# Layer type -> number of spatial dimensions.
LAYERS: dict[type[nn.Module], int] = {
    nn.Linear: 0,
    nn.Conv1d: 1,
    nn.Conv2d: 2,
    nn.Conv3d: 3,
    nn.ConvTranspose1d: 1,
    nn.ConvTranspose2d: 2,
    nn.ConvTranspose3d: 3,
}


@dataclass(frozen=True)
class Layer:
    """A linear or convolutional layer with a trainable weight.

    Attributes:
        module: the layer.
        weight: the parameter's name; for a weight that several layers share, the name it is listed under.
        bias: likewise; None where there is none that is trainable.
        spatial: its number of spatial dimensions, 0 for linear layers.
    """

    module: Any
    weight: str
    bias: str | None
    spatial: int

    @property
    def groups(self) -> int:
        return getattr(self.module, "groups", 1)

    @property
    def transposed(self) -> bool:
        """Whether the weight is ``(inputs, outputs / groups, *k)`` rather than ``(outputs, inputs / groups, *k)``."""
        return isinstance(self.module, nn.modules.conv._ConvTransposeNd)

    def features_last(self, x: Tensor) -> Tensor:
        """The layer's input or output as ``(*, features)``."""
        return x.movedim(-1 - self.spatial, -1)

    def over_inputs(self, value: Tensor) -> Tensor:
        """A value per input feature, ``(inputs,)``, in a shape that broadcasts over the weight."""
        return self._spread(value, first=self.transposed)

    def over_outputs(self, value: Tensor) -> Tensor:
        """A value per output channel, ``(outputs,)``, in a shape that broadcasts over the weight."""
        return self._spread(value, first=not self.transposed)

    def _spread(self, value: Tensor, first: bool) -> Tensor:
        """``value`` along the weight's first dimension, or along its second, which each group has for itself."""
        weight = self.module.weight
        if not first:
            value = value.view(self.groups, 1, -1).expand(-1, weight.shape[0] // self.groups, -1)
        return value.reshape(weight.shape[0], -1, *[1] * self.spatial)


def layers_of(model: nn.Module) -> list[Layer]:
    """All layers of the types in ``LAYERS`` whose weight is trainable."""
    names: dict[Any, str] = {p: name for name, p in model.named_parameters() if p.requires_grad}
    layers = []
    for module in model.modules():
        kind = next((kind for kind in LAYERS if isinstance(module, kind)), None)
        if kind is not None and getattr(module, "weight", None) in names:
            layers.append(Layer(module, names[module.weight], names.get(module.bias), LAYERS[kind]))
    return layers


def refuse_attention(model: nn.Module, method: str) -> None:
    """For criteria that would give a used weight the score of an unused one.

    Raises:
        ValueError: a trainable MultiheadAttention, which uses its weights without running its layers.
    """
    for path, module in model.named_modules():
        if isinstance(module, nn.MultiheadAttention) and any(p.requires_grad for p in module.parameters()):
            raise ValueError(
                f"saliency: '{method}' sees the inputs of Linear and convolutional layers that run as modules, which "
                f"those of MultiheadAttention '{path}' do not; freeze it with requires_grad_(False), or use 'obd'"
            )


@contextmanager
def watched(layers: list[Layer], visit: Callable[..., None], outputs: bool = False) -> Iterator[None]:
    """Inside, ``visit(layer, x)`` is called with the input of every run, or with its output. Hooks go on any exit."""

    def before(layer: Layer) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            visit(layer, args[0] if args else next(iter(kwargs.values())))

        return hook

    def after(layer: Layer) -> Callable[..., None]:
        def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> None:
            visit(layer, output)

        return hook

    handles: list[Any] = []
    try:
        for layer in layers:
            register = layer.module.register_forward_hook if outputs else layer.module.register_forward_pre_hook
            handles.append(register(after(layer)) if outputs else register(before(layer), with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def run(request: Request) -> int:
    """The model over all data, in eval mode and without gradients; the number of samples."""
    samples = 0
    with eval_mode(request.model), torch.no_grad():
        for inputs, target in request.batches():
            call(request.model, inputs)
            samples += target.shape[0]
    return samples
