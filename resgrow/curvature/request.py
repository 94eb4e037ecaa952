"""What a call of ``curvature`` asks for, checked, and the one way in which every method reads its data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from resgrow.curvature.batches import Batch, call, device_of, iterate
from resgrow.curvature.heads import Head
from resgrow.curvature.progress import Meter


@dataclass(frozen=True)
class Request:
    """One curvature computation: a method is a function ``Request -> {parameter name: tensor}``.

    Attributes:
        model: as given; a method leaves it as it found it.
        head: the loss's values and derivatives at the model's output.
        data: yields ``(input, target)`` batches.
        method: name of the method, for messages.
        samples: random vectors per sample or per batch, >= 1.
        generator: the only source of randomness.
        train: run modules in their own modes rather than in eval mode (``hessian`` and ``hutchinson``).
        control_variate: see ``curvature``.
        meter: told of every batch that is done.
    """

    model: nn.Module
    head: Head
    data: Iterable[Any] | Batch
    method: str
    samples: int
    generator: torch.Generator
    train: bool = False
    control_variate: bool = False
    meter: Meter = field(default_factory=Meter)

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The trainable parameters, by name: those that a result covers."""
        return {name: p for name, p in self.model.named_parameters() if p.requires_grad}

    def batches(self) -> Iterator[Batch]:
        """The batches of ``data`` on the model's device."""
        for batch in iterate("curvature", self.data, device_of(self.model)):
            yield batch
            self.meter.batch()

    def output(self, inputs: Any, weights: dict[str, Tensor] | None = None) -> Tensor:
        """The model's output for one batch's input, checked.

        Raises:
            ValueError: not one tensor, or not finite.
        """
        output = call(self.model, inputs, weights)
        if not isinstance(output, Tensor):
            raise ValueError(
                "curvature: the model's output must be one tensor that depends on a trainable parameter "
                f"(got {type(output).__name__}); wrap the model so that it returns that tensor"
            )
        if not torch.isfinite(output).all():
            raise ValueError("curvature: the model's output is not finite; lower the learning rate or check the data")
        return output


def inverse(op: str, total: float) -> float:
    """What turns a sum of losses into their mean, ``total`` being the sum of ``head.total`` over all batches.

    Raises:
        ValueError: ``total`` is zero.
    """
    if total == 0:
        raise ValueError(
            f"{op}: no target counts (all are ignored, or of classes of weight 0); check ignore_index, the class "
            "weights and the data"
        )
    return 1 / total


def result_dtype(parameter: Tensor) -> torch.dtype:
    """The dtype of a parameter's curvature: float32, or float64 for float64 parameters."""
    return torch.promote_types(parameter.dtype, torch.float32)
