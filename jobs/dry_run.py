"""`topicscale run --dry-run`: everything that can be checked and estimated without starting an engine."""

from __future__ import annotations

import math
from typing import Any

from jobs.engines import Engines
from jobs.job import Job
from jobs.progress import Ui
from jobs.run import check_held, done_already, validate
from ray_actors import runtime
from topicscale import registry, storage
from topicscale.capacity import worker_memory
from topicscale.config import Config
from topicscale.files import Folder
from topicscale.store import Store, check_vacant, is_store


def dry_run(config: Config, store: str) -> dict[str, Any]:
    """Return rows (estimated), partitions, workers, memory, and what will be skipped as already done.

    Raises
    ------
    RequestError, StoreError
        As the run itself would.
    """
    storage.adopt(config.storage)
    there = is_store(store)
    if there:
        config = registry.located(config, Store(store))
    found = validate(config, store)
    skipped: dict[str, tuple[int, int]] = {}
    if there:
        check_held(Store(store))
        skipped = done_already(Job(Store(store), config, "dry-run", Ui("quiet"), Engines(config)), found)
    else:
        check_vacant(store)
    documents = found.rows
    partitions = config.partition.number
    if partitions is None and config.partition.column is None and documents is not None:
        partitions = config.partition.pieces(documents, found.characters or 0)
    layout = runtime.local_plan(config.ray)
    memory = None
    if documents is not None:
        characters, target = found.characters or 0, config.partition
        # a value of a column is split above twice the target, and how many it has is not known
        largest = math.ceil(documents / partitions) if partitions else min(documents, 2 * target.target_documents)
        letters = math.ceil(characters / partitions) if partitions else min(characters, 2 * target.target_characters)
        memory = int(worker_memory(largest, letters, model=runtime.WORKER_MEMORY / 2))
    return {
        "input": {
            "paths": list(found.paths),
            "format": found.format,
            "rows_estimated": documents,
            "bytes": found.bytes,
            "characters_estimated": found.characters,
        },
        "columns": list(found.kinds),
        "partitions": partitions if config.partition.column is None else f"one per value of {config.partition.column}",
        "workers": str(layout) if layout is not None else f"as many as {config.ray.where} holds",
        "memory_per_worker_bytes": memory,
        "embedding_model": config.embedding.model if config.input.embedding_column is None else f"column {config.input.embedding_column}",
        "clustering": f"{config.cluster.reduction} + {config.cluster.algorithm}",
        "aspects": list(config.represent.aspects),
        "store": Folder(store).uri,
        "done": {stage: {"done": done, "of": of} for stage, (done, of) in skipped.items()},
    }


def describe(found: dict[str, Any]) -> str:
    """Return the plan as text for a terminal."""
    source = found["input"]
    rows = "unknown" if source["rows_estimated"] is None else f"about {source['rows_estimated']:,}"
    size = "" if source["bytes"] is None else f", {source['bytes'] / 2**20:,.1f} MiB"
    memory = "unknown" if found["memory_per_worker_bytes"] is None else f"about {found['memory_per_worker_bytes'] / 2**30:.1f} GiB each"
    lines = [
        f"input       {len(source['paths'])} path(s), {source['format']}, {rows} rows{size}",
        f"columns     {', '.join(found['columns'])}",
        f"partitions  {found['partitions'] if found['partitions'] is not None else 'unknown'}",
        f"workers     {found['workers']}, {memory}",
        f"embedding   {found['embedding_model']}",
        f"clustering  {found['clustering']}",
        *([f"aspects     {', '.join(found['aspects'])}"] if found["aspects"] else []),
        f"store       {found['store']}",
    ]
    for stage, units in found["done"].items():
        done, of = units["done"], units["of"]
        lines.append(f"done        {stage}: {done:,} of {of:,} units, will be skipped" if done else f"to do       {stage}: {of:,} units")
    lines.append("Nothing was started (--dry-run).")
    return "\n".join(lines)
