"""One function for all criteria, and the table of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from resgrow.curvature.batches import Batch
from resgrow.curvature.heads import LossFn
from resgrow.curvature.progress import Report
from resgrow.saliency.apoz import apoz
from resgrow.saliency.baselines import magnitude, random
from resgrow.saliency.first_order import taylor
from resgrow.saliency.obs import layer_surgeon, obs
from resgrow.saliency.request import Request
from resgrow.saliency.result import Saliency
from resgrow.saliency.second_order import fisher, obd
from resgrow.saliency.wanda import wanda


@dataclass(frozen=True)
class Criterion:
    """A row of ``METHODS``: the function, and the options that mean something to it."""

    score: Callable[[Request], Saliency]
    options: frozenset[str] = frozenset()


METHODS: dict[str, Criterion] = {
    "obd": Criterion(obd, frozenset({"curvature", "damping", "power", "temperature", "samples", "generator"})),
    "magnitude": Criterion(magnitude),
    "taylor": Criterion(taylor),
    "fisher": Criterion(fisher),
    "obs": Criterion(obs, frozenset({"hessian", "damping", "block_size", "samples", "temperature", "generator"})),
    "wanda": Criterion(wanda),
    "apoz": Criterion(apoz),
    "random": Criterion(random, frozenset({"generator"})),
}


def saliency(
    model: nn.Module,
    loss_fn: LossFn | None = None,
    data: Iterable[Any] | Batch | None = None,
    method: str = "obd",
    *,
    curvature: str | None = None,
    damping: float | str | None = None,
    power: float | None = None,
    temperature: float | None = None,
    samples: int | None = None,
    hessian: str | None = None,
    block_size: int | None = None,
    generator: torch.Generator | None = None,
    refit: bool = False,
    progress: bool | Report = False,
) -> Saliency:
    """Score of every trainable parameter element: how much is lost when it goes. The model is left as it was.

    Methods, with the options that each one takes:

    * ``"obd"``: ``1/2 (max(h, 0) + d) w^2`` with ``h`` the diagonal curvature of the mean loss and ``d = damping *
      mean(max(h, 0))`` over all weights: the predicted rise of the mean loss (LeCun, Denker & Solla 1990, eq. 3,
      damped). Options: ``curvature``, ``damping``, ``power``, ``temperature``, ``samples``, ``generator``.
    * ``"fisher"``: ``1/2 F w^2`` with ``F`` the empirical Fisher diagonal of the mean loss: the same, from gradients
      alone and undamped.
    * ``"obs"``: ``w^2 / (2 [H^-1]_kk)``, the predicted rise when the other weights make up for the loss as well as they
      can (Hassibi & Stork 1993, eq. 5); `resgrow.prune` then corrects them. Options: ``hessian``, ``damping``,
      ``block_size``, and for ``hessian="ggn-mc"`` ``samples``, ``temperature``, ``generator``.
    * ``"taylor"``: ``|g w|`` with ``g`` the gradient of the mean loss over all data: the size of its first-order change
      (Molchanov et al. 2017, eq. 8, of a parameter).
    * ``"wanda"``: ``|w| ||x||_2`` with ``x`` the weight's input feature over all samples and positions of the data, a
      norm, not a mean (Sun et al. 2023, eq. 1). A bias has the input 1 at each output position. Parameters of other
      than linear and convolutional layers score 0.
    * ``"apoz"``: ``1 - APoZ`` of each channel of a linear or convolutional layer, spread evenly over its weights, with
      APoZ the share of zeros at the first activation that the layer's output reaches, through norms, residual adds,
      pooling and flattening (Hu et al. 2016, eq. 1). 1 for layers that reach none. Other parameters score 0. For
      ``prune(block="channel")``, best with ``scope="layer"``.
    * ``"magnitude"``: ``|w|``. Needs neither loss nor data.
    * ``"random"``: uniform on [0, 1). Needs neither. Option: ``generator``.

    The model runs in eval mode. Data is read once, batch by batch (twice with ``refit``).

    Args:
        model: see ``resgrow.curvature``.
        loss_fn: see ``resgrow.curvature``; without use for ``"wanda"``, ``"apoz"`` and ``hessian="layer"``.
        data: yields ``(input, target)`` batches.
        method: one of the above.
        curvature: method of ``resgrow.curvature``; by default "ggn-mc". Negative entries count as 0.
        damping: a number >= 0. For "obd" a multiple of the mean curvature over all weights, or "auto" (the default),
            which works on the first 2,048 samples of ``data``: weights are deleted a quarter at a time in a copy of
            the model, curvature is taken anew after each stage, and each stage keeps the damping and ``power`` under
            which its deletions raise the measured loss least. It costs 13 curvature passes and up to 78 loss
            evaluations; a number costs one pass. For "obs" what is added to the diagonal, as a multiple of the mean
            diagonal, of all weights together for "fisher" and "ggn-mc" (default 1) and of each layer by itself for
            "layer" (default 0.01).
        power: with a number for ``damping``: ``h + d`` enters as ``(h + d)^power mean(h)^(1 - power)``, in (0, 1].
        temperature: see ``resgrow.curvature``.
        samples: see ``resgrow.curvature``.
        hessian: of what "obs" takes ``H``. "fisher" (the default): of the mean loss, by the empirical Fisher matrix in
            blocks of ``block_size`` weights of one row (Singh & Alistarh 2020). "ggn-mc": the same blocks of the
            Gauss-Newton matrix, estimated as by ``resgrow.curvature``, with its ``samples`` and ``temperature``; near
            interpolation the Fisher matrix misses most of the curvature. "layer": of the squared error of each layer's
            own output, ``2/N X X^T`` with ``X`` its unfolded inputs, one matrix for all rows (Frantar & Alistarh 2022);
            scores are then in units of that error, not of the loss, and compare within a layer only. Needs no loss;
            parameters of other than linear and (not transposed) convolutional layers score 0.
        block_size: weights per block at most, for ``hessian="fisher"`` and "ggn-mc"; by default 64. As many numbers are
            kept per weight.
        generator: source of randomness; by default a fresh one with seed 0. The global random state is left as it was.
        refit: let `resgrow.prune` correct the survivors of any criterion such that each layer's output stays what it is
            on ``data``, by least squares with the matrices of ``hessian="layer"`` (and its default damping); takes the
            place of a correction that the method brings itself. Reads ``data`` a second time, without gradients. On
            LeNet-5 with 95 % of the weights removed at once it matters more than the criterion. Weights that their own
            module does not run with (MultiheadAttention) stay as they are.
        progress: True draws a bar on stderr while it runs; or a function that is called with (done, total) after every
            batch, or every stage of "auto"; total is None where ``len(data)`` is not known.

    Raises:
        ValueError: unknown method, an option that the method does not have or that is out of range, missing loss or
            data, scores that are not finite, and all that ``resgrow.curvature`` raises.
        TypeError: complex parameters.
    """
    given = {
        "curvature": curvature,
        "damping": damping,
        "power": power,
        "temperature": temperature,
        "samples": samples,
        "hessian": hessian,
        "block_size": block_size,
        "generator": generator,
    }
    options = {name: value for name, value in given.items() if value is not None}
    criterion = _checked(method, options)
    for name, parameter in model.named_parameters():
        if parameter.is_complex():
            raise TypeError(f"saliency: parameters must be real (got {parameter.dtype} for '{name}')")
    if refit and isinstance(data, Iterator):
        raise ValueError(
            f"saliency: refit reads data a second time (got a {type(data).__name__}, which can be read once); pass a "
            "list or a loader"
        )
    request = Request(model, loss_fn, data, method, options, progress)
    devices = [parameter.device for parameter in model.parameters() if parameter.is_cuda][:1]
    with torch.random.fork_rng(devices):  # loaders that shuffle draw from the global state
        scores = criterion.score(request)
        if refit:
            scores.compensation = layer_surgeon(request)
    for name, score in scores.items():
        if not torch.isfinite(score).all():
            raise ValueError(f"saliency: scores of '{name}' are not finite; check that parameter and the data")
    scores.options = {name: value for name, value in options.items() if name != "generator"}
    return scores


def _number(value: Any, least: float, most: float = math.inf) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and least <= value < most


# What the options must be, beyond what ``resgrow.curvature`` checks itself.
_RULES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "damping": (lambda value: value == "auto" or _number(value, 0), "'auto' or a number >= 0"),
    "power": (lambda value: _number(value, 0, math.nextafter(1, 2)) and value > 0, "in (0, 1]"),
    "block_size": (lambda value: type(value) is int and value >= 1, "a whole number >= 1"),
}


def _checked(method: str, options: dict[str, Any]) -> Criterion:
    if method not in METHODS:
        raise ValueError(f"saliency: method must be one of {', '.join(METHODS)} (got {method!r})")
    known = METHODS[method].options
    for name, value in options.items():
        if name not in known:
            takes = ", ".join(sorted(known)) or "no options"
            raise ValueError(f"saliency: method '{method}' takes {takes} (got {name}={value!r}); leave it out")
        if name in _RULES and not _RULES[name][0](value):
            raise ValueError(f"saliency: {name} must be {_RULES[name][1]} (got {value!r})")
    return METHODS[method]
