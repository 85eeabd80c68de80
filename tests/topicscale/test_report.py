"""The report as a file: complete, escaped, bounded. tests/test_browser.py opens it."""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from html.parser import HTMLParser

import numpy as np
import pytest

from topicscale.report import Aspect, DocumentMap, Lineage, QuarantinedRow, ReportData, Timing, Topic, build
from topicscale.report.data import anchors, colours, shorten
from topicscale.report.sections import number, seconds, share

HOSTILE = '</script><img src=x onerror="window.pwned=1">\'"&<!--${title}$csp\u2028\u202e\x00\ud800'
NOW = datetime(2026, 11, 21, 10, 0, tzinfo=UTC)


def hostile() -> ReportData:
    """Every field that holds users' text holds an attack."""
    return ReportData(
        title=HOSTILE,
        generated=NOW,
        topics=[
            Topic(0, 7, HOSTILE, (HOSTILE, "word"), (HOSTILE,), {HOSTILE: Aspect((HOSTILE,), HOSTILE)}, local_topics=2),
            Topic(1, 5, "", (HOSTILE,)),
            Topic(-1, 2),
        ],
        map=DocumentMap(np.arange(14.0), np.arange(14.0) % 3, np.repeat([0, 1, -1], [7, 5, 2]), [HOSTILE] * 14),
        summary={HOSTILE: HOSTILE},
        lineage=[Lineage(t, HOSTILE + str(p), n) for t, p, n in ((0, 0, 4), (0, 1, 3), (1, 0, 5), (-1, 1, 2))],
        quarantine={HOSTILE: 3},
        quarantine_examples=[QuarantinedRow(HOSTILE, HOSTILE, HOSTILE)],
        configuration=f"key: {HOSTILE}",
        timings=[Timing(HOSTILE, 1.0, 3, 1)],
        evaluation={HOSTILE: 0.5},
    )


class _Page(HTMLParser):
    """Collects elements and the text of scripts, as a browser's parser would find them."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self._script = False

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        self._script = tag == "script"
        if self._script:
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._script = self._script and tag != "script"

    def handle_data(self, data):
        if self._script:
            self.scripts[-1] += data


def parse(html: str) -> _Page:
    page = _Page()
    page.feed(html)
    return page


def block(html: str) -> dict:
    found = re.search(r'<script id="data" type="application/json">(.*?)</script>', html, re.S)
    return json.loads(found[1])


def test_hostile_text_makes_no_element_and_no_attribute():
    page = parse(build(hostile()))
    assert not [tag for tag, _ in page.tags if tag in ("img", "iframe", "object")]
    assert not [name for _, attrs in page.tags for name in attrs if name.startswith("on")]
    # the data block, plotly, the map and the table
    assert len(page.scripts) == 4
    assert [attrs["href"] for tag, attrs in page.tags if tag == "a"] == ["#topics"]


def test_page_is_valid_utf8_whatever_the_texts():
    html = build(hostile())
    assert "\ud800" not in html
    assert "\u202e" not in html
    html.encode()


def test_data_block_keeps_texts_as_they_are():
    data = block(build(hostile()))
    assert data["s"][0] == shorten(HOSTILE)
    assert [topic["id"] for topic in data["topics"]] == [0, 1, -1]
    assert data["t"] == [0] * 7 + [1] * 5 + [2] * 2


def test_page_refers_to_nothing_outside():
    page = parse(build(hostile()))
    for tag, attrs in page.tags:
        assert not attrs.get("src"), tag
        assert tag != "link" or attrs["href"] == "data:,"
    policy = next(attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert "default-src 'none'" in policy
    assert "connect-src 'none'" in policy
    scripts = re.search(r"script-src ([^;]*);", policy)[1]
    assert "unsafe" not in scripts
    assert scripts.count("sha256-") == 3


def test_same_data_gives_the_same_page():
    assert build(hostile()) == build(hostile())


def test_without_points_the_page_has_no_map_and_no_plotly():
    html = build(ReportData("Empty", NOW, [Topic(0, 3, keywords=("a", "b", "c", "d"))]))
    assert "Plotly" not in html
    assert len(html) < 100_000
    assert "a, b, c" in html


def test_no_topics_at_all():
    html = build(ReportData("Nothing", NOW, []))
    assert "0 documents in 0 topics." in html


def test_map_is_bounded_and_says_so():
    n = 25_000
    rng = np.random.default_rng(0)
    x = rng.normal(size=n)
    x[3] = np.nan
    data = ReportData("Big", NOW, [Topic(0, n)], DocumentMap(x, rng.normal(size=n), np.zeros(n, int), ["t" * 500] * n), documents=3_000_000)
    html = build(data)
    shown = block(html)
    assert len(shown["x"]) == 10_000
    assert max(map(len, shown["s"])) <= 121
    assert "A sample of 10,000 of 3,000,000 documents is shown." in html
    assert len(html) < 8_500_000


def test_points_keep_their_proportions():
    data = ReportData(
        "p", NOW, [Topic(0, 3)], DocumentMap(np.array([0.0, 10, 20]), np.array([5.0, 5, 10]), np.zeros(3, int), ["a", "b", "c"])
    )
    shown = block(build(data))
    assert (shown["x"], shown["y"]) == ([0, 500, 1000], [0, 0, 250])


def test_hundreds_of_partitions_show_the_largest():
    items = [Lineage(0, f"site-{p:03}", 300 - p) for p in range(300)]
    html = build(ReportData("wide", NOW, [Topic(0, sum(i.documents for i in items))], lineage=items))
    assert "site-000" in html
    assert "site-011" in html
    assert "site-012" not in html
    assert "288 others" in html


def test_a_topic_of_a_map_that_the_table_lacks_is_no_topic():
    data = ReportData("x", NOW, [Topic(0, 2)], DocumentMap(np.arange(3.0), np.arange(3.0), np.array([0, 0, 9]), list("abc")))
    assert block(build(data))["t"] == [0, 0, -1]


def test_columns_of_a_map_have_one_length():
    with pytest.raises(ValueError, match="must have one length"):
        DocumentMap(np.zeros(2), np.zeros(2), np.zeros(2, int), ["a"])


@pytest.mark.parametrize(
    ("topic", "name"),
    [
        (Topic(3, 1, "", ("oil", "prices", "crude", "opec")), "oil, prices, crude"),
        (Topic(3, 1, "Energy markets", ("oil",)), "Energy markets"),
        (Topic(3, 1, "3_D printing", ("printer",)), "3_D printing"),
        (Topic(3, 1), "Topic 3"),
        (Topic(-1, 1, "", ("the",)), "Outliers"),
        (Topic(-1, 1, "Unsorted", ("the",)), "Unsorted"),
    ],
)
def test_names(topic, name):
    assert topic.name == name


def test_labels_stand_where_a_topic_is_dense():
    # a ring and a dense spot on it: the mean of all is empty space
    angle = np.linspace(0, 2 * np.pi, 60, endpoint=False)
    x, y = np.concatenate([np.cos(angle), np.full(40, 1.0)]), np.concatenate([np.sin(angle), np.zeros(40)])
    place = anchors(x, y, np.zeros(100, int), [0, 1])
    assert place[0] == pytest.approx((1.0, 0.0), abs=0.05)
    assert 1 not in place


def test_neighbours_have_different_colours():
    places = {i: (float(i), 0.0) for i in range(40)}
    hue = colours(places, range(40))
    assert set(hue.values()) == set(range(10))
    assert all(hue[i] != hue[i + 1] for i in range(39))
    assert colours({}, [5, 6]) == {5: 0, 6: 1}


def test_short_texts():
    assert shorten("a\n b\t c") == "a b c"
    cut = shorten("word " * 100)
    assert len(cut) <= 121
    assert cut.endswith("word…")
    assert len(shorten("x" * 10_000)) == 121


def test_numbers_are_readable():
    assert [number(v) for v in (12345.6, 0.12345, 3.0, 42.42)] == ["12,346", "0.123", "3", "42.4"]
    assert [seconds(v) for v in (0.4, 12, 59.7, 185, 7800)] == ["0.4 s", "12 s", "1 min 00 s", "3 min 05 s", "2 h 10 min"]
    assert [share(a, b) for a, b in ((1, 3), (0, 3), (1, 1000), (1, 0))] == ["33%", "0%", "<1%", "0%"]
