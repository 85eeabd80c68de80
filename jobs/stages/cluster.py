"""Stage 3: embeddings -> local_assignments, local_topics; and the pilot that calibrates merging (Ray)."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from jobs.job import Job, Partition
from ray_actors.pool import Unit
from topicscale.calibrate import SAMPLE, Pilot
from topicscale.cluster import local_min_cluster_size
from topicscale.errors import JobFailed
from topicscale.store import says
from topicscale.tables import TABLES

REPRESENTATIVES = 3
"""Documents that ``local_topics`` names for each local topic."""


def prints_of(job: Job, partitions: list[Partition], embedded: dict[str, str]) -> dict[str, str]:
    """Return the fingerprint of each partition in ``embedded`` (partition -> embed fingerprint)."""
    return prints_for(job, embedded, size=min_cluster_size(job, partitions), fine=_fine(job, partitions))


def prints_for(job: Job, embedded: dict[str, str], *, size: int, fine: bool) -> dict[str, str]:
    """Return the fingerprint of each partition in ``embedded``, clustered with a given smallest local topic."""
    return {pid: job.print_of("cluster", fp, job.config.cluster, size, fine, REPRESENTATIVES) for pid, fp in embedded.items()}


def _fine(job: Job, partitions: list[Partition]) -> bool:
    """Whether local topics will be merged: then they are made finer than the topics that are wanted."""
    topics = job.config.topics
    return len(partitions) > 1 or topics.number is not None or topics.similarity is not None


def min_cluster_size(job: Job, partitions: list[Partition]) -> int:
    """Return the smallest local topic."""
    documents = sum(p.rows for p in partitions)
    return local_min_cluster_size(job.config.cluster, job.config.topics.min_size, documents=documents, partitions=len(partitions))


def cluster(job: Job, partitions: list[Partition], embedded: dict[str, str]) -> list[str]:
    """Return the partitions that have their local topics, after clustering what is missing."""
    fingerprints = prints_of(job, partitions, embedded)
    rows = {p.partition_id: p.rows for p in partitions}
    return cluster_for(job, fingerprints, rows, size=min_cluster_size(job, partitions), fine=_fine(job, partitions))


def cluster_for(job: Job, fingerprints: dict[str, str], rows: dict[str, int], *, size: int, fine: bool) -> list[str]:
    """Return the partitions of ``fingerprints`` that have their local topics, after clustering what is missing."""

    def prepare(pending: list[str]) -> Callable[[str], dict[str, Any]]:
        version = job.store.table("embeddings").version()

        def arguments(partition_id: str) -> dict[str, Any]:
            return {
                "config": job.config.cluster,
                "store_uri": job.store.uri,
                "partition_id": partition_id,
                "embeddings_version": version,
                "min_cluster_size": size,
                "fine": fine,
                "representatives": REPRESENTATIVES,
            }

        return arguments

    return job.run_units(
        "cluster", "cluster", tables=["local_assignments", "local_topics"], fingerprints=fingerprints, rows=rows, prepare=prepare
    )


def pilot_print(job: Job, embedded: dict[str, str], partitions: int) -> str:
    """Return the fingerprint of the pilot."""
    topics = job.config.topics
    return job.print_of("calibrate", sorted(embedded.items()), job.config.cluster, topics.min_size, topics.rounds, partitions)


def calibrate(job: Job, partitions: list[Partition], embedded: dict[str, str], space: str) -> float:
    """Return the height at which to merge.

    It is found for one partition too, and where the user has given the number of topics or a similarity: merging
    stores, and documents added later, rest on it.
    """
    topics = job.config.topics
    fp = pilot_print(job, embedded, len(partitions))
    if not says(job.store.unit_version("pilots", "calibrate"), fp):
        began = time.monotonic()
        documents = sum(p.rows for p in partitions if p.partition_id in embedded)
        vectors = sample(job, sorted(embedded), documents, SAMPLE).vectors
        found: Pilot = job.engines.pool.call(
            "calibrate",
            vectors=vectors,
            config=job.config.cluster,
            min_size=topics.min_size,
            documents=documents,
            partitions=len(partitions),
            rounds=topics.rounds,
        )
        row = {
            "site": "",
            "site_id": "",
            "generation": 0,
            "pilot_key": found.key,
            "embedding_space": space,
            "documents": found.documents,
            "height": found.height,
            "agreement": found.agreement,
        }
        job.store.replace("pilots", pa.Table.from_pylist([row], schema=TABLES["pilots"].schema), stage="calibrate", unit_fingerprint=fp)
        job.whole("calibrate", fp, rows=found.documents, seconds=time.monotonic() - began, detail=row)
    return float(job.store.read("pilots")["height"][0].as_py())


@dataclass(frozen=True)
class Sample:
    """Some documents, sorted by id."""

    doc_ids: list[str]
    partition_ids: list[str]
    vectors: npt.NDArray[np.float32]


def sample(job: Job, partitions: list[str], documents: int, size: int) -> Sample:
    """Return at most ``size`` documents, chosen by a hash of their ids."""
    version = job.store.table("embeddings").version()
    share = size / max(documents, 1)
    units = [
        Unit(pid, {"store_uri": job.store.uri, "partition_id": pid, "embeddings_version": version, "share": share}) for pid in partitions
    ]
    ids: list[str] = []
    owners: list[str] = []
    parts: list[npt.NDArray[np.float32]] = []
    for outcome in job.engines.pool.run("sample", units):
        if outcome.error is not None:
            raise JobFailed(f"sample: partition {outcome.key}: {outcome.error}")
        found, vectors = outcome.value
        ids.extend(found)
        owners.extend([outcome.key] * len(found))
        if len(found):
            parts.append(vectors)
    matrix = np.concatenate(parts) if parts else np.zeros((0, 0), np.float32)
    order = sorted(range(len(ids)), key=ids.__getitem__)[:size]
    return Sample([ids[i] for i in order], [owners[i] for i in order], matrix[order] if order else matrix)
