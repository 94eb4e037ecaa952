from __future__ import annotations

import pytest

from resgrow._errors import InputError
from resgrow.experiments.config import OPTIMIZERS, RECIPES, make_config, parse_budget


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("params=0.1", {"params": 0.1}),
        ("macs=0.5", {"macs": 0.5}),
        (" params = 2e-2 , macs=1000000", {"params": 0.02, "macs": 1e6}),
    ],
)
def test_budget(text, budget):
    assert parse_budget(text) == budget


@pytest.mark.parametrize(
    "text",
    ["", "0.1", "params", "params=few", "flops=1", "params=1,params=2", "params=0", "macs=-1", "params=nan", "macs=1,"],
)
def test_bad_budget_says_how_to_write_one(text):
    with pytest.raises(InputError, match=r"--budget params=0\.1"):
        parse_budget(text)


def test_no_arguments_mean_digits_and_resnet8():
    config = make_config()
    assert (config.data, config.model, config.budget) == ("digits", "resnet8", {"params": 0.1})


@pytest.mark.parametrize(("data", "model"), [("mnist", "lenet5"), ("some/folder", "resnet20")])
def test_model_follows_the_data(data, model):
    assert make_config(data).model == model


def test_arguments_beat_the_recipe():
    config = make_config(epochs=1, batch_size=7, optimizer="sgd", unit="weight")
    assert (config.epochs, config.batch_size, config.optimizer, config.unit) == (1, 7, "sgd", "weight")
    assert config.lr == OPTIMIZERS["sgd"].lr
    assert make_config(optimizer="sgd", lr=0.5).lr == 0.5


@pytest.mark.parametrize(
    ("arguments", "rule"),
    [
        ({"model": "resnet9"}, "--model must be one of lenet5, resnet20, resnet56, resnet8"),
        ({"optimizer": "lion"}, "--optimizer must be one of adam, adamw, sgd"),
        ({"unit": "block"}, "--unit must be of channel, weight"),
        ({"epochs": 0}, "--epochs must be at least 1"),
        ({"batch_size": 1}, "--batch-size must be at least 2"),
        ({"lr": 0.0}, "--lr must be positive"),
        ({"lr": float("nan")}, "--lr must be positive"),
        ({"width": -1.0}, "--width must be positive"),
        ({"seed": -1}, "--seed must not be negative"),
        ({"device": "tpu:first"}, "fit: --device must be cpu, or cuda"),
        ({"device": "cuda:99"}, "for a GPU that torch sees"),
    ],
)
def test_bad_arguments(arguments, rule):
    with pytest.raises(InputError, match=rule):
        make_config(**arguments)


def test_every_recipe_is_complete():
    for data, model in RECIPES:
        config = make_config("digits" if data == "*" else data, model)
        assert config.lr > 0
        assert config.epochs > 0


def test_gates_have_a_coefficient_and_no_budget():
    config = make_config(method="tristate")
    assert config.gates == 1e-3
    assert config.budget == {}
    assert make_config().gates is None
    for options, message in [
        ({"method": "tristate", "budget": "params=0.1"}, "have no budget"),
        ({"gates": 1e-3}, "is for --method tristate"),
        ({"method": "tristate", "gates": -1.0}, "--gates must be positive"),
        ({"method": "gates"}, "--method must be one of"),
    ]:
        with pytest.raises(InputError, match=message):
            make_config(**options)
