"""Sample documents' vectors from one partition, and place a sample on the map."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Sample:
    """Some documents, sorted by id."""

    doc_ids: list[str]
    partition_ids: list[str]
    vectors: npt.NDArray[np.float32]


def collect(found: Iterable[tuple[str, tuple[list[str], npt.NDArray[np.float32]]]], size: int) -> Sample:
    """Return at most ``size`` of the documents that :func:`sample` found in partitions, given with each partition's id."""
    ids: list[str] = []
    owners: list[str] = []
    parts: list[npt.NDArray[np.float32]] = []
    for pid, (chosen, vectors) in found:
        ids.extend(chosen)
        owners.extend([pid] * len(chosen))
        if len(chosen):
            parts.append(vectors)
    matrix = np.concatenate(parts) if parts else np.zeros((0, 0), np.float32)
    order = sorted(range(len(ids)), key=ids.__getitem__)[:size]
    return Sample([ids[i] for i in order], [owners[i] for i in order], matrix[order] if order else matrix)


def _position(doc_id: str) -> int:
    return int.from_bytes(hashlib.blake2b(doc_id.encode(), digest_size=8).digest(), "big")


def layout(*, vectors: npt.NDArray[np.float32], labels: npt.NDArray[np.int32], seed: int, threads: int) -> npt.NDArray[np.float32]:
    """Return map coordinates (n, 2) of sampled documents; see :mod:`topicscale.layout`."""
    from topicscale.layout import layout as place

    return place(vectors, labels, seed=seed, threads=threads)
