"""Stage 2: documents -> embeddings (Ray)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyarrow.compute as pc

from jobs.job import Job, Partition
from topicscale.config import EmbeddingConfig, fingerprint
from topicscale.models import UNNAMED, embedding_space, told
from topicscale.store import WORK


def model_of(job: Job) -> str:
    """Return the embedding model's name as others may know it: of vectors that came with the documents, the one that was given."""
    given, model = job.config.input.embedding_column is not None, job.config.embedding.model
    return UNNAMED if given and model == EmbeddingConfig().model else told(model)


def space_of(job: Job) -> str:
    """Return the id of the space that this configuration's vectors live in."""
    if job.config.input.embedding_column is None:
        return embedding_space(job.config.embedding)
    model = model_of(job)
    # whatever the column is called; without a name for the model, no other store's vectors are known to be of this space
    return fingerprint("precomputed", model, job.store.site_id if model == UNNAMED else None)


def _numeric(job: Job) -> dict[str, str]:
    return {"backend": job.config.embedding.backend, "dtype": job.config.embedding.dtype}


def alike(job: Job) -> str:
    """Return the id of vectors that may stand for each other: of one space, and computed in one way.

    Other stores' vectors of the same space may be compared with these, but a job that asks for float32 must not be
    given the bfloat16 vectors of the run before.
    """
    return fingerprint(space_of(job), _numeric(job))


def prints_of(job: Job, partitions: list[Partition], *, space: str | None = None) -> dict[str, str]:
    """Return each partition's fingerprint; of vectors in another space than the configuration's, where one is given."""
    space = space_of(job) if space is None else space
    return {p.partition_id: job.print_of("embed", p.digest, space, _numeric(job)) for p in partitions}


def embed(job: Job, partitions: list[Partition]) -> list[str]:
    """Return the partitions that have their vectors, after embedding what is missing."""
    space = alike(job)
    fingerprints = prints_of(job, partitions)
    precomputed = job.config.input.embedding_column is not None
    scratch = f"{WORK}/reuse"

    def prepare(pending: list[str]) -> Callable[[str], dict[str, Any]]:
        documents_version = job.store.table("documents").version()
        embeddings = job.store.table("embeddings")
        held = {row["partition_id"] for row in embeddings.partitions()}
        reuse = None
        # vectors of the same texts in other partitions: only when partitions were made that never had any. A batch is new:
        # looking through all that is held would cost more than it could save
        if not job.adds and not precomputed and held and not set(pending) <= held and _holds(job, space):
            from spark import reuse as shell

            job.store.files.clear(scratch)
            reuse = f"{job.store.uri}/{scratch}"
            moved = shell.vectors_to_reuse(
                job.engines.spark,
                store_uri=job.store.uri,
                documents_version=documents_version,
                embeddings_version=embeddings.version(),
                space=space,
                target=reuse,
            )
            job.ui.log("stage", f"embed: {moved:,} vectors of other partitions can be reused")
        version = embeddings.version() if held else None

        def arguments(partition_id: str) -> dict[str, Any]:
            return {
                "config": job.config.embedding,
                "store_uri": job.store.uri,
                "partition_id": partition_id,
                "documents_version": documents_version,
                "embeddings_version": version if partition_id in held else None,
                "space": space,
                "reuse": reuse,
                "precomputed": precomputed,
            }

        return arguments

    rows = {p.partition_id: p.rows for p in partitions}
    done = job.run_units("embed", "embed", tables=["embeddings"], fingerprints=fingerprints, rows=rows, prepare=prepare)
    job.store.files.clear(scratch)
    return done


def _holds(job: Job, space: str) -> bool:
    for batch in (
        job.store.table("embeddings").to_pyarrow_dataset().scanner(columns=["space"], filter=pc.field("space") == space).to_batches()
    ):
        if batch.num_rows:
            return True
    return False
