"""Between embedding and clustering: which documents the names given in advance take (Ray)."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from jobs.job import Job
from topicscale.config import NAME_CHARS
from topicscale.models import embedding_space

Over = Callable[..., Iterable[Any]]


@dataclass(frozen=True)
class Names:
    """The names that take documents, in the order they were given in."""

    labels: list[str]
    vectors: npt.NDArray[np.float32]
    """(m, d) unit rows."""
    sizes: npt.NDArray[np.int64]
    """(m,): documents that each takes."""
    rest: int
    """Documents that none takes."""
    min_similarity: float
    fingerprint: str

    @property
    def keys(self) -> list[str]:
        """Content ids of the topics."""
        return [key_of(label) for label in self.labels]

    @property
    def arguments(self) -> dict[str, Any]:
        """What a unit of work needs to leave out what the names take."""
        return {"names": self.vectors, "min_similarity": self.min_similarity}

    def left_out(self, over: Over) -> Over:
        """Return an ``over`` that maps its steps over the rows that no name takes."""

        def beside(step: Callable[..., Any] | str, *arguments: Any) -> Iterable[Any]:
            name = step if isinstance(step, str) else step.__name__
            return over("rest", self.vectors, self.min_similarity, name, *arguments)

        return beside


def key_of(label: str) -> str:
    """Return the ``topic_key`` of a named topic: it is the name alone, whichever documents it takes."""
    return hashlib.sha256(f"zeroshot:{label}".encode()).hexdigest()[:32]


def parts_of(job: Job) -> tuple[Any, ...]:
    """Return what names add to the fingerprint of a stage that they change: nothing where there are none."""
    if not job.config.zeroshot.topics:
        return ()
    embedding = job.config.embedding
    return (asdict(job.config.zeroshot), embedding_space(embedding), embedding.backend, embedding.dtype)


def take(
    job: Job,
    embedded: Mapping[str, str],
    rows: Mapping[str, int],
    *,
    generation: int | None = None,
    known: Mapping[str, npt.NDArray[np.float32]] | None = None,
) -> Names | None:
    """Return the names that take documents of ``embedded`` (partition -> embed fingerprint), None where none are given.

    Names that take none are left out: they change no document's assignment. What is returned is kept in the store's work
    folder, so that all stages of a job, and of its continuation, compare with the same vectors.

    Parameters
    ----------
    generation : int, optional
        The generation that a batch is added to. A name that takes none of a batch is no news, and not told.
    known : mapping, optional
        Topic key -> vector of the names that a generation already has.
    """
    given = [name.strip() for name in job.config.zeroshot.topics]
    if not given:
        return None
    fp = job.print_of("zeroshot", sorted(embedded.items()), generation, *parts_of(job))
    name = f"zeroshot-{fp}.npz"
    if (kept := job.kept(name)) is not None:
        return _load(kept, fp)
    began = time.monotonic()
    least = job.config.zeroshot.min_similarity
    vectors = _vectors(job, given, known or {})
    over = job.over(embedded, rows, job.store.table("embeddings").version(), stage="zeroshot")
    counts: npt.NDArray[np.int64] = sum(over("taken", vectors, least), np.zeros(len(given) + 1, np.int64))
    sizes, left = counts[:-1], int(counts[-1])
    kept = np.flatnonzero(sizes)
    result = Names([given[i] for i in kept], vectors[kept], sizes[kept], left, least, fp)
    if (unused := [name for name, size in zip(given, sizes, strict=True) if size == 0]) and generation is None:
        job.ui.log(
            "warning",
            f"zeroshot: no document is within zeroshot.min_similarity={least:g} of {', '.join(map(repr, unused))}: no such topic was made",
        )
    job.keep(name, **_arrays(result))
    detail = dict(zip(given, sizes.tolist(), strict=True))
    job.whole("zeroshot", fp, rows=int(counts.sum()), seconds=time.monotonic() - began, detail=detail)
    return result


def _vectors(job: Job, given: list[str], known: Mapping[str, npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    """Return the names' vectors: a batch's documents are compared with the very vectors that the first ones were."""
    keys = [key_of(name) for name in given]
    new = [name for name, key in zip(given, keys, strict=True) if key not in known]
    fresh = iter(job.engines.pool.call("encode", config=job.config.embedding, texts=new)) if new else iter(())
    return np.stack([known[key] if key in known else next(fresh) for key in keys]).astype(np.float32)


def _arrays(names: Names) -> dict[str, npt.NDArray[Any]]:
    return {
        "labels": np.array(names.labels, dtype=f"U{NAME_CHARS}"),
        "vectors": names.vectors,
        "sizes": names.sizes,
        "rest": np.array(names.rest),
        "min_similarity": np.array(names.min_similarity),
    }


def _load(kept: Mapping[str, npt.NDArray[Any]], fp: str) -> Names:
    return Names(kept["labels"].tolist(), kept["vectors"], kept["sizes"], int(kept["rest"]), float(kept["min_similarity"]), fp)
