"""The gates of a model's tri-state ReLUs: their penalty, their step size, their bounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from resgrow.nn import TriStateReLU


@dataclass(frozen=True)
class GateCoefficients:
    """The four coefficients of :meth:`Gates.penalty`, ``l1`` to ``l4`` in its equation.

    Attributes:
        binary_width, binary_depth: how strongly width and depth gates are driven to 0 or 1.
        width: what an open channel costs in a layer that is not linear.
        depth: what a linear layer earns.
    """

    binary_width: float
    binary_depth: float
    width: float
    depth: float

    @classmethod
    def of(cls, width: float) -> GateCoefficients:
        """All four by the authors' rules: ``l1 = 2 l3``, ``l2 = l1 / 10``, ``l4 = l3 / 10``; ``width`` is ``l3``.

        The peak between open and closed then lies at ``w = 1/2 + l3 / 2 l1 = .75``: gates that start below it close
        unless the loss holds them open.
        """
        return cls(binary_width=2 * width, binary_depth=0.2 * width, width=width, depth=0.1 * width)


class Gates:
    """All tri-state gates of a model that are learnt, under one handle::

        gates = Gates(model)
        optimizer = Adam(gates.param_groups(lr=1e-3))
        gates.attach(optimizer)
        loss = criterion(model(x), y) + gates.penalty(1e-3)

    Args:
        model: any module; its `TriStateReLU` layers are found once, here.

    Raises:
        ValueError: it has none.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self.layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, TriStateReLU)}
        if not self.layers:
            raise ValueError(
                "Gates: the model must have TriStateReLU layers (got none); put them in by hand or with "
                "resgrow.swap_activations"
            )

    def penalty(self, coefficients: float | GateCoefficients) -> Tensor:
        """``l1 sum w (1 - w) + l2 sum d (1 - d) + l3 sum_i h_i 1[d_i < .5] - l4 sum_i d_i``, ``h_i = sum_j w_ij``.

        Sums over the layers ``i`` and their channels ``j``, to be added to the mean loss. The indicator is a constant:
        a depth gate does not feel the width it saves. Of gates that are not learnt nothing is counted. Gates that
        layers share count in each of them.

        Args:
            coefficients: all four, or ``l3`` alone and the others by :meth:`GateCoefficients.of`.

        Returns:
            0-dim, of the gates' dtype.
        """
        c = coefficients if isinstance(coefficients, GateCoefficients) else GateCoefficients.of(coefficients)
        terms = [term for layer in self.layers.values() for term in _terms(layer, c)]
        if not terms:
            return next(iter(self.layers.values())).w.new_zeros(())
        return torch.stack(terms).sum()

    def parameters(self) -> list[nn.Parameter]:
        """Gates that are learnt, each once."""
        found = {id(p): p for layer in self.layers.values() for p in (layer.w, layer.d) if p.requires_grad}
        return list(found.values())

    def param_groups(self, lr: float = 1e-3, **options: Any) -> list[dict[str, Any]]:
        """Two groups for an optimizer over the whole model: everything else, and the gates with options of their own.

        Args:
            lr: of the gates. With Adam .001 moves a gate from .7 to .5 in some hundred steps at the earliest, which
                leaves the weights time to take over; large steps close gates before the loss has a say.
            **options: further ones of the gates' group; weight decay is off there unless it is given.
        """
        gates = self.parameters()
        ids = {id(p) for p in gates}
        rest = [p for p in self._model.parameters() if id(p) not in ids]
        return [{"params": rest}, {"weight_decay": 0.0, **options, "params": gates, "lr": lr}]

    @torch.no_grad()
    def clip_(self) -> None:
        """Bring all gates into [0, 1], as is due after each update."""
        for gate in self.parameters():
            gate.clamp_(0, 1)

    def attach(self, optimizer: Optimizer) -> RemovableHandle:
        """Clip after each step of ``optimizer`` from now on; the handle's ``remove`` ends that."""
        return optimizer.register_step_post_hook(lambda *_: self.clip_())

    def widths(self) -> dict[str, int]:
        """Open channels of each layer."""
        return {name: int((layer.w >= 0.5).sum()) for name, layer in self.layers.items()}

    def linear(self) -> Sequence[str]:
        """Layers whose depth gate is open: their channels pass unchanged."""
        return [name for name, layer in self.layers.items() if bool(layer.d >= 0.5)]


def _terms(layer: TriStateReLU, c: GateCoefficients) -> list[Tensor]:
    terms = []
    w, d = layer.w, layer.d
    if w.requires_grad:
        bent = (d.detach() < 0.5).to(w.dtype)
        terms.append(c.binary_width * (w * (1 - w)).sum() + c.width * bent * w.sum())
    if d.requires_grad:
        terms.append((c.binary_depth * d * (1 - d) - c.depth * d).to(w.dtype))
    return terms
