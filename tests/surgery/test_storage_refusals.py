"""Plans and models that do not fit each other: an error that says why, and models left as they were."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from stored import Block, Stages, Words, assert_same, bits, edit, narrow_words
from structure_nets import Net
from torch import Tensor, nn

from resgrow.surgery import load, save
from resgrow.surgery.plans import changes
from resgrow.surgery.structure.tensors import assign


def changed(path: str, **entries: Any) -> Any:
    return lambda head: head["modules"][path].update(entries)


def told(path: str, **entries: Any) -> Any:
    return lambda head: head["modules"][path]["numbers"].update(entries)


def moved(old: str, new: str) -> Any:
    def change(head: dict[str, Any]) -> None:
        head["modules"] = {
            new + name[len(old) :] if name == old or name.startswith(f"{old}.") else name: entry
            for name, entry in head["modules"].items()
        }

    return change


def test_private_numbers_that_a_model_lacks_are_left_out(tmp_path: Path) -> None:
    save(Stages(), tmp_path)
    edit(tmp_path, told("stage.0", _parameters=[1], _seen=3, _modules=None))
    given = load(tmp_path, Stages)
    assert not hasattr(given.stage[0], "_seen")
    assert_same(given, load(tmp_path, Stages))


CONV = {"weight": {"shape": [4, 4, 3, 3], "dtype": "float32", "trainable": True, "format": "contiguous"}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (told("stage.0", slope="x"), "numbers must be"),
        (told("stage.0", slope=None), "at stage.0 .got a float for slope, which was None"),
        (told("stage.0", stride=[2]), "a int for stride"),
        (told("stage.0", stride=True), "a int for stride"),
        (told("stage.0", mode=1), "a str for mode"),
        (told("stage.0", act=1), "a builtin_function_or_method for act"),
        (told("stage.0", forward=1), "no such attribute for forward"),
        (told("stage.0", conv=1), "no such attribute for conv"),
        (told("stage.0", training=False), "a bool for training"),
        (told("stage.0.conv", out_channels=7), "numbers beside the config"),
        (changed("stage.0", type="os.system"), r"os\.system at stage\.0 .got a .*Block"),
        (changed("", type="torch.nn.modules.linear.Linear"), r"Linear at the top .got a .*Stages"),
        (changed("stage.0", tensors={"extra": None}), "no tensor extra"),
        (changed("stage.0.conv", tensors=CONV), "lists"),
        (moved("stage.0.conv", "stage.0.other"), "lists"),
        (lambda head: head["modules"].pop("stage.0.conv"), "lists"),
        (lambda head: head["modules"].update({"head": {"same": ""}}), "part of itself"),
        (lambda head: head["modules"].update({"head": {"same": "stage"}}), "lists"),
        (lambda head: head["modules"].update({"stage.0.relu": {"same": "stage.0"}}), "part of itself"),
    ],
)
def test_plans_that_do_not_fit_leave_the_model_alone(tmp_path: Path, change: Any, message: str) -> None:
    save(Stages(), tmp_path)
    edit(tmp_path, change)
    given = Stages()
    before = bits(given)
    with pytest.raises(ValueError, match=message):
        load(tmp_path, given)
    assert bits(given) == before


def renamed() -> nn.Module:
    model = Stages()
    for block in model.stage:
        del block.slope
    return model


def registered() -> nn.Module:
    model = Stages()
    model.register_parameter("extra", nn.Parameter(torch.ones(1)))
    return model


def buffered() -> nn.Module:
    model = Stages()
    del model.stage[0].conv.weight
    model.stage[0].conv.register_buffer("weight", torch.ones(4, 4, 3, 3))
    return Net(lambda self, x: x, stage=model.stage)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (renamed, "no such attribute for slope"),
        (registered, "at the top .got a further tensor extra"),
        (buffered, r"stored\.Stages at the top .got a structure_nets\.Net"),
        (lambda: Stages().stage, r"Stages at the top .got a torch\.nn\.modules\.container\.Sequential"),
    ],
)
def test_models_that_do_not_fit_are_left_alone(tmp_path: Path, make: Any, message: str) -> None:
    save(Stages(), tmp_path)
    given = make()
    before = bits(given)
    with pytest.raises(ValueError, match=message):
        load(tmp_path, given)
    assert bits(given) == before


@pytest.mark.parametrize("model", [3, lambda: 3, lambda: None, "resnet18"])
def test_something_else_than_a_model(tmp_path: Path, model: Any) -> None:
    save(Stages(), tmp_path)
    with pytest.raises(TypeError, match=r"must be a .* or a function"):
        load(tmp_path, model)


def test_without_a_model_the_error_asks_for_one(tmp_path: Path) -> None:
    save(Stages(), tmp_path)
    with pytest.raises(ValueError, match=r"got .*Stages at the top\); give .*model=\.\.\."):
        load(tmp_path)
    save(nn.Sequential(nn.ReLU(), Block()), tmp_path)
    with pytest.raises(ValueError, match=r"got .*Block at 1\); give .*model=\.\.\."):
        load(tmp_path)


@pytest.mark.parametrize("calls", range(4))
def test_an_interrupted_change_is_taken_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: int) -> None:
    model = narrow_words()
    model.layers.layers[1] = nn.Identity()
    model.scale = torch.ones(12)
    model.out.bias = None
    save(model, tmp_path)
    given = Words()
    given(torch.randint(0, 7, (2, 5))).sum().backward()
    before = bits(given)
    grads = [None if p.grad is None else p.grad.clone() for p in given.parameters()]
    left = [calls]

    def assign_and_stop(parameter: nn.Parameter, data: Tensor) -> None:
        if left[0] == 0:
            left[0] = -1
            raise KeyboardInterrupt
        left[0] -= 1
        assign(parameter, data)

    monkeypatch.setattr(changes, "assign", assign_and_stop)
    with pytest.raises(KeyboardInterrupt):
        load(tmp_path, given)
    assert left[0] < 0
    assert bits(given) == before
    for old, parameter in zip(grads, given.parameters(), strict=True):
        assert old is parameter.grad if old is None else torch.equal(old, parameter.grad)
