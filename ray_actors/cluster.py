"""Reduce and cluster one partition; fit the pilot that calibrates merging."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_actors.parts import Done, read_partition, to_list_array, to_matrix
from topicscale.cluster import cluster as cluster_vectors
from topicscale.cluster import local_statistics
from topicscale.config import ClusterConfig
from topicscale.refine import assign, rest
from topicscale.store import write_part


def cluster(
    *,
    config: ClusterConfig,
    store_uri: str,
    partition_id: str,
    embeddings_version: int,
    min_cluster_size: int,
    fine: bool,
    representatives: int,
    threads: int,
    names: npt.NDArray[np.float32] | None = None,
    min_similarity: float = 0.0,
    topics: npt.NDArray[np.float32] | None = None,
    limits: npt.NDArray[np.float32] | None = None,
) -> Done:
    """Write one partition's local topics and which document is in which.

    In no local topic are documents that one of ``names`` takes (see :func:`topicscale.refine.rest`), and those that ``topics``
    explain: whose cosine to the nearest of them is at least its limit.
    """
    embeddings = read_partition(store_uri, "embeddings", partition_id, ["doc_id", "vector"], embeddings_version)
    doc_ids = embeddings["doc_id"]
    vectors = to_matrix(embeddings["vector"])
    del embeddings
    labels, probabilities = np.full(len(vectors), -1, np.int32), np.zeros(len(vectors), np.float32)
    left = np.arange(len(vectors)) if names is None else rest(vectors, names, min_similarity)
    if topics is not None and limits is not None and len(topics) and len(left):
        left = left[assign(vectors[left], topics, limits)[0] < 0]
    result = cluster_vectors(vectors[left], config, min_cluster_size=min_cluster_size, fine=fine, threads=threads)
    labels[left], probabilities[left] = result.labels, result.probabilities
    sizes, sums, nearest = local_statistics(labels, vectors, representatives=representatives)
    assignments = pa.table({"doc_id": doc_ids, "local_topic": pa.array(labels), "probability": pa.array(probabilities)})
    ids = doc_ids.to_numpy(zero_copy_only=False)
    topics = pa.table(
        {
            "local_topic": pa.array(np.arange(len(sizes)), pa.int32()),
            "size": pa.array(sizes, pa.int64()),
            "vector_sum": to_list_array(sums),
            "representative_doc_ids": pa.array([[str(ids[row]) for row in rows] for rows in nearest], pa.list_(pa.string())),
        }
    )
    files = {
        "local_assignments": write_part(store_uri, "local_assignments", partition_id, assignments),
        "local_topics": write_part(store_uri, "local_topics", partition_id, topics),
    }
    detail = {"topics": len(sizes), "noise": int((result.labels < 0).sum())}
    return Done(len(vectors), files, detail if names is None else {**detail, "named": len(vectors) - len(result.labels)})


def calibrate(*, vectors: npt.NDArray[np.float32], threads: int, **arguments: object) -> object:
    """Run :func:`topicscale.calibrate.pilot` on a worker."""
    from topicscale.calibrate import pilot

    return pilot(vectors, threads=threads, **arguments)  # type: ignore[arg-type]
