"""Refinement's passes over one partition: apply a step to its vectors, write its assignments, summarise them."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable, Sequence
from functools import reduce
from operator import add
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from ray_actors.parts import Done, read_partition, to_matrix
from topicscale import refine as steps
from topicscale.errors import RequestError
from topicscale.store import write_part

Nearest = tuple[float, str, str, str]
"""A topic's candidate document: (-probability, doc_id, text_hash, partition_id)."""


def count(vectors: npt.NDArray[np.float32], references: npt.NDArray[np.float32], cutoffs: npt.NDArray[np.float32]) -> npt.NDArray[np.int64]:
    """Return how many rows each topic gets, int64 (k,)."""
    topics, _ = steps.assign(vectors, references, cutoffs)
    return np.bincount(topics[topics >= 0], minlength=len(references)).astype(np.int64)


def taken(vectors: npt.NDArray[np.float32], names: npt.NDArray[np.float32], min_similarity: float) -> npt.NDArray[np.int64]:
    """Return how many rows each name takes, and last how many none does, int64 (names + 1,).

    Raises
    ------
    RequestError
        The names' vectors are of another length than the documents'.
    """
    if vectors.shape[1] != names.shape[1]:
        raise RequestError(
            f"embedding.model must embed the names of zeroshot.topics in the documents' own space, of {vectors.shape[1]} dimensions. "
            f"Got vectors of {names.shape[1]} instead. Name the model that the documents were embedded with."
        )
    counts = count(vectors, names, np.full(len(names), min_similarity, np.float32))
    return np.append(counts, len(vectors) - counts.sum())


def rest(vectors: npt.NDArray[np.float32], names: npt.NDArray[np.float32], min_similarity: float, step: str, *arguments: Any) -> Any:
    """Return what a step makes of the rows that no name takes."""
    return STEPS[step](vectors[steps.rest(vectors, names, min_similarity)], *arguments)


STEPS: dict[str, Callable[..., Any]] = {
    "accumulate": steps.accumulate,
    "histogram": steps.histogram,
    "count": count,
    "taken": taken,
    "rest": rest,
}


def apply(*, step: str, arguments: tuple[Any, ...], store_uri: str, partition_ids: Sequence[str], embeddings_version: int) -> Any:
    """Return the sum of what a step of :mod:`topicscale.refine` makes of some partitions' vectors, one partition after another."""

    def one(partition_id: str) -> Any:
        rows = read_partition(store_uri, "embeddings", partition_id, ["doc_id", "vector"], embeddings_version)
        return STEPS[step](to_matrix(rows["vector"]), *arguments)

    return reduce(add, map(one, partition_ids))


def assign(
    *,
    references: npt.NDArray[np.float32],
    cutoffs: npt.NDArray[np.float32],
    named: npt.NDArray[np.bool_],
    store_uri: str,
    partition_id: str,
    embeddings_version: int,
) -> Done:
    """Write which topic each document of one partition belongs to."""
    rows = read_partition(store_uri, "embeddings", partition_id, ["doc_id", "vector"], embeddings_version)
    topics, probabilities = steps.assign(to_matrix(rows["vector"]), references, cutoffs, named=named)
    table = pa.table({"doc_id": rows["doc_id"], "topic_id": pa.array(topics), "probability": pa.array(probabilities)})
    return Done(
        len(topics), {"assignments": write_part(store_uri, "assignments", partition_id, table)}, {"outliers": int((topics < 0).sum())}
    )


def summarise(
    *,
    number: int,
    representatives: int,
    store_uri: str,
    partition_ids: Sequence[str],
    embeddings_version: int,
    assignments_version: int,
) -> tuple[steps.Sums, list[list[Nearest]]]:
    """Return some partitions' statistics of ``number`` topics, outliers first.

    Returns
    -------
    sums : Sums
        (number + 1,) counts and vector sums; row 0 is the outliers, row t + 1 topic t.
    nearest : list of list of Nearest
        For each topic the most probable documents with distinct texts, best first; equals go by ``doc_id``.
    """
    total: steps.Sums | None = None
    best: list[list[Nearest]] = [[] for _ in range(number)]
    for pid in partition_ids:
        embeddings = read_partition(store_uri, "embeddings", pid, ["doc_id", "text_hash", "vector"], embeddings_version)
        assigned = read_partition(store_uri, "assignments", pid, ["doc_id", "topic_id", "probability"], assignments_version)
        sums = steps.collect(to_matrix(embeddings["vector"]), assigned["topic_id"].to_numpy() + 1, number + 1)
        total = sums if total is None else total + sums
        best = nearer(best, nearest_in(assigned, embeddings["text_hash"], number, representatives, pid), representatives)
    assert total is not None
    return total, best


def nearest(
    *,
    number: int,
    representatives: int,
    store_uri: str,
    partition_ids: Sequence[str],
    embeddings_version: int,
    assignments_version: int,
) -> list[list[Nearest]]:
    """Return, for each topic, the most probable documents of some partitions, as :func:`summarise` does."""
    best: list[list[Nearest]] = [[] for _ in range(number)]
    for pid in partition_ids:
        hashes = read_partition(store_uri, "embeddings", pid, ["doc_id", "text_hash"], embeddings_version)["text_hash"]
        assigned = read_partition(store_uri, "assignments", pid, ["doc_id", "topic_id", "probability"], assignments_version)
        best = nearer(best, nearest_in(assigned, hashes, number, representatives, pid), representatives)
    return best


def nearer(held: Iterable[list[Nearest]], new: Iterable[list[Nearest]], number: int) -> list[list[Nearest]]:
    """Return the nearest ``number`` documents of each topic among two lots, with distinct texts.

    Ties go by id, so that the order partitions finish in, and how they are grouped, changes nothing.
    """
    return [_first(one, other, number) for one, other in zip(held, new, strict=True)]


def _first(one: list[Nearest], other: list[Nearest], number: int) -> list[Nearest]:
    if not one or not other:
        return one or other  # most topics are in few partitions
    distinct: dict[str, Nearest] = {}
    for candidate in sorted([*one, *other]):
        distinct.setdefault(candidate[2], candidate)
    return heapq.nsmallest(number, distinct.values())


def nearest_in(assigned: pa.Table, hashes: pa.ChunkedArray, number: int, representatives: int, partition_id: str) -> list[list[Nearest]]:
    """Return, for each topic, the most probable documents of one partition with distinct texts, best first."""
    topics, probabilities = assigned["topic_id"].to_numpy(), assigned["probability"].to_numpy()
    # doc_id order within equals: the sort is stable and rows come sorted by doc_id
    order = np.lexsort((-probabilities.astype(np.float64), topics))
    starts = np.searchsorted(topics[order], np.arange(number))
    found: list[list[Nearest]] = []
    for topic in range(number):
        chosen: dict[str, Nearest] = {}
        for row in order[starts[topic] :]:
            if topics[row] != topic or len(chosen) == representatives:
                break
            text = hashes[int(row)].as_py()
            chosen.setdefault(text, (-float(probabilities[row]), assigned["doc_id"][int(row)].as_py(), text, partition_id))
        found.append(list(chosen.values()))
    return found


def by_partition(nearest: Iterable[list[Nearest]]) -> list[tuple[str, list[str]]]:
    """Return the ids of documents by the partition that holds them, sorted by partition."""
    found: dict[str, list[str]] = {}
    for candidates in nearest:
        for _, doc_id, _, partition_id in candidates:
            found.setdefault(partition_id, []).append(doc_id)
    return sorted(found.items())


def vectors(*, store_uri: str, partition_id: str, embeddings_version: int, doc_ids: list[str]) -> dict[str, npt.NDArray[np.float32]]:
    """Return the vectors of some documents of one partition, by id."""
    rows = read_partition(store_uri, "embeddings", partition_id, ["doc_id", "vector"], embeddings_version)
    chosen = rows.filter(pa.compute.is_in(rows["doc_id"], value_set=pa.array(doc_ids, pa.string())))
    return dict(zip(chosen["doc_id"].to_pylist(), to_matrix(chosen["vector"]), strict=True))


def texts(
    *, store_uri: str, partition_id: str, documents_version: int, doc_ids: list[str], columns: list[str], characters: int | None = None
) -> dict[str, dict[str, Any]]:
    """Return columns of some documents of one partition, by id; of a text its first ``characters``."""
    rows = read_partition(store_uri, "documents", partition_id, ["doc_id", *columns], documents_version)
    chosen = rows.filter(pa.compute.is_in(rows["doc_id"], value_set=pa.array(doc_ids, pa.string())))
    if characters is not None:
        position = chosen.schema.get_field_index("text")
        chosen = chosen.set_column(position, "text", pa.compute.utf8_slice_codeunits(chosen["text"], 0, characters))
    return {row.pop("doc_id"): row for row in chosen.to_pylist()}
