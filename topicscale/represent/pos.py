"""Words of chosen parts of speech, as BERTopic's PartOfSpeech finds them. spaCy tags the words; it is an optional package."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from typing import Any

from topicscale.errors import ConfigError, MissingDependency, ModelError
from topicscale.represent.view import View, Words

MODEL = "en_core_web_sm"
PATTERNS: tuple[tuple[Mapping[str, str], ...], ...] = (({"POS": "ADJ"}, {"POS": "NOUN"}), ({"POS": "NOUN"},), ({"POS": "ADJ"},))
"""Adjective and noun, noun, adjective."""
_DOCUMENTS = 2
"""Documents read for each word."""


@functools.lru_cache(maxsize=2)
def load(name: str) -> Any:
    """Return spaCy's pipeline of a name or folder; it is kept for later calls.

    Raises
    ------
    MissingDependency
        spaCy is not installed.
    ModelError
        spaCy cannot load the pipeline.
    """
    try:
        import spacy
    except ImportError:
        raise MissingDependency("spacy", "pos", "An aspect with the step pos") from None
    try:
        return spacy.load(name)
    except (OSError, ImportError, ValueError, KeyError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ModelError(
            f"spaCy cannot load its pipeline {name!r}: {reason} Install one with: python -m spacy download {MODEL}. Or set `model` of the "
            "step pos to the name or folder of one that is there."
        ) from error


def parts_of_speech(
    views: Sequence[View],
    pipeline: Any,
    *,
    pos_patterns: Sequence[Sequence[Mapping[str, Any]]] = PATTERNS,
    top_n_words: int = 10,
    nr_candidate_words: int | None = 30,
) -> list[Words]:
    """Return each topic's best terms that its documents use as a pattern says, with their weights.

    For each of the topic's best terms the first two of its documents that have it are tagged, as BERTopic does; what matches a
    pattern there and is a term of the topic is kept. Unlike BERTopic's, a match may be written with capitals ("Energy" is the term
    "energy") and may go across a line's end, only the view's documents and terms are looked at, and missing words are not filled up
    with empty ones. A topic without documents keeps its best terms.

    Parameters
    ----------
    views : sequence of View
    pipeline : spacy.language.Language
        With a tagger; see :func:`load`.
    pos_patterns : sequence of patterns
        As spaCy's Matcher takes them: https://spacy.io/usage/rule-based-matching
    top_n_words : int
        Words to return.
    nr_candidate_words : int or None
        Terms whose documents are tagged; None for all.

    Raises
    ------
    ConfigError
        spaCy refuses a pattern.
    ModelError
        The pipeline does not tag what a pattern asks for.
    """
    from spacy.errors import MatchPatternError
    from spacy.matcher import Matcher

    matcher = Matcher(pipeline.vocab)
    try:
        matcher.add("pattern", [[dict(token) for token in pattern] for pattern in pos_patterns])
    except (MatchPatternError, ValueError, TypeError) as error:
        raise ConfigError(
            f"pos_patterns of the step pos must be patterns of spaCy's Matcher. Got {pos_patterns!r} instead: {str(error).strip()}"
        ) from error
    terms = [view.candidates() for view in views]
    known = [{term for term, _ in words} for words in terms]
    used: list[set[str]] = [set() for _ in views]
    texts = (
        (" ".join(text.split())[: pipeline.max_length], i)
        for i, view in enumerate(views)
        for text in _to_tag(view.documents, terms[i][:nr_candidate_words])
    )
    for tagged, i in pipeline.pipe(texts, as_tuples=True):
        if len(tagged) == 0:
            continue
        try:
            matches = matcher(tagged)
        except ValueError as error:
            raise ModelError(
                f"spaCy's pipeline with the parts {', '.join(pipeline.pipe_names) or 'none'} does not tag what pos_patterns ask for. Set "
                f"`model` of the step pos to a pipeline with a tagger, such as {MODEL}. spaCy says: {error}"
            ) from error
        for _, start, end in matches:
            text = tagged[start:end].text
            used[i].add(text if text in known[i] else text.lower())
    return [
        [pair for pair in words if not view.documents or pair[0] in used[i]][:top_n_words]
        for i, (view, words) in enumerate(zip(views, terms, strict=True))
    ]


def _to_tag(documents: Sequence[str], terms: Words) -> list[str]:
    lowered = [document.lower() for document in documents]
    wanted: set[int] = set()
    for term, _ in terms:
        having = (i for i, document in enumerate(documents) if term in document or term in lowered[i])
        wanted |= {i for i, _ in zip(having, range(_DOCUMENTS), strict=False)}
    return [documents[i] for i in sorted(wanted)]
