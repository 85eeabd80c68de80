"""The parts of the page that are about merged topics: what each site brought, and where sites disagree on a name."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from topicscale.report.data import ReportData, Topic, shorten
from topicscale.report.sections import colour_class, count, escape, heads
from topicscale.sites import Leaf, Site

MAX_SITES = 200
MAX_LEAVES = 50
"""Topics of a site shown of each kind; all are in ``topic_lineage``."""
MAX_OTHERS = 4
OPEN = 3
"""With at most so many sites their tables are unfolded at first."""


def sites(data: ReportData, hue: Mapping[int, int]) -> str:
    """Return a part for each site: its topics, which of them other sites have too, and how alike they are."""
    if not data.sites:
        return ""
    topics = {topic.topic_id: topic for topic in data.topics}
    often = Counter(site.name for site in data.sites)
    names = {site.site_id: site.name if often[site.name] == 1 else f"{site.name} ({site.site_id[:8]})" for site in data.sites}
    holders: dict[int, list[str]] = {}
    for site in data.sites:
        for topic in {leaf.topic_id for leaf in site.shared}:
            holders.setdefault(topic, []).append(site.site_id)
    unfolded = len(data.sites) <= OPEN
    parts = [_site(site, names, holders, topics, hue, unfolded=unfolded) for site in data.sites[:MAX_SITES]]
    rest = len(data.sites) - MAX_SITES
    more = f'<p class="note">{count(rest, "further site")}: all are in the table topic_lineage.</p>' if rest > 0 else ""
    none = "" if data.lineage else " None of the sites' documents are here."
    return f"""<section id="sites" class="broad"><h2>What each site brought</h2>
  <p>A site's topic has the similarity of its own centre to that of the merged topic.{none}</p>
  {"".join(parts)}{more}</section>"""


def conflicts(data: ReportData) -> str:
    """Return the topics that sites call by different names."""
    if not data.conflicts:
        return ""
    topics = {topic.topic_id: topic for topic in data.topics}
    rows = ""
    for topic, others in data.conflicts.items():
        shown = "; ".join(shorten(other, 80) for other in others[:MAX_OTHERS]) + (" …" if len(others) > MAX_OTHERS else "")
        known = topics[topic].name if topic in topics else str(topic)
        rows += f'<tr><th scope="row"><bdi>{escape(shorten(known, 80))}</bdi></th><td class="text"><bdi>{escape(shown)}</bdi></td></tr>'
    return f"""<section id="conflicts"><h2>Names that sites disagree on</h2>
  <p>A topic has the name that most of its documents came with.</p>
  <table class="plain-table"><thead><tr>{heads("Topic", "Other sites call it")}</tr></thead><tbody>{rows}</tbody></table></section>"""


def _site(
    site: Site,
    names: Mapping[str, str],
    holders: Mapping[int, Sequence[str]],
    topics: Mapping[int, Topic],
    hue: Mapping[int, int],
    *,
    unfolded: bool,
) -> str:
    shared, alone = len(site.shared), len(site.only_here)
    said = f"{count(site.documents, 'document')}, {count(shared + alone, 'topic')}: "
    said += f"{shared:,} matched others', {alone:,} found only here"
    said += f"; {count(site.outliers, 'outlier')}" if site.outliers else ""
    others = {topic: [names[other] for other in at if other != site.site_id] for topic, at in holders.items()}
    parts = [
        _leaves("matched", "Matched topics of other sites", site.shared, others, topics, hue),
        _leaves("alone", "Found only here", site.only_here, {}, topics, hue),
    ]
    summary = f"<bdi><b>{escape(shorten(names[site.site_id], 80))}</b></bdi> <span>{said}</span>"
    return f'<details class="site"{" open" if unfolded else ""}><summary>{summary}</summary>{"".join(parts)}</details>'


def _leaves(
    kind: str,
    title: str,
    leaves: Sequence[Leaf],
    others: Mapping[int, Sequence[str]],
    topics: Mapping[int, Topic],
    hue: Mapping[int, int],
) -> str:
    if not leaves:
        return ""
    rows = ""
    for leaf in leaves[:MAX_LEAVES]:
        topic, at = topics.get(leaf.topic_id), others.get(leaf.topic_id, ())
        known = shorten(topic.name, 60) if topic else str(leaf.topic_id)
        name = f'<span class="swatch {colour_class(leaf.topic_id, hue)}"></span><bdi>{escape(known)}</bdi>'
        also = ", ".join(shorten(other, 40) for other in at[:MAX_OTHERS])
        also += f" and {len(at) - MAX_OTHERS:,} more" if len(at) > MAX_OTHERS else ""
        rows += f'<tr><th scope="row">{name}</th><td>{leaf.size:,}</td><td>{leaf.similarity:.3f}</td>'
        rows += f'<td class="text"><bdi>{escape(also)}</bdi></td></tr>'
    head = heads(title, "Documents", "Similarity") + ('<th scope="col" class="text">Also at</th>' if others else "<td></td>")
    left = len(leaves) - MAX_LEAVES
    note = f'<p class="note">{left:,} more are in the table topic_lineage.</p>' if left > 0 else ""
    return f'<table class="plain-table {kind}"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>{note}'
