"""`topicscale status`: how far a store is, from its log and its tables. Starts no engine."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from topicscale.store import Store

UNITS = ("embed", "cluster", "assign")
"""Stages that are done partition by partition, each on what the one before it made."""


def status(store: str) -> dict[str, Any]:
    """Return stages (units done, failed and pending; rows; rates), quarantine by reason, and the newest generation."""
    source = Store(store)
    partitions = source.read("partitions", ["partition_id", "rows"]).to_pylist() if source.has("partitions") else []
    log = source.read("runs").sort_by("at").to_pylist()
    latest: dict[tuple[str, str | None], dict[str, Any]] = {(row["stage"], row["partition_id"]): row for row in log}
    current = {row["partition_id"] for row in partitions}
    for pid in current:
        since = None
        for stage in UNITS:  # what was done before the stage ahead of it was done again, or is to be, is to be done again
            row = latest.get((stage, pid))
            if since is not None and row is not None and (since["status"] == "pending" or since["at"] > row["at"]):
                row = latest[stage, pid] = {**row, "status": "pending", "rows": 0, "seconds": 0.0}
            since = row or since
    stages: dict[str, dict[str, Any]] = {}
    for (stage, partition_id), row in latest.items():
        if partition_id is not None and partition_id not in current:
            continue  # a partition of an earlier plan
        found = stages.setdefault(stage, {"done": 0, "failed": 0, "pending": 0, "rows": 0, "seconds": 0.0, "errors": {}})
        found[row["status"]] = found.get(row["status"], 0) + 1
        found["rows"] += row["rows"]
        found["seconds"] = round(found["seconds"] + row["seconds"], 3)
        if row["status"] == "failed":
            found["errors"][partition_id] = row["detail"].partition("\n")[0]  # the traceback follows
    for stage in UNITS:
        if partitions:
            found = stages.setdefault(stage, {"done": 0, "failed": 0, "pending": 0, "rows": 0, "seconds": 0.0, "errors": {}})
            found["pending"] = len(partitions) - found["done"] - found["failed"]
    for found in stages.values():
        found["rows_per_second"] = round(found["rows"] / found["seconds"], 1) if found["seconds"] else None
    order = ["ingest", "embed", "cluster", "calibrate", "refine", "assign", "terms", "map", "publish"]
    quarantine: Counter[str] = Counter()
    if source.has("quarantine"):
        for batch in source.read_batches("quarantine", ["reason"]):
            quarantine.update(batch.column("reason").to_pylist())
    snapshots = source.snapshots()
    newest = snapshots[-1] if snapshots else None
    ingested = next((json.loads(row["detail"]) for row in reversed(log) if row["stage"] == "ingest" and row["detail"]), {})
    return {
        "store": source.uri,
        "stages": {stage: stages[stage] for stage in sorted(stages, key=lambda s: order.index(s) if s in order else len(order))},
        "partitions": len(partitions),
        "documents": sum(row["rows"] for row in partitions),
        "input_rows": ingested.get("input_rows"),
        "quarantine": dict(sorted(quarantine.items())),
        "generation": None if newest is None else newest.generation,
        "finished_at": None if newest is None else newest.at,
        "summary": {} if newest is None else dict(newest.summary),
    }


def describe(found: dict[str, Any]) -> str:
    """Return the status as text for a terminal."""
    lines = [f"store       {found['store']}"]
    if found["generation"] is None:
        lines.append("generation  none yet: no run has finished")
    else:
        summary = found["summary"]
        lines.append(
            f"generation  {found['generation']}, {found['finished_at']:%Y-%m-%d %H:%M:%S} UTC: {summary['documents']:,} documents, "
            f"{summary['topics']:,} topics, {summary['outliers']:,} outliers"
        )
    if found["summary"].get("merged"):
        sites = found["summary"]["sites"]
        copied = found["summary"].get("copied")
        held = f"with {copied['documents']:,} documents of {copied['sites']:,}" if copied else "without their documents"
        lines.append(f"merged      from {len(sites):,} site{'s' * (len(sites) != 1)}, {held}:")
        lines += [f"  {s['site']}: {s['documents']:,} documents, {s['topics']:,} topics, {s['shared']:,} matched others'" for s in sites]
        return "\n".join(lines)
    if found["generation"] is not None and not found["partitions"]:
        lines.append("documents   none here: an export, or a model that was imported")
        return "\n".join(lines)
    lines.append(f"documents   {found['documents']:,} in {found['partitions']:,} partition{'s' * (found['partitions'] != 1)}")
    quarantined = sum(found["quarantine"].values())
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in found["quarantine"].items())
    lines.append(f"quarantine  {quarantined:,}{f': {reasons}' if reasons else ''}")
    lines.append("")
    lines.append(f"{'stage':<10} {'done':>7} {'failed':>7} {'pending':>7} {'rows':>12} {'seconds':>9} {'rows/s':>9}")
    for stage, row in found["stages"].items():
        rate = "" if row["rows_per_second"] is None else f"{row['rows_per_second']:,.0f}"
        lines.append(
            f"{stage:<10} {row['done']:>7,} {row['failed']:>7,} {row['pending']:>7,} {row['rows']:>12,} {row['seconds']:>9,.1f} {rate:>9}"
        )
    for stage, row in found["stages"].items():
        for partition_id, error in row["errors"].items():
            lines.append(f"failed: {stage} of {partition_id}: {error}")
    return "\n".join(lines)
