"""Clustering one partition: what breaks, and what must not depend on anything."""

from __future__ import annotations

import sys
import types
from typing import Any

import numpy as np
import pytest

from topicscale.algorithms import check_device, predict
from topicscale.cluster import FLOOR, Clustering, check, cluster, exact, local_min_cluster_size, local_statistics, micro, unit
from topicscale.config import ClusterConfig, load
from topicscale.errors import ConfigError, MissingDependency, ResourceError

KMEANS = ClusterConfig(algorithm="kmeans", params={"n_clusters": 5})


def blobs(topics: int, each: int, *, d: int = 32, spread: float = 0.05, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Unit vectors around random directions, and which direction each is from."""
    random = np.random.default_rng(seed)
    centres = unit(random.normal(size=(topics, d)))
    true = np.repeat(np.arange(topics), each)
    rows = unit(centres[true] + spread * random.normal(size=(topics * each, d)))
    order = random.permutation(len(true))
    return rows[order].astype(np.float32), true[order]


def well_formed(result: Clustering, n: int) -> None:
    assert result.labels.shape == result.probabilities.shape == (n,)
    assert result.labels.dtype == np.int32
    assert result.probabilities.dtype == np.float32
    sizes = np.bincount(result.labels[result.labels >= 0], minlength=result.number)
    assert (sizes > 0).all()
    assert (np.diff(sizes) <= 0).all()
    assert (result.probabilities[result.labels < 0] == 0).all()
    assert ((result.probabilities >= 0) & (result.probabilities <= 1)).all()


# fast_hdbscan compiles its kernels anew in every process: most of a minute
@pytest.mark.parametrize("algorithm", ["evoc", "hdbscan", pytest.param("fast_hdbscan", marks=pytest.mark.slow), "kmeans"])
def test_every_algorithm_finds_clear_topics_and_repeats_itself(algorithm: str) -> None:
    vectors, true = blobs(5, 60)
    config = ClusterConfig(algorithm=algorithm, params={"n_clusters": 5} if algorithm == "kmeans" else {})
    result = cluster(vectors, config, min_cluster_size=10)
    well_formed(result, len(vectors))
    inside = result.labels >= 0
    assert inside.mean() > 0.5
    for topic in range(result.number):
        members = true[result.labels == topic]
        assert (members == np.bincount(members).argmax()).mean() > 0.9
    again = cluster(vectors, config, min_cluster_size=10)
    assert (again.labels == result.labels).all()


@pytest.mark.parametrize("algorithm", ["evoc", "hdbscan", "fast_hdbscan", "kmeans"])
@pytest.mark.parametrize("fine", [False, True])
def test_tiny_partitions_never_raise(algorithm: str, fine: bool) -> None:
    for n in (0, 1, 2, 3, FLOOR - 1, FLOOR, FLOOR + 1, 40):
        vectors = blobs(1, max(n, 1), spread=1.0)[0][:n]
        well_formed(cluster(vectors, ClusterConfig(algorithm=algorithm), min_cluster_size=10, fine=fine), n)


def test_evoc_labels_do_not_depend_on_threads() -> None:
    vectors, _ = blobs(8, 50, spread=0.2)
    one = cluster(vectors, ClusterConfig(), min_cluster_size=5, threads=1)
    two = cluster(vectors, ClusterConfig(), min_cluster_size=5, threads=2)
    assert (one.labels == two.labels).all()


def test_identical_texts_are_one_topic_if_enough_and_noise_if_not() -> None:
    vectors = np.repeat(blobs(1, 1)[0], 30, axis=0)
    assert (cluster(vectors, ClusterConfig(), min_cluster_size=10).labels == 0).all()
    assert (cluster(vectors[:9], ClusterConfig(), min_cluster_size=10).labels == -1).all()


def test_identical_vectors_share_a_label() -> None:
    vectors, _ = blobs(4, 40, spread=0.3)
    doubled = np.concatenate([vectors, vectors, vectors])
    for fine in (False, True):
        labels = cluster(doubled, ClusterConfig(), min_cluster_size=5, fine=fine).labels.reshape(3, -1)
        assert (labels == labels[0]).all()


def test_a_text_sent_often_is_a_topic_though_nothing_is_near_it() -> None:
    vectors, _ = blobs(3, 60)
    lonely = -unit(vectors.sum(axis=0, keepdims=True)).astype(np.float32)
    result = cluster(np.concatenate([vectors, np.repeat(lonely, 12, axis=0)]), ClusterConfig(), min_cluster_size=10)
    assert result.labels[-1] >= 0


def test_fine_clustering_of_a_small_partition_leaves_no_noise_and_keeps_topics_apart() -> None:
    vectors, true = blobs(20, 6)
    result = cluster(vectors, ClusterConfig(), min_cluster_size=3, fine=True)
    well_formed(result, len(vectors))
    assert (result.labels >= 0).all()
    for topic in range(result.number):
        assert len(set(true[result.labels == topic])) == 1


def test_micro_clusters_are_about_as_large_as_asked() -> None:
    vectors, _ = blobs(1, 100, spread=1.0)
    assert micro(vectors, np.ones(100, np.int64), size=4).max() + 1 == 25


@pytest.mark.parametrize("reduction", ["pca", "umap"])
def test_reductions(reduction: str) -> None:
    vectors, true = blobs(3, 40)
    result = cluster(vectors, ClusterConfig(reduction=reduction, algorithm="hdbscan"), min_cluster_size=10)
    well_formed(result, len(vectors))
    assert result.number >= 3
    assert all(len(set(true[result.labels == topic])) == 1 for topic in range(result.number))


def test_any_class_by_import_path() -> None:
    config = ClusterConfig(
        reduction="sklearn.decomposition.TruncatedSVD",
        reduction_params={"n_components": 4},
        algorithm="sklearn.cluster.AgglomerativeClustering",
        params={"n_clusters": 4},
    )
    check(config)
    assert cluster(blobs(4, 20)[0], config, min_cluster_size=5).number == 4


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (ClusterConfig(algorithm="dbscan"), "evoc, hdbscan"),
        (ClusterConfig(reduction="tsne"), "none, pca, umap"),
        (ClusterConfig(algorithm="no.such.Thing"), "cannot be imported"),
        (ClusterConfig(algorithm="sklearn.decomposition.PCA"), "has no fit_predict"),
        (ClusterConfig(algorithm="__main__.Mine"), "put the class into a module that workers can import"),
        (ClusterConfig(reduction="mine.<locals>.Mine"), "put the class into a module that workers can import"),
        (
            ClusterConfig(algorithm="kmeans", params={"n_cluster": 9}),
            "parameters of kmeans. Got 'n_cluster' instead. Did you mean 'n_clusters'",
        ),
        (ClusterConfig(algorithm="sklearn.cluster.DBSCAN", params={"foo": 9}), "It takes eps, min_samples"),
        (ClusterConfig(reduction="pca", reduction_params={"n_neighbors": 9}), "parameters of pca"),
        (ClusterConfig(algorithm="hdbscan", params={"min_cluster_size": 9}), "topics.min_size"),
        (ClusterConfig(params={"base_min_cluster_size": 9}), "cluster.min_cluster_size"),
    ],
)
def test_wrong_names_are_refused_with_what_is_known(config: ClusterConfig, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        check(config)


def test_cuml_names_its_extra() -> None:
    pytest.importorskip("numpy")
    import importlib.util

    if importlib.util.find_spec("cuml"):
        pytest.skip("cuml is installed")
    with pytest.raises(MissingDependency, match=r"topicscale\[gpu\]"):
        check(ClusterConfig(algorithm="cuml_hdbscan"))


@pytest.mark.parametrize("values", [{"reduction": "cuml_umap"}, {"algorithm": "cuml_hdbscan"}])
def test_cuml_without_a_gpu_is_refused_with_what_does_without(values) -> None:
    check_device(ClusterConfig(), 0)
    check_device(ClusterConfig(**values), 0.5)
    ((key, value),) = values.items()
    with pytest.raises(ResourceError, match=f"cluster.{key}={value} needs a GPU.*cluster.{key}={value.removeprefix('cuml_')}"):
        check_device(ClusterConfig(**values), 0)


def test_cuml_is_asked_for_no_more_neighbours_than_it_takes(monkeypatch) -> None:
    """Its HDBSCAN refuses ``min_samples`` beyond 1023, which is the smallest topic unless said otherwise."""
    asked: dict[str, Any] = {}

    class Refusing:
        def __init__(self, **params: Any) -> None:
            asked.update(params)
            if not 1 <= params["min_samples"] <= 1023:
                raise ValueError("HDBSCAN requires `1 <= min_samples <= 1023`")

        def fit_predict(self, rows: Any) -> Any:
            return np.zeros(len(rows), np.int64)

    monkeypatch.setitem(sys.modules, "cuml", types.ModuleType("cuml"))
    monkeypatch.setitem(sys.modules, "cuml.cluster", types.SimpleNamespace(HDBSCAN=Refusing))
    rows = np.random.default_rng(0).normal(size=(5000, 8)).astype(np.float32)
    labels, _ = predict(rows, ClusterConfig(algorithm="cuml_hdbscan", reduction="none"), 2000, False)
    assert (labels == 0).all()
    assert (asked["min_cluster_size"], asked["min_samples"]) == (2000, 1023)


def test_the_preset_is_valid() -> None:
    config = load(file="bertopic")
    check(config.cluster)
    assert config.cluster.algorithm == "hdbscan"


def test_local_minimum_size() -> None:
    config = ClusterConfig()
    assert local_min_cluster_size(config, 10, documents=5000, partitions=1) == 10
    assert local_min_cluster_size(config, 10, documents=100_000, partitions=4) == 5
    assert local_min_cluster_size(config, 10, documents=10_000, partitions=64) == 2
    assert local_min_cluster_size(config, 10, documents=300_000, partitions=512) == 10
    assert local_min_cluster_size(ClusterConfig(min_cluster_size=7), 10, documents=10_000, partitions=64) == 7


def test_statistics_are_exact_whatever_the_order() -> None:
    vectors, _ = blobs(3, 50, spread=0.5)
    labels = np.arange(150) % 4 - 1
    sizes, sums, nearest = local_statistics(labels, vectors, representatives=2)
    order = np.random.default_rng(1).permutation(150)
    again = local_statistics(labels[order], vectors[order])
    assert sizes.tolist() == [38, 37, 37] == again[0].tolist()
    assert (sums == again[1]).all()
    halves = [local_statistics(labels[part], vectors[part])[1] for part in (slice(0, 70), slice(70, 150))]
    assert (halves[0] + halves[1] == sums).all()
    for topic, rows in enumerate(nearest):
        similarity = vectors @ unit(sums)[topic]
        assert rows[0] == np.flatnonzero(labels == topic)[similarity[labels == topic].argmax()]


def test_statistics_without_topics() -> None:
    sizes, sums, nearest = local_statistics(np.full(5, -1), np.ones((5, 3), np.float32))
    assert sizes.shape == (0,)
    assert sums.shape == (0, 3)
    assert nearest == []


def test_exact_stays_within_a_billionth() -> None:
    vectors, _ = blobs(2, 20, spread=1.0)
    assert np.abs(exact(vectors) - vectors).max() < 1e-9
