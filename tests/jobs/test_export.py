"""An export of a store that the job made: on real engines, with documents whose words are nobody's business."""

from __future__ import annotations

import pytest

from jobs import status
from jobs.export import export
from jobs.merge import merge
from jobs.run import run
from tests import corpus
from tests.jobs.test_run import QUIET, settings
from tests.topicscale.leaks import everything, leaked
from topicscale.store import Store

K = 10


def letters() -> list[tuple[str, str, str]]:
    """Return (id, text, theme) rows: ids and themes that no term is, and a word of its own in every text."""
    return [(f"letter-{i}", f"{text} Codeword{i}x.", f"ward of {theme}") for i, text, theme in corpus.rows()]


@pytest.mark.timeout(600)
def test_a_store_that_the_job_made_leaves_without_its_documents(tmp_path, spark, ray_layout) -> None:
    content = letters()
    source = corpus.write_csv(tmp_path / "corpus.csv", content)
    store = str(tmp_path / "clinic")
    run(settings(source, partition={"column": "theme"}), store, ui=QUIET)
    found = export(store, tmp_path / "out", min_documents=K, site="North")
    assert "documents   none here" in status.describe(status.status(str(tmp_path / "out")))
    reader = Store(store)
    reader.pin()
    terms = reader.read("topic_terms").to_pylist()
    released = {row["term"] for row in terms if row["documents"] >= K}
    rare = {row["term"] for row in terms} - released
    assert len(rare) > len(content) > len(released) > 10
    # numbers and short words are part of hashes and names of columns
    words = {word for word in rare if len(word) > 4 and not any(word in other for other in released)}
    partitions = {row["partition_id"] for row in reader.table("assignments").partitions()}
    private = {i for i, _, _ in content} | {text for _, text, _ in content} | {theme for _, _, theme in content} | partitions
    assert len(words) > len(content) * 0.9
    assert leaked(tmp_path / "out", words | private | {"corpus.csv", "clinic", str(tmp_path)}) == []
    left = Store(tmp_path / "out")
    left.pin(exports=True)
    sizes = [size for size in reader.read("site_topics")["size"].to_pylist() if size >= K]
    assert sorted(left.read("site_topics")["size"].to_pylist()) == sorted(sizes)
    assert found["documents"] == sum(sizes)

    # a few more letters change nothing that leaves
    corpus.write_csv(source, [*content, ("letter-new", "The comet came near the planet, and Mrs Codewordnew saw it.", "ward of space")])
    run(settings(source, partition={"column": "theme"}), store, ui=QUIET)
    assert export(store, tmp_path / "again", min_documents=K, site="North")["answered_with"] == 1
    assert everything(tmp_path / "again") == everything(tmp_path / "out")

    merged = merge([str(tmp_path / "out")], str(tmp_path / "merged"))
    assert merged["documents"] == found["documents"]
    own = {word for word in words if word.startswith("codeword")}  # a merge notes its settings, in common words
    assert leaked(tmp_path / "merged", own | private) == []
