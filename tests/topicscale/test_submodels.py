"""BERTopic's sub-model objects, as configuration."""

from __future__ import annotations

import inspect

import bertopic
import numpy as np
import pytest
from bertopic.cluster import BaseCluster
from bertopic.vectorizers import ClassTfidfTransformer, OnlineCountVectorizer
from evoc import EVoC
from hdbscan import HDBSCAN
from sklearn.cluster import OPTICS, KMeans
from sklearn.decomposition import PCA
from sklearn.feature_extraction.text import CountVectorizer
from umap import UMAP

from topicscale import TopicModel
from topicscale.algorithms import check, predict
from topicscale.bertopic.lacking import ATTRIBUTES, PARAMETERS
from topicscale.config import ClusterConfig, load
from topicscale.errors import RequestError, StoreError
from topicscale.submodels import configuration


@pytest.mark.parametrize(
    ("reduction", "params"),
    [
        (UMAP(n_components=2, metric="euclidean", min_dist=0.1), {"n_components": 2, "metric": "euclidean", "min_dist": 0.1}),
        (UMAP(n_neighbors=30), {"n_neighbors": 30, "n_components": 2, "metric": "euclidean", "min_dist": 0.1}),
        (PCA(), {"n_components": None}),
    ],
)
def test_a_value_that_is_the_classs_own_is_taken_where_ours_is_another(reduction, params) -> None:
    assert configuration(None, reduction, None, None, None)["cluster"]["reduction_params"] == params


@pytest.mark.parametrize(
    ("algorithm", "params"),
    [
        (KMeans(n_clusters=8), {"n_clusters": 8, "n_init": "auto"}),
        (HDBSCAN(), {"metric": "euclidean", "cluster_selection_method": "eom"}),
        (HDBSCAN(cluster_selection_method="leaf"), {"metric": "euclidean", "cluster_selection_method": "leaf"}),
    ],
)
def test_parameters_that_were_given_are_kept(algorithm, params) -> None:
    assert configuration(None, None, algorithm, None, None)["cluster"]["params"] == params


@pytest.mark.parametrize(("algorithm", "size"), [(HDBSCAN(min_cluster_size=80), 80), (HDBSCAN(), 5), (EVoC(base_min_cluster_size=7), 7)])
def test_the_smallest_cluster_is_the_smallest_topic(algorithm, size) -> None:
    found = TopicModel(hdbscan_model=algorithm, min_topic_size=30).config  # BERTopic's min_topic_size gives way to the object, too
    assert found.topics.min_size == size
    assert not {"min_cluster_size", "base_min_cluster_size"} & found.cluster.params.keys()


def test_a_size_that_is_none_or_a_share_is_the_classs_own_business() -> None:
    assert "min_cluster_size" not in TopicModel(hdbscan_model=OPTICS()).config.cluster.params
    assert TopicModel(hdbscan_model=OPTICS(min_cluster_size=0.05)).config.cluster.params["min_cluster_size"] == 0.05
    emptied = ClusterConfig(algorithm="hdbscan", params={"min_cluster_size": None})  # as a store's is with =null
    rows = np.random.default_rng(0).normal(size=(60, 4)).astype(np.float32)
    assert len(predict(rows, emptied, 5, False)[0]) == 60


@pytest.mark.parametrize(
    ("vectorizer", "transformer", "named"),
    [
        (CountVectorizer(analyzer=str.split), None, "analyzer"),
        (CountVectorizer(token_pattern="[a-z]+"), None, "token_pattern"),
        (CountVectorizer(max_df=0.5), None, "max_df"),
        (CountVectorizer(max_df=1), None, "max_df"),
        (CountVectorizer(vocabulary=np.array(["oil", "gas"])), None, "vocabulary"),
        (CountVectorizer(max_features=1000), None, "max_features"),
        (CountVectorizer(strip_accents="unicode"), None, "strip_accents"),
        (CountVectorizer(tokenizer=str.split), None, "tokenizer"),
        (CountVectorizer(binary=True), None, "binary"),
        (None, ClassTfidfTransformer(seed_words=["oil"]), "seed_words"),
    ],
)
def test_what_cannot_be_met_is_refused_by_name(vectorizer, transformer, named) -> None:
    with pytest.raises(RequestError, match=named):
        configuration(None, None, None, vectorizer, transformer)


def test_an_array_as_a_parameter_is_refused_by_name() -> None:
    with pytest.raises(RequestError, match="init=array"):
        configuration(None, None, KMeans(n_clusters=2, init=np.eye(2)), None, None)


def test_a_plain_vectorizer_asks_for_nothing_that_cannot_be_met() -> None:
    found = configuration(None, None, None, CountVectorizer(min_df=2), ClassTfidfTransformer(bm25_weighting=True))
    assert found["terms"]["min_df"] == 2
    assert found["terms"]["bm25_weighting"] is True


def test_an_objects_parameters_are_all_it_has() -> None:
    model = TopicModel(config="bertopic", hdbscan_model=KMeans(n_clusters=50), umap_model=PCA(n_components=5))
    assert model.config.cluster.params == {"n_clusters": 50, "n_init": "auto"}
    assert model.config.cluster.reduction_params == {"n_components": 5}
    same = TopicModel(config="bertopic", hdbscan_model=HDBSCAN(min_cluster_size=5, metric="l1"))
    assert same.config.cluster.params["metric"] == "l1"
    assert same.config.cluster.reduction == "umap"


def test_a_number_that_is_to_be_found_is_not_the_configurations() -> None:
    assert TopicModel(config={"topics": {"number": 50}}, nr_topics="auto").config.topics.number is None
    assert TopicModel(config={"topics": {"number": 50}}).config.topics.number == 50


def test_languages_give_way_to_what_is_given(tmp_path) -> None:
    chosen = {"terms": {"stop_words": ["der", "die"]}, "embedding": {"model": "BAAI/bge-m3"}}
    file = tmp_path / "mine.yaml"
    file.write_text("terms: {stop_words: [der, die]}\nembedding: {model: BAAI/bge-m3}\n")
    for language in ("multilingual", "english", None):
        for config in (chosen, file, load(values=chosen)):
            found = TopicModel(language=language, config=config).config
            assert (found.embedding.model, found.terms.stop_words) == ("BAAI/bge-m3", ("der", "die"))
    plain = TopicModel(language="multilingual").config
    assert (plain.embedding.model.rpartition("/")[2], plain.terms.stop_words) == ("paraphrase-multilingual-MiniLM-L12-v2", None)
    assert TopicModel(language="multilingual", embedding_model="all-MiniLM-L6-v2").config.embedding.model == "all-MiniLM-L6-v2"


def test_a_loaded_model_is_known_by_its_folder_unless_it_was_trained(tmp_path) -> None:
    from sentence_transformers import SentenceTransformer

    from topicscale.models import resolve

    folder = str(resolve("all-MiniLM-L6-v2").path)
    model = SentenceTransformer(folder, local_files_only=True)
    assert TopicModel(embedding_model=model).config.embedding.model == folder
    model.model_card_data.training_logs.append({"Step": 1, "Training Loss": 0.5})
    with pytest.raises(RequestError, match="trained in this process"):
        TopicModel(embedding_model=model)


def test_parameters_that_a_count_vectorizer_has_not_are_refused_where_they_are_given() -> None:
    with pytest.raises(RequestError, match="decay cannot be used"):
        configuration(None, None, None, OnlineCountVectorizer(decay=0.1), None)
    with pytest.raises(RequestError, match="token_pattern cannot be used"):
        configuration(None, None, None, OnlineCountVectorizer(token_pattern="x"), None)
    terms = configuration(None, None, None, OnlineCountVectorizer(ngram_range=(1, 2), stop_words="english"), None)["terms"]
    assert (terms["ngram_range"], terms["stop_words"]) == ([1, 2], "english")


def test_numbers_and_names_of_numpy_are_numbers_and_names() -> None:
    found = TopicModel(nr_topics=np.int64(5), min_topic_size=np.int32(7), zeroshot_topic_list=np.array(["a", "b"])).config
    assert (found.topics.number, found.topics.min_size, found.zeroshot.topics) == (5, 7, ("a", "b"))
    given = TopicModel(vectorizer_model=CountVectorizer(min_df=np.int64(2)), hdbscan_model=KMeans(n_clusters=np.int64(5))).config
    assert (given.terms.min_df, given.cluster.params["n_clusters"]) == (2, 5)
    assert TopicModel(zeroshot_min_similarity=np.float32(0.5)).config.zeroshot.min_similarity == 0.5


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"n_gram_range": 3}, "n_gram_range must be two numbers"),
        ({"config": [1]}, "config must be a file"),
        ({"config": {"terms": 3}, "top_n_words": 5}, "terms must be a mapping"),
        ({"config": {"terms": 3}, "language": "multilingual"}, "terms must be a mapping"),
        ({"language": "klingon"}, "multilingual stands for the others"),
    ],
)
def test_wrong_arguments_are_named(given, said) -> None:
    with pytest.raises(RequestError, match=said):
        TopicModel(**given)


def test_classes_of_one_name_are_told_by_their_package() -> None:
    from sklearn.cluster import HDBSCAN as Sklearns

    found = TopicModel(hdbscan_model=Sklearns(min_cluster_size=20, n_jobs=2)).config
    assert (found.cluster.algorithm, found.topics.min_size) == ("sklearn.cluster._hdbscan.hdbscan.HDBSCAN", 20)
    assert found.cluster.params["n_jobs"] == 2
    check(found.cluster)
    assert TopicModel(hdbscan_model=HDBSCAN()).config.cluster.algorithm == "hdbscan"


def test_a_class_of_this_process_alone_is_refused() -> None:
    class Mine(KMeans):
        pass

    found = TopicModel(hdbscan_model=Mine(n_clusters=3))
    with pytest.raises(RequestError, match="put the class into a module that workers can import"):
        found.fit(["a text"] * 20)


def test_a_reduction_alone_is_clustered_as_bertopic_does() -> None:
    assert TopicModel(umap_model=UMAP()).config.cluster.algorithm == "hdbscan"
    assert TopicModel(umap_model=UMAP(), config={"cluster": {"algorithm": "evoc"}}).config.cluster.algorithm == "evoc"
    assert TopicModel().config.cluster.algorithm == "evoc"


def test_a_folder_is_an_embedding_model_as_a_path_too(tmp_path) -> None:
    assert TopicModel(embedding_model=tmp_path).config.embedding.model == str(tmp_path)


def test_what_bertopic_has_and_is_lacking_here_says_what_serves(tmp_path) -> None:
    model = TopicModel(calculate_probabilities=False, low_memory=None, seed_topic_list=None)  # ask for nothing
    for given, said in (
        ({"calculate_probabilities": True}, "one probability a document"),
        ({"seed_topic_list": [["oil"]]}, "zeroshot_topic_list"),
        ({"hdbscan_model": BaseCluster()}, "finetune"),
    ):
        with pytest.raises(RequestError, match=said):
            TopicModel(**given)
    with pytest.raises(RequestError, match="y cannot be used"):
        model.fit_transform(["a text"], y=[1])
    with pytest.raises(TypeError, match="'min_topics'"):
        TopicModel(min_topics=5)
    theirs = {name for name in dir(bertopic.BERTopic()) if not name.startswith("_")}
    assert not theirs - set(dir(TopicModel)) - ATTRIBUTES.keys() - PARAMETERS.keys() - inspect.signature(TopicModel).parameters.keys()
    for name in ATTRIBUTES:
        assert not hasattr(model, name)
    with pytest.raises(AttributeError, match="topicscale report"):
        model.visualize_topics()
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        model.nothing()
    (tmp_path / "topics.json").write_text("{}")
    with pytest.raises(StoreError, match="from_bertopic"):
        TopicModel.load(tmp_path)


def test_a_store_without_a_name_is_of_this_machine_alone() -> None:
    for engines in ({"spark": {"remote": "sc://127.0.0.1:1"}}, {"ray": {"address": "10.0.0.1:6379"}}):
        with pytest.raises(RequestError, match="store must be a folder that all machines reach"):
            TopicModel(config=engines).fit(["a text"])


def test_english_by_any_name_and_a_preset_beside_a_folder_of_its_name(tmp_path, monkeypatch) -> None:
    assert TopicModel(language="English").config == TopicModel(language="en").config == TopicModel().config
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bertopic").mkdir()  # what to_bertopic("bertopic") leaves
    assert TopicModel(config="bertopic").config.cluster.reduction == "umap"
    with pytest.raises(RequestError, match="must be a list or a dict"):
        TopicModel.merge("news")
