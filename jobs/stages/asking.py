"""Asking a language model: its workers or its server, and the answers that are there already.

Each answer is kept in the table ``answers`` as soon as it is there, under a digest of all that it depends on.
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from jobs.job import Job
from ray_actors import runtime
from ray_actors.pool import Pool, Unit
from ray_actors.runtime import Layout
from topicscale.config import Config, LlmConfig, fingerprint
from topicscale.errors import ConfigError, JobFailed, RequestError, ResourceError
from topicscale.llm import models
from topicscale.llm.backend import Answer, Ask
from topicscale.llm.memory import LlmLayout, plan, size
from topicscale.llm.prompts import Template, load
from topicscale.llm.retrieve import Float32
from topicscale.llm.server import Server
from topicscale.tables import TABLES
from topicscale.terms import words

LIMIT = "beyond llm."
"""How the error begins of what was not asked because a limit was reached."""
CODE = 2
"""Raised when the same ask would make another prompt or another answer, so that old answers are not taken for new ones."""
LONGEST_ANSWER = 4_000
"""Characters of an answer that are kept."""
PER_SERVER_ROUND = 2
"""A server is sent so many times ``concurrency`` asks before their answers are committed."""
GIVEN_UP = 2
"""Rounds without a single answer, one after the other, after which a server is asked nothing more: it is down, or refuses every request."""
DURABLE_SECONDS = 1.0
"""Answers wait for others so long before they are committed: a driver that is killed loses no more than these."""


def check(config: LlmConfig) -> None:
    """Raise what can be known to fail before anything is started: the model, its packages, the prompt, the server.

    Raises
    ------
    ModelError, MissingDependency, ConfigError
    """
    template = load(config)
    models.check(config)
    if models.backend(config) == "server":
        if config.tokenizer == "model":
            raise ConfigError(
                "llm.tokenizer must be char, whitespace or vectorizer with a server, whose tokens are not known. Got model instead."
            )
        server = _server(config, template)
        try:
            server.check()
        finally:
            server.close()


def comparable(config: Config) -> bool:
    """Return whether words can be embedded where the documents are: their vectors did not come with them, or the model was named."""
    return config.input.embedding_column is None or bool(config.zeroshot.topics)


def embed_texts(job: Job, pool: Pool, texts: Sequence[str], *, dimensions: int) -> Float32:
    """Return vectors of words or labels in the space of the documents, float32 (n, d).

    Raises
    ------
    RequestError
        The documents' vectors came with them, and are of another model than ``embedding.model``.
    """
    found: Float32 = pool.call("embed_texts", config=job.config.embedding, texts=list(texts))
    if dimensions and len(found) and found.shape[1] != dimensions:
        raise RequestError(
            f"embedding.model must embed words in the documents' own space, of {dimensions} dimensions. "
            f"Got {job.config.embedding.model!r}, of {found.shape[1]}, instead. Run the job with the model that the documents were "
            "embedded with, or take an aspect that compares nothing: llm with llm.candidates=1."
        )
    return found


class Asker:
    """The model under way: its workers, started when the first ask is not answered yet, and what it was asked so far."""

    def __init__(self, job: Job, template: Template) -> None:
        self._job, self._config = job, job.config.llm
        self._template = dataclasses.asdict(template)
        self._vectors: dict[str, npt.NDArray[np.float32]] = {}
        self._began = time.monotonic()
        self._tokens = 0
        self._pool: Pool | None = None
        self._layout: LlmLayout | None = None
        self._identity = models.identity(self._config)
        self._server = _server(self._config, template) if models.backend(self._config) == "server" else None

    def __enter__(self) -> Asker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._pool is not None:
            self._pool.close()
        if self._server is not None:
            self._server.close()

    def embed(self, texts: Sequence[str], *, dimensions: int) -> Float32:
        """Return the vectors of labels in the documents' space, float32 (n, d); a label is embedded once, however often it is looked at."""
        if new := [text for text in dict.fromkeys(texts) if text not in self._vectors]:
            pool = self._pool if self._pool is not None else self._job.engines.pool
            self._vectors |= zip(new, embed_texts(self._job, pool, new, dimensions=dimensions), strict=True)
        return np.stack([self._vectors[text] for text in texts])

    def ask(self, asks: Sequence[Ask]) -> list[Answer]:
        """Return an answer for each ask, in order; what was answered before comes from the store."""
        prints = [self._print(ask) for ask in asks]
        answers = self._known(set(prints))
        pending = {fp: ask for fp, ask in zip(prints, asks, strict=True) if fp not in answers}
        if pending:
            store = self._job.store
            store.create_table("answers")  # an older store has none
            buffer: list[tuple[str, Answer]] = []
            oldest = time.monotonic()
            told = f"label: {len(pending):,} prompts"
            self._job.ui.log("stage", f"{told}, {len(answers):,} answered before" if answers else told, stage="label")
            with self._job.ui.stage("label", len(pending), unit="prompts") as bar:
                try:
                    for fp, given in self._answers(pending):
                        answer = answers[fp] = dataclasses.replace(given, text=_kept(given.text))
                        self._tokens += answer.read + answer.written
                        if answer.text is not None:
                            buffer.append((fp, answer))
                        bar.advance(1)
                        if time.monotonic() - oldest >= DURABLE_SECONDS:
                            self._commit(buffer)
                            oldest = time.monotonic()
                finally:
                    self._commit(buffer)  # also when interrupted: what is answered stays answered
        return [answers[fp] for fp in prints]

    def _print(self, ask: Ask) -> str:
        c = self._config
        drawn = [c.temperature, c.repetition_penalty, c.max_new_tokens, c.seed, c.template, c.doc_length, c.tokenizer, c.request]
        return fingerprint("ask", CODE, self._identity, self._template, drawn, dataclasses.asdict(ask))

    def _known(self, prints: set[str]) -> dict[str, Answer]:
        if not self._job.store.has("answers"):
            return {}
        rows = self._job.store.table("answers").to_pyarrow_dataset()
        wanted = rows.to_table(columns=["request", "text"], filter=pc.is_in(pc.field("request"), pa.array(sorted(prints), pa.string())))
        return {row["request"]: Answer(row["text"]) for row in wanted.to_pylist()}

    def _commit(self, buffer: list[tuple[str, Answer]]) -> None:
        at = datetime.now(UTC)
        rows = [{"request": fp, "text": a.text, "tokens_read": a.read, "tokens_written": a.written, "at": at} for fp, a in buffer]
        if rows:
            self._job.store.append("answers", pa.Table.from_pylist(rows, schema=TABLES["answers"].schema))
        buffer.clear()

    def _answers(self, pending: Mapping[str, Ask]) -> Any:
        """Yield answers as they come; once a limit is reached or the server gives none, the rest gets that for an error."""
        waiting, size = list(pending), self._chunk(len(pending))
        chunks = [waiting[i : i + size] for i in range(0, len(waiting), size)]
        if self._server is not None:
            unanswered, gone = 0, None
            for chunk in chunks:
                if over := gone or self._over():
                    found = [Answer(None, over)] * len(chunk)
                else:
                    found = self._server.complete([pending[fp] for fp in chunk])
                    unanswered = unanswered + 1 if all(answer.text is None for answer in found) else 0
                    gone = found[-1].error if unanswered == GIVEN_UP else None
                yield from zip(chunk, found, strict=True)
            return
        yield from self._on_workers(pending, chunks)

    def _on_workers(self, pending: Mapping[str, Ask], chunks: list[list[str]]) -> Any:
        pool, layout = self._workers()
        refused: list[str] = []
        of = {str(i): chunk for i, chunk in enumerate(chunks)}
        arguments = {"config": self._config, "batch": layout.batch}

        def units(of: Mapping[str, list[str]]) -> Any:
            for key, chunk in of.items():
                if over := self._over():  # asked when a worker is free, not when the list was made
                    refused.extend((fp, over) for fp in chunk)
                else:
                    yield Unit(key, {**arguments, "asks": [pending[fp] for fp in chunk]})

        broken: list[str] = []
        for outcome in pool.run("complete", units(of)):
            if outcome.error is None:
                yield from zip(of[outcome.key], outcome.value, strict=True)
            elif len(of[outcome.key]) > 1:
                broken += of[outcome.key]  # one of them may be at fault: each on its own
            else:
                yield of[outcome.key][0], Answer(None, outcome.error)
        single = {str(i): [fp] for i, fp in enumerate(broken)}
        for outcome in pool.run("complete", units(single)) if single else ():
            yield single[outcome.key][0], outcome.value[0] if outcome.error is None else Answer(None, outcome.error)
        for fp, over in refused:
            yield fp, Answer(None, over)

    def _chunk(self, asks: int) -> int:
        if self._server is not None:
            return PER_SERVER_ROUND * self._config.concurrency
        layout = self._workers()[1]
        return min(layout.batch.prompts, math.ceil(asks / layout.actors))  # no worker is without while others have many

    def _over(self) -> str | None:
        c = self._config
        if c.max_seconds is not None and time.monotonic() - self._began > c.max_seconds:
            return f"{LIMIT}max_seconds={c.max_seconds:g}"
        if c.max_tokens is not None and self._tokens > c.max_tokens:
            return f"{LIMIT}max_tokens={c.max_tokens}"
        return None

    def _workers(self) -> tuple[Pool, LlmLayout]:
        if self._pool is None or self._layout is None:
            self._job.engines.release()  # their processors and memory are the model's now
            machines = runtime.nodes()
            asked = self._config.gpus_per_actor
            wanted = "gpus" if asked or (asked is None and any(machine.gpus for machine in machines)) else "cpus"
            machines = [machine for machine in machines if getattr(machine, wanted)]
            if not machines and asked:
                raise ResourceError(
                    f"llm.gpus_per_actor={asked:g} needs a machine with a GPU that Ray counts, and there is none. "
                    "Start one (`nvidia-smi` and `ray status` show what is there), or use processors: llm.gpus_per_actor=0."
                )
            if not machines:
                raise ResourceError("The cluster has no machine with processors yet. Start one, then run the same command again.")
            # no worker spans two machines: what the smallest holds, each holds
            least = min(machines, key=lambda machine: (machine.gpus, machine.cpus))
            gpus = least.gpus
            memory = (self._config.gpu_memory or 0.0) * 2**30
            if gpus and not memory and asked != 0:
                memory = self._gpu_memory()
            model = models.resolve(self._config.model)
            if not models.is_unpacked(model):
                self._job.ui.log("stage", f"label: unpacking {model.name}, once on this machine", stage="label")
            of = size(model, self._config)
            actors = self._config.actors
            share = dataclasses.replace(self._config, actors=math.ceil(actors / len(machines)) if actors else None)
            layout = plan(share, of, cpus=least.cpus, gpus=gpus, gpu_memory=memory, memory=least.memory)
            layout = dataclasses.replace(layout, actors=actors or layout.actors * len(machines))
            self._job.ui.log("stage", f"label: {self._config.model}, {layout}", stage="label", need=round(layout.need))
            from ray_actors.label import Labeller

            self._pool = self._job.engines.workers(Layout(layout.actors, layout.cpus, layout.gpus), Labeller)
            self._layout = layout
            ready = {"config": self._config, "batch": layout.batch}
            for outcome in self._pool.run("load_llm", [Unit(f"load {i}", ready) for i in range(layout.actors)]):
                if outcome.error is not None:
                    raise JobFailed(f"label: the model could not be loaded: {outcome.error}")
        return self._pool, self._layout

    def _gpu_memory(self) -> float:
        import ray

        from ray_actors.label import gpu_memory

        seconds = self._job.config.ray.timeout
        try:
            return float(ray.get(ray.remote(num_gpus=1)(gpu_memory).remote(), timeout=seconds))
        except (ray.exceptions.GetTimeoutError, ray.exceptions.RayTaskError) as error:
            raise ResourceError(
                f"No GPU of the cluster could be asked for its memory within {seconds:g} s (ray.timeout): {type(error).__name__}. Give it "
                "(llm.gpu_memory, in GiB), or use none: llm.gpus_per_actor=0."
            ) from error


def _kept(text: str | None) -> str | None:
    """Return what is stored of an answer and used of it: without a model's thoughts, and without what is no Unicode text."""
    if text is None:
        return None
    said = text.rpartition("</think>")[2]
    return said[:LONGEST_ANSWER].encode("utf-8", "replace").decode("utf-8")


def _server(config: LlmConfig, template: Template) -> Server:
    return Server(config, lambda ask: template.messages(ask, words=words))
