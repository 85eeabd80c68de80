"""A language model's labels: every topic asked about, the answers cleaned, checked against all topics, and made distinct.

Each answer is kept in the table ``answers`` as soon as it is there, under a digest of all that it depends on. What is
made of the answers is a function of them alone, so that a job that was killed goes on where it stopped, and asks nothing
again that was answered.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs.job import Job
from ray_actors.pool import Pool, Unit
from ray_actors.runtime import Layout
from topicscale.config import LlmConfig, fingerprint
from topicscale.errors import JobFailed, RequestError, ResourceError
from topicscale.llm import models
from topicscale.llm.backend import Answer, Ask
from topicscale.llm.clean import clean
from topicscale.llm.memory import LlmLayout, plan, size
from topicscale.llm.prompts import load
from topicscale.llm.retrieve import Float32, mean_reciprocal_rank, ranks
from topicscale.llm.server import Server
from topicscale.llm.unique import clashes, distinct, normalised
from topicscale.represent.view import View
from topicscale.tables import TABLES
from topicscale.terms import words

CODE = 1
"""Raised when the same ask would make another prompt, so that old answers are not taken for new ones."""
LONGEST_ANSWER = 4_000
"""Characters of an answer that are kept."""
PER_SERVER_ROUND = 2
"""A server is sent so many times ``concurrency`` asks before their answers are committed."""
DURABLE_SECONDS = 1.0
"""Answers wait for others so long before they are committed: a driver that is killed loses no more than these."""


@dataclass(frozen=True)
class Named:
    """What became of some topics' labels."""

    rows: list[dict[str, Any]]
    """Rows of ``topic_labels`` without their aspect."""
    labelled: int
    fallback: dict[int, str]
    """Topic -> why its keywords are its label."""
    measures: dict[str, float]


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
            "embedded with, or take aspects that compare nothing: ctfidf, or llm with llm.candidates=1."
        )
    return found


@dataclass
class _Candidate:
    label: str
    rank: int = 0
    similarity: float = 0.0


def check(config: LlmConfig) -> None:
    """Raise what can be known to fail before anything is started: the model, its packages, the prompt, the server.

    Raises
    ------
    ModelError, MissingDependency, ConfigError
    """
    load(config)
    models.check(config)
    if models.backend(config) == "server":
        server = _server(config)
        try:
            server.check()
        finally:
            server.close()


def name_topics(
    job: Job, views: Sequence[View], described: Sequence[Sequence[str]], *, rows: Sequence[Mapping[str, Any]], taken: Mapping[int, str]
) -> Named:
    """Return a language model's labels of topics.

    Parameters
    ----------
    described : sequence of sequence of str
        Keywords of each view's topic, best first: what the prompt holds, and what names a topic that gets no label.
    rows : sequence of mapping
        All of ``topics``: a label is checked against every topic of the store.
    taken : mapping of int to str
        Labels of topics that are fixed, and that no other topic may have.

    Raises
    ------
    JobFailed
        The model answered nothing at all.
    """
    config = job.config.llm
    sizes = {row["topic_id"]: row["size"] for row in rows}
    keywords = {view.topic_id: [w for w in found if w] for view, found in zip(views, described, strict=True)}
    # the largest first: they are the ones to have when a limit ends it
    order = sorted(keywords, key=lambda topic: (-sizes[topic], topic))
    asked = order[: config.max_topics] if config.max_topics is not None else order
    of = {view.topic_id: view for view in views}
    template = load(config)
    shows = "[DOCUMENTS]" in template.question
    asks = {topic: _asks(of[topic].documents if shows else (), keywords[topic], config) for topic in asked}
    reasons = dict.fromkeys(order[len(asked) :], f"beyond llm.max_topics={config.max_topics}")
    reasons |= {topic: "no document and no keyword to show" for topic, mine in asks.items() if not mine}
    with _Asker(job) as asker:
        # everyone's first label before anyone's second
        turns = [(turn, topic, mine[turn]) for turn in range(config.candidates) for topic in asked if turn < len(mine := asks[topic])]
        answers = asker.ask([ask for _, _, ask in turns])
        candidates: dict[int, list[_Candidate]] = {topic: [] for topic in asked}
        first: dict[int, _Candidate] = {}
        for (turn, topic, ask), answer in zip(turns, answers, strict=True):
            label, reason = _cleaned(answer, ask, template.own)
            if label is None:
                reasons.setdefault(topic, reason)
                continue
            candidate = _Candidate(label)
            if turn == 0:
                first[topic] = candidate
            if all(normalised(label) != normalised(other.label) for other in candidates[topic]):
                candidates[topic].append(candidate)
        shown = {topic: _Candidate(", ".join(keywords[topic][:3]) or str(topic)) for topic in order}
        # topics of two embedding models, merged by their words, have no vectors to be compared with
        checked = config.candidates > 1 and all(len(row["reference_vector"]) for row in rows)
        if checked:
            _rank(asker, rows, [(t, c) for t, mine in candidates.items() for c in mine] + [*first.items(), *shown.items()])
        chosen = {topic: min(mine, key=_merit) for topic, mine in candidates.items() if mine}
        _settle(asker, job, rows, asks, chosen, keywords, taken, checked)
    labels = distinct({topic: c.label for topic, c in chosen.items() if topic not in taken}, keywords, taken)
    # what goes by another name may be described by any label
    labels |= {topic: c.label for topic, c in chosen.items() if topic in taken}
    fallback = {topic: reasons.get(topic, "no answer") for topic in order if topic not in labels}
    labels |= {topic: shown[topic].label for topic in fallback}
    told = []
    for topic in sorted(order):
        status, detail = "ok", ""
        if topic in fallback:
            status, detail = "fallback", fallback[topic]
        elif checked:
            detail = f"found at place {chosen[topic].rank} of {len([r for r in rows if r['topic_id'] >= 0])}"
        told.append({"topic_id": topic, "label": labels[topic], "terms": [], "status": status, "detail": detail})
    measures = _measures(order, chosen, first, shown) if checked else {}
    return Named(told, len(chosen), fallback, measures)


def _asks(documents: Sequence[str], keywords: Sequence[str], config: LlmConfig) -> list[Ask]:
    """Return up to ``candidates`` different asks about a topic: other documents each time, at last keywords alone."""
    found: list[Ask] = []
    for turn in range(config.candidates):
        shown = documents[turn * config.documents : (turn + 1) * config.documents] if config.documents else ()
        ask = Ask(tuple(shown), tuple(keywords[: config.keywords]))
        if (ask.documents or ask.keywords) and ask not in found:
            found.append(ask)
        if not shown:
            break
    return found


def _cleaned(answer: Answer, ask: Ask, prompt: str) -> tuple[str | None, str]:
    if answer.text is None:
        return None, answer.error or "no answer"
    cleaned = clean(answer.text, ask, prompt=prompt)
    return cleaned.label, "" if cleaned.label else f"the answer was no label: {cleaned.reason}"


def _merit(candidate: _Candidate) -> tuple[int, float]:
    return candidate.rank, -candidate.similarity


def _rank(asker: _Asker, rows: Sequence[Mapping[str, Any]], found: Sequence[tuple[int, _Candidate]]) -> None:
    real = [row for row in rows if row["topic_id"] >= 0]
    row_of = {row["topic_id"]: i for i, row in enumerate(real)}
    if not found:
        return
    centres = np.array([row["reference_vector"] for row in real], np.float32)
    texts = sorted({candidate.label for _, candidate in found})
    vectors = asker.embed(texts, dimensions=centres.shape[1])
    at = {text: i for i, text in enumerate(texts)}
    picked = vectors[[at[candidate.label] for _, candidate in found]]
    own = np.array([row_of[topic] for topic, _ in found], np.int64)
    similar = np.einsum("ij,ij->i", picked, centres[own])
    for (_, candidate), rank, cosine in zip(found, ranks(picked, own, centres), similar, strict=True):
        candidate.rank, candidate.similarity = int(rank), float(cosine)


def _settle(
    asker: _Asker,
    job: Job,
    rows: Sequence[Mapping[str, Any]],
    asks: Mapping[int, list[Ask]],
    chosen: dict[int, _Candidate],
    keywords: Mapping[int, Sequence[str]],
    taken: Mapping[int, str],
    checked: bool,
) -> None:
    """Ask again about topics of one label, each with the others' keywords; an answer that is nobody's label replaces it."""
    labels = {**{topic: c.label for topic, c in chosen.items()}, **taken}
    groups = [[topic for topic in group if topic in chosen and topic not in taken] for group in clashes(labels)]
    again: list[tuple[int, Ask]] = []
    told = {row["topic_id"]: tuple(row["keywords"] or ()) for row in rows} | {t: tuple(w) for t, w in keywords.items()}
    for group, everyone in zip(groups, clashes(labels), strict=True):
        for topic in group:
            rivals = tuple((labels[other], told.get(other, ())[: job.config.llm.keywords]) for other in everyone if other != topic)[:3]
            again.append((topic, dataclasses.replace(asks[topic][0], rivals=rivals)))
    if not again:
        return
    fresh: list[tuple[int, _Candidate]] = []
    for (topic, ask), answer in zip(again, asker.ask([ask for _, ask in again]), strict=True):
        label, _ = _cleaned(answer, ask, load(job.config.llm).own)
        if label is not None:
            fresh.append((topic, _Candidate(label)))
    if checked:
        _rank(asker, rows, fresh)
    used = {normalised(label) for topic, label in labels.items()}
    for topic, candidate in fresh:
        if normalised(candidate.label) not in used:
            used.add(normalised(candidate.label))
            chosen[topic] = candidate


def _measures(
    order: Sequence[int], chosen: Mapping[int, _Candidate], first: Mapping[int, _Candidate], shown: Mapping[int, _Candidate]
) -> dict[str, float]:
    """Return mean reciprocal ranks; a topic without a label is found by its keywords, which is what it then goes by."""

    def mean(found: Mapping[int, _Candidate]) -> float:
        placed = [found.get(topic, shown[topic]).rank for topic in order]
        return round(mean_reciprocal_rank(np.array(placed, np.int64)), 4)

    return {"labels": mean(chosen), "one_shot": mean(first), "keywords": mean(shown)}


class _Asker:
    """The model under way: its workers, started when the first ask is not answered yet, and what it was asked so far."""

    def __init__(self, job: Job) -> None:
        self._job, self._config = job, job.config.llm
        self._began = time.monotonic()
        self._tokens = 0
        self._pool: Pool | None = None
        self._layout: LlmLayout | None = None
        self._identity = models.identity(self._config)
        self._server = _server(self._config) if models.backend(self._config) == "server" else None

    def __enter__(self) -> _Asker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._pool is not None:
            self._pool.close()
        if self._server is not None:
            self._server.close()

    def embed(self, texts: Sequence[str], *, dimensions: int) -> Float32:
        """Return the vectors of labels in the documents' space, float32 (n, d)."""
        pool = self._pool if self._pool is not None else self._job.engines.pool
        return embed_texts(self._job, pool, texts, dimensions=dimensions)

    def ask(self, asks: Sequence[Ask]) -> list[Answer]:
        """Return an answer for each ask, in order; what was answered before comes from the store."""
        prints = [self._print(ask) for ask in asks]
        answers = self._known(set(prints))
        pending = {fp: ask for fp, ask in zip(prints, asks, strict=True) if fp not in answers}
        errors: set[str] = set()
        if pending:
            store = self._job.store
            store.create_table("answers")  # an older store has none
            buffer: list[tuple[str, Answer]] = []
            oldest = time.monotonic()
            told = f"label: {len(pending):,} prompts"
            self._job.ui.log("stage", f"{told}, {len(answers):,} answered before" if answers else told, stage="label")
            with self._job.ui.stage("label", len(pending)) as bar:
                try:
                    for fp, answer in self._answers(pending):
                        answers[fp] = answer
                        self._tokens += answer.read + answer.written
                        if answer.text is None:
                            errors.add(answer.error or "no answer")
                        else:
                            buffer.append((fp, answer))
                        bar.advance(1)
                        if time.monotonic() - oldest >= DURABLE_SECONDS:
                            self._commit(buffer)
                            oldest = time.monotonic()
                finally:
                    self._commit(buffer)  # also when interrupted: what is answered stays answered
        if prints and all(answers[fp].text is None for fp in prints):
            raise JobFailed(f"label: the model answered none of {len(prints):,} prompts: {'; '.join(sorted(errors))[:500]}")
        return [answers[fp] for fp in prints]

    def _print(self, ask: Ask) -> str:
        c = self._config
        drawn = [c.temperature, c.repetition_penalty, c.max_new_tokens, c.seed, c.template, c.doc_length, c.tokenizer]
        return fingerprint("ask", CODE, self._identity, dataclasses.asdict(load(c)), drawn, dataclasses.asdict(ask))

    def _known(self, prints: set[str]) -> dict[str, Answer]:
        if not self._job.store.has("answers"):
            return {}
        rows = self._job.store.table("answers").to_pyarrow_dataset()
        wanted = rows.to_table(columns=["request", "text"], filter=pc.is_in(pc.field("request"), pa.array(sorted(prints), pa.string())))
        return {row["request"]: Answer(row["text"]) for row in wanted.to_pylist()}

    def _commit(self, buffer: list[tuple[str, Answer]]) -> None:
        at = datetime.now(UTC)
        rows = [
            {"request": fp, "text": (a.text or "")[:LONGEST_ANSWER], "tokens_read": a.read, "tokens_written": a.written, "at": at}
            for fp, a in buffer
        ]
        if rows:
            self._job.store.append("answers", pa.Table.from_pylist(rows, schema=TABLES["answers"].schema))
        buffer.clear()

    def _answers(self, pending: Mapping[str, Ask]) -> Any:
        """Yield answers as they come; once a limit is reached, the rest gets it for an error."""
        waiting = list(pending)
        chunks = [waiting[i : i + self._chunk()] for i in range(0, len(waiting), self._chunk())]
        if self._server is not None:
            for chunk in chunks:
                over = self._over()
                found = [Answer(None, over)] * len(chunk) if over else self._server.complete([pending[fp] for fp in chunk])
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

    def _chunk(self) -> int:
        if self._server is not None:
            return PER_SERVER_ROUND * self._config.concurrency
        return self._workers()[1].batch

    def _over(self) -> str | None:
        c = self._config
        if c.max_seconds is not None and time.monotonic() - self._began > c.max_seconds:
            return f"beyond llm.max_seconds={c.max_seconds:g}"
        if c.max_tokens is not None and self._tokens > c.max_tokens:
            return f"beyond llm.max_tokens={c.max_tokens}"
        return None

    def _workers(self) -> tuple[Pool, LlmLayout]:
        if self._pool is None or self._layout is None:
            import ray

            self._job.engines.release()  # their processors and memory are the model's now
            total = ray.cluster_resources()
            gpus = total.get("GPU", 0.0)
            memory = (self._config.gpu_memory or 0.0) * 2**30
            if gpus and not memory:
                memory = self._gpu_memory()
            model = models.resolve(self._config.model)
            if not models.is_unpacked(model):
                self._job.ui.log("stage", f"label: unpacking {model.name}, once on this machine", stage="label")
            of = size(model, self._config)
            layout = plan(self._config, of, cpus=int(total.get("CPU", 1)), gpus=gpus, gpu_memory=memory, memory=total.get("memory", 0.0))
            self._job.ui.log("stage", f"label: {self._config.model}, {layout}", stage="label", need=round(layout.need))
            from ray_actors.label import Labeller

            ray_config = self._job.config.ray
            shape = Layout(layout.actors, layout.cpus, layout.gpus)
            self._pool = Pool(shape, attempts=ray_config.attempts, timeout=ray_config.timeout, worker=Labeller)
            self._layout = layout
        return self._pool, self._layout

    def _gpu_memory(self) -> float:
        import ray

        from ray_actors.label import gpu_memory

        seconds = self._job.config.ray.timeout
        try:
            return float(ray.get(ray.remote(num_gpus=1)(gpu_memory).remote(), timeout=seconds))
        except ray.exceptions.GetTimeoutError as error:
            raise ResourceError(
                f"No GPU of the cluster came free within {seconds:g} s (ray.timeout) to be asked for its memory."
            ) from error


def _server(config: LlmConfig) -> Server:
    template = load(config)
    return Server(config, lambda ask: template.messages(ask, words=words))
