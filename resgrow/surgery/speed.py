"""What a layer costs on this machine, dense and block-sparse, measured once and remembered."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from resgrow._stopwatch import medians, stopwatch
from resgrow.nn.block_sparse import from_dense
from resgrow.surgery.speed_cache import recall, remember

# Densities whose ratio is below this share one measurement. Sparse time is nearly a + b density, so its error is at
# most half of that, 2.5 %: less than two measurements differ by. Equal steps would be coarse where density is low.
_DENSITY_STEP = 1.05
_TIMES = 3  # of the dense layer, the sparse one, and copies


@dataclass(frozen=True)
class Speed:
    """Seconds that one layer takes, medians of interleaved calls; of processor time with one thread of the CPU.

    Attributes:
        dense: the dense layer in torch. sparse: the block-sparse one.
        ideal: the dense time times the density, or the time of reading the input and writing the output once (a copy;
            three of them with gradients) where that is longer.
        density: share of blocks present. block: ``(bo, bi)``.
        shape: of the input. channels_last: its memory format, where it has 4 dimensions.
        train: with both gradients, or the forward pass alone.
        threads, dtype: what it was measured with.
    """

    dense: float
    sparse: float
    ideal: float
    density: float
    block: tuple[int, int]
    shape: tuple[int, ...]
    channels_last: bool
    train: bool
    threads: int
    dtype: str

    @property
    def ratio(self) -> float:
        """How many times faster sparse is."""
        return self.dense / self.sparse


def measure(
    layer: nn.Conv2d | nn.Linear,
    x_shape: Sequence[int],
    mask: Tensor,
    block: tuple[int, int] = (16, 1),
    *,
    train: bool = False,
    channels_last: bool = True,
    dtype: torch.dtype | None = None,
    remeasure: bool = False,
) -> Speed:
    """Dense against block-sparse, for one layer and input size, on its device with the current number of threads.

    Measurements are kept in ``$RESGROW_CACHE_DIR``, or else ``$XDG_CACHE_HOME/resgrow``, or else ``~/.cache/resgrow``,
    apart for each processor and GPU, instruction set, torch and resgrow version. What is found there is not measured
    again; densities within 5 % share a measurement. A cache that cannot be read or written is done without.

    Args:
        layer: only its settings, sizes and device matter, and it is left alone.
        x_shape: of the input, as the layer takes it.
        mask: bool over blocks, as `BlockSparseConv2d` takes it.
        block: ``(bo, bi)``.
        train: forward and both gradients, or the forward pass alone.
        channels_last: memory format of a 4-dimensional input (and of the dense weight).
        dtype: float32, float64, bfloat16, or on CUDA float16; that of the layer by default.
        remeasure: measure even what is known.

    Raises:
        ValueError, TypeError: as `BlockSparseConv2d.from_dense`.
    """
    density = mask.float().mean().item()
    dtype = layer.weight.dtype if dtype is None else dtype
    shape = tuple(x_shape)
    layout = channels_last and len(shape) == 4
    threads = torch.get_num_threads()
    key = " ".join(map(str, (*_settings(layer), shape, block, _bucket(density), train, layout, threads, dtype)))
    seconds = None if remeasure else recall(key, layer.weight.device, _TIMES)
    if seconds is None:
        seconds = _time(layer, shape, mask, block, train, layout, dtype)
        remember(key, layer.weight.device, seconds)
    dense, sparse, floor = seconds
    ideal = max(dense * density, floor)
    name = str(dtype).removeprefix("torch.")
    return Speed(dense, sparse, ideal, density, block, shape, layout, train, threads, name)


def _settings(layer: nn.Conv2d | nn.Linear) -> tuple[object, ...]:
    if isinstance(layer, nn.Linear):
        return ("linear", tuple(layer.weight.shape))
    return ("conv2d", tuple(layer.weight.shape), layer.stride, layer.padding, layer.dilation, layer.groups)


def _bucket(density: float) -> int | None:
    """Number of the density's step; None for nothing present."""
    return round(math.log(density) / math.log(_DENSITY_STEP)) if density > 0 else None


def _time(
    layer: nn.Conv2d | nn.Linear,
    shape: tuple[int, ...],
    mask: Tensor,
    block: tuple[int, int],
    train: bool,
    channels_last: bool,
    dtype: torch.dtype,
) -> list[float]:
    """Seconds of the dense layer, the sparse one, and the copies."""
    sparse = from_dense(layer, mask, block).requires_grad_(True).to(dtype)
    format_ = torch.channels_last if channels_last else torch.contiguous_format
    dense = sparse.to_dense()
    dense.to(memory_format=format_)  # type: ignore[call-overload]
    device = layer.weight.device
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(device, dtype, memory_format=format_)
    # Under autocast, layers would be measured in another dtype than the one asked for.
    with torch.autocast(device.type, enabled=False), torch.set_grad_enabled(train):
        y = dense(x).detach()
        moved = (x.numel() + y.numel()) // 2
        source, target = x.new_ones(moved), x.new_ones(moved)

        def copies() -> None:
            for _ in range(3 if train else 1):
                target.copy_(source)

        calls = [_call(dense, dense.weight, x, y, train), _call(sparse, sparse.values, x, y, train), copies]
        return medians(calls, stopwatch(device))


def _call(layer: nn.Module, weight: Tensor, x: Tensor, grad: Tensor, train: bool) -> Callable[[], object]:
    if not train:
        return lambda: layer(x)
    leaf = x.detach().requires_grad_()
    return lambda: torch.autograd.grad(layer(leaf), (leaf, weight), grad)
