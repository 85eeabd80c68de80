"""`topicscale plan`: what a corpus takes on given machines, from measured rates. Starts nothing."""

from __future__ import annotations

import dataclasses
from typing import Any

from ray_actors import runtime
from topicscale.capacity import DIMENSIONS, Plan, Request, Stage, read_rates
from topicscale.capacity import plan as compute
from topicscale.config import RayConfig
from topicscale.errors import RequestError

CPUS_PER_GPU = 8
"""Processors beside a GPU where nothing is said."""


def plan(
    *,
    documents: int,
    tokens: float,
    spark_cores: int,
    gpus: int = 0,
    ray_cpus: int | None = None,
    dimensions: int = DIMENSIONS,
    topics: int | None = None,
    labels: bool = False,
    gpu_hour: float | None = None,
    core_hour: float | None = None,
    gigabyte_month: float | None = None,
    rates: str | None = None,
) -> Plan:
    """Return what a run needs on machines with so many GPUs and processors, divided among workers as a run divides them.

    Raises
    ------
    RequestError
        A number is out of range, or the rates cannot be read.
    """
    if gpus < 0 or spark_cores < 1:
        raise RequestError(f"gpus must be at least 0 and spark_cores at least 1. Got {gpus} and {spark_cores} instead.")
    cpus = ray_cpus if ray_cpus is not None else gpus * CPUS_PER_GPU or spark_cores
    if cpus < max(1, gpus):
        raise RequestError(f"ray_cpus must be at least 1, and one for each GPU ({gpus}). Got {cpus} instead.")
    layout = runtime.plan(RayConfig(), [runtime.Node(cpus, gpus, float(cpus * runtime.WORKER_MEMORY))])
    request = Request(
        documents=documents,
        tokens=tokens,
        workers=layout.actors,
        threads=layout.cpus,
        gpus=layout.gpus * layout.actors,
        spark_cores=spark_cores,
        dimensions=dimensions,
        topics=topics,
        labels=labels,
        model_memory=runtime.WORKER_MEMORY / 2,
        gpu_hour=gpu_hour,
        core_hour=core_hour,
        gigabyte_month=gigabyte_month,
    )
    return compute(request, read_rates(rates))


def to_dict(found: Plan) -> dict[str, Any]:
    """Return the plan as JSON has it: seconds, bytes, and whatever the prices were given in."""
    stages = [{**dataclasses.asdict(stage), "assumed": list(found.assumed.get(stage.name, ()))} for stage in found.stages]
    month = found.request.gigabyte_month
    return {
        "request": dataclasses.asdict(found.request),
        "partitions": found.partitions,
        "topics": found.topics,
        "local_topics": found.local_topics,
        "seconds": found.seconds,
        "cost": found.cost,
        "storage_bytes": found.storage,
        "storage_cost_month": None if month is None else found.storage / 1e9 * month,
        "stages": stages,
        "tables": dict(found.tables),
        "limit": found.limit.name,
        "advice": list(found.advice),
    }


def describe(found: Plan) -> str:
    """Return the plan as text for a terminal."""
    asked = found.request
    on = f"{asked.gpus:g} GPUs" if asked.gpus else "no GPU"
    priced = found.cost is not None
    lines = [
        f"corpus      {asked.documents:,} documents of {asked.tokens:g} tokens, about {found.topics:,} topics",
        f"machines    {runtime.Layout(asked.workers, asked.threads, 0.0)}, {on}; Spark with {asked.spark_cores:,} cores",
        f"partitions  {found.partitions:,}, with about {found.local_topics:,} local topics",
        "",
        f"{'stage':<10} {'by':<7} {'time':>9} {'share':>6} {'worker':>9} {'driver':>9} {'reads':>9} {'writes':>9} {'shuffles':>9}"
        + (f" {'cost':>10}" if priced else ""),
    ]
    for stage in found.stages:
        lines.append(_line(stage, found, priced))
    lines += [f"{'together':<10} {'':<7} {_time(found.seconds):>9}" + (f"{'':>58} {found.cost:>10,.2f}" if priced else ""), ""]
    lines += [f"{name:<22} {_bytes(size):>9}" for name, size in found.tables.items()]
    month = "" if asked.gigabyte_month is None else f", {found.storage / 1e9 * asked.gigabyte_month:,.2f} a month"
    lines += [f"{'store':<22} {_bytes(found.storage):>9}{month}", ""]
    lines += [f"* {line}" for line in found.advice]
    if found.assumed:
        rows = "; ".join(f"{stage} ({', '.join(names)})" for stage, names in found.assumed.items())
        lines.append(f"* Marked ~: rests on rates that are assumed, not measured: {rows}. Measure yours: topicscale benchmark.")
    return "\n".join(lines)


def _line(stage: Stage, found: Plan, priced: bool) -> str:
    share = f"{stage.seconds / found.seconds:.0%}"
    name = f"~{stage.name}" if stage.name in found.assumed else stage.name
    sizes = (stage.worker_memory, stage.driver_memory, stage.reads, stage.writes, stage.shuffles)
    line = f"{name:<10} {stage.engine:<7} {_time(stage.seconds):>9} {share:>6} " + " ".join(f"{_bytes(size):>9}" for size in sizes)
    return f"{line} {stage.cost:>10,.2f}" if priced and stage.cost is not None else line


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:,.0f} min" if seconds < 7200 else f"{seconds / 3600:,.1f} h"


def _bytes(size: float | None) -> str:
    if not size:
        return "-"
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if size < 1000 or unit == "TB":
            return f"{size:,.0f} {unit}" if size >= 10 or unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return ""
