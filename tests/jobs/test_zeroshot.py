"""Topics that are named before anything is clustered, on real engines and against BERTopic."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.progress import Ui
from jobs.run import run, validate
from jobs.update import update
from ray_actors.parts import to_matrix
from tests import corpus
from tests.jobs.test_update import adds_up
from topicscale import TopicModel, config
from topicscale.embedding import Embedder
from topicscale.errors import ModelError, RequestError
from topicscale.models import resolve
from topicscale.store import Store

QUIET = Ui("quiet")
ROWS = corpus.rows()
TEXTS = {doc_id: text for doc_id, text, _ in ROWS}
NAMES = ["A football match in the league", "Cooking in the kitchen", "Rockets and space missions", "Opera singers"]
LEAST = 0.3


def settings(path, *overrides: str, **values) -> config.Config:
    basic = {
        "input": {"paths": [str(path)], "id_column": "id"},
        "topics": {"min_size": 5},
        # the vectors' last bits then depend on the batch no more than BERTopic's do
        "embedding": {"dtype": "float32"},
        "zeroshot": {"topics": NAMES, "min_similarity": LEAST},
        **values,
    }
    return config.load(values=basic, overrides=list(overrides))


def taken(store: str) -> dict[str, str]:
    """Return the name of each document that has one."""
    reader = Store(store)
    reader.pin()
    names = {row["topic_id"]: row["label"] for row in reader.read("topics").to_pylist() if row["kind"] == "zeroshot"}
    return {row["doc_id"]: names[row["topic_id"]] for row in reader.read("assignments").to_pylist() if row["topic_id"] in names}


@pytest.fixture(scope="module")
def vectors() -> np.ndarray:
    return Embedder(config.EmbeddingConfig(dtype="float32"), threads=2).encode(list(TEXTS.values())).vectors


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    return corpus.write_csv(tmp_path_factory.mktemp("input") / "corpus.csv", ROWS)


@pytest.fixture(scope="module")
def bertopics(vectors) -> dict[str, str]:
    """What BERTopic gives to the names."""
    from bertopic import BERTopic
    from sentence_transformers import SentenceTransformer
    from sklearn.cluster import KMeans
    from sklearn.decomposition import PCA

    model = BERTopic(
        zeroshot_topic_list=NAMES,
        zeroshot_min_similarity=LEAST,
        embedding_model=SentenceTransformer(str(resolve("all-MiniLM-L6-v2").path), device="cpu"),
        umap_model=PCA(n_components=5, random_state=0),
        hdbscan_model=KMeans(n_clusters=4, random_state=0, n_init=1),
    )
    topics, _ = model.fit_transform(list(TEXTS.values()), vectors)
    labels = [model.topic_labels_[topic] for topic in topics]
    return {doc_id: label for doc_id, label in zip(TEXTS, labels, strict=True) if label in NAMES}


@pytest.fixture(scope="module", params=[1, 3], ids=["1 partition", "3 partitions"])
def finished(request, source, tmp_path_factory, spark, ray_layout):
    store = str(tmp_path_factory.mktemp("stores") / "store")
    settled = settings(source, partition={"number": request.param})
    return store, run(settled, store, ui=QUIET), settled


def test_names_take_the_documents_that_bertopic_gives_them(finished, bertopics) -> None:
    assert set(bertopics.values()) == set(NAMES[:3])
    assert taken(finished[0]) == bertopics


@pytest.mark.parametrize("partitions", [1, 3])
def test_names_take_vectors_that_came_with_the_documents(partitions, vectors, bertopics, tmp_path, spark, ray_layout) -> None:
    model = TopicModel(
        min_topic_size=5,
        zeroshot_topic_list=NAMES,
        zeroshot_min_similarity=LEAST,
        config={"partition": {"number": partitions}, "embedding": {"dtype": "float32"}},
        store=tmp_path / "store",
    )
    topics, probabilities = model.fit_transform(list(TEXTS.values()), vectors)
    labels = model.topic_labels_
    assert {doc_id: labels[topic] for doc_id, topic in zip(TEXTS, topics, strict=True) if labels[topic] in NAMES} == bertopics
    info = model.get_topic_info()
    assert set(NAMES[:3]) < set(info["Name"])
    again, same = model.transform(list(TEXTS.values()), vectors)
    assert again == topics
    # unit rows that are divided by their length once more move in the last bit
    np.testing.assert_allclose(same, probabilities, atol=1e-6)


def test_named_and_found_topics_are_one_model(finished) -> None:
    store, result, _ = finished
    reader = Store(store)
    reader.pin()
    topics = {row["topic_id"]: row for row in reader.read("topics").to_pylist()}
    assert sum(row["kind"] == "found" for row in topics.values()) >= 2
    assert [topics[i]["size"] for i in range(result.topics)] == sorted((topics[i]["size"] for i in range(result.topics)), reverse=True)
    assert sum(row["size"] for row in topics.values()) == len(ROWS)
    named = {i: row for i, row in topics.items() if row["kind"] == "zeroshot"}
    assert {row["label"] for row in named.values()} == set(NAMES[:3])  # no document is near the opera
    for row in named.values():
        assert row["cutoff"] == pytest.approx(LEAST)
        assert row["keywords"]
        assert row["representative_docs"]
    # the name goes along where topics are labelled, and where stores are merged
    labels = {row["topic_id"]: row["label"] for row in reader.read("topic_labels").to_pylist() if row["aspect"] == "zeroshot"}
    assert labels == {i: row["label"] for i, row in named.items()}
    assert sorted(label for label in reader.read("site_topics")["label"].to_pylist() if label) == sorted(labels.values())
    # words tell what the documents are about, as for any topic
    football = next(row for row in named.values() if row["label"] == NAMES[0])
    assert set(football["keywords"]) & set(" ".join(corpus.THEMES["football"]).split())


def test_what_a_name_takes_is_not_clustered(finished) -> None:
    store, _, _ = finished
    reader = Store(store)
    reader.pin()
    named = taken(store)
    local = {row["doc_id"]: row["local_topic"] for row in reader.read("local_assignments").to_pylist()}
    assert len(local) == len(ROWS)
    assert {local[doc_id] for doc_id in named} == {-1}
    assert sum(reader.read("local_topics")["size"].to_pylist()) == sum(topic >= 0 for topic in local.values())
    # found topics are about the others: each is the mean direction of what it was given, none of it a name's
    lineage = reader.read("topic_lineage").to_pylist()
    found = {row["topic_id"] for row in reader.read("topics").to_pylist() if row["kind"] == "found"}
    assert {row["topic_id"] for row in lineage} <= found | {-1}
    assert len(lineage) == reader.read("local_topics").num_rows


def test_stored_vectors_are_transformed_to_their_stored_topics(finished) -> None:
    store, _, _ = finished
    reader = Store(store)
    reader.pin()
    stored = reader.read("embeddings", ["doc_id", "vector"]).sort_by("doc_id")
    rows = reader.read("assignments").sort_by("doc_id")
    topics, probabilities = TopicModel.load(store).transform([""] * rows.num_rows, to_matrix(stored["vector"]))
    assert topics == rows["topic_id"].to_pylist()
    assert probabilities.tolist() == rows["probability"].to_pylist()


def test_a_rerun_does_nothing_and_a_plain_run_forgets_the_names(finished, source) -> None:
    store, first, settled = finished
    named = taken(store)
    again = run(settled, store, ui=QUIET)
    assert again.nothing_to_do
    assert again.generation == first.generation
    plain = run(config.load(values=settled.to_dict() | {"zeroshot": {}}), store, ui=QUIET)
    assert not plain.nothing_to_do
    assert taken(store) == {}
    back = run(settled, store, ui=QUIET)
    assert not back.nothing_to_do
    assert taken(store) == named


def _assigned(store: str) -> list[dict]:
    reader = Store(store)
    reader.pin()
    return reader.read("assignments").to_pylist()


def test_a_name_keeps_its_few_documents_and_a_name_without_any_is_told(source, tmp_path, capsys, spark, ray_layout) -> None:
    store = str(tmp_path / "store")
    wanted = settings(source, "zeroshot.min_similarity=.45", "topics.number=5", partition={"number": 2})
    result = run(wanted, store, ui=Ui("json"))
    told = [json.loads(line) for line in capsys.readouterr().err.splitlines() if line.startswith("{")]
    assert any("Opera singers" in line["message"] for line in told if line["event"] == "warning")
    reader = Store(store)
    reader.pin()
    sizes = {row["label"]: row["size"] for row in reader.read("topics").to_pylist() if row["kind"] == "zeroshot"}
    assert min(sizes.values()) < wanted.topics.min_size
    assert result.topics == 5  # the names among them


def test_names_may_take_everything(tmp_path, spark, ray_layout) -> None:
    names = list(corpus.THEMES)
    rows = [row for row in ROWS if row[2] in names[:2]][:40]
    random = np.random.default_rng(0)
    centres = Embedder(config.EmbeddingConfig(dtype="float32"), threads=2).encode(names[:2]).vectors
    near = np.stack([centres[names.index(theme)] + 0.01 * random.normal(size=384) for _, _, theme in rows])
    model = TopicModel(min_topic_size=5, zeroshot_topic_list=names, config={"partition": {"number": 2}}, store=tmp_path / "store")
    topics, _ = model.fit_transform([text for _, text, _ in rows], near)
    assert [model.topic_labels_[topic] for topic in topics] == [theme for _, _, theme in rows]
    assert model.transform(["opera"], -near[:1])[0] == [-1]


def test_updates_give_new_documents_to_names_also_to_those_that_had_none(tmp_path, spark, ray_layout) -> None:
    old = corpus.write_csv(tmp_path / "old.csv", [row for row in ROWS if row[2] not in ("football", "space")])
    new = corpus.write_csv(tmp_path / "new.csv", [row for row in ROWS if row[2] in ("football", "space")])
    store = str(tmp_path / "store")
    run(settings(old, partition={"number": 2}), store, ui=QUIET)
    before, was = taken(store), {row["doc_id"]: row["topic_id"] for row in _assigned(store)}
    assert set(before.values()) == {"Cooking in the kitchen"}
    result = update([str(new)], store, ui=QUIET)
    whole = str(tmp_path / "whole")
    run(settings(corpus.write_csv(tmp_path / "all.csv", ROWS), partition={"number": 1}), whole, ui=QUIET)
    assert taken(store) == taken(whole)
    assert {row["doc_id"]: row["topic_id"] for row in _assigned(store) if row["doc_id"] in was} == was
    reader = Store(store)
    reader.pin()
    topics = {row["topic_id"]: row for row in reader.read("topics").to_pylist()}
    assert {topics[topic]["label"] for topic in result["new_topics"] if topics[topic]["kind"] == "zeroshot"} == {NAMES[0], NAMES[2]}
    assert [row["label"] for row in reader.read("topic_labels").to_pylist() if row["aspect"] == "zeroshot"].count(NAMES[0]) == 1
    adds_up(tmp_path / "store")


@pytest.mark.parametrize(
    ("override", "hint"),
    [
        ("zeroshot.topics=[a, a]", "distinct"),
        ('zeroshot.topics=[a, " a "]', "distinct"),
        ('zeroshot.topics=[" "]', "distinct"),
        (r'zeroshot.topics=["a\nb"]', "one line"),
        ("zeroshot.topics=[{}]".format("x" * 201), "200 characters"),
        ("zeroshot.min_similarity=0", "above 0"),
        ("zeroshot.min_similarity=1.1", "at most 1"),
        ("topics.number=4", "above the 4 names"),
        ("embedding.model=/nowhere", "/nowhere"),
    ],
)
def test_wrong_values_are_refused_before_anything_starts(override, hint, source) -> None:
    with pytest.raises(RequestError, match=hint):
        validate(settings(source, override), "store")


@pytest.mark.parametrize("names", ["football", [1], 7])
def test_a_list_of_names_must_be_one(names) -> None:
    with pytest.raises(RequestError, match="zeroshot_topic_list must be a list of texts"):
        TopicModel(zeroshot_topic_list=names)


def test_names_must_be_embedded_in_the_documents_own_space(tmp_path) -> None:
    pq.write_table(pa.table({"id": ["a", "b"], "text": ["x", "y"], "v": [[1.0, 0.0], [0.0, 1.0]]}), tmp_path / "a.parquet")
    with pytest.raises(ModelError, match="of 2 dimensions"):
        validate(settings(tmp_path / "a.parquet", "input.embedding_column=v"), "store")
