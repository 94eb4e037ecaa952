"""Masks that keep removed weights at zero under any optimizer."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer
from torch.utils.hooks import RemovableHandle

# Integers as wide as an element of so many bytes.
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Masks(Mapping[str, Tensor]):
    """Which elements of a model's parameters are present: ``{parameter name: bool tensor, True = present}``.

    Making masks changes nothing; `apply` zeroes the absent elements, and `attach` keeps them and the optimizer's
    state for them at zero. Masks, model and optimizers may be copied with one ``copy.deepcopy`` or pickled together;
    an optimizer that is copied or pickled without its masks loses them, as it loses all its hooks.

    Args:
        model: the model the names refer to.
        masks: a bool tensor of the parameter's shape for each masked parameter; copied.

    Raises:
        ValueError: a name the model does not have, or a mask of another shape than its parameter.
        TypeError: a mask that is not a bool tensor, or a complex parameter.
    """

    def __init__(self, model: nn.Module, masks: Mapping[str, Tensor]) -> None:
        self._model = model
        self._masks = _checked(model, masks)
        self._complete: dict[str, bool] = {}
        self._bits: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}
        self._attached: list[tuple[Optimizer, RemovableHandle]] = []

    def __getitem__(self, name: str) -> Tensor:
        return self._masks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)

    def __repr__(self) -> str:
        return f"Masks({len(self)} parameters, density {self.density():.4f})"

    @torch.no_grad()
    def apply(self) -> None:
        """Zero the absent elements of the weights and of the state of every attached optimizer."""
        for name, parameter in self._incomplete():
            self._zero(name, parameter)
        for optimizer, _ in self._attached:
            self._clear(optimizer)

    def attach(self, optimizer: Optimizer) -> "Masks":
        """Apply after every step of ``optimizer`` from now on, and once right away.

        Absent elements are then zero in the weights and in every state tensor of the parameter's shape (momenta,
        running averages), whatever the update rule adds to them. Attach to several optimizers where each holds part
        of the parameters. State that appears later, or comes from ``optimizer.load_state_dict``, is covered.

        Returns:
            The masks themselves.

        Raises:
            TypeError: not a `torch.optim.Optimizer`.
            ValueError: LBFGS (it keeps one flat history of all parameters), or none of the masked parameters is in
                the optimizer.
        """
        if not isinstance(optimizer, Optimizer):
            raise TypeError(f"Masks.attach: needs a torch.optim.Optimizer (got {type(optimizer).__name__})")
        if isinstance(optimizer, LBFGS):
            raise ValueError(
                "Masks.attach: LBFGS keeps one flat history of all parameters, which cannot be masked (got LBFGS); "
                "use a per-element optimizer such as SGD or AdamW"
            )
        held = _held(optimizer)
        if not any(id(self._parameter(name)) in held for name in self._masks):
            raise ValueError(
                f"Masks.attach: the optimizer must hold masked parameters (got none of {len(self)}); "
                "make the optimizer from the masked model's own parameters"
            )
        if not any(known is optimizer for known, _ in self._attached):
            self._register(optimizer)
        self.apply()
        return self

    def detach(self) -> None:
        """Stop following all optimizers; weights and state stay as they are."""
        for _, handle in self._attached:
            handle.remove()
        self._attached = []

    def update(self, masks: Mapping[str, Tensor]) -> None:
        """Replace the masks of the given names, keep the others, and apply.

        Elements that become present again keep their value of zero. Raises like the constructor, with nothing changed.
        """
        checked = _checked(self._model, masks)
        self._replace({**self._masks, **checked})

    def state_dict(self) -> dict[str, Tensor]:
        """``{parameter name: bool tensor}``, copied."""
        return {name: mask.clone() for name, mask in self._masks.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Replace all masks by those of a `state_dict`, and apply. Raises like the constructor, nothing changed."""
        self._replace(_checked(self._model, state))

    def density(self) -> float:
        """Share of the masked parameters' elements that is present; 1 where nothing is masked."""
        total = sum(mask.numel() for mask in self._masks.values())
        return 1.0 if total == 0 else (total - self._removed()) / total

    def live_parameters(self) -> int:
        """Number of elements of all the model's parameters, less the absent ones."""
        return sum(parameter.numel() for parameter in self._model.parameters()) - self._removed()

    def summary(self) -> str:
        """One line per masked parameter (name, shape, present, density) and a last one for all."""
        rows = [("parameter", "shape", "present", "density")]
        present = total = 0
        for name, mask in self._masks.items():
            kept = int(mask.sum())
            shape = "x".join(map(str, mask.shape))
            rows.append((name, shape, f"{kept:,}/{mask.numel():,}", f"{kept / max(mask.numel(), 1):.4f}"))
            present, total = present + kept, total + mask.numel()
        rows.append(("all masked", "", f"{present:,}/{total:,}", f"{self.density():.4f}"))
        widths = [max(len(row[column]) for row in rows) for column in range(4)]
        return "\n".join(
            f"{a:<{widths[0]}}  {b:<{widths[1]}}  {c:>{widths[2]}}  {d:>{widths[3]}}" for a, b, c, d in rows
        )

    def __getstate__(self) -> dict[str, Any]:
        # An optimizer drops its hooks when it is copied or pickled; they are registered again by __setstate__.
        return {
            "model": self._model,
            "masks": self._masks,
            "optimizers": [optimizer for optimizer, _ in self._attached],
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._model = state["model"]
        self._masks = state["masks"]
        self._complete = {}
        self._bits = {}
        self._attached = []
        for optimizer in state["optimizers"]:
            self._register(optimizer)

    def _register(self, optimizer: Optimizer) -> None:
        self._attached.append((optimizer, optimizer.register_step_post_hook(self._after_step)))

    def _after_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        self._clear(optimizer, weights=True)

    @torch.no_grad()
    def _clear(self, optimizer: Optimizer, weights: bool = False) -> None:
        # Only what this optimizer holds: writing to other weights would invalidate graphs still waiting for backward.
        held = _held(optimizer)
        for name, parameter in self._incomplete():
            if id(parameter) not in held:
                continue
            if weights:
                self._zero(name, parameter)
            for value in optimizer.state.get(parameter, {}).values():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    self._zero(name, value)

    def _replace(self, masks: dict[str, Tensor]) -> None:
        self._masks = masks
        self._complete.clear()
        self._bits.clear()
        self.apply()

    def _incomplete(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Parameters that lack some elements."""
        for name, mask in self._masks.items():
            if name not in self._complete:
                self._complete[name] = bool(mask.all())
            if not self._complete[name]:
                yield name, self._parameter(name)

    def _zero(self, name: str, value: Tensor) -> None:
        """Zero the absent elements of a tensor of the parameter's shape, in place.

        By a bitwise and with all ones or none: as quick as a product with a mask of floats, but it also turns NaN into
        zero, as masked_fill_ would, which branches on every element (40 times the time on CPUs).
        """
        integer = _INTEGERS[value.element_size()]
        key = (name, integer, value.device)
        if key not in self._bits:
            # Laid out like the tensor (channels_last), so that both are read in memory order.
            self._bits[key] = torch.empty_like(value, dtype=integer).copy_(self._masks[name]).neg_()
        value.detach().view(integer).bitwise_and_(self._bits[key])

    def _parameter(self, name: str) -> nn.Parameter:
        parameter = self._model.get_parameter(name)
        if parameter.shape != self._masks[name].shape:
            raise RuntimeError(
                f"Masks: parameter {name} must keep the shape it was masked with (got {tuple(parameter.shape)}, "
                f"mask {tuple(self._masks[name].shape)}); make new masks after changing the model"
            )
        return parameter

    def _removed(self) -> int:
        return sum(mask.numel() - int(mask.sum()) for mask in self._masks.values())


def _held(optimizer: Optimizer) -> set[int]:
    return {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}


def _checked(model: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    if not isinstance(masks, Mapping):
        raise TypeError(f"Masks: needs a mapping from parameter name to mask (got {type(masks).__name__})")
    parameters = dict(model.named_parameters())
    checked = {}
    for name, mask in masks.items():
        if name not in parameters:
            raise ValueError(
                f"Masks: every name must be a parameter of the model (got {name!r}); "
                "names are those of model.named_parameters()"
            )
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            given = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise TypeError(f"Masks: a mask must be a bool tensor, True = present (got {given} for {name})")
        if mask.shape != parameters[name].shape:
            raise ValueError(
                f"Masks: a mask must have its parameter's shape (got {tuple(mask.shape)} for {name} of shape "
                f"{tuple(parameters[name].shape)})"
            )
        if parameters[name].is_complex():
            raise TypeError(f"Masks: parameters must be real (got {parameters[name].dtype} for {name})")
        checked[name] = mask.detach().to(parameters[name].device, copy=True)
    return checked
