"""What a finished run leaves behind, made up."""

from __future__ import annotations

from typing import Any


def network(**changes: Any) -> dict[str, Any]:
    values = {
        "accuracy": 0.98,
        "test_loss": 0.08,
        "params": 1000,
        "stored_params": 1000,
        "macs": 20_000,
        "computed_macs": 20_000,
        "latency": {"1": 0.002, "64": 0.02},
        "training_seconds": 10.0,
    }
    return {**values, **changes}


def summary(**changes: Any) -> dict[str, Any]:
    layers = [
        {
            "name": f"layer{i}",
            "kind": "Conv2d",
            "dense_width": 16,
            "sized_width": 16 - 4 * i,
            "dense_params": 100,
            "sized_params": 100 - 25 * i,
        }
        for i in range(4)
    ]
    sized = network(
        accuracy=0.97,
        params=100,
        stored_params=100,
        macs=5_000,
        computed_macs=5_000,
        latency={"1": 0.001, "64": 0.02},
        training_seconds=15.0,
    )
    values = {
        "data": "bright",
        "model": "resnet8",
        "method": "controller",
        "unit": "channel",
        "train_images": 1437,
        "test_images": 360,
        "image_shape": [1, 8, 8],
        "classes": 10,
        "budget": {"params": 0.1},
        "budget_met": True,
        "moves": {"accepted": 1, "undone": 1},
        "dense": network(),
        "sized": sized,
        "layers": layers,
        "output_difference": 1e-7,
        "threads": 2,
        "device": "cpu",
        "seconds": 30.0,
    }
    return {**values, **changes}


def move(**changes: Any) -> dict[str, Any]:
    values = {
        "kind": "move",
        "step": 10,
        "method": "controller",
        "unit": "channel",
        "removed": 3,
        "predicted": 1e-3,
        "actual": 2e-3,
        "ratio": 2.0,
        "fraction": 0.1,
        "damping": 1.0,
        "accepted": True,
        "params": 900,
        "macs": None,
        "loss_before": 0.1,
        "loss_after": 0.102,
    }
    return {**values, **changes}


def history() -> list[dict[str, Any]]:
    epochs = [
        {
            "kind": "epoch",
            "role": role,
            "epoch": epoch,
            "step": 10 * epoch,
            "loss": 1 / epoch,
            "train_accuracy": 0.9,
            "test_loss": 1.2 / epoch,
            "test_accuracy": 1 - 0.2 / epoch,
            "params": 1000,
            "seconds": epoch,
        }
        for role in ("dense", "sized")
        for epoch in (1, 2, 3)
    ]
    return [*epochs, move(), move(step=20, accepted=False, actual=-1e-3, ratio=None, params=800)]


def config(**changes: Any) -> dict[str, Any]:
    fit = {"data": "bright", "model": "resnet8", "budget": {"params": 0.1}, "data_dir": None, "seed": 0}
    return {"fit": {**fit, **changes}, "versions": {"resgrow": "0.1.0", "torch": "2.13"}}
