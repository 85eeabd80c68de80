"""Aspects: further descriptions of topics, each made by a chain of steps. Here they are read from a configuration and run.

========  ==============================================================  =============================================================
step      what it makes of a topic's words                                parameters and defaults
========  ==============================================================  =============================================================
ctfidf    the best of them                                                top_n_words
keybert   those nearest to the topic's documents                          top_n_words, nr_repr_docs=5, nr_candidate_words=100
mmr       some that are unlike each other                                 top_n_words, diversity=0.1
pos       nouns, adjectives and the like                                  top_n_words, model=en_core_web_sm, pos_patterns
llm       a label, by a language model; only at the end of a chain        none: they are in the configuration's section ``llm``
========  ==============================================================  =============================================================
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

from topicscale.errors import ConfigError
from topicscale.represent.keybert import keybert
from topicscale.represent.mmr import diverse
from topicscale.represent.pos import MODEL, load, parts_of_speech
from topicscale.represent.view import Encode, View, Words

HANDED_ON = 30
"""Words that a step leaves to the next unless its ``top_n_words`` says otherwise: as many as BERTopic hands to the first of a chain."""
LLM = "llm"
_KEY = "represent.aspects"
_RESERVED = {
    "manual": "names that people give have that name",
    "zeroshot": "names of topics that were given beforehand have that name",
    "main": "the main representation of a BERTopic model has that name",
    "Main": "the topics' own words have that name, and they always go by c-TF-IDF",
}
_PEERS = {"keybertinspired": "keybert", "maximalmarginalrelevance": "mmr", "partofspeech": "pos"}


@dataclass(frozen=True)
class Step:
    """One step of a chain."""

    type: str
    """ctfidf, keybert, mmr, pos or llm."""
    parameters: Mapping[str, Any] = field(default_factory=dict)
    """Those that were given; the others take their defaults."""


def parse(aspects: Mapping[str, Any]) -> dict[str, tuple[Step, ...]]:
    """Return the chain of steps of each aspect, from the configuration's value ``represent.aspects``.

    Parameters
    ----------
    aspects : mapping
        By name a step or a list of steps; a step is a name or a mapping with ``type`` and parameters.

    Raises
    ------
    ConfigError
        The name of an aspect is not allowed, a step or parameter is unknown (the nearest known one is named), a value does not fit,
        or a step follows ``llm``.
    """
    if not isinstance(aspects, Mapping):
        raise ConfigError(f"{_KEY} must be a mapping of names and steps. Got {aspects!r} instead.")
    return {_name(name): _chain(name, value) for name, value in aspects.items()}


def check(aspects: Mapping[str, Sequence[Step]]) -> None:
    """Load what the steps need beyond the embedding model, so that what is missing is known before work begins.

    Raises
    ------
    MissingDependency
        A package is not installed.
    ModelError
        A pipeline cannot be loaded.
    """
    for model in {step.parameters.get("model", MODEL) for chain in aspects.values() for step in chain if step.type == "pos"}:
        load(model)


def describe(views: Sequence[View], chain: Sequence[Step], encode: Encode, *, top_n_words: int = 10) -> list[Words]:
    """Return the words that a chain's steps make of each topic, in the order of the topics; ``llm`` is left to others.

    Each step works on the words that the one before it left. The first sees the view's terms: mmr the best 30, as in BERTopic,
    keybert and pos as many as they ask for. In BERTopic keybert and pos look at c-TF-IDF again wherever they stand, so that what
    comes before them is lost; here a chain does what it says.

    Parameters
    ----------
    views : sequence of View
    chain : sequence of Step
        See :func:`parse`. Without a step that makes words, they are the best terms.
    encode : Encode
        The model of the views' vectors.
    top_n_words : int
        Words a topic, where the last step does not say. A step before it leaves at least 30 if it does not say: with BERTopic's 10
        the chain of keybert and mmr would have nothing left to choose from.

    Raises
    ------
    MissingDependency, ModelError, ConfigError
        See :func:`~topicscale.represent.keybert.keybert` and :mod:`topicscale.represent.pos`.
    """
    steps = [step for step in chain if step.type != LLM]
    words = [view.candidates(top_n_words) for view in views]
    for position, step in enumerate(steps):
        number = top_n_words if position == len(steps) - 1 else max(HANDED_ON, top_n_words)
        words = _run(step.type, views, encode, first=position == 0, parameters={"top_n_words": number, **step.parameters})
        views = [replace(view, terms=tuple(left)) for view, left in zip(views, words, strict=True)]
    return words


def _run(kind: str, views: Sequence[View], encode: Encode, *, first: bool, parameters: dict[str, Any]) -> list[Words]:
    if kind == "ctfidf":
        return [view.candidates(parameters["top_n_words"]) for view in views]
    if kind == "keybert":
        return keybert(views, encode, **({} if first else {"nr_candidate_words": None}) | parameters)
    candidates = HANDED_ON if first else None
    if kind == "mmr":
        return diverse(views, encode, nr_candidate_words=candidates, **parameters)
    return parts_of_speech(views, load(parameters.pop("model", MODEL)), nr_candidate_words=candidates, **parameters)


def _name(name: Any) -> str:
    if not isinstance(name, str) or not re.fullmatch(r"[\w-]+", name):
        raise ConfigError(f"The name of an aspect ({_KEY}) must be made of letters, digits, - and _. Got {name!r} instead.")
    if name in _RESERVED:
        raise ConfigError(f"{_KEY}.{name} must have another name: {_RESERVED[name]}.")
    return name


def _chain(name: str, value: Any) -> tuple[Step, ...]:
    path = f"{_KEY}.{name}"
    if isinstance(value, (list, tuple)):
        if not value:
            raise ConfigError(f"{path} must have at least one step. Got {value!r} instead.")
        chain = tuple(_step(f"{path}[{i}]", item) for i, item in enumerate(value))
    else:
        chain = (_step(path, value),)
    for i, step in enumerate(chain[:-1]):
        if step.type == LLM:
            raise ConfigError(f"{path}[{i}] must not be llm, which makes a label and leaves no words to the next step. Put it last.")
    if name == "ctfidf" and [step.type for step in chain] != ["ctfidf"]:
        raise ConfigError(f"{path} must be the step ctfidf, or have another name. Got {value!r} instead.")
    return chain


def _step(path: str, value: Any) -> Step:
    given = {"type": value} if isinstance(value, str) else value
    if not isinstance(given, Mapping) or not isinstance(given.get("type"), str):
        raise ConfigError(
            f"{path} must be a step: one of {', '.join(_PARAMETERS)}, or a mapping with one of them as type, and parameters. "
            f"Got {value!r} instead."
        )
    kind = given["type"]
    if kind not in _PARAMETERS:
        raise ConfigError(f"{path} names an unknown step: {kind!r}. {_nearest(_PEERS.get(kind.lower(), kind), list(_PARAMETERS), 'steps')}")
    known = _PARAMETERS[kind]
    values: dict[str, Any] = {}
    for key, item in given.items():
        if key == "type":
            continue
        if key not in known:
            hint = _nearest(str(key), list(known), "parameters") if known else "It has none: its settings are in the section llm."
            raise ConfigError(f"Unknown parameter {f'{path}.{key}'!r} (value {item!r}) of the step {kind}. {hint}")
        rule, fit = known[key]
        try:
            values[key] = fit(item)
        except (TypeError, ValueError):
            raise ConfigError(f"{path}.{key} must be {rule}. Got {item!r} instead.") from None
    return Step(kind, values)


def _nearest(name: str, known: list[str], what: str) -> str:
    close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
    return f"Did you mean {close[0]!r}?" if close else f"Known {what}: {', '.join(known)}."


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise ValueError
    return float(value)


def _count(value: Any) -> int:
    if not _number(value).is_integer() or value < 1:
        raise ValueError
    return int(value)


def _share(value: Any) -> float:
    if not 0.0 <= _number(value) <= 1.0:
        raise ValueError
    return float(value)


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError
    return value


def _patterns(value: Any) -> list[list[dict[str, Any]]]:
    patterns = [list(pattern) for pattern in value]
    if not patterns or not all(patterns) or not all(isinstance(token, Mapping) for pattern in patterns for token in pattern):
        raise ValueError
    return [[dict(token) for token in pattern] for pattern in patterns]


_Rule: TypeAlias = tuple[str, Callable[[Any], Any]]
_COUNT: _Rule = ("a whole number above 0", _count)
_WORDS: dict[str, _Rule] = {"top_n_words": _COUNT}
_PARAMETERS: dict[str, dict[str, _Rule]] = {
    "ctfidf": _WORDS,
    "keybert": {**_WORDS, "nr_repr_docs": _COUNT, "nr_candidate_words": _COUNT},
    "mmr": {**_WORDS, "diversity": ("a number between 0 and 1", _share)},
    "pos": {
        **_WORDS,
        "model": ("the name or folder of a pipeline of spaCy", _text),
        "pos_patterns": ("a list of patterns, each a list of mappings such as {POS: NOUN}", _patterns),
    },
    LLM: {},
}
