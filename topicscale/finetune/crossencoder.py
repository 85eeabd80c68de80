"""Cross-encoders: models that read two texts together and score them. Slower than embedding, and better."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from topicscale.config import fingerprint
from topicscale.embedding import best_dtype
from topicscale.errors import ConfigError, InputError, ModelError
from topicscale.llm.models import quiet
from topicscale.models import modules, positions, read_json, resolve

Float32 = npt.NDArray[np.float32]
OPTIONS: dict[str, Any] = {
    "epochs": 1,
    "batch_size": 16,
    "learning_rate": 2e-5,
    "warmup": 0.1,
    "max_tokens": 256,
    "max_steps": -1,
    "seed": 42,
}
"""How one is trained: batch, epochs and warm-up of Augmented SBERT's code (Thakur et al., NAACL 2021, train_sts_indomain_*)."""
MAX_TOKENS = 512
"""Tokens of a pair; the rest of the longer text is cut."""
BATCH_TOKENS = {"cpu": 2048, "cuda": 65536}
_SLAB = 8192


class CrossEncoder:
    """A loaded cross-encoder.

    Parameters
    ----------
    model : str
        Folder or hub id of a sequence classifier with one output. Its weights must be safetensors.
    threads : int
        Processors to use.
    device : {"cpu", "cuda"}
    dtype : str, optional
        Of all but the head, which is float32. None is bfloat16 where that is fast, else float32.

    Raises
    ------
    ModelError
        It cannot be found or loaded, or has another number of outputs.
    """

    def __init__(self, model: str, *, threads: int, device: str = "cpu", dtype: str | None = None) -> None:
        import torch
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        quiet()
        torch.set_num_threads(threads)
        where = transformer(model)
        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(where, trust_remote_code=False, local_files_only=True)
            loaded: Any
            loaded, report = AutoModelForSequenceClassification.from_pretrained(
                where, dtype=torch.float32, trust_remote_code=False, local_files_only=True, use_safetensors=True, output_loading_info=True
            )
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(f"The cross-encoder {model!r} cannot be loaded: {str(error).splitlines()[0][:300]}") from error
        if report["missing_keys"]:
            raise ModelError(
                f"The model {model!r} is no cross-encoder: it has no weights for {', '.join(sorted(report['missing_keys'])[:3])}. Name one "
                "that was trained to score pairs, or give cross_encoder_data to train one."
            )
        if loaded.config.num_labels != 1:
            raise ModelError(f"A cross-encoder must have one output. Got {model!r}, which has {loaded.config.num_labels}, instead.")
        self._model = loaded.to(device).eval()
        self._device = device
        body = loaded.base_model
        body.to(getattr(torch, dtype or best_dtype(device)))
        for part in loaded.children():
            if part is not body:
                part.register_forward_pre_hook(lambda _, given: tuple(value.float() for value in given))
        self.max_tokens = int(min(MAX_TOKENS, positions(loaded.config.to_dict()) or MAX_TOKENS, self._tokenizer.model_max_length))

    def score(self, pairs: Sequence[tuple[str, str]], *, logits: bool = False) -> Float32:
        """Return the score of each pair, float32 (n,), in order: in [0, 1] by the logistic function, or as it comes (``logits``).

        Equal pairs are scored once; batches hold pairs of nearly one length.
        """
        import torch

        first: dict[tuple[str, str], int] = {}
        inverse = np.fromiter((first.setdefault((pair[0], pair[1]), len(first)) for pair in pairs), np.int64, len(pairs))
        unique = sorted(first, key=lambda pair: (len(pair[0]) + len(pair[1]), pair))
        place = np.empty(len(unique), np.int64)
        place[[first[pair] for pair in unique]] = np.arange(len(unique))
        scores = np.empty(len(unique), np.float32)
        most = self.max_tokens * 100
        for start in range(0, len(unique), _SLAB):
            slab = [(one[:most], two[:most]) for one, two in unique[start : start + _SLAB]]
            read = self._tokenizer([a for a, _ in slab], [b for _, b in slab], truncation=True, max_length=self.max_tokens)
            lengths = np.array([len(ids) for ids in read["input_ids"]])
            order = np.argsort(-lengths, kind="stable")
            at = 0
            while at < len(order):
                rows = order[at : at + max(1, BATCH_TOKENS[self._device] // int(lengths[order[at]]))]
                at += len(rows)
                batch = self._tokenizer.pad({key: [read[key][i] for i in rows] for key in read}, return_tensors="pt").to(self._device)
                with torch.inference_mode():
                    scores[start + rows] = self._model(**batch).logits[:, 0].float().cpu().numpy()
        found = scores[place[inverse]] if len(unique) else scores
        return found if logits else (1 / (1 + np.exp(-found.astype(np.float64)))).astype(np.float32)


def transformer(name: str) -> Path:
    """Return the folder of a model's transformer: its own, or of the first module where it is a sentence-transformers model.

    Raises
    ------
    ModelError
        The model cannot be found, is pickled, holds code of its own, or does not begin with a transformer.
    """
    path = resolve(name).path
    parts = modules(path)
    if parts and not str(parts[0]["type"]).endswith("Transformer"):
        kind = str(parts[0]["type"]).rpartition(".")[2]
        raise ModelError(f"The model {name!r} must be a transformer. It begins with a {kind}.")
    return path / str(parts[0].get("path", "")) if parts else path


def check_scorer(name: str) -> None:
    """Raise ModelError where a model's configuration says that it scores no pairs; nothing is loaded."""
    config = read_json(transformer(name) / "config.json")
    kinds = config.get("architectures") or []
    if kinds and not any(str(kind).endswith("ForSequenceClassification") for kind in kinds):
        raise ModelError(f"The model {name!r} is no cross-encoder, but a {kinds[0]}. Name one that was trained to score pairs.")
    outputs = config.get("num_labels") or len(config.get("id2label") or (0, 0))
    if outputs != 1:
        raise ModelError(f"A cross-encoder must have one output. Got {name!r}, which has {outputs}, instead.")


def is_encoder(name: str) -> bool:
    """Return whether a model's tokens see those after them, as a cross-encoder's should."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES

    return read_json(transformer(name) / "config.json").get("model_type") in MODEL_FOR_MASKED_LM_MAPPING_NAMES


def settings(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return how a cross-encoder is trained, defaults filled in. ConfigError where an option is unknown or no number."""
    if unknown := [key for key in options if key not in OPTIONS]:
        raise ConfigError(f"A cross-encoder's training has no option {unknown[0]!r}. It has: {', '.join(OPTIONS)}.")
    if wrong := [key for key in options if not isinstance(options[key], int | float) or options[key] < min(OPTIONS[key], 0)]:
        raise ConfigError(f"{wrong[0]} of a cross-encoder's training must be a number from 0. Got {options[wrong[0]]!r} instead.")
    return {**OPTIONS, **options}


def train(base: str, examples: pa.Table, options: Mapping[str, Any], *, work: Path, threads: int, device: str = "cpu") -> Path:
    """Return the folder of a cross-encoder, trained on scored pairs: the encoder of ``base`` with a new head, by cross-entropy.

    Written to ``work/cross-<digest>``, where the digest is of the base's weights, the examples and the options: the same call trains
    once. It is written under another name and renamed when it is whole.

    Parameters
    ----------
    base : str
        An encoder: packaged name, folder or hub id.
    examples : pyarrow.Table
        ``sentence1``, ``sentence2`` and ``score`` in [0, 1].
    options : mapping
        See :data:`OPTIONS`.

    Raises
    ------
    ConfigError
        An option is unknown.
    InputError
        There are no examples, or a score is outside of [0, 1].
    ModelError
        The base cannot be found or loaded.
    """
    chosen = settings(options)
    columns = {name: examples[name].to_pylist() for name in ("sentence1", "sentence2", "score")}
    if not columns["score"]:
        raise InputError("A cross-encoder needs scored pairs to be trained on. Got none.")
    if wrong := [score for score in columns["score"] if score is None or not 0 <= score <= 1]:
        raise InputError(f"A cross-encoder's scores must be between 0 and 1. Got {wrong[0]} instead: give score_range.")
    where = transformer(base)
    target = work / f"cross-{fingerprint('cross-encoder', 1, resolve(base).revision, columns, chosen)}"
    if target.is_dir():
        return target
    work.mkdir(parents=True, exist_ok=True)
    temporary = work / f"{target.name}.{os.getpid()}"
    try:
        _fit(where, columns, chosen, temporary, threads=threads, device=device)
        try:
            temporary.replace(target)
        except OSError:
            if not target.is_dir():  # else another process was first, with the same weights
                raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
        shutil.rmtree(f"{temporary}.run", ignore_errors=True)
    return target


def _fit(where: Path, columns: dict[str, Any], chosen: Mapping[str, Any], target: Path, *, threads: int, device: str) -> None:
    import torch
    from datasets import Dataset
    from sentence_transformers.cross_encoder import CrossEncoder as Model
    from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments
    from sentence_transformers.cross_encoder.losses import BinaryCrossEntropyLoss
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from transformers.trainer_callback import PrinterCallback

    quiet()
    torch.set_num_threads(threads)
    with torch.random.fork_rng():
        torch.manual_seed(chosen["seed"])  # the head is drawn
        bare = Path(f"{target}.run")
        try:
            # a plain folder: from one that says it is an embedding model, sentence-transformers would take that model's settings
            fresh: Any = AutoModelForSequenceClassification.from_pretrained(
                where, num_labels=1, dtype=torch.float32, trust_remote_code=False, local_files_only=True, use_safetensors=True
            )
            tokenizer: Any = AutoTokenizer.from_pretrained(where, trust_remote_code=False, local_files_only=True)
        except (OSError, ValueError, KeyError) as error:
            raise ModelError(f"No cross-encoder can be made of {where.name!r}: {str(error).splitlines()[0][:300]}") from error
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        fresh.config.pad_token_id = tokenizer.pad_token_id
        fresh.save_pretrained(bare / "fresh")
        tokenizer.save_pretrained(bare / "fresh")
        longest = min(chosen["max_tokens"], positions(fresh.config.to_dict()) or MAX_TOKENS)
        del fresh
        model = Model(str(bare / "fresh"), num_labels=1, max_length=longest, device=device, local_files_only=True, trust_remote_code=False)
        arguments = CrossEncoderTrainingArguments(
            output_dir=str(bare),
            num_train_epochs=chosen["epochs"],
            max_steps=chosen["max_steps"],
            per_device_train_batch_size=chosen["batch_size"],
            learning_rate=chosen["learning_rate"],
            warmup_steps=chosen["warmup"],
            seed=chosen["seed"],
            data_seed=chosen["seed"],
            bf16=device != "cpu" and torch.cuda.is_bf16_supported(),
            use_cpu=device == "cpu",
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
            dataloader_pin_memory=device != "cpu",
        )
        dataset = Dataset.from_dict({"sentence1": columns["sentence1"], "sentence2": columns["sentence2"], "label": columns["score"]})
        trainer = CrossEncoderTrainer(model=model, args=arguments, train_dataset=dataset, loss=BinaryCrossEntropyLoss(model))
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        inner: Any = model.model
        inner.float().cpu().save_pretrained(target)
        tokenizer.save_pretrained(target)
