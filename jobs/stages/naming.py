"""A language model's labels: every topic asked about, the answers cleaned, checked against all topics, and made distinct.

What is made of the answers is a function of them alone (see :mod:`jobs.stages.asking`), so that a job that was killed goes
on where it stopped, and asks nothing again that was answered.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from jobs.job import Job
from jobs.stages.asking import LIMIT, Asker, comparable
from topicscale.config import LlmConfig
from topicscale.errors import JobFailed
from topicscale.llm.backend import Answer, Ask
from topicscale.llm.clean import clean
from topicscale.llm.prompts import load
from topicscale.llm.retrieve import mean_reciprocal_rank, ranks
from topicscale.llm.unique import clashes, distinct, normalised, sharpened
from topicscale.represent.view import View

NO_LABEL, NOTHING = "the answer was no label", "no document and no keyword to show"
FORMS = 3
"""Keywords that are tried beside a label that finds another topic."""
MOST_KEYWORDS = 6
"""Keywords that name a topic which gets no label, where three find another topic."""
UNFOUND = "no label finds the topic as well as its keywords"
"""How reasons begin that asking again would not change, with those of limits. Others may be gone the next time."""


@dataclass(frozen=True)
class Named:
    """What became of some topics' labels."""

    rows: list[dict[str, Any]]
    """Rows of ``topic_labels`` without their aspect."""
    labelled: int
    fallback: dict[int, str]
    """Topic -> why its keywords are its label."""
    measures: dict[str, float]


@dataclass
class _Candidate:
    label: str
    rank: int = 0
    similarity: float = 0.0


def name_topics(
    job: Job,
    views: Sequence[View],
    described: Sequence[Sequence[str]],
    *,
    rows: Sequence[Mapping[str, Any]],
    taken: Mapping[int, str],
    before: Mapping[int, str],
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
    before : mapping of int to str
        Labels that topics have from an earlier call: one that gets none now keeps it, and has no row in the result.

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
    shows, alone = "[DOCUMENTS]" in template.question, "[KEYWORDS]" in template.question
    asks = {topic: _asks(of[topic].documents if shows else (), keywords[topic], config, alone=alone) for topic in asked}
    reasons = dict.fromkeys(order[len(asked) :], f"{LIMIT}max_topics={config.max_topics}")
    reasons |= {topic: NOTHING for topic, mine in asks.items() if not mine}
    with Asker(job, template) as asker:
        # everyone's first label before anyone's second
        turns = [(turn, topic, mine[turn]) for turn in range(config.candidates) for topic in asked if turn < len(mine := asks[topic])]
        answers = asker.ask([ask for _, _, ask in turns])
        errors = sorted({answer.error or "no answer" for answer in answers if answer.text is None})
        if answers and all(answer.text is None for answer in answers) and not all(error.startswith(LIMIT) for error in errors):
            raise JobFailed(f"label: the model answered none of {len(answers):,} prompts: {'; '.join(errors)[:500]}")
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
        checked = config.candidates > 1 and comparable(job.config) and all(len(row["reference_vector"]) for row in rows)
        if checked:
            _rank(asker, rows, [(t, c) for t, mine in candidates.items() for c in mine] + [*first.items(), *shown.items()])
        chosen = {topic: min(mine, key=_merit) for topic, mine in candidates.items() if mine}
        _settle(asker, config, rows, asks, chosen, keywords, taken, checked, prompt=template.own)
        kept = {topic: before[topic] for topic in order if topic not in chosen and topic in before}
        labels = distinct({topic: c.label for topic, c in chosen.items() if topic not in taken}, keywords, {**kept, **taken})
        if checked:
            enough = {topic: max(config.place, shown[topic].rank) for topic in order}
            others = {*kept.values(), *taken.values()}
            for topic, place in _sharpen(asker, rows, labels, chosen, keywords, others, config.place, enough).items():
                reasons[topic] = f"{UNFOUND}: at place {place}, by its keywords at {shown[topic].rank}"
                del chosen[topic], labels[topic]
                names = {normalised(label) for label in (*labels.values(), *kept.values(), *taken.values())}
                if topic in before and normalised(before[topic]) not in names:  # another may have it by now
                    kept[topic] = before[topic]
        # what goes by another name may be described by any label
        labels |= {topic: c.label for topic, c in chosen.items() if topic in taken}
        fallback = {topic: reasons.get(topic, "no answer") for topic in order if topic not in labels and topic not in kept}
        labels |= _by_keywords(asker, rows, {topic: shown[topic] for topic in fallback}, keywords, checked)
        final = {topic: _Candidate(label) for topic, label in (labels | kept).items()}
        if checked:
            _rank(asker, rows, list(final.items()))
    told = []
    number = sum(row["topic_id"] >= 0 for row in rows)
    for topic in sorted(labels):
        status, detail = "ok", ""
        if topic in fallback:
            status, detail = "fallback", fallback[topic]
        elif checked:
            detail = f"found at place {final[topic].rank} of {number}"
        told.append({"topic_id": topic, "label": labels[topic], "terms": [], "status": status, "detail": detail})
    measures = _measures(order, final, first, shown) if checked else {}
    return Named(told, len(chosen), fallback, measures)


def _asks(documents: Sequence[str], keywords: Sequence[str], config: LlmConfig, *, alone: bool) -> list[Ask]:
    """Return up to ``candidates`` different asks about a topic: other documents each time, at last keywords alone."""
    found: list[Ask] = []
    for turn in range(config.candidates):
        shown = documents[turn * config.documents : (turn + 1) * config.documents] if config.documents else ()
        ask = Ask(tuple(shown), tuple(keywords[: config.keywords]))
        told = ask.documents or (ask.keywords and alone)
        if told and ask not in found:
            found.append(ask)
        if not shown:
            break
    return found


def _cleaned(answer: Answer, ask: Ask, prompt: str) -> tuple[str | None, str]:
    if answer.text is None:
        return None, answer.error or "no answer"
    cleaned = clean(answer.text, ask, prompt=prompt)
    return cleaned.label, "" if cleaned.label else f"{NO_LABEL}: {cleaned.reason}"


def passing(fallback: Mapping[int, str]) -> bool:
    """Return whether some topic got no label for a reason that may be gone the next time: a server that was busy, a worker that died."""
    return any(not reason.startswith((LIMIT, NO_LABEL, NOTHING, UNFOUND)) for reason in fallback.values())


def _merit(candidate: _Candidate) -> tuple[int, float]:
    return candidate.rank, -candidate.similarity


def _rank(asker: Asker, rows: Sequence[Mapping[str, Any]], found: Sequence[tuple[int, _Candidate]]) -> None:
    real = [row for row in rows if row["topic_id"] >= 0]
    row_of = {row["topic_id"]: i for i, row in enumerate(real)}
    if not found:
        return
    centres = np.array([row["reference_vector"] for row in real], np.float32)
    picked = asker.embed([candidate.label for _, candidate in found], dimensions=centres.shape[1])
    own = np.array([row_of[topic] for topic, _ in found], np.int64)
    similar = np.einsum("ij,ij->i", picked, centres[own])
    for (_, candidate), rank, cosine in zip(found, ranks(picked, own, centres), similar, strict=True):
        candidate.rank, candidate.similarity = int(rank), float(cosine)


def _settle(
    asker: Asker,
    config: LlmConfig,
    rows: Sequence[Mapping[str, Any]],
    asks: Mapping[int, list[Ask]],
    chosen: dict[int, _Candidate],
    keywords: Mapping[int, Sequence[str]],
    taken: Mapping[int, str],
    checked: bool,
    *,
    prompt: str,
) -> None:
    """Ask again about topics of one label, each with the others' keywords; an answer that is nobody's, and no worse, replaces it."""
    labels = {**{topic: c.label for topic, c in chosen.items()}, **taken}
    groups = [[topic for topic in group if topic in chosen and topic not in taken] for group in clashes(labels)]
    again: list[tuple[int, Ask]] = []
    told = {row["topic_id"]: tuple(row["keywords"] or ()) for row in rows} | {t: tuple(w) for t, w in keywords.items()}
    for group, everyone in zip(groups, clashes(labels), strict=True):
        for topic in group:
            rivals = tuple((labels[other], told.get(other, ())[: config.keywords]) for other in everyone if other != topic)[:3]
            again.append((topic, dataclasses.replace(asks[topic][0], rivals=rivals)))
    if not again:
        return
    fresh: list[tuple[int, _Candidate]] = []
    for (topic, ask), answer in zip(again, asker.ask([ask for _, ask in again]), strict=True):
        label, _ = _cleaned(answer, ask, prompt)
        if label is not None:
            fresh.append((topic, _Candidate(label)))
    if checked:
        _rank(asker, rows, fresh)
    used = {normalised(label) for topic, label in labels.items()}
    for topic, candidate in fresh:
        if normalised(candidate.label) not in used and candidate.rank <= chosen[topic].rank:
            used.add(normalised(candidate.label))
            chosen[topic] = candidate


def _sharpen(
    asker: Asker,
    rows: Sequence[Mapping[str, Any]],
    labels: dict[int, str],
    chosen: Mapping[int, _Candidate],
    keywords: Mapping[int, Sequence[str]],
    others: set[str],
    wanted: int,
    enough: Mapping[int, int],
) -> dict[int, int]:
    """Add a keyword to labels that find another topic than their own, so that they find it at the place that is wanted, or at a better one.

    Return the place of those that do not find it well enough, with a keyword either.
    """
    final = {topic: _Candidate(label) for topic, label in labels.items()}
    _rank(asker, rows, list(final.items()))
    place = {topic: c.rank for topic, c in final.items() if c.rank > wanted}
    tried = [(topic, _Candidate(form)) for topic in place for form in sharpened(chosen[topic].label, keywords[topic], FORMS)]
    _rank(asker, rows, tried)
    used = {normalised(label) for label in (*labels.values(), *others)}
    for topic, form in tried:
        if wanted < place[topic] > form.rank <= enough[topic] and normalised(form.label) not in used:
            used.add(normalised(form.label))
            labels[topic], place[topic] = form.label, form.rank
    return {topic: found for topic, found in place.items() if found > enough[topic]}


def _by_keywords(
    asker: Asker, rows: Sequence[Mapping[str, Any]], shown: Mapping[int, _Candidate], keywords: Mapping[int, Sequence[str]], checked: bool
) -> dict[int, str]:
    """Return keywords as labels: three of them, or the fewest more by which the topic is found at a better place."""
    forms = {topic: [few] for topic, few in shown.items()}
    if checked:
        for topic, found in forms.items():
            most = MOST_KEYWORDS if found[0].rank > 1 else 0
            found += [_Candidate(", ".join(keywords[topic][:n])) for n in range(4, min(most, len(keywords[topic])) + 1)]
        _rank(asker, rows, [(topic, form) for topic, found in forms.items() for form in found[1:]])
    return {topic: min(found, key=lambda form: form.rank).label for topic, found in forms.items()}


def _measures(
    order: Sequence[int], chosen: Mapping[int, _Candidate], first: Mapping[int, _Candidate], shown: Mapping[int, _Candidate]
) -> dict[str, float]:
    """Return mean reciprocal ranks; a topic without a label is found by its keywords, which is what it then goes by."""

    def mean(found: Mapping[int, _Candidate]) -> float:
        placed = [found.get(topic, shown[topic]).rank for topic in order]
        return round(mean_reciprocal_rank(np.array(placed, np.int64)), 4)

    return {"labels": mean(chosen), "one_shot": mean(first), "keywords": mean(shown)}
