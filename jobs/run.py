"""`topicscale run`: a corpus in, merged topics in Delta tables out.

Also what `spark-submit` and `ray job submit` start: ``python -m jobs.run`` takes the arguments of ``topicscale run``.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from jobs.job import CODE, Job, Partition, new_run_id, opened
from jobs.progress import Ui
from jobs.stages import add, cluster, embed, ingest, publish, refine, represent, zeroshot
from ray_actors import runtime
from spark import jars, session
from topicscale import algorithms, inputs, models, registry, storage
from topicscale import cluster as clustering
from topicscale.config import Config, rooted
from topicscale.errors import JobFailed, StoreError
from topicscale.sites import is_merged
from topicscale.store import Snapshot, Store, is_store, mark, says


@dataclass(frozen=True)
class Result:
    """How a run ended."""

    store: str
    run_id: str
    generation: int
    documents: int
    topics: int
    outliers: int
    nothing_to_do: bool
    failed: dict[str, dict[str, str]] = field(default_factory=dict)
    """stage -> partition -> why."""
    seconds: dict[str, float] = field(default_factory=dict)
    """By stage, and ``total``."""


def validate(config: Config, store: str) -> inputs.InputPlan:
    """Check everything that can be known before an engine is started, and return what will be read.

    Parameters
    ----------
    store : str
        URI of the store that will be written.

    Raises
    ------
    RequestError
        A path, column, model, package or resource is not as it must be.
    """
    _check(config)
    if not config.spark.connects:
        session.check_java()  # a server elsewhere has a Java of its own, and its own jars
        jars.check(storage.schemes([store, *config.input.paths]))
    plan = inputs.inspect(config.input)
    if config.zeroshot.topics:
        models.check_dimensions(config.embedding, plan.dimension)
    if config.partition.column is not None and plan.columns:
        inputs.check_named(config.partition.column, plan.kinds, "partition.column")
    return plan


def check_held(store: Store) -> None:
    """Raise StoreError unless an input can be run into a store: what others have added to it, the run would drop."""
    last = store.snapshots()[-1:]
    if last and (is_merged(last[0]) or "documents" not in last[0].versions):
        raise StoreError(f"The store {store.uri!r} holds topics that came from elsewhere (a merge, an import). Name a new folder.")
    ingest.check_batches(store)
    if batches := sum(store.read("batches", version=snapshot.versions["batches"]).num_rows for snapshot in last):
        raise StoreError(
            f"The store {store.uri!r} holds {batches} batches that `update` added, which a run of its first input alone would drop. "
            f"Add documents with: topicscale update --input ... --store {store.uri}   Fit all that is there anew with: "
            f"topicscale update --refit --store {store.uri}"
        )


def _check(config: Config) -> None:
    clustering.check(config.cluster)
    layout = runtime.local_plan(config.ray)
    if layout is not None:
        algorithms.check_device(config.cluster, layout.gpus)
    if config.input.embedding_column is None or config.zeroshot.topics:  # names are embedded here, whoever embedded the documents
        models.check(config.embedding)
    represent.check(config, represent.parse(config.represent.aspects))


def run(config: Config, store: str, *, ui: Ui | None = None) -> Result:
    """Run the whole job and return how it ended; what is already done is skipped.

    Parameters
    ----------
    store : str
        URI of a store, made if there is none.

    Raises
    ------
    RequestError
        The request is wrong; nothing was started.
    StoreError
        The store is in use, of another version, or no store.
    JobFailed
        Too much of the input is bad, or no partition could be finished.
    """
    storage.adopt(config.storage)
    if is_store(store):
        config = registry.located(config, Store(store))
    plan = validate(config, store)
    return _run(config, Store(store, create=True), plan, ui=ui or Ui(), fitted_batches=0)


def fit(config: Config, store: str, *, ui: Ui | None = None, fitted_batches: int) -> Result:
    """Run all stages after ingest on the documents that a store holds (see :func:`jobs.update.refit`)."""
    _check(config)
    return _run(config, Store(store), None, ui=ui or Ui(), fitted_batches=fitted_batches)


def _run(config: Config, target: Store, plan: inputs.InputPlan | None, *, ui: Ui, fitted_batches: int) -> Result:
    began = time.monotonic()
    config = rooted(config)
    run_id = new_run_id()
    rows = plan.rows if plan is not None else None
    with target.lock(run_id), opened(target, config, run_id, ui, rows=rows, reads=config.input.paths if plan is not None else ()) as job:
        if plan is None:
            ingest.check_read(target)
            ingest.check_batches(target)
        else:
            check_held(target)
        snapshot = _stages(job, plan, fitted_batches)
    summary = snapshot.summary
    if job.worked and not summary["topics"]:
        ui.log(
            "warning",
            "No topic was found: every document is an outlier. Fewer than 16 different texts in one partition make none, nor do texts none "
            "of which are alike; topics.min_size is the smallest topic there may be.",
        )
    seconds = {stage: round(value, 3) for stage, value in {**job.timings, **job.engines.seconds}.items()}
    return Result(
        target.uri,
        run_id,
        snapshot.generation,
        summary["documents"],
        summary["topics"],
        summary["outliers"],
        not job.worked,
        job.failed,
        {**seconds, "total": round(time.monotonic() - began, 3)},
    )


def _stages(job: Job, plan: inputs.InputPlan | None, fitted_batches: int) -> Snapshot:
    partitions = ingest.read_partitions(job) if plan is None else _ingested(job, plan)
    rows = {p.partition_id: p.rows for p in partitions}

    space = embed.space_of(job)
    prints = embed.prints_of(job, partitions)
    embedded = {pid: prints[pid] for pid in embed.embed(job, partitions)}
    _some(job, "embed", embedded, partitions)

    names = zeroshot.take(job, embedded, rows)
    prints = cluster.prints_of(job, partitions, embedded)
    clustered = {pid: prints[pid] for pid in cluster.cluster(job, partitions, embedded, names)}
    _some(job, "cluster", clustered, partitions)
    # a partition that could not be clustered has no local topics, but its documents can still be assigned

    height = cluster.calibrate(job, partitions, embedded, space, names)
    refined = refine.print_of(job, clustered, height, names)
    topics = refine.refine(job, clustered, rows, height, names)
    prints = refine.assign_prints(job, embedded, refined)
    assigned = {pid: prints[pid] for pid in refine.assign(job, embedded, rows, topics, refined)}
    _some(job, "assign", assigned, partitions)

    published = publish.publish(job, topics=topics, refined=refined, assigned=assigned, rows=rows, space=space, height=height)
    if plan is None:
        add.recount(job, published)
    found = job.store.read("topics", ["topic_id", "size"]).to_pylist()
    summary = {
        "documents": sum(row["size"] for row in found),
        "partitions": len(assigned),
        "topics": sum(row["topic_id"] >= 0 for row in found),
        "outliers": sum(row["size"] for row in found if row["topic_id"] < 0),
        "space": space,
        "model": job.config.embedding.model,
        "height": height,
        "failed": job.failed,
        "fitted_batches": fitted_batches,
        "ingest": CODE["ingest"] if plan is not None else next((s.summary.get("ingest") for s in job.store.snapshots()[-1:]), None),
        "fitted_at": datetime.now(UTC).isoformat(),
    }
    failed = {stage: sorted(units) for stage, units in job.failed.items()}
    # an input read anew can have other columns beside the same ids and texts, of which no topic depends on any
    read = mark(job.store.unit_version("documents", "ingest"))
    snapshot = job.store.publish(
        configuration=job.config.without_places().to_dict(),
        summary=summary,
        unit_fingerprint=job.print_of("publish", published, read, failed, *represent.parts_of(job.config)),
        held=("batches",) if plan is None else ("batches", "topic_trends"),
    )
    return represent.configured(job, snapshot, published)


def _ingested(job: Job, plan: inputs.InputPlan) -> list[Partition]:
    if not ingest.is_done(job, ingest.print_of(job, plan)):
        # Ray starts and loads the model while Spark reads the input
        job.engines.begin(**_warm(job.config))
    return ingest.ingest(job, plan)


def _warm(config: Config) -> dict[str, dict[str, Any]]:
    warm: dict[str, dict[str, Any]] = {}
    if config.input.embedding_column is None:
        warm["load_model"] = {"config": config.embedding}
    return warm


def _some(job: Job, stage: str, done: dict[str, str], partitions: list[Partition]) -> None:
    if not done:
        errors = "; ".join(sorted(set(job.failed.get(stage, {}).values())))
        raise JobFailed(f"{stage}: none of {len(partitions):,} partitions could be finished: {errors}")


def done_already(job: Job, plan: inputs.InputPlan) -> dict[str, tuple[int, int]]:
    """Return (units done, units) of each stage as far as it can be known without running, for `--dry-run`."""
    found: dict[str, tuple[int, int]] = {}
    finished = ingest.is_done(job, ingest.print_of(job, plan))
    found["ingest"] = (int(finished), 1)
    if not finished:
        return found
    partitions = ingest.read_partitions(job)
    prints = embed.prints_of(job, partitions)
    embedded = job.store.done("embeddings", "embed", prints)
    found["embed"] = (len(embedded), len(prints))
    prints = cluster.prints_of(job, partitions, prints)
    clustered = job.store.done("local_assignments", "cluster", prints) & job.store.done("local_topics", "cluster", prints)
    found["cluster"] = (len(clustered), len(prints))
    fp = cluster.pilot_print(job, embed.prints_of(job, partitions), len(partitions))
    found["calibrate"] = (int(says(job.store.unit_version("pilots", "calibrate"), fp)), 1)
    return found


if __name__ == "__main__":
    from jobs.cli import entry

    entry(["run", *sys.argv[1:]])
