"""A model that grows inside of Lightning's trainer, and comes back from its checkpoints."""

from __future__ import annotations

import json
import logging

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.data import DataLoader

import resgrow
from resgrow.controller.state import arrange, take_structure
from resgrow.surgery.plans import describe, to_json
from tests.integrations.growing import BUDGET, OPTIONS, SAVED, STEPS, Stream, same_numbers, same_state, wave

pytest.importorskip("lightning")
import lightning.pytorch
from lightning.pytorch.callbacks import ModelCheckpoint

from resgrow.integrations.lightning import ControllerCallback, prepare

pytestmark = pytest.mark.filterwarnings("ignore")
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class Module(lightning.pytorch.LightningModule):
    """The optimizer has two groups, and the learning rate falls."""

    def __init__(self) -> None:
        super().__init__()
        self.net, self.loaded = Stream(), 0

    def training_step(self, batch, batch_idx) -> Tensor:
        return F.mse_loss(self.net(batch[0]), batch[1])

    def test_step(self, batch, batch_idx) -> None:
        self.log("loss", self.training_step(batch, batch_idx))

    def on_load_checkpoint(self, checkpoint) -> None:
        self.loaded += 1

    def configure_optimizers(self):
        named = list(self.net.named_parameters())
        groups = [{"params": [p for name, p in named if ("bias" in name) is last]} for last in (False, True)]
        optimizer = torch.optim.AdamW([{**groups[0], "weight_decay": 1e-4}, {**groups[1], "weight_decay": 0.0}], 0.01)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 30, 0.9)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def loader(batches: int) -> DataLoader:
    return DataLoader(wave(batches), batch_size=None)


def fit(folder, unit, checkpoint=None):
    module = Module()
    callback = ControllerCallback(BUDGET, torch.nn.MSELoss(), model="net", unit=unit, **OPTIONS)
    keep = ModelCheckpoint(dirpath=folder, every_n_train_steps=SAVED // 2, save_top_k=-1, filename="{step}")
    options = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    trainer = lightning.pytorch.Trainer(callbacks=[keep, callback], default_root_dir=folder, max_steps=STEPS, **options)
    trainer.fit(module, loader(SAVED), ckpt_path=checkpoint)
    return trainer, module, callback.controller


@pytest.fixture(scope="module", params=["channel", "residual"])
def whole(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    return folder, request.param, *fit(folder, request.param)


def test_a_model_that_has_grown_is_resumed_and_goes_on_to_the_bit(tmp_path, whole):
    folder, unit, trainer, module, ctl = whole
    checkpoint = folder / f"step={SAVED}.ckpt"
    assert any(move.grows and move.accepted and move.step <= SAVED for move in ctl.history)
    assert unit == "channel" or any(move.grows and move.step > SAVED for move in ctl.history)
    again, other, other_ctl = fit(tmp_path, unit, checkpoint)
    assert other.loaded == 1
    assert "on_load_checkpoint" not in vars(other)
    assert other_ctl.history == ctl.history
    assert other_ctl.cost == ctl.cost
    assert same_numbers(module, other)
    assert same_state(module, trainer.optimizers[0], other, again.optimizers[0])
    assert (
        again.lr_scheduler_configs[0].scheduler.state_dict() == trainer.lr_scheduler_configs[0].scheduler.state_dict()
    )


def test_a_checkpoint_is_tested_by_a_new_trainer_and_read_without_one(whole):
    folder, _, _, module, _ = whole
    options = {"enable_progress_bar": False, "logger": False, "accelerator": "cpu"}
    other, callback = Module(), ControllerCallback(BUDGET, torch.nn.MSELoss(), model="net", **OPTIONS)
    trainer = lightning.pytorch.Trainer(callbacks=[callback], **options)
    trainer.test(other, loader(2), ckpt_path=folder / f"step={STEPS}.ckpt", verbose=False)
    assert same_numbers(module, other)
    third = Module()
    third.load_state_dict(prepare(third, folder / f"step={STEPS}.ckpt", model="net")["state_dict"])
    assert same_numbers(module, third)
    # Also back to a smaller one.
    small = prepare(third, folder / f"step={SAVED // 2}.ckpt", model="net")["state_dict"]
    third.load_state_dict(small)
    assert sum(p.numel() for p in third.parameters()) < sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize("whole", ["channel"], indirect=True)
def test_what_prepare_cannot_read_is_told(tmp_path, whole):
    torch.save({"state_dict": {}, "callbacks": {}}, tmp_path / "plain.ckpt")
    with pytest.raises(ValueError, match=r"must be of a trainer with a ControllerCallback \(got none in .*plain.ckpt"):
        prepare(Module(), tmp_path / "plain.ckpt")
    module = Module()
    before = {name: value.clone() for name, value in module.state_dict().items()}
    with pytest.raises(ValueError, match=r"must have a .*Stream.*construct it as the saved one was"):
        prepare(module, whole[0] / f"step={STEPS}.ckpt")
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize("whole", ["channel"], indirect=True)
def test_the_module_gets_its_hook_back_after_errors(tmp_path, whole):
    module = Module()
    trainer = lightning.pytorch.Trainer(
        callbacks=[ControllerCallback(BUDGET, model="body", **OPTIONS)], logger=False, enable_checkpointing=False
    )
    with pytest.raises(ValueError, match="must name a submodule"):
        trainer.fit(module, loader(2), ckpt_path=whole[0] / f"step={STEPS}.ckpt")
    assert "on_load_checkpoint" not in vars(module)


def test_wrapped_optimizers_go_along():
    module = Module()
    (optimizer,), _ = module.configure_optimizers()
    F.mse_loss(module.net(torch.ones(4, 1)), torch.ones(4, 1)).backward()
    optimizer.step()
    wrapped = lightning.pytorch.core.optimizer.LightningOptimizer(optimizer)
    resgrow.widen(module.net, "stage.0.branch.0", 3, example_inputs=torch.zeros(2, 1), optimizer=wrapped)
    weight = module.net.stage[0].branch[0].weight
    assert optimizer.state[weight]["exp_avg"].shape == weight.shape == (5, 6)
    lbfgs = lightning.pytorch.core.optimizer.LightningOptimizer(torch.optim.LBFGS(module.net.parameters()))
    with pytest.raises(ValueError, match=r"must work weight by weight .*got LBFGS"):
        resgrow.widen(module.net, "stage.0.branch.0", 1, example_inputs=torch.zeros(2, 1), optimizer=lbfgs)


def test_structure_and_order_are_taken_alone():
    small, large = Stream(), Stream()
    resgrow.widen(large, "stage.0.branch.0", 2, example_inputs=torch.zeros(2, 1))
    resgrow.deepen(large, "stage", example_inputs=torch.zeros(2, 1))
    structure = json.loads(json.dumps(to_json(describe(large)[0])))
    optimizer = torch.optim.Adam(small.parameters())
    small(torch.ones(2, 1)).sum().backward()
    optimizer.step()
    head, moment = small.head.weight.detach().clone(), optimizer.state[small.head.weight]["exp_avg"].clone()
    assert take_structure(small, structure, [optimizer])
    assert torch.equal(small.head.weight, head)
    assert torch.equal(optimizer.state[small.head.weight]["exp_avg"], moment)
    assert small.stage[0].branch[0].weight.shape == (4, 6)
    assert small.stage[0].branch[0].weight not in optimizer.state
    names = [name for name, _ in large.named_parameters()][::-1]
    arrange(small, optimizer, [names])
    assert all(
        small.get_parameter(name) is p for name, p in zip(names, optimizer.param_groups[0]["params"], strict=True)
    )
    assert not take_structure(small, structure, [optimizer])
    # Loaded by place: what was the first's becomes that of the first name.
    optimizer.state = {p: {"place": place} for place, p in enumerate(optimizer.param_groups[0]["params"])}
    arrange(small, optimizer, [sorted(names)], loaded=True)
    assert [optimizer.state[small.get_parameter(name)]["place"] for name in sorted(names)] == list(range(len(names)))
