"""Stages 4 and 5: local_topics -> merged topics -> frozen references -> assignments (driver and Ray)."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from jobs.job import Job
from jobs.stages.zeroshot import Names
from topicscale import merge as merging
from topicscale import refine as steps
from topicscale.config import NAME_CHARS


@dataclass(frozen=True)
class Local:
    """The local topics of all partitions, in (partition, topic) order."""

    partition_ids: list[str]
    topics: list[int]
    sizes: npt.NDArray[np.int64]
    vector_sums: npt.NDArray[np.float64]
    leaf: npt.NDArray[np.int64]
    """(rows,): the leaf that each local topic is."""
    leaves: merging.Leaves


@dataclass(frozen=True)
class Topics:
    """The finished topics: all that assignment needs, largest first."""

    keys: list[str]
    vectors: npt.NDArray[np.float32]
    cutoffs: npt.NDArray[np.float32]
    cores: npt.NDArray[np.float32]
    """(k,): see :class:`topicscale.refine.Reference`."""
    sizes: npt.NDArray[np.int64]
    merged: npt.NDArray[np.int64]
    """(k,): the merged topic each comes from; -1 for named ones, and for those that an update brought."""
    names: list[str]
    """The names given in advance; empty for topics that were found."""

    @property
    def named(self) -> npt.NDArray[np.bool_]:
        """(k,): whether a topic was named in advance."""
        return np.array([bool(name) for name in self.names], bool)


def read_local(job: Job) -> Local:
    """Return the store's local topics."""
    rows = job.store.read("local_topics", ["partition_id", "local_topic", "size", "vector_sum"])
    rows = rows.sort_by([("partition_id", "ascending"), ("local_topic", "ascending")])
    sizes = rows["size"].to_numpy()
    sums = _matrix(rows["vector_sum"])
    leaves, leaf = merging.Leaves.of(sizes, sums)
    return Local(rows["partition_id"].to_pylist(), rows["local_topic"].to_pylist(), sizes, sums, leaf, leaves)


def merge(job: Job, local: Local, *, partitions: int, height: float | None, named: int = 0) -> merging.Merged:
    """Return the merged topics; ``named`` topics of the number that is wanted are there already.

    ``partitions`` are all that there are: of several, each was clustered finely, also where only one could be.
    """
    topics = job.config.topics
    if topics.number is not None:
        return merging.merge(local.leaves, number=topics.number - named)
    if topics.similarity is not None:
        return merging.merge(local.leaves, similarity=topics.similarity)
    if partitions == 1 or height is None:
        return merging.collect(local.leaves, np.arange(len(local.leaves), dtype=np.int64))  # an ordinary single fit
    return merging.merge(local.leaves, height=height)


def print_of(job: Job, clustered: Mapping[str, str], height: float | None, names: Names | None) -> str:
    """Return the fingerprint of the refined topics."""
    beside = () if names is None else (names.fingerprint,)
    return job.print_of("refine", sorted(clustered.items()), height, job.config.topics, *beside)


def refine(job: Job, clustered: Mapping[str, str], rows: Mapping[str, int], height: float | None, names: Names | None) -> Topics:
    """Return the frozen topics: those found, refined on the documents that no name takes, and the named ones as they are.

    They are kept in the store's work folder: a run that is killed while it assigns goes on from there. Without the
    file they are computed again, to the same numbers.
    """
    fp = print_of(job, clustered, height, names)
    name = f"refine-{fp}.npz"
    if (kept := job.kept(name)) is not None:
        return _load(kept)
    began = time.monotonic()
    local = read_local(job)
    merged = merge(job, local, partitions=len(rows), height=height, named=0 if names is None else len(names.labels))
    over = job.over(clustered, rows, job.store.table("embeddings").version(), stage="refine")
    over = over if names is None else names.left_out(over)
    total = sum(rows[pid] for pid in clustered)
    found = steps.refine(
        over,
        merged.centroids,
        min_size=job.config.topics.min_size,
        rounds=job.config.topics.rounds,
        outliers=job.config.topics.outliers,
        core=job.config.topics.core,
    )
    counts = (
        sum(over("count", found.vectors, found.cutoffs), np.zeros(len(found.kept), np.int64)) if len(found.kept) else np.zeros(0, np.int64)
    )
    keys = [merged.keys[int(topic)] for topic in found.kept]
    result = Topics(keys, found.vectors, found.cutoffs, found.cores, counts, found.kept, [""] * len(keys))
    result = _ordered(result if names is None else _with_names(result, names))
    job.keep(name, **_arrays(result))
    job.whole(
        "refine",
        fp,
        rows=total,
        seconds=time.monotonic() - began,
        detail={"local": len(local.topics), "merged": merged.number, "topics": len(result.keys)},
    )
    return result


def _with_names(found: Topics, names: Names) -> Topics:
    number, width = len(names.labels), names.vectors.shape[1]
    return Topics(
        names.keys + found.keys,
        np.concatenate([names.vectors, found.vectors.reshape(-1, width)]),
        np.concatenate([np.full(number, names.min_similarity, np.float32), found.cutoffs]),
        np.concatenate([np.full(number, steps.ALL, np.float32), found.cores]),
        np.concatenate([names.sizes, found.sizes]),
        np.concatenate([np.full(number, -1, np.int64), found.merged]),
        names.labels + found.names,
    )


def _ordered(topics: Topics) -> Topics:
    order = sorted(range(len(topics.keys)), key=lambda i: (-int(topics.sizes[i]), topics.keys[i]))
    return Topics(
        [topics.keys[i] for i in order],
        topics.vectors[order],
        topics.cutoffs[order],
        topics.cores[order],
        topics.sizes[order],
        topics.merged[order],
        [topics.names[i] for i in order],
    )


def assign(job: Job, embedded: Mapping[str, str], rows: Mapping[str, int], topics: Topics, refined: str) -> list[str]:
    """Return the partitions that have their assignments, after writing what is missing."""
    return assign_to(job, assign_prints(job, embedded, refined), rows, topics)


def assign_to(job: Job, fingerprints: Mapping[str, str], rows: Mapping[str, int], topics: Topics) -> list[str]:
    """Return the partitions of ``fingerprints`` that have their assignments, after writing what is missing."""

    def prepare(pending: list[str]) -> Callable[[str], dict[str, Any]]:
        import ray

        references, cutoffs = ray.put(topics.vectors), ray.put(topics.cutoffs)
        version = job.store.table("embeddings").version()

        def arguments(partition_id: str) -> dict[str, Any]:
            return {
                "references": references,
                "cutoffs": cutoffs,
                "named": topics.named,
                "store_uri": job.store.uri,
                "partition_id": partition_id,
                "embeddings_version": version,
            }

        return arguments

    return job.run_units("assign", "assign", tables=["assignments"], fingerprints=fingerprints, rows=rows, prepare=prepare)


def assign_prints(job: Job, embedded: Mapping[str, str], refined: str) -> dict[str, str]:
    """Return each partition's fingerprint."""
    return {pid: job.print_of("assign", fp, refined) for pid, fp in embedded.items()}


def _arrays(topics: Topics) -> dict[str, npt.NDArray[Any]]:
    return {
        "keys": np.array(topics.keys, dtype="U32"),
        "vectors": topics.vectors,
        "cutoffs": topics.cutoffs,
        "cores": topics.cores,
        "sizes": topics.sizes,
        "merged": topics.merged,
        "names": np.array(topics.names, dtype=f"U{NAME_CHARS}"),
    }


def _load(kept: Mapping[str, npt.NDArray[Any]]) -> Topics:
    return Topics(
        kept["keys"].tolist(), kept["vectors"], kept["cutoffs"], kept["cores"], kept["sizes"], kept["merged"], kept["names"].tolist()
    )


def _matrix(column: pa.ChunkedArray) -> npt.NDArray[np.float64]:
    if len(column) == 0:
        return np.zeros((0, 0))
    array = pa.concat_arrays(column.chunks)
    values: npt.NDArray[np.float64] = array.flatten().to_numpy().reshape(len(array), -1)
    return values
