"""Reduce and cluster one partition; fit the pilot that calibrates merging."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_actors.parts import Done, read_partition, to_list_array, to_matrix
from topicscale.cluster import cluster as cluster_vectors
from topicscale.cluster import local_statistics
from topicscale.config import ClusterConfig
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
) -> Done:
    """Write one partition's local topics and which document is in which."""
    embeddings = read_partition(store_uri, "embeddings", partition_id, ["doc_id", "vector"], embeddings_version)
    doc_ids = embeddings["doc_id"]
    vectors = to_matrix(embeddings["vector"])
    del embeddings
    result = cluster_vectors(vectors, config, min_cluster_size=min_cluster_size, fine=fine, threads=threads)
    sizes, sums, nearest = local_statistics(result.labels, vectors, representatives=representatives)
    assignments = pa.table({"doc_id": doc_ids, "local_topic": pa.array(result.labels), "probability": pa.array(result.probabilities)})
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
    return Done(len(vectors), files, {"topics": len(sizes), "noise": int((result.labels < 0).sum())})


def calibrate(*, vectors: npt.NDArray[np.float32], threads: int, **arguments: object) -> object:
    """Run :func:`topicscale.calibrate.pilot` on a worker."""
    from topicscale.calibrate import pilot

    return pilot(vectors, threads=threads, **arguments)  # type: ignore[arg-type]
