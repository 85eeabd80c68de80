"""A BERTopic model into a store that holds topics alone: no documents, and no text but the model's own words."""

from __future__ import annotations

import os
from typing import Any

from topicscale.bertopic.folder import CONFIG, CTFIDF_CONFIG, Folder
from topicscale.bertopic.tables import tables
from topicscale.config import Config, fingerprint, load, rooted
from topicscale.errors import ConfigError, InputError, ModelError, RequestError
from topicscale.models import embedding_space
from topicscale.store import Snapshot, Store
from topicscale.tables import OUTLIER

STAGE = "bertopic"


def configuration(folder: Folder, *, embedding_model: str | os.PathLike[str] | None = None) -> Config:
    """Return the configuration that a BERTopic model was made with, as far as its files tell.

    Parameters
    ----------
    embedding_model : str or PathLike, optional
        Packaged name, folder or hub id; needed where the files name none, and wins over the one they name.

    Raises
    ------
    RequestError
        No embedding model is named, or a setting has no counterpart here.
    """
    named = os.fspath(embedding_model) if embedding_model else folder.parameters.get("embedding_model")
    if not isinstance(named, str) or not named:
        raise RequestError(
            f"The BERTopic model in {str(folder.path)!r} does not name its embedding model. Pass embedding_model=, for example "
            'from_bertopic(folder, embedding_model="all-MiniLM-L6-v2"): the one its documents were embedded with.'
        )
    params, file = folder.parameters, CONFIG
    terms: dict[str, Any] = {"ngram_range": params.get("n_gram_range", [1, 1]), "stop_words": None}
    if folder.terms is not None:
        params, file = folder.terms.vectorizer, CTFIDF_CONFIG
        terms = {
            "ngram_range": params.get("ngram_range", [1, 1]),
            "stop_words": params.get("stop_words"),
            "lowercase": params.get("lowercase", True),
            "bm25_weighting": folder.terms.transformer.get("bm25_weighting", False),
            "reduce_frequent_words": folder.terms.transformer.get("reduce_frequent_words", False),
        }
    terms["top_n_words"] = folder.parameters.get("top_n_words", 10)
    try:
        return rooted(load(values={"embedding": {"model": named}, "terms": terms, "topics": {"min_size": _min_size(folder)}}))
    except ConfigError as error:
        raise InputError(f"{file} of the BERTopic model in {str(folder.path)!r} has a setting that has no counterpart: {error}") from error


def space_of(config: Config) -> str:
    """Return the id of the embedding space: the model's own where it is on this machine, else one that its name alone stands for."""
    try:
        return embedding_space(config.embedding)
    except ModelError:
        return named_space(config.embedding.model)


def named_space(model: str) -> str:
    """Return the id of a space of which nothing is known but the model's name."""
    return fingerprint("named space", 1, model)


def publish(folder: Folder, config: Config, store: Store, *, site: str | None = None) -> Snapshot:
    """Write a BERTopic model's topics into a fresh store and return its generation. Idempotent for the same files and settings.

    Parameters
    ----------
    site : str, optional
        The name that these topics keep when stores are merged.

    Raises
    ------
    RequestError
        The store holds something else.
    """
    written = fingerprint("bertopic", 1, folder.digest, config, site)
    with store.lock(STAGE):
        before = store.snapshots()
        if before and before[-1].summary.get("bertopic") == written:
            return before[-1]
        if before or store.has("documents") or store.read("runs").num_rows:
            raise RequestError(f"store must be a new or empty folder. The one at {store.uri!r} holds something else already. Name another.")
        space = space_of(config)
        found = tables(folder, config, space=space, site=site or "", site_id=store.site_id if site else "", generation=1 if site else 0)
        for table, rows in found.tables.items():
            store.create_table(table)
            store.replace(table, rows, stage=STAGE, unit_fingerprint=written)
        outliers = int(folder.sizes[0]) if folder.ids[0] == OUTLIER else 0
        summary = {
            "documents": int(folder.sizes.sum()),
            "partitions": 0,
            "topics": sum(topic >= 0 for topic in folder.ids),
            "outliers": outliers,
            "space": space,
            "model": config.embedding.model,
            "height": None,
            "failed": {},
            "terms": found.terms,
            "bertopic": written,
        }
        return store.publish(configuration=config.to_dict(), summary=summary, unit_fingerprint=written)


def _min_size(folder: Folder) -> int:
    least = folder.parameters.get("min_topic_size")
    return least if isinstance(least, int) and least > 1 else 2
