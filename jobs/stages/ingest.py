"""Stage 1: input -> documents, quarantine, partitions (Spark)."""

from __future__ import annotations

import time
from collections.abc import Iterable

from jobs.job import Job, Partition
from topicscale.errors import JobFailed, StoreError
from topicscale.inputs import InputPlan
from topicscale.store import WHOLE, Snapshot, Store, agree, next_version, says, unit_id
from topicscale.tables import PARTITION, batch_suffix

TABLES = ("documents", "quarantine", "partitions")
_PER_PARTITION = (("embeddings", "embed"), ("local_assignments", "cluster"), ("local_topics", "cluster"), ("assignments", "assign"))


def print_of(job: Job, plan: InputPlan) -> str:
    """Return the fingerprint of what ingest would write."""
    reads = {**job.config.to_dict()["input"], "paths": None, "max_quarantine": None}
    return job.print_of("ingest", plan.fingerprint, reads, job.config.partition)


def is_done(job: Job, unit_fingerprint: str) -> bool:
    """Return whether the tables hold the rows of this fingerprint."""
    return all(says(job.store.unit_version(table, "ingest"), unit_fingerprint) for table in TABLES)


def ingest(job: Job, plan: InputPlan) -> list[Partition]:
    """Return the partitions of the corpus, after reading the input unless that was done.

    Raises
    ------
    JobFailed
        More rows are bad than ``input.max_quarantine`` allows, or none is left.
    """
    fp = print_of(job, plan)
    if not is_done(job, fp):
        from spark import ingest as shell

        began = time.monotonic()
        transactions = {table: (unit_id("ingest"), next_version(job.store.unit_version(table, "ingest"), fp)) for table in TABLES}
        with job.ui.stage("ingest"):
            result = shell.ingest(job.engines.spark, job.config, store_uri=job.store.uri, plan=plan, txn=transactions)
        seconds = time.monotonic() - began
        quarantined = sum(result.quarantined.values())
        detail = {"input_rows": result.input_rows, "quarantined": result.quarantined, "renamed": result.renamed, "changed": result.changed}
        job.whole("ingest", fp, rows=result.documents, seconds=seconds, detail=detail)
        for old, new in result.renamed.items():
            job.ui.log("warning", f"ingest: column {old!r} is stored as {new!r}", column=old)
        for name, what in result.changed.items():
            job.ui.log("warning" if "left out" not in what else "stage", f"ingest: column {name!r}: {what}", column=name)
        reasons = ", ".join(f"{reason} {count:,}" for reason, count in sorted(result.quarantined.items()))
        job.ui.log(
            "stage",
            f"ingest: {result.input_rows:,} rows, {result.documents:,} documents in {len(result.partitions):,} partitions, "
            f"{quarantined:,} in quarantine{f' ({reasons})' if reasons else ''}",
        )
    partitions = read_partitions(job)
    _check_share(job, sum(p.rows for p in partitions))
    return partitions


def read_partitions(job: Job) -> list[Partition]:
    """Return the partitions that the store holds."""
    rows = job.store.read("partitions", ["partition_id", "value", "rows", "digest"]).sort_by("partition_id").to_pylist()
    return [Partition(**row) for row in rows]


def check_batches(store: Store) -> None:
    """Raise StoreError when an update was cut short: its documents are there, and are in no generation.

    Taken for documents of the store, they would be counted as already present when the update is run again.
    """
    snapshots = store.snapshots()
    if not snapshots or "documents" not in snapshots[-1].versions:
        return
    versions = snapshots[-1].versions
    base = store.table("documents", version=versions["documents"])
    held, now = ({row[PARTITION] for row in table.partitions()} for table in (base, store.table("documents")))
    following = batch_suffix(max(store.read("batches", version=versions["batches"])["batch"].to_pylist(), default=0) + 1)
    if any(pid.endswith(following) for pid in now - held):
        raise StoreError(
            f"An update of {store.uri!r} was cut short. Finish it first, by running it again, or another one, which takes its place: "
            f"topicscale update --input ... --store {store.uri}"
        )


def check_base(store: Store, base: Snapshot) -> None:
    """Raise StoreError when a run that was cut short has changed what a generation is made of: what is added would be mixed with it."""
    versions = base.versions
    units = [*((table, "ingest", WHOLE) for table in TABLES), ("pilots", "calibrate", WHOLE), ("document_map", "map", WHOLE)]
    units += [(table, stage, pid) for table, stage in _PER_PARTITION for pid in sorted(_partitions(store, base))]
    written = {table: (store.unit_versions(table, version=versions[table]), store.unit_versions(table)) for table, _, _ in units}
    for table, stage, pid in units:
        held, now = (found.get(unit_id(stage, pid)) for found in written[table])
        if not agree(held, now):
            raise StoreError(
                f"A run of {store.uri!r} was cut short after it had begun to change the table {table!r}. Finish it first, by running it "
                "again; or run the store's former configuration again, which brings its tables back."
            )


def check_read(store: Store) -> None:
    """Raise StoreError when reading an input was cut short: some of what it writes is of that input, and the rest of the one before."""
    written = [store.unit_version(table, "ingest") for table in TABLES]
    if not all(agree(written[0], other) for other in written[1:]):
        raise StoreError(
            f"A run of {store.uri!r} was cut short while it read its input. Finish it first, by running it again; or run the former "
            "input again, which brings its tables back."
        )


def drop_unpublished(store: Store, base: Snapshot, partitions: Iterable[str] = ()) -> None:
    """Remove what killed runs and updates have left of partitions that a generation has no documents of, but for those of a batch."""
    for table, stage in _PER_PARTITION:
        store.retain(table, stage, {*_partitions(store, base), *partitions})


def _partitions(store: Store, base: Snapshot) -> set[str]:
    return {row[PARTITION] for row in store.table("documents", version=base.versions["documents"]).partitions()}


def _check_share(job: Job, documents: int) -> None:
    # from the tables, not from this run, so that a rerun of a refused input is refused again
    bad = job.store.table("quarantine").to_pyarrow_dataset().count_rows()
    if documents == 0:
        raise JobFailed(
            f"The input holds no usable document: all {bad:,} rows are in quarantine. See: topicscale status --store {job.store.uri}"
        )
    share = bad / (bad + documents)
    if share > job.config.input.max_quarantine:
        raise JobFailed(
            f"{bad:,} of {bad + documents:,} rows ({share:.1%}) are in quarantine, more than input.max_quarantine allows "
            f"({job.config.input.max_quarantine:.0%}). See why with: topicscale status --store {job.store.uri}"
        )
