"""Hooks that drop what some modules return, at random, in each forward pass of a model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle


class Drops:
    """Results of modules times 0, or else one over the probability of that, while they and the model train.

    Attributes:
        generator: of the decisions, on the CPU.
        drawn: of the last forward pass until somebody clears it: which survived, bool ``(modules, N)``, N 1 for the
            whole batch, and of which it was decided, bool ``(modules,)``.
    """

    def __init__(self, model: nn.Module, per_sample: bool, seed: int) -> None:
        self.model, self.per_sample = model, per_sample
        self.generator = torch.Generator().manual_seed(seed)
        self.drawn: tuple[Tensor, Tensor] | None = None
        self.modules: list[nn.Module] = []
        self.rates = torch.ones(0, dtype=torch.float64)
        self.factors = torch.ones(0, dtype=torch.float64)
        self._handles: list[RemovableHandle] = []

    @property
    def attached(self) -> bool:
        return bool(self._handles)

    def change(self, paths: Sequence[str], rates: Sequence[float]) -> None:
        """Other modules, and attach."""
        self.detach()
        self.modules = [self.model.get_submodule(path) for path in paths]
        self.rates = torch.tensor(rates, dtype=torch.float64)
        self.factors = torch.ones(len(rates), dtype=torch.float64)
        self.attach()

    def attach(self) -> None:
        if not self.attached and self.modules:
            self._handles = [self.model.register_forward_pre_hook(_Draw(self), with_kwargs=True)]
            for number, module in enumerate(self.modules):
                self._handles.append(module.register_forward_hook(_Scale(self, number)))

    def detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self.drawn = None
        # What has been compiled may go on reading them, whatever batch comes next.
        self.factors.fill_(1)
        if self.per_sample:
            self.factors = self.factors[:, :1] if self.factors.dim() > 1 else self.factors[:, None]

    @torch.compiler.disable
    def draw(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if not self.attached:  # called by code that was compiled when it was
            return
        samples = _samples(args, kwargs) if self.per_sample else 1
        numbers = torch.rand(len(self.rates), samples, generator=self.generator, dtype=torch.float64)
        drawn = torch.tensor([module.training for module in self.modules])
        kept = (numbers >= self.rates[:, None]) | ~drawn[:, None]
        self.drawn = kept, drawn
        factors = torch.where(drawn[:, None], kept / (1 - self.rates[:, None]), 1.0)
        factors = factors if self.per_sample else factors[:, 0]
        device = next(self.model.parameters()).device
        if self.factors.shape == factors.shape and self.factors.device == device:
            # Graphs that have been compiled or recorded read this very tensor.
            self.factors.copy_(factors)
        else:
            self.factors = factors.to(device)

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "generator": self.generator.get_state()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self.generator = torch.Generator()
        self.generator.set_state(state["generator"])


class _Draw:
    """Before the model's forward."""

    def __init__(self, drops: Drops) -> None:
        self._drops = drops

    def __call__(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if module.training:
            self._drops.draw(args, kwargs)


class _Scale:
    """Behind the module that returns a branch."""

    def __init__(self, drops: Drops, number: int) -> None:
        self._drops, self._number = drops, number

    def __call__(self, module: nn.Module, args: tuple[Any, ...], result: Tensor) -> Tensor | None:
        if not (module.training and self._drops.model.training):
            return None
        factor = self._drops.factors[self._number].to(result.device)
        if self._drops.per_sample:
            factor = factor.to(result.dtype).view(-1, *[1] * (result.dim() - 1))
        return result * factor


def _samples(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
    return next(each.shape[0] for each in (*args, *kwargs.values()) if isinstance(each, Tensor))
