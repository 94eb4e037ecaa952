from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from small import small_data
from torch import nn

from resgrow._errors import InputError, RunError
from resgrow.experiments.config import make_config
from resgrow.experiments.models import build_model
from resgrow.experiments.training import Training, batches, cosine, make_optimizer, total_steps

CONFIG = make_config(epochs=3, batch_size=8, optimizer="adam", lr=1e-2)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 2))


def run(model, data, config=CONFIG, **calls):
    training = Training("dense", model, make_optimizer(model.parameters(), config), data, config)
    training.run(**{"params": lambda: 7, "on_step": lambda *_: None, "on_epoch": lambda _: None, **calls})
    return training


def test_learns_and_records_every_epoch():
    steps, epochs = [], []
    training = run(network(), small_data(), on_step=lambda *args: steps.append(args), on_epoch=epochs.append)
    assert [record.epoch for record in epochs] == [1, 2, 3]
    assert [record.step for record in epochs] == [5, 10, 15]
    assert [step for step, _, _ in steps] == list(range(1, 16))
    assert epochs[-1].loss < epochs[0].loss
    assert epochs[-1].test_accuracy == 1.0
    assert epochs[-1].params == 7
    assert 0 < epochs[0].seconds < epochs[-1].seconds == training.seconds


def test_first_epoch_s_loss_is_the_mean_over_its_batches():
    epochs, losses = [], []
    run(network(), small_data(), on_step=lambda *args: losses.append(args[2]), on_epoch=epochs.append)
    assert epochs[0].loss == pytest.approx(sum(losses[:5]) / 5)


def test_twins_end_up_identical():
    first = network()
    second = copy.deepcopy(first)
    run(first, small_data())
    run(second, small_data())
    for a, b in zip(first.parameters(), second.parameters(), strict=True):
        assert torch.equal(a, b)


def test_order_depends_on_the_seed_alone():
    data = small_data()
    torch.manual_seed(1)
    first = [y for _, (_, y) in batches(data, CONFIG)]
    torch.manual_seed(2)
    second = [y for _, (_, y) in batches(data, CONFIG)]
    other = [y for _, (_, y) in batches(data, replace(CONFIG, seed=1))]
    assert torch.equal(torch.stack(first), torch.stack(second))
    assert not torch.equal(torch.stack(first), torch.stack(other))


def test_an_epoch_takes_whole_batches_and_no_image_twice():
    data = small_data(train=21)
    values = [x[:, 0, 0, 0] for epoch, (x, _) in batches(data, CONFIG) if epoch == 1]
    assert [len(part) for part in values] == [8, 8]
    assert len(torch.cat(values).unique()) == 16


def test_fewer_images_than_a_batch_still_make_one_step():
    data = small_data(train=5)
    assert total_steps(CONFIG, data) == 3
    assert [len(y) for _, (_, y) in batches(data, CONFIG)] == [5, 5, 5]


def test_learning_rate_falls_from_full_to_nearly_nothing():
    rates = []
    model = network()
    optimizer = make_optimizer(model.parameters(), CONFIG)
    training = Training("dense", model, optimizer, small_data(), CONFIG)
    training.run(
        params=lambda: 0,
        on_step=lambda *_: rates.append(optimizer.param_groups[0]["lr"]),
        on_epoch=lambda _: None,
    )
    assert rates[0] == CONFIG.lr
    assert rates[-1] < 0.02 * CONFIG.lr
    assert rates == sorted(rates, reverse=True)
    assert cosine(5, 10) == pytest.approx(0.5)


def test_after_step_sees_the_updated_network_and_its_batch():
    model = network()
    before = copy.deepcopy(model.state_dict())
    seen = []

    def after_step(step, batch):
        if step == 0:
            seen.append((torch.equal(model[0].weight, before["0.weight"]), len(batch[1])))

    run(model, small_data(), after_step=after_step)
    assert seen == [(False, 8)]


def test_evaluation_leaves_the_network_in_training_mode():
    modes = []
    model = network()
    run(model, small_data(), on_epoch=lambda _: modes.append(model.training))
    assert modes == [True] * 3


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_ends_the_run_before_the_update(value):
    data = small_data()
    data.train_x[:] = value
    model = network()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RunError, match=r"got nan at epoch 1, step 0 of the dense network\); lower --lr"):
        run(model, data)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(("name", "kind"), [("adam", "Adam"), ("adamw", "AdamW"), ("sgd", "SGD")])
def test_optimizers(name, kind):
    config = make_config(optimizer=name, lr=0.25)
    optimizer = make_optimizer(network().parameters(), config)
    assert type(optimizer).__name__ == kind
    assert optimizer.defaults["lr"] == 0.25
    assert optimizer.defaults["weight_decay"] == config.weight_decay


@pytest.mark.parametrize("model", ["resnet8", "resnet20"])
def test_models_fit_the_data_and_depend_on_the_seed(model):
    data = small_data()
    first, again = (build_model(make_config(model=model), data) for _ in range(2))
    other = build_model(make_config(model=model, seed=1), data)
    assert first(data.test_x).shape == (20, 2)
    assert torch.equal(first.conv1.weight, again.conv1.weight)
    assert not torch.equal(first.conv1.weight, other.conv1.weight)


def test_building_leaves_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    build_model(make_config(), small_data())
    assert torch.equal(torch.rand(1), expected)


@pytest.mark.parametrize(
    ("data", "arguments", "rule"),
    [
        (small_data(size=8), {}, "image_size must be at least 16 .*got 8"),
        (small_data(size=28), {"width": 2.0}, "lenet5 has one width"),
    ],
)
def test_lenet5_where_it_cannot_be(data, arguments, rule):
    with pytest.raises(InputError, match=rule):
        build_model(make_config(model="lenet5", **arguments), data)


def test_lenet5_needs_square_images():
    data = small_data(size=28)
    data = replace(data, train_x=data.train_x[..., :20], test_x=data.test_x[..., :20])
    with pytest.raises(InputError, match=r"square images \(got 28x20\)"):
        build_model(make_config(model="lenet5"), data)
