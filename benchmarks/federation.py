"""Topics of merged sites and of many partitions: what merging costs, against one fit and BERTopic.merge_models.

    python -m benchmarks.federation --data ../shared/data

Rows, each over ``--seeds`` random partitionings or site assignments:

partitions    NMI over all documents, by the steps that the job takes, as partitions multiply; the clustering's seed differs too, because
              one partition can be made in one way only, and the whole fits of several partitions' pilot hang on it as well.
rare          Banking77 with 15 classes thinned to 30 documents each. A rare class's recall is the share of its documents in
              the topic that holds most of it, 0 unless most of that topic is of the class; the mean over the classes.
sites         4 sites fitted apart; their topics merged from sizes and vector sums alone. ``lineage`` labels a document by
              what its site's topic became, ``transform`` by the nearest merged centroid, as each site can do for itself.
              Random sites, whole classes to sites (random classes in turn), and sizes that fall geometrically to 100:1.
merge_models  BERTopic on the random sites' documents, over all 24 orders; spread is greatest minus least. Ours has no order.

Same vectors everywhere (all-MiniLM-L6-v2). Writes ``benchmarks/results/federation.md``.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import tempfile
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.quality import CORPORA, Vectors, bertopic, divide, embed, ours
from topicscale import calibrate, refine
from topicscale.config import Config
from topicscale.merge import Leaves, merge

Rows = npt.NDArray[np.int64]
RARE_CLASSES, RARE_DOCUMENTS = 15, 30
NAMES = ("random", "one class", "1:100")


def nmi(true: npt.NDArray[Any], labels: npt.NDArray[Any]) -> float:
    from sklearn.metrics import normalized_mutual_info_score

    return float(normalized_mutual_info_score(true, labels))


def thin(true: npt.NDArray[Any], seed: int) -> tuple[Rows, list[Any]]:
    """Return the rows that stay when some classes are thinned, and those classes."""
    random = np.random.default_rng(seed)
    rare = list(random.permutation(np.unique(true))[:RARE_CLASSES])
    kept = [np.flatnonzero(~np.isin(true, rare))] + [random.permutation(np.flatnonzero(true == name))[:RARE_DOCUMENTS] for name in rare]
    return np.sort(np.concatenate(kept)), rare


def recall(true: npt.NDArray[Any], labels: npt.NDArray[Any], rare: list[Any]) -> float:
    """Return the mean recall of rare classes."""
    found = []
    for name in rare:
        topics, counts = np.unique(labels[(true == name) & (labels >= 0)], return_counts=True)
        best = topics[np.argmax(counts)] if len(topics) else -1
        share = counts.max(initial=0) / (true == name).sum()
        found.append(float(share) if len(topics) and (true[labels == best] == name).mean() > 0.5 else 0.0)
    return statistics.fmean(found)


def sites(true: npt.NDArray[Any], seed: int) -> Iterator[tuple[str, list[Rows]]]:
    """Yield ways to deal documents to 4 sites."""
    random = np.random.default_rng(seed)
    yield NAMES[0], divide(len(true), 4, seed)
    owner = dict(zip(random.permutation(np.unique(true)), itertools.cycle(range(4)), strict=False))
    of = np.array([owner[name] for name in true])
    yield NAMES[1], [np.flatnonzero(of == site) for site in range(4)]
    weight = 100.0 ** -(np.arange(4) / 3)
    ends = np.round(np.cumsum(weight / weight.sum()) * len(true)).astype(int)[:-1]
    yield NAMES[2], [np.sort(rows) for rows in np.split(random.permutation(len(true)), ends)]


def federated(vectors: Vectors, parts: list[Rows], config: Config) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int32]]:
    """Return every document's merged topic, by lineage and by transform."""
    sizes, sums, row = [], [], np.full(len(vectors), -1)
    pilots = []
    total = 0
    for rows in parts:
        mine = vectors[rows]
        labels = ours(mine, [np.arange(len(mine))], config)
        # outliers' leaf takes no part in merging
        found = refine.collect(mine, labels, int(labels.max(initial=-1)) + 1)
        row[rows] = np.where(labels >= 0, labels + total, -1)
        total += len(found.counts)
        sizes.append(found.counts)
        sums.append(found.vector_sums)
        pilots.append(calibrate.pilot(mine, config.cluster, min_size=config.topics.min_size))
    leaves, leaf = Leaves.of(np.concatenate(sizes), np.concatenate(sums))
    height = calibrate.combine(pilots, documents=[len(rows) for rows in parts])
    merged = merge(leaves, height=height)
    lineage = np.where(row >= 0, merged.labels[leaf][row], -1)
    return lineage, refine.nearest(vectors, merged.centroids)[0]


def merge_models(texts: list[str], vectors: Vectors, parts: list[Rows], true: npt.NDArray[Any]) -> list[float]:
    """Return the NMI of every order of the parts' models."""
    from bertopic import BERTopic

    models = [bertopic([texts[i] for i in rows], vectors[rows]) for rows in parts]
    result = []
    for order in itertools.permutations(range(len(parts))):
        labels = np.empty(len(texts), np.int64)
        labels[np.concatenate([parts[i] for i in order])] = np.asarray(BERTopic.merge_models([models[i] for i in order]).topics_)
        result.append(nmi(true, labels))
    return result


def show(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{spread}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder with the corpora")
    parser.add_argument("--corpora", nargs="+", default=["agnews", "banking77"], choices=["agnews", "banking77"])
    parser.add_argument("--rows", nargs="+", default=["partitions", "rare", "sites", "merge_models"])
    parser.add_argument("--partitions", nargs="+", type=int, default=[1, 4, 16, 64])
    parser.add_argument("--seeds", type=int, default=5, help="random partitionings of each kind")
    parser.add_argument("--cache", type=Path, default=Path(tempfile.gettempdir()) / "topicscale-quality", help="where vectors are kept")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "federation.md")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    options.cache.mkdir(parents=True, exist_ok=True)
    config = Config()
    lines = ["| corpus | what | measure | value | by seed |", "|---|---|---|---|---|"]
    print("\n".join(lines), flush=True)

    def report(corpus: str, what: str, measure: str, values: list[float]) -> None:
        lines.append(f"| {corpus} | {what} | {measure} | {show(values)} | {', '.join(f'{value:.3f}' for value in values)} |")
        print(lines[-1], flush=True)

    for corpus in options.corpora:
        texts, labels = CORPORA[corpus](options.data)
        vectors, true = embed(texts, options.cache), np.array(labels)
        if "partitions" in options.rows:
            for p in options.partitions:
                found = []
                for s in range(options.seeds):
                    seeded = replace(config, cluster=replace(config.cluster, seed=s))
                    found.append(nmi(true, ours(vectors, divide(len(true), p, s), seeded)))
                report(corpus, f"partitions {p}", "NMI", found)
        if "rare" in options.rows and corpus == "banking77":
            for p in (1, 16):
                found = []
                for s in range(options.seeds):
                    rows, rare = thin(true, s)
                    found.append(recall(true[rows], ours(vectors[rows], divide(len(rows), p, s), config), rare))
                report(corpus, f"rare classes, partitions {p}", "recall", found)
        if "sites" in options.rows:
            by_way: dict[str, list[tuple[float, float]]] = {name: [] for name in NAMES}
            for s in range(options.seeds):
                for name, parts in sites(true, s):
                    lineage, transform = federated(vectors, parts, config)
                    by_way[name].append((nmi(true, lineage), nmi(true, transform)))
            for name, pairs in by_way.items():
                report(corpus, f"sites, {name}", "NMI lineage", [a for a, _ in pairs])
                report(corpus, f"sites, {name}", "NMI transform", [b for _, b in pairs])
        if "merge_models" in options.rows:
            orders = [merge_models(texts, vectors, divide(len(true), 4, s), true) for s in range(options.seeds)]
            report(corpus, "BERTopic.merge_models, 24 orders", "NMI, mean over orders", [statistics.fmean(values) for values in orders])
            report(corpus, "BERTopic.merge_models, 24 orders", "spread over orders", [max(values) - min(values) for values in orders])

    command = " ".join(["python -m benchmarks.federation", *sys.argv[1:]])
    options.output.parent.mkdir(parents=True, exist_ok=True)
    options.output.write_text("\n".join(["# Federation", "", f"Made by `{command}`.", "", *lines, ""]), encoding="utf-8")


if __name__ == "__main__":
    main()
