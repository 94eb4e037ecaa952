"""How long one layer takes at any width, measured once per machine and remembered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from resgrow._modes import eval_mode, undisturbed
from resgrow._stopwatch import medians, steady_heap, stopwatch
from resgrow.surgery.forward import Example, outputs
from resgrow.surgery.speed_cache import recall, remember

Layer = nn.Conv2d | nn.Linear
# Long enough to be measured, short beside most layers.
_REFERENCE_SIDE = {"cpu": 256}
_CONV_SETTINGS = ("kernel_size", "stride", "padding", "dilation", "padding_mode")


_MEASURED = ("cpu", "cuda")
_PATIENCE, _LAYER_PATIENCE = 2.0, 0.3  # seconds


@dataclass(frozen=True)
class LayerCall:
    """A Conv2d or Linear and an input of it: all that its time depends on, but for how many channels it has.

    Attributes:
        settings: of a convolution (kernel, stride, padding, dilation, padding mode); nothing for a linear layer.
        weight: the two widths of the full layer: dimensions 1 and 0 of its weight.
        shape: of the full input, channels in dimension ``channels``.
        positions: outputs per output channel, of the whole batch.
    """

    settings: tuple[tuple[str, Any], ...]
    weight: tuple[int, int]
    groups: int
    bias: bool
    shape: tuple[int, ...]
    positions: float
    channels_last: bool
    dtype: torch.dtype
    device: torch.device

    @property
    def channels(self) -> int:
        return -3 if self.settings else -1

    @property
    def group_outputs(self) -> int:
        """Output channels that only go together: those of one group of a grouped convolution."""
        return self.weight[1] // self.groups if self.groups > 1 else 1

    def key(self, inputs: int, outputs: int) -> str:
        """What tells a measurement from all others on one machine."""
        kind = "conv2d" if self.settings else "linear"
        settings = [value for _, value in self.settings]
        shape = self._shape(inputs, outputs)
        threads = torch.get_num_threads()
        parts = ("layer", kind, inputs, outputs, *settings, self._groups(outputs), self.bias, shape)
        return " ".join(map(str, (*parts, self.channels_last, threads, self.dtype)))

    def made(self, inputs: int, outputs: int) -> tuple[Layer, Tensor]:
        """The layer with a weight ``(outputs, inputs, ...)``, and an input for it; random numbers are left alone."""
        groups = self._groups(outputs)
        where: dict[str, Any] = {"bias": self.bias, "device": self.device, "dtype": self.dtype}
        layer: Any
        if self.settings:
            options = {**dict(self.settings), **where, "groups": groups}
            layer = nn.utils.skip_init(nn.Conv2d, inputs * groups, outputs, **options)
        else:
            layer = nn.utils.skip_init(nn.Linear, inputs, outputs, **where)
        generator = torch.Generator().manual_seed(0)
        drawn = [torch.randn(p.shape, generator=generator).to(p) for p in layer.parameters()]
        format_ = torch.channels_last if self.channels_last else torch.contiguous_format
        with torch.no_grad():
            for parameter, values in zip(layer.parameters(), drawn, strict=True):
                parameter.copy_(values)
        x = torch.randn(self._shape(inputs, outputs), generator=generator).to(self.device, self.dtype)
        if x.dim() != 4:
            return layer, x
        return layer.to(memory_format=format_), x.contiguous(memory_format=format_)

    def _groups(self, outputs: int) -> int:
        return max(1, outputs // self.group_outputs) if self.groups > 1 else 1

    def _shape(self, inputs: int, outputs: int) -> tuple[int, ...]:
        shape = list(self.shape)
        shape[self.channels] = inputs * self._groups(outputs)
        return tuple(shape)


def layer_time(call: LayerCall, inputs: int, outputs: int) -> float:
    """A forward pass with a weight ``(outputs, inputs, ...)``, in times of a fixed product that is measured with it.

    A machine is faster at one time than at another: frequencies and neighbours change by more than layers differ. The
    product takes part in that, so that what was measured on different days can be compared.
    What the cache of `resgrow.surgery.measure` has is not measured again. A grouped convolution has as many groups as
    ``outputs`` fill.
    """
    key = call.key(inputs, outputs)
    known = recall(key, call.device, 2)
    if known is None:
        layer, x = call.made(inputs, outputs)
        known = timed([partial(layer, x), _reference(call.device)], call.device, _LAYER_PATIENCE)
        remember(key, call.device, known)
    seconds, reference = known
    return seconds / reference


def model_seconds(model: nn.Module, example: Example, calls: Sequence[LayerCall]) -> list[float]:
    """Seconds of a forward pass of the whole model in evaluation mode, and of these calls of its layers, in turns."""
    device = next((x.device for x in (*model.parameters(), *example.tensors())), torch.device("cpu"))
    if device.type not in _MEASURED:
        raise ValueError(f"latency: times are known on {' and '.join(_MEASURED)} only (got a model on {device})")
    made = [call.made(*call.weight) for call in calls]
    runs = [partial(model, *example.args, **example.kwargs), *(partial(layer, x) for layer, x in made)]
    with undisturbed(model, {device}), eval_mode(model):
        return timed(runs, device, _PATIENCE)


def timed(calls: Sequence[Callable[[], object]], device: torch.device, patience: float) -> list[float]:
    """Median seconds of each, in turns, without autocast and gradients; of processor time with one thread."""
    with steady_heap(device), torch.autocast(device.type, enabled=False), torch.no_grad():
        return medians(calls, stopwatch(device), patience)


def layer_calls(op: str, model: nn.Module, example: Example) -> dict[str, list[LayerCall]]:
    """Every call of each Conv2d and Linear in one forward pass, by module name.

    Raises:
        ValueError, TypeError: as `outputs`.
    """
    found: dict[str, list[LayerCall]] = {}
    handles = []

    def tap(name: str, module: Layer) -> None:
        def record(layer: nn.Module, args: Sequence[Any], kwargs: dict[str, Any], output: Any) -> None:
            x = args[0] if args else next(iter(kwargs.values()), None)
            if isinstance(x, Tensor) and isinstance(output, Tensor):
                found.setdefault(name, []).append(_call(module, x, output))

        handles.append(module.register_forward_hook(record, with_kwargs=True))

    try:
        for name, module in model.named_modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                tap(name, module)
        outputs(model, example, op)
    finally:
        for handle in handles:
            handle.remove()
    return found


def _call(layer: Layer, x: Tensor, output: Tensor) -> LayerCall:
    conv = isinstance(layer, nn.Conv2d)
    weight = layer.weight
    return LayerCall(
        settings=tuple((name, getattr(layer, name)) for name in _CONV_SETTINGS) if conv else (),
        weight=(int(weight.shape[1]), int(weight.shape[0])),
        groups=layer.groups if isinstance(layer, nn.Conv2d) else 1,
        bias=layer.bias is not None,
        shape=tuple(x.shape),
        positions=output.numel() / weight.shape[0],
        channels_last=conv and (_rows_last(x) or _rows_last(weight)),
        dtype=weight.dtype,
        device=weight.device,
    )


def _rows_last(x: Tensor) -> bool:
    """Whether a tensor lies in channels_last and not, like one of a single channel, in both ways at once."""
    return x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def _reference(device: torch.device) -> Callable[[], object]:
    side = _REFERENCE_SIDE.get(device.type, 1024)
    square = torch.ones(side, side, device=device)
    return lambda: square @ square
