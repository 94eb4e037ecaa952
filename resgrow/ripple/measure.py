"""The public function: checks what is asked for, and fills a row for each layer."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from resgrow._modes import eval_mode, undisturbed
from resgrow.curvature import curvature as curvature_of
from resgrow.curvature.batches import Batch, device_of, iterate
from resgrow.curvature.evaluate import mean_loss
from resgrow.curvature.heads import LossFn
from resgrow.curvature.progress import Report, metered
from resgrow.ripple.layers import Layer, layers_of
from resgrow.ripple.reach import OUTPUT, reach
from resgrow.ripple.result import LayerRipple, Ripple
from resgrow.surgery.forward import AnyInputs, Example
from resgrow.surgery.growth_gain import growth_gain
from resgrow.surgery.profile import profile
from resgrow.surgery.wrappers import unwrapped

_OP = "ripple"


def ripple(
    model: nn.Module,
    loss_fn: LossFn,
    data: Iterable[Any] | Batch,
    *,
    sigma: float = 0.1,
    curvature: str = "ggn-mc",
    samples: int = 1,
    draws: int = 8,
    directions: int = 4,
    example_inputs: AnyInputs | None = None,
    units: int = 1,
    all_parameters: bool = False,
    generator: torch.Generator | None = None,
    progress: bool | Report = False,
) -> Ripple:
    """What small relative changes of each layer's weights do: to the loss, and to every layer behind.

    A layer's weights ``w``, its biases among them, become ``w (1 + sigma z)`` with independent standard normal ``z``.

    * **analytic**: ``sigma^2 sum_k 1/2 h_kk w_k^2``, that is ``sigma^2`` times the layer's undamped OBD saliency.
      First- and third-order terms vanish in expectation, as do products of two different ``z``, so that with the
      exact diagonal of the Hessian (``curvature="hessian"``) ``E[L(w (1 + sigma z))] - L(w)`` differs from it by
      ``O(sigma^4)`` alone, whatever the off-diagonals are; ``"ggn"`` is that diagonal for networks that are piecewise
      linear in each layer's weights. Kinks are in no Hessian: where changes carry activations across those of ReLUs,
      the mean over many samples rises or falls by more, and by as high an order of ``sigma``. Negative curvature
      counts as it is, unlike in `resgrow.saliency`. The sum over layers is for all of them changed at once. One
      curvature pass gives it for all layers.
    * **measured**: the mean of ``L(w (1 + sigma z)) - L(w)`` over ``draws`` pairs ``z, -z``, in which odd orders
      cancel, and its standard error. ``2 draws`` passes over the data per layer.
    * **reach**: ``sigma`` times the RMS of the directional derivative along ``w z``, over the RMS of the output, at the
      output of the model and of every layer that notices; RMS over data and ``directions`` draws of ``z``. By
      forward-mode differentiation; by finite differences, with a note, for layers behind which an operation has no
      such derivative or loses it. About three passes over the data per direction and layer.
    * **gain**: ``rho+`` of the first ``units`` new units together, see `resgrow.growth_gain`, for layers that can grow.
    * **cost**: parameters, and multiply-accumulates per sample.

    A small ripple says that a layer can shrink; that a large one says that it should grow was measured to be false:
    look at the gain.

    A layer is a module with a trainable parameter of its own of two dimensions or more, called or not; its other
    parameters count in, frozen ones stay as they are. Parameters that layers share belong to the first of them, and
    change in all. The model runs in eval mode and is left as it was, as are torch's random numbers.

    Args:
        model: see `resgrow.curvature`; ``torch.compile`` and ``nn.DataParallel`` are looked through.
        loss_fn: see `resgrow.curvature`.
        data: yields ``(input, target)`` batches; read once and kept on the model's device.
        sigma: relative size of the changes, > 0.
        curvature, samples: method of `resgrow.curvature` and its random vectors.
        draws: pairs of perturbations; 0 leaves the measured ripple out.
        directions: of the reach; 0 leaves it out.
        example_inputs: a tensor, the sequence of the model's arguments, or a mapping of its keyword arguments. Without
            them there is neither gain nor multiply-accumulates.
        units: new units that the gain is of, >= 1.
        all_parameters: rows also for modules whose parameters have fewer dimensions, such as norms.
        generator: source of randomness; by default a fresh one with seed 0.
        progress: True draws a bar on stderr; or a function that is called with (done, total) after every layer.

    Raises:
        ValueError: no such layer, options out of range, no data, a loss that is not finite, example_inputs that the
            model does not run on, a model wrapped for several processes, and all that `resgrow.curvature` raises.
        TypeError: options or data of other types.
    """
    model = unwrapped(_OP, model)
    _check(sigma, {"draws": (draws, 0), "directions": (directions, 0), "units": (units, 1)})
    if example_inputs is not None:
        Example.of(example_inputs, _OP)  # wrong ones are refused before anything is computed
    if any(is_lazy(tensor) for tensor in (*model.parameters(), *model.buffers())):
        raise ValueError(f"{_OP}: parameters must be initialised (got lazy ones); run the model once before")
    layers = layers_of(model, all_parameters)
    if not layers:
        raise ValueError(
            f"{_OP}: the model must have a trainable parameter of two dimensions or more (got none); "
            "unfreeze one, or pass all_parameters=True"
        )
    device = device_of(model)
    generator = generator or torch.Generator(device).manual_seed(0)
    notes: list[str] = []
    differences: dict[str, list[str]] = {}
    with undisturbed(model, {device}), metered(progress, _OP, len(layers), 1) as meter:
        batches = list(iterate(_OP, data, device))
        h = curvature_of(model, loss_fn, batches, curvature, samples=samples, generator=generator)
        loss = mean_loss(_OP, model, loss_fn, batches)
        if not math.isfinite(loss):
            raise ValueError(f"{_OP}: the loss must be finite (got {loss}); check the data and the weights")
        macs = _macs(model, example_inputs)
        gains = _gains(model, loss_fn, batches, example_inputs, units, notes)
        rows = []
        for layer in layers:
            rises = [_rise(model, loss_fn, batches, layer, sigma, loss, generator) for _ in range(draws)]
            along = [layer.direction(generator) for _ in range(directions)]
            with eval_mode(model):
                felt, reason = reach(model, layer, layers, batches, along)
            if reason:
                differences.setdefault(reason, []).append(layer.name or "(model)")
            relative = {place: sigma * change for place, change in felt.relative().items()}
            rows.append(
                LayerRipple(
                    name=layer.name,
                    kind=type(layer.module).__name__,
                    params=layer.size,
                    macs=None if macs is None else macs.get(layer.name, 0),
                    analytic=sigma * sigma * _obd(layer, h),
                    measured=statistics.fmean(rises) if rises else None,
                    error=statistics.stdev(rises) / len(rises) ** 0.5 if len(rises) > 1 else None,
                    reach=relative.pop(OUTPUT, 0.0) if directions else None,
                    gain=gains.get(layer.name),
                    downstream={place: change for place, change in relative.items() if place is not None},
                )
            )
            meter.batch()
    notes += [f"reach of {', '.join(names)} by finite differences: {why}" for why, names in differences.items()]
    return Ripple(tuple(rows), sigma, loss, curvature, draws, directions, units, tuple(notes))


def _check(sigma: float, counts: dict[str, tuple[int, int]]) -> None:
    if isinstance(sigma, bool) or not isinstance(sigma, (int, float)) or not 0 < sigma < math.inf:
        raise ValueError(f"{_OP}: sigma must be a positive number (got {sigma!r}); 0.1 is ten percent")
    for name, (value, least) in counts.items():
        if type(value) is not int:
            raise TypeError(f"{_OP}: {name} must be a whole number (got {value!r})")
        if value < least:
            raise ValueError(f"{_OP}: {name} must be at least {least} (got {value})")


def _obd(layer: Layer, h: dict[str, Tensor]) -> float:
    return sum(float((0.5 * h[name].double() * w.double().square()).sum()) for name, w in layer.weights.items())


def _rise(
    model: nn.Module,
    loss_fn: LossFn,
    batches: Sequence[Batch],
    layer: Layer,
    sigma: float,
    before: float,
    generator: torch.Generator,
) -> float:
    """Of the mean loss, mean over a perturbation and its opposite."""
    direction = layer.direction(generator)
    after = 0.0
    for by in (sigma, -sigma):
        try:
            after += mean_loss(_OP, model, loss_fn, batches, layer.moved(direction, by)) / 2
        except ValueError as error:  # the loss was a number without the perturbation
            name = layer.name or "the model"
            raise ValueError(
                f"{_OP}: the loss must be a number with {name} changed (got NaN at sigma={sigma:g}); lower sigma"
            ) from error
    return after - before


def _macs(model: nn.Module, example_inputs: AnyInputs | None) -> dict[str, int] | None:
    if example_inputs is None:
        return None
    counted = profile(model, example_inputs, memory=False)
    return {layer.name: layer.macs for layer in counted.layers}


def _gains(
    model: nn.Module,
    loss_fn: LossFn,
    batches: Sequence[Batch],
    example_inputs: AnyInputs | None,
    units: int,
    notes: list[str],
) -> dict[str, float]:
    if example_inputs is None:
        return {}
    try:
        found = growth_gain(model, loss_fn, batches, example_inputs=example_inputs, units=units)
    except ValueError as error:  # the loss is finite and the model runs: it cannot be followed
        notes.append(f"gains are not known: {str(error).splitlines()[0]}")
        return {}
    return {name: float(each.gain[:units].sum()) for name, each in found.items()}
