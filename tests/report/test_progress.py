"""Figures of a history alone, of this and of earlier versions, whole or cut off."""

from __future__ import annotations

from dataclasses import asdict

import example_run
import matplotlib.figure
import pytest
from moves import move
from test_render import Page, svg

from resgrow.report import progress_png, render_progress
from resgrow.report.events import depth_of, moves_of, normal_move, sizes_of, start_of, widths_of
from resgrow.report.progress import (
    draw_cost,
    draw_depth,
    draw_loss_against_size,
    draw_widths_over_time,
    headline,
    panels,
    thinned,
)


def told(**changes):
    return {"event": "move", **asdict(move(**changes))}


def size(step, params, loss=None):
    return {"event": "size", "step": step, "cost": {"params": params}, "loss": loss}


HISTORY = [
    size(1, 1000.0, 0.5),
    told(step=5, where={"a": 3, "b": 1}, cost={"params": 900.0}),
    told(step=5, accepted=False, where={"a": 9}, cost={"params": 500.0}),
    size(6, 900.0, 0.4),
    told(step=10, kind="widen", where={"b": 2}, cost={"params": 950.0}, predicted=-1e-3, actual=-2e-3),
    told(step=15, kind="deepen", unit="residual", where={"layer1": 1}, cost={"params": 990.0}),
    told(step=20, kind="shrink", unit="residual", where={"layer2": 2}, cost={"params": 700.0}),
]
GATES = [
    {"kind": "gates", "step": step, "widths": {"1": 20 - step, "2": 8}, "linear": ["2"] * (step > 5)}
    for step in (5, 10)
]


def axes_of(draw, history):
    axes = matplotlib.figure.Figure().add_subplot()
    draw(axes, history)
    return axes


def test_moves_of_earlier_versions_are_read_like_those_of_today():
    (old,) = moves_of([example_run.move(macs=77)])
    assert (old["kind"], old["count"], old["where"], old["cost"]) == ("shrink", 3, {}, {"params": 900, "macs": 77})
    (without,) = moves_of([example_run.move()])
    assert without["cost"] == {"params": 900}
    (new,) = moves_of([{"event": "move", **asdict(move(kind="widen"))}])
    assert new == {"event": "move", **asdict(move(kind="widen"))}
    assert normal_move(new) == new
    assert [each["step"] for each in moves_of(HISTORY)] == [5, 5, 10, 15, 20]
    with pytest.raises(ValueError, match=r"a move must have .*got none of step, accepted"):
        normal_move({name: value for name, value in new.items() if name not in ("step", "accepted")})


def test_widths_and_depth_are_sums_of_what_was_kept():
    assert widths_of(HISTORY) == ([0, 5, 10], {"a": [0, -3, -3], "b": [0, -1, 1]}, False)
    assert depth_of(HISTORY) == ([0, 15, 20], [0, 1, -1])
    assert widths_of(GATES) == ([5, 10], {"1": [15, 10], "2": [8, 8]}, True)
    assert depth_of(GATES) == ([5, 10], [0, -1])
    assert widths_of([example_run.move()]) == ([], {}, False)
    assert depth_of([]) == ([], [])


def test_sizes_come_from_all_that_tells_them_in_order():
    assert [(each["step"], each["cost"]["params"]) for each in sizes_of(HISTORY)] == [
        (1, 1000), (5, 900), (6, 900), (10, 950), (15, 990), (20, 700),
    ]  # fmt: skip
    assert start_of(HISTORY) == {"params": 1000}
    assert start_of(HISTORY[1:]) == {}
    assert start_of(example_run.history()) == {"params": 1000}
    twin = sizes_of(example_run.history())
    assert [each["step"] for each in twin] == [10, 10, 20, 30]


def test_layers_that_changed_least_share_a_line():
    where = {f"layer{place}": place + 1 for place in range(14)}
    axes = axes_of(draw_widths_over_time, [told(where=where)])
    lines = {line.get_label(): line.get_ydata()[-1] for line in axes.lines}
    assert len(lines) == 11
    assert lines["layer13"] == -14
    assert lines["4 others"] == -(1 + 2 + 3 + 4)


def test_lines_reach_to_the_last_step():
    history = [*HISTORY, size(90, 700.0)]
    for draw, value in ((draw_widths_over_time, -3), (draw_depth, -1), (draw_cost, 0.7)):
        line = axes_of(draw, history).lines[0]
        assert line.get_xydata()[-1].tolist() == [90, value]


def test_loss_against_size_has_training_and_moves():
    axes = axes_of(draw_loss_against_size, HISTORY)
    lines = {line.get_label(): line.get_xydata().tolist() for line in axes.lines}
    assert lines["training"] == [[1000, 0.5], [900, 0.4]]
    assert lines["after a move"] == [[params, 0.102] for params in (900, 950, 990, 700)]
    assert axes.get_yscale() == "log"
    assert axes_of(draw_loss_against_size, [size(1, 10.0, -0.5)]).get_yscale() == "linear"


@pytest.mark.parametrize(
    ("history", "names"),
    [
        ([], set()),
        ([size(1, 10.0)], {"size"}),
        ([size(1, 10.0, 0.5)], {"size", "loss_against_size"}),
        (GATES, {"widths_over_time", "depth_over_time"}),
        (HISTORY, {"size", "loss_against_size", "widths_over_time", "depth_over_time", "predictions"}),
        (example_run.history(), {"size", "loss_against_size", "predictions"}),
        ([told(predicted=None, actual=None, ratio=None, price=None, loss_after=None, accepted=False)], {"predictions"}),
        ([told(cost={}, loss_after=0.0)], {"size", "loss_against_size", "widths_over_time", "predictions"}),
    ],
)
def test_pages_and_pictures_show_what_there_is(history, names):
    assert set(panels(history)) - {"loss_against_size"} == names - {"loss_against_size"}
    page = Page(render_progress("<run>", "State.", history))
    assert page.open == []
    assert "<run>" in page.texts
    assert len(page.images) == len(panels(history))
    for name, image in page.images.items():
        assert svg(image).tag.endswith("svg"), name
    assert progress_png(history, "run").startswith(b"\x89PNG\r\n\x1a\n")


def test_page_tells_where_a_move_took_from():
    text = render_progress("run", "State.", HISTORY)
    assert {"widen", "deepen", "kept", "undone", "4 kept", "700"} <= set(Page(text).texts)
    assert 'title="a: 3, b: 1"' in text
    assert text == render_progress("run", "State.", HISTORY)
    assert progress_png(HISTORY) == progress_png(HISTORY)


def test_headline_tells_the_size():
    found = dict(headline(HISTORY))
    assert found["700"] == "parameters, 70.0 % of the start"
    assert found["20"] == "training steps so far"
    assert headline([]) == [("0 kept", "and 0 undone, of 0 moves")]


def test_long_histories_are_thinned_and_keep_their_ends():
    points = list(range(100_001))
    kept = thinned(points)
    assert len(kept) == 2000
    assert (kept[0], kept[-1]) == (0, 100_000)
    assert kept == sorted(set(kept))
    assert thinned([1, 2]) == [1, 2]
