"""`topicscale benchmark`: run the whole job on a sample, and write the rates of this machine or cluster for `topicscale plan`.

The job runs twice: on a few documents, which tells what any run costs, and on the sample, out of whose log most rates are read. Spark
does its two stages twice more, on few and on many copies of the sample's texts, since it has hardly begun where embedding has long to
go; and what takes moments in a sample (comparing with topics, merging, making tokens) is timed by itself.
"""

from __future__ import annotations

import dataclasses
import json
import math
import os
import platform
import tempfile
import time
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa

from jobs.docstrings import build_corpus
from jobs.job import new_run_id, opened
from jobs.progress import Ui
from jobs.run import run, validate
from jobs.stages import ingest, publish
from ray_actors import runtime
from ray_actors.runtime import Layout
from topicscale import models
from topicscale.algorithms import limited
from topicscale.capacity import DIMENSIONS, Rate, write_rates
from topicscale.cluster import local_min_cluster_size, unit
from topicscale.config import Config, InputConfig
from topicscale.errors import JobFailed, RequestError
from topicscale.merge import Leaves, merge
from topicscale.refine import ALL, assign
from topicscale.store import Store, UnitWrite, write_part

DOCUMENTS, FEW, LEAST = 20_000, 2_000, 5_000
"""Documents of the first run, and of the smallest sample that says something."""
MANY = 200_000
"""Documents that Spark alone reads and counts, after few: what it takes beyond those is not start-up."""
LEAVES, COMPARED, TOPICS = 20_000, 20_000, 500
TEXTS = 1_000
"""Texts that are made into tokens alone."""


@dataclasses.dataclass(frozen=True)
class Measured:
    """What one run left."""

    seconds: Mapping[str, float]
    """By stage, and ``total``."""
    units: Mapping[str, list[tuple[int, float]]]
    """Stage -> (rows, seconds) of each unit."""
    detail: Mapping[str, dict[str, Any]]
    """Stage -> what the log says of it, numbers of units added up."""
    documents: int
    characters: int
    topics: int
    dimensions: int
    partitions: int
    table_bytes: Mapping[str, int]
    texts: list[str]


def benchmark(
    config: Config,
    output: str,
    *,
    documents: int | None = None,
    spark_cores: int | None = None,
    folder: str | None = None,
    ui: Ui | None = None,
) -> dict[str, Any]:
    """Measure the rates that a configuration reaches, write them to a file, and return them.

    Parameters
    ----------
    config : Config
        Without ``input.paths`` the sample is of docstrings of the installed packages.
    documents : int, optional
        Docstrings in the sample (default: 20,000). A corpus is measured whole.
    spark_cores : int, optional
        Cores of the cluster that Spark runs on; needed where it is not this machine.
    folder : str, optional
        Where samples and stores are made for a while; needed, and shared by all its machines, where there is a cluster.

    Raises
    ------
    RequestError
        The request is wrong; nothing was started. Or the input turned out to hold too few documents.
    JobFailed
        A unit failed.
    """
    ui = ui or Ui()
    if documents is not None and config.input.paths:
        raise RequestError("--documents is of docstrings, and an input is taken whole. Give one of --input and --documents.")
    documents = DOCUMENTS if documents is None else documents
    if documents < LEAST:
        raise RequestError(f"--documents must be at least {LEAST:,}: a smaller sample tells of start-up alone. Got {documents:,} instead.")
    folder_of = Path(output).resolve().parent
    if not folder_of.is_dir() or not os.access(folder_of, os.W_OK) or Path(output).is_dir():
        raise RequestError(f"--output must be a file in a folder that exists and can be written to. Got {output!r} instead.")
    if spark_cores is None:
        if config.spark.where is not None:
            raise RequestError("--spark-cores must say how many cores the executors of --spark have together. Got nothing instead.")
        spark_cores = len(os.sched_getaffinity(0))
    if folder is None and (config.ray.where or config.spark.where):
        raise RequestError("--folder must name a folder that all machines of the cluster share. Got nothing instead.")
    if folder is not None and not Path(folder).is_dir():
        raise RequestError(f"--folder must be a folder. Got {folder!r} instead.")
    if config.input.embedding_column is not None:
        raise RequestError("A benchmark must embed. Got input.embedding_column instead.")
    if config.input.paths:
        validate(config, output)
    ours = False
    layout = runtime.local_plan(config.ray)
    if layout is None:
        layout, ours = runtime.start(config.ray)
    try:
        with tempfile.TemporaryDirectory(dir=folder) as made:
            inside = Path(made).resolve()
            few = _run(_on_docstrings(config, inside / "few.jsonl", FEW), inside / "few", ui)
            given = config if config.input.paths else _on_docstrings(config, inside / "sample.jsonl", documents)
            sample = _run(given, inside / "sample", ui)
            if sample.documents < LEAST:
                raise RequestError(
                    f"The input must hold at least {LEAST:,} documents: fewer tell of start-up alone. Got {sample.documents:,} instead."
                )
            alone = _spark_alone(config, inside, FEW, ui), _spark_alone(config, inside, MANY, ui)
    finally:
        if ours:
            runtime.stop()
    where = f"{machine()}; {layout}{f' at {config.ray.where}' if config.ray.where else ''}, Spark with {spark_cores} cores"
    source = f"topicscale benchmark, {date.today()}, {sample.documents:,} documents in {sample.partitions:,} partitions"
    rates = {
        name: Rate(float(f"{value:.4g}"), where, source) for name, value in _rates(few, sample, alone, layout, spark_cores, given).items()
    }
    write_rates(output, rates)
    return {"rates": {name: dataclasses.asdict(rate) for name, rate in rates.items()}, "output": output, "seconds": dict(sample.seconds)}


def describe(found: Mapping[str, Any]) -> str:
    """Return the rates as text for a terminal."""
    from topicscale.capacity import UNITS

    lines = [f"{name:<14} {rate['value']:>14,.6g}  {UNITS[name]}" for name, rate in found["rates"].items()]
    others = ", ".join(name for name in UNITS if name not in found["rates"])
    return "\n".join(
        [*lines, f"Not measured here, taken from the packaged rates: {others}.", f"Rates: {found['output']}   Next: topicscale plan "
         f"--rates {found['output']} --documents N --tokens N --spark-cores N"]
    )  # fmt: skip


def machine() -> str:
    """Return what figures were measured on: processor and what it multiplies fast, memory, Python."""
    info = Path("/proc/cpuinfo").read_text()
    name = next((line.split(":")[1].strip() for line in info.splitlines() if line.startswith("model name")), platform.machine())
    flags = set(info.partition("flags")[2].split("\n", 1)[0].split())
    fast = " ".join(flag for flag in ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "amx_int8") if flag in flags)
    memory = psutil.virtual_memory().total / 2**30
    processors = f"{len(os.sched_getaffinity(0))} processors{f' ({fast})' if fast else ''}"
    return f"{name}, {processors}, {memory:.0f} GiB, Python {platform.python_version()}"


def _on_docstrings(config: Config, path: Path, documents: int) -> Config:
    """Return the configuration of a run over docstrings, in partitions of a size that says something of a large one's."""
    build_corpus(path, documents)
    return dataclasses.replace(
        config,
        input=InputConfig(paths=(str(path),), id_column="id"),
        partition=dataclasses.replace(config.partition, column=None, number=max(2, math.ceil(documents / 10_000))),
    )


def _run(config: Config, folder: Path, ui: Ui) -> Measured:
    result = run(config, str(folder), ui=ui)
    if result.failed:
        stage, units = next(iter(result.failed.items()))
        raise JobFailed(f"A rate cannot be measured where units fail: {stage} of {len(units)}, {next(iter(units.values()))}")
    store = Store(folder)
    units: dict[str, list[tuple[int, float]]] = {}
    detail: dict[str, dict[str, Any]] = {}
    for row in store.read("runs").to_pylist():
        told = json.loads(row["detail"]) if row["detail"] and row["status"] == "done" else {}
        if row["partition_id"] is not None and row["status"] == "done":
            units.setdefault(row["stage"], []).append((row["rows"], row["seconds"]))
        held = detail.setdefault(row["stage"], {})
        for key, value in told.items():
            held[key] = held.get(key, 0) + value if isinstance(value, int | float) else value
    described = store.read("partitions", ["rows", "chars"])
    vector = store.read("topics", ["reference_vector"])["reference_vector"][0]
    some = store.table("documents").to_pyarrow_dataset().head(TEXTS, columns=["text"])
    return Measured(
        result.seconds,
        units,
        detail,
        sum(described["rows"].to_pylist()),
        sum(described["chars"].to_pylist()),
        result.topics,
        len(vector),
        described.num_rows,
        {name: _size(store, name) for name in ("documents", "embeddings", "assignments")},
        some["text"].to_pylist(),
    )


@dataclasses.dataclass(frozen=True)
class SparkAlone:
    """Spark's stages on many documents."""

    characters: int
    seconds: Mapping[str, float]
    """By stage."""


def _spark_alone(config: Config, folder: Path, documents: int, ui: Ui) -> SparkAlone:
    """Return what Spark takes for so many copies of a sample's texts, each with a word of its own, in many topics."""
    texts = Store(folder / "sample").read("documents", ["text"])["text"].to_pylist()
    path, characters = folder / f"copies-{documents}.jsonl", 0
    with path.open("w", encoding="utf-8") as out:
        for number in range(documents):
            text = f"{texts[number % len(texts)]} copy{number // len(texts)}"
            characters += len(text)
            out.write(json.dumps({"id": str(number), "text": text}) + "\n")
    given = dataclasses.replace(
        config,
        input=InputConfig(paths=(str(path),), id_column="id"),
        partition=dataclasses.replace(config.partition, column=None, number=16),
    )
    store = Store(folder / f"copies-{documents}", create=True)
    with opened(store, given, new_run_id(), ui, rows=MANY) as job:  # few documents too: started the same way, so that only work differs
        for partition in ingest.ingest(job, validate(given, store.uri)):
            pid = partition.partition_id
            ids = store.read("documents", ["doc_id"], partitions=[pid])["doc_id"]
            topics = np.arange(len(ids), dtype=np.int32) % TOPICS
            rows = pa.table({"doc_id": ids, "topic_id": topics, "probability": np.ones(len(ids), np.float32)})
            store.commit("assignments", [UnitWrite("assign", pid, "0" * 32, write_part(store.uri, "assignments", pid, rows))])
        publish.count_terms(job, "0" * 32, cores=np.full(TOPICS, ALL, np.float32))
        return SparkAlone(characters, dict(job.timings))


def _size(store: Store, name: str) -> int:
    return sum(pa.table(store.table(name).get_add_actions())["size_bytes"].to_pylist())


def _rates(
    few: Measured, sample: Measured, alone: tuple[SparkAlone, SparkAlone], layout: Layout, spark_cores: int, config: Config
) -> dict[str, float]:
    """Return the rates that two runs tell, by the names of :data:`topicscale.capacity.UNITS`."""
    per_token, made = _tokens(sample.texts, config)
    threads, gpus = layout.cpus, layout.gpus
    tokens, embedding = sample.detail["embed"]["tokens"], sum(seconds for _, seconds in sample.units["embed"])
    width = sample.dimensions / DIMENSIONS
    smallest = local_min_cluster_size(config.cluster, config.topics.min_size, documents=sample.documents, partitions=sample.partitions)
    # what a run takes beside its units and what is told apart below
    constant = few.seconds["total"] - sum(few.seconds.get(stage, 0.0) for stage in ("calibrate", "refine", "map", "publish"))
    constant -= sum(seconds for stage in ("embed", "cluster", "assign") for _, seconds in few.units[stage]) / layout.actors
    rates = {
        "start": max(constant, 1.0),
        "ingest": _beyond(*alone, "ingest") / spark_cores,
        "tokenize": made,
        ("embed_gpu" if gpus else "embed_cpu"): tokens * width**3 / (embedding * (gpus or threads)),
        # the best unit: a worker's first one loads libraries
        "cluster": max(rows * math.log2(max(rows, 2)) * width / max(seconds, 1e-3) for rows, seconds in sample.units["cluster"]),
        "calibrate": sample.seconds["calibrate"],
        "leaves": sample.documents / (max(sample.detail["refine"]["local"], 1) * smallest),
        "merge": _merging(),
        "assign": _comparing(threads),
        "terms": _beyond(*alone, "terms") / spark_cores,
        "publish": sample.seconds["map"] + sample.seconds["publish"],
        "characters": per_token,
        "text_bytes": sample.table_bytes["documents"] / sample.characters,
        "vector_bytes": sample.table_bytes["embeddings"] / (sample.documents * sample.dimensions),
        "row_bytes": sample.table_bytes["assignments"] / sample.documents,
    }
    if sample.partitions == 1:
        del rates["leaves"]  # the topics of many partitions are smaller ones, see cluster.local_min_cluster_size
    return rates


def _beyond(few: SparkAlone, many: SparkAlone, stage: str) -> float:
    """Return the characters a second of what a stage did with many documents beyond what it did with few: start-up aside."""
    return (many.characters - few.characters) / max(many.seconds[stage] - few.seconds[stage], 0.1 * many.seconds[stage])


def _tokens(texts: list[str], config: Config) -> tuple[float, float]:
    """Return characters a token, of whole texts, and the tokens that one processor makes in a second."""
    from transformers import AutoTokenizer

    parallel = os.environ.get("TOKENIZERS_PARALLELISM")
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    try:
        tokenizer = AutoTokenizer.from_pretrained(models.resolve(config.embedding.model).path, local_files_only=True)
        began = time.perf_counter()
        made = sum(len(ids) for ids in tokenizer(texts, truncation=False, verbose=False)["input_ids"])
        seconds = time.perf_counter() - began
    finally:
        if parallel is None:
            del os.environ["TOKENIZERS_PARALLELISM"]
        else:
            os.environ["TOKENIZERS_PARALLELISM"] = parallel
    return sum(map(len, texts)) / made, made / seconds


def _comparing(threads: int) -> float:
    """Return the multiplications and additions a second that one of so many processors does, comparing documents with topics."""
    random = np.random.default_rng(0)
    vectors, topics = (unit(random.normal(size=(rows, DIMENSIONS))).astype(np.float32) for rows in (COMPARED, TOPICS))
    cutoffs = np.zeros(TOPICS, np.float32)
    with limited(threads):
        began = time.perf_counter()
        assign(vectors, topics, cutoffs)
        return COMPARED * TOPICS * DIMENSIONS / (time.perf_counter() - began) / threads


def _merging() -> float:
    """Return the local topics a second that this process merges, of the packaged model's dimensions."""
    random = np.random.default_rng(0)
    centres = random.normal(size=(LEAVES // 100, DIMENSIONS))
    vectors = unit(centres[random.integers(0, len(centres), LEAVES)] + random.normal(size=(LEAVES, DIMENSIONS)) * 0.7)
    sizes = random.integers(5, 100, LEAVES)
    began = time.perf_counter()
    merge(Leaves.of(sizes, vectors * sizes[:, None])[0], number=len(centres))
    return LEAVES / (time.perf_counter() - began)
