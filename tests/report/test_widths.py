"""The drawing of widths over depth: bars, outlines, blocks."""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from resgrow._order import merged_order
from resgrow.report import draw_widths
from resgrow.report.style import DENSE, SIZED
from resgrow.report.widths import widths_png

BEFORE = {"stem": 16, "layer1.0.conv1": 16, "layer1.0.conv2": 16, "layer1.1.conv1": 32, "layer1.1.conv2": 16, "fc": 10}
AFTER = {"stem": 16, "layer1.0.conv1": 5, "layer1.0.conv2": 16, "extra": 3, "fc": 10}


def bars(axes: Axes, label: str) -> list[Rectangle]:
    (found,) = [container for container in axes.containers if container.get_label() == label]
    return list(found)


def places(axes: Axes, label: str) -> dict[float, float]:
    return {round(bar.get_x() + bar.get_width() / 2, 6): bar.get_height() for bar in bars(axes, label)}


def test_one_bar_per_layer_as_high_as_it_is_wide():
    axes = draw_widths(Figure(), AFTER, title="small")
    assert places(axes, "after") == dict(enumerate(AFTER.values()))
    assert len(axes.containers) == 1
    assert axes.get_legend() is None
    assert axes.get_title(loc="center") + axes.get_title(loc="left") == "small"
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["stem", "conv1", "conv2", "extra", "fc"]


def test_before_is_an_outline_and_after_is_filled():
    axes = draw_widths(Figure(), AFTER, BEFORE)
    names = merged_order(BEFORE, AFTER)
    assert names == [*list(BEFORE)[:3], "extra", *list(BEFORE)[3:]]
    assert places(axes, "before") == {names.index(name): width for name, width in BEFORE.items()}
    assert places(axes, "after") == {names.index(name): width for name, width in AFTER.items()}
    assert {bar.get_fill() for bar in bars(axes, "before")} == {False}
    assert {to_hex(bar.get_edgecolor()) for bar in bars(axes, "before")} == {DENSE}
    assert {to_hex(bar.get_facecolor()) for bar in bars(axes, "after")} == {SIZED}
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["before", "after"]


def test_blocks_stand_on_bands():
    axes = draw_widths(Figure(), BEFORE)
    assert {text.get_text(): text.get_position()[0] for text in axes.texts} == {"layer1.0": 1.5, "layer1.1": 3.5}
    (band,) = [patch for patch in axes.patches if patch not in axes.containers[0].patches]
    assert band.get_extents().transformed(axes.transData.inverted()).x0 == 2.5  # every other block
    encoder = {f"encoder.encoder_layer_{i}.{name}": 4 for i in range(2) for name in ("attention.out", "mlp.0", "mlp.3")}
    axes = draw_widths(Figure(), encoder)
    assert [text.get_text() for text in axes.texts] == ["encoder.encoder_layer_0", "encoder.encoder_layer_1"]
    assert [tick.get_text() for tick in axes.get_xticklabels()][:3] == ["attention.out", "mlp.0", "mlp.3"]


def test_images_of_any_depth_are_the_same_each_time():
    png = widths_png(AFTER, BEFORE, "small")
    assert png.startswith(b"\x89PNG\r\n\x1a\n")
    assert png == widths_png(AFTER, BEFORE, "small") != widths_png(AFTER)
    assert widths_png({}).startswith(b"\x89PNG")
    assert widths_png({"": 3}).startswith(b"\x89PNG")


def test_orders_become_one():
    assert merged_order("ace", "abcde") == list("abcde")
    assert merged_order("ab", "xaby") == list("xaby")
    assert merged_order("", "ab") == merged_order("ab", "") == ["a", "b"]
    assert merged_order("abc", "cba") == list("abc")
