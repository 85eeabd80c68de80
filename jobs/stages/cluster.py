"""Stage 3: embeddings -> local_assignments, local_topics; and the pilot that calibrates merging (Ray)."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

import pyarrow as pa

from jobs.job import Job, Partition
from jobs.stages import zeroshot
from jobs.stages.zeroshot import Names
from ray_actors.pool import Unit
from ray_actors.sample import Sample, collect
from topicscale.algorithms import check_device
from topicscale.calibrate import SAMPLE, Pilot
from topicscale.cluster import local_min_cluster_size
from topicscale.store import says
from topicscale.tables import TABLES

REPRESENTATIVES = 3
"""Documents that ``local_topics`` names for each local topic."""


def prints_of(job: Job, partitions: list[Partition], embedded: dict[str, str]) -> dict[str, str]:
    """Return the fingerprint of each partition in ``embedded`` (partition -> embed fingerprint)."""
    return prints_for(job, embedded, size=min_cluster_size(job, partitions), fine=_fine(job, partitions))


def prints_for(job: Job, embedded: dict[str, str], *, size: int, fine: bool) -> dict[str, str]:
    """Return the fingerprint of each partition in ``embedded``, clustered with a given smallest local topic."""
    names = zeroshot.parts_of(job)
    return {pid: job.print_of("cluster", fp, job.config.cluster, size, fine, REPRESENTATIVES, *names) for pid, fp in embedded.items()}


def _fine(job: Job, partitions: list[Partition]) -> bool:
    """Whether local topics will be merged: then they are made finer than the topics that are wanted."""
    topics = job.config.topics
    return len(partitions) > 1 or topics.number is not None or topics.similarity is not None


def min_cluster_size(job: Job, partitions: list[Partition]) -> int:
    """Return the smallest local topic."""
    documents = sum(p.rows for p in partitions)
    return local_min_cluster_size(job.config.cluster, job.config.topics.min_size, documents=documents, partitions=len(partitions))


def cluster(job: Job, partitions: list[Partition], embedded: dict[str, str], names: Names | None) -> list[str]:
    """Return the partitions that have their local topics, after clustering what is missing."""
    fingerprints = prints_of(job, partitions, embedded)
    rows = {p.partition_id: p.rows for p in partitions}
    beside = names.arguments if names is not None else {}
    return cluster_for(job, fingerprints, rows, size=min_cluster_size(job, partitions), fine=_fine(job, partitions), beside=beside)


def cluster_for(
    job: Job, fingerprints: dict[str, str], rows: dict[str, int], *, size: int, fine: bool, beside: Mapping[str, Any]
) -> list[str]:
    """Return the partitions of ``fingerprints`` that have their local topics, after clustering what is missing.

    Parameters
    ----------
    beside : mapping
        What tells a unit which documents to leave out: see :func:`ray_actors.cluster.cluster`.
    """

    def prepare(pending: list[str]) -> Callable[[str], dict[str, Any]]:
        check_device(job.config.cluster, job.engines.pool.layout.gpus)  # of a cluster it is known only now
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
                **beside,
            }

        return arguments

    return job.run_units(
        "cluster", "cluster", tables=["local_assignments", "local_topics"], fingerprints=fingerprints, rows=rows, prepare=prepare
    )


def pilot_print(job: Job, embedded: dict[str, str], partitions: int) -> str:
    """Return the fingerprint of the pilot."""
    topics, beside = job.config.topics, zeroshot.parts_of(job)
    if job.config.cluster.min_cluster_size is not None:
        beside = (*beside, "in parts of their own size")
    return job.print_of("calibrate", sorted(embedded.items()), job.config.cluster, topics.min_size, topics.rounds, partitions, *beside)


def calibrate(job: Job, partitions: list[Partition], embedded: dict[str, str], space: str, names: Names | None) -> float:
    """Return the height at which to merge, found on documents that no name takes.

    It is found for one partition too, and where the user has given the number of topics or a similarity: merging
    stores, and documents added later, rest on it.
    """
    topics = job.config.topics
    fp = pilot_print(job, embedded, len(partitions))
    if not says(job.store.unit_version("pilots", "calibrate"), fp):
        began = time.monotonic()
        documents = sum(p.rows for p in partitions if p.partition_id in embedded) if names is None else names.rest
        vectors = sample(job, sorted(embedded), documents, SAMPLE, names).vectors
        found: Pilot = job.engines.pool.call(
            "calibrate",
            vectors=vectors,
            config=job.config.cluster,
            min_size=topics.min_size,
            documents=documents,
            partitions=len(partitions),
            rounds=topics.rounds,
        )
        if not found.height and found.topics and len(partitions) > 1 and topics.number is None and topics.similarity is None:
            job.ui.log(
                "warning",
                "The parts of a sample have no topics to merge, so that each partition keeps its own. Use a smaller "
                "cluster.min_cluster_size (by default it is found), or say when topics are one: topics.similarity.",
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


def sample(job: Job, partitions: list[str], documents: int, size: int, names: Names | None = None) -> Sample:
    """Return at most ``size`` of so many documents, chosen by a hash of their ids; with ``names``, of those that none takes."""
    given = {"store_uri": job.store.uri, "embeddings_version": job.store.table("embeddings").version(), "share": size / max(documents, 1)}
    beside = names.arguments if names is not None else {}
    units = [Unit(pid, {"partition_id": pid, **given, **beside}) for pid in partitions]
    return collect(job.each("sample", units, stage="sample"), size)
