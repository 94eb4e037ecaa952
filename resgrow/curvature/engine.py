"""The public function: checks what is asked for and hands it to a method."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from resgrow.curvature.batches import Batch, device_of, iterate
from resgrow.curvature.damping import PROBE_SAMPLES, mean_curvature, measured_damping
from resgrow.curvature.heads import LossFn, head_of
from resgrow.curvature.hessian import hessian
from resgrow.curvature.hutchinson import hutchinson
from resgrow.curvature.lecun import lecun
from resgrow.curvature.progress import Report, metered
from resgrow.curvature.request import Request
from resgrow.curvature.result import Curvature
from resgrow.curvature.squares import squares

METHODS: dict[str, Callable[[Request], dict[str, Tensor]]] = {
    "ggn": squares,
    "ggn-mc": squares,
    "fisher": squares,
    "hessian": hessian,
    "hutchinson": hutchinson,
    "lecun": lecun,
}

# Options with a meaning for some methods only: their neutral value, those methods, and why the others do without.
_OPTIONS: dict[str, tuple[Any, tuple[str, ...], str]] = {
    "samples": (1, ("ggn-mc", "hutchinson"), "the others draw nothing"),
    "train": (False, ("hessian", "hutchinson"), "the others need samples that do not influence each other"),
    "control_variate": (False, ("hutchinson",), "the others have no residual to estimate"),
    "temperature": (
        1,
        ("ggn", "ggn-mc", "hessian", "hutchinson", "lecun"),
        "the Fisher matrix is made of the gradients of the loss as it is",
    ),
}


def curvature(
    model: nn.Module,
    loss_fn: LossFn,
    data: Iterable[Any] | Batch,
    method: str = "ggn-mc",
    *,
    samples: int = 1,
    temperature: float = 1.0,
    damping: float | str = 0.0,
    generator: torch.Generator | None = None,
    train: bool = False,
    control_variate: bool = False,
    progress: bool | Report = False,
) -> Curvature:
    """Diagonal curvature of the *mean* loss over ``data`` with respect to every trainable parameter.

    ``L`` is the mean loss, ``l_n`` sample ``n``'s, ``g_n(v)`` the gradient that a vector ``v`` at the output of sample
    ``n`` sends to a parameter, and ``S_c`` the factors of the loss's Hessian at the output (``sum_c S_c S_c^T``).

    ================ ================================================ ============================================
    method           definition                                       cost per batch
    ================ ================================================ ============================================
    ``"hessian"``    ``d2L/dw_k^2``                                   one backward pass per parameter *element*
    ``"ggn"``        ``1/N sum_n sum_c g_n(S_c)^2``                   one backward pass per output (classes - 1)
    ``"ggn-mc"``     ``1/N sum_n g_n(v_n)^2``, ``E[v v^T] = S S^T``   ``samples`` backward passes
    ``"fisher"``     ``1/N sum_n (dl_n/dw)^2``                        one backward pass
    ``"lecun"``      the recursion of diagonals                       one backward pass, two if activations curve
    ``"hutchinson"`` ``E[z * Hz]``, random signs ``z``                ``samples`` double backward passes
    ================ ================================================ ============================================

    * ``"hessian"`` is exact for any operation that torch can differentiate twice, and signed: with tanh or GELU many
      entries are negative. For small networks.
    * ``"ggn"``, the generalised Gauss-Newton diagonal, equals ``"hessian"`` for networks that are piecewise linear in
      each layer's weights (ReLU, pooling, norms with fixed statistics, residual sums). It is >= 0 for convex losses.
    * ``"ggn-mc"`` is an unbiased estimate of ``"ggn"``: ``v`` is a square root of the loss's Hessian times random
      signs, whose variance is far below that of sampled labels where softmax saturates.
    * ``"fisher"`` is the empirical Fisher diagonal, with the true targets. It is *not* an estimate of the Hessian: near
      interpolation it holds a small part of its mass.
    * ``"lecun"`` is *approximate*: LeCun's (1989) recursion, which leaves out all curvature off the diagonal at the
      output, in every layer and between positions. Functions need a rule each.
    * ``"hutchinson"`` is an unbiased estimate of ``"hessian"``, whose variance is the mass off the diagonal. With
      ``control_variate`` it is ``"ggn"`` plus an estimate of what ``"ggn"`` leaves out, and only that is noisy: nothing
      where the two are equal. That costs a ``"ggn"`` pass and ``samples`` double backward passes per *layer*.

    **Scale.** Everything is of the mean loss over all data: the sum of losses over the sum of what torch divides by for
    ``reduction="mean"``, not a mean of batch means. That divisor is the number of elements for MSE and BCE, the summed
    class weights of all targets that are not ignored for cross-entropy, and the number of samples for other losses. A
    loss with ``reduction="sum"`` is divided by the number of samples. Fisher entries are the mean over samples of the
    squared gradient of a sample's own loss, scaled such that those losses have ``L`` as their mean.

    **Losses.** ``CrossEntropyLoss`` (class indices or probabilities, per token, with every option), ``MSELoss`` and
    ``BCEWithLogitsLoss``, their functional forms, and ``functools.partial`` of those. Any other loss that says how it
    reduces goes by its own Hessian at the output, of up to 1,024 elements per sample, provided that it treats samples
    independently. For per-token losses ``"ggn"`` takes one backward pass per token and class.

    The model runs in eval mode, one forward pass per batch, each layer in its own dtype; results have the
    parameter's shape, in float32 (float64 for float64 parameters). Batches are read once, one at a time.

    Args:
        model: any module; frozen parameters are left out. For ``"ggn"``, ``"ggn-mc"`` and ``"fisher"`` parameters that
            enter a function without a rule are differentiated one sample at a time: as exact, slow, and with a warning
            that names them. ``"lecun"`` refuses functions without a rule.
        loss_fn: see above; called with the model's output and the target.
        data: yields ``(input, target)`` batches; one pair of tensors counts as one batch.
        method: one of the above.
        samples: random vectors per sample (``"ggn-mc"``) or per batch (``"hutchinson"``).
        temperature: takes the curvature of ``T^2 l(output / T)``: T > 1 reveals curvature that a saturated softmax or
            sigmoid hides. For the two cross-entropies.
        damping: ``d >= 0``: adds ``d`` times the mean of ``max(h, 0)`` over all weights (parameters of two dimensions
            or more, all layers together) to every entry. ``"auto"`` takes the ``d``, at most 100, under which the
            quadratic model predicts best (least squares) what it costs to set six random sets of 3 % of all weights to
            zero, as measured on the first batches that hold 2,048 samples, in eval mode and at temperature 1: one
            forward and backward pass and seven forward passes over those. The result says which ``d`` it was.
        generator: the only source of randomness, of the model's and the data's own as well (dropout with ``train``,
            shuffling); by default a fresh one with seed 0. The global random state is left as it was.
        train: run modules in their own modes, for ``"hessian"`` and ``"hutchinson"``: batch norm then uses the batch's
            statistics, which makes the loss one function of a whole batch; batches are averaged by what they count for.
            Dropout draws one mask per batch. Running statistics stay as they are.
        control_variate: see ``"hutchinson"``; in eval mode only, as ``"ggn"`` is.
        progress: True draws a bar on stderr while it runs; or a function that is called with (done, total) after every
            batch, total being None where ``len(data)`` is not known. ``"hessian"`` counts parameter elements times
            batches.

    Returns:
        ``{parameter name: tensor of the parameter's shape}``, a dict that also says how it was computed.

    Raises:
        ValueError: unknown method, an option without meaning for it, unsupported loss or layer, no data, or an output
            or loss that is not finite. The model is left as it was found, also then.
        TypeError: ``data`` does not yield pairs, or an option is of the wrong type.
    """
    options = {
        "samples": samples,
        "temperature": temperature,
        "train": train,
        "control_variate": control_variate,
    }
    _check(model, method, damping, options)
    if not isinstance(progress, bool) and not callable(progress):
        raise TypeError(f"curvature: progress must be True, False or a function (got {progress!r})")
    head = head_of("curvature", loss_fn, temperature)
    device = device_of(model)
    generator = generator or torch.Generator(device).manual_seed(0)
    probe: list[Batch] = []
    elements = sum(p.numel() for p in model.parameters() if p.requires_grad) if method == "hessian" else 1
    meter_of = metered(progress, f"curvature: {method}", _length(data), elements)
    with meter_of as meter, _isolated_random_state(device, generator):
        batches = data if damping != "auto" else _remember(iterate("curvature", data, device), probe)
        h = METHODS[method](Request(model, head, batches, method, samples, generator, train, control_variate, meter))
        multiple = measured_damping(model, loss_fn, h, probe, generator) if damping == "auto" else float(damping)
    mean = mean_curvature(h)
    if multiple:
        for entry in h.values():
            entry.add_(multiple * mean)
    return Curvature(h, method=method, samples=samples, temperature=temperature, damping=multiple, mean=mean)


def _check(model: nn.Module, method: str, damping: float | str, options: dict[str, Any]) -> None:
    if method not in METHODS:
        raise ValueError(f"curvature: method must be one of {', '.join(METHODS)} (got {method!r})")
    if isinstance(model, nn.parallel.DistributedDataParallel):
        raise ValueError(
            "curvature: pass model.module instead of the DistributedDataParallel wrapper; every rank gets the "
            "curvature of its own data, to be averaged with all_reduce"
        )
    samples = options["samples"]
    if not isinstance(samples, int) or isinstance(samples, bool) or samples < 1:
        raise ValueError(f"curvature: samples must be at least 1 (got {samples!r})")
    number = isinstance(damping, (int, float)) and not isinstance(damping, bool)
    if damping != "auto" and not (number and 0 <= float(damping) < math.inf):
        raise ValueError(f"curvature: damping must be 'auto' or a number >= 0 (got {damping!r})")
    for name, value in options.items():
        neutral, methods, reason = _OPTIONS[name]
        if value != neutral and method not in methods:
            raise ValueError(
                f"curvature: {name} has no meaning for {method!r} (got {value}): {reason}; leave it at {neutral}, or "
                f"use one of {', '.join(methods)}"
            )
    if options["control_variate"] and options["train"]:
        raise ValueError("curvature: control_variate needs eval mode, as 'ggn' does (got train=True); leave one out")


def _length(data: Iterable[Any] | Batch) -> int | None:
    if isinstance(data, (tuple, list)) and len(data) == 2 and all(isinstance(item, Tensor) for item in data):
        return 1
    try:
        return len(data)  # type: ignore[arg-type]
    except TypeError:
        return None


def _remember(batches: Iterator[Batch], probe: list[Batch]) -> Iterator[Batch]:
    """``batches``, of which ``probe`` keeps the first: data may be readable only once."""
    count = 0
    for batch in batches:
        if count < PROBE_SAMPLES:
            probe.append(batch)
        count += batch[1].shape[0]
        yield batch


@contextmanager
def _isolated_random_state(device: torch.device, generator: torch.Generator) -> Iterator[None]:
    """The global random state is a function of ``generator`` inside and as before outside."""
    devices = [device.index or 0] if device.type == "cuda" else []
    seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
    with torch.random.fork_rng(devices):
        # Not torch.manual_seed: it would also seed devices that have not been saved.
        torch.default_generator.manual_seed(seed)
        for index in devices:
            torch.cuda.default_generators[index].manual_seed(seed)
        yield
