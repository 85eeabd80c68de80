"""How long a run takes, what it holds and what it costs, from measured rates: what `topicscale plan` prints.

Every stage has a scaling law, told where it is computed (:func:`plan`), and every law rests on rates. A rate has a value, a unit,
and the machine that it was measured on; one that nobody measured here says so, and the plan says which of its rows rest on it.
The packaged rates are in ``topicscale/rates.yaml``; `topicscale benchmark` measures those of another machine.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from topicscale.cluster import local_min_cluster_size
from topicscale.config import ClusterConfig, PartitionConfig, TopicsConfig
from topicscale.errors import RequestError

GRAPH_BYTES = 3_000
"""Bytes a document takes while its partition is clustered: neighbour lists and the algorithm's own copies. An estimate, not measured."""
TEXT_BYTES = 4
"""Bytes a character takes while a worker embeds: in Arrow, as a Python string and in batches of tokens. An estimate, not measured."""
DIMENSIONS = 384
"""Of the packaged model, MiniLM, which the rates were measured with."""
MAX_TOKENS = 256
"""Tokens after which that model truncates a text."""
SIMULATED = 20_000
"""Partitions that the driver was tried with (``benchmarks/partitions.py``)."""
SHUFFLES = 200
"""Tasks that a shuffle of Spark's has unless it is told otherwise (``spark.sql.shuffle.partitions``, on a cluster)."""
DRIVER_MEMORY = 32 * 2**30
"""Bytes above which a driver's memory is worth a word."""
GIVEN = Path(__file__).with_name("rates.yaml")

UNITS = {
    "start": "s",
    "ingest": "characters / (core s)",
    "tokenize": "tokens / (core s)",
    "embed_cpu": "tokens / (core s)",
    "embed_gpu": "tokens / (GPU s)",
    "cluster": "documents x log2(documents of the partition) / (worker s)",
    "calibrate": "s",
    "leaves": "documents of a local topic / smallest local topic",
    "merge": "local topics / s",
    "merge_memory": "bytes / local topic",
    "assign": "documents x topics x dimensions / (core s)",
    "terms": "characters / (core s)",
    "publish": "s",
    "driver": "s / partition",
    "label": "labels / (worker s)",
    "characters": "characters / token",
    "text_bytes": "bytes / character",
    "vector_bytes": "bytes / (document x dimension)",
    "row_bytes": "bytes / document",
    "network": "bytes / (worker s)",
}
"""The rates, and what each is counted in."""


@dataclass(frozen=True)
class Rate:
    """One figure, and where it came from."""

    value: float
    machine: str
    source: str
    measured: bool = True
    """False: assumed, for the reason that ``source`` gives."""


Rates = Mapping[str, Rate]


def read_rates(path: str | Path | None = None) -> dict[str, Rate]:
    """Return the packaged rates, with those of a file in their place.

    Raises
    ------
    RequestError
        The file cannot be read, or names a rate that there is not, or one without a positive value in the right unit.
    """
    found = _read(GIVEN)
    return found if path is None else found | _read(Path(path))


def write_rates(path: str | Path, rates: Rates) -> None:
    """Write rates to a file that :func:`read_rates` reads."""
    rows = {
        name: {"value": rate.value, "unit": UNITS[name], "machine": rate.machine, "source": rate.source, "measured": rate.measured}
        for name, rate in rates.items()
    }
    Path(path).write_text(yaml.safe_dump(rows, sort_keys=False, allow_unicode=True, width=140), encoding="utf-8")


def _read(path: Path) -> dict[str, Rate]:
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise RequestError(f"The rates {str(path)!r} cannot be read: {error}") from error
    if not isinstance(content, dict) or not all(isinstance(row, dict) for row in content.values()):
        raise RequestError(f"The rates {str(path)!r} must be a mapping of names to value, unit, machine and source. Write one with: "
                           "topicscale benchmark --output FILE")  # fmt: skip
    return {name: _rate(str(path), name, row) for name, row in content.items()}


def _rate(path: str, name: str, row: Mapping[str, Any]) -> Rate:
    if name not in UNITS:
        near = difflib.get_close_matches(str(name), UNITS, 1)
        raise RequestError(f"{path}: there is no rate {name!r}.{f' Did you mean {near[0]!r}?' if near else ''} Rates: {', '.join(UNITS)}.")
    if row.get("unit") != UNITS[name]:
        raise RequestError(f"{path}: the unit of {name} must be {UNITS[name]!r}. Got {row.get('unit')!r} instead.")
    value = row.get("value")
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value) or value <= 0:
        raise RequestError(f"{path}: the value of {name} must be a positive number. Got {value!r} instead.")
    return Rate(float(value), str(row.get("machine", "unknown")), str(row.get("source", "unknown")), bool(row.get("measured", True)))


@dataclass(frozen=True)
class Request:
    """A corpus, and what is to work on it."""

    documents: int
    tokens: float
    """Of a document, in the mean."""
    workers: int
    """Ray actors. Each does one partition at a time."""
    threads: int
    """Processors of each."""
    gpus: float
    """In all; 0 embeds on processors."""
    spark_cores: int
    dimensions: int = DIMENSIONS
    max_tokens: int = MAX_TOKENS
    """A longer text is embedded up to here."""
    topics: int | None = None
    """None: one for 200 documents, at most 2,000."""
    labels: bool = False
    """Whether a language model names the topics."""
    model_memory: float = 2**30
    """Bytes of a worker without a partition: libraries and model."""
    gpu_hour: float | None = None
    """Price of a GPU for an hour."""
    core_hour: float | None = None
    gigabyte_month: float | None = None

    def __post_init__(self) -> None:
        least = {"documents": 1, "tokens": 1, "workers": 1, "threads": 1, "gpus": 0, "spark_cores": 1, "dimensions": 1, "max_tokens": 1}
        for name, low in least.items():
            _at_least(name, getattr(self, name), low)
        for name in ("gpu_hour", "core_hour", "gigabyte_month"):
            if getattr(self, name) is not None:
                _at_least(name, getattr(self, name), 0)
        if self.topics is not None:
            _at_least("topics", self.topics, 1)


def _at_least(name: str, value: float, low: float) -> None:
    if not math.isfinite(value) or value < low:
        raise RequestError(f"{name} must be at least {low:g}. Got {value:g} instead.")


@dataclass(frozen=True)
class Stage:
    """One stage of a run."""

    name: str
    engine: str
    """Spark, Ray, or driver."""
    seconds: float
    law: str
    """What the seconds grow with."""
    rates: tuple[str, ...]
    """Those that the seconds rest on."""
    worker_memory: float | None = None
    """Bytes of one worker. None: what Spark is given."""
    driver_memory: float = 0.0
    """Bytes that the driver holds for this stage."""
    reads: float = 0.0
    """Bytes from the store or the input."""
    writes: float = 0.0
    shuffles: float = 0.0
    """Bytes between the machines of one engine."""
    cost: float | None = None


@dataclass(frozen=True)
class Plan:
    """What a run needs."""

    request: Request
    partitions: int
    topics: int
    local_topics: int
    stages: tuple[Stage, ...]
    tables: Mapping[str, float]
    """Bytes of each table."""
    assumed: Mapping[str, tuple[str, ...]]
    """Stage -> what it rests on that nobody measured: rates, by name, and other assumptions."""
    advice: tuple[str, ...] = ()
    """What limits, and what to change."""

    @property
    def seconds(self) -> float:
        """Seconds of all stages, one after another."""
        return sum(stage.seconds for stage in self.stages)

    @property
    def limit(self) -> Stage:
        """The stage that takes the longest."""
        return max(self.stages, key=lambda stage: stage.seconds)

    @property
    def cost(self) -> float | None:
        """Price of the run; None without prices."""
        known = [stage.cost for stage in self.stages if stage.cost is not None]
        return sum(known) if known else None

    @property
    def storage(self) -> float:
        """Bytes of the store."""
        return sum(self.tables.values())


def worker_memory(documents: float, characters: float, *, dimensions: int = DIMENSIONS, model: float) -> float:
    """Return the bytes that a worker needs for a partition of so many documents and characters.

    Its vectors three times over (as read, as a matrix, as the algorithm's copy), a neighbour graph, its texts, and ``model`` bytes for
    libraries and the model.
    """
    return documents * (dimensions * 4 * 3 + GRAPH_BYTES) + characters * TEXT_BYTES + model


def plan(request: Request, rates: Rates) -> Plan:
    """Return what a run needs, stage by stage.

    The laws, for N documents of t tokens (c characters) in P partitions of n documents, k topics, d dimensions, W workers of p
    processors, G GPUs and S cores of Spark:

    - ingest: ``N c / (rate S)``. Spark reads the input twice (once to count) and shuffles it once, into partitions.
    - embed: ``N min(t, max) (d / 384)^3 / (rate G)``, or ``W p`` in place of G; at least the time that W p processors take to make
      tokens for the GPUs. An encoder d wide has about d / 64 layers (6 at 384, 12 at 768), of 12 d^2 weights each.
    - cluster: ``N log2(n) (d / 384) / (rate W)``: EVoC uses one thread, so that workers count, not their processors.
    - calibrate: constant, since its sample is; but every vector is read to find it.
    - merge: ``2 M / rate`` for M local topics, on one machine: once to find the topics, once for their lineage. M is the number of
      documents over the size of a local topic, of which the least is bounded (see ``cluster.local_min_cluster_size``). Its memory
      grows with ``M d``.
    - refine: 6 passes (3 rounds, two histograms, a count), each ``N k d / (rate W p)``, and the time that W workers take to read
      ``4 N d`` bytes.
    - assign: one such pass that writes, and one that adds up what was written.
    - terms: ``N c / (rate S)``; texts and assignments are joined, which shuffles the texts once.
    - publish: constant: the map is of a sample, and what is written is of topics.
    - label: ``k / (rate W)``.
    - driver: ``rate P``: scheduling and commits, which are beside the workers' work as long as that takes longer.

    Units are indivisible: embed, cluster and assign take as long as the worker with the most partitions, ``ceil(P / W)`` of them.

    Raises
    ------
    RequestError
        A rate is missing.
    """
    if missing := [name for name in UNITS if name not in rates]:
        raise RequestError(f"A plan must be given all rates. Without a value: {', '.join(missing)}.")
    rate = {name: found.value for name, found in rates.items()}
    documents, dimensions, workers = request.documents, request.dimensions, request.workers
    processors = workers * request.threads
    characters = documents * request.tokens * rate["characters"]
    embedded = documents * min(request.tokens, request.max_tokens)
    partitions = PartitionConfig().pieces(documents, math.ceil(characters))
    per_partition = documents / partitions
    topics = request.topics or max(1, min(documents // 200, 2_000))
    smallest = local_min_cluster_size(ClusterConfig(), TopicsConfig().min_size, documents=documents, partitions=partitions)
    local = max(1, round(documents / (rate["leaves"] * smallest)))
    width = dimensions / DIMENSIONS
    uneven = math.ceil(partitions / workers) * workers / partitions
    held = worker_memory(per_partition, characters / partitions, dimensions=dimensions, model=request.model_memory)
    tables = {
        "documents": characters * rate["text_bytes"],
        "embeddings": documents * dimensions * rate["vector_bytes"],
        "local_assignments": documents * rate["row_bytes"],
        "local_topics": local * dimensions * 8.0,
        "assignments": documents * rate["row_bytes"],
        "topics and the others": topics * dimensions * 12.0,
    }
    texts, vectors, rows = tables["documents"], tables["embeddings"], tables["assignments"]

    flops = width**3
    making = embedded / (rate["tokenize"] * processors)
    on_gpu = request.gpus > 0
    embed = embedded * flops / (rate["embed_gpu"] * request.gpus if on_gpu else rate["embed_cpu"] * processors)
    embed_rates = ("embed_gpu", "tokenize") if on_gpu else ("embed_cpu",)
    starved = on_gpu and making > embed
    reading = vectors / (rate["network"] * workers)
    comparing = documents * topics * dimensions / (rate["assign"] * processors)
    a_pass = comparing + reading
    pass_rates = ("assign", "network") if reading > 0.1 * a_pass else ("assign",)
    passes = TopicsConfig().rounds + 3
    sums = topics * dimensions * 8.0

    found = [
        Stage("start", "driver", rate["start"], "constant", ("start",)),
        Stage(
            "ingest", "Spark", characters / (rate["ingest"] * request.spark_cores), "characters / Spark cores", ("ingest", "characters"),
            reads=2 * characters, writes=texts, shuffles=characters,
        ),
        Stage(
            "embed", "Ray", max(embed, making if on_gpu else 0.0) * uneven,
            "tokens / processors of the workers (tokens are made slower than GPUs embed)" if starved
            else f"tokens / {'GPUs' if on_gpu else 'processors of the workers'}", embed_rates,
            worker_memory=held, reads=texts, writes=vectors,
        ),
        Stage(
            "cluster", "Ray", documents * math.log2(max(per_partition, 2)) * width / (rate["cluster"] * workers) * uneven,
            "documents x log(partition) / workers", ("cluster",),
            worker_memory=held, reads=vectors, writes=tables["local_assignments"] + tables["local_topics"],
        ),
        Stage(
            "calibrate", "Ray", max(rate["calibrate"], reading), "constant, or the bytes of the vectors / workers",
            ("calibrate",) if rate["calibrate"] >= reading else ("network",), worker_memory=held, reads=vectors,
        ),
        Stage(
            "merge", "driver", 2 * local / rate["merge"] * width if partitions > 1 else 0.0, "local topics", ("merge", "leaves"),
            driver_memory=local * rate["merge_memory"] * width, reads=2 * tables["local_topics"],
        ),
        Stage(
            "refine", "Ray", passes * a_pass, "documents x topics x dimensions / processors of the workers", pass_rates,
            worker_memory=held, driver_memory=2 * sums, reads=passes * vectors, shuffles=passes * min(partitions, 16 * workers) * sums,
        ),
        Stage(
            "assign", "Ray", 2 * a_pass * uneven, "documents x topics x dimensions / processors of the workers", pass_rates,
            worker_memory=held, reads=3 * vectors + rows, writes=rows, shuffles=partitions * sums,
        ),
        Stage(
            "terms", "Spark", characters / (rate["terms"] * request.spark_cores), "characters / Spark cores", ("terms", "characters"),
            reads=texts + rows, shuffles=characters + rows,
        ),
        Stage("publish", "driver", rate["publish"], "constant", ("publish",), driver_memory=2 * sums),
        Stage("driver", "driver", rate["driver"] * partitions, "partitions", ("driver",), driver_memory=partitions * 20_000.0),
    ]  # fmt: skip
    if request.labels:
        found.append(Stage("label", "Ray", topics / (rate["label"] * workers), "topics / workers", ("label",)))
    assumed = {stage.name: [name for name in stage.rates if not rates[name].measured] for stage in found}
    if dimensions != DIMENSIONS:
        assumed["embed"].append(f"layers of a model of {dimensions} dimensions")
    stages = tuple(_priced(stage, request) for stage in found)
    result = Plan(request, partitions, topics, local, stages, tables, {name: tuple(names) for name, names in assumed.items() if names})
    return replace(result, advice=tuple(_advice(result, starved=starved)))


def _priced(stage: Stage, request: Request) -> Stage:
    """Return a stage with what it costs: only the engine that works is paid for, and a driver has Ray's machines beside it."""
    if request.gpu_hour is None and request.core_hour is None:
        return stage
    cores = request.spark_cores if stage.engine == "Spark" else request.workers * request.threads
    gpus = 0.0 if stage.engine == "Spark" else request.gpus
    hourly = cores * (request.core_hour or 0.0) + gpus * (request.gpu_hour or 0.0)
    return replace(stage, cost=stage.seconds / 3600 * hourly)


_CHANGES = {
    "start": "Nothing: the corpus is small.",
    "ingest": "More Spark cores.",
    "embed": "More GPUs (or, without any, processors), or a smaller model (topicscale export tells what the formats of one cost).",
    "cluster": "More workers: EVoC uses one thread of each. ray.cpus_per_actor=1, or ray.gpus_per_actor=.25 where workers share GPUs.",
    "calibrate": "Nothing: the corpus is small.",
    "merge": "A larger cluster.min_cluster_size: fewer local topics. Or stores of their own for parts of the corpus, and topicscale merge.",
    "refine": "More processors for the workers, or fewer topics.rounds.",
    "assign": "More processors for the workers.",
    "terms": "More Spark cores.",
    "publish": "Nothing: the corpus is small.",
    "driver": "Larger partitions: partition.target_documents.",
    "label": "More workers with GPUs, or a server of its own for the model (llm.url), or llm.max_topics.",
}


def _advice(found: Plan, *, starved: bool) -> list[str]:
    limit = found.limit
    change = "More processors beside each GPU: they make its tokens." if starved and limit.name == "embed" else _CHANGES[limit.name]
    advice = [f"{limit.name} limits: {limit.seconds / found.seconds:.0%} of the time, by {limit.law}. {change}"]
    if found.partitions > SIMULATED:
        advice.append(
            f"{found.partitions:,} partitions are more than the {SIMULATED:,} that the driver was tried with. "
            "Make them larger, where workers have the memory: partition.target_documents."
        )
    if found.request.workers > found.partitions:
        advice.append(
            f"{found.request.workers:,} workers have {found.partitions:,} partitions to do: the others wait. Make partitions smaller "
            "(partition.target_documents), or take fewer workers."
        )
    if found.request.spark_cores > SHUFFLES:
        advice.append(
            f"{found.request.spark_cores:,} Spark cores are more than the {SHUFFLES} tasks of a shuffle: "
            f"--set spark.conf='{{spark.sql.shuffle.partitions: {4 * found.request.spark_cores}}}'"
        )
    merge = next(stage for stage in found.stages if stage.name == "merge")
    if merge.driver_memory > DRIVER_MEMORY:
        advice.append(
            f"The driver needs {merge.driver_memory / 2**30:,.0f} GiB to merge {found.local_topics:,} local topics. "
            "A larger cluster.min_cluster_size makes fewer."
        )
    return advice
