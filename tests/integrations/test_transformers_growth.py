"""A model that grows inside of the trainer of Hugging Face's transformers, and comes back from its checkpoints."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch
from torch import nn

import resgrow
from resgrow import Budget
from resgrow.integrations.beside import LogitsOf
from tests.integrations.growing import BUDGET, OPTIONS, SAVED, STEPS, Stream, same_numbers, same_state, wave

transformers = pytest.importorskip("transformers")
accelerate = pytest.importorskip("accelerate")
FILE, ControllerCallback, prepare = (
    getattr(pytest.importorskip("resgrow.integrations.transformers"), name)
    for name in ("FILE", "ControllerCallback", "prepare")
)
pytestmark = pytest.mark.filterwarnings("ignore")
transformers.utils.logging.set_verbosity_error()


class Regression(nn.Module):
    """As models of transformers: a tuple of loss and predictions."""

    def __init__(self) -> None:
        super().__init__()
        self.net = Stream()

    def forward(self, x, labels=None):
        out = self.net(x)
        return (out,) if labels is None else (nn.functional.mse_loss(out, labels), out)


def data() -> list[dict]:
    return [{"x": a, "labels": b} for x, y in wave(SAVED) for a, b in zip(x, y, strict=True)]


def held():
    return [({"x": x}, y) for x, y in OPTIONS["held"]]


def make(folder, unit, optimizer=None, **options):
    arguments = transformers.TrainingArguments(
        str(folder),
        **{
            "per_device_train_batch_size": 64,
            "max_steps": STEPS,
            "learning_rate": 0.01,
            "weight_decay": 1e-4,
            "report_to": [],
            "disable_tqdm": True,
            "save_strategy": "steps",
            "save_steps": SAVED,
            "use_cpu": True,
            "seed": 0,
            "lr_scheduler_type": "constant_with_warmup",
            "warmup_steps": 5,
            "train_sampling_strategy": "sequential",
            "label_names": ["labels"],
            **options,
        },
    )
    model = Regression()
    trainer = transformers.Trainer(model, arguments, train_dataset=data(), eval_dataset=data()[:64])
    if optimizer is not None:
        trainer.optimizer = optimizer(model.parameters(), 0.01)
    given = {**OPTIONS, "held": held(), "example_inputs": {"x": torch.zeros(2, 1)}}
    callback = ControllerCallback(trainer, BUDGET, nn.MSELoss(), output=0, unit=unit, **given)
    trainer.add_callback(callback)
    return trainer, callback


def shapes(trainer) -> dict[str, torch.Size]:
    return {name: parameter.shape for name, parameter in trainer.model.named_parameters()}


def inner(trainer) -> torch.optim.Optimizer:
    return getattr(trainer.optimizer, "optimizer", trainer.optimizer)


@pytest.mark.parametrize(
    ("unit", "optimizer"), [("channel", None), ("residual", None), ("residual", torch.optim.AdamW)]
)
def test_a_model_that_has_grown_is_resumed_and_goes_on_to_the_bit(tmp_path, unit, optimizer):
    trainer, callback = make(tmp_path, unit, optimizer)
    trainer.train()
    ctl = callback.controller
    assert any(move.grows and move.accepted and move.step <= SAVED for move in ctl.history)
    checkpoint = tmp_path / f"checkpoint-{SAVED}"
    again, other = make(tmp_path / "again", unit, optimizer)
    other._resume_from = checkpoint
    again.train(resume_from_checkpoint=str(checkpoint))
    assert other.controller.history == ctl.history
    assert same_numbers(trainer.model, again.model)
    assert same_state(trainer.model, inner(trainer), again.model, inner(again))

    folder = tmp_path / f"checkpoint-{STEPS}"
    model = prepare(Regression(), folder, output=0)
    model.load_state_dict(safetensors.torch.load_file(folder / "model.safetensors"))
    assert same_numbers(model, trainer.model)
    with pytest.raises(ValueError, match=rf"must be of a trainer with a ControllerCallback \(got no {FILE}"):
        prepare(Regression(), tmp_path)


@pytest.mark.parametrize("unit", ["channel", "residual"])
def test_the_best_model_comes_back_in_its_shapes(tmp_path, unit):
    options = {"eval_strategy": "steps", "eval_steps": 10, "save_steps": 10, "load_best_model_at_end": True}
    options |= {"metric_for_best_model": "first", "max_steps": SAVED}
    trainer, callback = make(tmp_path, unit, **options)
    scores = iter([1.0, *[0.0] * SAVED])
    trainer.compute_metrics = lambda _: {"first": next(scores)}
    grown, own = [], callback.on_save

    def on_save(*args, **kwargs) -> None:
        grown.append(shapes(trainer))
        own(*args, **kwargs)

    callback.on_save = on_save
    trainer.train()
    assert shapes(trainer) == grown[0] != grown[-1]
    assert trainer.state.best_model_checkpoint.endswith("checkpoint-10")
    ctl = callback.controller
    assert not ctl.history
    fresh = Regression()
    fresh.load_state_dict(safetensors.torch.load_file(tmp_path / "checkpoint-10" / "model.safetensors"))
    assert same_numbers(fresh, trainer.model)
    assert {name: mask.shape for name, mask in ctl.masks.items()} == {
        name: ctl.model.get_parameter(name).shape for name in ctl.masks
    }
    own = {id(parameter) for parameter in trainer.model.parameters()}
    for group in inner(trainer).param_groups:
        for parameter in group["params"]:
            assert id(parameter) in own
            state = inner(trainer).state.get(parameter, {})
            assert all(entry.shape == parameter.shape for entry in state.values() if entry.dim())
    assert callback.controller.cost["params"] == sum(p.numel() for p in trainer.model.parameters())


def test_a_transformer_is_widened(tmp_path):
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=2,
        max_position_embeddings=8,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
        num_labels=2,
    )
    torch.manual_seed(0)
    model = LogitsOf(transformers.BertForSequenceClassification(config))
    optimizer = accelerate.Accelerator(cpu=True).prepare(torch.optim.AdamW(model.parameters(), 1e-2))
    example = {"input_ids": torch.ones(2, 4, dtype=torch.long), "attention_mask": torch.ones(2, 4, dtype=torch.long)}
    model(**example).square().sum().backward()
    optimizer.step()
    name = "model.bert.encoder.layer.0.intermediate.dense"
    resgrow.widen(model, name, 3, example_inputs=example, optimizer=optimizer)
    weight = model.get_submodule(name).weight
    assert optimizer.state[weight]["exp_avg"].shape == weight.shape == (5, 8)
    before = weight.detach().clone()
    optimizer.zero_grad()
    for _ in range(2):
        model(**example).square().sum().backward()
        optimizer.step()
    assert bool((weight != before).any(1).all())
    # The controller takes the wrapped one, too.
    ctl = resgrow.Controller(
        model, optimizer, nn.CrossEntropyLoss(), Budget(params=1.0), example_inputs=example, every=1
    )
    ctl.step((example, torch.tensor([0, 1])))
