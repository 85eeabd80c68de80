"""``topicscale export --model``: an embedding model in other forms, with a table of what each costs and loses. Starts no engine."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

from jobs.judge import find, prepared
from topicscale.config import EmbeddingConfig
from topicscale.embedding import Embedder
from topicscale.errors import RequestError
from topicscale.judge.rank import chief
from topicscale.judge.task import parse, texts_of
from topicscale.models import check
from topicscale.portable import BATCHES, FORMATS, check_formats, encoder, measure, write
from topicscale.store import local_path

TEXTS = 1000
"""Texts of --reference that are measured with: the first, of each file its share."""
_WHO = ("The clerk", "A nurse", "My neighbour", "The new engineer", "Nobody", "An old friend", "The committee", "Our landlord")
_WHAT = (
    "asked why the card payment was declined twice in one week.",
    "plays the cello.",
    "wrote a long report on the harvest, the price of wheat and the roads that the rain had washed away in spring.",
    "cannot log in.",
    "found a second-hand bicycle near the station and rode it home through the park before dark.",
    "said that the orbit of the probe would be corrected on Tuesday.",
    "was told that the court would hear the appeal in autumn, and that no witness needed to travel for it.",
    "scored in the last minute of the match.",
)
BUILT_IN = tuple(f"{who} {what}" for what in _WHAT for who in _WHO)
"""What is measured with where no texts are named: 64 sentences of 4 to 25 words."""


def export(
    name: str,
    output: str,
    *,
    formats: Sequence[str] = tuple(FORMATS),
    reference: Sequence[str] = (),
    tasks: Sequence[str] = (),
    store: str | None = None,
    progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Write a model into ``output``, a folder for each format, and return what each costs and loses.

    Parameters
    ----------
    name : str
        The model: packaged name, folder or hub id.
    output : str
        A new or empty folder.
    formats : sequence of str
        Of fp32, bf16, onnx, onnx-int8.
    reference : sequence of str
        Files of texts, ``PATH[:COLUMN]``, to measure with; a few built-in sentences by default.
    tasks : sequence of str
        Tasks to measure the loss by (see :func:`topicscale.judge.task.parse`), against the model in float32.
    store : str, optional
        Where the model may have been published; ``topics`` is judged with its documents and settings.

    Raises
    ------
    RequestError, ModelError, InputError, MissingDependency
        Something is wrong with the model, the formats, the output, a file or a task; or a package is missing. Nothing is written.
    """
    check_formats(formats)
    model = find(name, store)
    check(EmbeddingConfig(model=str(model.path)))
    target = local_path(output)
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise RequestError(f"--output must be a new or empty folder. {str(target)!r} is not empty. Name another.")
    ready = prepared([parse(text) for text in tasks], store)
    texts = [text for path in reference for text in texts_of(path)[: max(1, TEXTS // len(reference))]] or list(BUILT_IN)
    distinct = len(set(texts))
    if distinct < max(BATCHES):
        raise RequestError(f"--reference must hold at least {max(BATCHES)} distinct texts. Got {distinct} instead.")
    say = progress or (lambda _: None)
    say(f"writing {', '.join(formats)}")
    if target.exists():
        target.rmdir()
    folders = write(model.path, target, formats)
    threads = len(os.sched_getaffinity(0))
    plain = Embedder(EmbeddingConfig(model=str(model.path), backend="torch", dtype="float32"), threads=threads)
    encoders = {form: encoder(form, folder, model.path, threads=threads) for form, folder in folders.items()}
    say(f"measuring with {distinct:,} texts")
    rows = [dataclasses.asdict(row) for row in measure(folders, encoders, lambda batch: plain.encode(batch).vectors, texts)]
    for task in ready:
        say(f"judging by {task.name}")
        measure_name = chief(task.name)
        before = task.run(lambda batch: plain.encode(batch).vectors)[measure_name]
        for row in rows:
            row.setdefault("tasks", {})[task.chief] = {
                "value": (after := task.run(encoders[row["format"]])[measure_name]),
                "loss": before - after,
            }
    return {
        "model": name,
        "revision": model.revision,
        "output": str(target),
        "texts": distinct,
        "built_in": not reference,
        "threads": threads,
        "formats": rows,
    }


def describe(found: dict[str, Any]) -> str:
    """Return the table as text for a terminal."""
    header = ["format", "MB"]
    header += [f"{p} ms, batch {batch}" for batch in BATCHES for p in ("p50", "p99")]
    header += ["documents/s", "cosine mean", "cosine min"]
    judged = list(found["formats"][0].get("tasks", {}))
    header += [cell for task in judged for cell in (task, "loss")]
    lines = [header]
    for row in found["formats"]:
        cells = [row["format"], f"{row['bytes'] / 1e6:,.1f}"]
        cells += [f"{row[p][batch]:.2f}" for batch in BATCHES for p in ("p50", "p99")]
        cells += [f"{row['documents_per_second']:,.0f}", f"{row['cosine_mean']:.5f}", f"{row['cosine_min']:.5f}"]
        cells += [text for task in judged for text in (f"{row['tasks'][task]['value']:.4f}", f"{row['tasks'][task]['loss']:+.4f}")]
        lines.append(cells)
    widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
    shown = ["  ".join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:], strict=True))]) for line in lines]
    what = f"{found['texts']} built-in sentences (name your own with --reference)" if found["built_in"] else f"{found['texts']:,} texts"
    shown.append(
        f"{found['model']} -> {found['output']}, measured on {what}, {found['threads']} threads; cosines and losses against float32."
    )
    return "\n".join(shown)
