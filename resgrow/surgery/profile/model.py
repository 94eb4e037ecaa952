"""Profiling a model: the passes that it takes, and the rows made of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from resgrow._memory import peak_bytes
from resgrow._modes import eval_mode, train_mode, undisturbed
from resgrow.surgery.dense_names import dense_parameter
from resgrow.surgery.forward import AnyInputs, Example
from resgrow.surgery.masks import checked_masks
from resgrow.surgery.profile.latency import latencies
from resgrow.surgery.profile.memory import saved_bytes
from resgrow.surgery.profile.result import LayerProfile, Profile
from resgrow.surgery.profile.trace import Tally, Watched, watch
from resgrow.surgery.profile.widths import width_of

_MEASURED = ("cpu", "cuda")
_FAILURES = (RuntimeError, ValueError, TypeError, IndexError)


@torch.inference_mode(mode=False)  # what is saved for backward could not be seen in it
def profile(
    model: nn.Module,
    example_inputs: AnyInputs,
    *,
    masks: Mapping[str, Tensor] | None = None,
    latency: bool = False,
    memory: bool = True,
) -> Profile:
    """Parameters, multiply-accumulates, memory and time of a model and of each of its layers.

    A row is a module that ran and has no others in it, has parameters or products of its own, or makes tensors that no
    module in it makes (residual sums). MACs are those of every product of matrices, convolution and attention,
    whoever calls it, by the formulas of ``torch.utils.flop_counter`` (half the flops: bias additions and elementwise
    operations count nothing, causal attention counts in full) and more of them. A product belongs to the module that
    runs, or to the one inside it whose parameter it takes. Block-sparse layers count the blocks that are present.

    The model runs in evaluation mode, once for the counts, once for the peak of memory and more often for times, and
    once in training mode, forward only, for what is saved for backward. Afterwards modes, buffers, gradients, hooks and
    random numbers are as before.

    Args:
        example_inputs: a tensor, the sequence of the model's arguments, or its keyword arguments; dimension 0 of the
            first is the batch.
        masks: which elements of parameters are present, as `Masks` has them, for the live numbers. The share of a
            product that is live is that of the weight that it takes.
        latency: measure times too, medians of several passes (on the CPU with one thread: of processor time).
        memory: False leaves out ``saved_bytes`` and ``peak_bytes``, and two passes.

    Raises:
        ValueError: the model does not run on the inputs, is not initialised or scripted, or masks do not fit.
        TypeError: inputs or masks are not tensors.
    """
    example = Example.of(example_inputs, "profile")
    given = example.tensors()
    if any(isinstance(module, torch.jit.ScriptModule) for module in model.modules()):
        raise ValueError("profile: modules must be Python's (got a scripted one); profile what it was made of")
    if any(is_lazy(tensor) for tensor in (*model.parameters(), *model.buffers())):
        raise ValueError("profile: parameters must be initialised (got lazy ones); run the model once before")
    present = None if masks is None else checked_masks(model, masks)
    device = next((tensor.device for tensor in (*model.parameters(), *given)), torch.device("cpu"))
    notes: list[str] = []

    def call() -> object:
        return model(*example.args, **example.kwargs)

    def measured(what: str, run: Callable[[], int]) -> int | None:
        try:
            return run()
        except _FAILURES as error:
            notes.append(f"{what} is not known: {str(error).splitlines()[0] if str(error) else type(error).__name__}")
            return None

    saved = peak = seconds = None
    spent: dict[int, float] = {}
    with undisturbed(model, {device, *(x.device for x in given)}):
        with eval_mode(model), torch.no_grad():
            try:
                watched = watch(model, call, given, present)
            except _FAILURES as error:
                raise ValueError(
                    f"profile: the model must run on example_inputs (got {error}); pass a batch of its"
                ) from error
            real = device.type in _MEASURED
            if not real and (memory or latency):
                notes.append(f"peaks and times are not known on {device.type}: only on {' and '.join(_MEASURED)}")
            if memory and real:
                peak = measured("the peak in inference", lambda: peak_bytes(call, device))
            if latency and real:
                seconds, spent = latencies(model, call, device)
        if memory:
            with train_mode(model):
                saved = measured("what is saved for backward", lambda: saved_bytes(model, call))
    batch = len(given[0])
    layers = _rows(model, watched, present, batch, spent)
    notes[:0] = [f"products of {name} are not counted: no formula" for name in sorted(watched.unknown)]
    threads = torch.get_num_threads()
    return Profile(layers, batch, str(device), threads, masks is not None, saved, peak, seconds, tuple(notes))


def _rows(
    model: nn.Module,
    watched: Watched,
    masks: Mapping[str, Tensor] | None,
    batch: int,
    seconds: Mapping[int, float],
) -> tuple[LayerProfile, ...]:
    live = {id(parameter): parameter.numel() for parameter in model.parameters()}
    for name, mask in (masks or {}).items():
        live[id(dense_parameter(model, name)[0])] = int(mask.sum())
    seen: set[int] = set()
    rows = []
    for name, module in _in_order(model, watched.tallies):
        tally = watched.tallies[id(module)]
        own = list(module.parameters(recurse=False))
        leaf = tally.started is not None and not any(True for _ in module.children())
        if not (leaf or own or tally.macs or tally.bytes):
            continue
        new = [parameter for parameter in own if id(parameter) not in seen]
        seen.update(map(id, new))
        rows.append(
            LayerProfile(
                name=name,
                kind=type(module).__name__,
                width=width_of(module, tally.shape, tally.macs > 0),
                calls=tally.calls,
                params=sum(parameter.numel() for parameter in new),
                live_params=sum(live[id(parameter)] for parameter in new),
                macs=round(tally.macs / batch),
                live_macs=round(tally.live_macs / batch),
                activation_bytes=tally.bytes,
                seconds=seconds.get(id(module), 0.0) if seconds else None,
            )
        )
    return tuple(rows)


def _in_order(model: nn.Module, tallies: Mapping[int, Tally]) -> list[tuple[str, nn.Module]]:
    """As they first ran; what never ran as a module stands behind the module around it."""
    keys: dict[str, tuple[int, int]] = {}
    named = dict(model.named_modules())
    for place, (name, module) in enumerate(named.items()):
        started = tallies[id(module)].started
        around = keys[name.rpartition(".")[0]] if name else (0, 0)
        keys[name] = (around[0], place) if started is None else (started, 0)
    return sorted(named.items(), key=lambda item: keys[item[0]])
