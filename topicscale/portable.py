"""An embedding model in the forms that others run it in: fp32, bf16, ONNX, ONNX with 8-bit weights.

Each form is a folder of its own in sentence-transformers' layout. ``onnx/model.onnx`` and ``onnx/model_qint8.onnx`` are where its
``backend="onnx"`` looks; they hold the transformer, and pooling and what follows it are the folder's other modules.
"""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from topicscale import onnx
from topicscale.config import EmbeddingConfig
from topicscale.embedding import Embedder
from topicscale.errors import ModelError, RequestError
from topicscale.models import modules
from topicscale.represent.view import Encode, Float32

FORMATS: dict[str, tuple[str, str]] = {
    "fp32": ("float32", ""),
    "bf16": ("bfloat16", ""),
    "onnx": ("float32", "onnx/model.onnx"),
    "onnx-int8": ("int8", "onnx/model_qint8.onnx"),
}
"""Name -> numbers that it is computed in, and the exported transformer inside its folder (empty: safetensors)."""
BATCHES = (1, 32)
"""Texts in a call of which the latency is measured."""
ROUNDS, CALLS, SECONDS, LEAST = 5, 40, 4.0, 5
"""Latency is of ``ROUNDS`` rounds in which the formats take turns: ``CALLS`` calls each, or those that ``SECONDS`` allow, but ``LEAST``."""


@dataclass(frozen=True)
class Measured:
    """What one format costs, and what it loses."""

    format: str
    bytes: int
    """Of its folder."""
    p50: dict[int, float]
    """Batch -> milliseconds of a call, tokenising included."""
    p99: dict[int, float]
    documents_per_second: float
    cosine_mean: float
    """Of its vectors to those of the model itself in float32."""
    cosine_min: float


def check_formats(formats: Sequence[str]) -> None:
    """Raise RequestError for an unknown or repeated format, MissingDependency where ONNX's packages are missing."""
    unknown = next((name for name in formats if name not in FORMATS), None)
    if unknown is not None or not formats:
        raise RequestError(f"--formats must be of {', '.join(FORMATS)}. Got {unknown or 'none'!r} instead.")
    if len(set(formats)) < len(formats):
        raise RequestError(f"--formats must name each format once. Got {','.join(formats)} instead.")
    if any(FORMATS[name][1] for name in formats):
        onnx.check("--formats onnx")


def write(model: Path, output: Path, formats: Sequence[str]) -> dict[str, Path]:
    """Write a model's folder in each format and return the folders; ``output`` appears with all of them or not at all.

    Parameters
    ----------
    model : Path
        The folder of an embedding model with safetensors.
    output : Path
        A folder that does not exist.
    formats : sequence of str
        Of ``FORMATS``.

    Raises
    ------
    ModelError
        The model cannot be loaded, or ONNX is asked for and it has no transformer or cannot be exported.
    """
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Transformer
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        loaded = SentenceTransformer(
            str(model),
            device="cpu",
            trust_remote_code=False,
            local_files_only=True,
            model_kwargs={"torch_dtype": torch.float32, "use_safetensors": True},
        ).eval()
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(f"The model in {model.name!r} cannot be loaded ({type(error).__name__}): {error}") from error
    if any(FORMATS[name][1] for name in formats) and not isinstance(loaded[0], Transformer):
        raise ModelError(
            f"ONNX must have a transformer to export. The first module of {model.name!r} is {type(loaded[0]).__name__} instead."
        )
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=f".{output.name}.") as scratch:
        made, plain = Path(scratch) / "made", Path(scratch) / "plain"
        made.mkdir()
        loaded.save_pretrained(str(plain), create_model_card=False)
        for name in formats:
            folder = made / name
            if name == "bf16":
                continue
            without = _transformer_weights(plain) if FORMATS[name][1] else set()
            shutil.copytree(plain, folder, ignore=_but(without))
            if FORMATS[name][1]:
                exported, to = Path(scratch) / "onnx" / "model.onnx", folder / FORMATS[name][1]
                _write_onnx(loaded[0].auto_model, exported, to, quantised=name == "onnx-int8")
        if "bf16" in formats:  # last, since it changes what is loaded
            loaded.to(torch.bfloat16).save_pretrained(str(made / "bf16"), create_model_card=False)
        made.rename(output)
    return {name: output / name for name in formats}


def _transformer_weights(folder: Path) -> set[Path]:
    parts = modules(folder)
    first = folder / str(parts[0].get("path", "")) if parts else folder
    return {*first.glob("*.safetensors"), *first.glob("*.safetensors.index.json")}


def _but(left_out: set[Path]) -> Callable[[str, list[str]], set[str]]:
    return lambda folder, names: {name for name in names if Path(folder) / name in left_out}


def _write_onnx(transformer: Any, plain: Path, to: Path, *, quantised: bool) -> None:
    if not plain.exists():
        plain.parent.mkdir()
        # the name by which optimum, and so sentence-transformers, knows it
        onnx.export(transformer, plain, output="last_hidden_state")
    to.parent.mkdir()
    if quantised:
        onnx.quantise(plain, to)
    else:
        shutil.copytree(plain.parent, to.parent, dirs_exist_ok=True)


def encoder(name: str, folder: Path, model: Path, *, threads: int) -> Encode:
    """Return a function from texts to the unit vectors of a folder that :func:`write` made.

    Parameters
    ----------
    model : Path
        What it was made from: ONNX formats take tokeniser, pooling and what follows it from there.
    """
    dtype: Any
    dtype, file = FORMATS[name]
    config = EmbeddingConfig(model=str(model if file else folder), backend="onnx" if file else "torch", dtype=dtype)
    embedder = Embedder(config, threads=threads, onnx=folder / file if file else None)
    return lambda texts: embedder.encode(texts).vectors


def measure(folders: dict[str, Path], encoders: dict[str, Encode], whole: Encode, texts: Sequence[str]) -> list[Measured]:
    """Return what each format costs and loses, on ``texts``.

    Parameters
    ----------
    folders, encoders : mapping
        By format.
    whole : callable
        The model itself, in float32.
    texts : sequence of str
        At least as many distinct ones as the largest batch.

    Raises
    ------
    RequestError
        There are too few distinct texts.
    """
    texts = list(dict.fromkeys(texts))
    if len(texts) < max(BATCHES):
        raise RequestError(f"--reference must hold at least {max(BATCHES)} distinct texts. Got {len(texts)} instead.")
    expected = whole(texts)
    spent: dict[str, dict[int, list[float]]] = {name: {batch: [] for batch in BATCHES} for name in encoders}
    found: dict[str, tuple[float, npt.NDArray[np.float64]]] = {}
    for name, encode in encoders.items():
        encode(texts[: max(BATCHES)])  # what is made on the first call is no latency
        began = time.perf_counter()
        vectors = encode(texts)
        found[name] = (len(texts) / (time.perf_counter() - began), _cosines(vectors, expected))
    for number in range(ROUNDS):
        for name, encode in encoders.items():
            for batch in BATCHES:
                spent[name][batch] += _calls(encode, texts, batch, number)
    result = []
    for name, (rate, cosines) in found.items():
        p50, p99 = ({batch: float(np.percentile(times, q)) * 1000 for batch, times in spent[name].items()} for q in (50, 99))
        size = sum(file.stat().st_size for file in folders[name].rglob("*") if file.is_file())
        result.append(Measured(name, size, p50, p99, rate, float(cosines.mean()), float(cosines.min())))
    return result


def _calls(encode: Encode, texts: Sequence[str], batch: int, number: int) -> list[float]:
    """Return the seconds of calls with ``batch`` distinct texts each, others from call to call, the same in each format."""
    times: list[float] = []
    ends = time.perf_counter() + SECONDS
    while len(times) < CALLS and (len(times) < LEAST or time.perf_counter() < ends):
        start = (number * CALLS + len(times)) * batch
        chosen = [texts[(start + i) % len(texts)] for i in range(batch)]
        began = time.perf_counter()
        encode(chosen)
        times.append(time.perf_counter() - began)
    return times


def _cosines(vectors: Float32, expected: Float32) -> npt.NDArray[np.float64]:
    result: npt.NDArray[np.float64] = np.einsum("ij,ij->i", vectors.astype(np.float64), expected.astype(np.float64))
    return result
