"""Embed one partition."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from ray_actors.parts import Done, read_partition, to_list_array, to_matrix
from topicscale.config import EmbeddingConfig
from topicscale.errors import PoisonedInput
from topicscale.files import Folder
from topicscale.store import write_part

if TYPE_CHECKING:
    from topicscale.embedding import Embedder


def embed(
    embedder: Callable[[], Embedder],
    progress: Callable[[int], None],
    *,
    config: EmbeddingConfig,
    store_uri: str,
    partition_id: str,
    documents_version: int,
    embeddings_version: int | None,
    space: str,
    reuse: str | None,
    precomputed: bool,
) -> Done:
    """Write the vectors of one partition's documents.

    Vectors that the store already holds for the same text in the same space are taken over; only the rest is
    embedded. The model is loaded when the first text needs it.

    Parameters
    ----------
    embeddings_version : int or None
        Where to look for this partition's older vectors.
    reuse : str or None
        Folder with vectors that other partitions held (see ``spark.reuse``).
    precomputed : bool
        Take the vectors from the documents' column ``embedding``.

    Raises
    ------
    PoisonedInput
        A vector is not finite, which would make every topic it touches meaningless.
    """
    columns = ["doc_id", "text_hash", "embedding" if precomputed else "text"]
    documents = read_partition(store_uri, "documents", partition_id, columns, documents_version)
    detail: dict[str, int] = {}
    if precomputed:
        vectors = _normalised(to_matrix(documents["embedding"]))
    else:
        hashes = documents["text_hash"].to_numpy(zero_copy_only=False)
        known = _known(store_uri, partition_id, embeddings_version, space, reuse, set(hashes.tolist()))
        missing = np.flatnonzero([value not in known for value in hashes]) if known else np.arange(len(hashes))
        detail["reused"] = len(hashes) - len(missing)
        fresh = np.zeros((0, 0), np.float32)
        if len(missing):
            # converted here and dropped at once: Python strings take several times the room of Arrow's
            encoded = embedder().encode(documents["text"].take(pa.array(missing)).to_pylist(), progress=progress)
            fresh = encoded.vectors
            detail |= {"embedded": len(missing), "truncated": encoded.truncated, "tokens": encoded.tokens}
        dimensions = fresh.shape[1] if len(missing) else len(next(iter(known.values()), ()))
        vectors = np.empty((len(hashes), dimensions), np.float32)
        if len(missing):
            vectors[missing] = fresh
        if known:
            for row in np.setdiff1d(np.arange(len(hashes)), missing):
                vectors[row] = known[hashes[row]]
    if not np.isfinite(vectors).all():
        bad = documents["doc_id"][int(np.flatnonzero(~np.isfinite(vectors).all(axis=1))[0])]
        raise PoisonedInput(f"The vector of document {bad} in partition {partition_id} is not finite.")
    rows = pa.table(
        {
            "doc_id": documents["doc_id"],
            "text_hash": documents["text_hash"],
            "space": pa.array([space] * documents.num_rows, pa.string()),
            "vector": to_list_array(vectors),
        }
    )
    return Done(rows.num_rows, {"embeddings": write_part(store_uri, "embeddings", partition_id, rows)}, detail)


def encode(embedder: Embedder, texts: list[str]) -> npt.NDArray[np.float32]:
    """Return the vectors of a few texts, float32 (n, d), each embedded alone: its bits depend on no other text."""
    return np.concatenate([embedder.encode([text]).vectors for text in texts])


def _known(
    store_uri: str, partition_id: str, version: int | None, space: str, reuse: str | None, wanted: set[str]
) -> dict[str, npt.NDArray[np.float32]]:
    """Return the vectors the store already has for these text hashes, in this space."""
    sources: list[pa.Table] = []
    if version is not None:
        rows = read_partition(store_uri, "embeddings", partition_id, ["text_hash", "space", "vector"], version)
        sources.append(rows.filter(pa.compute.equal(rows["space"], space)).select(["text_hash", "vector"]))
    if reuse is not None:
        files = Folder(reuse)
        for found in files.files(f"partition_id={partition_id}"):
            if not found.name.endswith(".parquet"):  # Spark leaves checksums beside
                continue
            with files.open(found.name) as file:
                sources.append(pq.read_table(file, columns=["text_hash", "vector"]))
    known: dict[str, npt.NDArray[np.float32]] = {}
    for source in sources:
        if source.num_rows:
            matrix = to_matrix(source["vector"])
            known |= {key: matrix[row] for row, key in enumerate(source["text_hash"].to_pylist()) if key in wanted}
    return known


def _normalised(vectors: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    length = np.sqrt(np.einsum("ij,ij->i", vectors, vectors, dtype=np.float64))[:, None]
    return np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 0, casting="unsafe")
