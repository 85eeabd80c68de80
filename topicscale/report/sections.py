"""The page's parts as HTML. Every value from outside passes through ``escape``."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from html import escape as _escape

from topicscale.report.data import Lineage, ReportData, Timing, Topic, shorten
from topicscale.tables import OUTLIER

MAX_ROWS = 20
"""Topics of the lineage shown at first."""
MAX_PARTITIONS = 12
"""Partitions with a column of their own."""
MAX_EXAMPLES = 20
EXAMPLE_CHARS = 400

_MEASURES = {
    "nmi": ("NMI", "agreement with the known labels, outliers as a cluster of their own"),
    "ami": ("AMI", "the same, adjusted for chance"),
    "ari": ("ARI", "pairs of documents judged alike, adjusted for chance"),
    "v_measure": ("V-measure", "mean of homogeneity and completeness"),
    "homogeneity": ("Homogeneity", "topics hold one label each"),
    "completeness": ("Completeness", "labels are held by one topic each"),
    "purity": ("Purity", "documents whose label is their topic's commonest"),
    "npmi": ("NPMI", "how often a topic's words meet in a document"),
    "c_v": ("C_v", "how alike the company is that a topic's words keep"),
    "diversity": ("Diversity", "share of keywords that only one topic has"),
    "outlier_share": ("Outliers", "share of documents without a topic"),
}


def escape(text: object) -> str:
    """Return text for HTML content or a quoted attribute; control characters and lone surrogates become U+FFFD.

    Direction overrides among them: a title could otherwise rearrange what stands beside it.
    """
    shown = "".join("\ufffd" if (unicodedata.category(c) in ("Cs", "Cc") and c not in "\n\t") or c in _OVERRIDES else c for c in str(text))
    return _escape(shown, quote=True)


_OVERRIDES = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def number(value: float) -> str:
    """Return 12345.678 as ``12,346``, 0.12345 as ``0.123``, 3.0 as ``3``."""
    if float(value).is_integer() or abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3f}" if abs(value) < 10 else f"{value:.1f}"


def count(n: int, noun: str) -> str:
    """Return ``1 topic``, ``2,000 topics``."""
    return f"{n:,} {noun}" if n == 1 else f"{n:,} {noun}s"


def share(part: float, whole: float) -> str:
    """Return a percentage."""
    if not whole or not part:
        return "0%"
    percent = 100 * part / whole
    return "<1%" if percent < 1 else f"{percent:.0f}%"


def standfirst(data: ReportData) -> str:
    """Return the sentence under the title."""
    topics = [t for t in data.topics if t.topic_id != OUTLIER]
    outliers = sum(t.size for t in data.topics if t.topic_id == OUTLIER)
    at = f" of {count(len(data.sites), 'site')}" if data.sites else ""
    text = f"{count(data.total, 'document')}{at} in {count(len(topics), 'topic')}"
    if topics:
        largest = max(topics, key=lambda t: t.size)
        text += f"; the largest, <i>{escape(shorten(largest.name, 60))}</i>, holds {escape(share(largest.size, data.total))} of them"
    text += f". {escape(share(outliers, data.total))} belong to no topic." if outliers else "."
    return text


def facts(data: ReportData) -> str:
    """Return the row of further facts."""
    partitions = len({item.partition for item in data.lineage})
    items: dict[str, str] = {}
    if partitions > 1:
        items["Partitions"] = f"{partitions:,}"
    if data.quarantine:
        items["Rows refused"] = f"{sum(data.quarantine.values()):,}"
    for name, value in data.summary.items():
        items[str(name)] = number(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else str(value)
    items["Made"] = data.generated.strftime("%-d %B %Y, %H:%M %Z").strip()
    cells = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(shorten(value, 80))}</dd></div>" for name, value in items.items())
    return f'<dl class="facts">{cells}</dl>'


def map_figure(shown: int, data: ReportData) -> str:
    """Return the map's frame, or nothing without points."""
    if not shown:
        return ""
    note = "Each point is a document; near ones are alike in meaning. The axes have no unit."
    if shown < data.total:
        note += f" A sample of {shown:,} of {data.total:,} documents is shown."
    return f"""<figure class="map">
    <div class="canvas" id="canvas">
      <div id="plot" role="img" aria-label="Map of {shown:,} documents, coloured by topic. The table says the same in words."></div>
      <div id="labels" aria-hidden="true"></div>
      <div class="zoom" role="group" aria-label="Map">
        <button type="button" data-zoom="0.6" aria-label="Zoom in" title="Zoom in">+</button>
        <button type="button" data-zoom="1.6667" aria-label="Zoom out" title="Zoom out">−</button>
        <button type="button" data-zoom="0" aria-label="Show the whole map" title="Show the whole map">⤢</button>
      </div>
      <p id="hint" hidden>Hold Ctrl or ⌘ to zoom with the wheel</p>
    </div>
    <figcaption>{note}</figcaption>
  </figure>"""


def topic_table(topics: Sequence[Topic], hue: Mapping[int, int]) -> str:
    """Return the table of topics, a row and a hidden row of details each."""
    most = max((t.size for t in topics), default=0) or 1
    body = "".join(_topic(row, topic, hue, most) for row, topic in enumerate(topics))
    return f"""<div class="scroll" id="scroll" tabindex="-1"><table class="topics">
      <caption class="visually-hidden">Topics, their keywords and sizes</caption>
      <thead><tr>
        <th scope="col" class="id" aria-sort="none"><button type="button" data-sort="id">No.</button></th>
        <th scope="col" class="name" aria-sort="none"><button type="button" data-sort="name">Topic</button></th>
        <th scope="col" class="size" aria-sort="descending"><button type="button" data-sort="size">Documents</button></th>
      </tr></thead>
      <tbody id="rows">{body}</tbody>
    </table><p id="none" hidden>No topic matches.</p>
    <button type="button" id="all" class="plain more">Show all {len(topics):,} rows</button></div>"""


def _topic(row: int, topic: Topic, hue: Mapping[int, int], most: int) -> str:
    colour = colour_class(topic.topic_id, hue)
    named = not topic.label and topic.topic_id != OUTLIER
    words = topic.keywords[3:9] if named else topic.keywords[:6]
    others = " ".join(word for aspect in topic.aspects.values() for word in (aspect.label, *aspect.words))
    find = escape(f"{topic.topic_id} {topic.name} {' '.join(topic.keywords)} {others}".lower())
    data = f'data-row="{row}" data-id="{topic.topic_id}" data-size="{topic.size}" data-name="{escape(topic.name)}" data-find="{find}"'
    opener = f'<button type="button" aria-expanded="false" aria-controls="d{row}">{escape(shorten(topic.name, 90))}</button>'
    return f"""<tr class="topic" {data}>
        <td class="id">{topic.topic_id if topic.topic_id != OUTLIER else "–"}</td>
        <th scope="row" class="name"><span class="swatch {colour}"></span>{opener}
          <span class="words">{escape(", ".join(words))}</span></th>
        <td class="size"><b>{topic.size:,}</b><span class="bar {colour}" style="--w:{100 * topic.size / most:.1f}%"></span></td>
      </tr><tr class="detail" id="d{row}" hidden><td></td><td colspan="2">{_detail(topic)}</td></tr>"""


def _detail(topic: Topic) -> str:
    parts = []
    if topic.keywords:
        parts.append(f'<p class="keywords">{" ".join(f"<span>{escape(word)}</span>" for word in topic.keywords)}</p>')
    for name, aspect in topic.aspects.items():
        words = escape(", ".join(aspect.words))
        label = f"<b>{escape(aspect.label)}</b>" if aspect.label else ""
        parts.append(f'<p class="aspect"><i>{escape(name)}</i> {label}{" · " if label and words else ""}{words}</p>')
    quotes = "".join(f"<li>{escape(shorten(text, EXAMPLE_CHARS))}</li>" for text in topic.examples)
    if quotes:
        parts.append(f'<ul class="examples" aria-label="Example documents">{quotes}</ul>')
    if topic.local_topics is not None and topic.topic_id != OUTLIER:
        parts.append(f'<p class="note">Merged from {count(topic.local_topics, "local topic")}.</p>')
    return "".join(parts) or '<p class="note">Nothing more is stored about this topic.</p>'


def lineage(topics: Sequence[Topic], items: Sequence[Lineage], hue: Mapping[int, int]) -> str:
    """Return how each topic divides over partitions: the largest partitions, the others together."""
    cells: dict[int, dict[str, int]] = {}
    totals: dict[str, int] = {}
    for item in items:
        row = cells.setdefault(item.topic_id, {})
        row[item.partition] = row.get(item.partition, 0) + item.documents
        totals[item.partition] = totals.get(item.partition, 0) + item.documents
    if len(totals) < 2:
        return ""
    ranked = sorted(totals, key=lambda name: (-totals[name], name))
    # a column "others" for a single partition would hide its name for nothing
    shown = ranked if len(ranked) <= MAX_PARTITIONS + 1 else ranked[:MAX_PARTITIONS]
    rest = len(ranked) - len(shown)
    whole = sum(totals.values())
    columns = [*shown, *([f"{rest:,} others"] if rest else [])]
    head = "".join(f'<th scope="col" title="{escape(name)}"><span>{escape(shorten(name, 28))}</span></th>' for name in columns)
    overall = [totals[name] for name in shown] + ([whole - sum(totals[name] for name in shown)] if rest else [])
    held = '<th scope="col"><span>held by</span></th>' if rest else ""
    number_held = f"<td>{len(totals):,}</td>" if rest else ""
    lines = [f'<tr class="all"><th scope="row">All documents</th>{number_held}{_heat(overall, whole)}</tr>']
    known = [topic for topic in topics if topic.topic_id in cells]
    for order, topic in enumerate(known):
        row = cells[topic.topic_id]
        size = sum(row.values())
        values = [row.get(name, 0) for name in shown]
        values += [size - sum(values)] if rest else []
        extra = ' class="more" hidden' if order >= MAX_ROWS else ""
        name = f'<span class="swatch {colour_class(topic.topic_id, hue)}"></span>{escape(shorten(topic.name, 48))}'
        number_held = f"<td>{sum(n > 0 for n in row.values()):,}</td>" if rest else ""
        lines.append(f'<tr{extra}><th scope="row">{name}</th>{number_held}{_heat(values, size)}</tr>')
    more = (
        f'<button type="button" class="plain more" data-more="lineage">Show all {len(known):,} rows</button>'
        if len(known) > MAX_ROWS
        else ""
    )
    broad = ' class="broad"' if len(columns) > 6 else ""
    return f"""<section id="lineage"{broad}><h2>Where each topic came from</h2>
  <p>The share of a topic's documents that each of the {len(totals):,} partitions holds.
  A row unlike the first is a topic at home in some partitions.</p>
  <div class="wide" tabindex="0" role="region" aria-label="Topics by partition">
    <table class="heat"><thead><tr><td></td>{held}{head}</tr></thead><tbody>{"".join(lines)}</tbody></table>
  </div>{more}</section>"""


def _heat(values: Sequence[int], whole: int) -> str:
    result = []
    for value in values:
        part = value / whole if whole else 0.0
        strong = " strong" if part > 0.7 else ""
        result.append(
            f'<td class="h{strong}" style="--s:{part:.3f}" title="{value:,} documents">{escape(share(value, whole)) if value else "·"}</td>'
        )
    return "".join(result)


def evaluation(values: Mapping[str, float]) -> str:
    """Return the measures; those that the page knows are explained."""
    known = [name for name in _MEASURES if name in values] + [name for name in values if name not in _MEASURES]
    if not known:
        return ""
    cells = ""
    for name in known:
        title, meaning = _MEASURES.get(name, (name, ""))
        cells += f"<div><dt>{escape(title)}</dt><dd>{number(values[name])}</dd><p>{escape(meaning)}</p></div>"
    return f'<section id="evaluation"><h2>How good the topics are</h2><dl class="measures">{cells}</dl></section>'


def timings(items: Sequence[Timing]) -> str:
    """Return what each stage took."""
    if not items:
        return ""
    longest = max(item.seconds for item in items) or 1.0
    rows = ""
    for item in items:
        rows += f'<tr><th scope="row">{escape(item.stage)}</th><td>{item.units or ""}</td><td>{f"{item.rows:,}" if item.rows else ""}</td>'
        width = 100 * item.seconds / longest
        rows += f'<td>{seconds(item.seconds)}</td><td class="wide-bar"><span class="bar" style="--w:{width:.1f}%"></span></td></tr>'
    return f"""<section id="timings"><h2>What it took</h2>
  <p>A stage's time is the sum over its units, which run side by side.</p>
  <table class="plain-table"><thead><tr>{heads("Stage", "Units", "Rows", "Time")}<td></td></tr></thead>
  <tbody>{rows}</tbody></table></section>"""


def heads(*names: str) -> str:
    """Return the head cells of a table of ours."""
    return "".join(f'<th scope="col">{name}</th>' for name in names)


def seconds(value: float) -> str:
    """Return a duration: ``0.4 s``, ``12 s``, ``3 min 05 s``, ``2 h 10 min``."""
    if value < 9.95:
        return f"{value:.1f} s"
    whole = round(value)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60:02d} min"


def quarantine(data: ReportData) -> str:
    """Return what was refused, and why."""
    if not data.quarantine and not data.quarantine_examples:
        return ""
    refused = sum(data.quarantine.values())
    whole = refused + data.total
    counts = ""
    for reason, rows in sorted(data.quarantine.items(), key=lambda item: (-item[1], item[0])):
        counts += f'<tr><th scope="row">{_reason(reason)}</th><td>{rows:,}</td><td>{escape(share(rows, whole))}</td></tr>'
    examples = ""
    for row in data.quarantine_examples[:MAX_EXAMPLES]:
        raw = escape(shorten(row.raw, 160)) or "(nothing)"
        examples += f"<li><b>{_reason(row.reason)}</b> <span>{escape(shorten(row.source, 90))}</span><code>{raw}</code></li>"
    folded = f'<details><summary>Some of these rows</summary><ul class="rejected">{examples}</ul></details>' if examples else ""
    return f"""<section id="quarantine"><h2>What was left out</h2>
  <p>{count(refused, "row")} of {whole:,} could not be used.</p>
  <table class="plain-table"><thead><tr>{heads("Reason", "Rows", "Of the input")}</tr></thead><tbody>{counts}</tbody></table>
  {folded}</section>"""


def _reason(reason: str) -> str:
    return escape(reason.replace("_", " "))


def configuration(text: str) -> str:
    """Return the configuration, folded."""
    if not text.strip():
        return ""
    folded = f'<details><summary>Configuration</summary><pre tabindex="0">{escape(text.strip())}</pre></details>'
    return f'<section id="configuration"><h2>How it was made</h2>{folded}</section>'


def colour_class(topic_id: int, hue: Mapping[int, int]) -> str:
    """Return the class of a topic's colour."""
    return f"c{hue[topic_id]}" if topic_id in hue else "c-none"
