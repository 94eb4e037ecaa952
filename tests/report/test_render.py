from __future__ import annotations

import base64
import re
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from example_run import config, history, move, summary

from resgrow.report import plots, render

SVG = "{http://www.w3.org/2000/svg}"


class Page(HTMLParser):
    """Collects images, texts of table cells, and every address the page refers to."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.images: dict[str, str] = {}
        self.addresses: list[str] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        values = dict(attrs)
        if tag == "img":
            self.images[values["alt"]] = values["src"]
        self.addresses += [values[name] for name in ("src", "href") if name in values]
        if tag not in ("img", "meta"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data.strip())


def svg(uri: str) -> ElementTree.Element:
    head, _, body = uri.partition(",")
    assert head == "data:image/svg+xml;base64"
    return ElementTree.fromstring(base64.b64decode(body))


@pytest.fixture(scope="module")
def text() -> str:
    return render(config(), summary(), history())


def test_page_is_well_formed_and_needs_nothing_from_outside(text):
    page = Page(text)
    assert page.open == []
    assert len(page.images) == 8
    assert all(address.startswith("data:") for address in page.addresses)
    assert re.findall(r"https?://|@import|url\(", re.sub(r'src="data:[^"]*"', "", text)) == []


def test_every_figure_is_a_drawing(text):
    for name, uri in Page(text).images.items():
        assert len(svg(uri).findall(f".//{SVG}path")) > 10, name


def test_page_tells_the_results(text):
    texts = Page(text).texts
    assert {"resnet8 on bright", "budget met", "97.00 %", "2.00× faster", "torch", "2.13"} <= set(texts)
    assert any("params ≤ 10.0 %" in part for part in texts)


def test_page_lists_the_moves_with_those_undone(text):
    texts = Page(text).texts
    assert {"+1.00e-03", "+2.00e-03", "-1.00e-03", "kept", "undone"} <= set(texts)


def test_a_missed_budget_is_told():
    assert "budget not met" in Page(render(config(), summary(budget_met=False), history())).texts


def test_absolute_budgets_are_counts():
    text = render(config(budget={"params": 20000.0, "macs": 0.5}), summary(), history())
    assert "params ≤ 20,000 and macs ≤ 50.0 %" in re.sub(r"\s+", " ", text)


def test_names_are_escaped():
    evil = "<script>alert(1)</script>"
    text = render(config(data=evil), summary(data=evil), history())
    assert evil not in text
    assert "&lt;script&gt;" in text


@pytest.mark.parametrize(
    "moves",
    [
        [],
        [move(predicted=0.0, actual=0.0, ratio=None)],
        [move(predicted=None, actual=None)],
        [move(actual=-1.0)],
    ],
)
def test_predictions_of_odd_moves(moves):
    assert svg(plots.predictions(moves)).tag == f"{SVG}svg"


def test_a_run_without_moves_still_has_a_report():
    epochs = [event for event in history() if event["kind"] == "epoch"]
    assert Page(render(config(), summary(), epochs)).open == []


def test_the_same_run_gives_the_same_page(text):
    assert render(config(), summary(), history()) == text


def test_plots_leave_matplotlib_s_settings_alone():
    import matplotlib

    before = dict(matplotlib.rcParams)
    plots.loss(history()[:6])
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize(
    ("difference", "text"), [(0.0, "equal the masked twin's exactly"), (2e-7, "by at most 2e-07 of the largest output")]
)
def test_deviation_of_the_stored_network_is_told(difference, text):
    page = Page(render(config(), summary(output_difference=difference), history()))
    assert text in " ".join(" ".join(page.texts).split())


def test_published_files_are_told_from_others():
    def told(**changes) -> str:
        return " ".join(" ".join(Page(render(config(), summary(**changes), history())).texts).split())

    assert "The data are the published files, by their checksums." in told(data_verified=True)
    assert "The data are not the published files" in told(data_verified=False)
    for changes in ({"data_verified": None}, {}):  # runs of before had no such entry
        assert "published files" not in told(**changes)
