"""The controller in Lightning's trainer."""

from __future__ import annotations

import csv
import logging
import os
import warnings
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import resgrow
from resgrow import Budget, Controller
from resgrow.integrations.beside import LogitsOf, joined

pytest.importorskip("lightning")
import lightning.pytorch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from resgrow.integrations.lightning import ControllerCallback

PACKAGES = ["lightning.pytorch", "pytorch_lightning"]
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def mlp() -> nn.Sequential:
    return nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 2))


def make_module(package=lightning.pytorch, net=None, example=None, optimizers=1):
    class Module(package.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.net = net or mlp()
            self.example_input_array = example
            self.automatic_optimization = optimizers == 1

        def forward(self, x: Tensor) -> Tensor:
            return self.net(x)

        def training_step(self, batch, batch_idx) -> Tensor:
            x, y = batch
            return F.cross_entropy(self(x), y)

        def configure_optimizers(self):
            made = [torch.optim.Adam(self.parameters(), 0.01) for _ in range(optimizers)]
            return made[0] if optimizers == 1 else made

    return Module()


def loader(samples: int = 960, batch: int = 32) -> DataLoader:
    x = torch.randn(samples, 10, generator=torch.Generator().manual_seed(1))
    return DataLoader(TensorDataset(x, (x[:, 0] * x[:, 1] > 0).long()), batch)


def make_trainer(callbacks, folder, package=lightning.pytorch, **options):
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    if not any(isinstance(each, ModelCheckpoint) for each in callbacks):
        quiet["enable_checkpointing"] = False
    return package.Trainer(**{**quiet, "callbacks": callbacks, "default_root_dir": folder, "max_epochs": 2, **options})


# 64 samples are two batches, less than there are between two moves: a resumed run sees the same ones before each.
OPTIONS = {"every": 5, "samples": 64, "deadline": 40}


@pytest.mark.parametrize("package", PACKAGES)
def test_a_controller_shrinks_a_network_to_its_budget(tmp_path, package):
    package = pytest.importorskip(package)
    module = make_module(package)
    callback = ControllerCallback(Budget(params=0.4), model="net", **OPTIONS)
    make_trainer([callback], tmp_path, package).fit(module, loader())
    ctl = callback.controller
    assert ctl.met
    assert ctl.history
    small = resgrow.compact(module.net, torch.zeros(1, 10))
    limit = 0.4 * sum(p.numel() for p in module.parameters())
    assert 0.9 * limit < sum(p.numel() for p in small.parameters()) <= limit


def test_steps_are_those_of_a_loop_of_ones_own(tmp_path):
    module = make_module()
    callback = ControllerCallback(Budget(params=0.4), model="net", **OPTIONS)
    make_trainer([callback], tmp_path).fit(module, loader())
    other = make_module()
    optimizer = other.configure_optimizers()
    ctl = Controller(other.net, optimizer, nn.CrossEntropyLoss(), Budget(params=0.4), **OPTIONS)
    for _ in range(2):
        for batch in loader():
            optimizer.zero_grad()
            other.training_step(batch, 0).backward()
            optimizer.step()
            ctl.step(batch)
    assert callback.controller.history == ctl.history
    assert all(torch.equal(one, two) for one, two in zip(module.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_resumed_from_a_checkpoint_makes_the_same_moves(tmp_path, accumulate):
    budget = Budget(params=0.4)

    def run(folder, epochs, checkpoint=None):
        module = make_module()
        callback = ControllerCallback(budget, model="net", **OPTIONS)
        keep = ModelCheckpoint(dirpath=folder, every_n_train_steps=10, save_top_k=-1, filename="{step}")
        options = {"max_epochs": epochs, "accumulate_grad_batches": accumulate}
        make_trainer([keep, callback], folder, **options).fit(module, loader(320 * accumulate), ckpt_path=checkpoint)
        return module, callback.controller

    module, ctl = run(tmp_path / "whole", 4)
    resumed, other = run(tmp_path / "resumed", 4, tmp_path / "whole" / "step=20.ckpt")
    assert any(move.accepted and move.step > 20 for move in ctl.history)
    assert any(move.accepted and move.step <= 20 for move in ctl.history)
    assert other.history == ctl.history
    assert other.cost == ctl.cost
    assert all(torch.equal(one, two) for one, two in zip(module.parameters(), resumed.parameters(), strict=True))


def test_accumulated_batches_are_one_step(tmp_path, monkeypatch):
    seen = []
    step = Controller.step
    monkeypatch.setattr(Controller, "step", lambda self, batch: (seen.append(batch), step(self, batch))[1])
    callback = ControllerCallback(Budget(params=0.9), model="net")
    # Five batches in groups of two: the last step of an epoch has one.
    make_trainer([callback], tmp_path, accumulate_grad_batches=2).fit(make_module(), loader(160))
    assert [len(target) for _, target in seen] == [64, 64, 32] * 2
    x, y = next(iter(loader(160, 64)))
    assert torch.equal(seen[0][0], x)
    assert torch.equal(seen[0][1], y)


def test_the_loggers_get_sizes_and_moves(tmp_path):
    module = make_module()
    callback = ControllerCallback(Budget(params=0.4), model="net", **OPTIONS)
    logger = CSVLogger(tmp_path)
    trainer = make_trainer([callback], tmp_path, logger=logger, log_every_n_steps=1)
    trainer.fit(module, loader())
    with open(f"{logger.log_dir}/metrics.csv") as file:
        rows = list(csv.DictReader(file))
    history = callback.controller.history
    costs = [float(row["resgrow/params"]) for row in rows if row["resgrow/params"]]
    assert costs[-1] == callback.controller.cost["params"] < costs[0]
    assert len(costs) == 60
    predicted = [float(row["resgrow/move/predicted"]) for row in rows if row["resgrow/move/predicted"]]
    assert set(predicted) <= {move.predicted for move in history}
    assert predicted[-1] == history[-1].predicted
    assert trainer.callback_metrics["resgrow/params"] == callback.controller.cost["params"]


class Cnn(nn.Module):
    """Residual: channels are found on example inputs alone."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.inner, self.outer = (nn.Conv2d(*io, 3, padding=1) for io in ((1, 8), (8, 12), (12, 8)))
        self.head = nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = (x + self.outer(self.inner(x).relu())).relu()
        return self.head(x.mean((2, 3)))


def test_channels_of_a_module_that_tells_its_example(tmp_path):
    x = torch.randn(320, 1, 6, 6)
    data = DataLoader(TensorDataset(x, (x[:, 0, 0, 0] > 0).long()), 32)
    module = make_module(net=Cnn(), example=torch.zeros(1, 1, 6, 6))
    callback = ControllerCallback(Budget(macs=0.5), every=4, samples=128, deadline=12)
    make_trainer([callback], tmp_path).fit(module, data)
    assert callback.controller.met
    assert callback.controller.masks.model is module
    assert callback.controller.history[-1].accepted


class Several(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = mlp()

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"features": x, "scores": self.net(x)}


def test_other_batches_and_other_outputs(tmp_path):
    module = make_module(net=Several())
    module.training_step = lambda batch, batch_idx: F.cross_entropy(module(batch["x"])["scores"], batch["y"])
    x = torch.randn(320, 10)
    data = DataLoader([{"x": each, "y": int(each[0] > 0)} for each in x], 32)
    callback = ControllerCallback(
        Budget(params=0.7),
        model=lambda module: LogitsOf(module.net, "scores"),
        as_pair=lambda batch: (batch["x"], batch["y"]),
        unit="weight",
        **OPTIONS,
    )
    make_trainer([callback], tmp_path, max_epochs=4).fit(module, data)
    assert callback.controller.met
    assert all(name.startswith("model.net.") for name in callback.controller.masks)


def test_a_controller_of_ones_own(tmp_path):
    module = make_module()
    optimizer = module.configure_optimizers()
    module.configure_optimizers = lambda: optimizer
    made = Controller(module.net, optimizer, nn.CrossEntropyLoss(), Budget(params=0.4), **OPTIONS)
    callback = ControllerCallback(controller=made)
    make_trainer([callback], tmp_path).fit(module, loader())
    assert callback.controller is made
    assert made.met

    module, models = make_module(), []

    def make(model, optimizer):
        models.append(model)
        return Controller(model, optimizer, nn.CrossEntropyLoss(), Budget(params=0.4), **OPTIONS)

    callback = ControllerCallback(controller=make, model="net")
    make_trainer([callback], tmp_path).fit(module, loader())
    assert models == [module.net]
    assert callback.controller.history == made.history

    other = make_trainer([ControllerCallback(controller=made)], tmp_path)
    with pytest.raises(ValueError, match=r"must be made for the trainer's optimizer"):
        other.fit(make_module(), loader())


@pytest.fixture
def environment():
    """Strategies write the addresses of their processes into it."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("environment")
def test_several_processes_are_refused(tmp_path):
    module = make_module()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    trainer = make_trainer([ControllerCallback(Budget(params=0.4), model="net")], tmp_path, strategy="ddp", devices=1)
    with pytest.raises(ValueError, match=r"one device in one process.*got DDPStrategy, 1 processes"):
        trainer.fit(module, loader())
    assert all(torch.equal(before[name], value) for name, value in module.state_dict().items())


@pytest.mark.parametrize(
    ("module", "options", "error", "message"),
    [
        ({"optimizers": 2}, {}, ValueError, "must be one optimizer.*got 2"),
        ({}, {"model": "body"}, ValueError, "must name a submodule .*body"),
        ({}, {"model": lambda module: 3}, TypeError, "must give a torch.nn.Module .*int"),
        ({}, {"model": "net", "every": 0}, ValueError, "every must be at least 1"),
        ({}, {"model": "net", "as_pair": lambda batch: 3}, TypeError, "cannot unpack|pairs"),
    ],
)
def test_what_does_not_fit_is_told(tmp_path, module, options, error, message):
    trainer = make_trainer([ControllerCallback(Budget(params=0.4), **options)], tmp_path)
    with pytest.raises(error, match=message):
        trainer.fit(make_module(**module), loader(64))


def test_batches_that_are_no_pairs_are_refused(tmp_path):
    module = make_module()
    module.training_step = lambda batch, batch_idx: module(batch["x"]).sum()
    trainer = make_trainer([ControllerCallback(Budget(params=0.4), model="net")], tmp_path)
    with pytest.raises(TypeError, match=r"must be an \(input, target\) pair .*as_pair="):
        trainer.fit(module, DataLoader([{"x": torch.zeros(10)}]))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({}, ValueError, "either budget or controller .*neither"),
        ({"budget": Budget(params=0.5), "controller": lambda *_: None}, ValueError, "either budget .*both"),
        ({"controller": lambda *_: None, "every": 3}, ValueError, "options are for .*every"),
        ({"controller": lambda *_: None, "loss_fn": nn.MSELoss()}, ValueError, "options are for .*loss_fn"),
        ({"controller": 3}, TypeError, "must be a resgrow.Controller .*int"),
    ],
)
def test_bad_arguments(options, error, message):
    with pytest.raises(error, match=message):
        ControllerCallback(**options)


def test_batches_of_several_shapes():
    def batch(samples, length):
        x = torch.randn(samples, length)
        return {"x": x, "pair": (x, [x + 1]), "flag": True}, torch.zeros(samples)

    one, two, longer = batch(2, 3), batch(1, 3), batch(2, 4)
    inputs, target = joined([one, two])
    assert target.shape == (3,)
    assert torch.equal(inputs["pair"][1][0], torch.cat([one[0]["x"], two[0]["x"]]) + 1)
    assert inputs["flag"] is True
    assert joined([one, longer]) is longer
    assert joined([one, (replace_flag(two[0]), two[1])])[0]["flag"] is False


def replace_flag(inputs):
    return {**inputs, "flag": False}


def test_checkpoints_hold_plain_types_and_tensors(tmp_path):
    callback = ControllerCallback(Budget(params=0.4), model="net", **OPTIONS)
    trainer = make_trainer([callback], tmp_path)
    trainer.fit(make_module(), loader())
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["callbacks"]["ControllerCallback"]
    assert [replace(move, **entry) for move, entry in zip(callback.controller.history, saved["history"], strict=True)]
    assert saved["course"]["steps"] == 60
