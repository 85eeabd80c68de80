"""The Python API, in the words that BERTopic's users know."""

from __future__ import annotations

import dataclasses
import os
import re
import tempfile
import weakref
from collections.abc import Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import numpy as np
import numpy.typing as npt
import pandas as pd

from topicscale import documents as inputs
from topicscale import sites, storage, submodels
from topicscale.bertopic.folder import TOPICS
from topicscale.bertopic.lacking import ATTRIBUTES, refuse
from topicscale.config import Config, load, rooted
from topicscale.errors import JobFailed, ModelError, RequestError, StoreError
from topicscale.files import Folder
from topicscale.labels import ASPECT, LABEL_COLUMNS, MAIN, held, set_labels, weighed
from topicscale.refine import assign
from topicscale.registry import located
from topicscale.store import Snapshot, Store, is_store
from topicscale.tables import OUTLIER, SHOWN_CHARS
from topicscale.texts import VISIBLE

if TYPE_CHECKING:
    from topicscale.embedding import Embedder

Float32 = npt.NDArray[np.float32]
Words = list[tuple[str, float]]
MODELS = {"english": "all-MiniLM-L6-v2", "multilingual": "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2"}

_COLUMNS = {
    *("Topic", "Count", "Name", "CustomName", "Representation", "Representative_Docs"),
    *("Document", "Top_n_words", "Probability", "Representative_document", "Doc_ID"),
}
"""What the frames of topics and documents hold: an aspect of such a name gets another one there."""


class TopicModel:
    """A topic model over a store of Delta tables.

    Parameters
    ----------
    language : {"english", "multilingual"}, default="english"
        Chooses the embedding model and the stop words, unless they are given.
    top_n_words : int, default=10
        Keywords of a topic.
    n_gram_range : (int, int), default=(1, 1)
        Lengths of the terms that are counted.
    min_topic_size : int, default=10
        Smallest topic, in documents.
    nr_topics : int, "auto" or None, default=None
        Number of topics. "auto" and None both find it.
    zeroshot_topic_list : list of str, optional
        Names of topics given in advance. Each takes the documents that are more similar to it than to the other names, from
        ``zeroshot_min_similarity`` on; the rest is clustered. A name that takes no document makes no topic.
    zeroshot_min_similarity : float, default=0.7
        Cosine of a document to a name. What it means depends on the embedding model.
    embedding_model : str, Path or SentenceTransformer, optional
        Packaged name, folder or hub id. A loaded model must have come from one of these.
    umap_model, hdbscan_model : object, optional
        Instances of UMAP, PCA, HDBSCAN, EVoC, KMeans and the like: their class and parameters are taken, since they are
        made anew in every worker.
    vectorizer_model : CountVectorizer, optional
        Its ngram_range, stop_words, min_df and lowercase are taken.
    ctfidf_model : ClassTfidfTransformer, optional
        Its bm25_weighting and reduce_frequent_words are taken.
    representation_model : str, list, dict or object, optional
        Further descriptions of topics: keybert, mmr, pos, llm, or BERTopic's objects for the first three; a list is a chain, a dict
        names several. They stand beside the c-TF-IDF keywords (``get_topic(3, full=True)``) and do not replace them. The
        model of llm is configured: ``config={"llm": {"model": ...}}``.
    verbose : bool, default=False
        Show progress.
    config : str, Path, mapping or Config, optional
        A YAML file, a preset's name, or the tree itself; parameters given by name win over it.
    store : str or Path, optional
        Where the tables are kept. Without one they are kept in a temporary folder for as long as the object lives.

    Attributes
    ----------
    topics_ : list of int
        Topic of each fitted document, -1 for outliers and for documents that were refused (see ``quarantine``). Of a model that was
        loaded, those of the documents in the store, by ``doc_id``: refused ones are not among them.
    probabilities_ : ndarray of float32, shape (n,)
        Cosine to the topic's reference vector; 0 for outliers.
    topic_sizes_, topic_labels_ : dict
        By topic id.
    custom_labels_ : list of str or None
        Names in the order of topic ids, once a topic was named by hand.
    topic_embeddings_ : ndarray of float32, shape (k, d)
        Reference vectors in the order of topic ids, the outliers' mean first if there are outliers.

    Examples
    --------
    >>> from topicscale import TopicModel
    >>> model = TopicModel(min_topic_size=15, store="news/")
    >>> ids, probabilities = model.fit_transform(docs)  # doctest: +SKIP
    >>> model.get_topic_info()  # doctest: +SKIP
    """

    def __init__(
        self,
        language: Literal["english", "multilingual"] | None = None,
        top_n_words: int | None = None,
        n_gram_range: tuple[int, int] | None = None,
        min_topic_size: int | None = None,
        nr_topics: int | Literal["auto"] | None = None,
        *,
        zeroshot_topic_list: Sequence[str] | None = None,
        zeroshot_min_similarity: float | None = None,
        embedding_model: Any = None,
        umap_model: Any = None,
        hdbscan_model: Any = None,
        vectorizer_model: Any = None,
        ctfidf_model: Any = None,
        representation_model: Any = None,
        verbose: bool = False,
        config: str | Path | Mapping[str, Any] | Config | None = None,
        store: str | Path | None = None,
        **lacking: Any,
    ) -> None:
        refuse(lacking, "TopicModel")
        spoken = {"en": "english"}.get(str(language).lower(), str(language).lower())
        if language is not None and spoken not in MODELS:
            raise RequestError(
                f"language must be one of {', '.join(MODELS)}. Got {language!r} instead: multilingual stands for the others."
            )
        if config is not None and not isinstance(config, (str, Path, Config, Mapping)):
            raise RequestError(f"config must be a file, a preset's name, a mapping or a Config. Got {type(config).__name__} instead.")
        if n_gram_range is not None and not isinstance(n_gram_range, (tuple, list)):
            raise RequestError(f"n_gram_range must be two numbers, such as (1, 2). Got {n_gram_range!r} instead.")
        given: dict[str, dict[str, Any]] = {}

        def put(section: str, values: Mapping[str, Any]) -> None:
            chosen = {key: value for key, value in values.items() if value is not None}
            if chosen:
                given.setdefault(section, {}).update(chosen)

        put("terms", {"top_n_words": top_n_words, "ngram_range": None if n_gram_range is None else list(n_gram_range)})
        put("topics", {"min_size": min_topic_size, "number": None if nr_topics == "auto" else nr_topics})
        if nr_topics == "auto":
            given.setdefault("topics", {})["number"] = None  # whatever the configuration says
        names = None if zeroshot_topic_list is None else _names(zeroshot_topic_list)
        put("zeroshot", {"topics": names, "min_similarity": zeroshot_min_similarity})
        for section, values in submodels.configuration(embedding_model, umap_model, hdbscan_model, vectorizer_model, ctfidf_model).items():
            given.setdefault(section, {}).update(values)
        if representation_model is not None:
            put("represent", {"aspects": submodels.aspects(representation_model)})
        if isinstance(config, (str, Path)):
            config = load(file=config)
        merged = dict((config.to_dict() if isinstance(config, Config) else config) or {})
        if spoken == "multilingual":
            merged = _multilingual(merged, whole=isinstance(config, Config))
        for section, values in given.items():
            if not isinstance(merged.get(section) or {}, Mapping):
                raise RequestError(f"config: {section} must be a mapping. Got {merged[section]!r} instead.")
            # an object's parameters are all it has: those of the configuration were another's
            merged[section] = {**(merged.get(section) or {}), **values}
        self.config = load(values=merged)
        self._embedding = self.config.embedding
        self.verbose = verbose
        self._named_store = store is not None
        if store is None:
            folder = tempfile.TemporaryDirectory(prefix="topicscale-")
            weakref.finalize(self, folder.cleanup)
            store = folder.name
        self.store = os.fspath(store)
        self._snapshot: Snapshot | None = None

    @classmethod
    def load(cls, store: str | Path, *, generation: int | None = None, embedding_model: Any = None) -> TopicModel:
        """Return the model that a store holds, at its newest generation or a given one.

        Parameters
        ----------
        embedding_model : str, Path or SentenceTransformer, optional
            Where the embedding model is on this machine, for a store whose own name for it is another machine's. It must be the very model:
            ``transform`` compares it with the one that the documents were embedded with.

        Raises
        ------
        StoreError
            There is no store, no finished run in it, or no such generation; or it is an export, which is for merging.
        """
        store = os.fspath(store)
        if not is_store(store) and Folder(store).exists(TOPICS):
            raise StoreError(f"{store!r} is a folder that BERTopic saved. Read it with: TopicModel.from_bertopic(folder)")
        snapshot = Store(store).pin(generation)
        model = cls(config=snapshot.configuration, store=store, embedding_model=embedding_model)
        model._open(snapshot)
        return model

    @classmethod
    def from_bertopic(
        cls, directory: str | Path, *, store: str | Path | None = None, site: str | None = None, embedding_model: str | Path | None = None
    ) -> TopicModel:
        """Return the model in a folder that BERTopic saved as safetensors, as a store of topics without documents.

        Sizes, names, labels, words, topic embeddings and c-TF-IDF weights are kept; what is approximate is told in
        :mod:`topicscale.bertopic.tables`. Nothing is unpickled. ``get_topic`` lists words of equal weight by the
        alphabet; ``get_topic_info`` has BERTopic's order.

        Parameters
        ----------
        store : str or Path, optional
            A new or empty folder. Without one the tables are kept for as long as the object lives.
        site : str, optional
            The name these topics keep when stores are merged.
        embedding_model : str or Path, optional
            Packaged name, folder or hub id of the model the documents were embedded with, where the files name none.

        Raises
        ------
        RequestError
            It is no such folder, a file of it is damaged, it names no embedding model, or the store holds something else.
        """
        from topicscale.bertopic.folder import open_folder
        from topicscale.bertopic.read import configuration, publish

        folder = open_folder(directory)
        model = cls(config=configuration(folder, embedding_model=embedding_model), store=store)
        model._open(publish(folder, model.config, Store(model.store, create=True), site=site))
        return model

    def to_bertopic(self, directory: str | Path) -> None:
        """Write the topics as a folder that ``BERTopic.load`` reads, c-TF-IDF included; see :mod:`topicscale.bertopic.write`.

        The folder holds the corpus's terms and the topics' representative documents. BERTopic's ``transform`` knows no
        cut-offs: a document goes to the nearest topic embedding, the outliers' mean among them. BERTopic does not read
        representative documents: they are under ``representative_docs`` in ``topics.json``.

        Parameters
        ----------
        directory : str or Path
            New, empty, or with a BERTopic model in it, which is replaced.

        Raises
        ------
        RequestError
            The store has no topics, or the folder holds something else.
        """
        from topicscale.bertopic.write import write

        config = dataclasses.replace(self.config, embedding=self._embedding)
        write(self._fitted(), directory, config=config, assigned=self._assigned())

    def __getattr__(self, name: str) -> NoReturn:
        hint = f" {ATTRIBUTES[name]}" if name in ATTRIBUTES else ""
        raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}.{hint}", name=name, obj=self)

    # -- fitting ---------------------------------------------------------------------------------------------------

    def fit(self, documents: Any, embeddings: Any = None, **lacking: Any) -> TopicModel:
        """Fit and return the model. See :meth:`fit_transform`."""
        self.fit_transform(documents, embeddings, **lacking)
        return self

    def fit_transform(self, documents: Any, embeddings: Any = None, **lacking: Any) -> tuple[list[int], Float32]:
        """Find the topics of documents and return each one's topic and probability.

        Parameters
        ----------
        documents : list of str, pandas, polars or Arrow data, Spark data frame, or a path (a list of ``pathlib.Path``)
            A frame's text column is ``config.input.text_column`` (default ``text``), or its only column.
        embeddings : array of shape (n, d), optional
            Precomputed vectors, one per document, in order. Not with a path or a Spark data frame.

        Returns
        -------
        topics : list of int
            In the order of ``documents``. For a path or a Spark data frame, whose rows have no order, by ``doc_id`` as
            :meth:`get_document_info` lists them. Documents refused as empty or too long have topic -1.
        probabilities : ndarray of float32, shape (n,)

        Raises
        ------
        RequestError, StoreError, JobFailed
            See :func:`jobs.run.run`.
        """
        from jobs.engines import write_frame
        from jobs.progress import Ui
        from jobs.run import run

        refuse(lacking, "fit_transform")
        here = self.config.ray.where is None and (self.config.spark.where or "local").startswith("local")
        if not (here or self._named_store):
            raise RequestError("store must be a folder that all machines reach, where Spark or Ray runs on a cluster. Got none instead.")
        storage.adopt(self.config.storage)
        with inputs.staged(documents, embeddings, self.config.input, self.store, write=write_frame) as (source, positions):
            config = dataclasses.replace(self.config, input=source)
            result = run(config, self.store, ui=Ui("auto" if self.verbose else "quiet"))
        if result.failed:
            stages = ", ".join(f"{stage} ({len(units)})" for stage, units in result.failed.items())
            raise JobFailed(f"Some partitions failed: {stages}. See: topicscale status --store {self.store}")
        self._positions = positions
        snapshot = Store(self.store).pin()
        # a model that the store trained is known by its folder from here on: its name may be another's later
        self._embedding = rooted(located(self.config, Store(self.store))).embedding
        self.__dict__.pop("_embedder", None)
        self._open(snapshot)
        return self.topics_, self.probabilities_

    def _open(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot
        self._reader = Store(self.store)
        self._reader.pin(snapshot.generation)
        for name in ("_topics", "_counted", "_aspects", "_named", "_assignments", "topics_", "probabilities_", "_references"):
            self.__dict__.pop(name, None)

    def _fitted(self, *, documents: bool = False) -> Store:
        if self._snapshot is None:
            raise StoreError("This model is not fitted. Call fit_transform, or TopicModel.load(store).")
        if documents:
            self._reader.check_documents()
        return self._reader

    # -- results ---------------------------------------------------------------------------------------------------

    _positions: int | None = None
    """Documents given to fit_transform as a sequence, whose ids are their positions."""

    @cached_property
    def _topics(self) -> pd.DataFrame:
        rows: pd.DataFrame = self._fitted().read("topics").to_pandas()
        return rows.sort_values("topic_id").set_index("topic_id", drop=False)

    @cached_property
    def _assignments(self) -> pd.DataFrame:
        rows: pd.DataFrame = self._fitted().read("assignments", ["doc_id", "topic_id", "probability"]).to_pandas()
        return rows.sort_values("doc_id", ignore_index=True)

    @cached_property
    def _counted(self) -> dict[int, Words]:
        """Each topic's best terms by c-TF-IDF."""
        from topicscale.terms import KEYWORDS, top_terms

        return top_terms(self._fitted().read_batches("topic_terms", KEYWORDS), self.config.terms.top_n_words)

    @cached_property
    def _aspects(self) -> dict[int, dict[str, Words]]:
        """Each topic's aspects by name; c-TF-IDF's is one of them where a BERTopic model's main representation is another's."""
        found: dict[int, dict[str, Words]] = {}
        for row in self._fitted().read("topic_labels").to_pylist():
            if row["aspect"] != "ctfidf":
                found.setdefault(row["topic_id"], {})[row["aspect"]] = weighed(row)
        for topic, aspects in found.items():
            if MAIN in aspects:
                aspects["ctfidf"] = self._counted.get(topic, [])
        return found

    @cached_property
    def topics_(self) -> list[int]:
        """Topic of each fitted document."""
        return [int(topic) for topic in self._in_order("topic_id", OUTLIER)]

    @cached_property
    def probabilities_(self) -> Float32:
        """Probability of each fitted document's topic."""
        return self._in_order("probability", 0.0).astype(np.float32)

    def _in_order(self, column: str, missing: float) -> npt.NDArray[Any]:
        self._fitted(documents=True)
        values: npt.NDArray[Any] = self._assignments[column].to_numpy()
        if self._positions is None:
            return values
        full = np.full(self._positions, missing, values.dtype)
        full[self._assignments["doc_id"].astype(np.int64).to_numpy()] = values
        return full

    def _assigned(self) -> list[int]:
        """Return the topics of the documents that have one, in the order of ``topics_``."""
        rows = self._assignments
        if self._positions is not None:
            rows = rows.iloc[rows["doc_id"].astype(np.int64).argsort(kind="stable")]
        return [int(topic) for topic in rows["topic_id"]]

    @property
    def _topic_ids(self) -> list[int]:
        return [int(topic) for topic in self._topics["topic_id"]]

    @property
    def topic_sizes_(self) -> dict[int, int]:
        """Documents of each topic."""
        return dict(zip(self._topic_ids, map(int, self._topics["size"]), strict=True))

    @property
    def topic_labels_(self) -> dict[int, str]:
        """Name of each topic."""
        return dict(zip(self._topic_ids, map(str, self._topics["label"]), strict=True))

    @property
    def topic_embeddings_(self) -> Float32:
        """Reference vectors, in the order of topic ids. Topics matched by words over two embedding models have none: shape (k, 0)."""
        return (
            np.stack(self._topics["reference_vector"].to_list()).astype(np.float32) if len(self._topics) else np.zeros((0, 0), np.float32)
        )

    def get_topic_info(self, topic: int | None = None) -> pd.DataFrame:
        """Return topics (or one) with Topic, Count, Name, Representation, a column for each other aspect, and Representative_Docs.

        Where topics were named by hand, CustomName follows Name, as BERTopic has it; here the two are the same.
        """
        rows = self._topics
        info = pd.DataFrame(
            {
                "Topic": rows["topic_id"].astype(int),
                "Count": rows["size"].astype(int),
                "Name": rows["label"],
                "Representation": [list(words) for words in rows["keywords"]],
                **self._aspect_columns(rows["topic_id"]),
                "Representative_Docs": [list(docs) for docs in rows["representative_docs"]],
            }
        ).reset_index(drop=True)
        if self._named:
            info.insert(3, "CustomName", info["Name"])
        return info if topic is None else info[info["Topic"] == topic].reset_index(drop=True)

    @property
    def representative_docs_(self) -> dict[int, list[str]]:
        """Representative documents by topic."""
        return {topic: list(docs) for topic, docs in zip(self._topic_ids, self._topics["representative_docs"], strict=True)}

    def get_representative_docs(self, topic: int | None = None) -> list[str] | dict[int, list[str]] | None:
        """Return the representative documents of all topics by id; or of one, None where it has none."""
        return self.representative_docs_ if topic is None else self.representative_docs_.get(topic) or None

    def _aspect_columns(self, topics: Iterable[int]) -> dict[str, list[list[str]]]:
        """Return the terms of each aspect for each of some topics, in their order."""
        by_topic = self._aspects
        names = sorted({name for found in by_topic.values() for name in found} - {ASPECT, MAIN})
        found: dict[str, list[list[str]]] = {}
        for name in names:
            column = f"{name}_aspect" if name in _COLUMNS else name
            found[column] = [[term for term, _ in by_topic.get(topic, {}).get(name, [])] for topic in topics]
        return found

    def get_topic(self, topic: int, full: bool = False) -> Words | dict[str, Words] | Literal[False]:
        """Return a topic's terms and their c-TF-IDF weights, best first; False if there is no such topic.

        With ``full`` return every aspect by name, the c-TF-IDF terms as ``Main``. Of a BERTopic model whose main representation is not
        c-TF-IDF's (:meth:`from_bertopic`), that one is what is returned and ``Main``, and the c-TF-IDF terms are ``ctfidf``.
        """
        if topic not in self._topics.index:
            return False
        if not full:
            return self.topic_representations_[topic]
        others = {name: by_topic[topic] for name, by_topic in self.topic_aspects_.items() if topic in by_topic}
        return {"Main": self.topic_representations_[topic], **others}

    def get_topics(self, full: bool = False) -> dict[int, Words] | dict[str, dict[int, Words]]:
        """Return all topics' terms by id; with ``full``, by aspect and id. See :meth:`get_topic`."""
        return {"Main": self.topic_representations_, **self.topic_aspects_} if full else self.topic_representations_

    @property
    def topic_representations_(self) -> dict[int, Words]:
        """What :meth:`get_topic` returns of each topic."""
        return {topic: self._aspects.get(topic, {}).get(MAIN, self._counted.get(topic, [])) for topic in self._topic_ids}

    @property
    def topic_aspects_(self) -> dict[str, dict[int, Words]]:
        """The other terms of topics, by aspect and id."""
        found: dict[str, dict[int, Words]] = {}
        for topic, aspects in self._aspects.items():
            for name, words in aspects.items():
                if name != MAIN:
                    found.setdefault(name, {})[topic] = words
        return found

    def get_topic_freq(self, topic: int | None = None) -> pd.DataFrame | int:
        """Return topics with their number of documents, largest first; or one topic's number."""
        if topic is not None:
            return self.topic_sizes_[topic]
        rows = pd.DataFrame({"Topic": list(self.topic_sizes_), "Count": list(self.topic_sizes_.values())})
        return rows.sort_values("Count", ascending=False, ignore_index=True)

    def get_topic_trends(self, half_life: str | pd.Timedelta | None = None) -> pd.DataFrame:
        """Return how many documents of each batch each topic took: Topic, Batch, Timestamp, Count.

        Batch 0 is the run that fitted the store; each :func:`jobs.update.update` is one more. Without any the result is empty.

        Parameters
        ----------
        half_life : str or Timedelta, optional
            As pandas reads it ("30D"): a column Weight is added, the count halved for each half-life before the newest batch.
        """
        rows: pd.DataFrame = self._fitted().read("topic_trends").to_pandas().sort_values(["batch", "topic_id"], ignore_index=True)
        trends: pd.DataFrame = rows.rename(columns={"topic_id": "Topic", "batch": "Batch", "at": "Timestamp", "documents": "Count"})
        trends = trends[["Topic", "Batch", "Timestamp", "Count"]]
        if half_life is not None:
            try:
                span = pd.Timedelta(half_life)
            except ValueError:  # of the text, or of a number without a unit
                span = pd.Timedelta(0)
            if not span > pd.Timedelta(0):
                raise RequestError(f"half_life must be a positive time, such as '30D'. Got {half_life!r} instead.")
            age = (trends["Timestamp"].max() - trends["Timestamp"]) / span
            trends["Weight"] = trends["Count"] * 0.5**age
        return trends

    def get_document_info(self, docs: Sequence[str] | None = None) -> pd.DataFrame:
        """Return every document with its text, topic, the topic's name and words, and its probability, by ``doc_id``.

        The kept input columns follow, as ``..._input`` where they have the name of one of these. The whole corpus is read:
        for a large store query the tables instead.

        Parameters
        ----------
        docs : list of str, optional
            Not needed, since the store holds the documents. BERTopic's users give them: they are compared.

        Raises
        ------
        RequestError
            ``docs`` are not the store's documents in the order of ``doc_id``. Refused ones (see ``quarantine``) are not among these.
        """
        reader = self._fitted(documents=True)
        documents = reader.read("documents").drop_columns(["partition_id", "text_hash"]).to_pandas()
        documents = documents.sort_values("doc_id", ignore_index=True)
        if docs is not None and inputs.texts_of(docs) != documents["text"].tolist():
            raise RequestError(
                f"docs must be the {len(documents):,} documents of the store {self.store!r}, in the order of doc_id. Leave them out."
            )
        # the kept columns stay out of it: one of them may be called topic_id
        rows = documents[["doc_id", "text"]].merge(self._assignments, on="doc_id", how="left", validate="one_to_one")
        topics = rows["topic_id"].fillna(OUTLIER).astype(int)
        info = pd.DataFrame({"Document": rows["text"], "Topic": topics})
        described = self._topics.reindex(topics.to_numpy())
        info["Name"] = described["label"].to_numpy()
        if self._named:
            info["CustomName"] = info["Name"]
        info["Representation"] = [list(words) if isinstance(words, (list, np.ndarray)) else [] for words in described["keywords"]]
        for name, terms in self._aspect_columns(topics).items():
            info[name] = terms
        info["Top_n_words"] = [" - ".join(words) for words in info["Representation"]]
        info["Probability"] = rows["probability"].fillna(0.0).to_numpy()
        shown = {topic: set(docs) for topic, docs in zip(self._topics["topic_id"], self._topics["representative_docs"], strict=True)}
        info["Representative_document"] = [
            text[:SHOWN_CHARS] in shown.get(topic, ()) for text, topic in zip(rows["text"], topics, strict=True)
        ]
        info["Doc_ID"] = rows["doc_id"]
        kept = [c for c in documents.columns if c not in ("doc_id", "text", "embedding")]
        for name in kept:
            info[f"{name}_input" if name in info else name] = documents[name]
        return info

    # -- names, and topics of several stores -------------------------------------------------------------------------

    def set_topic_labels(self, topic_labels: Mapping[int, str] | Sequence[str]) -> None:
        """Name topics: in the store, for everyone who reads it. See :func:`topicscale.labels.set_labels`.

        Names are kept with what the topics are made of: a run that only counts or shows their words anew, an update and a
        merge of stores keep them. In a merged store they take the place of the sites' names.

        Parameters
        ----------
        topic_labels : dict of int to str, or list of str
            By topic id, which leaves other topics as they are; or for all topics in the order of their ids, the outliers'
            first if there are outliers. A name is one line of at most 200 characters; an empty one is removed.

        Raises
        ------
        RequestError
            A topic is unknown, or a name is not as it must be. Nothing was written.
        StoreError
            The store is in use, or holds a newer generation than this model shows.
        """
        self._fitted()
        assert self._snapshot is not None
        self._open(set_labels(Store(self.store), topic_labels, generation=self._snapshot.generation))

    def label_topics(
        self, aspect: str | None = None, *, topics: Sequence[int] | None = None, only_unlabelled: bool = False, **llm: Any
    ) -> dict[str, Any]:
        """Describe the topics further, in the store: what ``topicscale label`` does. Return what became of them.

        Parameters
        ----------
        aspect : str, optional
            One of the configured aspects, or keybert, mmr, pos, llm. None makes all that are configured, else keybert, mmr and llm.
        topics : sequence of int, optional
            Only these.
        only_unlabelled : bool, default=False
            Leave out topics that have the aspect.
        **llm
            Values of the configuration's section ``llm``: ``model="..."``, ``url="..."``.

        Raises
        ------
        RequestError, StoreError, JobFailed
            See :func:`jobs.label.label`.
        """
        from jobs.label import label
        from jobs.progress import Ui

        self._fitted()
        assert self._snapshot is not None
        generation = self._snapshot.generation
        chosen = {"llm": {key: os.fspath(value) if isinstance(value, os.PathLike) else value for key, value in llm.items()}}
        wanted = None if topics is None else set(topics)
        ui = Ui("auto" if self.verbose else "quiet")
        found = label(
            self.store, aspect=aspect, topics=wanted, only_unlabelled=only_unlabelled, values=chosen, ui=ui, generation=generation
        )
        self._open(Store(self.store).pin())
        return found

    @property
    def custom_labels_(self) -> list[str] | None:
        """Names of all topics in the order of their ids, as BERTopic has it; None while no topic was named by hand."""
        return list(self.topic_labels_.values()) if self._named else None

    @cached_property
    def _named(self) -> bool:
        reader = self._fitted()
        assert self._snapshot is not None
        return "topic_labels" in self._snapshot.versions and bool(held(reader.read("topic_labels", LABEL_COLUMNS).to_pylist()))

    @classmethod
    def merge(
        cls,
        models: Sequence[TopicModel | str | Path] | Mapping[str, TopicModel | str | Path],
        *,
        store: str | Path | None = None,
        similarity: float | Literal["auto"] = "auto",
        match: Literal["embeddings", "terms"] = "embeddings",
        documents: bool = False,
    ) -> TopicModel:
        """Return a model of the topics of several stores. Their order changes nothing.

        What ``topicscale merge`` does: every input is read at its store's newest generation.

        Parameters
        ----------
        models : list of TopicModel, str or Path, or dict
            Models or their stores. The keys of a dict name the sites; a store's folder does otherwise.
        store : str or Path, optional
            Where the merged topics are kept. Without one they are kept for as long as the object lives.
        similarity : float or "auto", default="auto"
            Topics are joined while their mean cosine is at least this; "auto" takes the granularity that the sites found
            on their own documents.
        match : {"embeddings", "terms"}, default="embeddings"
            What topics are compared by. Models of different embedding models can only be matched by their terms, and the
            merged model then has no vectors to transform documents with.
        documents : bool, default=False
            Copy the stores' documents, too, each with the merged topic of its own; without, a merged model has none.

        Raises
        ------
        RequestError, StoreError
            See :func:`jobs.merge.merge`.
        """
        from jobs.merge import merge

        if isinstance(models, (str, Path, TopicModel)):
            raise RequestError(f"models must be a list or a dict of models or stores. Got {type(models).__name__} instead.")
        pairs = [(name, model) for name, model in models.items()] if isinstance(models, Mapping) else [(None, model) for model in models]
        found: list[str | tuple[str, str]] = []
        for name, model in pairs:
            if isinstance(model, TopicModel):
                model._fitted()
            path = str(model.store if isinstance(model, TopicModel) else model)
            found.append(path if name is None else (name, path))
        folder = None if store is not None else tempfile.TemporaryDirectory(prefix="topicscale-")
        merged = folder.name if folder is not None else str(store)
        merge(found, merged, similarity=similarity, match=match, documents=documents)
        result = cls.load(merged)
        if folder is not None:
            weakref.finalize(result, folder.cleanup)
        return result

    @classmethod
    def merge_models(
        cls,
        models: Sequence[TopicModel | str | Path] | Mapping[str, TopicModel | str | Path],
        min_similarity: float | Literal["auto"] = "auto",
        *,
        store: str | Path | None = None,
    ) -> TopicModel:
        """Return a model of the topics of several: :meth:`merge` under BERTopic's name.

        BERTopic keeps the first model's topics and appends those of the others that are less similar than
        ``min_similarity`` to all of them. Here all topics are merged at once, whichever comes first.
        """
        return cls.merge(models, similarity=min_similarity, store=store)

    def get_topics_per_site(self) -> pd.DataFrame:
        """Return a merged model's topics at every site: which site has which, how large, and how similar.

        Returns
        -------
        DataFrame
            Site, Topic (-1: the site's outliers), Name, Count, Similarity (cosine of the site's topic to the merged one) and
            Shared (whether other sites have it too), by site and topic.

        Raises
        ------
        StoreError
            The store holds no merged topics.
        """
        found = sites.leaves(self._fitted())
        labels = self.topic_labels_
        holders: dict[int, set[str]] = {}
        for leaf in found:
            holders.setdefault(leaf.topic_id, set()).add(leaf.site_id)
        rows = sorted(found, key=lambda leaf: (leaf.site, leaf.site_id, leaf.topic_id, -leaf.size, leaf.topic_key))
        return pd.DataFrame(
            {
                "Site": [leaf.site for leaf in rows],
                "Topic": [leaf.topic_id for leaf in rows],
                "Name": [labels[leaf.topic_id] for leaf in rows],
                "Count": [leaf.size for leaf in rows],
                "Similarity": [leaf.similarity for leaf in rows],
                "Shared": [leaf.topic_id != OUTLIER and len(holders[leaf.topic_id]) > 1 for leaf in rows],
            }
        )

    # -- new documents ---------------------------------------------------------------------------------------------

    def transform(self, documents: str | Sequence[str], embeddings: Any = None) -> tuple[list[int], Float32]:
        """Return the topic and probability of new documents: exactly what the job would assign to the same vectors.

        Parameters
        ----------
        documents : str or list of str
        embeddings : array of shape (n, d), optional
            The documents' vectors in the model's own space.

        Returns
        -------
        topics : list of int
        probabilities : ndarray of float32, shape (n,)

        Notes
        -----
        On stored vectors the stored assignments come back. Texts that are embedded again get the stored topic in at least
        99 of 100 cases: a bfloat16 vector depends a little on the batch it is computed in, which moved a cosine by up to
        .002, and none of 1,500 AG News documents to another topic (``benchmarks/results/margin.md``).
        """
        texts = inputs.texts_of(documents)
        references, cutoffs, named = self._references
        if embeddings is None:
            vectors = self._embedder.encode(texts).vectors
        else:
            vectors = inputs.unit_rows(embeddings)
            if len(vectors) != len(texts):
                raise RequestError(
                    f"embeddings must have one row per document. Got {len(vectors)} rows for {len(texts)} documents instead."
                )
        if len(texts) == 0:
            return [], np.zeros(0, np.float32)
        if len(references) and vectors.shape[1] != references.shape[1]:
            raise RequestError(f"embeddings must have {references.shape[1]} columns. Got {vectors.shape[1]} instead.")
        topics, probabilities = assign(vectors, references, cutoffs, named=named)
        if embeddings is None:  # a text that shows nothing is none, as the job has it
            empty = np.array([re.search(VISIBLE, text) is None for text in texts])
            topics[empty], probabilities[empty] = OUTLIER, 0.0
        return topics.tolist(), probabilities

    def find_topics(self, search_term: str, top_n: int = 5) -> tuple[list[int], list[float]]:
        """Return the topics most similar to a phrase, and their cosines, best first; outliers are no topic."""
        references, _, _ = self._references
        if len(references) == 0:
            return [], []
        vector = self._embedder.encode([search_term]).vectors[0]
        similarity = references @ vector
        best = np.lexsort((np.arange(len(similarity)), -similarity))[:top_n]
        return best.tolist(), [float(similarity[i]) for i in best]

    @cached_property
    def _references(self) -> tuple[Float32, Float32, npt.NDArray[np.bool_]]:
        rows = self._topics[self._topics["topic_id"] >= 0]
        if rows.empty:
            return np.zeros((0, 0), np.float32), np.zeros(0, np.float32), np.zeros(0, bool)
        vectors = np.stack(rows["reference_vector"].to_list()).astype(np.float32)
        if vectors.shape[1] == 0:
            raise StoreError(
                f"The store {self.store!r} holds topics of more than one embedding model, matched by their words: they have no vectors to "
                "compare documents with. Load a site's own store for that."
            )
        return vectors, rows["cutoff"].to_numpy(np.float32), (rows["kind"] == "zeroshot").to_numpy(bool)

    @cached_property
    def _embedder(self) -> Embedder:
        from topicscale.bertopic.read import named_space
        from topicscale.embedding import Embedder
        from topicscale.models import embedding_space, told

        self._fitted()
        assert self._snapshot is not None
        if self._snapshot.configuration["input"]["embedding_column"] is not None:
            raise ModelError("This model was fitted on precomputed vectors. Give transform the documents' embeddings.")
        found, wanted = embedding_space(self._embedding), self._snapshot.summary["space"]
        # a BERTopic model may have come when its embedding model was not here, and known by name alone
        named = self._snapshot.configuration["embedding"]["model"]
        by_name = wanted == named_space(named) and told(named).rpartition("/")[2] == told(self._embedding.model).rpartition("/")[2]
        if wanted != found and not by_name:
            raise ModelError(
                f"The embedding model {self._embedding.model!r} is not the one this store was made with (space {wanted[:12]}, found "
                f"{found[:12]}): its weights or settings changed, or the store is of an earlier version. Restore it, or run the job again."
            )
        return Embedder(self._embedding, threads=len(os.sched_getaffinity(0)))


def _multilingual(config: Mapping[str, Any], *, whole: bool) -> dict[str, Any]:
    """Return a configuration with the model and the stop words of many languages, where it has none of its own.

    Parameters
    ----------
    whole : bool
        The configuration names every key: a value is its own where it is not the default.
    """
    found = dict(config)
    for section, key, value, default in (
        ("embedding", "model", MODELS["multilingual"], Config().embedding.model),
        ("terms", "stop_words", None, Config().terms.stop_words),
    ):
        values = found.get(section) or {}
        if not isinstance(values, Mapping):
            continue  # refused by its name, below
        if key not in values or (whole and values[key] == default):
            found[section] = {**values, key: value}
    return found


def _names(given: Any) -> list[str]:
    # a text is a sequence of letters, and a number has a text: neither is what was meant
    if isinstance(given, np.ndarray):
        given = given.tolist()
    if isinstance(given, (str, bytes)) or not isinstance(given, Sequence) or not all(isinstance(name, str) for name in given):
        raise RequestError(f"zeroshot_topic_list must be a list of texts. Got {given!r} instead.")
    return list(given)
