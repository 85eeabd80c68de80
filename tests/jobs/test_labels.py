"""Names of topics, set by hand, through runs and updates on real engines."""

from __future__ import annotations

import json

import pytest

from jobs.merge import merge
from jobs.progress import Ui
from jobs.run import run
from jobs.update import update
from tests import corpus
from topicscale import TopicModel, config
from topicscale.store import Store

QUIET = Ui("quiet")


def settings(path, *overrides: str) -> config.Config:
    basic = {"input": {"paths": [str(path)], "id_column": "id"}, "partition": {"number": 2}, "topics": {"min_size": 5}}
    return config.load(values=basic, overrides=list(overrides))


@pytest.fixture(scope="module")
def named(tmp_path_factory, spark, ray_layout):
    """A finished store whose largest topics were named, and its input."""
    folder = tmp_path_factory.mktemp("named")
    source = corpus.write_csv(folder / "corpus.csv", corpus.rows())
    store = str(folder / "store")
    run(settings(source), store, ui=QUIET)
    model = TopicModel.load(store)
    model.set_topic_labels({0: "First", 1: "Second"})
    return source, store


def named_keys(store: str) -> dict[str, str]:
    """Return the hand-set names by what their topics are made of, as every table that holds names tells them."""
    reader = Store(store)
    reader.pin()
    topics = {row["topic_id"]: row for row in reader.read("topics").to_pylist()}
    manual = {row["topic_id"]: row["label"] for row in reader.read("topic_labels").to_pylist() if row["aspect"] == "manual"}
    assert {topic: topics[topic]["label"] for topic in manual} == manual
    leaves = {row["label"]: row["size"] for row in reader.read("site_topics").to_pylist() if row["label"]}
    assert leaves == {label: topics[topic]["size"] for topic, label in manual.items()}
    return {topics[topic]["topic_key"]: label for topic, label in manual.items()}


def test_names_outlive_reruns_updates_and_merges(named, tmp_path, capsys) -> None:
    source, store = named
    before = named_keys(store)
    assert sorted(before.values()) == ["First", "Second"]
    again = run(settings(source), store, ui=QUIET)
    assert again.nothing_to_do
    assert again.generation == 2
    # the tables that hold names are written again, twice
    assert not run(settings(source, "terms.bm25_weighting=true"), store, ui=QUIET).nothing_to_do
    assert named_keys(store) == before
    run(settings(source), store, ui=QUIET)
    assert named_keys(store) == before

    run(settings(source, "topics.number=1"), store, ui=Ui("json"))
    assert named_keys(store) == {}
    said = [json.loads(line) for line in capsys.readouterr().err.splitlines() if line.startswith("{")]
    warnings = [line["message"] for line in said if "is gone" in line.get("message", "")]
    assert len(warnings) == 2
    assert "'First'" in warnings[0]
    run(settings(source), store, ui=QUIET)
    assert named_keys(store) == before

    more = corpus.write_csv(tmp_path / "more.csv", [(f"n{i}", text, theme) for i, text, theme in corpus.rows(each=10, seed=11)])
    update([str(more)], store, ui=QUIET)
    assert named_keys(store) == before

    other = TopicModel(min_topic_size=5, config={"partition": {"number": 2}}, store=tmp_path / "other")
    other.fit([text for _, text, _ in corpus.rows(seed=8)])
    names = TopicModel.merge({"a": store, "b": other}).topic_labels_
    assert {"First", "Second"} <= set(names.values())
    assert merge([store, other.store], tmp_path / "merged")["label_conflicts"] == {}
