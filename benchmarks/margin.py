"""How many assignments change when documents are embedded again in batches of other documents?

`python -m benchmarks.margin --store STORE` after a run on some corpus; its vectors and assignments are the reference.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator

import numpy as np

from benchmarks.common import table, write
from topicscale import TopicModel
from topicscale.embedding import Embedder
from topicscale.refine import assign
from topicscale.store import Store


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", required=True)
    parser.add_argument("--documents", type=int, help="embed this many again in two halves (default: all)")
    parser.add_argument("--sample", type=int, default=2000, help="and this many in small groups")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    reader = Store(options.store)
    reader.pin()
    model = TopicModel.load(options.store)
    # one row a document in each, so that the same order is the same documents
    texts = reader.read("documents", ["doc_id", "text"]).sort_by("doc_id")["text"].to_pylist()
    vectors = reader.read("embeddings", ["doc_id", "vector"]).sort_by("doc_id")["vector"].combine_chunks()
    stored = vectors.flatten().to_numpy().reshape(len(texts), -1).astype(np.float32)
    topics = reader.read("assignments", ["doc_id", "topic_id"]).sort_by("doc_id")["topic_id"].to_numpy()
    real = reader.read("topics", ["topic_id", "reference_vector", "cutoff"]).sort_by("topic_id").to_pandas()
    real = real[real["topic_id"] >= 0]
    references, cutoffs = np.stack(real["reference_vector"].to_list()).astype(np.float32), real["cutoff"].to_numpy(np.float32)
    embedder = Embedder(model.config.embedding, threads=options.threads)

    def measured(name: str, chosen: np.ndarray, groups: Iterator[np.ndarray]) -> list[object]:
        again = np.zeros((len(texts), stored.shape[1]), np.float32)
        for group in groups:
            again[group] = embedder.encode([texts[i] for i in group]).vectors
        found, _ = assign(again[chosen], references, cutoffs)
        old = topics[chosen]
        other = found != old
        outlying = other & ((found < 0) | (old < 0))
        cosine = np.einsum("ij,ij->i", again[chosen], stored[chosen])
        moved = np.abs((again[chosen] - stored[chosen]) @ references.T).max(axis=1)
        # a tie: the stored vector's two nearest topics, or its topic and the cut-off, are no further apart than twice the greatest move
        similarity = stored[chosen] @ references.T
        two = np.sort(similarity, axis=1)[:, -2:]
        gap = np.minimum(two[:, 1] - two[:, 0], np.abs(two[:, 1] - cutoffs[similarity.argmax(axis=1)]))
        return [
            name,
            len(chosen),
            f"{cosine.min():.5f}",
            f"{moved.max():.4f}",
            int(other.sum()),
            int(outlying.sum()),
            f"{1 - other.mean():.2%}",
            f"{gap[other].max() if other.any() else 0:.4f}",
        ]

    random = np.random.default_rng(0)
    some = random.permutation(len(texts))[: options.sample]
    chosen = random.permutation(len(texts))[: options.documents]
    lines = [measured("two random halves", chosen, iter(np.array_split(chosen, 2)))]
    for size in (100, 10, 1):
        lines.append(measured(f"groups of {size}", some, iter(np.array_split(some, -(-len(some) // size)))))
    columns_ = ["embedded again in", "documents", "least cosine to stored", "greatest move of a cosine to a topic"]
    columns_ += ["other topic", "of these to or from outliers", "same", "widest gap that was crossed"]
    write("margin", f"Embedding again, in {embedder.dtype}: {len(references)} topics", [table(columns_, lines)])


if __name__ == "__main__":
    main()
