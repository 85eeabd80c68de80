"""What every language model backend takes and gives."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True)
class Ask:
    """What one topic's prompt is made of."""

    documents: tuple[str, ...]
    """Whole texts, most representative first."""
    keywords: tuple[str, ...]
    """Best first."""
    rivals: tuple[tuple[str, tuple[str, ...]], ...] = ()
    """(label, keywords) of topics that were given the same label: the answer must tell this one from them."""


@dataclass(frozen=True)
class Answer:
    """What a model said, or why it said nothing."""

    text: str | None
    """As it came: hostile until :func:`topicscale.llm.clean.clean` has seen it."""
    error: str | None = None
    """One line, without secrets; None where there is a text."""
    read: int = 0
    """Tokens of the prompt."""
    written: int = 0
    """Tokens of the answer."""


@dataclass(frozen=True)
class Batch:
    """How much is answered at once. A prompt that alone is larger is answered alone."""

    prompts: int
    """At most."""
    tokens: int = sys.maxsize
    """Of prompts and answers, padding included, at most: what the key-value cache has room for."""


class Backend(Protocol):
    """A loaded model, or a server's address."""

    def complete(self, asks: Sequence[Ask]) -> list[Answer]:
        """Return an answer for each, in order; one that fails is an answer with ``error``, never an exception."""
        ...
