"""Sample documents' vectors from one partition, and place a sample on the map."""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_actors.parts import read_partition, to_matrix
from topicscale.refine import rest


def sample(
    *,
    store_uri: str,
    partition_id: str,
    embeddings_version: int,
    share: float,
    names: npt.NDArray[np.float32] | None = None,
    min_similarity: float = 0.0,
) -> tuple[list[str], npt.NDArray[np.float32]]:
    """Return ids and vectors of about ``share`` of one partition's documents, those left out that one of ``names`` takes.

    A document is in the sample by a hash of its id alone, so that the sample is the same however the corpus is
    partitioned.
    """
    rows = read_partition(store_uri, "embeddings", partition_id, ["doc_id", "vector"], embeddings_version)
    if share < 1.0:
        limit = int(share * 2**64)
        chosen = [i for i, doc_id in enumerate(rows["doc_id"].to_pylist()) if _position(doc_id) < limit]
        rows = rows.take(pa.array(chosen, pa.int64()))
    vectors = to_matrix(rows["vector"])
    if names is None or len(vectors) == 0:
        return rows["doc_id"].to_pylist(), vectors
    left = rest(vectors, names, min_similarity)
    return rows["doc_id"].take(pa.array(left)).to_pylist(), vectors[left]


def _position(doc_id: str) -> int:
    return int.from_bytes(hashlib.blake2b(doc_id.encode(), digest_size=8).digest(), "big")


def layout(*, vectors: npt.NDArray[np.float32], labels: npt.NDArray[np.int32], seed: int, threads: int) -> npt.NDArray[np.float32]:
    """Return map coordinates (n, 2) of sampled documents; see :mod:`topicscale.layout`."""
    from topicscale.layout import layout as place

    return place(vectors, labels, seed=seed, threads=threads)
