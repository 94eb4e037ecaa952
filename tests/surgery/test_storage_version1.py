"""Folders that the first version of the format wrote."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from stored import assert_same, edit
from torch import nn

from resgrow.nn import TriStateReLU
from resgrow.nn.resnet import BasicBlock
from resgrow.surgery import load, load_extra

CONV = {"stride": [1, 1], "padding": [1, 1], "dilation": [1, 1], "groups": 1, "bias": False, "padding_mode": "zeros"}
NORM = {"num_features": 3, "eps": 1e-05, "momentum": 0.1, "affine": True, "track_running_stats": True, "bias": True}


def layer(kind: str, config: dict[str, Any] | None = None, **children: Any) -> dict[str, Any]:
    return {"type": kind, "config": config or {}, "children": children}


CONVOLUTION = layer("Conv2d", {"in_channels": 3, "out_channels": 3, "kernel_size": [3, 3], **CONV})
BLOCK = layer(
    "BasicBlock",
    conv1=CONVOLUTION,
    bn1=layer("BatchNorm2d", NORM),
    act1=layer("TriStateReLU", {"num_channels": 3}),
    conv2=CONVOLUTION,
    bn2=layer("BatchNorm2d", NORM),
    act2=layer("ReLU", {"inplace": False}),
)
FLAT = layer("Flatten", {"start_dim": 1, "end_dim": -1})
LINEAR = layer("Linear", {"in_features": 12, "out_features": 2, "bias": True})


def same_model() -> nn.Sequential:
    torch.manual_seed(0)

    def conv() -> nn.Conv2d:
        return nn.Conv2d(3, 3, 3, padding=1, bias=False)

    block = BasicBlock(conv(), nn.BatchNorm2d(3), TriStateReLU(3), conv(), nn.BatchNorm2d(3), nn.ReLU())
    model = nn.Sequential(block, nn.Flatten(), nn.Linear(12, 2)).eval()
    model[2].bias.requires_grad_(False)
    return model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    tensors = dict(same_model().state_dict())
    data = safetensors.torch.save(tensors)
    (tmp_path / "model.safetensors").write_bytes(data)
    head = {
        "format": "resgrow-model",
        "version": 1,
        "model": layer("Sequential", **{"0": BLOCK, "1": FLAT, "2": LINEAR}),
        "tensors": {n: {"shape": list(t.shape), "dtype": str(t.dtype)[6:]} for n, t in tensors.items()},
        "sha256": hashlib.sha256(data).hexdigest(),
        "frozen": ["2.bias"],
        "training": False,
        "extra": {"accuracy": 0.9},
    }
    (tmp_path / "model.json").write_text(json.dumps(head))
    return tmp_path


def test_they_come_back(folder: Path) -> None:
    assert_same(load(folder), same_model())
    assert load_extra(folder) == {"accuracy": 0.9}


def test_they_come_back_in_a_model_of_the_constructor(folder: Path) -> None:
    given = same_model().train()
    given[2] = nn.Linear(48, 2)
    kept = given[0].conv1.weight
    again = load(folder, given)
    assert again is given
    assert again[0].conv1.weight is kept
    assert_same(again, same_model())


def linear(**entries: Any) -> Any:
    return lambda head: head["model"]["children"]["2"].update(entries)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda head: head.update(frozen=[1]), "entries"),
        (lambda head: head.update(training=1), "entries"),
        (lambda head: head.update(tensors=3), "list the tensors"),
        (lambda head: head.update(tensors={}), "fit the described layers"),
        (lambda head: head["tensors"].update(more={"shape": [], "dtype": "float32"}), "got more"),
        (lambda head: head["tensors"]["2.bias"].update(dtype="float64"), "lists"),
        (lambda head: head["tensors"]["2.bias"].update(shape=[3]), "for 2.bias"),
        (lambda head: head["model"].update(type="os.system"), "os.system"),
        (lambda head: head["model"].pop("config"), "type, config and children"),
        (lambda head: head.update(model=3), "got 3"),
        (linear(config={"bias": True}), "in_features"),
        (linear(config={"in_features": 11, "out_features": 2, "bias": True}), "for 2.weight"),
        (linear(config={"in_features": 12, "out_features": 2, "bias": False}), "got 2.bias"),
        (linear(config={"in_features": 12, "out_features": -2, "bias": True}), "cannot be built"),
        (linear(children={"a": FLAT}), "cannot hold"),
        (linear(children={"a.b": FLAT}), "by their keys"),
        (lambda head: head["model"]["children"]["0"]["children"].pop("bn1"), "got 0.bn1"),
    ],
)
def test_damaged(folder: Path, change: Any, message: str) -> None:
    edit(folder, change)
    with pytest.raises(ValueError, match=message):
        load(folder)


def test_nested_without_end(folder: Path) -> None:
    def change(head: dict[str, Any]) -> None:
        for _ in range(300):
            head["model"] = layer("Sequential", **{"0": head["model"]})

    edit(folder, change)
    with pytest.raises(ValueError, match="nests"):
        load(folder)
