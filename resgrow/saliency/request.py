"""What a call of ``saliency`` asks for, checked, and how every criterion reads its data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sized
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from resgrow.curvature.batches import Batch, device_of, iterate
from resgrow.curvature.heads import Head, LossFn, head_of
from resgrow.curvature.progress import Meter, Report, metered


@dataclass(frozen=True)
class Request:
    """One saliency computation: a criterion is a function ``Request -> Saliency``.

    Attributes:
        model: as given; a criterion leaves it as it found it.
        loss_fn: None where it was not given.
        data: likewise.
        method: name of the criterion, for messages.
        options: those that were given, all of them known to the criterion.
        progress: see ``saliency``.
    """

    model: nn.Module
    loss_fn: LossFn | None
    data: Iterable[Any] | Batch | None
    method: str
    options: Mapping[str, Any]
    progress: bool | Report = False

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The trainable parameters, by name, detached: those that a result covers."""
        return {name: p.detach() for name, p in self.model.named_parameters() if p.requires_grad}

    def pick(self, *names: str) -> dict[str, Any]:
        """Those of the named options that were given."""
        return {name: self.options[name] for name in names if name in self.options}

    def loss(self) -> LossFn:
        """The loss. Raises ValueError where there is none."""
        if self.loss_fn is None:
            raise self._needs("loss_fn")
        return self.loss_fn

    def head(self) -> Head:
        return head_of("saliency", self.loss(), self.options.get("temperature", 1.0))

    def given_data(self) -> Iterable[Any] | Batch:
        """The data as it was given. Raises ValueError where there is none."""
        if self.data is None:
            raise self._needs("data")
        return self.data

    def batches(self) -> Iterator[Batch]:
        """The batches of ``data`` on the model's device; progress is told of each that is done."""
        data = self.given_data()
        with self.meter(len(data) if isinstance(data, Sized) else None) as meter:
            for batch in iterate("saliency", data, device_of(self.model)):
                yield batch
                meter.batch()

    def meter(self, steps: int | None) -> AbstractContextManager[Meter]:
        """What progress is told through."""
        return metered(self.progress, f"saliency: {self.method}", steps, 1)

    def _needs(self, what: str) -> ValueError:
        return ValueError(f"saliency: method '{self.method}' needs {what} (got None); or use 'magnitude'")

    def generator(self) -> torch.Generator:
        """The one given, or a fresh one with seed 0: the global random state is never touched."""
        return self.options.get("generator") or torch.Generator(device_of(self.model)).manual_seed(0)
