"""The page of a search: times as a clock, everything escaped, nothing from the network."""

from __future__ import annotations

import pytest
from PIL import Image

from onereel.report.search_page import PageEntry, clock, render_search_page, span_text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0, "0:00.0"), (62.54, "1:02.5"), (59.96, "1:00.0"), (3723.0, "1:02:03.0")],
)
def test_a_clock(seconds, text):
    assert clock(seconds) == text


def test_spans_say_what_is_known():
    assert span_text(None, None) == "the whole video"
    assert span_text(2.0, None) == "0:02.0 – end"
    assert span_text(None, 2.0) == "0:00.0 – 0:02.0"


def test_the_page_shows_pictures_or_why_there_are_none():
    picture = Image.new("RGB", (20, 12), (200, 30, 30))
    entries = [
        PageEntry("a <b>.mp4", 1.0, 2.0, "it's <i>red</i>", 0.51, (picture, picture)),
        PageEntry("gone.mp4", None, None, None, -0.2, (), "gone.mp4: no such file"),
    ]
    page = render_search_page("red & <blue>", entries)
    assert "2 moments, the most alike first" in page
    assert "The most alike moment" in render_search_page("red", entries[:1])
    assert page.count("data:image/jpeg") == 2
    assert "gone.mp4: no such file" in page
    assert "0.510" in page
    assert "-0.200" in page
    assert "red &amp; &lt;blue&gt;" in page
    assert "<i>red" not in page
    assert "http" not in page.replace("http-equiv", "")
