"""The main job on a problem of a second: what the run folder says, and that it says the truth."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from small import small_data

import resgrow.data
from resgrow._errors import InputError, RunError
from resgrow.experiments import fit as fit_module
from resgrow.experiments import measure, sizing
from resgrow.experiments.config import make_config
from resgrow.experiments.fit import fit
from resgrow.experiments.measure import evaluate
from resgrow.experiments.run_folder import read_history
from resgrow.experiments.summary import sizes
from resgrow.surgery import storage

CONFIG = make_config(epochs=6, batch_size=16, optimizer="adam", lr=1e-3, budget="params=0.3")


@pytest.fixture(autouse=True)
def small(monkeypatch):
    data = small_data(train=96, test=32)
    monkeypatch.setattr(resgrow.data, "load", lambda *arguments: data)
    monkeypatch.setattr(measure, "LATENCY_SECONDS", 0.0)
    return data


def console() -> Console:
    return Console(file=io.StringIO(), width=100)


def status(folder):
    return json.loads((folder / "status.json").read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    screen = console()
    data = small_data(train=96, test=32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(resgrow.data, "load", lambda *arguments: data)
        summary = fit(CONFIG, folder, screen)
    return folder, summary, data, screen.file.getvalue()


def test_folder_is_complete(finished):
    folder, summary, _, _ = finished
    assert {path.name for path in folder.iterdir()} == {
        "status.json",
        "config.json",
        "history.jsonl",
        "summary.json",
        "model.safetensors",
        "model.json",
        "report.html",
    }
    assert status(folder)["state"] == "finished"
    assert json.loads((folder / "summary.json").read_text()) == json.loads(json.dumps(summary))
    assert json.loads((folder / "config.json").read_text())["fit"]["epochs"] == 6


def test_budget_is_met_by_what_is_stored(finished):
    folder, summary, data, _ = finished
    model = storage.load(folder)
    assert summary["budget_met"]
    assert sizes(model, data.test_x[:1])["params"] == summary["sized"]["params"]
    assert summary["sized"]["params"] <= 0.3 * summary["dense"]["params"]
    assert summary["sized"]["stored_params"] == sum(parameter.numel() for parameter in model.parameters())


def test_stored_model_has_the_accuracy_that_is_told(finished):
    folder, summary, data, _ = finished
    loss, accuracy = evaluate(storage.load(folder), data.test_x, data.test_y)
    assert accuracy == summary["sized"]["accuracy"]
    assert loss == pytest.approx(summary["sized"]["test_loss"], rel=1e-4)


def test_history_holds_both_networks_and_the_moves(finished):
    folder, summary, _, _ = finished
    history = read_history(folder)
    epochs = [(event["role"], event["epoch"]) for event in history if event["kind"] == "epoch"]
    moves = [event for event in history if event.get("event") == "move"]
    assert epochs == [(role, epoch) for role in ("dense", "sized") for epoch in range(1, 7)]
    assert sum(summary["moves"].values()) == len(moves) > 0
    # 36 steps: the controller rests for a fifth of them and is done by three fifths.
    assert all(8 <= move["step"] <= 22 for move in moves)
    assert {"predicted", "actual", "accepted", "cost"} <= moves[0].keys()


def test_twins_are_the_same_network_until_the_first_move(finished):
    folder, _, _, _ = finished
    dense, sized = [event for event in read_history(folder) if event["kind"] == "epoch" and event["epoch"] == 1]
    for own in ("role", "seconds"):
        del dense[own], sized[own]
    assert dense == sized


def test_terminal_output_begins_with_the_data_and_ends_with_table_and_report(finished):
    folder, summary, _, text = finished
    assert text.startswith("bright: 96 training and 32 test images of 1x8x8, 2 classes\n")
    assert summary["data_verified"] is None
    assert "self-sizing twin" in text
    assert "Latency, batch 64" in text
    assert str(folder / "report.html") in text


def test_layers_are_compared(finished):
    _, summary, _, _ = finished
    widths = {row["name"]: (row["dense_width"], row["sized_width"]) for row in summary["layers"]}
    assert widths["fc"] == (2, 2)
    inner = [widths[f"layer{i}.0.conv1"] for i in (1, 2, 3)]
    assert [dense for dense, _ in inner] == [16, 32, 64]
    assert sum(sized for _, sized in inner) < 112


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_the_whole_job_on_a_gpu(tmp_path):
    summary = fit(replace(CONFIG, device="cuda"), tmp_path / "run", console())
    assert summary["budget_met"]
    assert summary["device"] == torch.cuda.get_device_name()
    assert status(tmp_path / "run")["state"] == "finished"
    assert storage.load(tmp_path / "run").fc.weight.device.type == "cpu"


@pytest.mark.parametrize(
    ("error", "state"),
    [(RunError("fit: the disk is full"), "failed"), (KeyError("bug"), "failed")],
)
def test_a_failure_is_written_down(tmp_path, monkeypatch, error, state):
    def fail(*arguments):
        raise error

    monkeypatch.setattr(fit_module, "_shrink", fail)
    with pytest.raises(type(error)):
        fit(replace(CONFIG, epochs=1), tmp_path / "run", console())
    found = status(tmp_path / "run")
    assert found["state"] == state
    assert type(error).__name__ in found["message"]
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_nan_in_the_data_marks_the_run_failed(tmp_path, small):
    small.train_x[5] = float("nan")
    with pytest.raises(RunError, match="lower --lr"):
        fit(CONFIG, tmp_path / "run", console())
    assert status(tmp_path / "run")["state"] == "failed"
    assert "got nan at epoch 1" in status(tmp_path / "run")["message"]


@pytest.mark.parametrize("budget", ["params=0.0001", "macs=3"])
def test_an_impossible_budget_leaves_no_folder(tmp_path, budget):
    config = make_config(budget=budget)
    with pytest.raises(InputError, match="must be reachable"):
        fit(config, tmp_path / "run", console())
    assert not (tmp_path / "run").exists()


def test_a_generous_budget_removes_nothing(tmp_path):
    config = make_config(epochs=1, batch_size=16, budget="params=1.0", grow=False)
    summary = fit(config, tmp_path / "run", console())
    assert summary["moves"] == {"accepted": 0, "undone": 0}
    assert summary["sized"]["accuracy"] == summary["dense"]["accuracy"]
    assert summary["sized"]["params"] == summary["dense"]["params"]


def test_sizing_sees_training_images_only(tmp_path, monkeypatch, small):
    seen = []
    original = sizing.Controller.step

    def step(self, batch):
        seen.append(batch[0])
        return original(self, batch)

    monkeypatch.setattr(sizing.Controller, "step", step)
    fit(replace(CONFIG, epochs=2), tmp_path / "run", console())
    known = {tuple(image.flatten().tolist()) for image in small.train_x}
    assert all(tuple(image.flatten().tolist()) in known for image in torch.cat(seen))


def test_gates_find_the_size_without_a_budget(tmp_path, small):
    config = make_config(method="tristate", gates=3e-2, epochs=12, batch_size=16, optimizer="adam", lr=1e-2)
    folder, screen = tmp_path / "run", console()
    summary = fit(config, folder, screen)
    assert summary["method"] == "tristate"
    assert summary["budget"] == {}
    assert summary["budget_met"] is None
    assert "budget was not met" not in screen.file.getvalue()
    assert status(folder)["state"] == "finished"
    assert summary["sized"]["params"] < summary["dense"]["params"]
    assert summary["output_difference"] < 1e-4
    events = [event for event in read_history(folder) if event["kind"] == "gates"]
    assert [event["step"] for event in events] == list(range(1, 73))  # six steps an epoch: each is told
    assert sum(events[-1]["widths"].values()) < sum(events[0]["widths"].values())
    stored = storage.load(folder)
    assert sizes(stored, small.train_x[:1])["stored_params"] == summary["sized"]["stored_params"]
    report = (folder / "report.html").read_text()
    assert "tri-state ReLUs" in report
    assert "Open channels of each layer" in report
    assert "<h2>Moves</h2>" not in report
