"""What may leave a site: its leaves without what few documents say.

Every function here is pure. What leaves is told in docs/federation.md, in words; what two exports tell together is
looked after by :mod:`topicscale.differencing`.
"""

from __future__ import annotations

import hashlib
import json
import re
import unicodedata
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import regex

from topicscale.config import fingerprint
from topicscale.leaf_terms import term_maps
from topicscale.merge import leaf_key
from topicscale.tables import OUTLIER, TABLES

OUTLIERS = "outliers"
"""The ``topic_key`` of the outliers' leaf."""
# spark/words.py's: in Hindi, Thai or Persian a word has marks and joiners in it
_WORD = regex.compile(r"[\p{Alphabetic}\p{Nd}_][\w--[\uFE00-\uFE0F\u20E3\U000E0100-\U000E01EF]]*", regex.V1)
_TERM_COLUMNS = ("term_counts", "term_documents")
_TOLD_SETTINGS = ("lowercase", "ngram_range", "bm25_weighting", "reduce_frequent_words", "top_n_words")
_TOLD_EMBEDDING = ("max_tokens", "prompt")
"""Beside the model's name and whether it computes in int8, what makes vectors others."""


def release(leaves: pa.Table, minimum: int) -> pa.Table:
    """Return the leaves of at least ``minimum`` documents with the terms that at least as many of a leaf's documents hold.

    Sizes and vector sums are left as they are. ``min_documents`` says what was left out. Outliers first, then by size and
    key: an order that tells nothing but what the rows tell.
    """
    leaves = leaves.filter(pc.greater_equal(leaves["size"], minimum))
    if leaves.num_rows == 0:
        return TABLES["site_topics"].schema.empty_table()
    keys, sizes = leaves["topic_key"].to_pylist(), leaves["size"].to_pylist()
    leaves = leaves.take(sorted(range(leaves.num_rows), key=lambda i: (keys[i] != OUTLIERS, -sizes[i], keys[i])))
    rows: list[tuple[pa.Array, pa.Array, pa.Array]] = []
    for i in range(leaves.num_rows):
        names, counts, documents = _terms(leaves, i)
        enough = pc.greater_equal(documents, minimum)
        rows.append((names.filter(enough), counts.filter(enough), documents.filter(enough)))
    offsets = pa.array(np.cumsum([0, *(len(names) for names, _, _ in rows)]), pa.int32())
    told = pa.concat_arrays([names for names, _, _ in rows])
    for column, values in zip(_TERM_COLUMNS, (1, 2), strict=True):
        maps = pa.MapArray.from_arrays(offsets, told, pa.concat_arrays([row[values] for row in rows]))
        leaves = _set(leaves, column, maps)
    least = max(minimum, pc.max(leaves["min_documents"]).as_py())  # one for all: a merge takes a site's rows of one kind
    return _set(leaves, "min_documents", pa.repeat(least, leaves.num_rows)).cast(TABLES["site_topics"].schema)


def named(rows: pa.Table, *, site: str, site_id: str, generation: int) -> pa.Table:
    """Return leaves or pilots with whose they are."""
    for column, value in {"site": site, "site_id": site_id, "generation": generation}.items():
        rows = _set(rows, column, pa.repeat(value, rows.num_rows))
    return rows


def content_keys(leaves: pa.Table) -> list[str]:
    """Return each leaf's content key."""
    return [leaf_key(size, np.asarray(row)) for size, row in zip(leaves["size"].to_pylist(), leaves["vector_sum"].to_pylist(), strict=True)]


def topics_of(leaves: pa.Table, sizes: Mapping[int, int], terms: Iterable[pa.RecordBatch]) -> list[int | None]:
    """Return the topic whose documents each leaf sums, None where several topics could be it.

    A site's leaves do not name their topics. They are told by size and terms, since tables keep no order of rows.

    Parameters
    ----------
    sizes : mapping
        Documents of each topic.
    terms : iterable of RecordBatch
        ``topic_terms``.

    Raises
    ------
    ValueError
        A leaf is no topic's.
    """
    topics = sorted(sizes)
    maps = pa.table(dict(zip(_TERM_COLUMNS, term_maps(terms, topics), strict=True)))
    known: dict[str, list[int]] = defaultdict(list)
    for row, topic in enumerate(topics):
        known[_signature(maps, row, sizes[topic])].append(topic)
    found: list[int | None] = []
    for row, (key, size) in enumerate(zip(leaves["topic_key"].to_pylist(), leaves["size"].to_pylist(), strict=True)):
        candidates = known.get(_signature(leaves, row, size), [])
        if key == OUTLIERS:
            candidates = [topic for topic in candidates if topic == OUTLIER]
        else:
            candidates = [topic for topic in candidates if topic != OUTLIER]
        if not candidates:
            raise ValueError(f"Every leaf must be one topic's. The leaf {key!r} of {size} documents is none's.")
        found.append(candidates[0] if len(candidates) == 1 else None)
    return found


def _signature(leaves: pa.Table, row: int, size: int) -> str:
    names, counts, documents = _terms(leaves, row)
    order = pc.sort_indices(names)
    digest = hashlib.sha256(f"{size}:{len(names)}:".encode())
    digest.update("\0".join(names.take(order).to_pylist()).encode())
    for values in (counts, documents):
        digest.update(values.take(order).to_numpy(zero_copy_only=False).astype("<i8").tobytes())
    return digest.hexdigest()


def _terms(leaves: pa.Table, row: int) -> tuple[pa.Array, pa.Array, pa.Array]:
    """Return a leaf's terms, their counts, and the documents that hold them."""
    counts, documents = (leaves[column][row].values for column in _TERM_COLUMNS)
    if counts is None or documents is None:
        empty = pa.array([], pa.int64())
        return pa.array([], pa.string()), empty, empty
    names, other = counts.field(0), documents.field(0)
    if not names.equals(other):
        raise ValueError("term_counts and term_documents must hold the same terms in the same order. They differ.")
    return names, counts.field(1), documents.field(1)


# -- labels ---------------------------------------------------------------------------------------------------------------


def labels(
    released: pa.Table, site: pa.Table, minimum: int, documents_with: Callable[[Sequence[str]], Mapping[str, tuple[int, int]]]
) -> list[str]:
    """Return the label of each released leaf, empty where it may not leave.

    A label leaves if each of its words does anyway, as a released term or within one; or is no counted term of the site
    (a stop word, a word that people thought of) and is found in no document or, as a word, in at least ``minimum``.
    Beyond ASCII, where words need not be set apart by spaces, no part of a word may be a term that does not leave.

    Parameters
    ----------
    released : Table
        Leaves as they leave.
    site : Table
        All leaves of the site with all terms.
    documents_with : callable
        Given words, returns each one's number of documents: that hold it anywhere, and that hold it as a word; whatever
        the case.
    """
    told = released["label"].to_pylist()
    words = {word for label in told for word in _words(label or "")}
    if not words:
        return ["" for _ in told]
    wanted = {word: _forms(word) | set().union(*(_parts(form) for form in _forms(word.lower()) if not form.isascii())) for word in words}
    asked = pa.array(sorted(set().union(*wanted.values())))
    leaving, counted = _present(released, asked), _present(site, asked)
    verdict: dict[str, bool] = {}
    unknown = []
    for word in words:
        forms = _forms(word)
        if (wanted[word] - forms) & (counted - leaving):
            verdict[word] = False
        elif forms & leaving:
            verdict[word] = True
        elif forms & counted:
            verdict[word] = False
        else:
            unknown.append(word)
    if unknown:
        found = documents_with(sorted(set().union(*map(_forms, unknown))))
        for word in unknown:
            anywhere = sum(found[form][0] for form in _forms(word))
            verdict[word] = anywhere == 0 or (word.isascii() and found[word][1] >= minimum)
    return [label if label and all(verdict[word] for word in _words(label)) else "" for label in told]


def _words(label: str) -> set[str]:
    """Return a label's words and numbers: also those that underscores tie together."""
    found = _WORD.findall(unicodedata.normalize("NFC", label))
    return {part for word in found for part in (word, *word.split("_")) if part}


def _forms(word: str) -> set[str]:
    """Return how a word may be spelt in texts and terms: with letters and accents as one character or as several, and in small letters."""
    return {unicodedata.normalize(form, case) for case in (word, word.lower()) for form in ("NFC", "NFD")}


def _parts(word: str) -> set[str]:
    return {word[i:j] for i in range(len(word)) for j in range(i + 1, len(word) + 1)}


def _present(leaves: pa.Table, asked: pa.Array) -> set[str]:
    """Return which of the asked words are terms, or words of terms, of some leaf."""
    found: set[str] = set()
    for row in range(leaves.num_rows):
        names = _terms(leaves, row)[0]
        several = names.filter(pc.match_substring(names, " "))
        words = pc.list_flatten(pc.split_pattern(several, " "))
        for terms in (names, words):
            found.update(terms.filter(pc.is_in(terms, value_set=asked)).to_pylist())
    return found


def count_words(batches: Iterable[pa.RecordBatch], words: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Return how many texts hold each word: anywhere, and as a word; whatever the case. ``batches`` have the column ``text``."""
    found = dict.fromkeys(words, (0, 0))
    for batch in batches:
        texts = batch.column("text")
        for word in words:
            anywhere = pc.sum(pc.match_substring(texts, word, ignore_case=True)).as_py() or 0
            whole = 0
            if anywhere:
                whole = pc.sum(pc.match_substring_regex(texts, rf"(?i)\b{re.escape(word)}\b")).as_py() or 0
            found[word] = (found[word][0] + anywhere, found[word][1] + whole)
    return found


# -- the rest -------------------------------------------------------------------------------------------------------------


def pilots(found: pa.Table, released: pa.Table, minimum: int) -> pa.Table:
    """Return what pilots found, rounded: full precision would be a checksum of the documents.

    A pilot's number of documents is at most what the released leaves tell, in multiples of ``minimum``.
    """
    told = int(pc.sum(released["size"]).as_py() or 0)
    rows = []
    for row in found.to_pylist():
        documents = max(min(row["documents"], told) // minimum * minimum, minimum)
        height, agreement = float(f"{row['height']:.3g}"), round(row["agreement"], 2)
        key = fingerprint("pilot", documents, height, agreement)
        rows.append({**row, "documents": documents, "height": height, "agreement": agreement, "pilot_key": key})
    return pa.Table.from_pylist(rows, schema=TABLES["pilots"].schema)


def configuration(told: Mapping[str, Any], released: pa.Table) -> dict[str, Any]:
    """Return what a recipient needs of a configuration: how texts become vectors of this space, and how terms are counted and weighed.

    No paths, input patterns or columns: that vectors came with the documents is told, and not in which column. A list of stop words
    stays: only its digest leaves, within ``vocabulary``.
    """
    terms = {key: value for key, value in told.get("terms", {}).items() if key in _TOLD_SETTINGS}
    vocabulary = json.loads(released["vocabulary"][0].as_py())
    terms |= {key: vocabulary[key] for key in ("lowercase", "ngram_range") if key in vocabulary}
    if vocabulary.get("stop_words", "") in (None, "english"):
        terms["stop_words"] = vocabulary["stop_words"]
    how = told.get("embedding", {})
    embedding = {"model": released["embedding_model"][0].as_py(), **{key: how[key] for key in _TOLD_EMBEDDING if how.get(key)}}
    if how.get("dtype") == "int8":
        embedding |= {"dtype": "int8", "backend": "onnx"}
    given = told.get("input", {}).get("embedding_column") is not None
    return {"embedding": embedding, "terms": terms, **({"input": {"embedding_column": "embedding"}} if given else {})}


def coarse(documents: int, minimum: int) -> str:
    """Return a number of documents in words that do not tell of fewer than ``minimum``."""
    return f"fewer than {minimum:,}" if documents < minimum else f"at least {documents // minimum * minimum:,}"


def _set(table: pa.Table, column: str, values: pa.Array) -> pa.Table:
    return table.set_column(table.schema.get_field_index(column), column, values)
