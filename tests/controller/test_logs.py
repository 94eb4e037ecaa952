"""Logs of a controller: what is told arrives whole, is continued after a kill, and a log that fails says so."""

from __future__ import annotations

import json
import math
import os
import sys
from dataclasses import asdict

import pytest
from moves import move

from resgrow._lines import read_lines
from resgrow.controller.logs import JsonLines, TensorBoard, rewind


def lines(path):
    return [json.loads(text) for text in path.read_text().splitlines()]


def test_moves_and_sizes_are_lines_at_once(tmp_path):
    path = tmp_path / "log.jsonl"
    log = JsonLines(path)
    log.move(move())
    assert lines(path) == [{"event": "move", **asdict(move())}]
    log.size(11, {"params": 900.0}, 0.25)
    log.size(12, {"params": 900.0}, None)
    assert lines(path)[1:] == [
        {"event": "size", "step": 11, "cost": {"params": 900.0}, "loss": 0.25},
        {"event": "size", "step": 12, "cost": {"params": 900.0}, "loss": None},
    ]
    log.close()
    log.close()
    with pytest.raises(ValueError, match="must be open"):
        log.move(move())


def test_sizes_every_so_often_and_moves_always(tmp_path):
    log = JsonLines(tmp_path / "log.jsonl", every=3)
    for step in range(1, 8):
        log.size(step, {"params": 1.0}, None)
    log.move(move(step=7))
    assert [(event["event"], event["step"]) for event in lines(log.path)] == [("size", 3), ("size", 6), ("move", 7)]


def test_numbers_that_are_not_finite_are_null(tmp_path):
    log = JsonLines(tmp_path / "log.jsonl")
    log.move(move(ratio=math.inf, price=math.nan))
    (event,) = lines(log.path)
    assert event["ratio"] is None
    assert event["price"] is None


def test_a_line_that_a_kill_cut_off_is_removed_and_the_file_continued(tmp_path):
    path = tmp_path / "log.jsonl"
    log = JsonLines(path)
    log.move(move(step=1))
    log.move(move(step=2))
    log.close()
    whole = path.read_bytes()
    for cut in (1, 5, len(whole) // 2 - 4):
        path.write_bytes(whole[:-cut])
        assert [event["step"] for event in read_lines(path)] == [1]
        log = JsonLines(path)
        log.move(move(step=3))
        log.close()
        assert [event["step"] for event in lines(path)] == [1, 3]
    path.write_bytes(whole[:7])  # of the first line
    JsonLines(path).move(move(step=4))
    assert [event["step"] for event in lines(path)] == [4]


@pytest.mark.parametrize(
    "text", ["precious", "precious\n", '{"kind": "epoch"}\n', '{"event": "move"}\nprecious', '[1]\n{"event": "move"}\n']
)
def test_another_file_is_left_as_it_was(tmp_path, text):
    path = tmp_path / "notes"
    path.write_text(text)
    with pytest.raises(ValueError, match=r"JsonLines: .*notes must be new, or written by JsonLines .*choose another"):
        JsonLines(path)
    assert path.read_text() == text


def test_bad_arguments(tmp_path):
    with pytest.raises(ValueError, match="every must be at least 1"):
        JsonLines(tmp_path / "log.jsonl", every=0)
    with pytest.raises(FileNotFoundError):
        JsonLines(tmp_path / "missing" / "log.jsonl")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("stop", ["short", "error"])
def test_a_full_disk_is_an_error_and_leaves_whole_lines(tmp_path, monkeypatch, stop):
    log = JsonLines(tmp_path / "log.jsonl")
    log.move(move(step=1))
    write = os.write

    def full(file, data):
        write(file, data[:7])
        if stop == "error":
            raise OSError(28, "No space left on device")
        return 7

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OSError, match=r"No space left|got 7 of \d+ bytes"):
        log.move(move(step=2))
    monkeypatch.undo()
    log.move(move(step=3))
    assert [event["step"] for event in lines(log.path)] == [1, 3]


def test_rewound_logs_forget_what_came_later(tmp_path):
    class Deaf:
        """A log without rewind."""

    log = JsonLines(tmp_path / "log.jsonl")
    for step in (5, 10, 15):
        log.move(move(step=step, price=0.1 + step))
        log.size(step, {"params": 100.0 - step}, None)
    rewind([Deaf(), log], 10)
    assert [event["step"] for event in lines(log.path)] == [5, 5, 10, 10]
    assert lines(log.path)[2] == {"event": "move", **asdict(move(step=10, price=10.1))}
    log.move(move(step=12))
    assert [event["step"] for event in lines(log.path)] == [5, 5, 10, 10, 12]
    assert [path.name for path in tmp_path.iterdir()] == ["log.jsonl"]


def test_tensorboard_is_asked_for_where_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match=r"TensorBoard: needs the package tensorboard .*resgrow\[logs\]"):
        TensorBoard(tmp_path)


def board(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder))
    found.Reload()
    return found


def curve(found, tag):
    return [(event.step, pytest.approx(event.value)) for event in found.Scalars(tag)]


def test_tensorboard_has_curves_widths_and_texts(tmp_path):
    pytest.importorskip("tensorboard")
    log = TensorBoard(tmp_path, widths={"conv1": 16})
    log.move(move(step=5))
    log.move(move(step=6, accepted=False, where={"conv1": 9}, actual=None))
    log.move(move(step=7, kind="widen", where={"conv1": 2}))
    log.size(7, {"params": 900.0, "latency_ms": 1.5}, 0.5)
    log.size(8, {"params": 800.0}, None)
    log.close()
    found = board(tmp_path)
    assert curve(found, "move/predicted") == [(5, 1e-3), (6, 1e-3), (7, 1e-3)]
    assert curve(found, "move/actual") == [(5, 2e-3), (7, 2e-3)]
    assert curve(found, "move/accepted") == [(5, 1), (6, 0), (7, 1)]
    assert curve(found, "move/damping") == [(5, 1), (6, 1), (7, 1)]
    assert curve(found, "move/price")[0] == (5, 1e-6)
    assert curve(found, "loss/before")[0] == (5, 0.1)
    assert curve(found, "loss/after")[0] == (5, 0.102)
    assert curve(found, "loss/training") == [(7, 0.5)]
    assert curve(found, "cost/params") == [(7, 900), (8, 800)]
    assert curve(found, "cost/latency_ms") == [(7, 1.5)]
    assert curve(found, "widths/conv1") == [(5, 13), (7, 15)]  # from 16
    assert curve(found, "widths/conv2") == [(5, -1)]
    texts = [event.tensor_proto.string_val[0].decode() for event in found.Tensors("moves/text_summary")]
    assert texts[0] == ("step 5: shrink channel (conv1 3, conv2 1), predicted +1.00e-03, actual +2.00e-03, kept")
    assert texts[1].endswith("undone")


def test_tensorboard_goes_on_from_an_earlier_step(tmp_path):
    pytest.importorskip("tensorboard")
    history = [move(step=step, where={"conv1": 1}) for step in (5, 10, 15)]
    log = TensorBoard(tmp_path, widths={"conv1": 16})
    for each in history:
        log.move(each)
    log.close()
    log = TensorBoard(tmp_path, widths={"conv1": 16})
    rewind([log], 10, history[:2])
    log.move(move(step=12, where={"conv1": 4}))
    log.close()
    assert curve(board(tmp_path), "widths/conv1") == [(5, 15), (10, 14), (12, 10)]


def test_a_writer_of_ones_own_stays_open(tmp_path):
    pytest.importorskip("tensorboard")
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(tmp_path)) as writer:
        log = TensorBoard(writer)
        log.move(move(step=1))
        log.close()
        writer.add_scalar("mine", 1.0, 2)
    found = board(tmp_path)
    assert curve(found, "mine") == [(2, 1)]
    assert curve(found, "move/predicted") == [(1, 1e-3)]
