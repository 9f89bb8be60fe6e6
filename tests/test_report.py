"""Reports are one well-formed file that needs no other; curves are pictures of the values given."""

import base64
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from medsora import media
from medsora.plots import plot_curves, running_mean
from medsora.report import Report

VOID = {"meta", "img", "br", "link"}


class Outline(HTMLParser):
    """Elements in their order with their texts; fails on tags that do not match."""

    def __init__(self, page: str):
        super().__init__()
        self.open, self.elements = [], []
        self.feed(page)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.elements.append([tag, dict(attributes), ""])
        if tag not in VOID:
            self.open.append((tag, len(self.elements) - 1))

    def handle_endtag(self, tag):
        assert self.open.pop()[0] == tag

    def handle_data(self, data):
        if self.open:
            self.elements[self.open[-1][1]][2] += data

    def texts(self, tag):
        return [text for name, _, text in self.elements if name == tag]

    def attributes(self, tag):
        return [attributes for name, attributes, _ in self.elements if name == tag]


@pytest.fixture
def files(tmp_path):
    clip = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3), dtype=np.uint8)
    media.contact_sheet(tmp_path / "sheet.png", [clip])
    media.write_gif(tmp_path / "moving.gif", clip, 5)
    media.write_mp4(tmp_path / "video.mp4", clip, 5)
    return tmp_path


def test_everything_is_inside_in_its_order(files):
    report = (
        Report("A run", "What it is.")
        .heading("Samples")
        .paragraph("Each row is a video.")
        .image(files / "sheet.png", "sheet")
    )
    report.video(files / "video.mp4").image(files / "moving.gif").curves(files / "sheet.png")
    report.heading("Details", 3).table(["setting", "value"], [["steps", 900], ["rate", 0.5]])
    report.figures([("PSNR", "28 dB")])
    report.write(files / "report.html")
    page = Outline((files / "report.html").read_text("utf-8"))
    assert page.texts("title") == page.texts("h1") == ["A run"]
    assert page.texts("h2") == ["Samples"] and page.texts("h3") == ["Details"]
    assert page.texts("td") == ["steps", "900", "rate", "0.5"] and page.texts("dd") == ["28 dB"]
    assert page.texts("figcaption") == ["sheet"] and page.texts("p") == ["What it is.", "Each row is a video."]
    sources = [a["src"] for a in page.attributes("img")] + [a["src"] for a in page.attributes("video")]
    contents = [base64.b64decode(source.split(",", 1)[1]) for source in sources]
    expected = [(files / name).read_bytes() for name in ("sheet.png", "moving.gif", "sheet.png", "video.mp4")]
    assert contents == expected
    assert [source.split(";")[0] for source in sources[1:]] == ["data:image/gif", "data:image/png", "data:video/mp4"]
    assert {"controls", "loop", "autoplay", "muted"} <= set(page.attributes("video")[0])


def test_the_page_refers_to_nothing_outside(files):
    page = Report("x").image(files / "sheet.png").video(files / "video.mp4").html()
    assert not re.search(r"https?:|url\(|<link|<script|@import", page)
    assert all(source.startswith("data:") for source in re.findall(r'src="([^"]*)"', page))


def test_sections_are_listed_at_the_top_and_numbers_flush_right():
    report = Report("x").heading("One").heading("Two").heading("Three")
    report.table(["name", "value"], [["a", "1.5 dB"], ["b", "-2e-3"]])
    report.table(["name", "value"], [["-", "1.5 dB"], ["-", "-"]])
    page = Outline(report.html())
    assert page.texts("a") == ["One", "Two", "Three"]
    assert [a["href"] for a in page.attributes("a")] == ["#" + a["id"] for a in page.attributes("h2")]
    assert [a.get("class") for a in page.attributes("td")] == [None, "number"] * 4


def test_all_text_is_escaped(files):
    bad = "<script>alert('x')</script> & \"y\""
    report = Report(bad, bad).heading(bad).paragraph(bad).table([bad], [[bad]]).figures([(bad, bad)])
    report.image(files / "sheet.png", bad)
    page = Outline(report.html())
    assert not page.attributes("script")
    for tag in ("title", "h1", "h2", "p", "th", "td", "dt", "dd", "figcaption"):
        assert page.texts(tag) and set(page.texts(tag)) == {bad}
    assert page.attributes("img")[0]["alt"] == bad


def test_what_cannot_be_shown_is_refused(files):
    report = Report("x")
    with pytest.raises(ValueError, match="no-file.png"):
        report.image(files / "no-file.png")
    with pytest.raises(ValueError, match="of the kind .mp4"):
        report.video(files / "moving.gif")
    with pytest.raises(ValueError, match="must have 2 cells"):
        report.table(["a", "b"], [["c"]])
    with pytest.raises(ValueError, match="level"):
        report.heading("x", 4)


def test_curves_draw_one_panel_a_series(tmp_path):
    steps = list(range(50))
    falling = [10.0 * 0.9**i for i in steps]
    plot_curves(tmp_path / "one.png", {"loss": (steps, falling)})
    plot_curves(tmp_path / "two.png", {"loss": (steps, falling), "mse": (steps, falling)}, title="VAE", log_y=True)
    one, two = (Image.open(tmp_path / f"{name}.png") for name in ("one", "two"))
    assert two.width == 2 * one.width
    assert (np.asarray(one.convert("L")) < 128).mean() > 0.005  # ink


def test_curves_bridge_nothing_where_values_are_not_finite(tmp_path):
    plot_curves(tmp_path / "a.png", {"loss": ([1, 2, 3], [1.0, float("nan"), float("inf")])}, log_y=True)
    assert Image.open(tmp_path / "a.png").width > 100
    assert running_mean([1.0, float("nan"), 3.0], 3) == [1.0, 2.0, 3.0]
    assert running_mean([0.0, 3.0, 6.0, 9.0], 3) == [1.5, 3.0, 6.0, 7.5]


@pytest.mark.parametrize("series", [{}, {"loss": ([], [])}, {"loss": ([1, 2], [1])}])
def test_curves_refuse_empty_and_uneven_series(tmp_path, series):
    with pytest.raises(ValueError, match="series"):
        plot_curves(tmp_path / "a.png", series)
    assert not list(tmp_path.iterdir())
