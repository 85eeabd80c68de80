"""The files of a BERTopic model, read and checked.

==========================  =================================================================================
file                        what is taken from it
==========================  =================================================================================
topics.json                 words, sizes, names, custom labels, aspects (and our own representative documents)
topic_embeddings.safetensors  one row a topic, the outliers' first
config.json                 the embedding model's name, ``top_n_words``, ``n_gram_range``
ctfidf.safetensors          optional: the weights of all terms, each term's idf
ctfidf_config.json          with it: the terms, and how they were counted
==========================  =================================================================================
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from topicscale.cluster import Int64
from topicscale.errors import InputError

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

TOPICS, CONFIG, EMBEDDINGS = "topics.json", "config.json", "topic_embeddings.safetensors"
CTFIDF, CTFIDF_CONFIG = "ctfidf.safetensors", "ctfidf_config.json"
REPRESENTATIVE = "representative_docs"
"""A key of ``topics.json`` that BERTopic does not know and leaves alone."""
HOW = 'Save it with: model.save(folder, serialization="safetensors", save_ctfidf=True, save_embedding_model="<name>")'
Words = list[tuple[str, float]]


@dataclass(frozen=True)
class Terms:
    """What the model counted."""

    weights: csr_matrix
    """(topics, terms) float64."""
    idf: npt.NDArray[np.float64]
    """(terms,)"""
    names: list[str]
    """(terms,)"""
    vectorizer: Mapping[str, Any]
    """CountVectorizer's parameters."""
    transformer: Mapping[str, Any]
    """ClassTfidfTransformer's parameters."""


@dataclass(frozen=True)
class Folder:
    """A BERTopic model. Rows of all arrays are the topics in ascending order, the outliers' (-1) first if there are any."""

    path: Path
    ids: tuple[int, ...]
    sizes: Int64
    """(k,)"""
    embeddings: npt.NDArray[np.float32]
    """(k, d)"""
    words: Mapping[int, Words]
    """The main representation: words and their weights, best first, without BERTopic's empty ones."""
    names: Mapping[int, str]
    """Names that are more than the id and the first words: those of zero-shot topics."""
    custom: Mapping[int, str]
    """Custom labels."""
    aspects: Mapping[str, Mapping[int, Words]]
    documents: Mapping[int, list[str]]
    """Representative documents."""
    parameters: Mapping[str, Any]
    """config.json"""
    terms: Terms | None
    """None if the model was saved without them."""
    digest: str = field(default="", compare=False)
    """Of the files' bytes."""


def open_folder(path: str | Path) -> Folder:
    """Return the BERTopic model of a folder.

    Raises
    ------
    InputError
        It is no folder of a model saved as safetensors, or a file of it is missing, damaged, or does not fit the others.
    """
    folder = Path(path).expanduser()
    if folder.is_file():
        raise InputError(f"A BERTopic model must be a folder. {str(path)!r} is one file, which is pickled and is not opened. {HOW}")
    if not folder.is_dir():
        raise InputError(f"There is no BERTopic model at {str(path)!r}. {HOW}")
    if not (folder / EMBEDDINGS).is_file() and any(folder.glob("topic_embeddings.bin")):
        raise InputError(f"The BERTopic model in {str(path)!r} was saved with PyTorch's pickle, which is not opened. {HOW}")
    described, parameters = _json(folder / TOPICS), _json(folder / CONFIG)
    tensors = _tensors(folder / EMBEDDINGS, ("topic_embeddings",))
    file = folder / TOPICS
    words = {topic: _words(value, file) for topic, value in _by_topic(described, "topic_representations", file).items()}
    sizes = {topic: _size(value, file) for topic, value in _by_topic(described, "topic_sizes", file).items()}
    ids = sorted(words)
    embeddings = _embeddings(tensors["topic_embeddings"], len(ids), folder / EMBEDDINGS)
    if -1 in sizes and -1 not in words:
        # a model made by merge_models may have outliers that its first part did not know
        ids, words = [-1, *ids], words | {-1: []}
        embeddings = np.vstack([np.zeros_like(embeddings[:1]), embeddings])
    if not ids or ids != list(range(ids[0], ids[0] + len(ids))) or ids[0] not in (-1, 0) or not set(sizes) <= set(ids):
        raise InputError(f"{_at(file)} must number its topics from -1 or 0 without gaps. Got {_short(ids)} instead.")
    names = {topic: _text(value) for topic, value in _by_topic(described, "topic_labels", file, needed=False).items()}
    return Folder(
        path=folder,
        ids=tuple(ids),
        sizes=np.array([sizes.get(topic, 0) for topic in ids], np.int64),
        embeddings=embeddings,
        words={topic: [(word, weight) for word, weight in found if word] for topic, found in words.items()},
        # the id in front may be one that merge_models has changed since
        names={t: name for t, name in names.items() if t in words and name.partition("_")[2] != "_".join(w for w, _ in words[t][:4])},
        custom=_custom(described.get("custom_labels"), ids, file),
        aspects=_aspects(described.get("topic_aspects"), file),
        documents={
            topic: [_text(text) for text in value]
            for topic, value in _by_topic(described, REPRESENTATIVE, file, needed=False).items()
            if isinstance(value, list)
        },
        parameters=parameters,
        terms=_terms(folder, len(ids)),
        digest=_digest(folder),
    )


def _embeddings(found: npt.NDArray[Any], rows: int, file: Path) -> npt.NDArray[np.float32]:
    fine = found.ndim == 2 and np.issubdtype(found.dtype, np.floating) and found.shape[1] > 0
    with np.errstate(over="ignore"):
        rows32 = found.astype(np.float32) if fine else np.zeros((0, 0), np.float32)
    if not fine or not np.isfinite(rows32).all():
        raise InputError(f"{_at(file)} must hold a matrix of finite numbers. Got shape {found.shape} of {found.dtype} instead.")
    if len(found) != rows:
        raise InputError(f"{_at(file)} must have one row for each of the {rows} topics in {TOPICS}. Got {len(found)} rows instead.")
    return rows32


def _terms(folder: Path, rows: int) -> Terms | None:
    from scipy.sparse import csr_matrix

    file, settings = folder / CTFIDF, folder / CTFIDF_CONFIG
    if not file.is_file() and not settings.is_file():
        return None
    tensors = _tensors(file, ("indptr", "indices", "data", "shape", "diag"))
    config = _json(settings)
    vectorizer, transformer = config.get("vectorizer_model"), config.get("ctfidf_model")
    if not isinstance(vectorizer, dict) or not isinstance(transformer, dict) or not isinstance(vectorizer.get("params"), dict):
        raise InputError(f"{_at(settings)} must have the keys ctfidf_model and vectorizer_model. {HOW}")
    vocabulary = vectorizer.get("vocab")
    if not isinstance(vocabulary, dict) or sorted(map(str, vocabulary.values())) != sorted(map(str, range(len(vocabulary)))):
        raise InputError(f"{_at(settings)} must number its vocabulary from 0 without gaps. {HOW}")
    shape = tuple(tensors["shape"].ravel().tolist())
    if shape != (rows, len(vocabulary)) or tensors["diag"].shape != (len(vocabulary),):
        raise InputError(
            f"{_at(file)} must have a row for each of {rows} topics and a column for each of {len(vocabulary)} terms. Got {shape} instead."
        )
    try:
        # scipy's inner loops trust the indices
        weights = csr_matrix((tensors["data"].astype(np.float64), tensors["indices"], tensors["indptr"]), shape=shape)
        weights.check_format(full_check=True)
    except (ValueError, IndexError, TypeError) as error:
        raise InputError(f"{_at(file)} is damaged: {error}") from error
    idf = tensors["diag"].astype(np.float64)
    if not (np.isfinite(weights.data).all() and np.isfinite(idf).all()):
        raise InputError(f"{_at(file)} must hold finite numbers.")
    ordered = sorted(vocabulary, key=lambda term: int(vocabulary[term]))
    return Terms(weights, idf, [_text(term) for term in ordered], vectorizer["params"], transformer)


def _by_topic(content: Mapping[str, Any], key: str, file: Path, *, needed: bool = True) -> dict[int, Any]:
    found = content.get(key)
    if found is None and not needed:
        return {}
    try:
        return {int(topic): value for topic, value in found.items()}  # type: ignore[union-attr]
    except (AttributeError, ValueError):
        raise InputError(f"{key} in {_at(file)} must be a mapping by topic id. Got {_short(found)} instead. {HOW}") from None


def _words(value: Any, file: Path) -> Words:
    if isinstance(value, str):
        return [(_text(value), 1.0)]
    try:
        pairs = [(word, 1.0) if isinstance(word, str) else (word[0], float(word[1])) for word in value]
    except (TypeError, ValueError, IndexError, KeyError):
        raise InputError(f"A topic's words in {_at(file)} must be pairs of a word and its weight. Got {_short(value)} instead.") from None
    return [(_text(word), weight if math.isfinite(weight) else 0.0) for word, weight in pairs]


def _size(value: Any, file: Path) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**48:
        raise InputError(f"A topic's size in {_at(file)} must be a number of documents. Got {_short(value)} instead.")
    return value


def _custom(value: Any, ids: list[int], file: Path) -> dict[int, str]:
    if value is None:
        return {}
    if not isinstance(value, list) or len(value) != len(ids):
        raise InputError(f"custom_labels in {_at(file)} must be a list of {len(ids)} labels. Got {_short(value)} instead.")
    return {topic: "" if label is None else _text(label) for topic, label in zip(ids, value, strict=True)}


def _aspects(value: Any, file: Path) -> dict[str, dict[int, Words]]:
    if not isinstance(value, dict):
        return {}
    found = {}
    for aspect, by_topic in value.items():
        if isinstance(by_topic, dict):  # else images, which are files of their own
            words = {topic: _words(words, file) for topic, words in _by_topic(value, aspect, file).items()}
            found[_text(aspect)] = {topic: [pair for pair in pairs if pair[0]] for topic, pairs in words.items()}
    return found


def _json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{_at(file)} is missing. {HOW}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{_at(file)} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise InputError(f"{_at(file)} must hold a mapping. Got {_short(content)} instead.")
    return content


def _tensors(file: Path, wanted: tuple[str, ...]) -> dict[str, npt.NDArray[Any]]:
    from safetensors import SafetensorError
    from safetensors.numpy import load_file

    try:
        tensors: dict[str, npt.NDArray[Any]] = load_file(file)
    except FileNotFoundError:
        raise InputError(f"{_at(file)} is missing. {HOW}") from None
    except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{_at(file)} is damaged: {error}") from error
    missing = [name for name in wanted if name not in tensors]
    if missing:
        raise InputError(f"{_at(file)} must have the tensors {', '.join(wanted)}. Got {', '.join(sorted(tensors)) or 'none'} instead.")
    return tensors


def _digest(folder: Path) -> str:
    digest = hashlib.sha256()
    for name in (TOPICS, CONFIG, EMBEDDINGS, CTFIDF, CTFIDF_CONFIG):
        content = (folder / name).read_bytes() if (folder / name).is_file() else b""
        digest.update(f"{name}:{len(content)}:".encode() + content)
    return digest.hexdigest()[:32]


def _text(value: Any) -> str:
    # JSON may hold halves of surrogate pairs, which no table can
    return str(value).encode("utf-8", "replace").decode()


def _at(file: Path) -> str:
    return f"The file {str(file)!r} of a BERTopic model"


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
