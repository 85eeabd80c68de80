"""What a report holds, and the small decisions that need no page: names, colours, places of labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from topicscale.sites import Site
from topicscale.tables import OUTLIER

COLOURS = 10
"""Colours of the palette (report.css); topics share them."""
HOVER_CHARS = 120
"""Characters of a document shown on the map."""


@dataclass(frozen=True)
class Aspect:
    """Another way to show a topic: words, a name, or both."""

    words: tuple[str, ...] = ()
    label: str = ""


@dataclass(frozen=True)
class Topic:
    """One topic; ``topic_id`` -1 holds the outliers."""

    topic_id: int
    size: int
    label: str = ""
    """The name that it was given by hand, in advance or by a language model."""
    keywords: tuple[str, ...] = ()
    examples: tuple[str, ...] = ()
    """Representative documents' texts."""
    aspects: Mapping[str, Aspect] = field(default_factory=dict)
    local_topics: int | None = None
    """Partitions' topics that were merged into it."""

    @property
    def name(self) -> str:
        """What a reader knows it by: the name it was given, else its first keywords."""
        if label := self.label.strip():
            return label
        if self.topic_id == OUTLIER:
            return "Outliers"
        return ", ".join(self.keywords[:3]) or f"Topic {self.topic_id}"


@dataclass(frozen=True)
class DocumentMap:
    """Documents in two dimensions, a row each; columns of equal length."""

    x: npt.NDArray[Any]
    y: npt.NDArray[Any]
    topic_id: npt.NDArray[np.integer[Any]]
    text: Sequence[str]
    """Title, or the beginning of the text."""

    def __post_init__(self) -> None:
        lengths = {len(self.x), len(self.y), len(self.topic_id), len(self.text)}
        if len(lengths) != 1:
            raise ValueError(f"The columns of a map must have one length. Got {sorted(lengths)} instead.")

    def __len__(self) -> int:
        return len(self.x)


@dataclass(frozen=True)
class Lineage:
    """Documents of a topic that one partition holds."""

    topic_id: int
    partition: str
    documents: int


@dataclass(frozen=True)
class QuarantinedRow:
    """A refused input row."""

    reason: str
    source: str
    raw: str


@dataclass(frozen=True)
class Timing:
    """What a stage took."""

    stage: str
    seconds: float
    rows: int = 0
    units: int = 0


@dataclass(frozen=True)
class ReportData:
    """Everything on the page. Texts are taken as they are: escaping them is the page's business."""

    title: str
    generated: datetime
    topics: Sequence[Topic]
    map: DocumentMap | None = None
    documents: int | None = None
    """Documents of the corpus; None takes the sum of topic sizes."""
    summary: Mapping[str, Any] = field(default_factory=dict)
    """Further facts for the head of the page: name -> number or short text."""
    lineage: Sequence[Lineage] = ()
    quarantine: Mapping[str, int] = field(default_factory=dict)
    """Reason -> rows."""
    quarantine_examples: Sequence[QuarantinedRow] = ()
    configuration: str = ""
    """YAML."""
    timings: Sequence[Timing] = ()
    evaluation: Mapping[str, float] = field(default_factory=dict)
    sites: Sequence[Site] = ()
    """Of merged topics: what each site brought."""
    conflicts: Mapping[int, Sequence[str]] = field(default_factory=dict)
    """Topic -> names that sites gave it and that it does not have."""

    @property
    def total(self) -> int:
        """Documents of the corpus."""
        return sum(topic.size for topic in self.topics) if self.documents is None else self.documents


def shorten(text: str, length: int = HOVER_CHARS) -> str:
    """Return a text on one line, cut at a word near ``length`` characters."""
    line = " ".join(text[: 8 * length].split())
    if len(line) <= length:
        return line
    cut = line[:length]
    space = cut.rfind(" ")
    return (cut[:space] if space > length // 2 else cut).rstrip(" ,;:.") + "…"


def anchors(x: npt.NDArray[Any], y: npt.NDArray[Any], topics: npt.NDArray[Any], ids: Sequence[int]) -> dict[int, tuple[float, float]]:
    """Return where each topic is densest: a place for its label that is inside the topic, as a mean need not be.

    The point with most neighbours of its topic within 3 % of the map's extent, of at most 400 points evenly chosen.
    """
    radius = 0.03 * max(float(np.ptp(x)), float(np.ptp(y)), 1e-9) if len(x) else 0.0
    result: dict[int, tuple[float, float]] = {}
    for topic in ids:
        rows = np.flatnonzero(topics == topic)
        if not len(rows):
            continue
        rows = rows[:: -(-len(rows) // 400)]
        px, py = x[rows], y[rows]
        near = (np.subtract.outer(px, px) ** 2 + np.subtract.outer(py, py) ** 2) <= radius**2
        group = near[int(near.sum(axis=1).argmax())]
        # the middle of the densest group, pulled onto one of its points
        mx, my = px[group].mean(), py[group].mean()
        best = np.flatnonzero(group)[int(((px[group] - mx) ** 2 + (py[group] - my) ** 2).argmin())]
        result[topic] = float(px[best]), float(py[best])
    return result


def colours(places: Mapping[int, tuple[float, float]], ids: Sequence[int], *, number: int = COLOURS) -> dict[int, int]:
    """Return a colour for each topic such that topics of one colour are far apart on the map.

    In the order of ``ids`` each takes the colour whose nearest bearer is farthest away; without a place, colours cycle.
    """
    result = {topic: order % number for order, topic in enumerate(ids)}
    placed = [topic for topic in ids if topic in places]
    at = np.array([places[topic] for topic in placed], np.float64).reshape(-1, 2)
    nearest = np.full((len(placed), number), np.inf)  # of each topic to come: the distance to each colour's nearest bearer, squared
    for i, topic in enumerate(placed):
        chosen = result[topic] = int(nearest[i].argmax())
        rest = nearest[i + 1 :, chosen]
        np.minimum(rest, ((at[i + 1 :] - at[i]) ** 2).sum(axis=1), out=rest)
    return result
