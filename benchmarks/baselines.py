"""The baselines first: Spark MLlib's LDA and TF-IDF + k-means beside BERTopic and topicscale, on labelled corpora.

    python -m benchmarks.baselines --data ../shared/data

The baselines cannot find a number of topics: each runs with the true number of labels (a help that nothing else gets)
and with the number that topicscale found. NMI with a few labels falls as topics get more, whatever they are, so topicscale
is also asked for as many topics as LDA left (its other topics have no documents). NMI is over all documents, outliers a
cluster of their own. C_v, NPMI and diversity judge ten words a topic on the corpus itself. BERTopic's words are shown as it
gives them and, since topicscale leaves English stop words out by default, without these as well.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import PEER, corpus, read, run, table, write
from benchmarks.whole_job import ours
from topicscale.evaluate import clustering, tokeniser, topic_quality

COLUMNS = ("corpus", "method", "topics", "outliers", "NMI", "NPMI", "C_v", "diversity")


class Corpus:
    """Texts, labels and tokens of one corpus, and the measures of a model over them."""

    def __init__(self, source: Path) -> None:
        self.texts, self.labels = read(source)
        tokens = tokeniser()
        self._tokens = [tokens(text) for text in self.texts]

    def measure(self, topics: Sequence[int], words: Sequence[Sequence[str]]) -> list[float]:
        """Return topics, outlier share, NMI, NPMI, C_v and diversity."""
        found = clustering(self.labels, np.asarray(topics))
        quality = topic_quality(words, self._tokens)
        return [found["topics"], found["outlier_share"], found["nmi"], quality["npmi"], quality["c_v"], quality["diversity"]]


def lda(texts: Sequence[str], number: int, seed: int) -> tuple[list[int], list[list[str]]]:
    """Return topics and words of Spark MLlib's LDA (online variational Bayes)."""
    from pyspark.ml.clustering import LDA
    from pyspark.ml.feature import CountVectorizer, RegexTokenizer, StopWordsRemover
    from pyspark.ml.functions import vector_to_array
    from pyspark.sql import functions as F

    from spark import session
    from topicscale.config import Config

    spark = session.start(Config().spark, app_name="lda")
    frame = spark.createDataFrame(list(enumerate(texts)), "id long, text string").repartition(2)
    frame = RegexTokenizer(inputCol="text", outputCol="all", pattern=r"\W+", minTokenLength=2).transform(frame)
    frame = StopWordsRemover(inputCol="all", outputCol="words").transform(frame)
    counter = CountVectorizer(inputCol="words", outputCol="features", minDF=2).fit(frame)
    frame = counter.transform(frame).cache()
    model = LDA(k=number, maxIter=50, seed=seed, optimizer="online").fit(frame)
    shares = vector_to_array("topicDistribution")
    rows = model.transform(frame).select("id", (F.array_position(shares, F.array_max(shares)) - 1).alias("topic")).collect()
    by_id = {row["id"]: int(row["topic"]) for row in rows}
    described = model.describeTopics(10).orderBy("topic").collect()
    frame.unpersist()
    return [by_id[i] for i in range(len(texts))], [[counter.vocabulary[i] for i in row["termIndices"]] for row in described]


def kmeans(texts: Sequence[str], number: int, seed: int) -> tuple[list[int], list[list[str]]]:
    """Return topics and words (heaviest of each centre) of TF-IDF and mini-batch k-means."""
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(stop_words="english", min_df=2)
    matrix = vectorizer.fit_transform(texts)
    model = MiniBatchKMeans(number, random_state=seed, n_init=3, batch_size=1024).fit(matrix)
    terms = vectorizer.get_feature_names_out()
    return model.labels_.tolist(), [[str(terms[i]) for i in np.argsort(-centre)[:10]] for centre in model.cluster_centers_]


def topicscale(source: Path, partitions: int, *more: str) -> tuple[list[int], list[list[str]]]:
    """Return topics in the file's order, and words, of a whole run."""
    from topicscale.store import Store

    with tempfile.TemporaryDirectory() as scratch:
        ours(source, Path(scratch), ["--partitions", str(partitions), *more])
        store = Store(f"{scratch}/store")
        topics = store.read("assignments", ["doc_id", "topic_id"]).sort_by("doc_id")["topic_id"].to_pylist()
        rows = store.read("topics", ["topic_id", "keywords"]).sort_by("topic_id").to_pylist()
    return topics, [row["keywords"] for row in rows if row["topic_id"] >= 0]


def bertopic(source: Path) -> dict[str, Any]:
    """Return what BERTopic's process saved."""
    with tempfile.TemporaryDirectory() as scratch:
        saved = Path(scratch) / "topics.json"
        run([str(PEER), "benchmarks/bertopic/fit.py", str(source), str(saved), "english"])
        found: dict[str, Any] = json.loads(saved.read_text())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--corpora", nargs="+", default=["agnews", "banking77"], choices=["agnews", "banking77"])
    parser.add_argument("--documents", type=int, help="the first so many of each corpus")
    parser.add_argument("--partitions", nargs="+", type=int, default=[1, 4], help="of topicscale's runs")
    parser.add_argument("--rounds", type=int, default=3, help="of the methods that depend on a seed; means are shown")
    arguments = parser.parse_args()
    if not PEER.exists():
        raise SystemExit("BERTopic has no environment yet. Make it with: make bench-setup")
    rows: list[list[str]] = []

    def show(name: str, method: str, runs: list[list[float]]) -> None:
        means = [statistics.fmean(values) for values in zip(*runs, strict=True)]
        rows.append([name, method, f"{means[0]:.0f}", f"{means[1]:.1%}", *(f"{value:.3f}" for value in means[2:])])
        print(" | ".join(rows[-1]), flush=True)

    for name in arguments.corpora:
        source = corpus(name, arguments.data, documents=arguments.documents)
        data = Corpus(source)
        mine = {p: data.measure(*topicscale(source, p)) for p in arguments.partitions}
        number = int(mine[arguments.partitions[0]][0])
        for label, k in (("labels", len(set(data.labels))), ("topicscale's", number)):
            seeds = range(arguments.rounds)
            by_seed = [data.measure(*lda(data.texts, k, seed)) for seed in seeds]
            left = round(statistics.fmean(values[0] for values in by_seed))
            show(name, f"Spark MLlib LDA, k = {k} ({label})", by_seed)
            show(name, f"TF-IDF + MiniBatchKMeans, k = {k} ({label})", [data.measure(*kmeans(data.texts, k, seed)) for seed in seeds])
        plain, filtered = [], []
        for _ in range(arguments.rounds):  # its UMAP has no fixed seed
            found = bertopic(source)
            for runs, words in ((plain, found["words"]), (filtered, found["words_without_stop_words"])):
                runs.append(data.measure(found["topics"], [words[topic] for topic in sorted(words, key=int) if int(topic) >= 0]))
        show(name, "BERTopic", plain)
        show(name, "BERTopic, stop words left out", filtered)
        first = arguments.partitions[0]
        show(
            name, f"topicscale, {first} partition, as many topics as LDA", [data.measure(*topicscale(source, first, "--topics", str(left)))]
        )
        for p, values in mine.items():
            show(name, f"topicscale, {p} partition{'s' * (p != 1)}", [values])
    write("baselines", "Baselines, BERTopic and topicscale on labelled corpora", [table(COLUMNS, rows)])


if __name__ == "__main__":
    main()
