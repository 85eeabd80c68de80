"""`topicscale topics`: the topics of a store as a table."""

from __future__ import annotations

from typing import Any

from topicscale.errors import RequestError
from topicscale.labels import names
from topicscale.store import Store
from topicscale.texts import one_line


def topics(store: str, *, top: int | None = None) -> list[dict[str, Any]]:
    """Return topics by id, outliers first, with size, share, label, keywords, and the name that each was given (None for none).

    Parameters
    ----------
    top : int, optional
        The ``top`` largest only, the largest first, without the outliers.
    """
    if top is not None and top < 1:
        raise RequestError(f"--top must be at least 1. Got {top} instead.")
    source = Store(store)
    source.pin()
    rows = source.read("topics", ["topic_id", "size", "label", "keywords", "representative_docs"]).sort_by("topic_id").to_pylist()
    total = sum(row["size"] for row in rows)
    given = names(source.read("topic_labels").to_pylist())
    for row in rows:
        row["share"] = round(row["size"] / max(total, 1), 6)
        row["name"] = given.get(row["topic_id"])
    if top is None:
        return rows
    # ids tell sizes until documents are added
    return sorted((row for row in rows if row["topic_id"] >= 0), key=lambda row: (-row["size"], row["topic_id"]))[:top]


def describe(rows: list[dict[str, Any]]) -> str:
    """Return the topics as text for a terminal."""
    if not rows:
        return "No topics."
    lines = [f"{'topic':>6}  {'documents':>9}  {'share':>6}  keywords"]
    for row in rows:
        words = ", ".join(map(one_line, row["keywords"])) or "-"
        if row["name"]:
            words = f"{one_line(row['name'])}: {words}"
        lines.append(f"{row['topic_id']:>6}  {row['size']:>9,}  {row['share']:>6.1%}  {words}")
    return "\n".join(lines)
