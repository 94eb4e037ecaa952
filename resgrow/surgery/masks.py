"""Masks that keep removed weights at zero under any optimizer."""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import LBFGS, Optimizer
from torch.utils.hooks import RemovableHandle

from resgrow._text import table
from resgrow.nn.block_sparse_base import BlockSparseLayer, present_blocks
from resgrow.surgery.dense_names import dense_parameter, dense_parameters, dense_shape

# Integers as wide as an element of so many bytes.
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Masks(Mapping[str, Tensor]):
    """Which elements of a model's parameters are present: ``{parameter name: bool tensor, True = present}``.

    Making masks changes nothing; `apply` zeroes the absent elements, and `attach` keeps them and the optimizer's
    state for them at zero. Masks, model and optimizers may be copied with one ``copy.deepcopy`` or pickled together;
    an optimizer that is copied or pickled without its masks loses them, as it loses all its hooks.

    Layers that `resgrow.swap` made block-sparse keep the name and the shape of their dense weight here. Their absent
    blocks do not exist; `update` changes which do.

    Args:
        model: the model the names refer to.
        masks: a bool tensor of the parameter's shape for each masked parameter; copied.

    Raises:
        ValueError: a name the model does not have, or a mask of another shape than its parameter.
        TypeError: a mask that is not a bool tensor, or a complex parameter.
    """

    def __init__(self, model: nn.Module, masks: Mapping[str, Tensor]) -> None:
        self._model = model
        self._masks = checked_masks(model, masks)
        self._laid_out: dict[str, tuple[Tensor | None, Tensor | None]] = {}
        self._bits: dict[str, dict[tuple[torch.dtype, torch.device], Tensor]] = {}
        self._attached: list[tuple[Optimizer, RemovableHandle]] = []

    def __getitem__(self, name: str) -> Tensor:
        return self._masks[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._masks)

    def __len__(self) -> int:
        return len(self._masks)

    def __repr__(self) -> str:
        return f"Masks({len(self)} parameters, density {self.density():.4f})"

    @property
    def model(self) -> nn.Module:
        return self._model

    @property
    def optimizers(self) -> list[Optimizer]:
        """Those the masks are attached to."""
        return [optimizer for optimizer, _ in self._attached]

    @torch.no_grad()
    def apply(self) -> None:
        """Zero the absent elements of the weights and of the state of every attached optimizer."""
        for name, parameter, present in self._incomplete():
            self._zero(name, present, parameter)
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
        if not any(id(self._place(name)[0]) in held for name in self._masks):
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

        Elements that become present again keep their value of zero. Block-sparse layers lose and gain blocks, together
        with their gradient and the state of the attached optimizers; that of others would no longer fit. Raises like
        the constructor, with nothing changed.
        """
        checked = checked_masks(self._model, masks)
        self._replace({**self._masks, **checked})

    def state_dict(self) -> dict[str, Tensor]:
        """``{parameter name: bool tensor}``, copied."""
        return {name: mask.clone() for name, mask in self._masks.items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Replace all masks by those of a `state_dict`, and apply. Raises like the constructor, nothing changed."""
        self._replace(checked_masks(self._model, state))

    def exchange(self, masks: Mapping[str, Tensor]) -> None:
        """Other masks, where the model's tensors have become others. For surgery, which sees to it that they fit and
        that absent elements are zero: nothing is checked, and no weight is written to."""
        self._masks = dict(masks)
        self._laid_out.clear()
        self._bits.clear()

    def density(self) -> float:
        """Share of the masked parameters' elements that is present; 1 where nothing is masked."""
        total = sum(mask.numel() for mask in self._masks.values())
        return 1.0 if total == 0 else (total - self._removed()) / total

    def live_parameters(self) -> int:
        """Number of elements of all the model's parameters, less the absent ones."""
        masked = {id(self._place(name)[0]) for name in self._masks}
        others = sum(parameter.numel() for parameter in self._model.parameters() if id(parameter) not in masked)
        return others + sum(int(mask.sum()) for mask in self._masks.values())

    def summary(self) -> str:
        """One line per masked parameter (name, shape, present, density) and a last one for all."""
        rows = []
        present = total = 0
        for name, mask in self._masks.items():
            kept = int(mask.sum())
            shape = "x".join(map(str, mask.shape))
            rows.append((name, shape, f"{kept:,}/{mask.numel():,}", f"{kept / max(mask.numel(), 1):.4f}"))
            present, total = present + kept, total + mask.numel()
        rows.append(("all masked", "", f"{present:,}/{total:,}", f"{self.density():.4f}"))
        return table(("parameter", "shape", "present", "density"), rows, ("parameter", "shape"))

    def __getstate__(self) -> dict[str, Any]:
        # An optimizer drops its hooks when it is copied or pickled; they are registered again by __setstate__.
        return {
            "model": self._model,
            "masks": self._masks,
            "optimizers": self.optimizers,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._model = state["model"]
        self._masks = state["masks"]
        self._laid_out = {}
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
        for name, parameter, present in self._incomplete():
            if id(parameter) not in held:
                continue
            if weights:
                self._zero(name, present, parameter)
            for value in optimizer.state.get(parameter, {}).values():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    self._zero(name, present, value)

    def _replace(self, masks: dict[str, Tensor]) -> None:
        self._masks = masks
        self._laid_out.clear()
        for name, mask in masks.items():
            _, layer = self._place(name)
            if layer is not None and not torch.equal(blocks := present_blocks(mask, layer.block), layer.mask):
                layer.set_mask(blocks, self.optimizers)
        self.apply()

    def _incomplete(self) -> Iterator[tuple[str, nn.Parameter, Tensor]]:
        """Parameters that lack some elements, and which are present, laid out like the parameter."""
        for name, mask in self._masks.items():
            parameter, layer = self._place(name)
            index = None if layer is None else layer.index
            known = self._laid_out.get(name)
            if known is None or known[0] is not index:
                present = mask if layer is None else layer.packed(mask)
                known = self._laid_out[name] = (index, None if present.all() else present)
                self._bits[name] = {}
            if known[1] is not None:
                yield name, parameter, known[1]

    def _zero(self, name: str, present: Tensor, value: Tensor) -> None:
        """Zero the absent elements of a tensor of the parameter's shape, in place.

        By a bitwise and with all ones or none: as quick as a product with a mask of floats, but it also turns NaN into
        zero, as masked_fill_ would, which branches on every element (40 times the time on CPUs).
        """
        integer = _INTEGERS[value.element_size()]
        bits = self._bits[name]
        key = (integer, value.device)
        if key not in bits:
            # Laid out like the tensor (channels_last), so that both are read in memory order.
            bits[key] = torch.empty_like(value, dtype=integer).copy_(present).neg_()
        value.detach().view(integer).bitwise_and_(bits[key])

    def _place(self, name: str) -> tuple[nn.Parameter, BlockSparseLayer | None]:
        place = dense_parameter(self._model, name)
        if dense_shape(place) != tuple(self._masks[name].shape):
            raise RuntimeError(
                f"Masks: parameter {name} must keep the shape it was masked with (got {dense_shape(place)}, "
                f"mask {tuple(self._masks[name].shape)}); make new masks after changing the model"
            )
        return place

    def _removed(self) -> int:
        return sum(mask.numel() - int(mask.sum()) for mask in self._masks.values())


def _held(optimizer: Optimizer) -> set[int]:
    return {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}


def checked_masks(model: nn.Module, masks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Copies of ``masks`` on their parameters' devices. Raises as `Masks`."""
    if not isinstance(masks, Mapping):
        raise TypeError(f"Masks: needs a mapping from parameter name to mask (got {type(masks).__name__})")
    places = dense_parameters(model)
    checked = {}
    for name, mask in masks.items():
        if name not in places:
            raise ValueError(
                f"Masks: every name must be a parameter of the model (got {name!r}); "
                "names are those of model.named_parameters()"
            )
        if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
            given = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
            raise TypeError(f"Masks: a mask must be a bool tensor, True = present (got {given} for {name})")
        shape, (parameter, _) = dense_shape(places[name]), places[name]
        if tuple(mask.shape) != shape:
            raise ValueError(
                f"Masks: a mask must have its parameter's shape (got {tuple(mask.shape)} for {name} of shape {shape})"
            )
        if parameter.is_complex():
            raise TypeError(f"Masks: parameters must be real (got {parameter.dtype} for {name})")
        checked[name] = mask.detach().to(parameter.device, copy=True)
    return checked
