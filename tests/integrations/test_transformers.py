"""The controller in the trainer of Hugging Face's transformers."""

from __future__ import annotations

import json
import warnings
from types import SimpleNamespace

import pytest
import torch
from torch import nn

import resgrow
from resgrow import Budget, Controller
from resgrow._state_file import read_state, write_state
from resgrow.integrations.beside import LogitsOf

transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")
FILE, ControllerCallback = (
    getattr(pytest.importorskip("resgrow.integrations.transformers"), name) for name in ("FILE", "ControllerCallback")
)


@pytest.fixture(autouse=True)
def quiet():
    transformers.utils.logging.set_verbosity_error()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def bert():
    torch.manual_seed(0)
    config = transformers.BertConfig(
        vocab_size=100,
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=8,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=2,
    )
    return transformers.BertForSequenceClassification(config)


def texts(samples: int = 320, lengths=(6,)) -> list[dict]:
    generator = torch.Generator().manual_seed(1)
    data = []
    for index in range(samples):
        ids = torch.randint(100, (lengths[index % len(lengths)],), generator=generator)
        data.append({"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": int(ids[0] > 50)})
    return data


def make_trainer(folder, model=None, data=None, evaluated=None, **options):
    arguments = transformers.TrainingArguments(
        str(folder),
        **{
            "per_device_train_batch_size": 16,
            "max_steps": 40,
            "learning_rate": 3e-3,
            "report_to": [],
            "disable_tqdm": True,
            "save_strategy": "no",
            "logging_steps": 10,
            "use_cpu": True,
            "seed": 0,
            **options,
        },
    )
    return transformers.Trainer(model or bert(), arguments, train_dataset=data or texts(), eval_dataset=evaluated)


# 32 samples are two batches, less than there are between two moves: a resumed run sees the same ones before each.
OPTIONS = {"unit": "weight", "every": 5, "samples": 32, "deadline": 35}


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("unit", ["weight", "channel"])
def test_a_controller_shrinks_bert_to_its_budget(tmp_path, unit):
    trainer = make_trainer(tmp_path)
    example = {name: value[None] for name, value in texts(1)[0].items() if name != "labels"}
    options = {**OPTIONS, "unit": unit, "example_inputs": example}
    budget = 0.4 if unit == "weight" else 0.7
    callback = ControllerCallback(trainer, Budget(params=budget), **options)
    trainer.add_callback(callback)
    trainer.train()
    ctl = callback.controller
    assert ctl.met
    assert any(move.accepted for move in ctl.history)
    limit = budget * sum(p.numel() for p in trainer.model.parameters())
    if unit == "weight":
        assert sum(int((p != 0).sum()) for p in trainer.model.parameters()) <= limit
    else:
        small = resgrow.compact(LogitsOf(trainer.model), example)
        assert sum(p.numel() for p in small.parameters()) <= limit
    assert "compute_loss" not in vars(trainer)


def test_the_trainer_logs_sizes_and_moves(tmp_path):
    trainer = make_trainer(tmp_path)
    callback = ControllerCallback(trainer, Budget(params=0.4), **OPTIONS)
    trainer.add_callback(callback)
    trainer.train()
    log = trainer.state.log_history
    assert [entry["step"] for entry in log if "loss" in entry] == [10, 20, 30, 40]
    costs = [entry["resgrow/params"] for entry in log if "resgrow/params" in entry]
    assert costs[-1] == callback.controller.cost["params"] < costs[0]
    assert {10, 20, 30, 40} <= {entry["step"] for entry in log if "resgrow/params" in entry}
    moves = [entry["resgrow/move/predicted"] for entry in log if "resgrow/move/predicted" in entry]
    assert moves == [move.predicted for move in callback.controller.history]


def run(folder, checkpoint=None, **options):
    trainer = make_trainer(folder, save_strategy="steps", save_steps=20, **options)
    callback = ControllerCallback(
        trainer, Budget(params=0.4), **OPTIONS, **({} if checkpoint is None else {"resume_from": checkpoint})
    )
    trainer.add_callback(callback)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    return trainer, callback.controller


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_run_resumed_from_a_checkpoint_makes_the_same_moves(tmp_path, accumulate):
    options = {"gradient_accumulation_steps": accumulate}
    trainer, ctl = run(tmp_path / "whole", **options)
    checkpoint = tmp_path / "whole" / "checkpoint-20"
    assert {path.suffix for path in checkpoint.glob("resgrow*")} == {".safetensors"}
    resumed, other = run(tmp_path / "resumed", checkpoint, **options)
    assert any(move.accepted and move.step > 20 for move in ctl.history)
    assert any(move.accepted and move.step <= 20 for move in ctl.history)
    assert other.history == ctl.history
    assert other.cost == ctl.cost
    assert same(weights(trainer.model), weights(resumed.model))


def test_a_run_resumed_in_its_own_folder_finds_its_checkpoint(tmp_path):
    _, ctl = run(tmp_path, max_steps=20)
    trainer = make_trainer(tmp_path, save_strategy="steps", save_steps=20)
    callback = ControllerCallback(trainer, Budget(params=0.4), **OPTIONS)
    trainer.add_callback(callback)
    trainer.train(resume_from_checkpoint=True)
    assert callback.controller.history[: len(ctl.history)] == ctl.history
    assert len(callback.controller.history) > len(ctl.history)


def test_checkpoints_that_do_not_fit_are_refused(tmp_path):
    run(tmp_path, max_steps=20)
    file = tmp_path / "checkpoint-20" / FILE

    def resume(**options):
        trainer = make_trainer(tmp_path)
        callback = ControllerCallback(trainer, Budget(params=0.4), **OPTIONS, **options)
        trainer.add_callback(callback)
        trainer.train(resume_from_checkpoint=True)
        return callback.controller

    state = read_state(file)
    write_state(file, {**state, "fingerprint": "another"})
    with pytest.raises(ValueError, match=r"must be that of the model .*checkpoint-20.*resume_from="):
        resume()
    file.write_bytes(file.read_bytes()[:-5])
    with pytest.raises(ValueError, match="must be a whole file"):
        resume()
    file.unlink()
    with pytest.raises(ValueError, match=rf"must hold {FILE} .*checkpoint-20.*resume_from="):
        resume()
    assert min(move.step for move in resume(resume_from=False).history) <= 20
    write_state(tmp_path / FILE, state)
    assert len(resume(resume_from=tmp_path).history) > len(state["controller"]["history"])


def test_the_best_model_comes_back_with_its_controller(tmp_path):
    options = {"eval_strategy": "steps", "eval_steps": 10, "save_steps": 10, "load_best_model_at_end": True}
    options["metric_for_best_model"] = "first"
    trainer = make_trainer(tmp_path, evaluated=texts(16), save_strategy="steps", **options)
    # The first evaluation is the best, whatever the loss.
    scores = iter([1.0, 0.0, 0.0, 0.0])
    trainer.compute_metrics = lambda _: {"first": next(scores)}
    callback = ControllerCallback(trainer, Budget(params=0.4), **OPTIONS)
    trainer.add_callback(callback)
    trainer.train()
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-10")
    assert max(move.step for move in callback.controller.history) <= 10
    masks = callback.controller.masks
    assert same(masks.state_dict(), read_state(tmp_path / "checkpoint-10" / FILE)["controller"]["masks"])
    assert masks.density() < 1
    for name, mask in masks.items():
        assert torch.equal(trainer.model.get_parameter(name.removeprefix("model.")) != 0, mask)


@pytest.mark.parametrize("lengths", [(6,), (6, 4)])
def test_accumulated_batches_are_one_step(tmp_path, monkeypatch, lengths):
    seen = []
    step = Controller.step
    monkeypatch.setattr(Controller, "step", lambda self, batch: (seen.append(batch), step(self, batch))[1])
    data = texts(48, [length for length in lengths for _ in range(16)])
    options = {"gradient_accumulation_steps": 2, "max_steps": 2, "train_sampling_strategy": "sequential"}
    trainer = make_trainer(tmp_path, data=data, **options)
    trainer.add_callback(ControllerCallback(trainer, Budget(params=0.4), unit="weight"))
    trainer.train()
    # Three batches: the last step of the epoch has one. Texts of several lengths are not joined.
    assert [len(target) for _, target in seen] == ([32, 16] if len(lengths) == 1 else [16, 16])
    inputs, target = seen[0]
    rows = data[:32] if len(lengths) == 1 else data[16:32]
    assert torch.equal(inputs["input_ids"], torch.stack([row["input_ids"] for row in rows]))
    assert torch.equal(target, torch.tensor([row["labels"] for row in rows]))
    assert inputs.keys() == {"input_ids", "attention_mask"}


def test_other_outputs_batches_and_losses(tmp_path):
    class Regression(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1))

        def forward(self, x, y=None):
            out = self.net(x)
            return (out,) if y is None else (nn.functional.mse_loss(out, y), out)

    x = torch.randn(320, 6)
    data = [{"x": row, "y": row[:1]} for row in x]
    trainer = make_trainer(tmp_path, Regression(), data)
    callback = ControllerCallback(
        trainer,
        Budget(params=0.6),
        nn.MSELoss(),
        output=0,
        as_pair=lambda batch: ({"x": batch["x"]}, batch["y"]),
        **OPTIONS,
    )
    trainer.add_callback(callback)
    trainer.train()
    assert callback.controller.met


def test_a_controller_of_ones_own_and_a_second_training(tmp_path):
    model = bert()
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    made = Controller(LogitsOf(model), optimizer, nn.CrossEntropyLoss(), Budget(params=0.4), **OPTIONS)
    trainer = make_trainer(tmp_path, model, max_steps=20)
    trainer.optimizer = optimizer
    callback = ControllerCallback(trainer, controller=made)
    trainer.add_callback(callback)
    trainer.train()
    assert callback.controller is made
    assert not made.met
    trainer.train()
    assert callback.controller is made
    assert made.met

    other = make_trainer(tmp_path)
    other.add_callback(ControllerCallback(other, controller=made))
    with pytest.raises(ValueError, match="must be made for the trainer's optimizer"):
        other.train()


@pytest.mark.parametrize(
    ("place", "name", "value", "message"),
    [
        (lambda trainer: trainer.accelerator, "distributed_type", SimpleNamespace(value="FSDP"), "type FSDP"),
        (lambda trainer: trainer.args, "world_size", 2, "2 processes"),
        (lambda trainer: trainer.args, "n_gpu", 2, "2 GPUs"),
    ],
)
def test_several_processes_and_devices_are_refused(tmp_path, monkeypatch, place, name, value, message):
    trainer = make_trainer(tmp_path)
    callback = ControllerCallback(trainer, Budget(params=0.4), **OPTIONS)
    before = weights(trainer.model)
    monkeypatch.setattr(type(place(trainer)), name, value)
    with pytest.raises(ValueError, match=f"one device in one process.*got .*{message}"):
        callback.on_train_begin(trainer.args, trainer.state, trainer.control)
    assert same(before, weights(trainer.model))
    assert callback.controller is None


def test_searches_are_refused(tmp_path):
    trainer = make_trainer(tmp_path)
    trainer.state.is_hyper_param_search = True
    callback = ControllerCallback(trainer, Budget(params=0.4), **OPTIONS)
    with pytest.raises(ValueError, match="new callback for each trial"):
        callback.on_train_begin(trainer.args, trainer.state, trainer.control)


def test_batches_without_labels_are_refused(tmp_path):
    trainer = make_trainer(tmp_path, data=[{"input_ids": row["input_ids"]} for row in texts(64)])
    trainer.compute_loss = lambda model, inputs, **_: model(**inputs).logits.sum()
    own = trainer.compute_loss
    trainer.add_callback(ControllerCallback(trainer, Budget(params=0.4), **OPTIONS))
    with pytest.raises(TypeError, match=r"mapping with a tensor of labels \(got keys input_ids\); give as_pair="):
        trainer.train()
    callback = trainer.pop_callback(ControllerCallback)
    callback.on_train_end(trainer.args, trainer.state, trainer.control)
    assert trainer.compute_loss is own


def test_bad_arguments(tmp_path):
    with pytest.raises(TypeError, match=r"trainer must be a transformers.Trainer \(got Budget\)"):
        ControllerCallback(Budget(params=0.5))
    with pytest.raises(ValueError, match="either budget or controller"):
        ControllerCallback(make_trainer(tmp_path))


def test_logits_of_what_a_model_returns():
    out = torch.ones(2, 3)

    class Model(nn.Module):
        def __init__(self, made) -> None:
            super().__init__()
            self.made = made

        def forward(self, x):
            return self.made

    for made, output in (
        (SimpleNamespace(logits=out), "logits"),
        ({"logits": out}, "logits"),
        ((None, out), 1),
    ):
        assert LogitsOf(Model(made), output)(out) is out
    with pytest.raises(TypeError, match=r"LogitsOf: 0 must be one tensor \(got NoneType\)"):
        LogitsOf(Model((None, out)), 0)(out)


def test_the_file_is_read_without_pickle(tmp_path):
    run(tmp_path, max_steps=20)
    data = (tmp_path / "checkpoint-20" / FILE).read_bytes()
    size = int.from_bytes(data[:8], "little")
    assert "resgrow-state" in json.loads(data[8 : 8 + size])["__metadata__"]
