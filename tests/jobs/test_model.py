"""The Python API on real engines, against what BERTopic's users expect."""

from __future__ import annotations

import shutil

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest

from jobs.progress import Ui
from jobs.update import update
from tests import corpus
from topicscale import TopicModel
from topicscale.errors import InputError, RequestError, StoreError

ROWS = corpus.rows()
TEXTS = [text for _, text, _ in ROWS]
NEW = [
    "The goalkeeper was ready, so we had to save it near the penalty and then the second coach, number 999.",
    "The nurse was ready, so we had to inject it near the clinic and then the second vaccine, number 998.",
]


@pytest.fixture(scope="module")
def fitted(tmp_path_factory, spark, ray_layout) -> TopicModel:
    # no outliers: whether a new text is one is another question than which topic it is nearest to
    model = TopicModel(min_topic_size=8, config={"topics": {"outliers": 0.0}}, store=tmp_path_factory.mktemp("model") / "store")
    model.fit_transform(TEXTS)
    return model


def test_results_are_in_the_order_of_the_documents(fitted) -> None:
    info = fitted.get_document_info()
    assert info["Document"].tolist() == TEXTS
    assert info["Topic"].tolist() == fitted.topics_
    np.testing.assert_array_equal(info["Probability"].to_numpy(np.float32), fitted.probabilities_)
    pd.testing.assert_frame_equal(fitted.get_document_info(TEXTS), info)  # as BERTopic is asked
    with pytest.raises(RequestError, match=f"the {len(TEXTS)} documents of the store"):
        fitted.get_document_info(TEXTS[:3])
    inside = np.array(fitted.topics_) >= 0
    assert (fitted.probabilities_[inside] > 0).all()
    assert (fitted.probabilities_[~inside] == 0).all()


def test_topic_info_has_bertopics_columns_and_order(fitted) -> None:
    info = fitted.get_topic_info()
    assert info.columns.tolist() == ["Topic", "Count", "Name", "Representation", "Representative_Docs"]
    assert info["Topic"].tolist() == sorted(info["Topic"])
    assert info["Count"].sum() == len(TEXTS)
    topics = info[info["Topic"] >= 0]
    assert topics["Count"].is_monotonic_decreasing
    for row in topics.itertuples():
        assert row.Name == "_".join([str(row.Topic), *row.Representation[:4]])
        assert set(row.Representative_Docs) <= set(TEXTS)
    assert fitted.get_topic_info(0)["Topic"].tolist() == [0]
    assert fitted.representative_docs_ == dict(zip(info["Topic"], info["Representative_Docs"], strict=True))
    assert fitted.get_representative_docs() == fitted.representative_docs_
    assert fitted.get_representative_docs(0) == info["Representative_Docs"][info["Topic"] == 0].iloc[0]
    assert fitted.get_representative_docs(999) is None


def test_topics_and_their_weights(fitted) -> None:
    terms = fitted.get_topic(0)
    assert [word for word, _ in terms] == fitted.get_topic_info(0)["Representation"][0]
    assert [weight for _, weight in terms] == sorted((weight for _, weight in terms), reverse=True)
    assert fitted.get_topic(999) is False
    assert fitted.get_topics()[0] == terms
    assert fitted.get_topics(full=True)["Main"][0] == terms
    assert fitted.get_topic(0, full=True)["Main"] == terms
    frequency = fitted.get_topic_freq()
    assert frequency["Count"].sum() == len(TEXTS)
    assert fitted.get_topic_freq(0) == fitted.topic_sizes_[0]
    assert fitted.topic_embeddings_.shape == (len(frequency), 384)


@pytest.mark.parametrize("span", ["30 widgets", "soon", "-3D"])
def test_a_half_life_that_is_no_time_is_refused(fitted, span) -> None:
    with pytest.raises(RequestError, match="half_life must be a positive time"):
        fitted.get_topic_trends(half_life=span)


def test_new_documents_join_the_topic_of_their_theme(fitted) -> None:
    themes = {text: theme for _, text, theme in ROWS}
    theme_of: dict[int, str] = {}
    for topic in set(fitted.topics_) - {-1}:
        members = [themes[text] for text, found in zip(TEXTS, fitted.topics_, strict=True) if found == topic]
        theme_of[topic] = max(set(members), key=members.count)
    topics, probabilities = fitted.transform(NEW)
    assert [theme_of.get(topic) for topic in topics] == ["football", "medicine"]
    assert (probabilities > 0.3).all()
    assert fitted.transform([])[0] == []
    found, similarities = fitted.find_topics("rockets and planets", top_n=3)
    assert theme_of[found[0]] == "space"
    assert similarities == sorted(similarities, reverse=True)
    assert -1 not in found


def test_a_loaded_model_is_the_fitted_one(fitted) -> None:
    loaded = TopicModel.load(fitted.store)
    pd.testing.assert_frame_equal(loaded.get_topic_info(), fitted.get_topic_info())
    assert loaded.topics_ == fitted.topics_
    assert loaded.transform(TEXTS[:5])[0] == fitted.transform(TEXTS[:5])[0]


def test_precomputed_vectors_from_an_array(fitted, tmp_path) -> None:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(4, 32))
    kind = np.arange(200) % 4
    vectors = centres[kind] + 0.1 * rng.normal(size=(200, 32))
    model = TopicModel(min_topic_size=8, representation_model="mmr", store=tmp_path / "store")  # words beside words, whatever the vectors
    topics, _ = model.fit_transform([f"text number {i} of kind {k}" for i, k in enumerate(kind)], embeddings=vectors)
    assert "mmr" in model.get_topic(0, full=True)
    assert len(set(topics) - {-1}) >= 4
    assert all(len({k for k, found in zip(kind, topics, strict=True) if found == topic}) == 1 for topic in set(topics) - {-1})
    assert model.transform(["x"], embeddings=vectors[:1])[0] == topics[:1]
    with pytest.raises(RequestError, match="32 columns"):
        model.transform(["x"], embeddings=np.ones((1, 3)))


LONG = [pytest.param(kind, marks=pytest.mark.slow) for kind in ("series", "arrow", "path")]


@pytest.mark.parametrize("kind", ["frame", "spark", *LONG])
def test_documents_of_every_kind(kind, tmp_path, spark, ray_layout) -> None:
    rows = ROWS[:60]
    frame = pd.DataFrame(rows, columns=["id", "text", "theme"])
    documents = {
        "frame": lambda: frame,
        "series": lambda: frame["text"],
        "arrow": lambda: pa.Table.from_pandas(frame),
        "spark": lambda: spark.createDataFrame(rows, "id string, text string, theme string"),
        "path": lambda: str(corpus.write_csv(tmp_path / "c.csv", rows)),
    }[kind]()
    model = TopicModel(min_topic_size=5, store=tmp_path / "store")
    topics, _ = model.fit_transform(documents)
    info = model.get_document_info()
    assert len(topics) == len(info) == 60
    assert sorted(info["Document"]) == sorted(frame["text"])
    if kind in ("frame", "arrow"):
        assert info["theme"].tolist() == frame["theme"].tolist()


def test_refused_documents_are_outliers_and_are_kept_aside(tmp_path, spark, ray_layout) -> None:
    model = TopicModel(min_topic_size=5, store=tmp_path / "store")
    texts = [*TEXTS[:40], "", None, "   "]
    topics, probabilities = model.fit_transform(texts)
    assert len(topics) == 43
    assert topics[40:] == [-1, -1, -1]
    assert probabilities[40:].tolist() == [0.0, 0.0, 0.0]


def test_bertopics_sub_models_become_configuration() -> None:
    from bertopic.vectorizers import ClassTfidfTransformer
    from hdbscan import HDBSCAN
    from sklearn.feature_extraction.text import CountVectorizer
    from umap import UMAP

    model = TopicModel(
        umap_model=UMAP(n_neighbors=15, n_components=5, min_dist=0.0, metric="cosine", random_state=42),
        hdbscan_model=HDBSCAN(min_cluster_size=20, metric="euclidean", cluster_selection_method="eom", prediction_data=True),
        vectorizer_model=CountVectorizer(ngram_range=(1, 2), stop_words="english", min_df=2),
        ctfidf_model=ClassTfidfTransformer(reduce_frequent_words=True),
        nr_topics="auto",
    ).config
    assert (model.cluster.reduction, model.cluster.algorithm) == ("umap", "hdbscan")
    assert model.cluster.reduction_params["min_dist"] == 0.0
    assert model.topics.min_size == 20
    assert (model.terms.ngram_range, model.terms.min_df, model.terms.reduce_frequent_words) == ((1, 2), 2, True)
    assert model.topics.number is None


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        ({"language": "klingon"}, "klingon"),
        ({"min_topic_size": 1}, "min_size"),
        ({"umap_model": object()}, "get_params"),
        ({"embedding_model": object()}, "embedding_model"),
        ({"config": "nowhere.yaml"}, "nowhere.yaml"),
    ],
)
def test_wrong_parameters_are_refused_when_they_are_given(arguments, hint) -> None:
    with pytest.raises(RequestError, match=hint):
        TopicModel(**arguments)


@pytest.mark.parametrize(
    ("documents", "embeddings", "hint"),
    [
        ([1, 2], None, "Document 0 is a int"),
        (42, None, "Got int"),
        (["a", "b"], np.ones((3, 2)), "3 rows for 2"),
        (["a"], np.array([[np.nan]]), "finite"),
        (["a"], np.zeros((1, 2)), "zero"),
        ("/nowhere/at/all.csv", None, "nowhere"),
    ],
)
def test_wrong_documents_are_refused_before_anything_starts(documents, embeddings, hint) -> None:
    with pytest.raises(InputError, match=hint):
        TopicModel().fit_transform(documents, embeddings)


def test_an_unfitted_model_says_so() -> None:
    with pytest.raises(StoreError, match="not fitted"):
        TopicModel().get_topic_info()


def test_a_store_that_was_fitted_on_a_list_takes_a_batch_from_a_file(fitted, tmp_path) -> None:
    store = shutil.copytree(fitted.store, tmp_path / "store")
    batch = corpus.write_csv(tmp_path / "new.csv", corpus.rows(seed=8)[:20])
    assert update([str(batch)], store, ui=Ui("quiet"))["documents"] == 20
    assert len(TopicModel.load(store).topics_) == len(TEXTS) + 20
