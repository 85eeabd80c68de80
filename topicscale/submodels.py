"""BERTopic's sub-model objects -> configuration: what is sent to workers is a class and its parameters, never an object."""

from __future__ import annotations

import numbers
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from topicscale.algorithms import SIZES
from topicscale.bertopic.lacking import PARAMETERS
from topicscale.errors import RequestError

_REDUCTIONS = {("umap", "UMAP"): "umap", ("cuml", "UMAP"): "cuml_umap", ("sklearn", "PCA"): "pca"}
"""A class, by its package and name -> our name for it; any other goes by its import path."""
_REPRESENTATIONS = {
    "KeyBERTInspired": ("keybert", ("top_n_words", "nr_repr_docs", "nr_candidate_words")),
    "MaximalMarginalRelevance": ("mmr", ("top_n_words", "diversity")),
    "PartOfSpeech": ("pos", ("top_n_words", "pos_patterns")),
}
"""BERTopic's class -> our step, and the attributes that are its parameters."""
_OURS = frozenset(("n_components", "metric", "min_dist", "cluster_selection_method", "n_clusters", "n_init"))
"""Parameters whose value, when none is given, is not what the class itself takes (see :mod:`topicscale.algorithms`)."""
_UNUSED = {
    "analyzer": "word",
    "token_pattern": r"(?u)\b\w\w+\b",
    "max_df": 1.0,
    "max_features": None,
    "strip_accents": None,
    "tokenizer": None,
    "preprocessor": None,
    "vocabulary": None,
    "binary": False,
}
"""A vectoriser's parameters that cannot be met, and the one value of each that asks for nothing."""
_USED = frozenset(("ngram_range", "stop_words", "lowercase", "min_df", "input", "encoding", "decode_error", "dtype"))
"""Parameters that are met, or that are about files and numbers alone."""
_ALGORITHMS = {
    ("hdbscan", "HDBSCAN"): "hdbscan",
    ("fast_hdbscan", "HDBSCAN"): "fast_hdbscan",
    ("cuml", "HDBSCAN"): "cuml_hdbscan",
    ("evoc", "EVoC"): "evoc",
    ("sklearn", "KMeans"): "kmeans",
}


def configuration(
    embedding_model: Any, umap_model: Any, hdbscan_model: Any, vectorizer_model: Any, ctfidf_model: Any
) -> dict[str, dict[str, Any]]:
    """Return the configuration's sections that the given sub-models describe.

    Raises
    ------
    RequestError
        An object cannot be described by its class and parameters.
    """
    found: dict[str, dict[str, Any]] = {}
    if embedding_model is not None:
        found["embedding"] = {"model": _model_name(embedding_model)}
    if umap_model is not None:
        found.setdefault("cluster", {}).update(
            zip(("reduction", "reduction_params"), _described(umap_model, _REDUCTIONS, "umap_model"), strict=True)
        )
    if hdbscan_model is not None:
        name, params = _described(hdbscan_model, _ALGORITHMS, "hdbscan_model")
        # of a topic's size, partitions and samples have their shares
        params = {key: value for key, value in params.items() if key not in SIZES or value is not None}
        sizes = [params.pop(key) for key in SIZES if isinstance(params.get(key), int)]
        found.setdefault("cluster", {}).update({"algorithm": name, "params": params})
        if sizes:
            found["topics"] = {"min_size": sizes[0]}
    if vectorizer_model is not None:
        found["terms"] = _vectorizer(vectorizer_model)
    if ctfidf_model is not None:
        if getattr(ctfidf_model, "seed_words", None):
            raise RequestError("ctfidf_model's seed_words cannot be used. Leave them out, or name topics in advance: zeroshot.topics.")
        found.setdefault("terms", {}).update(
            bm25_weighting=bool(getattr(ctfidf_model, "bm25_weighting", False)),
            reduce_frequent_words=bool(getattr(ctfidf_model, "reduce_frequent_words", False)),
        )
    return found


def aspects(representation_model: Any) -> dict[str, Any]:
    """Return the value of ``represent.aspects`` that a representation model describes: a step, a list of them, or a dict of both.

    A step is a name (keybert, mmr, pos, llm), a mapping with ``type``, or an object of BERTopic's. What is no dict makes one
    aspect, by the name of its last step.

    Raises
    ------
    RequestError
        An object has no counterpart.
    """
    if isinstance(representation_model, Mapping) and "type" not in representation_model:
        return {str(name): _steps(value) for name, value in representation_model.items()}
    steps = _steps(representation_model)
    last = steps[-1] if isinstance(steps, list) and steps else steps
    return {str(last["type"] if isinstance(last, dict) else last): steps}


def _steps(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_steps(item) for item in value]
    if isinstance(value, (str, Mapping)):
        return value if isinstance(value, str) else dict(value)
    kind = type(value).__name__
    if kind not in _REPRESENTATIONS:
        names = ", ".join((*(name for name, _ in _REPRESENTATIONS.values()), "llm"))
        raise RequestError(
            f"representation_model must be made of the names {names} or BERTopic's {', '.join(_REPRESENTATIONS)}. Got {kind} instead. "
            "For a language model give 'llm', and say which in config: {'llm': {'model': ...}}."
        )
    name, keys = _REPRESENTATIONS[kind]
    given = {key: getattr(value, key, None) for key in keys}
    pipeline = getattr(getattr(value, "model", None), "meta", None) if name == "pos" else None
    if isinstance(pipeline, Mapping):  # spaCy's name for what was loaded
        given["model"] = f"{pipeline.get('lang')}_{pipeline.get('name')}"
    return {"type": name, **{key: item for key, item in given.items() if item is not None}}


def _model_name(model: Any) -> str:
    if isinstance(model, (str, os.PathLike)):
        return os.fspath(model)
    card = getattr(model, "model_card_data", None)
    if getattr(card, "training_logs", None):
        raise RequestError("embedding_model was trained in this process, which its name does not tell: save it to a folder and give that.")
    # a SentenceTransformer remembers where it came from: the folder its transformer was loaded from, else an id of the hub
    loaded = getattr(getattr(getattr(model, "transformers_model", None), "config", None), "_name_or_path", None)
    if isinstance(loaded, str) and Path(loaded).is_dir():
        return loaded
    for name in (getattr(card, "base_model", None), loaded, getattr(model, "base_model", None), getattr(model, "name_or_path", None)):
        if isinstance(name, str) and name:
            return name
    raise RequestError(
        f"embedding_model must be a name, a folder, or a model loaded from one. Got {type(model).__name__} instead: "
        "save it to a folder and give that."
    )


def _described(model: Any, known: Mapping[tuple[str, str], str], parameter: str) -> tuple[str, dict[str, Any]]:
    kind = type(model)
    if kind.__name__ == "BaseDimensionalityReduction":  # BERTopic's word for no reduction
        return "none", {}
    if kind.__name__ == "BaseCluster":  # and for topics that are given
        raise RequestError(f"{parameter} must be a clustering. Got BaseCluster instead. {PARAMETERS['y']}")
    name = known.get((kind.__module__.partition(".")[0], kind.__name__))
    if not hasattr(model, "get_params"):
        raise RequestError(f"{parameter} must have get_params, as scikit-learn's estimators do. Got {kind.__name__} instead.")
    defaults = _defaults(kind)
    changed = {
        key: value
        for key, value in model.get_params(deep=False).items()
        # by their look: defaults may be objects that equal nothing (joblib's Memory in HDBSCAN)
        if key in (*_OURS, *SIZES) or key not in defaults or (type(value), repr(value)) != (type(defaults[key]), repr(defaults[key]))
    }
    for key, value in changed.items():
        if isinstance(value, np.generic):
            value = changed[key] = value.item()
        if value is not None and not isinstance(value, (str, int, float, bool, list, tuple, dict)):
            raise RequestError(f"{parameter} has the parameter {key}={value!r}, which cannot be sent to workers. Leave it out.")
    return name or f"{kind.__module__}.{kind.__qualname__}", changed


def _defaults(kind: type) -> dict[str, Any]:
    try:
        return dict(kind().get_params(deep=False))
    except TypeError:
        return {}


def _vectorizer(model: Any) -> dict[str, Any]:
    # a class that hands its arguments on (OnlineCountVectorizer) tells of its own alone
    params = {key: getattr(model, key) for key in (*_UNUSED, *_USED) if hasattr(model, key)} | model.get_params(deep=False)
    stop_words = params.get("stop_words")
    terms: dict[str, Any] = {
        "ngram_range": list(params.get("ngram_range", (1, 1))),
        "stop_words": stop_words if stop_words is None or isinstance(stop_words, str) else sorted(stop_words),
        "lowercase": bool(params.get("lowercase", True)),
    }
    min_df = params.get("min_df", 1)
    if not isinstance(min_df, numbers.Integral) or isinstance(min_df, bool):
        raise RequestError(f"vectorizer_model's min_df must be a number of documents. Got {min_df!r} instead.")
    terms["min_df"] = int(min_df)
    own = _defaults(type(model))
    for key in params.keys() - _UNUSED.keys() - _USED:  # of a class that has more than a CountVectorizer
        if key not in own or repr(params[key]) != repr(own[key]):
            raise RequestError(f"vectorizer_model's {key} cannot be used. Leave it out. Got {params[key]!r} instead.")
    for key, neutral in _UNUSED.items():
        if repr(params.get(key, neutral)) != repr(neutral):
            raise RequestError(
                f"vectorizer_model's {key} cannot be used: terms are counted in Spark's JVM. Leave it out. Got {params[key]!r} instead."
            )
    return terms
