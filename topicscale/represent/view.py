"""What a step sees of a topic: its terms, some of its documents and their vectors."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Float32: TypeAlias = NDArray[np.float32]
Words: TypeAlias = list[tuple[str, float]]
"""Words and their weights, best first."""
Encode: TypeAlias = Callable[[Sequence[str]], Float32]
"""Return the vectors of n texts: float32 of shape (n, d)."""


@dataclass(frozen=True, eq=False)
class View:
    """One topic as the steps see it.

    Raises
    ------
    ValueError
        There is not one vector for each document.
    """

    topic_id: int
    terms: tuple[tuple[str, float], ...]
    """Terms and their c-TF-IDF weights, best first; as many as the steps need (KeyBERT: 100). Later steps of a chain find here what the
    step before them left."""
    documents: tuple[str, ...]
    """Representative documents, best first."""
    vectors: Float32
    """(len(documents), d): their vectors, of length 1."""
    centre: Float32 | None = None
    """(d,): stands for the documents where there are none."""

    def __post_init__(self) -> None:
        if len(self.vectors) != len(self.documents):
            raise ValueError(f"Topic {self.topic_id} has {len(self.documents)} documents and {len(self.vectors)} vectors.")

    def candidates(self, number: int | None = None) -> Words:
        """Return the best ``number`` terms (None: all), without empty ones; of a repeated one the first."""
        found: dict[str, float] = {}
        for term, weight in self.terms:
            if number is not None and len(found) >= number:
                break
            if term.strip():
                found.setdefault(term, float(weight))
        return list(found.items())
