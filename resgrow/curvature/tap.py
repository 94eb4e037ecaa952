"""Taps on a model's layers: each sees its input in the forward pass and its output gradient in the backward pass.

Autograd carries everything between the layers, so any architecture works. Two things keep the pass cheap:

* Parameters do not require gradients while the taps are in, so no ordinary weight gradient is computed. The graph
  then begins at the first tapped outputs, which are hung on a scalar ``anchor``.
* A layer's contribution is taken inside the backward pass, when its output gradient exists, and nothing is kept.
"""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

from resgrow._modes import eval_mode
from resgrow.curvature.affine import relink
from resgrow.curvature.rules import Layer

Visit = Callable[[Layer, Tensor, Tensor], None]


class _Hang(torch.autograd.Function):
    """The identity, in place, with ``anchor`` as a second input: makes ``output`` part of a graph."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, anchor: Tensor) -> Tensor:
        ctx.mark_dirty(output)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None]:
        return None, None


class Taps:
    """Context manager that puts a model into the state of a curvature pass and restores it on the way out.

    Inside, every module is in eval mode and no parameter requires a gradient. Training flags, ``requires_grad``,
    existing gradients and hooks are as before afterwards, also when an exception leaves the block.
    """

    def __init__(self, model: nn.Module, layers: list[Layer], visit: Visit) -> None:
        self.model, self.layers, self.visit = model, layers, visit
        device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self.anchor = torch.zeros((), device=device, requires_grad=True)
        self._seen: set[str] = set()

    def __enter__(self) -> Taps:
        self._eval = eval_mode(self.model)
        self._eval.__enter__()
        self._trainable = [p for p in self.model.parameters() if p.requires_grad]
        self._handles = [
            # First of all hooks: what other hooks make of an output is not the layer's own doing.
            layer.module.register_forward_hook(self._hook(layer), with_kwargs=True, prepend=True)
            for layer in self.layers
        ]
        for parameter in self._trainable:
            parameter.requires_grad_(False)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        for parameter in self._trainable:
            parameter.requires_grad_(True)
        self._eval.__exit__(None, None, None)

    def new_batch(self, samples: int) -> None:
        """Forget which layers have been seen; the next forward pass brings ``samples`` samples."""
        self._seen.clear()
        self._samples = samples

    def backward(self, output: Tensor, grad: Tensor, keep_graph: bool) -> None:
        """Send ``grad`` back from ``output``; every tapped layer is visited on the way."""
        self._keep = keep_graph
        torch.autograd.grad(output, self.anchor, grad, retain_graph=keep_graph, allow_unused=True)

    def _hook(self, layer: Layer) -> Callable[..., Tensor]:
        def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
            source = args[0] if args else next(iter(kwargs.values()))
            inputs = [self._check(layer, source)]
            version = source._version
            output = relink(module, source, output)
            if not output.requires_grad:
                output = _Hang.apply(output, self.anchor)

            def receive(grad: Tensor) -> None:
                # The last backward pass frees activations on its way, as an ordinary one does.
                x = inputs[0] if self._keep else inputs.pop()
                if x._version != version:
                    raise RuntimeError(
                        f"curvature: the input of module '{layer.name}' was modified in place after the module "
                        "ran; make that operation out of place"
                    )
                # Under autocast a layer may cast its input; its gradient tells the dtype it computed in.
                self.visit(layer, x.to(grad.dtype), grad.detach())

            output.register_hook(receive)
            return output

        return hook

    def _check(self, layer: Layer, x: Tensor) -> Tensor:
        if layer.name in self._seen:
            raise ValueError(
                f"curvature: module '{layer.name}' runs more than once in one forward pass, which is not supported; "
                "give each use its own module, or freeze it with requires_grad_(False)"
            )
        self._seen.add(layer.name)
        if x.shape[0] != self._samples:
            raise ValueError(
                f"curvature: the first dimension of module '{layer.name}' must be the sample (its input has shape "
                f"{tuple(x.shape)}, the batch {self._samples} samples); keep samples apart inside the model, or "
                "freeze the module with requires_grad_(False)"
            )
        return x.detach()
