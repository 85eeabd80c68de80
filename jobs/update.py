"""``topicscale update``: new documents into an existing store; what is new in them becomes new topics."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from jobs.job import CODE, Job, Partition, new_run_id, opened
from jobs.progress import Ui
from jobs.run import Result, fit, validate
from jobs.stages import add, cluster, embed, ingest, refine, represent, zeroshot
from topicscale import registry
from topicscale.config import ClusterConfig, Config, load
from topicscale.documents import ID as POSITION
from topicscale.errors import ConfigError, JobFailed, RequestError, StoreError
from topicscale.inputs import InputPlan
from topicscale.models import embedding_space
from topicscale.sites import is_merged
from topicscale.store import Snapshot, Store
from topicscale.tables import TABLES


def update(paths: Sequence[str], store: str | Path, *, overrides: Sequence[str] = (), ui: Ui | None = None) -> dict[str, Any]:
    """Add documents to a store and return what became of them.

    They are embedded, and assigned to the topics there are; what fits none of them is clustered, and becomes new topics
    once it is enough. Ids of topics and assignments of documents that were there never change. A document that is there
    already (same id, same text) is counted and left out; the same batch twice changes nothing.

    Parameters
    ----------
    paths : sequence of str
        Files, folders or globs, read with the store's own input settings.
    overrides : sequence of str
        ``input.key=value`` where this batch is laid out differently; ``ray.key=value`` and ``spark.key=value`` for this machine or
        cluster; ``llm.key=value`` where the language model that names topics is elsewhere now.

    Raises
    ------
    RequestError
        The input cannot be read as the store's was.
    StoreError
        The store holds no finished run, holds merged topics, or is in use.
    JobFailed
        Too much of the batch is bad, or a part of it could not be finished. Nothing of it is seen; run it again.
    """
    ui = ui or Ui()
    began = time.monotonic()
    target = Store(store)
    check(target)
    for item in overrides:
        if not item.startswith(("input.", "ray.", "spark.", "llm.")):
            raise RequestError(
                f"update can only change how the input is read (input.*), by what (ray.*, spark.*), and the language model that names new "
                f"topics (llm.*). Got {item!r} instead. Use --refit for the rest."
            )
    run_id = new_run_id()
    with target.lock(run_id):
        base = target.pin()
        ingest.check_base(target, base)
        held = Config.from_dict(base.configuration)
        # of a store that was fitted on documents in memory, batches alone have ids that are derived
        derived = held.input.id_column is None or (held.input.id_column == POSITION and bool(base.summary.get("batches")))
        if base.summary.get("ingest") != CODE["ingest"] and derived:
            raise StoreError(
                f"The store {target.uri!r} was made by an earlier topicscale, which gave documents without an id column other ids: a "
                "batch's would not be known again. Run its input into it again, or, where batches were added, all inputs into a new store."
            )
        read = dataclasses.asdict(held.input) | {"paths": list(paths)}
        if held.input.id_column == POSITION:  # of documents that were in memory: those of a batch are in a file as any other
            read |= {"format": "auto", "id_column": None}
        config = load(values={**held.to_dict(), "input": read}, overrides=overrides)
        if (held.input.embedding_column is None) != (config.input.embedding_column is None):
            theirs = "come with the documents" if held.input.embedding_column else f"are made by {held.embedding.model}"
            raise RequestError(
                f"input.embedding_column must be given in a batch where the store has it, and nowhere else: this store's vectors {theirs}. "
                f"Got {config.input.embedding_column!r} instead."
            )
        aspects = represent.parse(config.represent.aspects)
        # a batch does not wait for a language model: what describes its topics can be made later
        plan = validate(dataclasses.replace(config, represent=dataclasses.replace(config.represent, aspects={})), target.uri)
        if config.input.embedding_column is not None:
            plan = _fitting(plan, target)
        undescribed = _fault(config, aspects)
        if config.input.embedding_column is None and embedding_space(config.embedding) != base.summary["space"]:
            raise RequestError(
                f"The embedding model {config.embedding.model!r} is another than the one that this store's topics were found with: its "
                "files have changed since, or an earlier topicscale wrote the store. Put them back, or fit all documents with it: "
                f"topicscale update --refit --store {target.uri}"
            )
        reader, target = target, Store(store)  # the one reads the base generation, the other what is newest
        batches = reader.read("batches").to_pylist() if "batches" in base.versions else []
        number = max((row["batch"] for row in batches), default=0) + 1
        with opened(target, config, run_id, ui, rows=plan.rows, adds=True, reads=config.input.paths) as job:
            how = {**dataclasses.asdict(config.input), "paths": None, "max_quarantine": None}
            fp = job.print_of("batch", number, base.generation, plan.fingerprint, how)
            found = _batch(job, base, batches, number, plan, fp)
            failed = False
            if aspects and undescribed is None:
                # all that have none: what an update could not do, or was stopped before it did, the next one does
                try:
                    snapshot = represent.represent(job, target.snapshots()[-1], aspects=aspects, missing=True).snapshot
                    found["generation"] = snapshot.generation
                except (JobFailed, RequestError) as error:
                    undescribed, failed = str(error), True
            if undescribed is not None and (found["new_topics"] or failed):
                how = f"topicscale label --only-unlabelled --store {target.uri}"
                done = "The batch is added; new" if found["documents"] else "Some"
                ui.log("warning", f"{done} topics have no descriptions yet (`{how}`): {undescribed}")
    return {**found, "store": target.uri, "run_id": run_id, "seconds": round(time.monotonic() - began, 3)}


def _fitting(plan: InputPlan, target: Store) -> InputPlan:
    """Return the plan with the length of a store's vectors, which each of a batch's must have."""
    wanted = pc.max(pc.list_value_length(target.read("topics", ["reference_vector"])["reference_vector"])).as_py() or None
    if wanted is not None and plan.dimension not in (None, wanted):
        raise RequestError(
            f"input.embedding_column must hold vectors of the store's length, {wanted}. Got vectors of length {plan.dimension} instead: "
            "embed the batch with the model that the store's documents were embedded with."
        )
    return dataclasses.replace(plan, dimension=wanted or plan.dimension)


def refit(store: str | Path, *, overrides: Sequence[str] = (), ui: Ui | None = None) -> Result:
    """Fit the topics of all documents of a store anew, batches among them, as a new generation.

    Raises
    ------
    RequestError
        An override is of how documents are read or divided, which a fit of those that are there does not do.
    StoreError
        There is no fitted store, or its topics are merged ones.
    """
    target = Store(store)
    check(target)
    base = target.pin()
    held = Config.from_dict(base.configuration)
    before = held.to_dict()
    if held.cluster.reduction == "none" and held.cluster.algorithm == ClusterConfig.algorithm:
        del before["cluster"]["algorithm"]  # the default of vectors as they are, which a reduction that is asked for has another of
    asked = load(values=before, overrides=overrides)
    config = registry.located(asked, target)
    if config.embedding.model != asked.embedding.model and config.input.embedding_column is not None:
        raise RequestError(
            f"{asked.embedding.model!r} was trained on this store, whose vectors came with the documents and are another model's. To have "
            "them embedded with it, add: --set input.embedding_column=null"
        )
    read = dataclasses.replace(config.input, embedding_column=held.input.embedding_column)
    if (read, config.partition) != (held.input, held.partition):
        raise RequestError(
            f"--set of a refit must be about what follows once documents are there. Got {', '.join(overrides)!r}: its documents stay as "
            "they were read and divided. To have it otherwise, run their inputs into a new store."
        )
    batches = target.read("batches")["batch"].to_pylist() if "batches" in base.versions else []
    return fit(config, store, ui=ui, fitted_batches=max(batches, default=0))


def _fault(config: Config, aspects: Mapping[str, Any]) -> str | None:
    """Return why topics cannot be described, as far as that can be known now; what is wrong with the configuration itself is raised."""
    try:
        represent.check(config, aspects)
    except ConfigError:
        raise
    except RequestError as error:
        return str(error)
    return None


def check(target: Store) -> None:
    """Raise StoreError when documents cannot be added to or taken from a store."""
    snapshot = target.pin()
    if is_merged(snapshot) or "documents" not in snapshot.versions:
        what = "the sites' documents" if "documents" in snapshot.versions else "no documents"
        raise StoreError(f"The store {target.uri!r} holds merged topics and {what}. Change the sites' own stores, then merge them again.")


def _batch(job: Job, base: Snapshot, batches: list[dict[str, Any]], number: int, plan: Any, fp: str) -> dict[str, Any]:
    from spark import batch as shell

    job.engines.begin(**({} if job.config.input.embedding_column else {"load_model": {"config": job.config.embedding}}))
    began = time.monotonic()
    with job.ui.stage("ingest"):
        read = shell.add(
            job.engines.spark,
            job.config,
            store_uri=job.store.uri,
            plan=plan,
            batch=number,
            versions=base.versions,
            unpublished=job.store.version("quarantine") != base.versions["quarantine"],
        )
    quarantined = sum(read.quarantined.values())
    job.whole("batch", fp, rows=read.documents, seconds=time.monotonic() - began, detail={"quarantined": read.quarantined})
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in read.quarantined.items())
    job.ui.log(
        "stage",
        f"batch {number}: {read.input_rows:,} rows, {read.documents:,} new documents, {read.already_present:,} already present, "
        f"{quarantined:,} in quarantine{f' ({reasons})' if reasons else ''}",
    )
    for column, what in read.changed.items():
        job.ui.log("warning", f"batch {number}: column {column!r}: {what}", column=column)
    counts = {
        "batch": number,
        "input_rows": read.input_rows,
        "documents": read.documents,
        "already_present": read.already_present,
        "quarantined": read.quarantined,
    }
    if read.documents == 0:
        if quarantined:
            job.ui.log("warning", f"batch {number}: nothing is new, so that there is no batch, and its bad rows are not kept in quarantine")
        return {**counts, "new_topics": [], "topics": base.summary["topics"], "outliers": 0, "generation": base.generation}

    partitions = [Partition(p.partition_id, p.value, p.rows, p.digest) for p in read.partitions]
    rows = {p.partition_id: p.rows for p in partitions}
    ingest.drop_unpublished(job.store, base, rows)  # of a killed update of other documents, which this one takes the place of
    prints = _all(job, "embed", embed.embed(job, partitions), embed.prints_of(job, partitions))
    before = add.read_base(job, base)
    names = zeroshot.take(
        job, prints, rows, generation=base.generation, known=dict(zip(before.topics.keys, before.topics.vectors, strict=True))
    )
    size = _min_cluster_size(job, base)
    # what is left out depends on the topics there are
    beside = {**(names.arguments if names is not None else {}), **add.explained(before)}
    clustered = cluster.prints_for(job, {pid: job.print_of("add", base.generation, fp) for pid, fp in prints.items()}, size=size, fine=True)
    _all(job, "cluster", cluster.cluster_for(job, clustered, rows, size=size, fine=True, beside=beside), clustered)

    fitted = int(base.summary.get("fitted_batches", 0))
    since = [pid for row in batches if row["batch"] > fitted for pid in row["partition_ids"]] + list(rows)
    if not base.summary["height"]:
        job.ui.log(
            "warning",
            "When the store was fitted, no granularity of its topics was found (there were too few documents, or names took nearly all), "
            f"so that a batch brings none. Fit all documents anew: topicscale update --refit --store {job.store.uri}",
        )
    found = add.extend(job, before, since, height=float(base.summary["height"]), names=names)
    assigned = refine.assign_prints(job, prints, job.print_of("add", base.generation, fp))
    _all(job, "assign", refine.assign_to(job, assigned, rows, found.topics), assigned)
    sums = add.publish_batch(job, base, before, found, fp=fp, partitions=partitions, space=base.summary["space"])

    at = datetime.now(UTC)
    counted = {**counts, "at": at, "partition_ids": sorted(rows), "fingerprint": fp, "new_topics": found.new, "quarantined": quarantined}
    _append(job, base, "batches", batches, [counted], fp)
    trends = job.store.read("topic_trends", version=base.versions["topic_trends"]).to_pylist()
    if not batches:
        # not when this generation was made: names that topics were given since make one, too
        first = datetime.fromisoformat(base.summary["fitted_at"]) if "fitted_at" in base.summary else base.at
        trends += [{"batch": 0, "at": first, "topic_id": r["topic_id"], "documents": r["size"]} for r in before.rows]
    fresh = [{"batch": number, "at": at, "topic_id": t - 1, "documents": int(n)} for t, n in enumerate(sums.counts) if n]
    _append(job, base, "topic_trends", trends, fresh, fp)
    outliers = int(sums.counts[0])
    summary = {
        **base.summary,
        "documents": base.summary["documents"] + read.documents,
        "topics": len(found.topics.keys),
        "outliers": base.summary["outliers"] + outliers,
        "partitions": base.summary["partitions"] + len(partitions),
        "batches": number,
        "failed": {},
    }
    # the configuration stays that of the fit: how this batch was laid out is its own business
    snapshot = job.store.publish(configuration=base.configuration, summary=summary, unit_fingerprint=fp)
    return {**counts, "new_topics": found.new, "topics": summary["topics"], "outliers": outliers, "generation": snapshot.generation}


def _min_cluster_size(job: Job, base: Snapshot) -> int:
    from topicscale.cluster import local_min_cluster_size

    # two partitions: a batch's local topics are to be merged, whatever its size
    return local_min_cluster_size(job.config.cluster, job.config.topics.min_size, documents=base.summary["documents"], partitions=2)


def _all(job: Job, stage: str, done: Sequence[str], prints: Mapping[str, str]) -> dict[str, str]:
    if missing := sorted(set(prints) - set(done)):
        errors = "; ".join(sorted(set(job.failed.get(stage, {}).values())))
        raise JobFailed(f"{stage}: {len(missing):,} partitions of the batch could not be finished, so nothing was added: {errors}")
    return dict(prints)


def _append(job: Job, base: Snapshot, table: str, held: list[dict[str, Any]], new: list[dict[str, Any]], fp: str) -> None:
    job.store.replace(table, pa.Table.from_pylist([*held, *new], schema=TABLES[table].schema), stage="add", unit_fingerprint=fp)


def describe(found: Mapping[str, Any]) -> str:
    """Return what became of a batch, for people."""
    bad = sum(found["quarantined"].values())
    parts = [f"{found['documents']:,} new documents", f"{found['already_present']:,} already present", f"{bad:,} in quarantine"]
    if not found["documents"]:
        return f"Nothing to add: {', '.join(parts[1:])} -> {found['store']} (generation {found['generation']})"
    new = f"{len(found['new_topics'])} new topics ({', '.join(map(str, found['new_topics']))})" if found["new_topics"] else "no new topic"
    share = found["outliers"] / found["documents"]
    return (
        f"Batch {found['batch']}: {', '.join(parts)}; {new}, {found['topics']:,} in all; {share:.1%} of the batch outliers, "
        f"{found['seconds']:.0f} s -> {found['store']} (generation {found['generation']})"
    )
