"""Make the page: one HTML file that needs no network and runs no script but its own.

Everything that comes from users' data enters in one of two ways: as text escaped for HTML, or as JSON in a data block
whose ``<``, ``>`` and ``&`` are written as escapes, which the page's script puts on screen as text alone. A content
security policy, with a digest for each script of ours, refuses any other script and every request.

plotly.js is inlined from the installed package (about 4.8 MB, the only bundle the package has). Points are drawn as SVG:
plotly's WebGL traces compile code at run time, which the policy forbids, need a GPU driver, and print badly; at the
10,000 points of a map SVG is as fast.
"""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from importlib.resources import files
from string import Template
from typing import Any

import numpy as np

from topicscale.report import sections
from topicscale.report import sites as merged
from topicscale.report.data import ReportData, Topic, anchors, colours, shorten
from topicscale.tables import OUTLIER

MAX_POINTS = 10_000
_SCALE = 1000.0
"""Coordinates are written as 0 .. 1000 with one decimal: a tenth of a pixel."""


def build(data: ReportData) -> str:
    """Return the report as the text of one HTML file.

    Topics are shown in the order given, outliers last. Of a map with more than 10,000 points an even sample is shown,
    and points without finite coordinates are left out.
    """
    topics = sorted(data.topics, key=lambda t: t.topic_id == OUTLIER)
    points, hue = _points(data, [t.topic_id for t in topics])
    shown = len(points["x"])
    scripts = [_asset("map.js"), _asset("topics.js")] if shown else [_asset("topics.js")]
    if shown:
        scripts.insert(0, _plotly())
    page = Template(_asset("template.html"))
    return page.substitute(
        csp=escape(_policy(scripts), quote=True),
        css=_asset("report.css"),
        title=sections.escape(data.title),
        standfirst=sections.standfirst(data),
        facts=sections.facts(data),
        map=sections.map_figure(shown, data),
        topics=sections.topic_table(topics, hue),
        number_of_topics=sections.count(sum(t.topic_id != OUTLIER for t in topics), "topic"),
        sections=_below(data, topics, hue),
        data=_json(points),
        scripts="\n".join(f"<script>{script}</script>" for script in scripts),
    )


def _below(data: ReportData, topics: Sequence[Topic], hue: Mapping[int, int]) -> str:
    """Return the sections under the map."""
    parts = [
        merged.conflicts(data),
        sections.evaluation(data.evaluation),
        sections.timings(data.timings),
        sections.quarantine(data),
        sections.configuration(data.configuration),
    ]
    return f'{merged.sites(data, hue)}{sections.lineage(topics, data.lineage, hue)}<div class="more-sections">{"".join(parts)}</div>'


def _points(data: ReportData, ids: Sequence[int]) -> tuple[dict[str, Any], dict[int, int]]:
    """Return the data block, and the colour of each topic."""
    inner = [topic for topic in ids if topic != OUTLIER]
    names = {topic.topic_id: topic for topic in data.topics}
    x = y = np.empty(0)
    topic_of = np.empty(0, np.int64)
    text: list[str] = []
    if data.map is not None and len(data.map):
        x, y = np.asarray(data.map.x, np.float64), np.asarray(data.map.y, np.float64)
        topic_of = np.asarray(data.map.topic_id, np.int64)
        keep = np.flatnonzero(np.isfinite(x) & np.isfinite(y))
        if len(keep) > MAX_POINTS:
            keep = keep[np.linspace(0, len(keep) - 1, MAX_POINTS).astype(np.int64)]
        x, y, topic_of = x[keep], y[keep], topic_of[keep]
        text = [shorten(data.map.text[int(i)]) for i in keep]
        if len(x):
            extent = max(float(np.ptp(x)), float(np.ptp(y)), 1e-12)
            x, y = (x - x.min()) / extent * _SCALE, (y - y.min()) / extent * _SCALE
    places = anchors(x, y, topic_of, inner)
    hue = colours(places, inner)
    row = {topic: i for i, topic in enumerate(ids)}
    block = {
        "x": np.round(x, 1).tolist(),
        "y": np.round(y, 1).tolist(),
        # a topic that the table does not know is shown as no topic
        "t": [row.get(int(topic), -1) for topic in topic_of],
        "s": text,
        "topics": [
            {
                "id": topic,
                "name": shorten(names[topic].name, 60),
                "size": names[topic].size,
                "colour": hue.get(topic, -1),
                "at": [round(v, 1) for v in places[topic]] if topic in places else None,
                "outliers": topic == OUTLIER,
            }
            for topic in ids
        ],
    }
    return block, hue


def _json(value: Any) -> str:
    """Return JSON that can stand inside a script element: no character of it can end the element or begin a comment."""

    def finite(item: Any) -> Any:
        return None if isinstance(item, float) and not math.isfinite(item) else item

    value = {key: [finite(item) for item in column] if isinstance(column, list) else column for key, column in value.items()}
    # ensure_ascii also writes lone surrogates and the line separators U+2028 and U+2029 as escapes
    text = json.dumps(value, ensure_ascii=True, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _policy(scripts: Sequence[str]) -> str:
    digests = " ".join(f"'sha256-{base64.b64encode(hashlib.sha256(s.encode()).digest()).decode()}'" for s in scripts)
    return (
        f"default-src 'none'; script-src {digests}; style-src 'unsafe-inline'; img-src data:; "
        "connect-src 'none'; base-uri 'none'; form-action 'none'"
    )


def _plotly() -> str:
    from plotly.offline import get_plotlyjs

    # inside a script element these two would be taken for markup; in JavaScript strings both spellings are the same
    script: str = get_plotlyjs().replace("</script", "<\\/script").replace("<!--", "<\\!--")
    return _newlines(script)


def _asset(name: str) -> str:
    return _newlines(files("topicscale.report").joinpath(name).read_text(encoding="utf-8"))


def _newlines(text: str) -> str:
    # a browser reads line ends as \n before it computes a script's digest
    return text.replace("\r\n", "\n").replace("\r", "\n")
