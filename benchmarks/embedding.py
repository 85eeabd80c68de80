"""Embedding speed against ``SentenceTransformer.encode``, and what share of the processor's matrix products it reaches.

    python -m benchmarks.embedding --data agnews_test.csv --documents 1000 --rounds 3

One process, all processors, alternating rounds. The data is a headerless csv whose first column is a label and whose
other columns are joined into the text. Writes the table to benchmarks/results/embedding.md.
"""

from __future__ import annotations

import argparse
import csv
import os
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.common import machine
from topicscale.config import EmbeddingConfig
from topicscale.embedding import Embedder
from topicscale.models import resolve

RESULT = Path(__file__).parent / "results" / "embedding.md"
VARIANTS = {
    "float32": EmbeddingConfig(dtype="float32"),
    "bfloat16": EmbeddingConfig(dtype="bfloat16"),
    "onnx int8": EmbeddingConfig(backend="onnx", dtype="int8"),
}


def seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def matmul_peak(rows: int, shapes: list[tuple[int, int]], repeats: int = 20) -> float:
    """Return bfloat16 FLOP/s of bare products of the model's shapes, the best of ``repeats``."""
    import torch

    operations, best = 0, 0.0
    for inner, outer in shapes:
        x, w = torch.randn(rows, inner).bfloat16(), torch.randn(outer, inner).bfloat16()
        with torch.inference_mode():
            best += min(seconds(lambda x=x, w=w: torch.nn.functional.linear(x, w)) for _ in range(repeats))  # type: ignore[misc]
        operations += 2 * rows * inner * outer
    return operations / best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data/agnews_test.csv"))
    parser.add_argument("--documents", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    with options.data.open(encoding="utf-8", newline="") as stream:
        texts = [" ".join(row[1:]) for _, row in zip(range(options.documents), csv.reader(stream), strict=False)]

    from sentence_transformers import SentenceTransformer

    peer = SentenceTransformer(str(resolve("all-MiniLM-L6-v2").path), device="cpu")
    threads = len(os.sched_getaffinity(0))
    ours = {name: Embedder(config, threads=threads) for name, config in VARIANTS.items()}
    reference = peer.encode(texts, normalize_embeddings=True, show_progress_bar=False)
    cosines, tokens = {}, 0
    for name, embedder in ours.items():
        encoded = embedder.encode(texts)  # also warms up
        cosines[name], tokens = (encoded.vectors * reference).sum(1), encoded.tokens
    rates: dict[str, list[float]] = {name: [] for name in ("SentenceTransformer.encode", *ours)}
    peaks, loads = [], []
    for _ in range(options.rounds):
        loads.append(os.getloadavg()[0])
        rates["SentenceTransformer.encode"].append(len(texts) / seconds(lambda: peer.encode(texts, show_progress_bar=False)))
        for name, embedder in ours.items():
            rates[name].append(len(texts) / seconds(lambda embedder=embedder: embedder.encode(texts)))  # type: ignore[misc]
        peaks.append(matmul_peak(2048, [(384, 1152), (384, 384), (384, 1536), (1536, 384)]))

    # products of the layers alone: 6 x (4 d^2 + 8 d^2) weights, 2 operations each, a token
    work = tokens / len(texts) * 6 * 12 * 384**2 * 2
    lines = ["| path | documents/s, median | ratio min / median / max | mean cosine | least cosine |", "|---|---|---|---|---|"]
    for name, measured in rates.items():
        ratios = [rate / peer_rate for rate, peer_rate in zip(measured, rates["SentenceTransformer.encode"], strict=True)]
        spread = f"{min(ratios):.2f} / {statistics.median(ratios):.2f} / {max(ratios):.2f}"
        agreement = f"{np.mean(cosines[name]):.5f} | {np.min(cosines[name]):.5f}" if name in cosines else "1 | 1"
        lines.append(f"| {name} | {statistics.median(measured):.0f} | {spread} | {agreement} |")
    shares = [rate * work / peak for rate, peak in zip(rates["bfloat16"], peaks, strict=True)]
    command = shlex.join(["python", "-m", "benchmarks.embedding", "--documents", str(len(texts)), "--rounds", str(options.rounds)])
    text = "\n".join(
        [
            "# Embedding",
            "",
            f"`{command}` on {options.data.name}: {len(texts)} documents, {tokens / len(texts):.0f} tokens each, {options.rounds} rounds.",
            f"{machine()}. Load average as the rounds began: {', '.join(f'{load:.1f}' for load in loads)}.",
            "",
            *lines,
            "",
            f"Bare bfloat16 products of the model's shapes: {statistics.median(peaks) / 1e12:.2f} TFLOP/s (median of rounds). "
            f"bfloat16 reaches {min(shares):.0%} / {statistics.median(shares):.0%} / {max(shares):.0%} of it (min / median / max).",
            "",
        ]
    )
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(text, encoding="utf-8")
    sys.stdout.write(text)


if __name__ == "__main__":
    main()
