from __future__ import annotations

import io
from dataclasses import replace

import pytest
from rich.console import Console

from resgrow.experiments.display import LiveDisplay, PlainDisplay, make_display, result_table
from resgrow.experiments.training import Epoch
from resgrow.report.rows import Row

EPOCH = Epoch("dense", 1, 10, 0.5, 0.8, 0.6, 0.75, 1000, 1.0)
MOVE = {"predicted": 1e-3, "actual": -2e-3, "accepted": True, "params": 400}


def screen(terminal: bool) -> Console:
    return Console(file=io.StringIO(), width=120, force_terminal=terminal)


def play(display) -> None:
    with display:
        display.begin("dense", 20, 2, 1000)
        display.step(10, 1, 0.5)
        display.epoch(EPOCH)
        display.begin("sized", 20, 2, 1000)
        display.move(MOVE)
        display.step(10, 1, 0.25)
        display.epoch(replace(EPOCH, role="sized", params=400))
        display.say("done")


@pytest.mark.parametrize(("terminal", "kind"), [(True, LiveDisplay), (False, PlainDisplay)])
def test_kind_follows_the_console(terminal, kind):
    assert type(make_display(screen(terminal))) is kind


def test_plain_lines():
    console = screen(False)
    play(PlainDisplay(console))
    assert console.file.getvalue().splitlines() == [
        "dense baseline: 1,000 parameters, 2 epochs, 20 steps",
        "dense   1/2  loss 0.5000  test accuracy 75.00 %",
        "self-sizing twin: 1,000 parameters, 2 epochs, 20 steps",
        "sized   1/2  loss 0.5000  test accuracy 75.00 %  parameters 400 (40.0 %)  "
        "last move: predicted +1.00e-03, actual -2.00e-03",
        "done",
    ]


def test_plain_lines_are_never_wrapped():
    console = Console(file=io.StringIO(), width=40)
    play(PlainDisplay(console))
    assert len(console.file.getvalue().splitlines()) == 5


def test_live_view_shows_loss_accuracy_parameters_and_the_move():
    console = screen(True)
    play(LiveDisplay(console))
    text = console.file.getvalue()
    for part in (
        "dense baseline",
        "self-sizing twin",
        "0.2500 (epoch 1)",
        "75.00 %",
        "400 (40.0 % left)",
        "predicted +1.00e-03, actual -2.00e-03",
        "10/20",
    ):
        assert part in text, part


def test_an_undone_move_is_called_so():
    console = screen(False)
    display = PlainDisplay(console)
    display.begin("sized", 20, 2, 1000)
    display.move({**MOVE, "accepted": False})
    display.epoch(replace(EPOCH, role="sized"))
    assert console.file.getvalue().rstrip().endswith("actual -2.00e-03, undone")


def test_table():
    console = screen(False)
    console.print(result_table([Row("Test error", "1.00 %", "2.00 %", "+1.00 points", False)], "resnet8 on digits"))
    text = console.file.getvalue()
    assert text.startswith("resnet8 on digits")
    assert all(part in text for part in ("dense", "sized", "Test error", "2.00 %", "+1.00 points"))
