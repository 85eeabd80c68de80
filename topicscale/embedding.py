"""Turning texts into vectors, as fast as the processor or GPU allows.

Where the speed comes from, largest first: bfloat16 on processors that multiply it natively (AMX, AVX512-BF16) and on
GPUs; batches of texts of nearly one length, so that little is padded; batches of about ``batch_tokens`` tokens, small
enough for the caches; identical texts embedded once; tokenising the next slab while the present one is computed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from topicscale.bert import load as load_bert
from topicscale.config import EmbeddingConfig
from topicscale.errors import ModelError
from topicscale.models import check, embedding_space, positions_of, resolve

SLAB = 8192
"""Texts tokenised at once: bounds memory, and is long enough to sort by length."""
SLAB_CHARS = 4_000_000
"""A slab of long texts ends here."""
GPU_BATCH = 32
"""A GPU's batches are this many times ``batch_tokens``."""
CHARS_PER_TOKEN = 100
"""No text is tokenised beyond this many characters a token: a document of megabytes costs no more than its head."""

Float32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Encoded:
    """Texts' vectors."""

    vectors: Float32
    """(n, d): L2-normalised rows, in the order of the texts."""
    truncated: int
    """Texts longer than the model reads."""
    tokens: int
    """Tokens computed, padding left out."""


class Embedder:
    """A loaded model.

    Parameters
    ----------
    config : EmbeddingConfig
    threads : int
        Processors to use.
    device : {"cpu", "cuda"}, default="cpu"
    onnx : Path, optional
        With the onnx backend: an exported transformer of this model, in place of the one that is made and kept in the cache.

    Attributes
    ----------
    space : str
        Id of the space its vectors live in.
    dimensions, max_tokens : int
    backend, dtype : str
        As resolved from ``auto``.

    Raises
    ------
    ModelError
        The model cannot be found or loaded, or the settings do not fit it.
    MissingDependency
        The backend's packages are not installed.
    """

    def __init__(self, config: EmbeddingConfig, *, threads: int, device: str = "cpu", onnx: Path | None = None) -> None:
        check(config)
        import torch

        torch.set_num_threads(threads)
        model = resolve(config.model)
        self.space = embedding_space(config)
        self.backend = "torch" if config.backend == "auto" else config.backend
        self._config, self._device = config, "cpu" if self.backend == "onnx" else device  # its session is the processors'
        self.dtype = config.dtype if config.dtype != "auto" else "float32" if self.backend == "onnx" else best_dtype(device)
        self._prompt = config.prompt
        self._features: dict[str, Any] = {}
        self._pad, self._left = 0, False
        self._model: Any
        self._bert = load_bert(model.path, dtype=getattr(torch, self.dtype), device=device) if self.backend == "torch" else None
        if self._bert is not None:
            self._forward_bert, self._tokenizer, limit = self._bert
            self.dimensions = self._forward_bert.dimensions
        else:
            limit = self._load_any(model.path)
        # beyond what the model was made for, where it has positions for more
        self.max_tokens = min(config.max_tokens, positions_of(model.path) or limit) if config.max_tokens else limit
        if self._tokenizer is not None:
            self._tokenizer.no_padding()
            self._tokenizer.enable_truncation(self.max_tokens)
        else:
            try:
                self._model.max_seq_length = self.max_tokens
            except AttributeError as error:
                if config.max_tokens:
                    raise ModelError(f"embedding.max_tokens cannot be set of {config.model!r}, a static model. Leave it out.") from error
        if self.backend == "onnx":
            from topicscale.onnx import Session, exported

            if self._tokenizer is None:
                raise ModelError(f"embedding.backend=onnx needs a transformer with a fast tokenizer. {config.model!r} has none.")
            file = onnx or exported(self._model[0].auto_model, model.revision, int8=self.dtype == "int8")
            self._session = Session(file, threads=threads)

    def _load_any(self, path: Path) -> int:
        """Load any model through sentence-transformers; return its length limit."""
        import torch
        from sentence_transformers import SentenceTransformer
        from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
        from transformers.utils import logging

        logging.disable_progress_bar()
        try:
            model = SentenceTransformer(
                str(path),
                device=self._device,
                trust_remote_code=False,
                local_files_only=True,
                model_kwargs={"torch_dtype": torch.float32, "use_safetensors": True},
            )
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise ModelError(f"The model {self._config.model!r} cannot be loaded ({type(error).__name__}): {error}") from error
        self._model = model.eval()
        self._prompt = self._config.prompt or model.prompts.get(model.default_prompt_name or "") or ""
        self._tokenizer = None
        first = model[0]
        if isinstance(first, Transformer):
            # the transformer alone: pooling and what follows are cheap, and exact in float32
            first.to(torch.float32 if self.dtype == "int8" else getattr(torch, self.dtype))
            fast = getattr(first.tokenizer, "backend_tokenizer", None)
            if "text" in first.modalities and fast is not None and not any(fast.encode("a b").type_ids):
                self._tokenizer, self._left = fast, first.tokenizer.padding_side == "left"
                self._pad = int(first.tokenizer.pad_token_id or 0)
                if self._prompt and any(isinstance(part, Pooling) and not part.include_prompt for part in model):
                    self._features["prompt_length"] = first._get_prompt_length(self._prompt)
        self.dimensions = int(model.get_embedding_dimension() or model.encode("a").shape[-1])
        limit = getattr(model, "max_seq_length", None) or (512 if self._tokenizer is not None else math.inf)
        return int(min(limit, 10**6))  # a static model has none

    def encode(self, texts: Sequence[str], *, progress: Callable[[int], None] | None = None) -> Encoded:
        """Return the vectors of texts.

        Parameters
        ----------
        texts : sequence of str
        progress : callable, optional
            Called with the number of texts done, now and then.
        """
        if len(texts) == 0:
            return Encoded(np.zeros((0, self.dimensions), np.float32), 0, 0)
        first: dict[str, int] = {}
        inverse = np.fromiter((first.setdefault(text, len(first)) for text in texts), np.int64, len(texts))
        # slabs of similar length make batches of nearly one length; ties by text, so that the order texts come in is no matter
        unique = sorted(first, key=lambda text: (len(text), text))
        position = np.empty(len(unique), np.int64)
        position[[first[text] for text in unique]] = np.arange(len(unique))
        vectors = np.empty((len(unique), self.dimensions), np.float32)
        long = np.zeros(len(unique), bool)
        done = tokens = 0
        slabs = list(_slabs([min(len(text), self.max_tokens * CHARS_PER_TOKEN) for text in unique]))
        with ThreadPoolExecutor(1) as ahead:
            following = ahead.submit(self._tokenise, [unique[i] for i in slabs[0]])
            for number, slab in enumerate(slabs):
                ids, cut = following.result()
                if number + 1 < len(slabs):
                    following = ahead.submit(self._tokenise, [unique[i] for i in slabs[number + 1]])
                long[slab.start : slab.stop] = cut
                lengths = np.array([len(one) for one in ids], np.int64)
                tokens += int(lengths.sum()) if self._tokenizer is not None else 0
                for batch in self._batches(lengths):
                    members = [ids[i] for i in batch]
                    vectors[slab.start + batch] = self._forward(members) if self._tokenizer is not None else self._encode_plainly(members)
                    done += len(batch)
                    if progress is not None:
                        progress(done * len(texts) // len(unique))
        rows = position[inverse]
        return Encoded(vectors[rows], int(long[rows].sum()), tokens)

    def _tokenise(self, texts: list[str]) -> tuple[list[Any], npt.NDArray[np.bool_]]:
        most = self.max_tokens * CHARS_PER_TOKEN
        heads = [self._prompt + text[:most].strip() for text in texts]
        if self._tokenizer is None:
            return list(heads), np.zeros(len(texts), bool)
        encodings = self._tokenizer.encode_batch_fast(heads)
        cut = np.array([bool(one.overflowing) or len(text) > most for one, text in zip(encodings, texts, strict=True)])
        return [one.ids for one in encodings], cut

    def _batches(self, lengths: npt.NDArray[np.int64]) -> Iterator[npt.NDArray[np.int64]]:
        budget = self._config.batch_tokens * (GPU_BATCH if self._device != "cpu" else 1)
        order = np.argsort(-lengths, kind="stable")
        start = 0
        while start < len(order):
            size = max(1, budget // max(int(lengths[order[start]]), 1))
            yield order[start : start + size]
            start += size

    def _forward(self, batch: list[list[int]]) -> Float32:
        import torch

        width = max(max(len(ids) for ids in batch), 1)
        ids = np.full((len(batch), width), self._pad, np.int64)
        mask = np.zeros((len(batch), width), np.int64)
        for row, tokens in enumerate(batch):
            at = slice(width - len(tokens), width) if self._left else slice(0, len(tokens))
            ids[row, at] = tokens
            mask[row, at] = 1
        on_device = [torch.from_numpy(array).to(self._device) for array in (ids, mask)]
        with torch.inference_mode():
            if self._bert is not None:
                vectors = self._forward_bert(*on_device)
            else:
                features: dict[str, Any] = {"input_ids": on_device[0], "attention_mask": on_device[1], **self._features}
                if self.backend == "onnx":
                    features["token_embeddings"] = torch.from_numpy(self._session.run(ids, mask))
                else:
                    features = self._model[0](features)
                    for name in ("token_embeddings", "sentence_embedding"):
                        if name in features:
                            features[name] = features[name].float()
                for module in list(self._model)[1:]:
                    features = module(features)
                vectors = features["sentence_embedding"]
            result: Float32 = torch.nn.functional.normalize(vectors.float(), dim=1).cpu().numpy()
        return result

    def _encode_plainly(self, texts: list[str]) -> Float32:
        # the prompt is in the texts by now
        result: Float32 = self._model.encode(texts, prompt="", normalize_embeddings=True, show_progress_bar=False).astype(np.float32)
        return result


def _slabs(sizes: Sequence[int]) -> Iterator[range]:
    start = total = 0
    for i, size in enumerate(sizes):
        if i > start and (i - start == SLAB or total + size > SLAB_CHARS):
            yield range(start, i)
            start, total = i, 0
        total += size
    yield range(start, len(sizes))


def best_dtype(device: str) -> str:
    """Return bfloat16 where its products are faster than those of float32, float32 elsewhere."""
    if device == "cpu":
        try:
            return best_cpu_dtype(Path("/proc/cpuinfo").read_text())
        except OSError:
            return "float32"
    import torch

    return "bfloat16" if torch.cuda.is_bf16_supported() else "float16"


def best_cpu_dtype(cpuinfo: str) -> str:
    """Return the same of a processor, told from what Linux says of it.

    AMX multiplies bfloat16 several times as fast as float32, and AVX512-BF16 on an AMD EPYC more than twice as fast (see
    ``benchmarks/results/embedding.md``). On an Intel Xeon that has AVX512-BF16 and no AMX it was slower: 128 short texts took
    .79 s forward and 1.08 backward, in float32 .62 and .66.
    """
    found = dict(line.split(":", 1) for line in cpuinfo.split("\n\n", 1)[0].splitlines() if ":" in line)
    told = {name.strip(): value.split() for name, value in found.items()}
    flags = told.get("flags", [])
    fast = "amx_bf16" in flags or ("avx512_bf16" in flags and told.get("vendor_id") == ["AuthenticAMD"])
    return "bfloat16" if fast else "float32"
