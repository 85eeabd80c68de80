"""BERTopic models in and out, against the real BERTopic."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from scipy.sparse import csr_matrix

from jobs.merge import merge
from tests import corpus
from topicscale import TopicModel
from topicscale.bertopic.counts import documents_with, recover
from topicscale.config import EmbeddingConfig
from topicscale.ctfidf import average_terms, c_tf_idf, idf
from topicscale.errors import ModelError, RequestError, StoreError
from topicscale.models import embedding_space
from topicscale.store import Store

AG_NEWS = Path(__file__).resolve().parents[3] / "shared" / "data" / "agnews_test.csv"
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
HOSTILE = '<script>alert("x")</script> \u202e; DROP TABLE topics'

bertopic = pytest.importorskip("bertopic")


def bert(texts, vectors, labels, **arguments):
    """Fit BERTopic on given topics of given vectors."""
    from bertopic.cluster import BaseCluster
    from bertopic.dimensionality import BaseDimensionalityReduction

    model = bertopic.BERTopic(umap_model=BaseDimensionalityReduction(), hdbscan_model=BaseCluster(), **arguments)
    return model.fit(texts, vectors, y=labels)


def save(model, folder, *, name=MINILM, ctfidf=True) -> Path:
    model.save(folder, serialization="safetensors", save_ctfidf=ctfidf, save_embedding_model=name)
    return Path(folder)


def load(folder, **arguments):
    return bertopic.BERTopic.load(str(folder), **arguments)


def toy(*, seed=3, **arguments):
    """A model of hand-made vectors: three topics and outliers."""
    rng = np.random.default_rng(seed)
    words = [["goal", "match", "coach", "goal keeper"], ["oil", "price", "market"], ["virus", "nurse", "clinic"], ["stray"]]
    labels = np.array([-1] * 6 + [0] * 20 + [1] * 14 + [2] * 9)
    texts = [" ".join(rng.choice(words[label], size=6)) + " the report said" for label in labels]
    vectors = 0.2 * rng.normal(size=(len(labels), 12)) + np.eye(4, 12)[labels]
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return bert(texts, vectors.astype(np.float32), labels, **arguments), texts, vectors, labels


@pytest.fixture(scope="module")
def offline():
    # BERTopic.load tries to fetch the model that a folder names
    from huggingface_hub import constants

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_OFFLINE", True)
        yield


def news_rows():
    with AG_NEWS.open(encoding="utf-8") as file:
        rows = list(csv.reader(file))[:300]
    labels = np.array([int(row[0]) - 1 for row in rows])
    labels[::9] = -1
    return [" ".join(row[1:]) for row in rows], labels


@pytest.fixture(scope="module")
def sport(news) -> int:
    """The id that BERTopic, which numbers topics by size, gave to the class of sports."""
    return news[0].topics_[news_rows()[1].tolist().index(1)]


@pytest.fixture(scope="module")
def news(offline):
    """BERTopic on real vectors of AG News, its four classes as topics and every ninth document an outlier."""
    if not AG_NEWS.is_file():
        pytest.skip("shared/data/agnews_test.csv is not on this machine")
    from topicscale.embedding import Embedder

    texts, labels = news_rows()
    vectors = Embedder(EmbeddingConfig(dtype="float32"), threads=1).encode(texts).vectors
    model = bert(texts, vectors, labels, representation_model={"Short": short()})
    model.set_topic_labels({0: "Space & science", 2: HOSTILE})
    return model, texts, vectors


def short():
    """A representation whose words and weights are not c-TF-IDF's."""
    from bertopic.representation._base import BaseRepresentation

    class Short(BaseRepresentation):
        def extract_topics(self, topic_model, documents, c_tf_idf, topics):
            return {topic: [(word, 0.5 + i / 8) for i, (word, _) in enumerate(reversed(words[:4]))] for topic, words in topics.items()}

    return Short()


@pytest.fixture(scope="module")
def folder(news, tmp_path_factory) -> Path:
    return save(news[0], tmp_path_factory.mktemp("bertopic") / "model")


@pytest.fixture(scope="module")
def site(folder, tmp_path_factory) -> TopicModel:
    return TopicModel.from_bertopic(folder, store=tmp_path_factory.mktemp("site") / "store")


@pytest.fixture(scope="module")
def back(site, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("back") / "model"
    site.to_bertopic(out)
    return out


def matrix(model) -> dict[tuple[int, str], float]:
    """Return c-TF-IDF weights by row and term: the columns of two models need not be in one order."""
    terms = {column: term for term, column in model.vectorizer_model.vocabulary_.items()}
    found = model.c_tf_idf_.tocoo()
    return {(int(row), terms[column]): weight for row, column, weight in zip(found.row, found.col, found.data, strict=True)}


def same_weights(found, wanted) -> None:
    assert found.keys() == wanted.keys()
    np.testing.assert_allclose([found[key] for key in wanted], list(wanted.values()), atol=1e-6)


# -- in ----------------------------------------------------------------------------------------------------------------


def test_a_site_has_what_bertopic_showed(news, site) -> None:
    model, _, _ = news
    info = model.get_topic_info()
    ours = site.get_topic_info()
    assert ours["Topic"].tolist() == info["Topic"].tolist()
    assert ours["Count"].tolist() == info["Count"].tolist()
    assert ours["Representation"].tolist() == info["Representation"].tolist()
    assert ours["Name"].tolist() == info["CustomName"].tolist()
    for topic in info["Topic"]:
        # among words of equal weight any may be the tenth
        np.testing.assert_allclose([w for _, w in site.get_topic(topic)], [w for _, w in model.get_topic(topic)], atol=1e-6)
        assert dict(site.get_topic(topic, full=True)["Short"]).keys() == {word for word, _ in model.topic_aspects_["Short"][topic] if word}
    with pytest.raises(StoreError, match="no documents"):
        _ = site.topics_


def test_term_counts_come_back_as_they_were(news, site) -> None:
    model, texts, _ = news
    assert Store(site.store).pin().summary["terms"] == "recovered"
    joined = [" ".join(text for text, topic in zip(texts, model.topics_, strict=True) if topic == t) for t in range(-1, 4)]
    counts = model.vectorizer_model.transform(model._preprocess_text(np.array(joined))).tocoo()
    names = model.vectorizer_model.get_feature_names_out()
    wanted = {(int(row) - 1, names[column]): int(n) for row, column, n in zip(counts.row, counts.col, counts.data, strict=True)}
    rows = Store(site.store).read("topic_terms").to_pylist()
    assert {(row["topic_id"], row["term"]): row["count"] for row in rows} == wanted
    sizes = site.topic_sizes_
    assert all(1 <= row["documents"] <= min(row["count"], sizes[row["topic_id"]]) for row in rows)


def test_a_sites_leaves_can_be_merged_with_stores_of_the_same_model(news, site) -> None:
    model, _, vectors = news
    rows = Store(site.store).read("site_topics").to_pylist()
    assert {row["embedding_space"] for row in rows} == {embedding_space(EmbeddingConfig())}
    assert {row["embedding_model"] for row in rows} == {"all-MiniLM-L6-v2"}
    assert [row["topic_key"] for row in rows].count("outliers") == 1
    assert {(row["site"], row["site_id"], row["generation"], row["min_documents"]) for row in rows} == {("", "", 0, 1)}
    assert sorted(row["label"] for row in rows) == sorted(["", "", "", "Space & science", HOSTILE])
    settings = json.loads(rows[0]["vocabulary"])
    assert settings == {"approximate": True, "lowercase": True, "ngram_range": [1, 1], "stop_words": None}
    for row in rows:
        members = np.array(model.topics_) == ({v: k for k, v in site.topic_sizes_.items()}[row["size"]])
        # BERTopic's embeddings are means: their sums are the documents' sums
        np.testing.assert_allclose(row["vector_sum"], vectors[members].sum(axis=0), atol=1e-3)
        assert sum(dict(row["term_counts"]).values()) > row["size"]
        assert dict(row["term_counts"]).keys() == dict(row["term_documents"]).keys()


def test_a_site_takes_new_documents(news, site, sport) -> None:
    _, texts, vectors = news
    references = site.topic_embeddings_[1:]
    topics, probabilities = site.transform(texts, embeddings=vectors)
    assert topics == (vectors @ references.T).argmax(axis=1).tolist()
    np.testing.assert_allclose(probabilities, (vectors @ references.T).max(axis=1), atol=1e-5)
    assert site.transform(texts[:5])[0] == topics[:5]
    assert site.find_topics("football match", top_n=1)[0] == [sport]


def test_a_text_that_shows_nothing_is_of_no_topic(site) -> None:
    topics, probabilities = site.transform(["the match was won", "", " \u200b\x01\n"])
    assert (topics[0] >= 0, topics[1:], probabilities[1:].tolist()) == (True, [-1, -1], [0.0, 0.0])


def test_a_name_for_the_site_goes_into_its_leaves(tmp_path) -> None:
    model = TopicModel.from_bertopic(save(toy()[0], tmp_path / "b"), store=tmp_path / "s", site="Lyon")
    store = Store(model.store)
    rows = store.read("site_topics").to_pylist()
    assert {(row["site"], row["site_id"], row["generation"]) for row in rows} == {("Lyon", store.site_id, 1)}
    assert set(store.read("topic_lineage")["site"].to_pylist()) == {"Lyon"}


def test_the_same_model_again_changes_nothing_and_another_is_refused(tmp_path) -> None:
    first = save(toy()[0], tmp_path / "b")
    model = TopicModel.from_bertopic(first, store=tmp_path / "s")
    before = {name: Store(model.store).version(name) for name in ("topics", "site_topics", "generations")}
    again = TopicModel.from_bertopic(first, store=tmp_path / "s")
    assert {name: Store(again.store).version(name) for name in before} == before
    with pytest.raises(RequestError, match="new or empty"):
        TopicModel.from_bertopic(save(toy(top_n_words=3)[0], tmp_path / "c"), store=tmp_path / "s")


def test_how_terms_were_counted_comes_along(tmp_path) -> None:
    from bertopic.vectorizers import ClassTfidfTransformer
    from sklearn.feature_extraction.text import CountVectorizer

    vectorizer = CountVectorizer(ngram_range=(1, 2), stop_words=["report"], lowercase=False, min_df=2, token_pattern=r"\w{3,}")
    transformer = ClassTfidfTransformer(bm25_weighting=True, reduce_frequent_words=True)
    fitted = toy(vectorizer_model=vectorizer, ctfidf_model=transformer)[0]
    model = TopicModel.from_bertopic(save(fitted, tmp_path / "b"), store=tmp_path / "s")
    terms = model.config.terms
    assert (terms.ngram_range, terms.stop_words, terms.lowercase) == ((1, 2), ("report",), False)
    assert terms.bm25_weighting
    assert terms.reduce_frequent_words
    row = Store(model.store).read("site_topics").to_pylist()[0]
    told = json.loads(row["vocabulary"])
    assert told["token_pattern"] == r"\w{3,}"
    assert told["stop_words"].startswith("list ")
    assert row["min_documents"] == 2
    model.to_bertopic(tmp_path / "out")
    same_weights(matrix(load(tmp_path / "out")), matrix(fitted))


def test_a_model_saved_without_terms_shows_its_words_and_brings_no_counts(tmp_path) -> None:
    fitted = toy()[0]
    model = TopicModel.from_bertopic(save(fitted, tmp_path / "b", ctfidf=False), store=tmp_path / "s")
    assert model.get_topic_info()["Representation"].tolist() == [
        [word for word in words if word] for words in fitted.get_topic_info()["Representation"]
    ]
    assert dict(model.get_topic(0)) == {word: weight for word, weight in fitted.get_topic(0) if word}
    store = Store(model.store)
    assert store.pin().summary["terms"] == "none"
    assert all(row["term_counts"] == [] for row in store.read("site_topics").to_pylist())
    model.to_bertopic(tmp_path / "out")
    assert not (tmp_path / "out" / "ctfidf.safetensors").exists()
    assert load(tmp_path / "out").get_topic(0) == [[word, weight] for word, weight in fitted.get_topic(0) if word]


def diverse():
    """A main representation of c-TF-IDF's words and weights, but not of the best ones."""
    from bertopic.representation._base import BaseRepresentation

    class Diverse(BaseRepresentation):
        def extract_topics(self, topic_model, documents, c_tf_idf, topics):
            return {topic: words[1:4] for topic, words in topics.items()}

    return Diverse()


@pytest.mark.parametrize("representation", [short, diverse])
def test_the_main_representation_is_what_is_shown(representation, tmp_path) -> None:
    model, _, _, _ = toy(representation_model=representation())
    ours = TopicModel.from_bertopic(save(model, tmp_path / "b"), store=tmp_path / "s")
    for topic in range(-1, 3):
        wanted = [(word, pytest.approx(weight)) for word, weight in model.get_topic(topic) if word]
        assert ours.get_topic(topic) == ours.get_topics()[topic] == ours.topic_representations_[topic] == wanted
        full = ours.get_topic(topic, full=True)
        assert (full["Main"], full.keys()) == (wanted, {"Main", "ctfidf"})
        assert full["ctfidf"] != wanted
        assert len(full["ctfidf"]) >= len(wanted)
    assert ours.get_topics(full=True)["Main"] == ours.get_topics()
    assert ours.get_topic_info().columns.tolist() == ["Topic", "Count", "Name", "Representation", "ctfidf", "Representative_Docs"]


def test_named_topics_keep_their_names(tmp_path) -> None:
    folder = save(toy()[0], tmp_path / "b")
    edit(folder / "topics.json", lambda c: c["topic_labels"].update({"1": "Energy"}))  # as a zero-shot topic's is
    model = TopicModel.from_bertopic(folder, store=tmp_path / "s")
    store = Store(model.store)
    kinds = {row["topic_id"]: (row["kind"], row["label"]) for row in store.read("topics").to_pylist()}
    assert kinds[1] == ("found", "Energy")
    assert kinds[2] == ("found", "_".join(["2", *model.get_topic_info(2)["Representation"][0][:4]]))
    assert sorted(row["label"] for row in store.read("site_topics").to_pylist()) == ["", "", "", "Energy"]
    loaded = TopicModel.load(model.store)
    assert loaded.get_topic_info().to_dict("list") == model.get_topic_info().to_dict("list")
    # and take no documents that are nearer to another
    assert loaded.transform(["x"] * 3, embeddings=np.eye(3, 12))[0] == [0, 1, 2]


def test_a_model_that_bertopic_merged(tmp_path) -> None:
    merged = bertopic.BERTopic.merge_models([toy()[0], toy(top_n_words=4)[0]], min_similarity=0.99)
    model = TopicModel.from_bertopic(save(merged, tmp_path / "b"), store=tmp_path / "s")
    assert model.topic_sizes_ == merged.topic_sizes_


def test_vectors_that_are_no_unit_vectors(tmp_path) -> None:
    fitted, _, _, _ = toy()
    fitted.topic_embeddings_ = fitted.topic_embeddings_ * 7.5
    model = TopicModel.from_bertopic(save(fitted, tmp_path / "b"), store=tmp_path / "s")
    rows = Store(model.store).read("site_topics").to_pylist()
    np.testing.assert_allclose([np.linalg.norm(row["vector_sum"]) for row in rows], [row["size"] for row in rows])


# -- out ---------------------------------------------------------------------------------------------------------------


def test_bertopic_to_store_to_bertopic_is_the_same_model(news, folder, back) -> None:
    model = news[0]
    loaded = load(back)
    pairs = model.get_topic_info().drop(columns="Representative_Docs"), loaded.get_topic_info().drop(columns="Representative_Docs")
    assert pairs[0].drop(columns="Short").to_dict("list") == pairs[1].drop(columns="Short").to_dict("list")
    assert loaded.topic_sizes_ == model.topic_sizes_
    assert loaded.custom_labels_ == model.custom_labels_
    for topic, words in model.topic_representations_.items():
        assert [word for word, _ in loaded.topic_representations_[topic]] == [word for word, _ in words]
        np.testing.assert_allclose([w for _, w in loaded.topic_representations_[topic]], [w for _, w in words], atol=1e-6)
        mine = [tuple(pair) for pair in loaded.topic_aspects_["Short"][topic]]
        assert mine == [(word, weight) for word, weight in model.topic_aspects_["Short"][topic] if word]
    np.testing.assert_allclose(loaded.topic_embeddings_, model.topic_embeddings_, atol=1e-6)
    same_weights(matrix(loaded), matrix(model))
    np.testing.assert_allclose(loaded.ctfidf_model._idf_diag.data.ravel().sum(), model.ctfidf_model._idf_diag.data.ravel().sum(), rtol=1e-6)


def test_bertopic_finds_topics_with_what_we_wrote(news, back, sport) -> None:
    _, texts, vectors = news
    from sentence_transformers import SentenceTransformer

    from topicscale.models import resolve

    encoder = SentenceTransformer(str(resolve(MINILM).path), device="cpu")
    loaded = load(back, embedding_model=encoder)
    centres = loaded.topic_embeddings_ / np.linalg.norm(loaded.topic_embeddings_, axis=1, keepdims=True)
    nearest = (vectors @ centres.T).argmax(axis=1) - 1
    topics, _ = loaded.transform(texts, vectors)
    np.testing.assert_array_equal(topics, nearest)
    np.testing.assert_array_equal(loaded.transform(texts[:20])[0], nearest[:20])
    assert loaded.find_topics("football match", top_n=1)[0] == [sport]


def test_bertopic_can_go_on_with_what_we_wrote(news, back) -> None:
    _, texts, vectors = news
    loaded = load(back)
    loaded.set_topic_labels({3: "Business"})
    assert loaded.get_topic_info().set_index("Topic")["CustomName"][3] == "Business"
    merged = bertopic.BERTopic.merge_models([loaded, toy_like(vectors, texts)], min_similarity=0.9)
    assert merged.topic_sizes_[-1] >= loaded.topic_sizes_[-1]
    assert len(loaded.hierarchical_topics(texts)) == 3
    assert loaded.reduce_outliers(texts[:50], [-1] * 50, strategy="c-tf-idf") != [-1] * 50


def toy_like(vectors, texts):
    return bert(texts, vectors, np.arange(len(texts)) % 3)


def test_store_to_bertopic_to_store_is_the_same_store(site, back, tmp_path) -> None:
    again = TopicModel.from_bertopic(back, store=tmp_path / "s")
    first, second = Store(site.store), Store(again.store)
    assert second.pin().summary["terms"] == first.pin().summary["terms"]
    assert again.get_topic_info().to_dict("list") == site.get_topic_info().to_dict("list")
    np.testing.assert_allclose(again.topic_embeddings_, site.topic_embeddings_, atol=1e-6)
    for table in ("topic_terms", "topic_labels"):
        rows = [sorted(store.read(table).to_pylist(), key=str) for store in (first, second)]
        ids = [[(row["topic_id"], row.get("term"), row.get("count"), row.get("aspect"), row.get("terms")) for row in of] for of in rows]
        assert ids[0] == ids[1]


def test_a_store_with_documents_goes_out_with_their_topics(tmp_path, offline) -> None:
    store = documents_store(tmp_path / "store")
    model = TopicModel.load(store.uri)
    model.to_bertopic(tmp_path / "out")
    loaded = load(tmp_path / "out")
    assert loaded.topics_ == [1, 0, -1, 0, 0, 1]
    assert loaded.get_topic_info()["Count"].tolist() == [1, 3, 2]
    assert loaded.get_topic_info()["Name"].tolist() == ["-1_noise", "0_goal_match", "1_oil"]
    np.testing.assert_array_equal(loaded.transform(["a", "b"], np.eye(4, dtype=np.float32)[1:3])[0], [0, 1])
    np.testing.assert_allclose(loaded.topic_embeddings_, 0.9 * model.topic_embeddings_)  # as long as a mean of its documents
    assert json.loads((tmp_path / "out" / "topics.json").read_text())["representative_docs"] == {"0": ["goal match"]}
    # where the model's weights lie on this machine stays here
    assert "embedding_model" not in json.loads((tmp_path / "out" / "config.json").read_text())
    again = TopicModel.from_bertopic(tmp_path / "out", embedding_model="all-MiniLM-L6-v2")
    assert again.get_topic_info().to_dict("list") == model.get_topic_info().to_dict("list")


def test_bertopic_models_are_sites_that_merge(tmp_path, offline) -> None:
    first, second = toy()[0], toy(seed=4)[0]
    first.set_topic_labels({0: "Football"})
    stores = [
        TopicModel.from_bertopic(save(model, tmp_path / name), store=tmp_path / f"{name}-store", site=name).store
        for name, model in (("Lyon", first), ("Porto", second))
    ]
    found = merge(stores, tmp_path / "merged", similarity=0.8)
    assert [(site["site"], site["shared"]) for site in found["sites"]] == [("Lyon", 3), ("Porto", 3)]
    assert not found["exact_terms"]
    merged = TopicModel.load(tmp_path / "merged")
    assert merged.topic_sizes_ == {-1: 12, 0: 40, 1: 28, 2: 18}
    merged.to_bertopic(tmp_path / "out")
    loaded = load(tmp_path / "out")
    assert loaded.topic_sizes_ == merged.topic_sizes_
    assert loaded.get_topic_info()["CustomName"].tolist()[1] == "Football"
    assert [word for word, _ in loaded.get_topic(1)] == [word for word, _ in merged.get_topic(1)]
    means = [np.average([m.topic_embeddings_[row] for m in (first, second)], axis=0) for row in range(4)]
    np.testing.assert_allclose(loaded.topic_embeddings_, means, atol=1e-6)
    np.testing.assert_array_equal(loaded.transform(["x"] * 3, np.eye(4, 12)[:3])[0], [0, 1, 2])


def test_a_fitted_store_goes_out_as_it_is(tmp_path, offline, spark, ray_layout) -> None:
    rows = corpus.rows()
    texts = [text for _, text, _ in rows]
    model = TopicModel(min_topic_size=8, store=tmp_path / "store")
    model.fit_transform(texts)
    model.to_bertopic(tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["embedding_model"] == MINILM
    loaded = load(tmp_path / "out")
    assert loaded.topics_ == model.topics_
    ours, theirs = model.get_topic_info(), loaded.get_topic_info()
    for column in ("Topic", "Count", "Name", "Representation"):
        assert theirs[column].tolist() == ours[column].tolist()
    for topic in ours["Topic"]:
        assert [tuple(pair) for pair in loaded.get_topic(topic)] == model.get_topic(topic)
    stored = Store(model.store).read("topic_terms").to_pylist()
    outliers = int(-1 in model.topic_sizes_)
    same_weights(matrix(loaded), {(row["topic_id"] + outliers, row["term"]): row["weight"] for row in stored})
    lengths = np.linalg.norm(loaded.topic_embeddings_, axis=1, keepdims=True)
    np.testing.assert_allclose(loaded.topic_embeddings_ / lengths, model.topic_embeddings_, atol=1e-6)
    again = TopicModel.from_bertopic(tmp_path / "out", store=tmp_path / "again")
    assert again.get_topic_info().to_dict("list") == ours.to_dict("list")
    assert Store(again.store).pin().summary["terms"] == "recovered"
    counts = [{(r["topic_id"], r["term"]): r["count"] for r in Store(m.store).read("topic_terms").to_pylist()} for m in (model, again)]
    assert counts[0] == counts[1]
    leaves = [Store(m.store).read("site_topics").to_pylist() for m in (model, again)]
    assert {row["embedding_space"] for of in leaves for row in of} == {leaves[0][0]["embedding_space"]}
    # a topic's reference is the centre of the round before its last: near, not the same
    for size in {row["size"] for row in leaves[0]}:
        norms = [sorted(np.linalg.norm(row["vector_sum"]) for row in of if row["size"] == size) for of in leaves]
        np.testing.assert_allclose(norms[0], norms[1], rtol=1e-6)
    # and the two are sites of one merge, which finds every topic at both
    merge([f"ours={model.store}", f"bertopic={again.store}"], tmp_path / "merged", similarity=0.9)
    both = TopicModel.load(tmp_path / "merged")
    assert both.get_topic_info()["Count"].sum() == 2 * ours["Count"].sum()
    held: dict[int, dict[str, int]] = {}
    for row in Store(both.store).read("topic_lineage").to_pylist():
        of = held.setdefault(row["topic_id"], {"ours": 0, "bertopic": 0})
        of[row["site"]] += row["size"]
    assert all(of["ours"] == of["bertopic"] > 0 for of in held.values())
    both.to_bertopic(tmp_path / "both")
    assert load(tmp_path / "both").get_topic_info()["Count"].tolist() == both.get_topic_info()["Count"].tolist()


def documents_store(path):
    """A store as the job leaves it: its leaves are not keyed as its topics are."""
    import pyarrow as pa
    from deltalake import DeltaTable

    from topicscale.config import load as configure
    from topicscale.leaf_terms import vocabulary
    from topicscale.store import UnitWrite, write_part
    from topicscale.tables import TABLES

    store = Store(path, create=True)
    config = configure(values={"embedding": {"model": str(path)}})
    base = {"parent_id": None, "representative_docs": []}
    vectors = np.eye(4, dtype=np.float32)
    topics = [
        base | {"topic_id": -1, "topic_key": "", "kind": "outliers", "size": 1, "label": "-1_noise", "keywords": ["noise"]},
        base | {"topic_id": 0, "topic_key": "a", "kind": "found", "size": 3, "label": "0_goal_match", "keywords": ["goal", "match"]},
        base | {"topic_id": 1, "topic_key": "b", "kind": "found", "size": 2, "label": "1_oil", "keywords": ["oil"]},
    ]
    topics[1]["representative_docs"] = ["goal match"]
    for i, row in enumerate(topics):
        row |= {"reference_vector": vectors[i].tolist(), "cutoff": None if i == 0 else 0.5, "core": None if i == 0 else 0.5}
    counted = csr_matrix(np.array([[1, 0, 0, 0], [0, 3, 2, 0], [0, 0, 0, 2]]))
    names = ["noise", "goal", "match", "oil"]
    found = c_tf_idf(counted).tocoo()
    terms = [
        {"topic_id": int(r) - 1, "term": names[c], "documents": 1}
        | dict.fromkeys(("count", "core_count"), int(counted[r, c]))
        | dict.fromkeys(("weight", "core_weight"), float(w))
        for r, c, w in zip(found.row, found.col, found.data, strict=True)
    ]
    DeltaTable.create(store.table_path("topic_terms"), schema=TABLES["topic_terms"].schema)
    leaf = {"site": "", "site_id": "", "generation": 0, "label": "", "min_documents": 1, "embedding_space": "s", "embedding_model": "m"}
    leaf |= {"vocabulary": vocabulary(config.terms), "term_counts": [], "term_documents": []}
    leaves = [
        leaf | {"topic_key": f"leaf {i}", "size": row["size"], "vector_sum": (0.9 * row["size"] * vectors[i]).tolist()}
        for i, row in enumerate(topics)
    ]
    for table, rows in {"topics": topics, "topic_terms": terms, "site_topics": leaves}.items():
        store.replace(table, pa.Table.from_pylist(rows, schema=TABLES[table].schema), stage="publish", unit_fingerprint="0" * 32)
    assigned = {
        "doc_id": list("abcdef"),
        "topic_id": pa.array([1, 0, -1, 0, 0, 1], pa.int32()),
        "probability": pa.array([0.5] * 6, pa.float32()),
    }
    files = write_part(store.uri, "assignments", "p", pa.table(assigned))
    store.commit("assignments", [UnitWrite("assign", "p", "0" * 32, files)])
    store.publish(configuration=config.to_dict(), summary={"space": "s"}, unit_fingerprint="0" * 32)
    return store


def test_a_folder_is_replaced_if_it_is_a_bertopic_models_and_refused_else(tmp_path) -> None:
    with_terms = TopicModel.from_bertopic(save(toy()[0], tmp_path / "b"))
    without = TopicModel.from_bertopic(save(toy()[0], tmp_path / "c", ctfidf=False))
    with_terms.to_bertopic(tmp_path / "out")
    without.to_bertopic(tmp_path / "out")
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == ["config.json", "topic_embeddings.safetensors", "topics.json"]
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(RequestError, match="new or empty"):
        without.to_bertopic(tmp_path / "out")
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"
    assert not [file for file in tmp_path.iterdir() if file.name.startswith(".bertopic")]


# -- what may be wrong ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def good(tmp_path_factory, offline) -> Path:
    return save(toy()[0], tmp_path_factory.mktemp("good") / "model")


def edit(file: Path, change) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def tensors(file: Path, **changed) -> None:
    save_file({**load_file(file), **changed}, file)


BREAK = {
    "a missing file": (lambda f: (f / "topics.json").unlink(), "topics.json' .* is missing"),
    "no embeddings": (lambda f: (f / "topic_embeddings.safetensors").unlink(), "topic_embeddings.safetensors' .* is missing"),
    "half of the terms": (lambda f: (f / "ctfidf_config.json").unlink(), "ctfidf_config.json' .* is missing"),
    "other half": (lambda f: (f / "ctfidf.safetensors").unlink(), "ctfidf.safetensors' .* is missing"),
    "cut JSON": (lambda f: (f / "config.json").write_text('{"language": "eng'), "config.json' .* is damaged"),
    "deep JSON": (lambda f: (f / "topics.json").write_text("[" * 100_000), "topics.json' .* is damaged"),
    "no mapping": (lambda f: (f / "topics.json").write_text("[]"), "topics.json' .* must hold a mapping"),
    "cut tensors": (
        lambda f: (f / "topic_embeddings.safetensors").write_bytes(b"\x08\0\0\0"),
        "topic_embeddings.safetensors' .* is damaged",
    ),
    "a row too few": (
        lambda f: tensors(f / "topic_embeddings.safetensors", topic_embeddings=np.ones((3, 12), np.float32)),
        "4 topics .* Got 3",
    ),
    "no numbers": (
        lambda f: tensors(f / "topic_embeddings.safetensors", topic_embeddings=np.full((4, 12), np.nan, np.float32)),
        "finite numbers",
    ),
    "terms of another model": (
        lambda f: tensors(f / "ctfidf.safetensors", shape=np.array([4, 3])),
        "ctfidf.safetensors' .* must have a row",
    ),
    "indices outside": (
        lambda f: tensors(f / "ctfidf.safetensors", indices=load_file(f / "ctfidf.safetensors")["indices"] + 1_000_000),
        "ctfidf.safetensors' .* is damaged",
    ),
    "a size of text": (lambda f: edit(f / "topics.json", lambda c: c["topic_sizes"].update({"0": "many"})), "number of documents"),
    "too large": (lambda f: tensors(f / "topic_embeddings.safetensors", topic_embeddings=np.full((4, 12), 1e99)), "finite numbers"),
    "a shape of nothing": (lambda f: tensors(f / "ctfidf.safetensors", shape=np.array([np.nan])), "ctfidf.safetensors' .* must have a row"),
    "a gap": (
        lambda f: edit(f / "topics.json", lambda c: c["topic_representations"].update({"7": c["topic_representations"].pop("1")})),
        "gaps",
    ),
    "labels": (lambda f: edit(f / "topics.json", lambda c: c.update(custom_labels=["one"])), "list of 4 labels"),
    "a setting": (
        lambda f: edit(f / "ctfidf_config.json", lambda c: c["vectorizer_model"]["params"].update(ngram_range=[1, 40])),
        "ctfidf_config.json .* terms.ngram_range",
    ),
}


@pytest.mark.parametrize("case", BREAK)
def test_a_damaged_model_is_refused_with_the_files_name(case, good, tmp_path) -> None:
    damage, hint = BREAK[case]
    copy = tmp_path / "model"
    shutil.copytree(good, copy)
    damage(copy)
    with pytest.raises(RequestError, match=hint):
        TopicModel.from_bertopic(copy, store=tmp_path / "s")
    assert not (tmp_path / "s").exists()


def test_nothing_pickled_is_opened(tmp_path) -> None:
    (tmp_path / "model.pickle").write_bytes(b"cos\nsystem\n(S'touch " + str(tmp_path).encode() + b"/ran'\ntR.")
    with pytest.raises(RequestError, match=r"pickled.*serialization="):
        TopicModel.from_bertopic(tmp_path / "model.pickle")
    fitted = toy()[0]
    fitted.save(tmp_path / "torch", serialization="pytorch", save_ctfidf=True)
    with pytest.raises(RequestError, match=r"pickle.*safetensors"):
        TopicModel.from_bertopic(tmp_path / "torch")
    with pytest.raises(RequestError, match="no BERTopic model"):
        TopicModel.from_bertopic(tmp_path / "nowhere")
    assert not (tmp_path / "ran").exists()


def test_the_embedding_model_must_be_named_by_someone(tmp_path) -> None:
    nameless = save(toy()[0], tmp_path / "b", name=False)
    with pytest.raises(RequestError, match="embedding_model="):
        TopicModel.from_bertopic(nameless, store=tmp_path / "s")
    model = TopicModel.from_bertopic(nameless, store=tmp_path / "s", embedding_model="all-MiniLM-L6-v2")
    assert model.config.embedding.model == "all-MiniLM-L6-v2"


def test_a_model_that_is_not_here_is_known_by_its_name(tmp_path) -> None:
    names = ["lab!one", "lab!one", "lab!two"]
    models = [TopicModel.from_bertopic(save(toy()[0], tmp_path / f"b{i}", name=name)) for i, name in enumerate(names)]
    spaces = [Store(model.store).read("site_topics")["embedding_space"][0].as_py() for model in models]
    assert spaces[0] == spaces[1] != spaces[2]
    assert models[0].transform(["x"], embeddings=np.eye(1, 12))[0] == [0]
    with pytest.raises(ModelError, match="lab!one"):
        models[0].transform(["x"])


def test_labels_are_texts_and_nothing_else(tmp_path) -> None:
    fitted = toy()[0]
    fitted.set_topic_labels({0: HOSTILE, 1: "half \ud800 pair", 2: "../../etc/passwd\x00"})
    folder = save(fitted, tmp_path / "b")
    model = TopicModel.from_bertopic(folder, store=tmp_path / "s")
    assert model.topic_labels_[0] == HOSTILE
    assert model.topic_labels_[1] == "half ? pair"
    assert model.topic_labels_[2] == "../../etc/passwd\x00"
    model.to_bertopic(tmp_path / "out")
    assert load(tmp_path / "out").custom_labels_[1:] == [model.topic_labels_[t] for t in range(3)]


# -- counts --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bm25", [False, True])
@pytest.mark.parametrize("root", [False, True])
@pytest.mark.parametrize("repeated", [1, 10])
def test_counts_are_recovered_from_weights(bm25, root, repeated) -> None:
    rng = np.random.default_rng(5)
    counts = rng.poisson(rng.dirichlet(np.full(3000, 0.05), size=40) * 9000)
    counts[7] *= repeated  # a topic of documents that are all the same
    counts = csr_matrix(counts[:, counts.sum(axis=0) > 0])
    weights = c_tf_idf(counts, bm25_weighting=bm25, reduce_frequent_words=root)
    frequencies, totals = (np.asarray(counts.sum(axis=axis), np.float64).ravel() for axis in (0, 1))
    of_term = idf(frequencies, average_terms(totals), bm25_weighting=bm25)
    found = recover(weights, of_term, np.full(40, 100), bm25_weighting=bm25, reduce_frequent_words=root)
    assert found.exact
    assert (found.matrix != counts).nnz == 0


def test_counts_are_estimated_where_the_idf_is_not_theirs() -> None:
    rng = np.random.default_rng(5)
    counts = csr_matrix(1 + rng.poisson(rng.dirichlet(np.full(200, 0.3), size=10) * 4000))
    weights = c_tf_idf(counts)
    totals = np.asarray(counts.sum(axis=1), np.float64).ravel()
    of_term = idf(np.asarray(counts.sum(axis=0), np.float64).ravel(), average_terms(totals))
    seeded = np.where(np.arange(200) < 5, 2.0, 1.0)  # seed words weigh double
    weights.data *= seeded[weights.indices]
    found = recover(weights, of_term * seeded, np.full(10, 50))
    assert not found.exact
    np.testing.assert_allclose(np.asarray(found.matrix.sum(axis=1)).ravel(), totals, rtol=0.05)


def test_documents_with_a_term_are_bounded_by_uses_and_size() -> None:
    found = documents_with(np.array([1, 5, 1000, 3, 1]), np.array([10, 1, 20, 100_000, 0]))
    assert found.tolist() == [1, 1, 20, 3, 1]
