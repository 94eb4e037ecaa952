"""What came out of a run, as plain numbers for summary.json."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from resgrow.surgery.count import count_macs, count_params
from resgrow.surgery.profile import profile


@dataclass(frozen=True)
class NetworkResult:
    """One network at the end.

    ``params`` and ``macs`` (per image) leave zero weights and biases out; ``stored_params`` and ``computed_macs`` count
    what is stored and computed. ``latency``: batch size -> median seconds per forward pass.
    """

    accuracy: float
    test_loss: float
    params: int
    stored_params: int
    macs: int
    computed_macs: int
    latency: dict[str, float]
    training_seconds: float


def present(model: nn.Module) -> dict[str, Tensor]:
    """Where the weights of convolutions and linear layers are not zero."""
    return {
        name: parameter.detach() != 0
        for name, parameter in model.named_parameters()
        if name.endswith("weight") and parameter.ndim >= 2
    }


def sizes(model: nn.Module, example: Tensor) -> dict[str, int]:
    """``params``, ``stored_params``, ``macs``, ``computed_macs`` of ``NetworkResult``."""
    masks = present(model)
    zeros = sum(int((~mask).sum()) for mask in masks.values()) + _zero_biases(model, masks)
    stored = count_params(model)
    return {
        "params": stored - zeros,
        "stored_params": stored,
        "macs": count_macs(model, example, masks),
        "computed_macs": count_macs(model, example),
    }


def _zero_biases(model: nn.Module, weights: Iterable[str]) -> int:
    """Of the layers with these weights."""
    parameters = dict(model.named_parameters())
    biases = [parameters.get(f"{name.removesuffix('weight')}bias") for name in weights]
    return sum(int((bias == 0).sum()) for bias in biases if bias is not None)


def layer_table(dense: nn.Module, sized: nn.Module, example: Tensor) -> list[dict[str, Any]]:
    """One row per convolution and linear layer of ``dense``; a layer that is gone from ``sized`` has width 0."""
    before = profile(dense, example, memory=False)
    after = {layer.name: layer for layer in profile(sized, example, masks=present(sized), memory=False).layers}
    rows = []
    for name, width in before.widths().items():
        left = after.get(name)
        rows.append(
            {
                "name": name,
                "kind": before[name].kind,
                "dense_width": width,
                "sized_width": (left.width or 0) if left is not None else 0,
                "dense_params": before[name].params,
                "sized_params": left.live_params if left is not None else 0,
            }
        )
    return rows


def move_counts(moves: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """How many moves stood and how many were undone."""
    accepted = sum(bool(move["accepted"]) for move in moves)
    return {"accepted": accepted, "undone": len(moves) - accepted}


def as_dict(result: NetworkResult) -> dict[str, Any]:
    return asdict(result)
